/*
reward.h: where rewards come from, and how a reward model is trained.

  Reward r = reward_open("reward.bin");     a GPT-2 with a scalar head, trained by the reward verb
  reward_score(&r, &d, label);              sets d.score of every response from query and response together
  reward_close(&r);

Two losses train the head on z = head(x, y), read at the response's last token; p_i of the loop is z itself:
  labels (every k = 1, scores in 0..1):  L = log(1 + exp(z)) - r z             logistic, the label r = P(good)
  preferences (some k > 1):              L = mean over pairs r_i < r_j of log(1 + exp(z_i - z_j))
The second is InstructGPT's reward-model loss (Ouyang et al. 2022). Which one, the data decide.
*/
#ifndef REWARD_H
#define REWARD_H

#include "util.h"        // defines: die
#include "model.h"       // defines: GPT2, checkpoint_read
#include "dataloader.h"  // defines: Ranked
#include "rrhf.h"        // defines: Objective, Loss, evaluate_all

// ----------------------------------------------------------------------------
// The losses of a reward model

static inline double sigmoid(double z) { return z > 0 ? 1 / (1 + exp(-z)) : exp(z) / (1 + exp(z)); }
static inline double softplus(double z) { return z > 0 ? z + log1p(exp(-z)) : log1p(exp(z)); } // log(1 + exp(z))

// dL/dz = sigmoid(z) - r
static inline Loss logistic_loss(const Objective *o, int k, const double *z, const int *n, const float *r, double *p, double *c) {
    Loss l = {0, 0, 0};
    (void)o, (void)n;
    for (int i = 0; i < k; i++) {
        p[i] = z[i];
        l.ft += (softplus(z[i]) - r[i] * z[i]) / k;
        c[i] = (sigmoid(z[i]) - r[i]) / k;
    }
    l.loss = l.ft;
    return l;
}

// dL/dz_i = sigmoid(z_i - z_j) / pairs for the worse one of each pair, its negative for the better one
static inline Loss pairwise_loss(const Objective *o, int k, const double *z, const int *n, const float *r, double *p, double *c) {
    Loss l = {0, 0, 0};
    int pairs = 0;
    (void)o, (void)n;
    for (int i = 0; i < k; i++) {
        p[i] = z[i];
        c[i] = 0;
        for (int j = 0; j < k; j++) pairs += r[i] < r[j];
    }
    for (int i = 0; i < k; i++)
        for (int j = 0; j < k; j++) {
            if (!(r[i] < r[j])) continue;
            double s = sigmoid(z[i] - z[j]) / pairs;
            l.rank += softplus(z[i] - z[j]) / pairs;
            c[i] += s;
            c[j] -= s;
        }
    l.loss = l.rank;
    return l;
}

// 1: labels, 0: preferences. Dies when the data are neither.
static inline int reward_data_is_labels(const Ranked *d, const char *path) {
    int pairs = 0;
    if (d->R > d->Q) {
        for (int q = 0; q < d->Q; q++)
            for (int r = d->first[q] + 1; r < d->first[q + 1]; r++) pairs += d->score[r] != d->score[d->first[q]];
        if (!pairs) die("%s: every query's responses have equal scores; a reward model needs differences", path);
        return 0;
    }
    for (int r = 0; r < d->R; r++)
        if (d->score[r] < 0 || d->score[r] > 1)
            die("%s: one response per query means labels, and response %d has the label %g; expected 0 (bad) to 1 (good)",
                path, r, d->score[r]);
    return 1;
}

// ----------------------------------------------------------------------------
// A source of rewards

typedef struct { const char *spec; GPT2 *model; } Reward;

static inline Reward reward_open(const char *spec) {
    Reward r = {spec, NULL};
    Config c;
    float *params = checkpoint_read(spec, &c);
    if (!c.reward) die("--reward %s: a policy, without a scalar head; make a reward model with the reward verb", spec);
    r.model = gpt2_build(c, params, 0);
    free(params);
    return r;
}

static inline void reward_close(Reward *r) {
    gpt2_free(r->model);
    r->model = NULL;
}

static inline void reward_score(Reward *r, Ranked *d, const char *label) {
    Config c = gpt2_config(r->model);
    double *z = (double *)xalloc((size_t)d->R, sizeof *z);
    ranked_check(d, r->spec, c.V, c.T);
    evaluate_all(r->model, d, label, z);
    for (int i = 0; i < d->R; i++) d->score[i] = (float)(c.logistic ? sigmoid(z[i]) : z[i]);
    free(z);
}

#endif
