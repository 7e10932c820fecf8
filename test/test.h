/*
test.h: what the tests share. One line per check, then "N passed, N failed".

  check(ok, "what  error %g  tolerance %g", ...)    prints "ok   ..." or "FAIL ..."
  check_dies("what", f, arg, "text")                f(arg) must end the program as die() does
  return test_summary();                            the last line, and main's exit code

and, for tests that include train_rrhf.c first, small models, ragged data and a comparison:

  test_params(c, seed)                              (count) every tensor random, biases and LayerNorm too
  test_ranked(seed, V, Q, k, max_query, max_resp)   Q queries with k[q] responses, ragged, some scores tied
  test_batch(&d)                                    all of d as one batch
  test_objective()                                  the paper's: weights 1, alpha 1, lambda 0, sum
  test_train(micro)                                 RRHF with it, AdamW at 1e-3, `micro` queries at once
  worse(worst, error)                               the larger; a NaN is the worst of all and stays (fmax forgets it)
  check_close("what", got, want, n, rtol, atol)     |got - want| <= rtol |want| + atol rms(want), worst element shown
*/
#ifndef TEST_H
#define TEST_H

#include <stdarg.h>      // defines: va_list
#include <stdio.h>       // defines: printf
#include <stdlib.h>      // defines: exit
#include <string.h>      // defines: strstr
#include <sys/wait.h>    // defines: waitpid
#include <unistd.h>      // defines: fork, pipe, dup2

static int passed, failed;

__attribute__((format(printf, 2, 3), unused))
static int check(int ok, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    printf(ok ? "ok   " : "FAIL ");
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    fflush(stdout); // so that a crash later on does not swallow it
    if (ok) passed++;
    else failed++;
    return ok;
}

// Runs f(arg) in a child process: it must exit with code 1 and leave one line on stderr that holds `text`.
__attribute__((unused))
static int check_dies(const char *what, void (*f)(const void *), const void *arg, const char *text) {
    char said[4096];
    int pipe_fd[2], status = 0;
    size_t n = 0;
    fflush(stdout);
    if (pipe(pipe_fd)) return check(0, "%s: no pipe", what);
    pid_t child = fork();
    if (child == 0) {
        close(pipe_fd[0]);
        if (dup2(pipe_fd[1], 2) < 0) _exit(99);
        f(arg);
        _exit(0); // it should not have come back
    }
    close(pipe_fd[1]);
    for (ssize_t k; child > 0 && n < sizeof said - 1; n += (size_t)k)
        if ((k = read(pipe_fd[0], said + n, sizeof said - 1 - n)) <= 0) break;
    said[n] = 0;
    close(pipe_fd[0]);
    if (child < 0 || waitpid(child, &status, 0) != child) return check(0, "%s: no child process", what);
    const char *end = strchr(said, '\n');
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    int one_line = end && end[1] == 0 && strncmp(said, "error: ", 7) == 0;
    if (n && said[n - 1] == '\n') said[n - 1] = 0;
    return check(code == 1 && one_line && strstr(said, text), "%s: exit code %d, \"%s\"", what, code, said);
}

__attribute__((unused))
static int test_summary(void) {
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}

// ----------------------------------------------------------------------------
// Small models and ragged data

#ifdef MODEL_H

// gpt2_random leaves biases at 0 and LayerNorm at the identity, where a wrong gradient can hide.
__attribute__((unused))
static float *test_params(Config c, uint64_t seed) {
    Tensor t[N_TENSORS];
    float *params = (float *)xalloc(gpt2_tensors(c, t), sizeof *params);
    Rng r = rng_make(seed, RNG_WEIGHTS, 99);
    for (int i = 0; i < N_TENSORS; i++) {
        float mean = t[i].name[0] == 'l' && strchr(t[i].name, 'w') ? 1.0f : 0.0f; // ln1w ln2w lnfw
        for (size_t j = 0; j < t[i].size; j++) params[t[i].at + j] = mean + 0.15f * (float)rng_normal(&r);
    }
    return params;
}

__attribute__((unused))
static Ranked test_ranked(uint64_t seed, int V, int Q, const int *k, int max_query, int max_resp) {
    Ranked d = {0};
    uint16_t *tok = (uint16_t *)xalloc((size_t)(max_query + max_resp), sizeof *tok);
    Rng r = rng_make(seed, RNG_DEMO, 0);
    d.V = V;
    for (int q = 0; q < Q; q++)
        for (int i = -1; i < k[q]; i++) {
            int n = 1 + rng_below(&r, i < 0 ? max_query : max_resp);
            for (int t = 0; t < n; t++) tok[t] = (uint16_t)rng_below(&r, V);
            if (i < 0) ranked_query(&d, tok, n);
            else ranked_response(&d, tok, n, (float)rng_below(&r, 4), 0); // four rewards, so that some are equal
        }
    free(tok);
    return d;
}

__attribute__((unused))
static Batch test_batch(const Ranked *d) {
    int N = 0, U = 0, P = 0, R = 0, *order = (int *)xalloc((size_t)d->Q, sizeof *order);
    for (int q = 0; q < d->Q; q++) batch_count(d, order[q] = q, &N, &U, &P, &R);
    Batch b = batch_make(N, U, P, R, d->Q);
    batch_pack(&b, d, order, d->Q);
    free(order);
    return b;
}

__attribute__((unused))
static Objective test_objective(void) {
    Objective o = {1, 1, 1, 0, 0};
    return o;
}

__attribute__((unused))
static Train test_train(int micro) {
    Train t = {0};
    t.objective = test_objective();
    t.loss = rrhf_loss;
    t.micro_batch = micro;
    t.adam.lr = 1e-3, t.adam.beta1 = 0.9, t.adam.beta2 = 0.999, t.adam.eps = 1e-8;
    return t;
}

__attribute__((unused))
static double log_sum_exp(const float *logits, int V) {
    float max = logits[0];
    double sum = 0;
    for (int v = 1; v < V; v++) max = fmaxf(max, logits[v]);
    for (int v = 0; v < V; v++) sum += expf(logits[v] - max);
    return max + log(sum);
}

__attribute__((unused))
static double worse(double worst, double error) { return isnan(worst) || error <= worst ? worst : error; }

__attribute__((unused))
static int check_close(const char *what, const double *got, const double *want, size_t n, double rtol, double atol) {
    double rms = 0, worst = -1, allowed = 0;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) rms += want[i] * want[i] / (double)n;
    rms = sqrt(rms);
    for (size_t i = 0; i < n && !isnan(worst); i++) {
        double may = rtol * fabs(want[i]) + atol * rms, e = worse(worst, fabs(got[i] - want[i]) / (may + 1e-300));
        if (e != worst) worst = e, allowed = may, at = i;
    }
    if (n == 0) return check(0, "%s: nothing to compare", what);
    return check(worst <= 1, "%s: worst of %zu is [%zu], %.9g, expected %.9g: error %.1e, tolerance %.1e "
                 "= %.1e |x| + %.1e rms", what, n, at, got[at], want[at], fabs(got[at] - want[at]), allowed, rtol,
                 atol);
}

#endif // MODEL_H

#endif
