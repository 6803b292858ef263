/* The indexer of sparse attention: for each token the positions whose scores are largest.
 *
 * Cost model: bytes = the keys of the context once a token; operations = 2·H·D a position, and a few to keep the best. A token is
 * computed by one thread, but the only token of a long sequence by all: each takes a range of blocks, and their lists are joined. Keys lie in the paged cache, as those of an attention with one key head and no values, and always in
 * float32: rounding a key changes which tokens are seen.
 *
 * A position's score depends on its key and on the token alone, and the order of positions is total (the larger score, then the
 * lower position). So the list is the same however a sequence is cut into steps. */

typedef struct {
    const kv_cache *cache;
    const float *q, *key, *weight;     /* f32; token t, head j at t·ld + j·ldh */
    ptrdiff_t ldq, ldqh, ldk, ldw;
    int64_t *out;                      /* [T][k]: positions that ascend, then -1 */
    int heads, width, k;
    float scale;
} indexer;

/* A float's order as that of integers; -0 is 0, and what is no number is the least. */
INLINE uint32_t order_of(float x) {
    uint32_t u;
    x = x == x ? x + 0.0f : -__builtin_inff();
    memcpy(&u, &x, 4);
    return u >> 31 ? ~u : u | 0x80000000u;
}
/* Keep the k largest of n > k keys, of equal ones those that come first, in their order; gives the least of them. */
static uint32_t keep_largest(uint32_t *key, int32_t *at, int n, int k) {
    uint32_t least = 0, known = 0;
    int need = k;                      /* how many of the keys that agree with `least` as far as it is known */
    for (int shift = 24; shift >= 0; shift -= 8) {
        int count[256] = {0}, digit = 255;
        for (int i = 0; i < n; i++) if ((key[i] & known) == least) count[key[i] >> shift & 255]++;
        while (count[digit] < need) need -= count[digit--];
        least |= (uint32_t)digit << shift;
        known |= 255u << shift;
    }
    for (int i = 0, to = 0; i < n; i++) {
        if (key[i] < least || (key[i] == least && need-- <= 0)) continue;
        key[to] = key[i];
        at[to++] = at[i];
    }
    return least;
}

/* A token's query, with its width padded by zeros. */
static void index_query(const indexer *f, int t, int ldq, float *q) {
    for (int j = 0; j < f->heads; j++) {
        memcpy(q + (size_t)j * ldq, f->q + t * f->ldq + j * f->ldqh, (size_t)f->width * 4);
        for (int d = f->width; d < ldq; d++) q[(size_t)j * ldq + d] = 0.0f;
    }
}
/* The best k of the positions from..p of blocks from/32..last, in their order: `key` and `at` have room for 2k + 32; gives their number. */
static int index_blocks(const indexer *f, const int32_t *table, int t, int p, int first, int last, const float *q, int ldq, float *score, uint32_t *key, int32_t *at) {
    int found = 0;
    uint32_t least = 0;                /* what a further position must exceed: it comes after all that are kept */
    for (int b = first; b < last; b++) {
        char *block = kv_block(f->cache, table[b]);
        for (int j = 0, mr; j < f->heads; j += mr) {
            const float *x = q + (size_t)j * ldq;
            v16 out[4][2];
            switch (mr = even_share(f->heads - j, ROWS_AT_ONCE)) {
            case 1: products_f32_1(block, x, ldq, f->width, out); break;
            case 2: products_f32_2(block, x, ldq, f->width, out); break;
#if ROWS_AT_ONCE > 2
            case 3: products_f32_3(block, x, ldq, f->width, out); break;
            case 4: products_f32_4(block, x, ldq, f->width, out); break;
#endif
            }
            for (int r = 0; r < mr; r++) for (int h = 0; h < 2; h++) store16(score + (size_t)(j + r) * KV_BLOCK + 16 * h, out[r][h]);
        }
        for (int h = b * KV_BLOCK; h < (b + 1) * KV_BLOCK && h <= p; h += 16) {
            v16 sum = splat(0.0f);
            for (int j = 0; j < f->heads; j++) sum = fma16(max16(load16(score + (size_t)j * KV_BLOCK + h % KV_BLOCK) * splat(f->scale), splat(0.0f)), splat(f->weight[t * f->ldw + j]), sum);
            float each[16];
            store16(each, sum);
            for (int n = 0; n < 16 && h + n <= p; n++) {
                const uint32_t order = order_of(each[n]);
                if (order <= least) continue;
                key[found] = order;
                at[found++] = h + n;
            }
        }
        if (found > 2 * f->k) {
            least = keep_largest(key, at, found, f->k);
            found = f->k;
        }
    }
    if (found > f->k) { keep_largest(key, at, found, f->k); found = f->k; }
    return found;
}

/* Whether all threads share a sequence's only token. */
INLINE int index_apart(const step *s, const indexer *f, int sq) {
    return s->threads.threads > 1 && s->b.start[sq + 1] - s->b.start[sq] == 1 && s->b.pos[sq] >= f->k && s->b.pos[sq] >= 2 * KV_BLOCK;
}

static void index_keys(step *s, int tid, const indexer *f) {
    const attention keys = {.cache = f->cache, .k = f->key, .v = f->key, .ldk = f->ldk, .groups = 1, .dk = f->width};
    kv_write_f32(s, tid, &keys);
    meet(s);
    const int ldq = (f->width + 31) / 32 * 32, rows = (f->heads + 3) / 4 * 4, room = 3 * f->k + KV_BLOCK, threads = s->threads.threads;
    float *q = (float *)private_scratch(s, tid), *score = q + (size_t)rows * ldq;
    uint32_t *key = (uint32_t *)(score + (size_t)rows * KV_BLOCK);
    int32_t *at = (int32_t *)(key + room), *shared = (int32_t *)s->shared;
    const size_t record = 1 + 2 * (size_t)f->k;   /* a thread's part of a list: how many, their keys, their positions */
    int apart = 0;
    for (int sq = 0; sq < s->b.sequences; sq++) {
        const int32_t *table = f->cache->tables + (ptrdiff_t)sq * s->b.max_blocks;
        const int t0 = s->b.start[sq], count = s->b.start[sq + 1] - t0;
        if (index_apart(s, f, sq)) {
            const int p = s->b.pos[sq], blocks = p / KV_BLOCK + 1;
            int32_t *part = shared + ((size_t)apart++ * threads + tid) * record;
            index_query(f, t0, ldq, q);
            part[0] = index_blocks(f, table, t0, p, (int)((int64_t)blocks * tid / threads), (int)((int64_t)blocks * (tid + 1) / threads), q, ldq, score, key, at);
            memcpy(part + 1, key, (size_t)part[0] * 4);
            memcpy(part + 1 + f->k, at, (size_t)part[0] * 4);
            continue;
        }
        for (int i = 0; i < count; i++) {
            const int t = t0 + i, p = s->b.pos[sq] + i;
            if (t % threads != tid) continue;
            int64_t *out = f->out + (ptrdiff_t)t * f->k;
            if (p < f->k) {
                for (int n = 0; n < f->k; n++) out[n] = n <= p ? n : -1;
                continue;
            }
            index_query(f, t, ldq, q);
            index_blocks(f, table, t, p, 0, p / KV_BLOCK + 1, q, ldq, score, key, at);
            for (int n = 0; n < f->k; n++) out[n] = at[n];
        }
    }
    if (!apart) return;                /* the same for every thread: it depends on the batch alone */
    meet(s);
    apart = 0;
    for (int sq = 0; sq < s->b.sequences; sq++) {
        if (!index_apart(s, f, sq) || apart++ % threads != tid) continue;
        int found = 0;
        for (int i = 0; i < threads; i++) {
            const int32_t *part = shared + ((size_t)(apart - 1) * threads + i) * record;
            memcpy(key + found, part + 1, (size_t)part[0] * 4);
            memcpy(at + found, part + 1 + f->k, (size_t)part[0] * 4);
            found += part[0];
            if (found > f->k) { keep_largest(key, at, found, f->k); found = f->k; }
        }
        for (int n = 0; n < f->k; n++) f->out[(ptrdiff_t)s->b.start[sq] * f->k + n] = at[n];
    }
}
