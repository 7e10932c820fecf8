/*
bench_cuda.cu: RRHF steps, sampling and beam search of GPT-2 124M on the GPU, and where the step's time goes.

  bash dev/bench/bench_cuda.sh       builds this, runs it, and PyTorch's step beside it

Random weights and tokens: the time hardly depends on them (but a frequent word's gradient in the embedding has more
rows to add up than here). The table lists every kernel of one step with its time,
the bytes or operations that it cannot do without, and their rate beside what the card was measured to reach: the copy
of a large array, and a large matrix product. A kernel's time reaches from its start to that of the next, what is copied
or set to zero between them included, and the last one's to the end of the step.
*/
#define NO_MAIN
#define LAUNCHED(name) mark(name)
static void mark(const char *name), mark_product(int ta, int tb, int M, int N, int K);
#define MULTIPLIED(ta, tb, M, N, K) mark_product(ta, tb, M, N, K) // a row of the table for each product's shape
#include "../../train_rrhf.cu" // defines: everything

enum { MARKS = 1 << 12 };
static cudaEvent_t event[MARKS];
static const char *mark_name[MARKS];
static int marks, marking;

static void mark(const char *name) {
    if (!marking || marks == MARKS) return;
    mark_name[marks] = name;
    CHECK_CUDA(cudaEventRecord(event[marks++], device.stream));
}

static void mark_product(int ta, int tb, int M, int N, int K) {
    static char names[MARKS][48];
    if (!marking || marks == MARKS) return;
    snprintf(names[marks], sizeof *names, "gemm %c%c %d x %d x %d", ta ? 'T' : 'N', tb ? 'T' : 'N', M, N, K);
    mark(names[marks]);
}

static double between(int i, int j) { // seconds
    float ms = 0;
    CHECK_CUDA(cudaEventElapsedTime(&ms, event[i], event[j]));
    return ms * 1e-3;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_size);
    return x[n / 2];
}

// ----------------------------------------------------------------------------
// What the card can do: bytes/s of a copy, read and written; operations/s of an n^3 product

static double copy_rate(size_t bytes) {
    char *a = (char *)device_alloc(bytes, "the copy", "use a smaller one");
    char *b = (char *)device_alloc(bytes, "the copy", "use a smaller one");
    double s[7];
    CHECK_CUDA(cudaMemsetAsync(a, 0, bytes, device.stream));
    for (int i = 0; i < 7; i++) {
        marks = 0;
        mark("");
        CHECK_CUDA(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice, device.stream));
        mark("");
        device_wait();
        s[i] = between(0, 1);
    }
    device_free(a), device_free(b);
    return 2 * (double)bytes / median(s, 7);
}

static double product_rate(int n) {
    size_t nn = (size_t)n * (size_t)n;
    float *x = (float *)xalloc(nn, sizeof *x), *f = (float *)device_alloc(nn * sizeof *f, "the product",
                                                                          "use a smaller one");
    elem *a[3];
    double s[7];
    Rng rng = rng_make(1, 1, 1);
    for (size_t i = 0; i < nn; i++)
        x[i] = (float)rng_uniform(&rng) - 0.5f; // zeros would be faster than any real numbers
    CHECK_CUDA(cudaMemcpyAsync(f, x, nn * sizeof *x, cudaMemcpyHostToDevice, device.stream));
    for (int i = 0; i < 3; i++) {
        a[i] = (elem *)device_alloc(nn * sizeof(elem), "the product", "use a smaller one");
        LAUNCH(copy_params_kernel, div_up(nn, BLOCK), BLOCK, 0, a[i], f, nn);
    }
    for (int i = 0; i < 7; i++) {
        marks = 0;
        gemm(0, 1, n, n, n, a[0], n, a[1], n, 0, a[2], ELEM_TYPE, n, NULL);
        mark("");
        device_wait();
        s[i] = between(marks - 2, marks - 1);
    }
    for (int i = 0; i < 3; i++) device_free(a[i]);
    device_free(f);
    free(x);
    return 2.0 * n * (double)nn / median(s, 7);
}

// ----------------------------------------------------------------------------
// One RRHF step

static Ranked random_data(int Q, int query, int k, int resp, int V) {
    Ranked d = {0};
    Rng rng = rng_make(2, 2, 2);
    uint16_t tok[4096];
    d.V = V;
    for (int q = 0; q < Q; q++)
        for (int r = -1; r < k; r++) {
            int n = r < 0 ? query : resp;
            for (int t = 0; t < n; t++) tok[t] = (uint16_t)rng_below(&rng, V);
            if (r < 0) ranked_query(&d, tok, n);
            else ranked_response(&d, tok, n, (float)rng_normal(&rng), 0);
        }
    return d;
}

typedef struct { double bytes, ops; } Work;

// What a kernel cannot do without, over one step of one micro-batch. seen: pairs of a row and a key that it sees.
static Work work(const char *name, Config c, const Batch *b, double seen) {
    double N = b->N, U = b->U, C = c.C, L = c.L, e = sizeof(elem), P = (double)gpt2_count(c);
    double NC = N * C, UC = U * C, UV = U * c.Vp;
    const struct { const char *name; Work w; } table[] = {
        {"embedding_forward_kernel", {12 * NC, 0}},
        {"embedding_backward_kernel", {8 * NC, 0}},
        {"layernorm_forward_kernel", {(8 + 2 * e) * (2 * L * NC + UC), 0}},
        {"layernorm_backward_kernel", {(12 + e + (HALF ? e : 0)) * (2 * L * NC + UC), 0}},
        {"bias_backward_kernel", {15 * L * NC * e, 0}}, // 12 of them GELU's backward
        {"attention_forward_kernel", {4 * L * NC * e, 4 * L * C * seen}},
        {"attention_backward_q_kernel", {6 * L * NC * e, 6 * L * C * seen}},
        {"attention_backward_kv_kernel", {6 * L * NC * e, 8 * L * C * seen}},
        {"gelu_forward_kernel", {8 * L * NC * e, 0}},
        {"classifier_forward_kernel", {4 * UV, 0}},
        {"classifier_backward_kernel", {(4 + e) * UV, 0}},
        {"grad_norm_kernel", {4 * P, 0}},
        {"adamw_kernel", {(28 + (HALF ? e : 0)) * P, 0}}};
    Work none = {0, 0};
    size_t n = strcspn(name, "<");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (strlen(table[i].name) == n && !memcmp(table[i].name, name, n)) return table[i].w;
    return none;
}

static void profile(Config c, const Batch *b, double copy, double product) {
    double seen = 0, all = between(0, marks - 1);
    for (int n = 0; n < b->N; n++) seen += b->a1[n] - b->a0[n] + n + 1 - b->b0[n];
    printf("\n%-30s %6s %9s %6s %10s %8s %10s %8s\n", "kernel", "calls", "ms", "%", "GB/s", "of copy", "TFLOP/s",
           "of gemm");
    for (int i = 0; i + 1 < marks; i++) {
        double s = 0;
        int calls = 0, seen_before = 0;
        size_t len = strcspn(mark_name[i], "<");
        for (int j = 0; j + 1 < marks; j++) {
            if (strcspn(mark_name[j], "<") != len || memcmp(mark_name[j], mark_name[i], len)) continue;
            seen_before |= j < i;
            s += between(j, j + 1);
            calls++;
        }
        if (seen_before) continue;
        Work w = work(mark_name[i], c, b, seen);
        double M, n, K;
        if (sscanf(mark_name[i], "gemm %*s %lf x %lf x %lf", &M, &n, &K) == 3) w.ops = 2 * M * n * K * calls;
        printf("%-30.*s %6d %9.3f %5.1f%%", (int)len, mark_name[i], calls, s * 1e3, 100 * s / all);
        if (w.bytes > 0) printf(" %10.0f %7.0f%%", w.bytes / s * 1e-9, 100 * w.bytes / s / copy);
        else printf(" %10s %8s", "", "");
        if (w.ops > 0) printf(" %10.1f %7.0f%%", w.ops / s * 1e-12, 100 * w.ops / s / product);
        printf("\n");
    }
}

// Median of `repeat` steps, in ms; the last one is profiled.
static double bench_step(GPT2 *m, int Q, int micro, int query, int k, int resp, int repeat, double copy,
                         double product) {
    Config c = gpt2_config(m);
    Ranked d = random_data(Q, query, k, resp, c.V);
    Train t = {0};
    double *ms = (double *)xalloc((size_t)repeat, sizeof *ms), norm;
    // Behind each step's queries the next one's, which are the same.
    int *order = (int *)xalloc(2 * (size_t)Q, sizeof(int));
    int64_t tokens = 0;
    t.batch = Q, t.micro_batch = micro, t.loss = rrhf_loss;
    t.adam.lr = 2e-5, t.adam.beta1 = 0.9, t.adam.beta2 = 0.999, t.adam.eps = 1e-8;
    t.objective.rank_weight = t.objective.ft_weight = t.objective.length_penalty = 1;
    for (int q = 0; q < 2 * Q; q++) order[q] = q % Q;
    StepRoom s = step_room(m, &d, micro);
    s.following = Q;
    for (int i = -3; i <= repeat; i++) { // three to warm up, one more to profile
        double start = now_s();
        tokens = 0;
        marks = 0;
        marking = i == repeat;
        train_step(m, &t, &s, &d, order, Q, t.adam.lr, i + 4, &norm, &tokens);
        mark("end");
        device_wait();
        if (i >= 0 && i < repeat) ms[i] = (now_s() - start) * 1e3;
    }
    marking = 0;
    double mid = median(ms, repeat), U = 0, N = 0;
    N = (double)tokens, U = (double)Q * (1 + k * (resp - 1));
    double ops = 6 * N * c.L * 12.0 * c.C * c.C + 6 * U * c.V * (double)c.C;
    if (micro == Q) profile(c, &s.b, copy, product);
    printf("step: queries %d micro_batch %d tokens %.0f  median_ms %.3f  tokens_per_s %.0f  "
           "matrix products %.1f TFLOP/s, %.0f%% of the card's\n",
           Q, micro, N, mid, N / mid * 1e3, ops / mid * 1e-9, 100 * ops / mid * 1e3 / product);
    fflush(stdout);
    step_room_free(&s);
    ranked_free(&d);
    free(ms), free(order);
    return mid;
}

static void bench_sampling(GPT2 *m, int Q, int query, int k, int new_tokens, int top_k) {
    Ranked d = random_data(Q, query, 1, 1, gpt2_config(m).V);
    Sampling s = {0};
    s.num_return = k, s.max_new_tokens = new_tokens;
    s.draw.top_k = top_k, s.draw.top_p = 1, s.draw.temperature = 1;
    s.eot = -1, s.seed = 1;
    for (int i = 0; i < 2; i++) { // the first warms up
        double start = now_s();
        Ranked out = sample(m, &d, s, 0, "");
        double ms = (now_s() - start) * 1e3;
        if (i) printf("sampling: queries %d completions %d x %d tokens, top-k %d  ms %.1f  tokens_per_s %.0f\n", Q, k,
                      new_tokens, top_k, ms, (double)Q * k * new_tokens / ms * 1e3);
        ranked_free(&out);
    }
    ranked_free(&d);
}

static void bench_beams(GPT2 *m, int Q, int query, int beams, int new_tokens) {
    Ranked d = random_data(Q, query, 1, 1, gpt2_config(m).V);
    Beaming b = {beams, 1, 0, 1, beams, new_tokens, -1};
    for (int i = 0; i < 2; i++) { // the first warms up
        double start = now_s();
        Ranked out = beam_search(m, &d, b, 0, "");
        double ms = (now_s() - start) * 1e3;
        if (i) printf("beams: queries %d beams %d x %d tokens  ms %.1f  tokens_per_s %.0f\n", Q, beams, new_tokens, ms,
                      (double)Q * beams * new_tokens / ms * 1e3);
        ranked_free(&out);
    }
    ranked_free(&d);
}

int main(int argc, char **argv) {
    int queries = argc > 1 ? atoi(argv[1]) : 64, tiny = argc > 2; // a second argument: sizes for a run without a GPU
    Config c = {1024, 50257, 50304, 12, 12, 768, 0, 0};
    Config small = {64, 300, 304, 2, 2, 32, 0, 0};
    if (tiny) c = small;
    printf("%s\n", backend_start(0));
    for (int i = 0; i < MARKS; i++) CHECK_CUDA(cudaEventCreate(&event[i]));
    marking = 1;
    double copy = copy_rate(tiny ? 1 << 16 : (size_t)1 << 31), product = product_rate(tiny ? 64 : 8192);
    marking = 0;
    printf("card: copy %.0f GB/s, matrix product %.1f TFLOP/s\n", copy * 1e-9, product * 1e-12);
    float *params = (float *)xalloc(gpt2_count(c), sizeof *params);
    gpt2_random(c, 1, params);
    GPT2 *m = gpt2_build(c, params, 1);
    int query = tiny ? 6 : 64, k = tiny ? 3 : 6, resp = tiny ? 4 : 48;
    bench_step(m, queries, queries, query, k, resp, tiny ? 1 : 20, copy, product);
    if (queries > 6) bench_step(m, queries, 6, query, k, resp, tiny ? 1 : 20, copy, product); // of about 2,000 tokens
    if (queries == 64 || tiny) { // once, whatever the steps
        for (int Q = tiny ? 4 : 64; Q <= (tiny ? 4 : 1024); Q *= 16) bench_sampling(m, Q, query, 4, tiny ? 4 : 48, 50);
        bench_sampling(m, tiny ? 4 : 1024, query, 4, tiny ? 4 : 48, 0);
        bench_beams(m, tiny ? 4 : 256, query, 4, tiny ? 4 : 48);
    }
    fflush(stdout);
    gpt2_free(m);
    free(params);
    return 0;
}
