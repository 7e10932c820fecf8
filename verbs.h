/*
verbs.h: the command line, and the six verbs sft, reward, sample, score, train, eval; with none, the demo.

Every verb reads the files of dataloader.h and model.h and leaves files of the same formats in --out, so each can be
run alone. The same code drives the CPU and the CUDA build.

The way of train, and where to find it:
  policy_respond  responses to the queries, by the policy (sampler.h)
  reward_score    their rewards (reward.h)
  train_run       one training, with the reward's curve, and samples from before and after
    train_loop    the loop (rrhf.h)
*/
#ifndef VERBS_H
#define VERBS_H

#include <stddef.h>      // defines: offsetof
#include "util.h"        // defines: die, die_usage, Out, Rng
#include "model.h"       // defines: Config, checkpoint_open, the backend contract
#include "dataloader.h"  // defines: Ranked
#include "tokenizer.h"   // defines: Tokenizer
#include "rrhf.h"        // defines: Train, train_loop, rrhf_loss
#include "reward.h"      // defines: Reward
#include "sampler.h"     // defines: Sampling, sample
#include "eval.h"        // defines: Figure, eval_mean, eval_perplexity
#include "dev/plot.h"    // defines: plot_png
#include "dev/demo.h"    // defines: demo_review

// ----------------------------------------------------------------------------
// Options: one table makes the struct, the parser, the defaults and --help

enum OptionType { OPTION_STR, OPTION_LIST, OPTION_INT, OPTION_NUM, OPTION_CHOICE };
enum { LIST_MAX = 8 };
typedef struct { const char *text[LIST_MAX]; int n; } TextList;

// X(type, field, default, least, most, verbs, help). The option's name is the field's with '-' for '_'. verbs: who
// reads it, by first letter, a = sample, c = score, d = the demo. CHOICE: the help begins with the choices.
#define OPTIONS(X)                                                                                                     \
    X(STR, model, NULL, 0, 0, "sracte", "FILE: checkpoint to start from (sft without one: random weights)")            \
    X(STR, tokenizer, NULL, 0, 0, "sacte",                                                                             \
      "FILE: vocabulary; needed wherever text is shown; without one end-of-text is the last token")                    \
    X(STR, data, NULL, 0, 0, "sracte",                                                                                 \
      "FILE: ranked responses (sft: or a token stream, cut into sequences as long as the model takes)")                \
    X(STR, out, "out", 0, 0, "sracted", "DIR: where results go")                                                       \
    X(INT, seed, "1337", 0, 2147483647, "sracted", "same seed, same result")                                           \
    X(INT, threads, "0", 0, 4096, "sracted", "CPU threads, 0 = all")                                                   \
    X(CHOICE, dtype, "fp32", 0, 0, "sracted",                                                                          \
      "fp32|bf16: of matrix products; train_rrhfcu has the one it was built for")                                      \
    X(INT, layers, "4", 1, 1024, "s", "blocks of a model made from random weights")                                    \
    X(INT, heads, "4", 1, 1024, "s", "attention heads of such a model")                                                \
    X(INT, channels, "256", 1, 65536, "s", "channels of such a model")                                                 \
    X(INT, context, "128", 2, 65536, "s", "longest sequence of such a model, in tokens")                               \
    X(INT, batch, "64", 1, 1000000, "srt", "queries per optimizer step")                                               \
    X(INT, micro_batch, "0", 0, 1000000, "srcte", "queries at once, 0 = as suits the machine; same result")            \
    X(INT, epochs, "3", 1, 1000000, "srt", "passes over the data")                                                     \
    X(INT, steps, "0", 0, 2147483647, "srt",                                                                           \
      "stop after this many optimizer steps; the schedule still spans --epochs")                                       \
    X(NUM, lr, "2e-5", 0, 1e3, "srt", "learning rate at its highest")                                                  \
    X(NUM, warmup, "0.03", 0, 1, "srt", "fraction of the steps over which it rises, rounded up to whole steps")        \
    X(CHOICE, schedule, "linear", 0, 0, "srt", "linear|cosine|constant: its course after that, if not constant to 0")  \
    X(NUM, weight_decay, "0", 0, 1e3, "srt", "decoupled, on matrices and embeddings only")                             \
    X(NUM, grad_clip, "0", 0, 1e30, "srt", "largest L2 norm of the gradient, 0 = any")                                 \
    X(NUM, beta1, "0.9", 0, 0.999999999, "srt", "AdamW's first moment")                                                \
    X(NUM, beta2, "0.999", 0, 0.999999999, "srt", "AdamW's second moment")                                             \
    X(NUM, eps, "1e-8", 1e-30, 1, "srt", "AdamW's epsilon")                                                            \
    X(INT, shuffle, "1", 0, 1, "srt", "1 = a new order of the queries each epoch")                                     \
    X(NUM, rank_weight, "1", 0, 1e9, "t", "weight of the ranking loss")                                                \
    X(NUM, ft_weight, "1", 0, 1e9, "st", "weight of the fine-tuning loss")                                             \
    X(CHOICE, ft_reduction, "sum", 0, 0, "st", "sum|mean: over the best response's tokens (the paper: sum)")           \
    X(NUM, length_penalty, "1", 0, 10, "cte", "alpha: p_i = log P / n_i^alpha")                                        \
    X(NUM, margin, "0", 0, 1e9, "t", "lambda: margin per place between two rewards")                                   \
    X(INT, max_query_tokens, "0", 0, 65536, "sracte", "cut queries on the left, 0 = not")                              \
    X(INT, max_response_tokens, "0", 0, 65536, "sracte", "cut responses on the right, 0 = not")                        \
    X(STR, policy, NULL, 0, 0, "at", "P|S|SP|B|BP|D|DP|IP-n|OP-k: who responds (see above) [train: P, sample: SP]")    \
    X(CHOICE, draw, "diverse", 0, 0, "t", "diverse|beam|sample: how IP-n, OP-k make responses (paper's IMDB: sample)") \
    X(INT, num_return, "4", 1, 4096, "ate", "new responses per query")                                                 \
    X(INT, num_beams, "4", 1, 256, "at", "beams of B, BP, D, DP")                                                      \
    X(INT, num_beam_groups, "4", 1, 256, "at", "groups of D and DP")                                                   \
    X(NUM, diversity_penalty, "1", 0, 1e3, "at", "what a token costs for each earlier group that has just chosen it")  \
    X(LIST, stop, NULL, 0, 0, "ate",                                                                                   \
      "TEXT: cut new responses before it, with no end-of-text after them; may be given up to 8 times")                 \
    X(NUM, temperature, "1", 0, 1e3, "ate", "of sampling; 0 = greedy")                                                 \
    X(INT, top_k, "0", 0, 65536, "ate", "sample among the k most probable tokens, 0 = all")                            \
    X(NUM, top_p, "1", 0, 1, "ate", "sample among the most probable tokens that make up p")                            \
    X(INT, max_new_tokens, "48", 1, 65536, "ate", "longest completion")                                                \
    X(STR, reward, NULL, 0, 0, "cte",                                                                                  \
      "FILE: a reward model, or cmd:PROGRAM ARGS: a text a line in, a number a line out")                              \
    X(NUM, kl_coef, "0", 0, 1e3, "t", "OP-k: subtract this times log(pi/rho) from the reward, rho the start")          \
    X(STR, reference, NULL, 0, 0, "e", "FILE: the starting policy: best-of-n and KL are measured on it")               \
    X(INT, start_return, "8", 0, 4096, "e", "completions per query of --reference, for best-of-n; 0 = none")           \
    X(STR, perplexity, NULL, 0, 0, "e",                                                                                \
      "FILE: the model under which perplexity is measured [--reference, else --model]")                                \
    X(STR, eval_data, NULL, 0, 0, "t", "FILE: held-out queries; with --reward, the reward's curve during training")    \
    X(INT, eval_every, "0", 0, 2147483647, "t", "optimizer steps between points of that curve, 0 = about ten points")  \
    X(INT, eval_queries, "0", 0, 2147483647, "te", "use only the first so many held-out queries, 0 = all")             \
    X(STR, resume, NULL, 0, 0, "srt", "DIR: go on from its state.bin, bit for bit")                                    \
    X(INT, checkpoint_every, "0", 0, 2147483647, "srt", "optimizer steps between checkpoints, 0 = at the end only")    \
    X(INT, profile, "0", 0, 1, "srt", "1 = tell where the time of a step goes")                                        \
    X(INT, explain, NULL, 0, 2147483647, "t",                                                                         \
      "show the loss at work on query N, before and after one step; save nothing")

#define OPTION_TYPE_STR const char *
#define OPTION_TYPE_LIST TextList
#define OPTION_TYPE_INT int
#define OPTION_TYPE_NUM double
#define OPTION_TYPE_CHOICE int
// o.batch and o.batch_given, was it on the command line, and so on. names: of the start and the policy, in tables.
#define X(type, field, def, least, most, verbs, help) OPTION_TYPE_##type field; int field##_given;
typedef struct { OPTIONS(X) const char *program, *names[2]; } Options;
#undef X

typedef struct {
    const char *field, *def, *verbs, *help;
    enum OptionType type;
    double least, most;
    size_t at, given_at; // where in Options
} OptionRow;

#define X(type, field, def, least, most, verbs, help) \
    {#field, def, verbs, help, OPTION_##type, least, most, offsetof(Options, field), offsetof(Options, field##_given)},
static const OptionRow option_rows[] = {OPTIONS(X)};
#undef X
enum { N_OPTIONS = sizeof option_rows / sizeof *option_rows };

static const char *const verb_names[] = {"sft", "reward", "sample", "score", "train", "eval"};
static const char verb_letters[] = "sracted"; // the last is no verb, but the demo
enum { N_VERBS = 6 };

static inline const char *option_name(const OptionRow *row) { // "--max-new-tokens"
    static char name[64];
    snprintf(name, sizeof name, "--%s", row->field);
    for (char *s = name + 2; *s; s++) if (*s == '_') *s = '-';
    return name;
}

// Which of the choices that the help begins with; -1 = none.
static inline int choice_parse(const OptionRow *row, const char *value) {
    const char *s = row->help;
    for (int i = 0;; i++) {
        size_t n = strcspn(s, "|:");
        if (strlen(value) == n && !memcmp(s, value, n)) return i;
        if (s[n] == ':') return -1;
        s += n + 1;
    }
}

static inline void option_set(Options *o, const OptionRow *row, const char *value) {
    char *at = (char *)o + row->at, *end;
    errno = 0;
    if (!*value && (row->type == OPTION_STR || row->type == OPTION_LIST))
        die_usage("%s '': expected a value; is a variable empty?", option_name(row));
    if (row->type == OPTION_STR) *(const char **)(void *)at = value;
    else if (row->type == OPTION_LIST) {
        TextList *list = (TextList *)(void *)at;
        if (list->n == LIST_MAX) die_usage("%s '%s': expected at most %d times", option_name(row), value, LIST_MAX);
        list->text[list->n++] = value;
    } else if (row->type == OPTION_CHOICE) {
        int i = choice_parse(row, value);
        if (i < 0)
            die_usage("%s '%s': expected one of %.*s", option_name(row), value,
                      (int)strcspn(row->help, ":"), row->help);
        *(int *)(void *)at = i;
    } else {
        double v = row->type == OPTION_INT ? (double)strtoll(value, &end, 10) : strtod(value, &end);
        if (end == value || *end || errno || !(v >= row->least && v <= row->most))
            die_usage("%s '%s': expected %s from %.10g to %.10g", option_name(row), value,
                      row->type == OPTION_INT ? "a whole number" : "a number", row->least, row->most);
        if (row->type == OPTION_INT) *(int *)(void *)at = (int)v;
        else *(double *)(void *)at = v;
    }
}

static inline const OptionRow *option_find(const char *arg) {
    for (int i = 0; i < N_OPTIONS; i++) if (!strcmp(arg, option_name(&option_rows[i]))) return &option_rows[i];
    return NULL;
}

static inline void usage(FILE *f) {
    fprintf(f,
        "usage: train_rrhf [sft|reward|sample|score|train|eval] [--option value ...]\n\n"
        "  (none)  the whole story on made-up reviews, under two minutes; takes --out, --seed, --threads, --dtype\n"
        "  sft     fine-tune, or pretrain, on responses or a token stream -> policy.bin, log.csv, curves.png\n"
        "  reward  train a reward model from labels (k = 1) or preferences (k > 1) -> policy.bin (the reward model),\n"
        "          log.csv, curves.png\n"
        "  sample  complete every query of --data -> sampled.bin; with --tokenizer samples.txt\n"
        "  score   rewards by --reward -> scored.bin; without one p_i by the policy itself, on stdout\n"
        "          a line \"query response p n score\" for each response, n its length\n"
        "  train   RRHF on scored responses -> policy.bin, log.csv, curves.png; with --tokenizer samples.txt; with\n"
        "          --reward and --eval-data reward.csv\n"
        "  eval    reward, perplexity, best-of-n, accuracy, diversity of a policy -> eval.csv; with --tokenizer\n"
        "          samples.txt\n"
        "A finished sft, reward or train leaves settings.txt; one that stopped before leaves state.bin for --resume.\n"
        "\npolicies (the paper's and S): P the data's own responses, S sampled, B beam search, D diverse beam search;\n"
        "SP, BP, DP with the data's own; IP-n n rounds, each answered by the policy that the round before trained;\n"
        "OP-k answered by the policy in training, anew every k steps. train needs --reward for all but P.\n"
        "\nexample: train_rrhf train --model sft.bin --data scored.bin --tokenizer tokenizer.bin --lr 1e-4 --out out\n"
        "\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        const OptionRow *row = &option_rows[i];
        fprintf(f, "  %-22s %s%s%s%s\n", option_name(row), row->help,
                row->def ? " [" : "", row->def ? row->def : "", row->def ? "]" : "");
    }
}

static inline void stdout_check(void) {
    if (fflush(stdout) || ferror(stdout))
        die("stdout: cannot write: %s; free some space or write elsewhere", strerror(errno));
}

// Fills *o from the command line; returns the verb's index, -1 for none.
static inline int options_parse(Options *o, int argc, char **argv) {
    int verb = -1, i = 1;
    memset(o, 0, sizeof *o);
    o->program = argv[0];
    o->names[0] = "start", o->names[1] = "policy";
    for (int k = 0; k < N_OPTIONS; k++) if (option_rows[k].def) option_set(o, &option_rows[k], option_rows[k].def);
    if (argc > 1 && argv[1][0] != '-') {
        for (int v = 0; v < N_VERBS; v++) if (!strcmp(argv[1], verb_names[v])) verb = v;
        if (verb < 0) die_usage("'%s': expected one of sft, reward, sample, score, train, eval; see --help", argv[1]);
        i = 2;
    }
    for (; i < argc; i += 2) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            usage(stdout);
            stdout_check();
            exit(0);
        }
        const OptionRow *row = option_find(argv[i]);
        if (!row) {
            char *value = strchr(argv[i], '=');
            if (value) *value++ = 0;
            if (value && option_find(argv[i]))
                die_usage("'%s=%s': expected two words: %s %s", argv[i], value, argv[i], value);
            die_usage("'%s': no such option; see --help", argv[i]);
        }
        int read = strchr(row->verbs, verb_letters[verb < 0 ? N_VERBS : verb]) != NULL;
        if (!read && verb < 0)
            die_usage("%s: needs a verb before it; the demo takes --out, --seed, --threads and --dtype", argv[i]);
        if (i + 1 >= argc) die_usage("%s: expected a value after it", argv[i]);
        option_set(o, row, argv[i + 1]);
        *(int *)(void *)((char *)o + row->given_at) = 1;
        if (!read) fprintf(stderr, "note: %s has no effect on %s\n", argv[i], verb_names[verb]);
    }
    if (o->explain_given && strcmp(verb_names[verb], "train")) // which saves nothing then; others would
        die_usage("--explain %d: for the train verb only", o->explain);
    evaluate_queries = o->micro_batch;
    if (o->dtype_given) backend_dtype_set(o->dtype ? "bf16" : "fp32");
    return verb;
}

// ----------------------------------------------------------------------------
// What several verbs need

static inline const char *need(const char *value, const char *option, const char *verb) {
    if (!value) die_usage("%s: needed by %s; see --help", option, verb);
    return value;
}

// A policy's checkpoint. option: for the error. training: with room for gradients and moments.
static inline GPT2 *model_open(const char *path, const char *option, int training) {
    Checkpoint f = checkpoint_open(path);
    if (f.c.reward) die("%s %s: a reward model, expected a policy; --reward takes it", option, path);
    return checkpoint_model(&f, f.c, training);
}

// A data file, cut to the limits and checked against the model. A token stream only for sft, as chunks of its context.
static inline Ranked data_open(const Options *o, const char *path, Config c, const char *verb) {
    int stream = data_magic(path) == STREAM_MAGIC;
    int chunk = o->max_response_tokens && o->max_response_tokens < c.T ? o->max_response_tokens + 1 : c.T;
    if (stream && c.T < 2) die("%s: a token stream, but the model's context is %d; expected 2 or more", path, c.T);
    if (stream && strcmp(verb, "sft")) die("%s: a token stream; %s needs a ranked-responses file", path, verb);
    Ranked d = stream ? stream_read(path, chunk) : ranked_read(path);
    ranked_limit(&d, o->max_query_tokens, o->max_response_tokens);
    ranked_check(&d, path, c.V, c.T);
    return d;
}

// The tokenizer, if one was given. It must suit a model's vocabulary V, 0 = there is no model.
static inline Tokenizer *tokenizer_open(const Options *o, int V) {
    if (!o->tokenizer && o->stop.n) die_usage("--stop: needs --tokenizer");
    if (!o->tokenizer) return NULL;
    Tokenizer *t = (Tokenizer *)xalloc(1, sizeof *t);
    *t = tokenizer_read(o->tokenizer);
    if (V && t->V != V)
        die("--tokenizer %s: %d tokens, but the model has %d; use the model's own", o->tokenizer, t->V, V);
    return t;
}

static inline void tokenizer_shut(Tokenizer *t) {
    if (t) tokenizer_free(t);
    free(t);
}

// Without a tokenizer the vocabulary's last id is taken for end-of-text, as it is in GPT-2's.
static inline int end_of_text(Config c, const Tokenizer *t) { return t ? t->eot : c.V - 1; }

static inline Sampling sampling(const Options *o, Config c, const Tokenizer *t) {
    Sampling s = {0};
    s.num_return = o->num_return;
    s.max_new_tokens = o->max_new_tokens;
    s.draw.temperature = o->temperature, s.draw.top_p = o->top_p, s.draw.top_k = o->top_k;
    s.eot = end_of_text(c, t);
    s.seed = (uint64_t)o->seed;
    return s;
}

static inline Beaming beaming(const Options *o, Config c, const Tokenizer *t, int diverse) {
    Beaming b;
    b.num_beams = o->num_beams;
    b.num_beam_groups = diverse ? o->num_beam_groups : 1;
    b.diversity_penalty = o->diversity_penalty;
    b.length_penalty = 1;
    b.num_return = o->num_return;
    b.max_new_tokens = o->max_new_tokens;
    b.eot = end_of_text(c, t);
    return b;
}

// Checked before the work, not within it: queries of d with their completions must fit into the context of m, which
// completes them or judges both. m NULL: a program, which takes texts of any length.
static inline void completions_fit(const Options *o, const Ranked *d, const GPT2 *m, const char *option,
                                   const char *path) {
    int longest = longest_query(d), T = m ? gpt2_config(m).T : INT32_MAX;
    if (longest > T - o->max_new_tokens)
        die("%s %s: context %d, but queries have up to %d tokens and completions %d; lower --max-new-tokens, or cut "
            "with --max-query-tokens", option, path, T, longest, o->max_new_tokens);
}

// The paper's Tables 1 and 10, and S. rounds > 0: IP-n; refresh > 0: OP-k; own: with the data's own responses.
enum RespondBy { BY_DIVERSE, BY_BEAM, BY_SAMPLE, BY_NOBODY }; // the first three in the order of --draw's choices
static const char *const by_names[] = {"diverse", "beam", "sample"};
typedef struct { enum RespondBy by; int own, rounds, refresh; } Policy;

static inline Policy policy_parse(const Options *o, const char *name) {
    static const struct { const char *name; Policy p; } table[] = {
        {"P", {BY_NOBODY, 1, 0, 0}},
        {"S", {BY_SAMPLE, 0, 0, 0}}, {"SP", {BY_SAMPLE, 1, 0, 0}},
        {"B", {BY_BEAM, 0, 0, 0}}, {"BP", {BY_BEAM, 1, 0, 0}},
        {"D", {BY_DIVERSE, 0, 0, 0}}, {"DP", {BY_DIVERSE, 1, 0, 0}}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) if (!strcmp(name, table[i].name)) return table[i].p;
    Policy p = {(enum RespondBy)o->draw, 1, 0, 0};
    char *end;
    long n = strlen(name) > 3 && name[2] == '-' ? strtol(name + 3, &end, 10) : 0;
    if (n < 1 || n > 1000000 || *end || (strncmp(name, "IP", 2) && strncmp(name, "OP", 2)))
        die_usage("--policy '%s': expected one of P, S, SP, B, BP, D, DP, IP-n, OP-k (n, k whole numbers from 1)",
                  name);
    if (name[0] == 'I') p.rounds = (int)n;
    else p.refresh = (int)n;
    return p;
}

// Cuts every new response before the first stop text; a first token that holds one stays, since none may be empty.
// End-of-text is no text, though a stop text may be part of how it is spelled.
static inline void stop_cut(const Options *o, const Tokenizer *t, Ranked *d) {
    if (!o->stop.n) return;
    for (int r = 0; r < d->R; r++) {
        if (d->source[r] == SOURCE_DATA) continue;
        const uint16_t *y = d->tokens + d->resp_at[r];
        int all = d->resp_len[r] - (y[d->resp_len[r] - 1] == t->eot);
        size_t size;
        char *text = tokenizer_text(t, y, (size_t)all, &size), *cut = NULL;
        for (int i = 0; i < o->stop.n; i++) { // no strstr: a zero byte may come before
            char *at = (char *)memmem(text, size, o->stop.text[i], strlen(o->stop.text[i]));
            if (at && (!cut || at < cut)) cut = at;
        }
        int64_t bytes = 0;
        int len = 0, n = 0;
        for (; cut && n < all; n++) { // the tokens that end before the cut
            tokenizer_decode(t, y[n], &len);
            if ((bytes += len) > cut - text) break;
        }
        if (cut) d->resp_len[r] = n ? n : 1;
        free(text);
    }
}

// The responses that a policy trains on: drawn from m, cut at stop texts, not yet scored.
static inline Ranked policy_respond(const Options *o, Policy p, GPT2 *m, const Ranked *d, const Tokenizer *t,
                                    uint64_t seed, const char *label) {
    Config c = gpt2_config(m);
    Sampling s = sampling(o, c, t);
    s.seed = seed;
    Ranked out = p.by == BY_SAMPLE ? sample(m, d, s, p.own, label)
                                     : beam_search(m, d, beaming(o, c, t, p.by == BY_DIVERSE), p.own, label);
    memset(out.score, 0, (size_t)out.R * sizeof *out.score); // a beam's score is no reward
    stop_cut(o, t, &out);
    return out;
}

// Completions of every query by a model, cut at stop texts and scored where rm is not NULL. label: as in sampler.h.
static inline Ranked completions(const Options *o, GPT2 *m, const Ranked *queries, Sampling s, const Tokenizer *t,
                                 Reward *rm, const char *label) {
    Ranked d = sample(m, queries, s, 0, label);
    stop_cut(o, t, &d);
    if (rm) reward_score(rm, &d, *label ? "reward" : "");
    return d;
}

// Text on one line, to be freed: what breaks lines becomes a space.
static inline char *line_text(const Tokenizer *t, const uint16_t *ids, int n, size_t *len) {
    char *text = tokenizer_text(t, ids, (size_t)n, len);
    for (size_t i = 0; i < *len; i++) if ((unsigned char)text[i] < 32) text[i] = ' ';
    return text;
}

static inline void print_text(Out *out, const Tokenizer *t, const uint16_t *ids, int n) {
    size_t len;
    char *text = line_text(t, ids, n, &len);
    out_write(out, text, len);
    out_printf(out, "\n");
    free(text);
}

// The first n queries, shallow: shares the arrays of d.
static inline Ranked ranked_head(const Ranked *d, int n) {
    Ranked h = *d;
    if (n > 0 && n < d->Q) h.Q = n, h.R = d->first[n];
    return h;
}

// backend_start's line, said once and not before the work begins: an error in the options stands alone.
static const char *machine;

static inline void machine_say(void) {
    if (machine && world_size > 1) fprintf(stderr, "%d processes, each: ", world_size);
    if (machine) fprintf(stderr, "%s\n", machine);
    machine = NULL;
}

// The model and the data, and the memory for batches of `micro` queries, 0 = none said. training: as gpt2_bytes has it;
// more: tokens that each query will get besides.
static inline void banner(GPT2 *m, const Ranked *d, const char *verb, int micro, int training, int more) {
    Config c = gpt2_config(m);
    char memory[32] = "";
    if (micro) {
        int bound[4];
        int64_t drawn = (int64_t)more * min_int(micro, d->Q);
        batch_bounds(d, micro, bound);
        tokens_check(micro, drawn);
        int N = bound[0] + (int)drawn, U = c.reward ? bound[3] : bound[1] + (int)drawn;
        snprintf(memory, sizeof memory, "; %.0f MiB", (double)gpt2_bytes(c, training, N, U) / 1048576);
    }
    machine_say();
    fprintf(stderr, "%-8s %s: %d layers, %d channels, %d heads, context %d, vocabulary %d, %.1fM parameters; "
            "%d queries, %d responses%s\n", verb, c.reward ? "reward model" : "policy", c.L, c.C, c.NH, c.T, c.V,
            (double)gpt2_count(c) / 1e6, d->Q, d->R, memory);
}

// ----------------------------------------------------------------------------
// Training: sft, reward and train are one loop

static inline Train train_options(const Options *o, const char *label) {
    Train t = {0};
    t.label = label;
    if (o->resume && access(o->resume, F_OK)) die("--resume %s: %s", o->resume, strerror(errno));
    t.resume = o->resume;
    t.out = o->resume && !o->out_given ? o->resume : o->out;
    t.seed = (uint64_t)o->seed;
    t.batch = o->batch, t.micro_batch = o->micro_batch, t.epochs = o->epochs, t.steps = o->steps;
    t.shuffle = o->shuffle, t.checkpoint_every = o->checkpoint_every, t.profile = o->profile;
    t.schedule = (enum Schedule)o->schedule;
    t.warmup = o->warmup, t.grad_clip = o->grad_clip;
    t.adam.lr = o->lr, t.adam.beta1 = o->beta1, t.adam.beta2 = o->beta2, t.adam.eps = o->eps;
    t.adam.weight_decay = o->weight_decay;
    t.objective.rank_weight = o->rank_weight, t.objective.ft_weight = o->ft_weight;
    t.objective.length_penalty = o->length_penalty, t.objective.margin = o->margin;
    t.objective.ft_mean = o->ft_reduction;
    t.loss = rrhf_loss;
    return t;
}

// The reward's curve during training: mean reward of one fresh completion of each held-out query.
typedef struct { double step, mean, err; } CurvePoint; // err: one standard error

typedef struct {
    Ranked data;         // the held-out queries
    Sampling sampling;
    int every, last;     // a point every so many steps, and at the last
    CurvePoint *point;   // (n)
    int n;
    size_t cap;
    const char *out;
} Curve;

// What train works with.
typedef struct {
    const Options *o;
    GPT2 *m, *start;      // the policy in training; its frozen start, for --kl-coef
    Tokenizer *tok;
    Reward reward, *rm;   // rm = NULL: none
    Policy policy;
    Ranked d, held;       // --data, --eval-data
    Curve curve;          // of the run that is going on
} Trainee;

static inline void curve_write(const Curve *c) {
    char path[RRHF_PATH_MAX];
    Out out = out_open(path_join(path, c->out, "reward.csv"));
    out_printf(&out, REWARD_HEADER "\n");
    for (int i = 0; i < c->n; i++)
        out_printf(&out, "%.0f,%.6g,%.6g,%d\n", c->point[i].step, c->point[i].mean, c->point[i].err, c->data.Q);
    out_close(&out);
}

// A resumed run keeps the points that were there.
static inline void curve_read(Curve *c, const char *dir) {
    char path[RRHF_PATH_MAX], line[256];
    FILE *f = fopen(path_join(path, dir, "reward.csv"), "r");
    for (int n = 0; f && fgets(line, sizeof line, f); n++) {
        CurvePoint p = {0, 0, 0};
        double before = c->n ? c->point[c->n - 1].step : -1;
        if (!n && !strcmp(line, REWARD_HEADER "\n")) continue;
        if (sscanf(line, "%lf,%lf,%lf", &p.step, &p.mean, &p.err) != 3 || !isfinite(p.mean + p.err) ||
            !(p.step > before && p.step <= INT32_MAX) || p.step != floor(p.step))
            die("%s:%d: '%.40s', expected a later step, a reward and its error; remove the file, or start without "
                "--resume", path, n + 1, line);
        XGROW(c->point, c->cap, (size_t)c->n + 1);
        c->point[c->n++] = p;
    }
    int end = c->n ? (int)c->point[c->n - 1].step : 0;
    if (end % c->every && end != c->last) c->n--; // where --steps ended it
    if (f) fclose(f);
}

// The loop's `after`.
static inline void curve_point(void *trainee, int step) {
    Trainee *a = (Trainee *)trainee;
    Curve *c = &a->curve;
    if (step % c->every && step != c->last) return;
    Ranked d = completions(a->o, a->m, &c->data, c->sampling, a->tok, a->rm, "");
    double *value = (double *)xalloc((size_t)d.R, sizeof *value);
    for (int r = 0; r < d.R; r++) value[r] = d.score[r];
    Figure f = figure_mean(value, d.R); // one response per query
    CurvePoint p = {(double)step, f.mean, f.err};
    while (c->n && c->point[c->n - 1].step >= step) c->n--; // a resumed run comes by again
    XGROW(c->point, c->cap, (size_t)c->n + 1);
    c->point[c->n++] = p;
    curve_write(c);
    free(value);
    ranked_free(&d);
}

// curves.png: the paper's Figure 3, losses and reward over optimizer steps. A reward model has one loss and no curve.
static inline int curves_draw(const Train *t, const Log *log, const Curve *curve, int reward_model) {
    char path[RRHF_PATH_MAX];
    int n = log->n, points = curve ? curve->n : 0;
    double *x = (double *)xalloc((size_t)n * 5 + (size_t)points * 3, sizeof *x), *rank = x + n, *ft = rank + n;
    double *rank_s = ft + n, *ft_s = rank_s + n, *cx = ft_s + n, *cy = cx + points, *ce = cy + points;
    for (int i = 0; i < n; i++) {
        const LogRow *r = &log->row[i];
        x[i] = r->step, rank[i] = reward_model ? 0 : r->rank_loss, ft[i] = reward_model ? r->loss : r->ft_loss;
    }
    for (int i = 0; i < points; i++)
        cx[i] = curve->point[i].step, cy[i] = curve->point[i].mean, ce[i] = curve->point[i].err;
    int window = n / 15 > 1 ? n / 15 : 1, has_rank = 0;
    plot_smooth(rank_s, rank, n, window);
    plot_smooth(ft_s, ft, n, window);
    for (int i = 0; i < n; i++) has_rank |= rank[i] != 0;
    const char *name = reward_model ? "loss of the reward model" : "fine-tuning loss";
    PlotSeries loss[4] = {plot_series(name, x, ft_s, n, PLOT_LINE, 0),
                          plot_series(NULL, x, ft, n, PLOT_LINE | PLOT_FAINT, 0),
                          plot_series("ranking loss (right)", x, rank_s, n, PLOT_LINE, 1),
                          plot_series(NULL, x, rank, n, PLOT_LINE | PLOT_FAINT, 1)};
    loss[2].right = loss[3].right = 1;
    PlotSeries reward = plot_series(NULL, cx, cy, points, PLOT_LINE | PLOT_POINTS, 2);
    reward.yerr = ce;
    PlotPanel p[2];
    memset(p, 0, sizeof p);
    p[0].title = "Losses", p[0].label[PLOT_X] = p[1].label[PLOT_X] = "optimizer step";
    p[0].label[PLOT_LEFT] = reward_model ? name
                          : t->objective.ft_mean ? "fine-tuning loss, per token" : "fine-tuning loss, per response";
    p[0].label[PLOT_RIGHT] = has_rank ? "ranking loss" : NULL;
    p[0].series = loss, p[0].n_series = has_rank ? 4 : 2;
    p[1].title = "Reward of fresh completions", p[1].label[PLOT_LEFT] = "mean reward, one standard error";
    p[1].series = &reward, p[1].n_series = 1;
    int drawn = plot_png(path_join(path, t->out, "curves.png"), p, points ? 2 : 1, points ? 1400 : 800, 520);
    free(x);
    return drawn;
}

enum { SHOWN = 8 }; // queries in samples.txt

// samples.txt: completions from before and after training, or, without before, new ones and the data's own.
static inline void samples_write(const char *dir, const Tokenizer *t, const Ranked *before, const Ranked *after,
                                 int scored) {
    char path[RRHF_PATH_MAX];
    Out out = out_open(path_join(path, dir, "samples.txt"));
    for (int q = 0; q < after->Q; q++) {
        out_printf(&out, "--- query %d\n", q);
        print_text(&out, t, after->tokens + after->query_at[q], after->query_len[q]);
        const Ranked *both[2] = {before, after};
        for (int i = 0; i < 2; i++)
            for (int r = both[i] ? both[i]->first[q] : 0; both[i] && r < both[i]->first[q + 1]; r++) {
                const char *what = i ? "after: " : "before:";
                if (!before) what = after->source[r] == SOURCE_DATA ? "data:  " : "sample:";
                out_printf(&out, "%s", what);
                if (scored) out_printf(&out, " [%.3f]", both[i]->score[r]);
                out_printf(&out, " |"); // the text may begin in the middle of a word
                print_text(&out, t, both[i]->tokens + both[i]->resp_at[r], both[i]->resp_len[r]);
            }
    }
    out_close(&out);
}

static inline Ranked samples_take(const Options *o, GPT2 *m, const Ranked *d, const Tokenizer *tok, Reward *reward) {
    Sampling s = sampling(o, gpt2_config(m), tok);
    Ranked h = ranked_head(d, SHOWN);
    int room = gpt2_config(m).T - longest_query(&h); // for show: no reason to stop a training that samples nothing else
    s.max_new_tokens = min_int(s.max_new_tokens, room);
    s.num_return = 1;
    return completions(o, m, &h, s, tok, reward, "");
}

static inline int resumable_exit(const Options *o, const Train *t, int stopped) {
    if (stopped && exists_in(t->out, "settings.txt")) // Ctrl-C came during the last step
        fprintf(stderr, "\ninterrupted; the run in %s is finished\n", t->out);
    else if (stopped)
        fprintf(stderr, "\ninterrupted; everything is saved in %s. To go on: the same command with --resume %s\n"
                "(%s %s ... --resume %s)\n", t->out, t->out, o->program, t->label, t->out);
    return stopped;
}

// Where a training leaves its results. Checked before it, not after: can policy.bin be replaced, is another run at it?
// The first folder stays locked till the end; those of IP-n's rounds and of the demo's steps are within it.
static inline void make_out(const char *dir) {
    static const char *const names[] = {"policy.bin", "log.csv", "state.bin", "settings.txt", "curves.png",
                                        "samples.txt", "reward.csv", "scored.bin"};
    static int locked;
    char path[RRHF_PATH_MAX];
    make_dir(dir);
    if (!locked++ && !world_rank && flock(open(dir, O_RDONLY | O_CLOEXEC), LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        die("%s: another run is writing here; write elsewhere", dir);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) out_check(path_join(path, dir, names[i]));
}

// Is what a run begins with, the option's file, one that it will replace, the name in its --out?
static inline void replaced_note(const Train *t, const char *name, const char *option, const char *file) {
    char path[RRHF_PATH_MAX];
    if (file && !t->resume && same_path(path_join(path, t->out, name), file))
        fprintf(stderr, "note: %s is this run's %s and will be replaced, so that the run cannot be resumed if it is "
                "stopped; another --out keeps it\n", path, option);
}

// sft and reward from here on: the loop, and its curves.
static inline int train_plain(const Options *o, GPT2 *m, Ranked *d, Train *t) {
    Log log = {NULL, 0, 0};
    int stopped = 0;
    make_out(t->out);
    replaced_note(t, "policy.bin", "--model", o->model);
    train_settings(t, m, d);
    if (!train_finished(t, d)) {
        banner(m, d, t->label, t->micro_batch, step_at_once(t, t->batch) ? 1 : 2, 0);
        stopped = train_loop(m, d, t, &log);
        curves_draw(t, &log, NULL, gpt2_config(m).reward);
        train_done(t, d, &log);
    }
    free(log.row);
    gpt2_free(m);
    ranked_free(d);
    return resumable_exit(o, t, stopped);
}

// A policy of random weights, for the vocabulary of the tokenizer or of the data.
static inline GPT2 *model_random(const Options *o) {
    Config c = {0};
    c.T = o->context, c.L = o->layers, c.NH = o->heads, c.C = o->channels;
    if (c.C % c.NH) die_usage("--channels %d: expected a multiple of --heads %d", c.C, c.NH);
    if (o->tokenizer) {
        Tokenizer t = tokenizer_read(o->tokenizer);
        c.V = t.V;
        tokenizer_free(&t);
    } else if (data_magic(o->data) == RANKED_MAGIC) {
        Ranked d = ranked_read(o->data);
        c.V = d.V;
        ranked_free(&d);
    } else die_usage("--tokenizer: needed to size a new model's vocabulary; or give --model");
    c.Vp = vocabulary_padded(c.V);
    float *params = (float *)xalloc(gpt2_count(c), sizeof *params);
    gpt2_random(c, (uint64_t)o->seed, params);
    GPT2 *m = gpt2_build(c, params, 1);
    free(params);
    return m;
}

static inline int verb_sft(const Options *o) {
    need(o->data, "--data", "sft");
    GPT2 *m = o->model ? model_open(o->model, "--model", 1) : model_random(o);
    Ranked d = data_open(o, o->data, gpt2_config(m), "sft");
    for (int q = 0; q < d.Q; q++)
        if (d.first[q + 1] - d.first[q] != 1)
            die("%s: query %d has %d responses; sft takes one each (train ranks several)",
                o->data, q, d.first[q + 1] - d.first[q]);
    Train t = train_options(o, "sft");
    return train_plain(o, m, &d, &t);
}

// A policy becomes a reward model by growing a scalar head, zero at first.
static inline int verb_reward(const Options *o) {
    Checkpoint f = checkpoint_open(need(o->model, "--model", "reward"));
    Config c = f.c;
    Ranked d = data_open(o, need(o->data, "--data", "reward"), c, "reward");
    int labels = reward_data_is_labels(&d, o->data), differ = 0;
    for (int r = 0; r < d.R; r++) differ |= d.score[r] != d.score[0];
    if (!differ) die("%s: every label is %g; a reward model needs good and bad responses", o->data, d.score[0]);
    c.reward = 1;
    c.logistic = labels;
    GPT2 *m = checkpoint_model(&f, c, 1);
    Train t = train_options(o, "reward");
    t.loss = labels ? logistic_loss : pairwise_loss;
    return train_plain(o, m, &d, &t);
}

// The loss at work on query q of d, in the words of rrhf.h.
static inline void explain_table(const Train *t, StepRoom *s, GPT2 *m, const Ranked *d, int q, const char *when) {
    forward_values(m, s, d, &q, 1);
    const Objective *o = &t->objective;
    const float *r = s->b.score;
    int k = s->b.R, wrong = 0, best = rrhf_best(k, r);
    Loss l = t->loss(o, k, s->value, s->b.resp_len, r, s->p, s->c);
    printf("%s\n  i  reward r_i  tokens n_i    log P(y_i|x)         p_i    coefficient c_i\n", when);
    for (int i = 0; i < k; i++)
        printf("%3d  %10.4g  %10d  %14.6f  %10.6f  %17.9f%s\n", i, r[i], s->b.resp_len[i], s->value[i], s->p[i],
               s->c[i], i == best ? "  best: imitated" : "");
    for (int i = 0; i < k; i++)
        for (int j = 0; j < k; j++) {
            if (!(r[i] < r[j])) continue;
            double violation = rrhf_violation(o, k, s->p, r, i, j);
            wrong += s->p[i] > s->p[j];
            printf("  pair r_%d < r_%d: hinge max(0, p_%d - p_%d%s) = %.6f%s\n", i, j, i, j,
                   o->margin != 0 ? " + margin" : "", violation > 0 ? violation : 0,
                   s->p[i] > s->p[j] ? "   out of order" : "");
        }
    printf("  %d pair%s out of order; L_rank %.6f, L_ft %.6f, L %.6f\n\n", wrong, wrong == 1 ? "" : "s",
           l.rank, l.ft, l.loss);
}

// --explain N: the loss at work on query N alone, before and after one step. Nothing is saved.
static inline int explain(const Options *o, GPT2 *m, const Ranked *d, const Tokenizer *tok) {
    int q = o->explain;
    if (q >= d->Q) die_usage("--explain %d: the data have queries 0 to %d", q, d->Q - 1);
    int first = d->first[q], end = d->first[q + 1];
    Train t = train_options(o, "explain");
    machine_say();
    t.micro_batch = 1;
    StepRoom s = step_room(m, d, 1);
    printf("query %d of %s, %d responses\n", q, o->data, end - first);
    for (int r = first - 1; tok && r < end; r++) {
        size_t len;
        char *text = r < first ? line_text(tok, d->tokens + d->query_at[q], d->query_len[q], &len)
                               : line_text(tok, d->tokens + d->resp_at[r], d->resp_len[r], &len);
        if (r < first) printf("  x   %.*s\n", (int)len, text);
        else printf("  y_%-2d%.*s\n", r - first, (int)len, text);
        free(text);
    }
    printf("\n");
    explain_table(&t, &s, m, d, q, "before the step");
    double norm;
    int64_t tokens = 0;
    train_step(m, &t, &s, d, &q, 1, t.adam.lr, 1, &norm, &tokens);
    char when[128];
    snprintf(when, sizeof when, "after one AdamW step on this query alone, lr %g, gradient norm %.6g", t.adam.lr, norm);
    explain_table(&t, &s, m, d, q, when);
    step_room_free(&s);
    return 0;
}

static inline Curve curve_open(const Trainee *a, const Train *t, const Ranked *d) {
    Curve c = {0};
    const Options *o = a->o;
    int total = train_steps(t, d);
    c.out = t->out;
    c.sampling = sampling(o, gpt2_config(a->m), a->tok);
    c.data = ranked_head(&a->held, o->eval_queries);
    c.sampling.num_return = 1;
    c.last = t->steps ? min_int(t->steps, total) : total;
    c.every = o->eval_every ? o->eval_every : (total + 9) / 10; // of the whole: a run in parts has the same points
    return c;
}

// reward - kl_coef log(pi/rho) per sequence, pi the policy that is being trained.
static inline void kl_shape(const Trainee *a, Ranked *d) {
    double *pi = (double *)xalloc((size_t)d->R * 2, sizeof *pi), *rho = pi + d->R;
    evaluate_all(a->m, d, "", pi);
    evaluate_all(a->start, d, "", rho);
    for (int r = 0; r < d->R; r++) d->score[r] -= (float)(a->o->kl_coef * (pi[r] - rho[r]));
    free(pi);
}

// OP-k's hook in the loop: answers and scores the n queries.
static inline Ranked online_answer(void *trainee, const Ranked *d, const int *queries, int n, int step) {
    Trainee *a = (Trainee *)trainee;
    Ranked ask = {0};
    ask.V = d->V;
    for (int i = 0; i < n; i++) policy_query(&ask, d, queries[i], 1);
    Rng rng = rng_make((uint64_t)a->o->seed, RNG_SAMPLE, (uint64_t)step + 1);
    Ranked out = policy_respond(a->o, a->policy, a->m, &ask, a->tok, rng_u64(&rng), "");
    reward_score(&a->reward, &out, "");
    if (a->start) kl_shape(a, &out);
    ranked_free(&ask);
    return out;
}

// One run of the loop over d into t->out, with the reward's curve and samples from before and after.
static inline int train_run(Trainee *a, Train *t, const Ranked *d) {
    const Options *o = a->o;
    Log log = {NULL, 0, 0};
    Curve *curve = &a->curve;
    Ranked before, after;
    const Ranked *shown = o->eval_data ? &a->held : &a->d;
    make_out(t->out);
    train_settings(t, a->m, d);
    if (train_finished(t, d)) return 0;
    if (o->eval_data && a->rm) {
        *curve = curve_open(a, t, d);
        if (t->resume) curve_read(curve, t->resume);
        t->after = curve_point;
    }
    banner(a->m, d, "train", t->micro_batch, step_at_once(t, t->batch) ? 1 : 2, t->answer_tokens);
    if (a->tok) before = samples_take(o, a->m, shown, a->tok, a->rm);
    int stopped = train_loop(a->m, d, t, &log);
    if (a->tok) {
        after = samples_take(o, a->m, shown, a->tok, a->rm);
        samples_write(t->out, a->tok, &before, &after, a->rm != NULL);
        ranked_free(&before);
        ranked_free(&after);
    }
    if (!curves_draw(t, &log, curve, 0))
        fprintf(stderr, "curves.png: not drawn; install stb_image_write (Debian: libstb-dev) and make again\n");
    train_done(t, d, &log);
    free(log.row);
    free(curve->point);
    memset(curve, 0, sizeof *curve);
    return stopped;
}

// Draws, scores and keeps the responses of an offline policy, then trains on them. round: 0, or IP-n's from 1.
static inline int train_round(Trainee *a, Train *t, int round) {
    char path[RRHF_PATH_MAX];
    Ranked drawn;
    uint64_t seed = (uint64_t)a->o->seed + (uint64_t)(round > 1 ? round - 1 : 0);
    make_out(t->out);
    machine_say();
    if (t->resume) drawn = ranked_read(path_join(path, t->resume, "scored.bin")); // what the interrupted run trained on
    else {
        drawn = policy_respond(a->o, a->policy, a->m, &a->d, a->tok, seed, "sample");
        reward_score(&a->reward, &drawn, "score");
    }
    if (!t->resume || !same_path(t->resume, t->out)) ranked_write(path_join(path, t->out, "scored.bin"), &drawn);
    int stopped = train_run(a, t, &drawn);
    ranked_free(&drawn);
    return stopped;
}

static inline void round_load(Trainee *a, const char *dir) {
    char path[RRHF_PATH_MAX];
    gpt2_free(a->m);
    a->m = model_open(path_join(path, dir, "policy.bin"), "--resume", 1);
}

// Removes what an earlier run's rounds left in --out, where a later --resume must not take it for this one's. Dies
// before it removes anything if the start is among it.
static inline void rounds_clear(const Train *t, const char *start) {
    static const char *const marks[] = {"policy.bin", "state.bin", "settings.txt"};
    char dir[RRHF_PATH_MAX], path[RRHF_PATH_MAX], name[32];
    int rounds = 0;
    for (;; rounds++) {
        snprintf(name, sizeof name, "round-%d", rounds + 1);
        if (!exists_in(t->out, name)) break;
        if (same_path(path_join(path, path_join(dir, t->out, name), "policy.bin"), start))
            die("--model %s: this run would remove it first; choose another --out, or go on with --resume", path);
    }
    for (int i = 1; i <= rounds; i++) {
        snprintf(name, sizeof name, "round-%d", i);
        for (int k = 0; k < 3; k++) unlink(path_join(path, path_join(dir, t->out, name), marks[k]));
    }
    unlink(path_join(path, t->out, "settings.txt")); // of another policy's run, whose result is replaced
}

// IP-n: each round starts from the policy that the one before trained, and keeps its results in out/round-i. A resumed
// one that has finished is checked against its settings.txt and passed by; one that has not begun begins.
static inline int train_rounds(Trainee *a, const Train *t) {
    char dir[RRHF_PATH_MAX], path[RRHF_PATH_MAX], name[32];
    make_out(t->out);
    if (!t->resume) rounds_clear(t, a->o->model);
    else if (!exists_in(t->resume, "round-1"))
        die("--resume %s: no round-1 in it to go on from; start without --resume", t->resume);
    snprintf(name, sizeof name, "round-%d", a->policy.rounds + 1);
    if (t->resume && exists_in(t->resume, name))
        die("--policy IP-%d: --resume %s has a %s already; ask for more rounds", a->policy.rounds, t->resume, name);
    for (int i = 1; i <= a->policy.rounds; i++) {
        Train round = *t;
        snprintf(name, sizeof name, "round-%d", i);
        round.out = path_join(dir, t->out, name);
        round.label = name;
        round.resume = t->resume && (exists_in(dir, "state.bin") || exists_in(dir, "settings.txt")) ? dir : NULL;
        if (train_round(a, &round, i)) return 1;
        round_load(a, dir); // with a new optimizer
    }
    gpt2_save(a->m, path_join(path, t->out, "policy.bin"));
    return 0;
}

// What decides the responses and their scores, but for a reward program: one that failed may be resumed with a better
// one.
static inline void response_settings(const Trainee *a, char *text, size_t size) {
    const Options *o = a->o;
    uint64_t stops = HASH64;
    if (a->policy.by == BY_NOBODY) return;
    for (int i = 0; i < o->stop.n; i++) stops = hash64(stops, o->stop.text[i], strlen(o->stop.text[i]) + 1);
    snprintf(text, size, "draw %s\nown %d\nqueries #%016" PRIx64 "\nnum-return %d\nnum-beams %d\nnum-beam-groups %d\n"
             "diversity-penalty %.9g\ntemperature %.9g\ntop-k %d\ntop-p %.9g\nmax-new-tokens %d\nkl-coef %.9g\n"
             "stop #%016" PRIx64 "\nend-of-text %d\nreward #%016" PRIx64 "\n",
             by_names[a->policy.by], a->policy.own, ranked_hash(&a->d), o->num_return, o->num_beams,
             o->num_beam_groups, o->diversity_penalty, o->temperature, o->top_k, o->top_p, o->max_new_tokens,
             o->kl_coef, stops, end_of_text(gpt2_config(a->m), a->tok),
             a->reward.model ? gpt2_hash(a->reward.model) : 0);
}

static inline int verb_train(const Options *o) {
    Trainee a = {0};
    a.o = o;
    a.policy = policy_parse(o, o->policy ? o->policy : "P");
    a.m = model_open(need(o->model, "--model", "train"), "--model", 1);
    Config c = gpt2_config(a.m);
    a.d = data_open(o, need(o->data, "--data", "train"), c, "train");
    a.tok = tokenizer_open(o, c.V);
    if (o->explain_given && a.policy.by != BY_NOBODY)
        die_usage("--explain %d: shows the data's own responses (--policy P); make others with sample and score",
                  o->explain);
    if (o->explain_given) return explain(o, a.m, &a.d, a.tok);
    if (a.policy.by != BY_NOBODY) need(o->reward, "--reward", "every --policy but P");
    if (o->kl_coef > 0 && !a.policy.refresh) die_usage("--kl-coef: for --policy OP-k only");
    Train t = train_options(o, "train");
    if (a.policy.rounds && t.steps)
        die_usage("--steps %d: IP-n trains whole rounds; shorten them with --epochs", t.steps);
    if (a.policy.rounds && t.resume && strcmp(t.resume, t.out) && !same_path(t.resume, t.out))
        die_usage("--out %s: the rounds of IP-n are resumed in place; leave it out", t.out);
    if (!a.policy.rounds) replaced_note(&t, "policy.bin", "--model", o->model);
    if (!a.policy.rounds && !a.policy.refresh && a.policy.by != BY_NOBODY)
        replaced_note(&t, "scored.bin", "--data", o->data);
    if (o->reward) a.reward = reward_open(o->reward, a.tok, c.V), a.rm = &a.reward;
    if (o->kl_coef > 0) a.start = model_open(o->model, "--model", 0);
    if (o->eval_data && !o->reward) fprintf(stderr, "note: --eval-data without --reward: no reward's curve\n");
    if (o->eval_data) a.held = data_open(o, o->eval_data, c, "train");
    Ranked judged = ranked_head(&a.held, o->eval_queries);
    const Ranked *asked[2] = {a.policy.by != BY_NOBODY ? &a.d : NULL, a.rm && judged.Q ? &judged : NULL};
    for (int i = 0; i < 2; i++)
        if (asked[i]) {
            completions_fit(o, asked[i], a.m, "--model", o->model);
            completions_fit(o, asked[i], a.reward.model, "--reward", o->reward);
        }
    response_settings(&a, t.responses, sizeof t.responses);
    t.refresh = a.policy.refresh, t.answer = online_answer, t.context = &a;
    if (t.refresh) t.answer_tokens = o->num_return * o->max_new_tokens;
    // IP-n: rounds, each a train_round. OP-k, whose responses the loop asks for, and P train on the data as they are.
    // Every other policy: one train_round.
    int stopped = a.policy.rounds ? train_rounds(&a, &t)
                : a.policy.refresh || a.policy.by == BY_NOBODY ? train_run(&a, &t, &a.d) : train_round(&a, &t, 0);
    ranked_free(&a.d);
    ranked_free(&a.held);
    if (a.rm) reward_close(a.rm);
    tokenizer_shut(a.tok);
    gpt2_free(a.m);
    gpt2_free(a.start);
    return resumable_exit(o, &t, stopped);
}

// ----------------------------------------------------------------------------
// sample and score

static inline int verb_sample(const Options *o) {
    char path[RRHF_PATH_MAX];
    GPT2 *m = model_open(need(o->model, "--model", "sample"), "--model", 0);
    Config c = gpt2_config(m);
    Ranked d = data_open(o, need(o->data, "--data", "sample"), c, "sample");
    Tokenizer *tok = tokenizer_open(o, c.V);
    Policy p = policy_parse(o, o->policy ? o->policy : "SP");
    if (p.by == BY_NOBODY || p.rounds || p.refresh)
        die_usage("--policy %s: sample takes S, SP, B, BP, D or DP", o->policy);
    make_dir(o->out);
    out_check(path_join(path, o->out, "sampled.bin"));
    banner(m, &d, "sample", 0, 0, 0);
    Ranked out = policy_respond(o, p, m, &d, tok, (uint64_t)o->seed, "sample");
    ranked_write(path, &out);
    printf("%s\n", path);
    if (tok) {
        Ranked shown = ranked_head(&out, SHOWN);
        samples_write(o->out, tok, NULL, &shown, 0);
    }
    ranked_free(&d);
    ranked_free(&out);
    tokenizer_shut(tok);
    gpt2_free(m);
    return 0;
}

// p_i of every response under a policy (equation 1).
static inline void policy_scores(GPT2 *m, const Ranked *d, double length_penalty, const char *label, double *p) {
    evaluate_all(m, d, label, p);
    for (int r = 0; r < d->R; r++) p[r] = rrhf_score(p[r], d->resp_len[r], length_penalty);
}

static inline int verb_score(const Options *o) {
    char path[RRHF_PATH_MAX];
    const char *data = need(o->data, "--data", "score");
    Reward reward = {0};
    Config c = {0};
    GPT2 *m = NULL;
    Tokenizer *tok = reward_is_command(o->reward) ? tokenizer_open(o, 0) : NULL;
    if (o->reward) reward = reward_open(o->reward, tok, 0);
    else m = model_open(need(o->model, "--model (or --reward)", "score"), "--model", 0);
    GPT2 *judge = m ? m : reward.model; // NULL: a command, which takes a text of any length
    if (judge) c = gpt2_config(judge);
    else c.T = 1 << 20, c.V = tok->V;
    Ranked d = data_open(o, data, c, "score");
    int to_file = !m || o->out_given;
    if (to_file) {
        make_dir(o->out);
        out_check(path_join(path, o->out, "scored.bin"));
    }
    if (judge) banner(judge, &d, "score", evaluate_micro(judge, &d), 0, 0);
    if (m) {
        double *p = (double *)xalloc((size_t)d.R, sizeof *p);
        policy_scores(m, &d, o->length_penalty, "score", p);
        for (int q = 0; q < d.Q; q++)
            for (int r = d.first[q]; r < d.first[q + 1]; r++)
                if (printf("%d %d %.9g %d %.9g\n", q, r - d.first[q], p[r], d.resp_len[r], d.score[r]) < 0) break;
        stdout_check();
        for (int r = 0; r < d.R; r++) d.score[r] = (float)p[r];
        free(p);
    } else reward_score(&reward, &d, "score");
    reward_close(&reward);
    if (to_file) {
        ranked_write(path, &d);
        if (!m) printf("%s\n", path);
    }
    ranked_free(&d);
    gpt2_free(m);
    tokenizer_shut(tok);
    return 0;
}

// ----------------------------------------------------------------------------
// eval

typedef struct { char name[32]; Figure figure[FIGURES]; } EvalRow;

enum { EVAL_ROWS = 16 }; // the start, best of 2, 4, .. 4096, the policy

static inline void figure_print(FILE *f, Figure v, int decimals) {
    char cell[64];
    figure_text(cell, v, decimals);
    fprintf(f, "  %-17s", cell);
}

static inline void eval_print(FILE *f, const EvalRow *rows, int n, const Options *o, int queries) {
    fprintf(f, "\n%-10s  %-17s  %-17s  %-17s  %-17s  %-17s  %s\n", "policy", "reward", "perplexity", "tokens",
            "KL to start", "accuracy of p_i", "distinct-1/2");
    for (int i = 0; i < n; i++) {
        const Figure *v = rows[i].figure;
        fprintf(f, "%-10s", rows[i].name);
        figure_print(f, v[REWARD], 3);
        figure_print(f, v[PERPLEXITY], 2);
        figure_print(f, v[TOKENS], 1);
        figure_print(f, v[KL], 2);
        figure_print(f, v[ACCURACY], 3);
        if (!v[DISTINCT_1].n) fprintf(f, "  -\n");
        else fprintf(f, "  %.3f / %.3f\n", v[DISTINCT_1].mean, v[DISTINCT_2].mean);
    }
    fprintf(f, "%d held-out queries, %d completions each", queries, o->num_return);
    if (n > 1) fprintf(f, " (%d of the start)", o->start_return);
    fprintf(f, "; +- one standard error over queries; perplexity under %s\n",
            o->perplexity ? o->perplexity : o->reference ? "the start" : "the policy itself");
}

static inline void eval_csv(const char *dir, const EvalRow *rows, int n) {
    char path[RRHF_PATH_MAX];
    Out out = out_open(path_join(path, dir, "eval.csv"));
    out_printf(&out, EVAL_HEADER "\n");
    for (int i = 0; i < n; i++)
        for (int j = 0; j < FIGURES; j++) {
            Figure f = rows[i].figure[j];
            if (f.n) out_printf(&out, "%s,%s,%.6g,%.6g,%d\n", rows[i].name, figure_names[j], f.mean, f.err, f.n);
        }
    out_close(&out);
}

// The completions d of one policy as a row. judge, pi, rho (R): their log-probabilities under the judge of perplexity,
// under the policy and under the start (NULL: no KL). best > 0: the best of so many; k: completions that distinct-n
// counts.
static inline EvalRow eval_row(const char *name, const Ranked *d, const double *judge, const double *pi,
                               const double *rho, int best, int k, int has_reward) {
    EvalRow row = {0};
    Figure *f = row.figure;
    if (best) snprintf(row.name, sizeof row.name, "best-of-%d", best);
    else snprintf(row.name, sizeof row.name, "%s", name);
    double *v = (double *)xalloc((size_t)d->R * 2, sizeof *v), *weight = v + d->R;
    eval_weights(d, best, weight);
    for (int r = 0; r < d->R; r++) v[r] = d->score[r];
    if (has_reward) f[REWARD] = eval_mean(d, v, weight);
    for (int r = 0; r < d->R; r++) v[r] = d->resp_len[r];
    f[TOKENS] = eval_mean(d, v, weight);
    for (int r = 0; rho && r < d->R; r++) v[r] = pi[r] - rho[r];
    if (rho) f[KL] = eval_mean(d, v, weight);
    f[PERPLEXITY] = eval_perplexity(d, judge, weight);
    if (!best) f[DISTINCT_1] = eval_distinct(d, 1, k), f[DISTINCT_2] = eval_distinct(d, 2, k); // else no set of texts
    free(v);
    return row;
}

// Accuracy of p_i as a reward model: on pairs whose order the scores of d tell.
static inline Figure eval_pairs(GPT2 *m, const Ranked *d, double length_penalty) {
    double *p = (double *)xalloc((size_t)d->R, sizeof *p);
    policy_scores(m, d, length_penalty, "", p);
    Figure f = eval_accuracy(d, d->score, p);
    free(p);
    return f;
}

// Another policy, to judge the responses of d and completions of its queries, which may be longer.
static inline GPT2 *eval_open(const Options *o, const char *path, const char *option, Config c, const Ranked *d) {
    GPT2 *m = path ? model_open(path, option, 0) : NULL;
    if (!m) return NULL;
    char texts[256];
    int V = gpt2_config(m).V, T = gpt2_config(m).T;
    if (V != c.V)
        die("%s %s: vocabulary %d, the policy has %d; give one with the policy's tokenizer", option, path, V, c.V);
    completions_fit(o, d, m, option, path);
    snprintf(texts, sizeof texts, "the texts for %s %.200s", option, path);
    ranked_check(d, texts, V, T);
    return m;
}

static inline double *eval_logp(GPT2 *m, const Ranked *d) { // (R); NULL without a model
    double *logp = m ? (double *)xalloc((size_t)d->R, sizeof *logp) : NULL;
    if (m) evaluate_all(m, d, "", logp);
    return logp;
}

static inline int eval_policy(const Options *o, GPT2 *m, const Ranked *data) {
    Config c = gpt2_config(m);
    Tokenizer *tok = tokenizer_open(o, c.V);
    Reward reward, *rm = NULL;
    GPT2 *ref = eval_open(o, o->reference, "--reference", c, data),
         *judge = eval_open(o, o->perplexity, "--perplexity", c, data);
    completions_fit(o, data, m, "--model", o->model);
    if (o->reward) reward = reward_open(o->reward, tok, c.V), rm = &reward;
    if (rm) completions_fit(o, data, reward.model, "--reward", o->reward);
    EvalRow rows[EVAL_ROWS];
    int n = 0, k = o->num_return, with_start = ref && o->start_return;
    Ranked start = {0};
    Sampling s = sampling(o, c, tok);
    Ranked fresh = completions(o, m, data, s, tok, rm, "policy");
    if (with_start) {
        s.num_return = o->start_return;
        start = completions(o, ref, data, s, tok, rm, "start");
        double *logp = eval_logp(judge ? judge : ref, &start);
        if (k > s.num_return) k = s.num_return;
        rows[n++] = eval_row(o->names[0], &start, logp, NULL, NULL, 0, k, rm != NULL);
        for (int best = 2; rm && best <= s.num_return; best *= 2)
            rows[n++] = eval_row("", &start, logp, NULL, NULL, best, 0, 1);
        free(logp);
    }
    double *pi = eval_logp(m, &fresh), *rho = eval_logp(ref, &fresh), *judged_logp = eval_logp(judge, &fresh);
    rows[n++] = eval_row(o->names[1], &fresh, judge ? judged_logp : ref ? rho : pi, pi, rho, 0, k, rm != NULL);
    // pairs given, or made by the reward
    const Ranked *ordered = ranked_has_pairs(data) ? data : rm ? (with_start ? &start : &fresh) : NULL;
    if (ordered) rows[n - 1].figure[ACCURACY] = eval_pairs(m, ordered, o->length_penalty);
    if (ordered && with_start) rows[0].figure[ACCURACY] = eval_pairs(ref, ordered, o->length_penalty);
    eval_csv(o->out, rows, n);
    eval_print(stdout, rows, n, o, data->Q);
    if (tok) {
        Ranked a = ranked_head(&start, SHOWN), b = ranked_head(&fresh, SHOWN);
        samples_write(o->out, tok, with_start ? &a : NULL, &b, rm != NULL);
    }
    free(pi);
    free(rho);
    free(judged_logp);
    ranked_free(&fresh);
    ranked_free(&start);
    gpt2_free(ref);
    gpt2_free(judge);
    if (rm) reward_close(rm);
    tokenizer_shut(tok);
    return 0;
}

// How often a reward model agrees with labels (k = 1) or with the order of pairs.
static inline int eval_reward(const Options *o, GPT2 *m, const Ranked *d) {
    int labels = reward_data_is_labels(d, o->data);
    double *z = (double *)xalloc((size_t)d->R, sizeof *z);
    evaluate_all(m, d, "reward", z);
    Figure f;
    if (labels) {
        for (int r = 0; r < d->R; r++) z[r] = (z[r] > 0) == (d->score[r] > 0.5f);
        f = figure_mean(z, d->R);
    } else f = eval_accuracy(d, d->score, z);
    char cell[64];
    figure_text(cell, f, 4);
    printf("reward model: accuracy %s on %d %s\n", cell, f.n, labels ? "labels" : "queries with pairs");
    EvalRow row = {0};
    strcpy(row.name, "reward model");
    row.figure[ACCURACY] = f;
    eval_csv(o->out, &row, 1);
    free(z);
    return 0;
}

static inline int verb_eval(const Options *o) {
    char path[RRHF_PATH_MAX];
    Checkpoint f = checkpoint_open(need(o->model, "--model", "eval"));
    GPT2 *m = checkpoint_model(&f, f.c, 0);
    Config c = f.c;
    Ranked d = data_open(o, need(o->data, "--data", "eval"), c, "eval"), head = ranked_head(&d, o->eval_queries);
    make_dir(o->out);
    out_check(path_join(path, o->out, "eval.csv"));
    machine_say();
    int rc = c.reward ? eval_reward(o, m, &head) : eval_policy(o, m, &head);
    ranked_free(&d);
    gpt2_free(m);
    return rc;
}

// ----------------------------------------------------------------------------
// The entry

static int (*const verbs[N_VERBS])(const Options *) = {verb_sft, verb_reward, verb_sample, verb_score, verb_train,
                                                       verb_eval};

#include "dev/story.h"   // defines: verb_demo, the whole story on made-up reviews

static inline int run_verb(int argc, char **argv) {
    Options o;
    int fd;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0 && fd <= 2) {} // no file or pipe must become a standard stream
    close(fd);
    world_start();
    int verb = options_parse(&o, argc, argv);
    if (world_started() > world_size)
        die_usage("%s: started as one of %d processes, but built without MPI or, for GPUs, NCCL, or with another MPI "
                  "than mpirun's; install them (Debian: libopenmpi-dev; NVIDIA: libnccl-dev) and make -B %s", argv[0],
                  world_started(), strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0]);
    machine = backend_start(o.threads);
    int rc = verb < 0 ? verb_demo(&o) : verbs[verb](&o);
    stdout_check();
    return rc;
}

#endif
