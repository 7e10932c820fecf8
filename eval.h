/*
eval.h: what a policy is worth (paper, section 4 and appendix C). Every figure has its standard error, taken over
queries, since the completions of one query are no independent samples.

  reward       of fresh completions of held-out queries
  best-of-n    the best among n completions of the starting policy: what RRHF tries to learn. All subsets of n among the
               N >= n completions count alike: each completion weighs as often as it is the best of a subset
  perplexity   of the completions under a judge, the start if not told otherwise: exp(-sum log P / tokens)
  accuracy     how often p_i orders a good and a bad response rightly: the policy as a reward model (Table 5)
  distinct-n   different n-grams / n-grams, over each query's first k completions: low where texts repeat themselves
  KL           sum_t log pi - log rho per completion, pi the policy and rho the start: how far it has moved
*/
#ifndef EVAL_H
#define EVAL_H

#include "util.h"        // defines: xalloc
#include "dataloader.h"  // defines: Ranked

typedef struct { double mean, err; int n; } Figure; // err: one standard error; n = 0: there is no such figure

// A policy's figures, and their names in eval.csv
enum { REWARD, PERPLEXITY, KL, TOKENS, DISTINCT_1, DISTINCT_2, ACCURACY, FIGURES };
static const char *const figure_names[FIGURES] = {"reward", "perplexity", "kl", "tokens", "distinct-1", "distinct-2",
                                                  "accuracy"};
#define EVAL_HEADER "policy,figure,mean,stderr,n"   // of eval.csv
#define REWARD_HEADER "step,reward,stderr,queries"  // of reward.csv, the reward's curve during training

static inline Figure figure_mean(const double *x, int n) {
    Figure f = {0, 0, n};
    double var = 0;
    for (int i = 0; i < n; i++) f.mean += x[i] / n;
    for (int i = 0; i < n; i++) var += (x[i] - f.mean) * (x[i] - f.mean);
    f.err = n > 1 ? sqrt(var / (n - 1) / n) : 0;
    return f;
}

// "0.559 +- 0.012"; without the error where one query cannot tell it. decimals: of both
static inline void figure_text(char cell[64], Figure f, int decimals) {
    if (f.n == 0) snprintf(cell, 64, "-");
    else if (f.n == 1) snprintf(cell, 64, "%.*f", decimals, f.mean);
    else snprintf(cell, 64, "%.*f +- %.*f", decimals, f.mean, decimals, f.err);
}

// sum a / sum b over queries, with the ratio estimator's standard error
static inline Figure figure_ratio(const double *a, const double *b, int n) {
    double sa = 0, sb = 0, var = 0;
    for (int i = 0; i < n; i++) sa += a[i], sb += b[i];
    Figure f = {sb > 0 ? sa / sb : 0, 0, n};
    for (int i = 0; i < n; i++) var += (a[i] - f.mean * b[i]) * (a[i] - f.mean * b[i]);
    f.err = n > 1 && sb > 0 ? sqrt(var * n / (n - 1)) / sb : 0;
    return f;
}

// weight (R): how much each response counts for its query. n = 0: all alike, 1/N. n > 0: the chance that it is the best
// of n of its query's N responses drawn without replacement, C(j-1, n-1) / C(N, n) for the j-th smallest score.
static inline void eval_weights(const Ranked *d, int n, double *weight) {
    for (int q = 0; q < d->Q; q++) {
        int first = d->first[q], N = d->first[q + 1] - first;
        for (int r = first; r < first + N; r++) {
            int j = 1; // its place among the scores, equal ones in the order of the file
            for (int i = first; i < first + N; i++)
                j += d->score[i] < d->score[r] || (d->score[i] == d->score[r] && i < r);
            weight[r] = n ? (double)n / N : 1.0 / N; // C(j-1, n-1) / C(N, n) = n/N prod_i (j - i) / (N - i)
            for (int i = 1; i < n; i++) weight[r] *= j > i ? (double)(j - i) / (N - i) : 0;
        }
    }
}

// Mean over queries of each query's weighted sum of value[r].
static inline Figure eval_mean(const Ranked *d, const double *value, const double *weight) {
    double *x = (double *)xalloc((size_t)d->Q, sizeof *x);
    for (int q = 0; q < d->Q; q++)
        for (int r = d->first[q]; r < d->first[q + 1]; r++) x[q] += weight[r] * value[r];
    Figure f = figure_mean(x, d->Q);
    free(x);
    return f;
}

// exp of the mean negative log-probability per token; logp (R) under the judge.
static inline Figure eval_perplexity(const Ranked *d, const double *logp, const double *weight) {
    double *a = (double *)xalloc((size_t)d->Q * 2, sizeof *a), *b = a + d->Q;
    for (int q = 0; q < d->Q; q++)
        for (int r = d->first[q]; r < d->first[q + 1]; r++) {
            a[q] -= weight[r] * logp[r];
            b[q] += weight[r] * d->resp_len[r];
        }
    Figure f = figure_ratio(a, b, d->Q);
    free(a);
    f.mean = exp(f.mean);
    f.err *= f.mean; // d exp(x) = exp(x) dx
    return f;
}

// Fraction of a query's pairs r_i < r_j that p orders alike; a tie of p counts half. n = queries that have pairs.
static inline Figure eval_accuracy(const Ranked *d, const float *score, const double *p) {
    double *a = (double *)xalloc((size_t)d->Q * 2, sizeof *a), *b = a + d->Q;
    int n = 0;
    for (int q = 0; q < d->Q; q++) {
        a[n] = b[n] = 0;
        for (int i = d->first[q]; i < d->first[q + 1]; i++)
            for (int j = d->first[q]; j < d->first[q + 1]; j++)
                if (score[i] < score[j]) b[n]++, a[n] += p[i] < p[j] ? 1 : p[i] == p[j] ? 0.5 : 0;
        n += b[n] > 0;
    }
    Figure f = figure_ratio(a, b, n);
    free(a);
    return f;
}

static inline int compare_u64(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

// Different n-grams over all n-grams, n = 1 or 2, of each query's first k responses: the figure falls as texts are
// added, so only equal numbers of texts compare. It is no mean over queries; its standard error is the jackknife's:
// with t_q the figure without query q, that squared is (Q - 1) / Q sum_q (t_q - mean t)^2.
static inline Figure eval_distinct(const Ranked *d, int n, int k) {
    uint64_t *gram = (uint64_t *)xalloc((size_t)d->n_tokens, sizeof *gram); // in the upper half, its query in the lower
    double *size = (double *)xalloc((size_t)d->Q * 3, sizeof *size), *own = size + d->Q, *without = own + d->Q; // (Q)
    double different = 0;
    size_t grams = 0;
    for (int q = 0; q < d->Q; q++) {
        size_t before = grams;
        for (int r = d->first[q]; r < d->first[q + 1] && r < d->first[q] + k; r++) {
            const uint16_t *y = d->tokens + d->resp_at[r];
            for (int t = n - 1; t < d->resp_len[r]; t++)
                gram[grams++] = (n == 1 ? y[t] : (uint64_t)y[t - 1] << 16 | y[t]) << 32 | (uint32_t)q;
        }
        size[q] = (double)(grams - before);
    }
    qsort(gram, grams, sizeof *gram, compare_u64);
    for (size_t i = 0, end; i < grams; i = end) {
        for (end = i + 1; end < grams && gram[end] >> 32 == gram[i] >> 32;) end++;
        different++;
        if (gram[i] == gram[end - 1]) own[(uint32_t)gram[i]]++; // no other query has it
    }
    for (int q = 0; q < d->Q; q++) {
        double left = (double)grams - size[q];
        without[q] = left > 0 ? (different - own[q]) / left : 0;
    }
    Figure f = figure_mean(without, d->Q);
    f.mean = grams ? different / (double)grams : 0;
    f.err *= d->Q - 1; // of a mean: sqrt(sum (t_q - mean t)^2 / (Q - 1) / Q)
    free(gram);
    free(size);
    return f;
}

#endif
