/* Sampling: one row of logits a request, no loop over the vocabulary in Python.
 *
 * In this order: logit bias; repetition, presence and frequency penalties over the tokens so far; then, at temperature 0, the largest
 * (the lowest id among equals); otherwise temperature, top-k, top-p, min-p, and a draw from a counter-based generator keyed by the
 * request's seed and the token's place, so that a request's text depends on nothing else. Log-probabilities are of the raw logits. */

typedef struct {
    int32_t row;                                   /* which row of the logits */
    float temperature, top_p, min_p, repetition, presence, frequency;
    int32_t top_k;
    uint64_t seed, counter;
    const int32_t *prompt; int64_t prompt_count;   /* tokens that repetition counts */
    const int32_t *output; int64_t output_count;   /* tokens that all three penalties count */
    const int32_t *bias_ids; const float *bias; int32_t bias_count, unused;
} sampling;

typedef struct { step *s; const sampling *rows; const float *logits; int count, vocabulary; int32_t *tokens; float *logprobs; int top; int32_t *top_ids; float *top_logprobs; int next; } sample_job;
typedef struct { step *s; const float *logits; const int32_t *targets; int count, vocabulary; float *logprobs; } score_job;

INLINE uint64_t mix64(uint64_t x) { /* SplitMix64's finalizer */
    x += 0x9e3779b97f4a7c15ull; x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull; x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
INLINE double uniform(uint64_t seed, uint64_t counter) { return (double)(mix64(mix64(seed) ^ (counter * 0xd1342543de82ef95ull + 1)) >> 11) * 0x1p-53; }

/* log Σ exp of a row, in double from float exponentials: the same order whatever the batch. */
static double log_sum(const float *x, int n, float most) {
    double total = 0.0;
    int i = 0;
    for (; i + 16 <= n; i += 16) total += (double)sum16(exp16(load16(x + i) - splat(most)));
    for (; i < n; i++) total += (double)exp16(splat(x[i] - most))[0];
    /* log of a double through float pieces: total = m·2^e with m in [0.5, 1) */
    int e; double m = total; uint64_t u; memcpy(&u, &m, 8);
    e = (int)(u >> 52) - 1022; u = (u & 0xfffffffffffffull) | 0x3fe0000000000000ull; memcpy(&m, &u, 8);
    double t = (m - 1.0) / (m + 1.0), z = t * t;
    double l = 2.0 * t * (1.0 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z * (1.0 / 11 + z * (1.0 / 13 + z * (1.0 / 15 + z * (1.0 / 17 + z / 19)))))))));
    return (double)most + l + e * 0.69314718055994530942;
}
static int largest(const float *x, int n) {
    v16 best = splat(-__builtin_inff());
    int i = 0;
    for (; i + 16 <= n; i += 16) best = max16(load16(x + i), best);
    float most = hmax16(best);
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    for (i = 0; i < n; i++) if (x[i] == most) return i;
    return 0;
}

typedef struct { float value; int32_t id; } candidate;
INLINE int before(candidate a, candidate b) { return a.value > b.value || (a.value == b.value && a.id < b.id); }
static void sift(candidate *h, int n, int i) { /* a heap with the last-ranked on top */
    for (;;) {
        int w = i, l = 2 * i + 1, r = l + 1;
        if (l < n && before(h[w], h[l])) w = l;
        if (r < n && before(h[w], h[r])) w = r;
        if (w == i) return;
        candidate t = h[i]; h[i] = h[w]; h[w] = t; i = w;
    }
}
/* The k best in order: h has room for k. Returns how many there are. */
static int best_of(const float *x, int n, int k, candidate *h) {
    int m = 0;
    for (int i = 0; i < n; i++) {
        candidate c = {x[i], i};
        if (!(x[i] > -__builtin_inff())) continue;
        if (m < k) { h[m++] = c; if (m == k) for (int j = k / 2 - 1; j >= 0; j--) sift(h, k, j); }
        else if (before(c, h[0])) { h[0] = c; sift(h, k, 0); }
    }
    for (int j = m / 2 - 1; j >= 0; j--) sift(h, m, j);
    for (int e = m - 1; e > 0; e--) { candidate t = h[0]; h[0] = h[e]; h[e] = t; sift(h, e, 0); }
    return m;
}

static void penalize(const sampling *q, float *x, int n, uint8_t *seen) {
    for (int i = 0; i < q->bias_count; i++) if (q->bias_ids[i] >= 0 && q->bias_ids[i] < n) x[q->bias_ids[i]] += q->bias[i];
    if (q->repetition == 1.0f && q->presence == 0.0f && q->frequency == 0.0f) return;
    if (q->repetition != 1.0f) {
        memset(seen, 0, (size_t)n);
        for (int64_t i = 0; i < q->prompt_count + q->output_count; i++) {
            int32_t id = i < q->prompt_count ? q->prompt[i] : q->output[i - q->prompt_count];
            if (id < 0 || id >= n || seen[id]) continue;
            seen[id] = 1;
            x[id] = x[id] > 0.0f ? x[id] / q->repetition : x[id] * q->repetition;
        }
    }
    if (q->presence != 0.0f || q->frequency != 0.0f) {
        memset(seen, 0, (size_t)n);
        for (int64_t i = 0; i < q->output_count; i++) {
            int32_t id = q->output[i];
            if (id < 0 || id >= n) continue;
            if (!seen[id]) { seen[id] = 1; x[id] -= q->presence; }
            x[id] -= q->frequency;
        }
    }
}
static int draw(const sampling *q, const float *x, int n, candidate *c) {
    int k = q->top_k > 0 && q->top_k < n ? q->top_k : n, m;
    if (k == n && q->top_p >= 1.0f && q->min_p <= 0.0f) { /* no filter: no need to sort */
        m = n;
        for (int i = 0; i < n; i++) c[i] = (candidate){x[i], i};
    } else {
        m = best_of(x, n, k, c);
    }
    if (m == 0) return largest(x, n);
    float most = c[0].value;
    for (int i = 1; i < m; i++) most = c[i].value > most ? c[i].value : most;
    double total = 0.0;
    const float inverse = q->temperature > 1e-30f ? 1.0f / q->temperature : 1e30f;
    int i = 0;
    for (; i + 16 <= m; i += 16) {
        float t[16];
        for (int j = 0; j < 16; j++) t[j] = (c[i + j].value - most) * inverse;
        store16(t, exp16(load16(t)));
        for (int j = 0; j < 16; j++) { c[i + j].value = t[j]; total += t[j]; }
    }
    for (; i < m; i++) { c[i].value = exp16(splat((c[i].value - most) * inverse))[0]; total += c[i].value; }
    if (q->top_p < 1.0f) {
        double sum = 0.0, limit = total * (double)q->top_p;
        int keep = 0;
        while (keep < m && (keep == 0 || sum < limit)) sum += c[keep++].value;
        m = keep; total = sum;
    }
    if (q->min_p > 0.0f) {
        double sum = 0.0;
        int keep = 0;
        while (keep < m && (keep == 0 || c[keep].value >= q->min_p * c[0].value)) sum += c[keep++].value;
        m = keep; total = sum;
    }
    double at = uniform(q->seed, q->counter) * total;
    for (i = 0; i < m; i++) { at -= c[i].value; if (at < 0.0) return c[i].id; }
    for (i = m - 1; i > 0 && c[i].value == 0.0f; i--) {}
    return c[i].id;
}
/* One row needs no other thread, which may sleep. */
INLINE int next_row(sample_job *job) { return job->count == 1 ? job->next++ : next_piece(&job->s->threads, 1); }
static void sample_rows(void *raw, int tid) {
    sample_job *job = raw;
    const int n = job->vocabulary;
    float *x = NULL; candidate *c = NULL; uint8_t *seen = NULL;
    (void)tid;
    for (int i = next_row(job); i < job->count; i = next_row(job)) {
        const sampling *q = &job->rows[i];
        const float *raw_row = job->logits + (size_t)q->row * (size_t)n, *row = raw_row;
        const int changed = q->bias_count || q->repetition != 1.0f || q->presence != 0.0f || q->frequency != 0.0f;
        if (changed || q->temperature > 0.0f || job->top) {
            if (!x) { x = malloc((size_t)n * 4); c = malloc((size_t)n * sizeof *c); seen = malloc((size_t)n); }
            if (!x || !c || !seen) { job->tokens[i] = -1; continue; }
        }
        if (changed) { memcpy(x, row, (size_t)n * 4); penalize(q, x, n, seen); row = x; }
        const int id = q->temperature > 0.0f ? draw(q, row, n, c) : largest(row, n);
        job->tokens[i] = id;
        if (job->logprobs) {
            const double z = log_sum(raw_row, n, raw_row[largest(raw_row, n)]);
            job->logprobs[i] = (float)((double)raw_row[id] - z);
            if (job->top) {
                int m = best_of(raw_row, n, job->top < n ? job->top : n, c);
                for (int j = 0; j < job->top; j++) {
                    job->top_ids[i * job->top + j] = j < m ? c[j].id : -1;
                    job->top_logprobs[i * job->top + j] = j < m ? (float)((double)c[j].value - z) : -__builtin_inff();
                }
            }
        }
    }
    free(x); free(c); free(seen);
}
static void score_rows(void *raw, int tid) {
    score_job *job = raw;
    (void)tid;
    for (int i = next_piece(&job->s->threads, 1); i < job->count; i = next_piece(&job->s->threads, 1)) {
        const float *row = job->logits + (size_t)i * (size_t)job->vocabulary;
        job->logprobs[i] = (float)((double)row[job->targets[i]] - log_sum(row, job->vocabulary, row[largest(row, job->vocabulary)]));
    }
}
