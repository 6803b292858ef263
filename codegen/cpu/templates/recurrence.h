/* Layers with a state: short causal convolutions, and linear recurrences.
 *
 * A sequence's state lies in its slot. Tokens are taken one after the other, in a prefill as in a decode, so any chunking gives
 * the same bits; what is parallel are channels, heads and the columns of a head's state, which do not depend on each other.
 *
 * Cost model of a recurrence: a piece of 32 columns keeps its state [N][32] f32 (16 KiB for N = 128) in the L1 cache over all tokens
 * of a step and takes two to three operations an element and token; a decode reads and writes the state once from memory. */

INLINE int fresh(const step *s, int sequence) { return s->b.pos[sequence] == 0; }
INLINE float exp1(float x) { return exp16(splat(x))[0]; }
INLINE void store_tail(float *p, v16 v, int n) { float t[16]; store16(t, v); memcpy(p, t, (size_t)n * 4); }
INLINE v16 load_some(const float *p, int n) { return n >= 16 ? load16(p) : load_tail(p, n); }
INLINE void store_some(float *p, v16 v, int n) { if (n >= 16) store16(p, v); else store_tail(p, v, n); }

typedef struct {
    float *state;              /* [slots][taps - 1][channels]: the last inputs */
    const float *x;            /* token t at t·ldx */
    ptrdiff_t ldx;
    const float *w, *bias;     /* w [taps][channels] */
    float *y;                  /* [T][channels] */
    int channels, taps;
} convolution;

#define CONV_CHANNELS 64
static void convolve(step *s, int tid, const convolution *f) {
    (void)tid;
    const int c = f->channels, keep = f->taps - 1, blocks = (c + CONV_CHANNELS - 1) / CONV_CHANNELS;
    FOR_PIECES(s, s->b.sequences * blocks, 1, piece) {
        const int sequence = piece / blocks, from = piece % blocks * CONV_CHANNELS, to = from + CONV_CHANNELS < c ? from + CONV_CHANNELS : c;
        const int first = s->b.start[sequence], n = s->b.start[sequence + 1] - first;
        float *state = f->state + (size_t)s->b.slots[sequence] * (size_t)keep * (size_t)c;
        if (fresh(s, sequence)) for (int j = 0; j < keep; j++) memset(state + (size_t)j * c + from, 0, (size_t)(to - from) * 4);
        for (int i = from; i < to; i += 16) {
            const int lanes = to - i;
            for (int t = 0; t < n; t++) {
                v16 sum = f->bias ? load_some(f->bias + i, lanes) : splat(0.0f);
                for (int j = 0; j < f->taps; j++) {
                    const int at = t - keep + j;
                    const float *x = at < 0 ? state + (ptrdiff_t)(at + keep) * c : f->x + (first + at) * f->ldx;
                    sum = fma16(load_some(x + i, lanes), load_some(f->w + (ptrdiff_t)j * c + i, lanes), sum);
                }
                store_some(f->y + (ptrdiff_t)(first + t) * c + i, sum, lanes);
            }
        }
        for (int j = 0; j < keep; j++) {   /* in this order what is read has not been overwritten */
            const int at = n - keep + j;
            const float *x = at < 0 ? state + (ptrdiff_t)(at + keep) * c : f->x + (first + at) * f->ldx;
            memcpy(state + (size_t)j * c + from, x + from, (size_t)(to - from) * 4);
        }
    }
}

typedef struct {
    float *state;              /* a slot: [heads][keys][columns], or [keys][channels] when every head has one column */
    size_t slot;               /* floats of a slot */
    const float *q, *k, *v, *g, *beta;     /* token t, head or group h at t·ld + h·ldh */
    ptrdiff_t ldq, ldqh, ldk, ldkh, ldv, ldvh, ldg, ldgh, ldb;
    const float *rates;        /* [keys][heads] */
    float *out;                /* [T][heads][values] */
    int heads, groups, keys, values, columns, decays;   /* decays: numbers in a head's g */
    int delta;
} recurrence;

/* One row of 16 columns: decayed, and what it adds to the product with the key; then renewed, and what it adds to the output. */
INLINE v16 recall(float *row, v16 d, v16 key, v16 sum) { const v16 a = load16(row) * d; store16(row, a); return fma16(a, key, sum); }
INLINE v16 renew(float *row, v16 d, v16 update, v16 query, v16 sum) { const v16 a = fma16(load16(row), d, update); store16(row, a); return fma16(a, query, sum); }
#define FOR_ROWS(n, i, j) for (int i##_at = 0; i##_at < (n); i##_at += 4) UNROLL for (int j = 0, i = i##_at; j < 4; j++, i++) if (i < (n))

/* A piece: 32 columns of one head's state, over the tokens of one sequence. */
static void recur_heads(step *s, int tid, const recurrence *f) {
    const int n = f->keys, blocks = (f->values + 31) / 32, share = f->heads / f->groups;
    float *decay = (float *)private_scratch(s, tid);
    FOR_PIECES(s, s->b.sequences * f->heads * blocks, 1, piece) {
        const int sequence = piece / (f->heads * blocks), head = piece / blocks % f->heads, column = piece % blocks * 32;
        const int left = f->values - column, second = left > 16, la = left, lb = left - 16;
        float *state = f->state + (size_t)s->b.slots[sequence] * f->slot + (size_t)head * (size_t)n * (size_t)f->columns + column;
        const ptrdiff_t ld = f->columns;
        if (fresh(s, sequence)) for (int i = 0; i < n; i++) memset(state + i * ld, 0, (size_t)(second ? 32 : 16) * 4);
        for (int t = s->b.start[sequence]; t < s->b.start[sequence + 1]; t++) {
            const float *q = f->q + t * f->ldq + head / share * f->ldqh, *k = f->k + t * f->ldk + head / share * f->ldkh;
            const float *v = f->v + t * f->ldv + head * f->ldvh + column, *g = f->g + t * f->ldg + head * f->ldgh;
            float *out = f->out + ((ptrdiff_t)t * f->heads + head) * f->values + column;
            if (f->rates) for (int i = 0; i < n; i++) decay[i] = g[0] * f->rates[(ptrdiff_t)i * f->heads + head];
            else if (f->decays > 1) memcpy(decay, g, (size_t)n * 4);
            if (f->rates || f->decays > 1) for (int i = 0; i < n; i += 16) store_some(decay + i, exp16(load_some(decay + i, n - i)), n - i);
            else { const float d = exp1(g[0]); for (int i = 0; i < n; i++) decay[i] = d; }
            v16 ua = load_some(v, la), ub = second ? load_some(v + 16, lb) : splat(0.0f);
            if (f->delta) {
                v16 ma[4], mb[4];
                for (int j = 0; j < 4; j++) ma[j] = mb[j] = splat(0.0f);
                FOR_ROWS(n, i, j) {
                    const v16 d = splat(decay[i]), key = splat(k[i]);
                    ma[j] = recall(state + i * ld, d, key, ma[j]);
                    if (second) mb[j] = recall(state + i * ld + 16, d, key, mb[j]);
                }
                const v16 beta = splat(f->beta[t * f->ldb + head]);
                ua = beta * (ua - ((ma[0] + ma[1]) + (ma[2] + ma[3])));
                ub = beta * (ub - ((mb[0] + mb[1]) + (mb[2] + mb[3])));
            }
            v16 oa[4], ob[4];
            for (int j = 0; j < 4; j++) oa[j] = ob[j] = splat(0.0f);
            FOR_ROWS(n, i, j) {
                const v16 d = splat(f->delta ? 1.0f : decay[i]), key = splat(k[i]), query = splat(q[i]);
                oa[j] = renew(state + i * ld, d, key * ua, query, oa[j]);
                if (second) ob[j] = renew(state + i * ld + 16, d, key * ub, query, ob[j]);
            }
            store_some(out, (oa[0] + oa[1]) + (oa[2] + oa[3]), la);
            if (second) store_some(out + 16, (ob[0] + ob[1]) + (ob[2] + ob[3]), lb);
        }
    }
}

/* Heads of one column that share their keys: 16 heads are the lanes of a piece. */
static void recur_channels(step *s, int tid, const recurrence *f) {
    (void)tid;
    const int n = f->keys, blocks = (f->heads + 15) / 16;
    const ptrdiff_t ld = f->columns;
    FOR_PIECES(s, s->b.sequences * blocks, 1, piece) {
        const int sequence = piece / blocks, channel = piece % blocks * 16, lanes = f->heads - channel;
        float *state = f->state + (size_t)s->b.slots[sequence] * f->slot + channel;
        if (fresh(s, sequence)) for (int i = 0; i < n; i++) store16(state + i * ld, splat(0.0f));
        for (int t = s->b.start[sequence]; t < s->b.start[sequence + 1]; t++) {
            const float *q = f->q + t * f->ldq, *k = f->k + t * f->ldk;
            const v16 v = load_some(f->v + t * f->ldv + channel, lanes), g = load_some(f->g + t * f->ldg + channel, lanes);
            const v16 all = f->rates ? g : exp16(g);
            v16 out = splat(0.0f);
            for (int i = 0; i < n; i++) {
                const v16 d = f->rates ? exp16(g * load_some(f->rates + (ptrdiff_t)i * f->heads + channel, lanes)) : all;
                const v16 a = fma16(load16(state + i * ld), d, splat(k[i]) * v);
                store16(state + i * ld, a);
                out = fma16(a, splat(q[i]), out);
            }
            store_some(f->out + (ptrdiff_t)t * f->heads + channel, out, lanes);
        }
    }
}
