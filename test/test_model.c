/*
test_model.c: what must come out the same when it is computed in another way. A shared prefix and separate sequences;
micro-batches; every matrix product that was built; any number of threads; decoding over the cache and the whole
sequence at once; AdamW in double. And that gpt2_bytes and gpt2_random keep their word. In float or (-DREAL=double)
double.

  cc -std=c11 -O2 -fopenmp -fopenmp-simd -DNO_MAIN test/test_model.c -o test/test_model -lm && test/test_model
*/
#include "../train_rrhf.c" // defines: gemm, gpt2_build, gpt2_forward, decode_logits, train_step, ...
#include "test.h"          // defines: check, check_close, test_params, test_ranked, test_batch, test_summary
#ifdef __GLIBC__
#include <malloc.h>        // defines: mallinfo2
#endif

static const double eps = sizeof(real) == 4 ? 0x1p-23 : 0x1p-52;
static const Config policy = {24, 45, 48, 2, 3, 24, 0, 0}, reward = {24, 45, 48, 2, 3, 24, 1, 0};

static GPT2 *model_make(Config c, uint64_t seed) {
    float *params = test_params(c, seed);
    GPT2 *m = gpt2_build(c, params, 1);
    free(params);
    return m;
}

static double *doubles(const real *x, size_t n) {
    double *y = (double *)xalloc(n, sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = (double)x[i];
    return y;
}

// Compares two gradients tensor by tensor.
static void check_grads(const char *what, GPT2 *got, GPT2 *want, double rtol, double atol) {
    Tensor t[N_TENSORS];
    gpt2_tensors(got->c, t);
    for (int i = 0; i < N_TENSORS; i++) {
        char name[128];
        if (!t[i].size) continue;
        double *a = doubles(got->grads + t[i].at, t[i].size), *b = doubles(want->grads + t[i].at, t[i].size);
        snprintf(name, sizeof name, "%s, d%s", what, t[i].name);
        check_close(name, a, b, t[i].size, rtol, atol);
        free(a);
        free(b);
    }
}

// ----------------------------------------------------------------------------
// Shared prefix

// The same responses, each with a query of its own.
static Ranked separate(const Ranked *d) {
    Ranked e = {0};
    e.V = d->V;
    for (int q = 0; q < d->Q; q++)
        for (int r = d->first[q]; r < d->first[q + 1]; r++) {
            ranked_query(&e, d->tokens + d->query_at[q], d->query_len[q]);
            ranked_response(&e, d->tokens + d->resp_at[r], d->resp_len[r], d->score[r], 0);
        }
    return e;
}

// Forward over all of d: log P of every response's tokens, response by response (or R heads). With c also backward.
static double *run_all(GPT2 *m, const Ranked *d, const real *c, size_t *n) {
    Batch b = test_batch(d);
    real *out = (real *)xalloc((size_t)b.P, sizeof *out);
    double *value = (double *)xalloc((size_t)b.P, sizeof *value);
    int *at = (int *)xalloc((size_t)b.R + 1, sizeof *at);
    gpt2_forward(m, &b, out);
    for (int r = 0; r < b.R; r++) at[r + 1] = at[r] + b.resp_len[r];
    *n = (size_t)(m->c.reward ? b.R : b.P);
    for (size_t i = 0; i < *n; i++) value[m->c.reward ? (int)i : at[b.resp[i]]++] = (double)out[i];
    if (c) gpt2_backward(m, &b, c);
    free(out);
    free(at);
    batch_free(&b);
    return value;
}

static void test_prefix(Config c, const char *what) {
    static const int k[4] = {3, 1, 5, 2};
    char name[64];
    size_t n1, n2;
    Ranked d = test_ranked(31, c.V, 4, k, 9, 8), e = separate(&d);
    GPT2 *m1 = model_make(c, 1), *m2 = model_make(c, 1);
    real coef[11];
    Rng r = rng_make(4, RNG_DEMO, 0);
    for (int i = 0; i < d.R; i++) coef[i] = (real)rng_normal(&r); // any: equal gradients for each are equal for RRHF's
    double *shared = run_all(m1, &d, coef, &n1), *apart = run_all(m2, &e, coef, &n2);
    snprintf(name, sizeof name, "%s, shared prefix as separate sequences", what);
    check(n1 == n2, "%s: %zu outputs, %zu", name, n1, n2);
    check_close(name, shared, apart, n1, 32 * eps, 32 * eps);
    check_grads(name, m1, m2, 64 * eps, 64 * eps); // sums of some 100 terms in another order
    free(shared);
    free(apart);
    gpt2_free(m1);
    gpt2_free(m2);
    ranked_free(&d);
    ranked_free(&e);
}

// Backward drops responses with c = 0. The gradient is linear in c, so that of a c with zeros is the mean of those of
// c + e and c - e, where e is other than zero just where c is zero: these drop nothing.
static void test_live(void) {
    static const int k[5] = {3, 1, 5, 2, 4};
    static const char dead[16] = "100" "0" "01011" "11" "0110"; // the first, the last, several, all of a query's
    Ranked d = test_ranked(33, policy.V, 5, k, 9, 8);
    GPT2 *m1 = model_make(policy, 1), *m2 = model_make(policy, 1);
    real c[3][15];
    size_t n;
    Rng r = rng_make(5, RNG_DEMO, 0);
    for (int i = 0; i < d.R; i++) {
        real z = (real)rng_normal(&r);
        c[0][i] = dead[i] == '1' ? 0 : z;
        c[1][i] = z, c[2][i] = dead[i] == '1' ? -z : z;
    }
    Batch b = test_batch(&d);
    real *out = (real *)xalloc((size_t)b.P, sizeof *out);
    gpt2_forward(m1, &b, out);
    Batch live = batch_live(m1, &b, c[0]);
    check(live.N < b.N && live.U < b.U && live.P < b.P,
          "dropping responses: %d of %d tokens, %d of %d rows, %d of %d predictions are left",
          live.N, b.N, live.U, b.U, live.P, b.P);
    for (int i = 0; i < 2; i++) {
        free(run_all(m1, &d, c[0], &n)), free(run_all(m2, &d, c[1 + i], &n));
        gpt2_unplan(m2); // a batch plans again
    }
    check_grads("dropping responses, twice against c + e and c - e", m1, m2, 64 * eps, 64 * eps);
    free(out);
    batch_free(&live);
    batch_free(&b);
    gpt2_free(m1);
    gpt2_free(m2);
    ranked_free(&d);
}

// ----------------------------------------------------------------------------
// Steps

static const int step_k[6] = {4, 1, 5, 2, 3, 2}, step_order[6] = {3, 0, 5, 1, 4, 2};

static int room_first; // 1: there is room for the whole gradient, needed or not

// `steps` steps on the same six queries; losses (steps). The caller frees the model.
static GPT2 *steps_run(Config c, Train t, int steps, double lr, Loss *losses, double *norm) {
    Ranked d = test_ranked(41, c.V, 6, step_k, 9, 10);
    GPT2 *m = model_make(c, 2);
    int some = (int)(update_room(c) / (size_t)c.C); // rows of wte that pass at a time: a part's last, the next's first
    for (int q = 0; q < 2 && some < c.V; q++) d.tokens[d.query_at[q]] = (uint16_t)(some - 1 + q);
    if (room_first) gradient_room(m, 1);
    StepRoom s = step_room(m, &d, t.micro_batch);
    int64_t tokens = 0;
    for (int i = 0; i < steps; i++) losses[i] = train_step(m, &t, &s, &d, step_order, 6, lr, i + 1, norm, &tokens);
    step_room_free(&s);
    ranked_free(&d);
    return m;
}

enum { NEVER = 1000000000 }; // a --grad-clip that clips nothing, but makes the gradient be kept

static void test_micro_batch(void) {
    Loss all, one;
    double norm_all, norm_one;
    Train t = test_train(6);
    t.grad_clip = NEVER;
    GPT2 *m = steps_run(policy, t, 1, 0, &all, &norm_all);
    for (int micro = 1; micro <= 4; micro += 3) { // 4: a second micro-batch of two
        char name[64];
        t.micro_batch = micro;
        GPT2 *m1 = steps_run(policy, t, 1, 0, &one, &norm_one);
        double e = worse(fabs(one.loss / all.loss - 1), fabs(norm_one / norm_all - 1));
        snprintf(name, sizeof name, "micro-batch %d and 6", micro);
        check(e < 32 * eps, "%s: loss %.7g, gradient norm %.7g: error %.1e, tolerance %.1e", name, all.loss, norm_all,
              e, 32 * eps);
        check_grads(name, m1, m, 64 * eps, 64 * eps);
        gpt2_free(m1);
    }
    gpt2_free(m);
}

// Where a step is one micro-batch and nothing clips, weights are updated during the backward and the gradient is never
// whole. The result has the same bits as with a gradient that is kept; the norm is summed in another order.
static void test_at_once(int reward, int kind) {
    enum { STEPS = 3 };
    Config c = {24, 601, 1100, 2, 4, 136, reward, 0}; // they pass in parts: wte's within V, across and beyond
    Train t = test_train(6);
    GPT2 *m[3];
    Loss losses[3][STEPS];
    double norm[3];
    size_t bytes = gpt2_count(c) * sizeof(real);
    int keep = gemm_kind;
    gemm_kind = kind;
    t.adam.weight_decay = 0.1;
    if (reward) t.loss = pairwise_loss;
    memset(losses, 0, sizeof losses);
    for (int i = 0; i < 3; i++) { // kept; used up as it comes; the same where there is room for all of it
        t.grad_clip = i ? 0 : NEVER;
        room_first = i == 2;
        m[i] = steps_run(c, t, STEPS, 1e-3, losses[i], &norm[i]);
    }
    room_first = 0;
    check(m[0]->grads && !m[1]->grads && m[2]->grads, "update during the backward: the gradient is whole %d, %d, %d",
          !!m[0]->grads, !!m[1]->grads, !!m[2]->grads);
    for (int i = 1; i < 3; i++) {
        int same = !memcmp(m[0]->params, m[i]->params, bytes) && !memcmp(m[0]->m, m[i]->m, bytes) &&
                   !memcmp(m[0]->v, m[i]->v, bytes);
        double e = fabs(norm[i] / norm[0] - 1);
        check(same && !memcmp(losses[0], losses[i], sizeof losses[0]) && e < 32 * eps,
              "update during the backward, %s, %s product%s: bits of an update after it %d; norm %.9g, error %.1e, "
              "tolerance %.1e", reward ? "reward model" : "policy", kind == GEMM_NAIVE ? "naive" : "packed",
              i == 2 ? ", room for all" : "", same, norm[i], e, 32 * eps);
    }
    for (int i = 0; i < 3; i++) gpt2_free(m[i]);
    gemm_kind = keep;
}

// With the plain loops a run has the same bits whatever the number of threads.
static void test_threads(int kind) {
    enum { STEPS = 3 };
    Config c = {24, 301, 304, 2, 4, 72, 0, 0}; // several spans of channels, tiles and chunks to share
    Train t = test_train(4);
    GPT2 *first = NULL;
    Loss losses[4][STEPS];
    double norm[4];
    int keep = gemm_kind;
    size_t bytes = gpt2_count(c) * sizeof(real);
    gemm_kind = kind;
    t.adam.weight_decay = 0.1;
    t.grad_clip = 1;
    memset(losses, 0, sizeof losses);
    for (int threads = 1; threads <= 3; threads++) {
        backend_start(threads);
        GPT2 *m = steps_run(c, t, STEPS, 1e-3, losses[threads], &norm[threads]);
        if (threads == 1) {
            first = m;
            continue;
        }
        int same_losses = !memcmp(losses[1], losses[threads], sizeof losses[1]) && norm[1] == norm[threads];
        int same_grads = !memcmp(first->grads, m->grads, bytes), same_params = !memcmp(first->params, m->params, bytes);
        check(same_losses && same_grads && same_params,
              "%d threads, %s product: bits of one thread after %d steps: losses %d, gradient %d, parameters %d",
              thread_count(), kind == GEMM_NAIVE ? "naive" : "packed", STEPS, same_losses, same_grads, same_params);
        gpt2_free(m);
    }
    gpt2_free(first);
    gemm_kind = keep;
    backend_start(1);
}

static void test_clip(void) { // after one step m = (1 - beta1) * scale * gradient
    Train t = test_train(6);
    for (int i = 0; i < 2; i++) {
        Loss l;
        double norm, scale;
        t.grad_clip = i ? 1e6 : 0.25;
        GPT2 *m = steps_run(policy, t, 1, 1e-3, &l, &norm);
        scale = i ? 1 : 0.25 / norm;
        double *got = doubles(m->m, m->n_params), *want = doubles(m->grads, m->n_params), sum = 0;
        for (size_t j = 0; j < m->n_params; j++) sum += want[j] * want[j], want[j] *= 0.1 * scale;
        check(fabs(sqrt(sum) / norm - 1) < 32 * eps, "gradient norm %.9g: error %.1e, tolerance %.1e", norm,
              fabs(sqrt(sum) / norm - 1), 32 * eps);
        check_close(i ? "a gradient within --grad-clip, as it is" : "a gradient clipped to 0.25", got, want,
                    m->n_params, 8 * eps, 0);
        free(got);
        free(want);
        gpt2_free(m);
    }
}

// ----------------------------------------------------------------------------
// Matrix products

typedef struct { int M, N, K, transa, transb, beta; } Product;

// (rows, columns) with 3 columns of NaN beside them, which must not be read; lead columns in all.
static real *gemm_operand(Rng *r, int rows, int cols) {
    int lead = cols + 3;
    real *x = (real *)xalloc((size_t)rows * (size_t)lead, sizeof *x);
    for (int i = 0; i < rows * lead; i++) x[i] = i % lead < cols ? (real)rng_normal(r) : (real)NAN;
    return x;
}

// To 8 significant bits, ties to even: what --dtype bf16 makes of an operand.
static real to_bf16(real x) {
    int e;
    double m = frexp((double)x, &e);
    return (real)ldexp(nearbyint(ldexp(m, 8)), e - 8);
}

// Worst error of one product, in units of K eps sum |a b|, the bound of a sum of K terms in any order.
static double gemm_error(Product p, int kind) {
    Rng r = rng_make(6, RNG_DEMO, (uint64_t)(p.M * 31 + p.N * 7 + p.K));
    size_t lda = (size_t)(p.transa ? p.M : p.K) + 3, ldb = (size_t)(p.transb ? p.K : p.N) + 3, ldc = (size_t)p.N + 3;
    real *a = p.transa ? gemm_operand(&r, p.K, p.M) : gemm_operand(&r, p.M, p.K);
    real *b = p.transb ? gemm_operand(&r, p.N, p.K) : gemm_operand(&r, p.K, p.N), *c = gemm_operand(&r, p.M, p.N);
    real *got = (real *)xalloc((size_t)p.M * ldc, sizeof *got);
    double worst = 0;
    for (size_t i = 0; i < (size_t)p.M * ldc; i++) got[i] = p.beta ? c[i] : (real)NAN; // beta 0: C is not read
    gemm_kind = kind;
    gemm(p.transa, p.transb, p.M, p.N, p.K, a, lda, b, ldb, (real)p.beta, got, ldc);
    for (int m = 0; m < p.M; m++)
        for (int n = 0; n < (int)ldc; n++) {
            size_t at = (size_t)m * ldc + (size_t)n;
            long double s = p.beta ? (long double)c[at] : 0, size = fabsl(s);
            if (n >= p.N) {
                if (!isnan(got[at])) worst = INFINITY; // it wrote beside C
                continue;
            }
            for (int k = 0; k < p.K; k++) {
                real x = a[p.transa ? (size_t)k * lda + (size_t)m : (size_t)m * lda + (size_t)k];
                real y = b[p.transb ? (size_t)n * ldb + (size_t)k : (size_t)k * ldb + (size_t)n];
                if (kind == GEMM_ONEDNN) x = to_bf16(x), y = to_bf16(y);
                s += (long double)x * (long double)y;
                size += fabsl((long double)x * (long double)y);
            }
            worst = worse(worst, (double)(fabsl((long double)got[at] - s) / (size * (p.K + 1) * eps)));
        }
    free(a); free(b); free(c); free(got);
    return worst;
}

static void test_gemm(int kind, const char *name) {
    static const int shapes[][3] = {{1, 1, 1}, {1, 1, 7}, {7, 1, 300}, {5, 65, 3}, {6, 64, 256}, {13, 67, 257},
                                    {97, 129, 33}, {2, 513, 31}, {100, 33, 600}, {1, 4100, 5},
                                    {1000, 5, 20}, {7, 33, 3100}, // more rows, more terms than are packed at once
                                    {30, 200, 800}, {150, 7, 50}}; // half a panel of tokens; few tiles, several panels
    int keep = gemm_kind;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        double worst = 0;
        for (int v = 0; v < 8; v++) {
            Product p = {shapes[i][0], shapes[i][1], shapes[i][2], v & 1, v >> 1 & 1, v >> 2};
            worst = worse(worst, gemm_error(p, kind));
        }
        check(worst <= 1, "gemm, %s, %d x %d x %d, transposed or not, beta 0 and 1: error %.3f, tolerance 1 "
              "(K eps sum |a b|)", name, shapes[i][0], shapes[i][1], shapes[i][2], worst);
    }
    gemm_kind = keep;
}

#ifdef USE_ONEDNN
// A NaN must come out as one, whatever its bits; and training must go nearly where float32 goes.
static void test_bf16(void) {
    enum { STEPS = 40 };
    union { uint32_t i; float f; } x = {0x7fffffff};
    real one = 1, c = 0, nan = (real)x.f;
    Loss fp32[STEPS], bf16[STEPS];
    double norm;
    int keep = gemm_kind;
    gpt2_free(steps_run(policy, test_train(6), STEPS, 3e-3, fp32, &norm));
    gemm_kind = GEMM_ONEDNN;
    gpt2_free(steps_run(policy, test_train(6), STEPS, 3e-3, bf16, &norm));
    gemm(0, 0, 1, 1, 1, &nan, 1, &one, 1, 0, &c, 1);
    check(isnan(c), "bfloat16 of a NaN with all bits set: %g", (double)c);
    gemm_kind = keep;
    double first = fabs(bf16[0].loss / fp32[0].loss - 1), fall = fp32[0].loss - fp32[STEPS - 1].loss;
    double last = fabs(bf16[STEPS - 1].loss - fp32[STEPS - 1].loss) / fall;
    check(first > 0 && first < 1e-2, "bf16 (%s): loss of the first step %.6g, float32 %.6g: error %.1e, tolerance 1e-2",
          onednn_bf16 ? "by the CPU" : "rounded operands", bf16[0].loss, fp32[0].loss, first);
    check(fall > 0 && last < 2e-2,
          "bf16: loss after %d steps %.6g, float32 %.6g, which fell by %.4g: error %.1e of that, tolerance 2e-2",
          STEPS, bf16[STEPS - 1].loss, fp32[STEPS - 1].loss, fall, last);
}
#endif

// ----------------------------------------------------------------------------
// Decoding

enum { SLOTS = 400, SEQUENCES = 16 };
typedef struct {
    Decode d;
    int token[SLOTS], pos[SLOTS], slot[SLOTS], at[SLOTS], len[SLOTS], row[SLOTS], list[SEQUENCES * 32];
    int length[SEQUENCES];     // of each sequence's list
    int free_slot[SLOTS], used; // slots in random order: nothing may depend on where a token lies
} Cache;

static Cache *cache_make(GPT2 *m) {
    Cache *c = (Cache *)xalloc(1, sizeof *c);
    Decode d = {0, 0, c->token, c->pos, c->slot, c->at, c->len, c->list, c->row};
    Rng r = rng_make(8, RNG_DEMO, 0);
    c->d = d;
    rng_shuffle(&r, c->free_slot, SLOTS);
    gpt2_decode_plan(m, SLOTS, SLOTS, SLOTS);
    return c;
}

static void cache_feed(Cache *c, int s, int token) { // its logits row is its index in the call
    int i = c->d.n++;
    c->token[i] = token;
    c->pos[i] = c->length[s];
    c->at[i] = s * 32;
    c->slot[i] = c->list[s * 32 + c->length[s]++] = c->free_slot[c->used++];
    c->len[i] = c->length[s];
    c->row[c->d.n_rows++] = i;
}

static void cache_fork(Cache *c, int to, int from, int length) {
    memcpy(c->list + to * 32, c->list + from * 32, (size_t)length * sizeof(int));
    c->length[to] = length;
}

static double log_softmax(const real *z, int V, int v) {
    double sum = 0, max = (double)z[0];
    for (int i = 1; i < V; i++) max = (double)z[i] > max ? (double)z[i] : max;
    for (int i = 0; i < V; i++) sum += exp((double)z[i] - max);
    return (double)z[v] - max - log(sum);
}

// Query 0's response 2 begins with the first FORK tokens of its response 0: a beam that forked.
enum { FORK = 4 };
static Ranked forked(void) {
    static const int k[3] = {3, 1, 4};
    Ranked d = test_ranked(51, policy.V, 3, k, 9, 9), e;
    uint16_t text[16] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3};
    memset(&e, 0, sizeof e);
    e.V = d.V;
    for (int q = 0; q < d.Q; q++) {
        ranked_query(&e, d.tokens + d.query_at[q], d.query_len[q]);
        for (int r = d.first[q]; r < d.first[q + 1]; r++) {
            if (q == 0 && r != 1) {
                text[FORK + 1] = (uint16_t)(20 + r);
                ranked_response(&e, text, 9 - r, 0, 0);
            } else ranked_response(&e, d.tokens + d.resp_at[r], d.resp_len[r], 0, 0);
        }
    }
    ranked_free(&d);
    return e;
}

// Teacher forcing: token t of every response in one call, as a sampler would; got (P) = log P, response by response.
static int decode_all(GPT2 *m, const Ranked *d, double *got, int *compared) {
    int at[SEQUENCES + 1] = {0}, calls = 1, who[SLOTS], query_row[SEQUENCES];
    Cache *c = cache_make(m);
    for (int r = 0; r < d->R; r++) at[r + 1] = at[r] + d->resp_len[r];
    for (int q = 0; q < d->Q; q++) { // the queries, all of them in one call, each into its first response's list
        for (int t = 0; t < d->query_len[q]; t++) cache_feed(c, d->first[q], d->tokens[d->query_at[q] + t]);
        query_row[q] = c->d.n - 1;
        for (int r = d->first[q] + 1; r < d->first[q + 1]; r++) cache_fork(c, r, d->first[q], d->query_len[q]);
    }
    const real *z = decode_logits(m, &c->d);
    for (int q = 0; q < d->Q; q++)
        for (int r = d->first[q]; r < d->first[q + 1]; r++, (*compared)++)
            got[at[r]] = log_softmax(z + query_row[q] * m->c.V, m->c.V, d->tokens[d->resp_at[r]]);
    for (int t = 0, alive = 1; alive; t++, calls += alive > 0) {
        c->d.n = c->d.n_rows = alive = 0;
        if (t == FORK) cache_fork(c, 2, 0, d->query_len[0] + FORK);
        for (int r = 0; r < d->R; r++)
            if (t + 1 < d->resp_len[r] && (r != 2 || t >= FORK)) {
                cache_feed(c, r, d->tokens[d->resp_at[r] + t]);
                who[alive++] = r;
            }
        if (alive) z = decode_logits(m, &c->d);
        for (int i = 0; i < alive; i++, (*compared)++)
            got[at[who[i]] + t + 1] = log_softmax(z + i * m->c.V, m->c.V, d->tokens[d->resp_at[who[i]] + t + 1]);
    }
    free(c);
    return calls;
}

static void test_decode(int head_size) { // 32 and 64, GPT-2's, have code of their own
    size_t n;
    int compared = 0;
    char what[64];
    Config c = policy;
    Ranked d = forked();
    c.C = c.NH * head_size;
    GPT2 *m = model_make(c, 9);
    double *want = run_all(m, &d, NULL, &n), *got = (double *)xalloc(n, sizeof *got), tolerance = 64 * 0x1p-23;
    int calls = decode_all(m, &d, got, &compared), at = d.resp_len[0] + d.resp_len[1]; // response 2's first token
    for (int i = 1; i < FORK; i++) got[at + i] = got[i];
    got[at + FORK] = want[at + FORK]; // predicted by the last shared token, but only for response 0
    snprintf(what, sizeof what, "decoding over the cache as the forward pass, heads of %d", head_size);
    check_close(what, got, want, n, tolerance, tolerance); // logits are float
    check(compared == (int)n - FORK, "decoding: %d of %zu log-probabilities in %d calls; %d shared by a fork",
          compared, n, calls, FORK);
    free(want);
    free(got);
    ranked_free(&d);
    gpt2_free(m);
}

// ----------------------------------------------------------------------------
// AdamW

static void adam_reference(double *w, double *m, double *v, const float *g, size_t n, AdamW o, double decay, int step) {
    for (size_t i = 0; i < n; i++) {
        m[i] = o.beta1 * m[i] + (1 - o.beta1) * g[i];
        v[i] = o.beta2 * v[i] + (1 - o.beta2) * g[i] * g[i];
        double mhat = m[i] / (1 - pow(o.beta1, step)), vhat = v[i] / (1 - pow(o.beta2, step));
        w[i] -= o.lr * (mhat / (sqrt(vhat) + o.eps) + decay * w[i]);
    }
}

static void test_adam(void) {
    enum { STEPS = 5 };
    const AdamW o = {0.01, 0.9, 0.999, 1e-8, 0.1};
    Tensor t[N_TENSORS];
    size_t n = gpt2_tensors(reward, t);
    GPT2 *m = model_make(reward, 3);
    float *g = (float *)xalloc(n, sizeof *g);
    double *w = doubles(m->params, n), *mm = (double *)xalloc(n, sizeof *mm), *vv = (double *)xalloc(n, sizeof *vv);
    Rng r = rng_make(10, RNG_DEMO, 0);
    for (int step = 1; step <= STEPS; step++) {
        for (size_t i = 0; i < n; i++) g[i] = (float)(rng_normal(&r) * pow(10, -rng_below(&r, 6)));
        gpt2_set(m, COPY_GRADS, g);
        gpt2_update(m, o, 1, step);
        for (int i = 0; i < N_TENSORS; i++)
            adam_reference(w + t[i].at, mm + t[i].at, vv + t[i].at, g + t[i].at, t[i].size, o,
                           t[i].decay ? o.weight_decay : 0, step);
    }
    double *got = doubles(m->params, n), *got_m = doubles(m->m, n), *got_v = doubles(m->v, n);
    check_close("AdamW, 5 steps: first moment", got_m, mm, n, 8 * eps, 8 * eps);
    check_close("AdamW, 5 steps: second moment", got_v, vv, n, 8 * eps, 0);
    check_close("AdamW, 5 steps: parameters", got, w, n, 8 * eps, 8 * eps);
    free(got); free(got_m); free(got_v); free(w); free(mm); free(vv); free(g);
    gpt2_free(m);
}

// With no gradient a step is decay alone: on matrices and embeddings w (1 - lr weight_decay), elsewhere nothing.
static void test_decay(void) {
    static const char *const matrices = " wte wpe qkvw attprojw fcw fcprojw ";
    const AdamW o = {0.5, 0.9, 0.999, 1e-8, 0.25};
    Tensor t[N_TENSORS];
    size_t n = gpt2_tensors(reward, t);
    GPT2 *m = model_make(reward, 3);
    double *before = doubles(m->params, n);
    gpt2_zero_grad(m);
    gpt2_update(m, o, 1, 1);
    for (int i = 0; i < N_TENSORS; i++) {
        char name[32];
        double worst = 0;
        snprintf(name, sizeof name, " %s ", t[i].name);
        int decays = strstr(matrices, name) != NULL;
        for (size_t j = t[i].at; j < t[i].at + t[i].size; j++)
            worst = worse(worst, fabs((double)m->params[j] - before[j] * (decays ? 0.875 : 1)));
        check(worst <= (decays ? eps : 0), "weight decay %s on %s: error %.1e, tolerance %.1e",
              decays ? "acts" : "does not act", t[i].name, worst, decays ? eps : 0);
    }
    free(before);
    gpt2_free(m);
}

// ----------------------------------------------------------------------------
// Promises

static size_t heap_bytes(void) {
#ifdef __GLIBC__
    struct mallinfo2 i = mallinfo2();
    return i.uordblks + i.hblkhd;
#else
    return 0;
#endif
}

static void test_bytes(Config c, int training) { // as gpt2_bytes counts it: 2 keeps the gradient
    enum { N = 300, U = 200 };
    float *params = test_params(c, 1);
    size_t before = heap_bytes(), said = gpt2_bytes(c, training, N, U);
    GPT2 *m = gpt2_build(c, params, training);
    gpt2_plan(m, N, U);
    if (training) gradient_room(m, training == 2);
    size_t took = heap_bytes() - before;
    gpt2_plan(m, N - 1, U - 1); // less than there is: nothing to do
    size_t again = heap_bytes() - before;
    gpt2_unplan(m);
    size_t without = heap_bytes() - before, activations = activation_count(c, training > 0, N, U) * sizeof(real);
    double e = fabs((double)took / (double)said - 1);
    check((before == 0 || e < 0.01) && again == took,
          "gpt2_bytes, %s%s: says %zu, the heap grew by %zu, error %.1e, tolerance 1e-2",
          c.reward ? "reward model" : "policy",
          training == 2 ? ", training, the gradient kept" : training ? ", training" : "", said, took, e);
    if (before) // the heap can be measured
        check(without + activations <= took, "gpt2_unplan gives the activations back: of %zu bytes, %zu", activations,
              took - without);
    gpt2_free(m);
    check(heap_bytes() == before, "gpt2_free gives everything back: %zu bytes left", heap_bytes() - before);
    free(params);
}

static void test_random(void) {
    Config c = {64, 300, 304, 4, 4, 64, 1, 0};
    Tensor t[N_TENSORS];
    size_t n = gpt2_tensors(c, t);
    float *a = (float *)xalloc(n, sizeof *a), *b = (float *)xalloc(n, sizeof *b);
    gpt2_random(c, 1, a);
    gpt2_random(c, 1, b);
    check(!memcmp(a, b, n * sizeof *a), "gpt2_random: the same seed, the same bits");
    gpt2_random(c, 2, b);
    check(a[0] != b[0] && a[t[4].at] != b[t[4].at], "gpt2_random: another seed, other weights");
    for (int i = 0; i < N_TENSORS; i++) {
        double mean = 0, var = 0, size = (double)t[i].size, std = 0;
        for (size_t j = t[i].at; j < t[i].at + t[i].size; j++) mean += a[j] / size;
        for (size_t j = t[i].at; j < t[i].at + t[i].size; j++) var += (a[j] - mean) * (a[j] - mean) / size;
        int norm = !strcmp(t[i].name, "ln1w") || !strcmp(t[i].name, "ln2w") || !strcmp(t[i].name, "lnfw");
        if (t[i].decay) std = strstr(t[i].name, "proj") ? 0.02 / sqrt(8) : 0.02; // into the residual: / sqrt(2L)
        double e_mean = fabs(mean - norm), e_std = fabs(sqrt(var) - std);
        check(e_mean <= 4 * std / sqrt(size) && e_std <= 4 * std / sqrt(2 * size),
              "gpt2_random, %s: mean %.6f, std %.6f, expected %d and %.6f within 4 standard errors (%.1e)",
              t[i].name, mean, sqrt(var), norm, std, 4 * std / sqrt(size));
    }
    free(a);
    free(b);
}

// A data set that passes in several batches: what evaluate_all says of a response is what it says of its query alone.
static void test_evaluate(Config c, const char *what) {
    enum { Q = 300 };
    int k[Q], tokens = 0, wrong = 0;
    for (int q = 0; q < Q; q++) k[q] = 1 + q % 3;
    Ranked d = test_ranked(51, c.V, Q, k, 9, 8);
    GPT2 *m = model_make(c, 4);
    for (int q = 0; q < Q; q++) tokens += d.query_len[q];
    for (int r = 0; r < d.R; r++) tokens += d.resp_len[r];
    double *all = (double *)xalloc((size_t)d.R, sizeof *all), *alone = (double *)xalloc((size_t)d.R, sizeof *alone);
    evaluate_all(m, &d, "", all);
    for (int q = 0; q < Q; q++) {
        Ranked one = {0};
        one.V = d.V;
        ranked_query(&one, d.tokens + d.query_at[q], d.query_len[q]);
        for (int r = d.first[q]; r < d.first[q + 1]; r++)
            ranked_response(&one, d.tokens + d.resp_at[r], d.resp_len[r], d.score[r], 0);
        wrong += one.R != k[q];
        evaluate_all(m, &one, "", alone + d.first[q]);
        ranked_free(&one);
    }
    check(!wrong && tokens > 2 * gpt2_tokens(m), "%s: %d responses, %d tokens, in several batches", what, d.R, tokens);
    check_close("  their values against each query alone", all, alone, (size_t)d.R, 32 * eps, 32 * eps);
    free(all);
    free(alone);
    gpt2_free(m);
    ranked_free(&d);
}

// Each tensor draws from a random stream of its own.
static void test_random_streams(void) {
    Config c = {64, 300, 304, 4, 4, 64, 0, 0};
    Tensor t[N_TENSORS];
    float *a = (float *)xalloc(gpt2_tensors(c, t), sizeof *a);
    int random = 0, alike = 0;
    gpt2_random(c, 1, a);
    for (int i = 0; i < N_TENSORS; i++) {
        if (!t[i].decay) continue;
        random++;
        for (int j = 0; j < i; j++) // a residual matrix is smaller by a factor: signs tell
            for (int s = 0, same = 0; t[j].decay && s < 64; s++) {
                same += (a[t[i].at + (size_t)s] < 0) == (a[t[j].at + (size_t)s] < 0);
                alike += s == 63 && same == 64;
            }
    }
    check(random == 6 && alike == 0, "gpt2_random: of %d random tensors %d pairs begin alike", random, alike);
    free(a);
}

// Models of more parameters than pass between model and file at a time: a checkpoint, a training state and the hash
// that tells one start from another.
static void test_parts(void) {
    Config c = {24, 401, 1000, 2, 4, 136, 0, 0};
    char dir[] = "/tmp/rrhf_parts_XXXXXX", path[RRHF_PATH_MAX];
    static const enum Copy part[3] = {COPY_PARAMS, COPY_M, COPY_V};
    static const char *const name[3] = {"parameters", "first moment", "second moment"};
    size_t n = gpt2_count(c);
    if (!mkdtemp(dir)) die("%s: cannot make it", dir);
    GPT2 *m = model_make(c, 5), *back = gpt2_build(c, NULL, 1);
    float *want = (float *)xalloc(n, sizeof *want), *got = (float *)xalloc(n, sizeof *got);
    Rng r = rng_make(7, RNG_DEMO, 0);
    for (int i = 1; i < 3; i++) {
        for (size_t j = 0; j < n; j++) want[j] = (float)rng_uniform(&r);
        gpt2_set(m, part[i], want);
    }
    gpt2_save(m, path_join(path, dir, "policy.bin"));
    Checkpoint f = checkpoint_open(path);
    GPT2 *loaded = checkpoint_model(&f, f.c, 0);
    gpt2_get(m, COPY_PARAMS, want);
    gpt2_get(loaded, COPY_PARAMS, got);
    check(n > 2 * (size_t)GPT2_PART && !memcmp(want, got, n * sizeof *got),
          "a checkpoint of %zu parameters, %.1f parts: the same bits", n, (double)n / GPT2_PART);
    unlink(path);
    Train t = {0};
    Log log = {NULL, 0, 0}, read = {NULL, 0, 0};
    t.out = t.resume = dir;
    snprintf(t.settings, sizeof t.settings, "some\n");
    Window none = {0};
    state_write(m, &t, &log, &none);
    state_read(back, &t, &read, &none);
    for (int i = 0; i < 3; i++) {
        gpt2_get(m, part[i], want);
        gpt2_get(back, part[i], got);
        check(!memcmp(want, got, n * sizeof *got), "state.bin, its %s: the same bits", name[i]);
    }
    unlink(path_join(path, dir, "state.bin"));
    rmdir(dir);
    int same = 0, parts = 0;
    uint64_t hash = gpt2_hash(m);
    for (size_t at = 0; at < n; at += GPT2_PART, parts++) { // one parameter of each part is another
        float was, is;
        gpt2_get_part(m, COPY_PARAMS, at, 1, &was);
        is = was + 1;
        gpt2_set_part(m, COPY_PARAMS, at, 1, &is);
        same += gpt2_hash(m) == hash;
        gpt2_set_part(m, COPY_PARAMS, at, 1, &was);
    }
    check(same == 0 && gpt2_hash(m) == hash, "the hash of the start: %d of %d parts that differ go unnoticed", same,
          parts);
    free(want); free(got); free(read.row);
    gpt2_free(m);
    gpt2_free(back);
    gpt2_free(loaded);
}

// log sum exp of rows that are longer than one of its sums, the largest logit anywhere.
static void test_lse(void) {
    static const int sizes[] = {1, 2, 1023, 1024, 1025, 2048, 2049, 5000};
    Rng r = rng_make(8, RNG_DEMO, 0);
    double worst = 0, tolerance = 16 * eps;
    real *z = (real *)xalloc(5000, sizeof *z);
    for (int i = 0; i < 8; i++)
        for (int shape = 0; shape < 3; shape++) { // alike, random, and one that outweighs the others at the end
            int V = sizes[i];
            long double sum = 0;
            for (int v = 0; v < V; v++) z[v] = shape == 0 ? (real)1.5 : (real)(3 * rng_normal(&r));
            if (shape == 2) z[V - 1] = 30;
            for (int v = 0; v < V; v++) sum += expl((long double)z[v]);
            double want = (double)logl(sum);
            worst = worse(worst, fabs(row_lse(z, V) - want) / (fabs(want) + 1));
        }
    check(worst <= tolerance, "log sum exp of 1 to 5000 logits: error %.1e, tolerance %.1e", worst, tolerance);
    free(z);
}

// Attention's products, where there are more keys than the packed product sums at a time (and rows than a block).
static void test_gemm_small(void) {
    static const int shapes[][3] = {{96, 5, 384}, {96, 5, 385}, {96, 64, 800}, {100, 70, 1023}, {1, 33, 769}};
    Rng r = rng_make(9, RNG_DEMO, 0);
    double worst = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int beta = 0; beta <= 1; beta++) {
            int M = shapes[i][0], N = shapes[i][1], K = shapes[i][2];
            real *a = gemm_operand(&r, M, K), *b = gemm_operand(&r, K, N), *c = gemm_operand(&r, M, N);
            real *got = (real *)xalloc((size_t)M * (size_t)(N + 3), sizeof *got);
            memcpy(got, c, (size_t)M * (size_t)(N + 3) * sizeof *got);
            gemm_small(M, N, K, a, (size_t)K + 3, 1, b, (size_t)N + 3, 1, (real)beta, got, (size_t)N + 3);
            for (int m = 0; m < M; m++)
                for (int n = 0; n < N; n++) {
                    size_t at = (size_t)m * (size_t)(N + 3) + (size_t)n;
                    long double s = beta ? (long double)c[at] : 0, size = fabsl(s);
                    for (int k = 0; k < K; k++) {
                        long double x = (long double)a[m * (K + 3) + k] * (long double)b[k * (N + 3) + n];
                        s += x, size += fabsl(x);
                    }
                    worst = worse(worst, (double)(fabsl((long double)got[at] - s) / (size * (K + 1) * eps)));
                }
            free(a); free(b); free(c); free(got);
        }
    check(worst <= 1, "gemm_small, up to 1023 terms, beta 0 and 1: error %.3f, tolerance 1 (of K eps sum |a b|)",
          worst);
}

int main(void) {
    backend_start(1);
    gemm_kind = GEMM_PACKED;
    test_prefix(policy, "policy");
    test_prefix(reward, "reward model");
    test_live();
    test_micro_batch();
    for (int reward = 0; reward <= 1; reward++) test_at_once(reward, GEMM_NAIVE), test_at_once(reward, GEMM_PACKED);
    test_threads(GEMM_NAIVE);
    test_threads(GEMM_PACKED);
    test_clip();
    test_gemm(GEMM_NAIVE, "naive");
    test_gemm(GEMM_PACKED, "packed");
#ifdef USE_CBLAS
    for (int threads = 1; threads <= 3; threads++) { // which share a product out
        char name[32];
        backend_start(threads);
        snprintf(name, sizeof name, "CBLAS, %d thread%s", threads, threads > 1 ? "s" : "");
        test_gemm(GEMM_CBLAS, name);
    }
    backend_start(1);
#else
    printf("not tested: CBLAS (not found by make)\n");
#endif
#ifdef USE_ONEDNN
    if (sizeof(real) == 4) {
        int keep = gemm_kind;
        backend_dtype_set("bf16");
        gemm_kind = keep;
        test_gemm(GEMM_ONEDNN, onednn_bf16 ? "oneDNN, bfloat16 by the CPU" : "oneDNN, operands rounded to bfloat16");
        test_bf16();
    }
#else
    printf("not tested: oneDNN (not found by make)\n");
#endif
    test_decode(8), test_decode(32), test_decode(64);
    test_adam();
    test_decay();
    for (int training = 0; training <= 2; training++) test_bytes(policy, training);
    test_bytes(reward, 2);
    test_random();
    test_evaluate(policy, "policy");
    test_evaluate(reward, "reward model");
    test_random_streams();
    test_lse();
    test_gemm_small();
    if (sizeof(real) == 4) test_parts();
    return test_summary();
}
