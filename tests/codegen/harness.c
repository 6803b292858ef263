/* Runs one artifact's step without Python: `harness IN OUT THREADS`. IN holds little-endian int32 words: the number of weights, then
 * their sizes in bytes; the number of runs, and for each the number of tokens and the tokens; then the weights' bytes. OUT gets the
 * logits of every position of every run, each run computed as one prefill and then again token by token: both must be equal. */
#include "step.c"

static int32_t word(FILE *f) { int32_t v; if (fread(&v, 4, 1, f) != 1) exit(3); return v; }

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (!in || !out || !llmc_usable()) return 3;
    int count = word(in), vocabulary = word(in);
    void *weights[WEIGHTS + 1];
    int32_t sizes[WEIGHTS + 1];
    if (count != WEIGHTS) return 4;
    for (int i = 0; i < count; i++) sizes[i] = word(in);
    int runs = word(in);
    int32_t tokens[16][512], lengths[16];
    for (int r = 0; r < runs; r++) { lengths[r] = word(in); for (int i = 0; i < lengths[r]; i++) tokens[r][i] = word(in); }
    for (int i = 0; i < count; i++) {
        weights[i] = aligned_alloc(64, (size_t)(sizes[i] + 63) & ~(size_t)63); /* exactly as large: a read beyond it is caught */
        if (fread(weights[i], 1, (size_t)sizes[i], in) != (size_t)sizes[i]) return 5;
    }
    step *s = llmc_create(weights, atoi(argv[3]), 512, 4, 512, 1024, TABLES * 64, 4);
    if (!s) return 6;
    for (int r = 0; r < runs; r++) {
        const int n = lengths[r];
        int32_t positions[512], rows[512], start[2] = {0, n}, pos = 0, table[TABLES * 32], slots[2] = {0, 1};
        for (int i = 0; i < n; i++) positions[i] = rows[i] = i;
        for (int i = 0; i < TABLES * 32; i++) table[i] = i;
        batch b = {n, 1, n, 32, tokens[r], positions, start, &pos, table, rows, slots};
        if (llmc_step(s, &b)) return 7;
        float *whole = malloc((size_t)n * vocabulary * 4);
        memcpy(whole, llmc_logits(s), (size_t)n * vocabulary * 4);
        fwrite(whole, 4, (size_t)n * vocabulary, out);
        for (int i = 0; i < TABLES * 32; i++) table[i] = TABLES * 32 + i;
        for (int i = 0; i < n; i++) {
            int32_t one[2] = {0, 1}, zero = 0;
            pos = i;
            batch d = {1, 1, 1, 32, &tokens[r][i], &positions[i], one, &pos, table, &zero, slots + 1};
            if (llmc_step(s, &d)) return 8;
            if (memcmp(llmc_logits(s), whole + (size_t)i * vocabulary, (size_t)vocabulary * 4)) { fprintf(stderr, "run %d: token %d differs from the prefill\n", r, i); return 9; }
        }
        sampling q = {.row = 0, .temperature = 0.7f, .top_p = 0.9f, .min_p = 0.01f, .repetition = 1.1f, .presence = 0.5f, .frequency = 0.5f, .top_k = 20, .seed = 7, .counter = 1, .prompt = tokens[r], .prompt_count = n, .output = tokens[r], .output_count = n};
        int32_t token, ids[5];
        float probability, best[5];
        llmc_sample(s, &q, 1, vocabulary, &token, &probability, 5, ids, best);
        if (token < 0 || token >= vocabulary) return 10;
        free(whole);
    }
    llmc_copy_block(s, 0, 1);
    llmc_copy_state(s, 0, 1);
    llmc_destroy(s);
    for (int i = 0; i < count; i++) free(weights[i]);
    return fclose(out) || fclose(in);
}
