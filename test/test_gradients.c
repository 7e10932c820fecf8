/*
test_gradients.c: every backward against finite differences, in double. First each layer alone, then the whole model
through its losses: RRHF with shared prefixes and ragged k, and both losses of a reward model.

  cc -std=c11 -O2 -fopenmp-simd -DREAL=double -DNO_MAIN test/test_gradients.c -o test/test_gradients -lm

The derivative of L by x is (8 (L(x+h) - L(x-h)) - (L(x+2h) - L(x-2h))) / 12h: central differences to fourth order,
so that h may be large and rounding small (both about 1e-11 here). The error of an element is relative to itself or to
its tensor's rms, whichever is larger: an element that happens to be nearly 0 has no digits to compare.
A parameter's gradient starts from noise, to which a backward must add; other gradients start from noise that it must
overwrite. Each line also tries two mutants of the gradient, zeroed and with its sign flipped: both must be caught.
*/
#include "../train_rrhf.c" // defines: the layers and the model, in double
#include "test.h"          // defines: check, test_params, test_ranked, test_batch, test_summary

enum { SAMPLE = 1500 };    // elements tried per tensor, all where it has no more
static const double TOLERANCE = 1e-6;

// ----------------------------------------------------------------------------
// Finite differences

static real *noise(size_t n, double scale) {
    static Rng r = {2023};
    real *x = (real *)xalloc(n, sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = scale * rng_normal(&r);
    return x;
}

// x, what L depends on; dx, where a backward leaves dL/dx; start, what dx held before (NULL: it is overwritten).
typedef struct { const char *name; real *x, *dx, *start; size_t n; } Input;

static Input input(const char *name, size_t n, double scale, int adds) {
    Input in = {name, noise(n, scale), noise(n, 1), NULL, n};
    if (adds) {
        in.start = (real *)xalloc(n, sizeof(real));
        memcpy(in.start, in.dx, n * sizeof(real));
    }
    return in;
}

static void input_free(Input *in) {
    free(in->x); free(in->dx); free(in->start);
}

static double difference(double (*L)(void *), void *of, real *x) {
    const double h = 5e-4;
    double at[4], keep = *x;
    for (int i = 0; i < 4; i++) {
        static const int step[4] = {1, -1, 2, -2};
        *x = keep + step[i] * h;
        at[i] = L(of);
    }
    *x = keep;
    return (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * h);
}

static double worst_error(const double *got, const double *want, size_t n) {
    double rms = 0, worst = 0;
    for (size_t i = 0; i < n; i++) rms += want[i] * want[i] / (double)n;
    rms = sqrt(rms);
    for (size_t i = 0; i < n; i++) {
        double scale = fabs(want[i]) > rms ? fabs(want[i]) : rms;
        worst = worse(worst, fabs(got[i] - want[i]) / (scale + 1e-300));
    }
    return worst;
}

// Compares in->dx, which a backward has filled, with differences of L. sample: how many elements to try.
static void check_input(const char *layer, double (*L)(void *), void *of, const Input *in, size_t sample) {
    size_t n = in->n < sample ? in->n : sample;
    double *want = (double *)xalloc(3 * n, sizeof *want), *got = want + n, *mutant = got + n;
    Rng r = rng_make(7, RNG_DEMO, in->n);
    for (size_t i = 0; i < n; i++) {
        size_t j = n == in->n ? i : (size_t)(rng_uniform(&r) * (double)in->n);
        want[i] = difference(L, of, in->x + j);
        got[i] = in->dx[j] - (in->start ? in->start[j] : 0);
    }
    double e = worst_error(got, want, n), zeroed, flipped;
    zeroed = worst_error(mutant, want, n);
    for (size_t i = 0; i < n; i++) mutant[i] = -got[i];
    flipped = worst_error(mutant, want, n);
    check(e < TOLERANCE && zeroed > TOLERANCE && flipped > TOLERANCE,
          "%s, d%s: error %.1e, tolerance %.0e, %zu of %zu elements (zeroed %.1f, flipped %.1f)", layer, in->name, e,
          TOLERANCE, n, in->n, zeroed, flipped);
    free(want);
}

// ----------------------------------------------------------------------------
// Layers. L = sum of g * out with a fixed random g, so that dL/dout = g.

typedef struct Case Case;
struct Case {
    const char *layer;
    void (*forward)(Case *t);
    Input in[4];           // with respect to these
    int n_in, N, C, OC, NH;
    real *out, *g, *save[3];
    size_t n_out;
    Batch b;
};

static Case case_make(const char *layer, void (*forward)(Case *), int N, int C, int OC, size_t n_out) {
    Case t = {0};
    t.layer = layer, t.forward = forward, t.N = N, t.C = C, t.OC = OC, t.n_out = n_out;
    t.out = noise(n_out, 1);
    t.g = noise(n_out, 1);
    return t;
}

static double case_loss(void *of) {
    Case *t = (Case *)of;
    double L = 0;
    t->forward(t);
    for (size_t i = 0; i < t->n_out; i++) L += t->g[i] * t->out[i];
    return L;
}

static void case_check(Case *t) {
    for (int i = 0; i < t->n_in; i++) check_input(t->layer, case_loss, t, &t->in[i], SAMPLE);
    for (int i = 0; i < t->n_in; i++) input_free(&t->in[i]);
    for (int i = 0; i < 3; i++) free(t->save[i]);
    free(t->out);
    free(t->g);
}

static Ranked ragged(int V) { // several queries, k from 1 to 5
    static const int k[4] = {3, 1, 5, 2};
    return test_ranked(11, V, 4, k, 6, 5);
}

static void embedding(Case *t) {
    embedding_forward(t->out, t->b.token, t->b.pos, t->in[0].x, t->in[1].x, t->N, t->C);
}

static void test_embedding(void) {
    enum { V = 9, T = 12, C = 70 }; // C is more than one span of channels
    Ranked d = ragged(V);
    Batch b = test_batch(&d);
    Case t = case_make("embedding", embedding, b.N, C, 0, (size_t)b.N * C);
    t.b = b;
    t.in[t.n_in++] = input("wte", V * C, 1, 1);
    t.in[t.n_in++] = input("wpe", T * C, 1, 1);
    embedding(&t);
    embedding_backward(t.in[0].dx, t.in[1].dx, t.g, b.token, b.pos, b.N, C);
    case_check(&t);
    batch_free(&b);
    ranked_free(&d);
}

static void layernorm(Case *t) {
    layernorm_forward(t->out, t->save[0], t->save[1], t->in[0].x, t->in[1].x, t->in[2].x, t->N, t->C);
}

static void test_layernorm(void) {
    enum { N = 7, C = 67 };
    Case t = case_make("layernorm", layernorm, N, C, 0, N * C);
    t.save[0] = noise(N, 1);
    t.save[1] = noise(N, 1);
    t.in[t.n_in++] = input("x", N * C, 2, 1); // it adds to dx too: the residual stream's gradient passes by
    t.in[t.n_in++] = input("w", C, 1, 1);
    t.in[t.n_in++] = input("b", C, 1, 1);
    layernorm(&t);
    layernorm_backward(t.in[0].dx, t.in[1].dx, t.in[2].dx, t.g, t.in[0].x, t.in[1].x, t.save[0], t.save[1], N, C);
    case_check(&t);
}

static void matmul(Case *t) {
    matmul_forward(t->out, t->in[0].x, t->in[1].x, t->in[2].x, t->n_in > 3 ? t->in[3].x : NULL, t->N, t->C, t->OC);
}

static void test_matmul(int kind, int residual) {
    enum { N = 13, C = 35, OC = 71 };
    static const char *const names[2][2] = {{"matmul (naive)", "matmul (naive) + residual"},
                                            {"matmul (packed)", "matmul (packed) + residual"}};
    Case t = case_make(names[kind == GEMM_PACKED][residual], matmul, N, C, OC, N * OC);
    gemm_kind = kind;
    t.in[t.n_in++] = input("x", N * C, 1, 0);
    t.in[t.n_in++] = input("w", OC * C, 1, 1);
    t.in[t.n_in++] = input("bias", OC, 1, 1);
    if (residual) t.in[t.n_in++] = input("residual", N * OC, 1, 0);
    matmul(&t);
    matmul_backward(t.in[0].dx, t.in[1].dx, t.in[2].dx, t.g, t.in[0].x, t.in[1].x, N, C, OC);
    if (residual) memcpy(t.in[3].dx, t.g, N * OC * sizeof(real)); // as the model does it: the gradient is dout itself
    case_check(&t);
    gemm_kind = GEMM_PACKED;
}

static Ranked lengthy_query(int lengthy) {
    static const uint16_t zeros[130];
    Ranked d = {0};
    d.V = 1;
    if (lengthy > 1) {
        ranked_query(&d, zeros, 1);
        ranked_response(&d, zeros, lengthy, 0, 0);
        return d;
    }
    ranked_query(&d, zeros, 101);
    ranked_response(&d, zeros, 130, 0, 0);
    ranked_response(&d, zeros, 99, 1, 0);
    return d;
}

static void attention(Case *t) {
    attention_forward(t->out, t->save[0], t->in[0].x, &t->b, t->C, t->NH);
}

// lengthy 1: more rows than a block has, more keys than a tile; above 1: one token and a response of so many, at the
// edge of a block
static void test_attention(int hs, int NH, int lengthy) {
    char name[64];
    Ranked d = lengthy ? lengthy_query(lengthy) : ragged(9);
    Batch b = test_batch(&d);
    int C = hs * NH;
    snprintf(name, sizeof name, "attention, %d head%s of %d%s", NH, NH > 1 ? "s" : "", hs,
             lengthy > 1 ? ", a block's edge" : lengthy ? ", long sequences" : "");
    Case t = case_make(name, attention, b.N, C, 0, (size_t)b.N * (size_t)C);
    t.b = b, t.NH = NH;
    t.save[0] = noise((size_t)b.N * (size_t)NH, 1);
    t.in[t.n_in++] = input("qkv", (size_t)b.N * 3 * (size_t)C, 1, 0);
    attention(&t);
    real *again = noise((size_t)b.N * (size_t)C, 1), apart = 0;
    attention_backward(t.in[0].dx, again, t.g, t.save[0], t.in[0].x, &b, C, NH);
    for (int i = 0; i < b.N * C; i++) apart = worse(apart, fabs(again[i] - t.out[i]));
    check(apart < 1e-12, "%s: its backward computes the output again (largest difference %.1e)", name, apart);
    free(again);
    case_check(&t);
    batch_free(&b);
    ranked_free(&d);
}

static void gelu(Case *t) { gelu_forward(t->out, t->in[0].x, t->N, t->C); }

static void test_gelu(void) {
    enum { N = 5, C = 33 };
    Case t = case_make("gelu", gelu, N, C, 0, N * C);
    t.in[t.n_in++] = input("x", N * C, 2, 0);
    memcpy(t.in[0].dx, t.g, N * C * sizeof(real)); // in place
    real x[N * C], out[N * C];
    memcpy(x, t.in[0].x, sizeof x);
    gelu_forward(out, x, N, C);
    gelu_backward(t.in[0].dx, x, N, C);
    check(!memcmp(x, out, sizeof x), "gelu: its backward leaves the output, the same bits as the forward's");
    case_check(&t);
}

static void classifier(Case *t) {
    classifier_forward(t->out, t->save[0], t->save[1], t->in[0].x, t->in[1].x, &t->b, t->C, t->OC, t->OC + 3);
}

static void test_classifier(void) { // g here is one coefficient per response, spread over its predictions
    enum { V = 37, C = 21 };
    Ranked d = ragged(V);
    Batch b = test_batch(&d);
    Case t = case_make("classifier", classifier, b.U, C, V, (size_t)b.P);
    int several = 0;
    real *c = noise((size_t)b.R, 1);
    for (int i = 0; i < b.P; i++) t.g[i] = c[b.resp[i]];
    for (int u = 0; u < b.U; u++) several += b.pred[u + 1] - b.pred[u] > 1;
    check(several > 1, "classifier: %d of %d rows have several predictions", several, b.U);
    t.b = b;
    t.save[0] = noise((size_t)b.U * (V + 3), 1);
    t.save[1] = noise((size_t)b.U, 1);
    t.in[t.n_in++] = input("x", (size_t)b.U * C, 1, 0);
    t.in[t.n_in++] = input("wte", V * C, 1, 1);
    classifier(&t);
    classifier_backward(t.in[0].dx, t.in[1].dx, t.save[0], t.save[1], c, t.in[0].x, t.in[1].x, &b, C, V, V + 3);
    case_check(&t);
    free(c);
    batch_free(&b);
    ranked_free(&d);
}

static void head(Case *t) { head_forward(t->out, t->in[0].x, t->in[1].x, t->in[2].x, t->N, t->C); }

static void test_head(void) {
    enum { R = 6, C = 19 };
    Case t = case_make("head", head, R, C, 0, R);
    t.in[t.n_in++] = input("x", R * C, 1, 0);
    t.in[t.n_in++] = input("rewardw", C, 1, 1);
    t.in[t.n_in++] = input("rewardb", 1, 1, 1);
    head_backward(t.in[0].dx, t.in[1].dx, t.in[2].dx, t.g, t.in[0].x, t.in[1].x, R, C);
    case_check(&t);
}

static const int gather_rows[4] = {1, 2, 5, 9};

static void gather(Case *t) { gather_forward(t->out, t->in[0].x, gather_rows, 4, t->C); }

static void test_gather(void) {
    enum { N = 10, C = 7 };
    Case t = case_make("gather", gather, N, C, 0, 4 * C);
    t.in[t.n_in++] = input("x", N * C, 1, 0);
    gather_backward(t.in[0].dx, t.g, gather_rows, 4, N, C);
    case_check(&t);
}

// ----------------------------------------------------------------------------
// The whole model, through a loss

typedef struct { GPT2 *m; Train t; StepRoom s; Ranked d; int order[4]; } Whole;

static double whole_loss(void *of) {
    Whole *w = (Whole *)of;
    double L = 0;
    Batch *b = &w->s.b;
    batch_pack(b, &w->d, w->order, w->d.Q);
    gpt2_forward(w->m, b, w->s.out);
    batch_values(b, w->m->c.reward, w->s.out, w->s.value);
    for (int g = 0; g < b->Q; g++) {
        int i = b->first[g], k = b->first[g + 1] - i;
        L += w->t.loss(&w->t.objective, k, w->s.value + i, b->resp_len + i, b->score + i, w->s.p + i, w->s.c + i).loss;
    }
    return L / b->Q;
}

// Differences across the corner of a hinge mean nothing: how far is the nearest one, and are some on either side?
static void check_hinges(const char *what, Whole *w) {
    double nearest = INFINITY;
    int active = 0, idle = 0;
    whole_loss(w);
    for (int q = 0; q < w->d.Q; q++) {
        int at = w->d.first[q], k = w->d.first[q + 1] - at;
        const float *r = w->d.score + at;
        for (int i = 0; i < k; i++)
            for (int j = 0; j < k; j++) {
                if (!(r[i] < r[j])) continue;
                double violation = rrhf_violation(&w->t.objective, k, w->s.p + at, r, i, j);
                active += violation > 0;
                idle += violation <= 0;
                nearest = fmin(nearest, fabs(violation));
            }
    }
    check(active > 1 && idle > 1 && nearest > 5e-3, "%s: %d hinges active, %d not, the nearest corner %.3f away", what,
          active, idle, nearest);
}

static Whole whole_make(QueryLoss loss, Objective o, const int *k, int reward) {
    Config c = {14, 29, 32, 2, 2, 16, reward, 0};
    Whole w = {0};
    float *params = test_params(c, 5);
    w.m = gpt2_build(c, params, 1);
    free(params);
    w.d = test_ranked(17, c.V, 4, k, 6, 6);
    w.t.objective = o;
    w.t.loss = loss;
    w.t.micro_batch = w.d.Q;
    w.s = step_room(w.m, &w.d, w.d.Q);
    for (int q = 0; q < w.d.Q; q++) w.order[q] = q;
    return w;
}

// A bias that moves all heads alike cannot move their differences: its gradient is 0, and relative errors say nothing.
static void check_vanishes(const char *what, Whole *w, const Input *in) {
    double most = 0, differences = 0;
    for (size_t i = 0; i < in->n; i++) {
        most = worse(most, fabs(in->dx[i] - in->start[i]));
        differences = worse(differences, fabs(difference(whole_loss, w, in->x + i)));
    }
    check(most < 1e-12 && differences < 1e-9, "%s, d%s: vanishes: at most %.1e, tolerance 1e-12 (by differences %.1e)",
          what, in->name, most, differences);
}

static void whole_check(const char *what, Whole *w) {
    enum { PER_TENSOR = 50 };
    Tensor t[N_TENSORS];
    size_t n = gpt2_tensors(w->m->c, t);
    real *start = noise(n, 1);
    gradient_room(w->m, 1);
    memcpy(w->m->grads, start, n * sizeof(real));
    w->s.queries = w->d.Q;
    micro_step(w->m, &w->t, &w->s, &w->d, w->order, w->d.Q);
    gpt2_backward(w->m, &w->s.b, w->s.coef);
    for (int i = 0; i < N_TENSORS; i++) {
        Input in = {t[i].name, w->m->params + t[i].at, w->m->grads + t[i].at, start + t[i].at, t[i].size};
        int shared = !strcmp(in.name, "lnfb") || !strcmp(in.name, "rewardb");
        if (w->t.loss == pairwise_loss && shared) check_vanishes(what, w, &in);
        else if (in.n) check_input(what, whole_loss, w, &in, PER_TENSOR);
    }
    free(start);
}

static void whole_free(Whole *w) {
    gpt2_free(w->m);
    step_room_free(&w->s);
    ranked_free(&w->d);
}

static void test_rrhf(void) {
    static const int k[4] = {5, 1, 3, 4};
    static const struct { const char *name; Objective o; } cases[4] = { // weights, alpha, lambda, ft mean
        {"RRHF", {1, 1, 1, 0, 0}}, {"RRHF, margin 0.05", {1, 1, 1, 0.05, 0}},
        {"RRHF, alpha 0.5, weights 3 and 0", {3, 0, 0.5, 0, 0}}, {"RRHF, alpha 0, mean", {0.7, 1.3, 0, 0, 1}}
    };
    for (int i = 0; i < 4; i++) {
        Whole w = whole_make(rrhf_loss, cases[i].o, k, 0);
        check_hinges(cases[i].name, &w);
        whole_check(cases[i].name, &w);
        whole_free(&w);
    }
}

static void test_reward(void) {
    static const int labels[4] = {1, 1, 1, 1}, preferences[4] = {4, 2, 5, 3};
    Whole w = whole_make(logistic_loss, test_objective(), labels, 1);
    for (int r = 0; r < w.d.R; r++) w.d.score[r] /= 3; // rewards 0..3 to labels 0..1
    whole_check("reward, labels", &w);
    whole_free(&w);
    w = whole_make(pairwise_loss, test_objective(), preferences, 1);
    whole_check("reward, preferences", &w);
    whole_free(&w);
}

int main(void) {
    backend_start(1); // the work is too small to share
    gemm_kind = GEMM_PACKED;
    test_embedding();
    test_layernorm();
    for (int i = 0; i < 4; i++) test_matmul(i / 2 ? GEMM_PACKED : GEMM_NAIVE, i % 2);
    test_attention(8, 2, 0);
    test_attention(32, 2, 0);
    test_attention(64, 1, 0);
    test_attention(5, 3, 0);
    test_attention(5, 1, 1);
    test_attention(5, 1, BLOCK_ROWS);
    test_attention(5, 1, BLOCK_ROWS + 1);
    test_gelu();
    test_classifier();
    test_head();
    test_gather();
    test_rrhf();
    test_reward();
    return test_summary();
}
