/*
test_reference.c: the CPU path against PyTorch's values for a small GPT-2, made once by dev/make_reference.py, which
documents the three files: log-probabilities, scores, losses, every gradient, and ten AdamW steps, of the policy under
RRHF and of the reward model under both its losses. PyTorch ran in float64, every response a sequence of its own.

  cc -std=c11 -O2 -fopenmp-simd -DNO_MAIN test/test_reference.c -o test/test_reference -lm
  test/test_reference [DIR]      from the repository's root; DIR has the files, by default test/

Tolerance: 1e-4 of a value plus, in gradients, 1e-5 of its tensor's rms (an element near 0 is a difference of terms of
that size, each rounded to 6e-8). In double (-DREAL=double) the same test ends with errors of 1e-15.
*/
#include "../train_rrhf.c" // defines: gpt2_forward, micro_step, train_step, checkpoint_read, ...
#include "test.h"          // defines: check, check_close, test_batch, test_summary

static const double RTOL = 1e-4, ATOL = 1e-5;

// ----------------------------------------------------------------------------
// The files

static const char *directory = "test";

static char *reference_path(char *path, const char *name) {
    return path_join(path, directory, name);
}

// The n values of that name; the caller frees them.
static double *values(const char *name, size_t n) {
    char path[RRHF_PATH_MAX], found[25] = {0};
    In in = in_open(reference_path(path, "reference.values.bin"));
    while (in_left(&in)) {
        in_read(&in, found, 24, "a name");
        int32_t size = in_i32(&in, "a size"), count = in_i32(&in, "a count");
        char *raw = (char *)xalloc((size_t)count, (size_t)size);
        in_read(&in, raw, (int64_t)count * size, found);
        if (strcmp(found, name)) {
            free(raw);
            continue;
        }
        if ((size_t)count != n) die("%s: %s has %d values, expected %zu; make the files again", path, name, count, n);
        double *x = (double *)xalloc(n, sizeof *x);
        for (size_t i = 0; i < n; i++) {
            float f;
            if (size == 4) memcpy(&f, raw + 4 * i, 4), x[i] = (double)f;
            else memcpy(&x[i], raw + 8 * i, 8);
        }
        free(raw);
        fclose(in.f);
        return x;
    }
    die("%s: no values '%s'; run dev/make_reference.py again", path, name);
}

static Ranked data_read(void) {
    char path[RRHF_PATH_MAX];
    return ranked_read(reference_path(path, "reference.ranked.bin"));
}

// The reward model, or without its head, at the end of the file, the policy.
static GPT2 *model_read(int reward) {
    char path[RRHF_PATH_MAX];
    Config c;
    float *params = checkpoint_read(reference_path(path, "reference.model.bin"), &c);
    c.reward = reward;
    GPT2 *m = gpt2_build(c, params, 1);
    free(params);
    return m;
}

static void check_values(const char *what, const double *got, const char *name, size_t n) {
    double *want = values(name, n);
    check_close(what, got, want, n, RTOL, 0);
    free(want);
}

static void check_grads(const char *what, GPT2 *m, const char *name) {
    Tensor t[N_TENSORS];
    size_t n = gpt2_tensors(m->c, t);
    double *want = values(name, n), *got = (double *)xalloc(n, sizeof *got);
    for (size_t i = 0; i < n; i++) got[i] = (double)m->grads[i];
    for (int i = 0; i < N_TENSORS; i++) {
        char line[64];
        int shared = !strcmp(t[i].name, "lnfb") || !strcmp(t[i].name, "rewardb");
        if (!t[i].size) continue;
        snprintf(line, sizeof line, "%s, d%s", what, t[i].name);
        if (strcmp(name, "pairs.grad") || !shared)
            check_close(line, got + t[i].at, want + t[i].at, t[i].size, RTOL, ATOL);
        else { // a bias that all heads share cancels in their differences
            double most = 0;
            for (size_t j = t[i].at; j < t[i].at + t[i].size; j++) most = worse(most, fabs(got[j]) + fabs(want[j]));
            check(most < 1e-6, "%s: vanishes: at most %.1e, tolerance 1e-6", line, most);
        }
    }
    free(got);
    free(want);
}

// ----------------------------------------------------------------------------
// One forward and backward over all queries

typedef struct { double loss, rank, ft, norm; } Figures; // as the reference has them

static Train train_make(QueryLoss loss, Objective o, int micro) {
    Train t = test_train(micro);
    t.objective = o;
    t.loss = loss;
    t.adam.weight_decay = 0.1;
    return t;
}

// Gradients of the mean loss; the parameters stay (lr 0). p (R), unless NULL.
static Figures gradients(GPT2 *m, const Ranked *d, Train t, double *p) {
    StepRoom s = step_room(m, d, d->Q);
    Figures f;
    int64_t tokens = 0;
    int *order = (int *)xalloc((size_t)d->Q, sizeof *order);
    for (int q = 0; q < d->Q; q++) order[q] = q;
    t.micro_batch = d->Q;
    t.grad_clip = 1e9; // clips nothing, but makes the gradient be kept
    Loss l = train_step(m, &t, &s, d, order, d->Q, 0, 1, &f.norm, &tokens);
    f.loss = l.loss, f.rank = l.rank, f.ft = l.ft;
    if (p) memcpy(p, s.p, (size_t)d->R * sizeof *p);
    free(order);
    step_room_free(&s);
    return f;
}

static void test_logp(GPT2 *m, const Ranked *d) {
    Batch b = test_batch(d);
    real *out = (real *)xalloc((size_t)b.P, sizeof *out);
    double *got = (double *)xalloc((size_t)b.P, sizeof *got);
    int *at = (int *)xalloc((size_t)b.R + 1, sizeof *at);
    gpt2_forward(m, &b, out);
    for (int r = 0; r < b.R; r++) at[r + 1] = at[r] + b.resp_len[r];
    for (int i = 0; i < b.P; i++) got[at[b.resp[i]]++] = (double)out[i]; // response by response
    check_values("log P of each token", got, "logp", (size_t)b.P);
    free(out);
    free(got);
    free(at);
    batch_free(&b);
}

static void test_queries(GPT2 *m, const Ranked *d, const double *p) {
    double *loss = (double *)xalloc((size_t)d->Q * 3, sizeof *loss), *rank = loss + d->Q, *ft = rank + d->Q;
    double *logp = (double *)xalloc((size_t)d->R * 3, sizeof *logp), *p2 = logp + d->R, *c = p2 + d->R;
    Objective o = test_objective();
    evaluate_all(m, d, "", logp);
    for (int q = 0; q < d->Q; q++) {
        int r = d->first[q];
        Loss l = rrhf_loss(&o, d->first[q + 1] - r, logp + r, d->resp_len + r, d->score + r, p2 + r, c + r);
        loss[q] = l.loss, rank[q] = l.rank, ft[q] = l.ft;
    }
    check_values("p of each response", p, "p", (size_t)d->R);
    check_values("p of each response, by evaluate_all", p2, "p", (size_t)d->R);
    check_values("L of each query", loss, "query.loss", (size_t)d->Q);
    check_values("L_rank of each query", rank, "query.rank", (size_t)d->Q);
    check_values("L_ft of each query", ft, "query.ft", (size_t)d->Q);
    free(loss);
    free(logp);
}

static void test_policy(const Ranked *d) {
    const Objective variant = {2, 0.5, 0.5, 0.1, 1};
    GPT2 *m = model_read(0);
    double *p = (double *)xalloc((size_t)d->R, sizeof *p);
    int ties = 0, most = 0;
    for (int q = 0; q < d->Q; q++) {
        most = d->first[q + 1] - d->first[q] > most ? d->first[q + 1] - d->first[q] : most;
        for (int i = d->first[q]; i < d->first[q + 1]; i++)
            for (int j = i + 1; j < d->first[q + 1]; j++) ties += d->score[i] == d->score[j];
    }
    check(ties > 1 && most == 5, "the data: %d queries, %d responses, k up to %d, %d tied pairs", d->Q, d->R, most,
          ties);
    test_logp(m, d);
    Figures f = gradients(m, d, train_make(rrhf_loss, test_objective(), 0), p);
    check_values("RRHF: loss, L_rank, L_ft, gradient norm", &f.loss, "rrhf", 4);
    check_grads("RRHF", m, "rrhf.grad");
    f = gradients(m, d, train_make(rrhf_loss, variant, 0), NULL);
    check_values("weights 2 and 0.5, alpha 0.5, margin 0.1, mean: the same", &f.loss, "variant", 4);
    test_queries(m, d, p);
    free(p);
    gpt2_free(m);
}

static void test_reward(const Ranked *d, const char *name, QueryLoss loss) {
    char what[64];
    GPT2 *m = model_read(1);
    double *z = (double *)xalloc((size_t)d->R, sizeof *z);
    Figures f = gradients(m, d, train_make(loss, test_objective(), 0), z);
    double got[2] = {f.loss, f.norm};
    check_values("reward of each response", z, "head", (size_t)d->R);
    snprintf(what, sizeof what, "reward model, %s: loss, gradient norm", name);
    check_values(what, got, name, 2);
    snprintf(what, sizeof what, "%s.grad", name);
    check_grads(name, m, what);
    free(z);
    gpt2_free(m);
}

// ----------------------------------------------------------------------------
// Ten steps of AdamW: weight decay 0.1 on matrices and embeddings, four queries a step, in micro-batches of three or
// in one

static void test_curve(const Ranked *d, const char *name, QueryLoss loss, double clip, int micro) {
    enum { STEPS = 10, BATCH = 4 };
    char what[96], key[32];
    double losses[STEPS], norms[STEPS];
    int64_t tokens = 0;
    GPT2 *m = model_read(loss != rrhf_loss);
    Train t = train_make(loss, test_objective(), micro);
    StepRoom s = step_room(m, d, t.micro_batch);
    int order[BATCH];
    t.grad_clip = clip;
    for (int i = 0; i < STEPS; i++) {
        for (int q = 0; q < BATCH; q++) order[q] = (i * BATCH + q) % d->Q;
        losses[i] = train_step(m, &t, &s, d, order, BATCH, 1e-3, i + 1, &norms[i], &tokens).loss;
    }
    snprintf(key, sizeof key, "%s.%s", name, clip > 0 ? "clipped" : "curve");
    snprintf(what, sizeof what, "%s: loss over %d steps%s, micro-batches of %d", name, STEPS,
             clip > 0 ? ", gradients clipped" : "", micro);
    check_values(what, losses, key, STEPS);
    strcat(key, ".norm");
    snprintf(what, sizeof what, "%s: gradient norms of these", name);
    check_values(what, norms, key, STEPS);
    step_room_free(&s);
    gpt2_free(m);
}

int main(int argc, char **argv) {
    if (argc > 1) directory = argv[1];
    printf("%s\n", backend_start(1));
    Ranked d = data_read();
    test_policy(&d);
    test_reward(&d, "labels", logistic_loss);
    test_reward(&d, "pairs", pairwise_loss);
    for (int clipped = 0; clipped < 2; clipped++) {
        test_curve(&d, "rrhf", rrhf_loss, clipped * 2.0, 3);
        test_curve(&d, "rrhf", rrhf_loss, clipped * 2.0, 4);
        test_curve(&d, "labels", logistic_loss, clipped * 0.2, 3);
        test_curve(&d, "pairs", pairwise_loss, clipped * 0.2, 3);
    }
    ranked_free(&d);
    return test_summary();
}
