/*
reward.h: where rewards come from, and how a reward model is trained.

  Reward r = reward_open("reward.bin", tok, V);        a GPT-2 with a scalar head, trained by the reward verb, or
             reward_open("cmd:PROGRAM ARGS", tok, V);  any program: it runs as long as we do, reads one text (query and
                                 response, \\ \n \r escaped) per line, prints one number per line, flushed. When its
                                 input has ended, it has 10 seconds to end itself
  reward_score(&r, &d, label);   sets d.score of every response from query and response together
  reward_close(&r);

Two losses train the head on z = head(x, y), read at the response's last token; p_i of the loop is z itself:
  labels (every k = 1, scores in 0..1):  L = log(1 + exp(z)) - r z             logistic, the label r = P(good)
  preferences (some k > 1):              L = mean over pairs r_i < r_j of log(1 + exp(z_i - z_j))
The second is InstructGPT's reward-model loss (Ouyang et al. 2022). Which one, the data decide.
*/
#ifndef REWARD_H
#define REWARD_H

#include "util.h"        // defines: die; first, for _GNU_SOURCE
#include <fcntl.h>       // defines: fcntl
#include <poll.h>        // defines: poll
#include <signal.h>      // defines: signal
#include <sys/wait.h>    // defines: waitpid
#include "model.h"       // defines: GPT2, checkpoint_open
#include "dataloader.h"  // defines: Ranked
#include "tokenizer.h"   // defines: Tokenizer, tokenizer_text
#include "rrhf.h"        // defines: Objective, Loss, evaluate_all

// ----------------------------------------------------------------------------
// The losses of a reward model

static inline BOTH double sigmoid(double z) { return z > 0 ? 1 / (1 + exp(-z)) : exp(z) / (1 + exp(z)); }
static inline BOTH double softplus(double z) { return z > 0 ? z + log1p(exp(-z)) : log1p(exp(z)); } // log(1 + exp(z))

// dL/dz = sigmoid(z) - r. (The reward verb's labels have k = 1; of more responses it is the mean.)
static inline BOTH Loss logistic_loss(const Objective *o, int k, const double *z, const int *n, const float *r,
                                      double *p, double *c) {
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
static inline BOTH Loss pairwise_loss(const Objective *o, int k, const double *z, const int *n, const float *r,
                                      double *p, double *c) {
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

// Has any query two responses of different scores?
static inline int ranked_has_pairs(const Ranked *d) {
    for (int q = 0; q < d->Q; q++)
        for (int r = d->first[q]; r < d->first[q + 1]; r++)
            if (d->score[r] != d->score[d->first[q]]) return 1;
    return 0;
}

// 1: labels, 0: preferences. Dies when the data are neither.
static inline int reward_data_is_labels(const Ranked *d, const char *path) {
    if (d->R > d->Q) {
        if (!ranked_has_pairs(d))
            die("%s: every query's responses have equal scores; a reward model needs differences", path);
        return 0;
    }
    for (int r = 0; r < d->R; r++)
        if (d->score[r] < 0 || d->score[r] > 1)
            die("%s: one response per query means labels, and response %d has the label %g; expected 0 (bad) to 1 "
                "(good)", path, r, d->score[r]);
    return 1;
}

// ----------------------------------------------------------------------------
// A source of rewards

typedef struct {
    const char *spec;        // as --reward says it
    GPT2 *model;             // a checkpoint's, or NULL: a command
    Tokenizer *tok;          // a command gets text
    pid_t pid;               // the command
    int to;                  // its standard input
    int from;                // its standard output
} Reward;

static inline int reward_is_command(const char *spec) { return spec && !strncmp(spec, "cmd:", 4); }

static inline void reward_start(Reward *r) {
    int in[2], out[2];
    if (pipe(in) || pipe(out)) die("--reward %s: no pipe: %s", r->spec, strerror(errno));
    signal(SIGPIPE, SIG_IGN); // a command that ends is noticed where its answer is missed
    r->pid = fork();
    if (r->pid < 0) die("--reward %s: cannot start: %s", r->spec, strerror(errno));
    if (r->pid == 0) {
        dup2(in[0], 0), dup2(out[1], 1);
        close(in[0]), close(in[1]), close(out[0]), close(out[1]);
        signal(SIGINT, SIG_IGN); // Ctrl-C is for the training loop
        world_leave();
        signal(SIGPIPE, SIG_DFL); // and a command that writes on after we have ended should end too
        execl("/bin/sh", "sh", "-c", r->spec + 4, (char *)NULL);
        _exit(127);
    }
    close(in[0]), close(out[1]);
    fcntl(in[1], F_SETFD, FD_CLOEXEC), fcntl(out[0], F_SETFD, FD_CLOEXEC);
    fcntl(in[1], F_SETFL, O_NONBLOCK); // a command that does not read is waited for as one that does not write
    r->to = in[1];
    r->from = out[0];
}

// V: the vocabulary of the policy that is to be judged; 0: of no policy.
static inline Reward reward_open(const char *spec, Tokenizer *tok, int V) {
    Reward r = {0};
    r.spec = spec, r.tok = tok;
    if (reward_is_command(spec)) {
        if (!tok) die_usage("--reward %s: needs --tokenizer, since a command judges text", spec);
        if (!world_rank) reward_start(&r); // process 0 asks for all
        return r;
    }
    Checkpoint f = checkpoint_open(spec);
    if (!f.c.reward)
        die("--reward %s: a policy, without a scalar head; make a reward model with the reward verb", spec);
    if (V && f.c.V != V)
        die("--reward %s: vocabulary %d, the policy has %d; train one from the policy's checkpoint", spec, f.c.V, V);
    r.model = checkpoint_model(&f, f.c, 0);
    return r;
}

// Can fd be read (POLLIN) or written to (POLLOUT) within so many milliseconds?
static inline int reward_ready(int fd, short events, int milliseconds) {
    struct pollfd p = {fd, events, 0};
    return poll(&p, 1, milliseconds) > 0;
}

// Closes the command's streams and waits for its end, or makes one. Returns 1 and its status if it ended by itself.
static inline int reward_end(Reward *r, int seconds, int *status) {
    double start = now_s();
    *status = 0;
    close(r->to), close(r->from);
    for (;;) {
        pid_t ended = waitpid(r->pid, status, WNOHANG);
        if (ended == r->pid) return 1;
        if (ended < 0 && errno == ECHILD) return 1; // who started us wants no news of children
        if (now_s() - start > seconds) break;
        poll(NULL, 0, 10);
    }
    kill(r->pid, SIGTERM);
    return 0;
}

// A command that has printed more lines than it read has shifted the answers from text to text.
static inline void reward_close(Reward *r) {
    enum { GRACE = 10 }; // seconds
    char rest[256];
    int status;
    gpt2_free(r->model);
    if (r->pid) {
        if (reward_ready(r->from, POLLIN, 200) && read(r->from, rest, sizeof rest) > 0)
            die("--reward %s: it printed more lines than it was asked for, so scores may belong to other texts; "
                "expected one line for each that it reads", r->spec);
        if (!reward_end(r, GRACE, &status))
            fprintf(stderr, "note: --reward %s: still running %d s after the end of its input, so stopped\n", r->spec,
                    GRACE);
    }
    memset(r, 0, sizeof *r);
}

// How a command that gave no answer ended, for the error message.
static inline void reward_died(Reward *r, int response) {
    int status = 0;
    if (!reward_end(r, 2, &status))
        die("--reward %s: it closed its input or output before answering response %d; it must print one number for "
            "every line it reads, and flush it", r->spec, response);
    die("--reward %s: it ended (%s %d) before answering response %d; it must print one number for every line it reads, "
        "and flush it", r->spec, WIFSIGNALED(status) ? "signal" : "exit code",
        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), response);
}

static int reward_patience = 300; // seconds (a test changes it)

// Waits until fd can be read or written to. A slow command is waited for, a silent one not for ever.
static inline void reward_wait(Reward *r, int fd, short events, int response) {
    enum { GRACE = 15 }; // seconds after Ctrl-C, so that a working one's step can be saved
    double start = now_s(), stop = 0;
    int status;
    for (int noted = 0; !reward_ready(fd, events, 1000);) {
        double now = now_s();
        if (now - start > 10 && !noted++)
            fprintf(stderr, "note: waiting for --reward %s; does it %s?\n", r->spec,
                    events == POLLIN ? "flush every line" : "read its input");
        if (interrupted && stop == 0) {
            fprintf(stderr, "note: --reward %s: waiting at most %d s more for its answer\n", r->spec, GRACE);
            stop = now + GRACE;
        }
        if (now - start <= reward_patience && !(stop > 0 && now > stop)) continue;
        reward_end(r, 0, &status);
        if (stop > 0)
            die("--reward %s: interrupted, and no answer to response %d within %d s; nothing is saved since the last "
                "checkpoint", r->spec, response, GRACE);
        die("--reward %s: no answer to response %d for %d s; it must print one number for every line it reads, and "
            "flush it", r->spec, response, reward_patience);
    }
}

// One line of text: \\ \n \r for a backslash and line ends. line has room for 2 n + 2 bytes.
static inline size_t reward_escape(char *line, const char *text, size_t n) {
    size_t m = 0;
    for (size_t i = 0; i < n; i++) {
        char c = text[i], e = c == '\\' ? '\\' : c == '\n' ? 'n' : c == '\r' ? 'r' : 0;
        if (e) line[m++] = '\\', line[m++] = e;
        else if (c) line[m++] = c; // a zero byte would end the line for many readers
    }
    line[m++] = '\n';
    return m;
}

// One line of at most size - 1 bytes.
static inline void reward_answer(Reward *r, char *answer, size_t size, int response) {
    size_t n = 0;
    while (n + 1 < size) {
        reward_wait(r, r->from, POLLIN, response);
        ssize_t k = read(r->from, answer + n, size - 1 - n);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) reward_died(r, response);
        n += (size_t)k;
        if (memchr(answer, '\n', n)) break;
    }
    answer[n] = 0;
    char *end = (char *)memchr(answer, '\n', n);
    if (!end)
        die("--reward %s: response %d: over %zu bytes without a line end, expected one number", r->spec, response, n);
    if (strlen(answer) != n) die("--reward %s: response %d: a zero byte in its answer", r->spec, response);
    if (end + 1 != answer + n) die("--reward %s: response %d: more than one line in answer to one", r->spec, response);
}

// Asks the command for the reward of query and response together.
static inline float reward_ask(Reward *r, const Ranked *d, int q, int i) {
    size_t n, m, done = 0;
    Tokens all = {NULL, 0, 0};
    int len[2] = {d->query_len[q], d->resp_len[i]};
    XGROW(all.id, all.cap, (size_t)len[0] + (size_t)len[1]);
    memcpy(all.id, d->tokens + d->query_at[q], (size_t)len[0] * sizeof *all.id);
    memcpy(all.id + len[0], d->tokens + d->resp_at[i], (size_t)len[1] * sizeof *all.id);
    all.n = (size_t)(len[0] + len[1]);
    if (all.id[all.n - 1] == r->tok->eot) all.n--; // end-of-text is no text
    char *text = tokenizer_text(r->tok, all.id, all.n, &n), *line = (char *)xalloc(2 * n + 2, 1), answer[256], *end;
    if (reward_ready(r->from, POLLIN, 0) && read(r->from, answer, 1) > 0)
        die("--reward %s: it printed a line before it was asked about response %d; expected one line for each that it "
            "reads", r->spec, i);
    for (m = reward_escape(line, text, n); done < m;) {
        ssize_t k = write(r->to, line + done, m - done);
        if (k >= 0) done += (size_t)k;
        else if (errno == EAGAIN) reward_wait(r, r->to, POLLOUT, i);
        else if (errno != EINTR) reward_died(r, i);
    }
    reward_answer(r, answer, sizeof answer, i);
    float score = strtof(answer, &end);
    if (end == answer || end[strspn(end, " \t\r\n")] || !isfinite(score))
        die("--reward %s: response %d: answer '%.*s', expected one finite number and a line end", r->spec, i,
            (int)strcspn(answer, "\n"), answer);
    tokens_free(&all);
    free(text);
    free(line);
    return score;
}

static inline void reward_score(Reward *r, Ranked *d, const char *label) {
    if (!r->model) {
        Progress bar = progress_start(label, 0);
        for (int q = 0; q < d->Q && !world_rank; q++) {
            for (int i = d->first[q]; i < d->first[q + 1]; i++) d->score[i] = reward_ask(r, d, q, i);
            progress(&bar, q + 1, d->Q, "queries");
        }
        world_give(d->score, (size_t)d->R * sizeof *d->score, 0);
        return;
    }
    Config c = gpt2_config(r->model);
    char texts[256];
    double *z = (double *)xalloc((size_t)d->R, sizeof *z);
    snprintf(texts, sizeof texts, "the texts for --reward %.200s", r->spec);
    ranked_check(d, texts, c.V, c.T);
    evaluate_all(r->model, d, label, z);
    for (int i = 0; i < d->R; i++) d->score[i] = (float)(c.logistic ? sigmoid(z[i]) : z[i]);
    free(z);
}

#endif
