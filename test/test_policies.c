/*
test_policies.c: the sampling policies of the paper's Table 1, by hand: who answers, when, with what, and what is
trained on. Each run of the program's loops is repeated here from its parts, and must come out with the same bits.
Also stop texts, the KL term, the ablations, what a reward command reads, and the best-of-n estimate.

  cc -std=c11 -O2 -fopenmp-simd -DNO_MAIN test/test_policies.c -o test/test_policies -lm && test/test_policies
*/
#include "../train_rrhf.c" // defines: policy_parse, policy_respond, online_answer, train_rounds, ...
#include "test.h"          // defines: check, check_dies, test_params, test_batch, test_summary

enum { V = 64, T = 40, EOT = V - 1, Q = 7, LONGEST = 9 };

static char dir[] = "/tmp/rrhf_policies_XXXXXX";

static char *in_dir(const char *fmt, ...) { // a path that stays
    char name[64], *path = (char *)xalloc(RRHF_PATH_MAX, 1);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(name, sizeof name, fmt, ap);
    va_end(ap);
    return path_join(path, dir, name);
}

// What the loops say goes to a file, shown only where the program ends early.
static int loud = -1;

static void quiet(int on) {
    fflush(stderr);
    if (on && loud < 0) {
        loud = dup(2);
        if (!freopen(in_dir("stderr"), "w", stderr)) abort();
    } else if (!on && loud >= 0) {
        dup2(loud, 2);
        close(loud);
        loud = -1;
    }
}

static void ended(void) {
    char line[1024];
    if (loud < 0) return;
    quiet(0);
    FILE *f = fopen(in_dir("stderr"), "r");
    while (f && fgets(line, sizeof line, f)) fputs(line, stderr);
}

// ----------------------------------------------------------------------------
// A world: a start, a reward model, a tokenizer with longer tokens, queries of 1..9 tokens with 1..3 responses

static const char *const longer[] = {"ab", "bc", "EN", "ND", "END", "xE", "the", "\\"};
static Tokenizer tokenizer;

static void make_tokenizer(void) {
    char c;
    tokenizer = tokenizer_make(V, 1024);
    for (c = 'a'; c <= 'z'; c++) tokenizer_add(&tokenizer, &c, 1, 0);
    for (c = 'A'; c <= 'Z'; c++) tokenizer_add(&tokenizer, &c, 1, 0);
    for (int i = 0; i < 8; i++) tokenizer_add(&tokenizer, longer[i], strlen(longer[i]), 0);
    for (int i = 0; i < 3; i++) tokenizer_add(&tokenizer, &"\n\r"[i], 1, 0); // the third is the zero byte
    tokenizer_add(&tokenizer, "<|endoftext|>", 13, 1);
    tokenizer_write(in_dir("tokenizer.bin"), &tokenizer);
}

static Config config(int reward) {
    Config c = {T, V, V, 2, 2, 16, reward, 0};
    return c;
}

static void make_world(void) {
    static const int k[Q] = {1, 3, 2, 1, 2, 3, 1};
    if (!mkdtemp(dir)) die("%s: cannot make it", dir);
    for (int reward = 0; reward < 2; reward++) {
        float *p = test_params(config(reward), 5 + (uint64_t)reward);
        for (size_t i = 0; i < gpt2_count(config(reward)); i++) p[i] *= 2; // distributions far from uniform
        checkpoint_write(in_dir(reward ? "reward.bin" : "start.bin"), config(reward), p);
        free(p);
    }
    Ranked d = test_ranked(11, V, Q, k, LONGEST, 7);
    ranked_write(in_dir("data.bin"), &d);
    ranked_free(&d);
    make_tokenizer();
}

// Options as the command line would set them, "train --lr 1e-3 ...", with the world's files.
static Options options(const char *line) {
    enum { WORDS = 64 };
    char *words = strdup(line), *argv[WORDS] = {(char *)"train_rrhf"};
    int argc = 1;
    Options o;
    for (char *w = strtok(words, " "); w && argc < WORDS - 8; w = strtok(NULL, " ")) argv[argc++] = w;
    char *more[] = {(char *)"--model", in_dir("start.bin"), (char *)"--data", in_dir("data.bin"), (char *)"--reward",
                    in_dir("reward.bin")};
    for (int i = 0; i < 6; i++) argv[argc++] = more[i];
    quiet(1);
    options_parse(&o, argc, argv);
    quiet(0);
    return o;
}

static GPT2 *load(const char *path) { return model_open(path, "--model", 1); }

static int same_file(const char *a, const char *b) {
    char line[2 * RRHF_PATH_MAX + 32];
    snprintf(line, sizeof line, "cmp -s '%s' '%s'", a, b);
    return system(line) == 0;
}

static int same_params(GPT2 *m, const char *path) {
    Config c;
    float *want = checkpoint_read(path, &c), *got = (float *)xalloc(gpt2_count(c), sizeof *got);
    gpt2_get(m, COPY_PARAMS, got);
    int same = !memcmp(got, want, gpt2_count(c) * sizeof *got);
    free(want);
    free(got);
    return same;
}

static const uint16_t *response(const Ranked *d, int r) { return d->tokens + d->resp_at[r]; }

static int same_response(const Ranked *a, int i, const Ranked *b, int j) {
    return a->resp_len[i] == b->resp_len[j] && !memcmp(response(a, i), response(b, j), 2 * (size_t)a->resp_len[i]);
}

static int same_query(const Ranked *a, int i, const Ranked *b, int j) {
    return a->query_len[i] == b->query_len[j] &&
           !memcmp(a->tokens + a->query_at[i], b->tokens + b->query_at[j], 2 * (size_t)a->query_len[i]);
}

// Tokens, sources and the bits of the scores.
static int same_ranked(const Ranked *a, const Ranked *b) {
    int same = a->Q == b->Q && a->R == b->R;
    for (int q = 0; same && q < a->Q; q++) same = same_query(a, q, b, q) && a->first[q + 1] == b->first[q + 1];
    for (int r = 0; same && r < a->R; r++)
        same = same_response(a, r, b, r) && a->source[r] == b->source[r] && !memcmp(&a->score[r], &b->score[r], 4);
    return same;
}

static int same_ranked_file(const Ranked *a, const char *path) {
    Ranked b = ranked_read(path);
    int same = same_ranked(a, &b);
    ranked_free(&b);
    return same;
}

// ----------------------------------------------------------------------------
// Table 1: names, and what each draws

static void test_names(void) {
    static const struct { const char *name; Policy p; } rows[] = {
        {"P", {BY_NOBODY, 1, 0, 0}}, {"S", {BY_SAMPLE, 0, 0, 0}}, {"SP", {BY_SAMPLE, 1, 0, 0}},
        {"B", {BY_BEAM, 0, 0, 0}}, {"BP", {BY_BEAM, 1, 0, 0}}, {"D", {BY_DIVERSE, 0, 0, 0}},
        {"DP", {BY_DIVERSE, 1, 0, 0}}, {"IP-1", {BY_DIVERSE, 1, 1, 0}}, {"IP-12", {BY_DIVERSE, 1, 12, 0}},
        {"OP-1", {BY_DIVERSE, 1, 0, 1}}, {"OP-128", {BY_DIVERSE, 1, 0, 128}}};
    static const char *const wrong[] = {"", "p", "PS", "PB", "X", "IP", "IP-", "IP-0", "OP--1", "OP-2x", "OP-1.5",
                                        "XP-2", "IP3", "OP-99999999999999999999"};
    Options o = options("train");
    int bad = 0, n = sizeof rows / sizeof *rows;
    for (int i = 0; i < n; i++) {
        Policy p = policy_parse(&o, rows[i].name);
        bad += p.by != rows[i].p.by || p.own != rows[i].p.own ||
               p.rounds != rows[i].p.rounds || p.refresh != rows[i].p.refresh;
    }
    check(bad == 0, "names: %d of %d policies are not their row of Table 1 (IP, OP: diverse beams and the data's own)",
          bad, n);
    o = options("train --draw sample");
    check(policy_parse(&o, "OP-4").by == BY_SAMPLE && policy_parse(&o, "B").by == BY_BEAM,
          "names: --draw sample changes OP-4, not B");
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) { // a usage error: exit code 2
        int status = 0;
        pid_t child = fork();
        if (child == 0 && freopen("/dev/null", "w", stderr)) {
            policy_parse(&o, wrong[i]);
            _exit(0);
        }
        waitpid(child, &status, 0);
        bad += !WIFEXITED(status) || WEXITSTATUS(status) != 2;
    }
    check(bad == 0, "names: %d of %zu misspelt ones are not refused with exit code 2",
          bad, sizeof wrong / sizeof *wrong);
}

// What is wrong with `got` as the answers of a policy to d: its queries in order, its own responses first and unchanged
// (own), then `fresh` of each query with this source, 1..max_new tokens, end-of-text only last, every score 0.
static int wrong_answers(const Ranked *got, const Ranked *d, int own, int fresh, int source, int max_new) {
    int wrong = got->Q != d->Q;
    for (int q = 0; !wrong && q < d->Q; q++) {
        int k = own ? d->first[q + 1] - d->first[q] : 0, r = got->first[q];
        wrong += !same_query(got, q, d, q) || got->first[q + 1] - r != k + fresh;
        for (int i = 0; !wrong && i < k + fresh; i++, r++) {
            const uint16_t *y = response(got, r);
            wrong += got->score[r] != 0 || got->source[r] != (i < k ? SOURCE_DATA : source);
            if (i < k) wrong += !same_response(got, r, d, d->first[q] + i);
            else {
                wrong += got->resp_len[r] < 1 || got->resp_len[r] > max_new;
                for (int t = 0; t + 1 < got->resp_len[r]; t++) wrong += y[t] == EOT;
            }
        }
    }
    return wrong;
}

// Are the fresh responses of `got` those of `want`, in order?
static int same_fresh(const Ranked *got, const Ranked *want) {
    int same = got->Q == want->Q;
    for (int q = 0; same && q < got->Q; q++)
        for (int i = got->first[q + 1] - 1, j = want->first[q + 1] - 1; same && j >= want->first[q]; i--, j--)
            same = i >= got->first[q] && same_response(got, i, want, j) && got->source[i] == want->source[j];
    return same;
}

static void test_table(void) {
    static const char *const names[] = {"S", "SP", "B", "BP", "D", "DP"};
    static const struct { int num_return, max_new; } sizes[] = {{4, 8}, {1, 1}, {3, T - LONGEST}};
    GPT2 *m = load(in_dir("start.bin"));
    Ranked d = ranked_read(in_dir("data.bin"));
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < 6; i++) {
            char line[256];
            snprintf(line, sizeof line,
                     "sample --num-return %d --max-new-tokens %d --top-k 20 --temperature 0.8 --seed 3",
                     sizes[s].num_return, sizes[s].max_new);
            Options o = options(line);
            Policy p = policy_parse(&o, names[i]);
            Sampling sampling = {sizes[s].num_return, sizes[s].max_new, {0.8, 1, 20}, EOT, 3};
            Beaming beaming = {4, i < 4 ? 1 : 4, 1, 1, sizes[s].num_return, sizes[s].max_new, EOT};
            Ranked got = policy_respond(&o, p, m, &d, &tokenizer, (uint64_t)o.seed, "");
            Ranked want = i < 2 ? sample(m, &d, sampling, 0, "") : beam_search(m, &d, beaming, 0, "");
            int wrong = wrong_answers(&got, &d, i % 2, sizes[s].num_return, 1 + i / 2, sizes[s].max_new);
            check(!wrong && same_fresh(&got, &want), "%s, %d returned, up to %d tokens: %d responses, %s%s, %d faults",
                  names[i], sizes[s].num_return, sizes[s].max_new, got.R,
                  i < 2 ? "the sampler's own" : i < 4 ? "beam search's own" : "diverse beam search's own",
                  i % 2 ? ", after the data's" : "", wrong);
            ranked_free(&got);
            ranked_free(&want);
        }
    ranked_free(&d);
    gpt2_free(m);
}

// With a penalty beyond any logit no two groups choose one token in one place; with the paper's 1 beams begin in more
// ways.
static void test_diverse(void) {
    GPT2 *m = load(in_dir("start.bin"));
    Ranked d = ranked_read(in_dir("data.bin"));
    Tokenizer endless = tokenizer;
    endless.eot = -1; // nothing ends early: places can be compared
    Options o = options("sample --num-return 4 --max-new-tokens 6 --diversity-penalty 500");
    Ranked far = policy_respond(&o, policy_parse(&o, "D"), m, &d, &endless, 1, "");
    int shared = 0, ways[2] = {0, 0};
    for (int q = 0; q < far.Q; q++)
        for (int i = far.first[q]; i < far.first[q + 1]; i++)
            for (int j = far.first[q]; j < i; j++)
                for (int t = 0; t < 6; t++) shared += response(&far, i)[t] == response(&far, j)[t];
    check(shared == 0 && far.R == 4 * Q, "D, penalty 500: %d tokens of %d responses stand in the same place twice",
          shared, far.R);
    o = options("sample --num-return 4 --max-new-tokens 6");
    for (int diverse = 0; diverse < 2; diverse++) {
        Ranked near = policy_respond(&o, policy_parse(&o, diverse ? "D" : "B"), m, &d, &endless, 1, "");
        for (int q = 0; q < near.Q; q++)
            for (int i = near.first[q]; i < near.first[q + 1]; i++) {
                int seen = 0;
                for (int j = near.first[q]; j < i; j++) seen |= *response(&near, i) == *response(&near, j);
                ways[diverse] += !seen;
            }
        ranked_free(&near);
    }
    check(ways[1] > ways[0], "D, penalty 1: %d first tokens for %d queries, B has %d", ways[1], Q, ways[0]);
    ranked_free(&far);
    ranked_free(&d);
    gpt2_free(m);
}

// ----------------------------------------------------------------------------
// Stop texts

// "the|E|ND": these tokens. "$" is end-of-text.
static int tokens_of(const char *spec, uint16_t *ids) {
    int n = 0;
    for (size_t k; *spec; spec += k + (spec[k] == '|')) {
        k = strcspn(spec, "|");
        int id = *spec == '$' ? EOT : -1, len;
        for (int v = 0; v < EOT && id < 0; v++) {
            const char *s = tokenizer_decode(&tokenizer, v, &len);
            if ((size_t)len == k && !memcmp(s, spec, k)) id = v;
        }
        if (id < 0) die("no token '%.*s'", (int)k, spec);
        ids[n++] = (uint16_t)id;
    }
    return n;
}

static void test_stop(void) {
    static const struct { const char *what, *stops, *query, *text, *want; } cases[] = {
        {"one token", "END", "a", "a|b|END|c", "a|b"},
        {"spans tokens", "END", "a", "a|E|N|D|c", "a"},
        {"begins inside a token, which goes too", "END", "a", "a|xE|ND|c", "a"},
        {"ends inside a token", "Ea", "a", "b|E|ab|c", "b"},
        {"inside one token", "N", "a", "b|END|c", "b"},
        {"at the very start: one token stays", "END", "a", "END|a|b", "END"},
        {"spans tokens at the very start", "END", "a", "E|N|D|a", "E"},
        {"inside the first token", "E", "a", "xE|a|b", "xE"},
        {"at the very end", "END", "a", "a|b|END", "a|b"},
        {"before end-of-text", "END", "a", "a|b|END|$", "a|b"},
        {"part of how end-of-text is spelled", "xt", "a", "a|b|$", "a|b|$"},
        {"not there", "END", "a", "a|b|E|N|$", "a|b|E|N|$"},
        {"a false start", "END", "a", "E|E|EN|END|a", "E|E|EN"},
        {"twice: the first counts", "END", "a", "a|END|b|END", "a"},
        {"in the query only", "END", "END", "a|b", "a|b"},
        {"across query and response", "END", "a|EN", "D|b", "D|b"},
        {"a line end", "\n", "a", "a|b|\n|c", "a|b"},
        {"a carriage return and a backslash", "\r\\", "a", "a|\r|\\|b", "a"},
        {"two stops, the second comes first", "END the", "a", "a|the|b|END", "a"},
        {"two stops, the first comes first", "END the", "a", "a|b|END|the", "a|b"},
        {"overlapping stops", "bc ab", "a", "x|a|b|c", "x"},
        {"one stop in another", "abc b", "a", "x|a|bc|y", "x"},
        {"one stop ends another", "abc bc", "a", "x|x|ab|c|y", "x|x"},
        {"eight stops", "Q W E R T Y U I", "a", "a|b|Y|c|R", "a|b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Options o = options("sample");
        char *stops = strdup(cases[i].stops);
        uint16_t query[16], text[16], want[16];
        int nq = tokens_of(cases[i].query, query), n = tokens_of(cases[i].text, text);
        int left = tokens_of(cases[i].want, want);
        for (char *s = strtok(stops, " "); s; s = strtok(NULL, " ")) option_set(&o, option_find("--stop"), s);
        Ranked d = {0};
        d.V = V;
        ranked_query(&d, query, nq);
        ranked_response(&d, text, n, 0, SOURCE_DATA); // the data's own are as they are
        for (int source = SOURCE_SAMPLE; source <= SOURCE_DIVERSE; source++) ranked_response(&d, text, n, 0, source);
        stop_cut(&o, &tokenizer, &d);
        int cut = 0;
        for (int r = 1; r < 4; r++) cut += d.resp_len[r] == left && !memcmp(response(&d, r), want, 2 * (size_t)left);
        check(cut == 3 && d.resp_len[0] == n && d.query_len[0] == nq, "stop, %s: %d of %d tokens stay, expected %d",
              cases[i].what, d.resp_len[1], n, left);
        ranked_free(&d);
    }
}

static void ask_nobody(const void *data) {
    Ranked d = *(const Ranked *)data;
    Reward r = reward_open("cmd:exec sleep 60", &tokenizer, 0);
    reward_score(&r, &d, "");
}

// A command that neither reads nor answers is given up: one text lies in its pipe, another is more than that holds.
static void test_patience(void) {
    enum { WIDE = 200000 };
    static const char *const what[2] = {"a command that does not answer", "a command that does not read"};
    uint16_t *tok = (uint16_t *)xalloc(WIDE, sizeof *tok);
    int keep = reward_patience;
    reward_patience = 1;
    for (int i = 0; i < 2; i++) {
        Ranked d = {0};
        ranked_query(&d, tok, i ? WIDE : 1);
        ranked_response(&d, tok, 1, 0, SOURCE_DATA);
        check_dies(what[i], ask_nobody, &d, "exec sleep 60: no answer to response 0 for 1 s");
        ranked_free(&d);
    }
    reward_patience = keep;
    free(tok);
}

// Fresh answers of every kind, cut: the beginning of the uncut ones, with no stop text after the first token. The
// reward command is asked about exactly the texts that remain.
static void test_stop_drawn(void) {
    static const char *const names[] = {"SP", "BP", "DP"};
    GPT2 *m = load(in_dir("start.bin"));
    Ranked d = ranked_read(in_dir("data.bin"));
    for (int i = 0; i < 3; i++) {
        Options o = options("sample --num-return 4 --max-new-tokens 12 --seed 9"), plain = o;
        static const char *const stops[] = {"a", "EN", "T"};
        for (int s = 0; s < 3; s++) option_set(&o, option_find("--stop"), stops[s]);
        Ranked cut = policy_respond(&o, policy_parse(&o, names[i]), m, &d, &tokenizer, 9, "");
        Ranked whole = policy_respond(&plain, policy_parse(&o, names[i]), m, &d, &tokenizer, 9, "");
        int wrong = cut.R != whole.R, shorter = 0, lines = 0, other = 0;
        char cmd[RRHF_PATH_MAX + 128];
        snprintf(cmd, sizeof cmd, "cmd:while IFS= read -r l; do printf '%%s\\n' \"$l\" >>%s; echo 1; done",
                 in_dir("asked-%s", names[i]));
        Reward reward = reward_open(cmd, &tokenizer, 0);
        reward_score(&reward, &cut, "");
        reward_close(&reward);
        FILE *f = fopen(in_dir("asked-%s", names[i]), "r");
        for (int r = 0, q = 0; r < cut.R; r++) {
            while (cut.first[q + 1] <= r) q++;
            size_t n, n_query;
            const uint16_t *y = response(&cut, r);
            char *text = tokenizer_text(&tokenizer, y, (size_t)cut.resp_len[r], &n), *query, line[4096], want[4096];
            wrong += cut.resp_len[r] > whole.resp_len[r] || memcmp(y, response(&whole, r), 2 * (size_t)cut.resp_len[r]);
            wrong += cut.score[r] != 1;
            shorter += cut.resp_len[r] < whole.resp_len[r];
            for (int s = 0; s < 3 && cut.source[r] && cut.resp_len[r] > 1; s++)
                wrong += memmem(text, n, stops[s], strlen(stops[s])) != NULL;
            query = tokenizer_text(&tokenizer, cut.tokens + cut.query_at[q], (size_t)cut.query_len[q], &n_query);
            if (y[cut.resp_len[r] - 1] == EOT) n -= sizeof END_OF_TEXT - 1; // its text is not shown to a judge
            size_t at = reward_escape(want, query, n_query) - 1, end = at + reward_escape(want + at, text, n);
            int got = f && fgets(line, sizeof line, f) != NULL;
            lines += got;
            other += !got || strlen(line) != end || memcmp(line, want, end);
            free(text);
            free(query);
        }
        check(!wrong && shorter > 0, "stop, %s: %d of %d responses are cut, %d faults",
              names[i], shorter, cut.R, wrong);
        check(lines == cut.R && !other, "stop, %s: the reward is asked about the cut texts: %d lines, %d others",
              names[i], lines, other);
        if (f) fclose(f);
        ranked_free(&cut);
        ranked_free(&whole);
    }
    ranked_free(&d);
    gpt2_free(m);
}

// ----------------------------------------------------------------------------
// The loops, with everything noted down

// A trainee as verb_train makes it; notes: every answer of OP-k goes to DIR/seen-STEP.bin, the policy that gave it to
// DIR/at-STEP.bin. raise_at: Ctrl-C after so many calls of the loop's hook.
typedef struct {
    Options o;
    Trainee a;
    Train t;
    int answers, at[32], calls, raise_at, changed;
    const char *notes;
} Run;

static Ranked noted_answer(void *run, const Ranked *d, const int *queries, int n, int step) {
    Run *r = (Run *)run;
    size_t count = gpt2_count(gpt2_config(r->a.m));
    float *params = (float *)xalloc(count, sizeof *params);
    gpt2_get(r->a.m, COPY_PARAMS, params);
    checkpoint_write(in_dir("%s-at-%d.bin", r->notes, step), gpt2_config(r->a.m), params);
    free(params);
    Ranked out = online_answer(&r->a, d, queries, n, step);
    ranked_write(in_dir("%s-seen-%d.bin", r->notes, step), &out);
    if (r->answers < 32) r->at[r->answers++] = step;
    return out;
}

// Does state.bin of so many steps end with the window that was drawn for them, or, where none is begun, without one?
static int right_window(const Run *r, int steps) {
    char path[RRHF_PATH_MAX];
    int32_t h[256];
    int k = r->t.refresh;
    In in = in_open(path_join(path, r->t.out, "state.bin")), seen;
    in_header(&in, h, STATE_MAGIC, STATE_VERSION, "training state");
    in.at += h[2] + h[3] * (int64_t)sizeof(LogRow) + 3 * (int64_t)gpt2_count(gpt2_config(r->a.m)) * 4;
    fseek(in.f, in.at, SEEK_SET);
    int64_t n = in_left(&in);
    char *tail = (char *)xalloc((size_t)n * 2, 1);
    in_read(&in, tail, n, "the window");
    in_close(&in);
    if (steps % k) {
        seen = in_open(in_dir("%s-seen-%d.bin", r->notes, steps / k * k));
        if (seen.size == n) in_read(&seen, tail + n, n, "what was drawn");
        fclose(seen.f);
    }
    int same = steps % k ? n && !memcmp(tail, tail + n, (size_t)n) : n == 0;
    free(tail);
    return same;
}

// After every step: what does the last checkpoint hold, that of the step before?
static void after_step(void *run, int step) {
    Run *r = (Run *)run;
    if (step > 1 && r->t.refresh && r->t.checkpoint_every == 1) r->changed += !right_window(r, step - 1);
    if (++r->calls == r->raise_at) raise(SIGINT);
}

static Run *run_make(const char *line, const char *notes, const char *resume) {
    Run *r = (Run *)xalloc(1, sizeof *r);
    r->o = options(line);
    r->notes = notes;
    r->o.out = in_dir("%s", notes), r->o.resume = resume;
    r->a.o = &r->o;
    r->a.policy = policy_parse(&r->o, r->o.policy);
    r->a.m = load(r->o.model);
    r->a.tok = r->o.stop.n ? &tokenizer : NULL;
    r->a.d = ranked_read(r->o.data);
    r->a.reward = reward_open(r->o.reward, &tokenizer, 0), r->a.rm = &r->a.reward;
    if (r->o.kl_coef > 0) r->a.start = model_open(r->o.model, "--model", 0);
    r->t = train_options(&r->o, "test");
    r->t.refresh = r->a.policy.refresh, r->t.answer = noted_answer;
    r->t.after = after_step, r->t.context = r;
    return r;
}

static void run_free(Run *r) {
    gpt2_free(r->a.m);
    gpt2_free(r->a.start);
    reward_close(&r->a.reward);
    ranked_free(&r->a.d);
    free(r);
}

static int run_loop(Run *r) { // OP-k and P
    Log log = {NULL, 0, 0};
    quiet(1);
    make_dir(r->t.out);
    train_settings(&r->t, r->a.m, &r->a.d);
    int stopped = train_loop(r->a.m, &r->a.d, &r->t, &log);
    train_done(&r->t, &r->a.d, &log);
    quiet(0);
    free(log.row);
    return stopped;
}

static int run_rounds(Run *r) { // IP-n
    quiet(1);
    int stopped = train_rounds(&r->a, &r->t);
    quiet(0);
    return stopped;
}

// ----------------------------------------------------------------------------
// OP-k

// 7 queries in steps of 3, 3, 1: 4 epochs are 12 steps, and windows of 5 cross the epochs.
#define OP "train --batch 3 --epochs 4 --lr 3e-3 --seed 21 --draw sample --num-return 2 --max-new-tokens 6 " \
           "--top-k 30 --stop a --stop EN "
enum { STEPS = 12 };

// OP-k from its parts: the visits' order from the seed, the answers drawn from the policy as it is, k steps of training
// on them. Returns how many windows differ from what the run saw.
static int op_by_hand(Run *r, GPT2 *m) {
    int order[Q], visit[STEPS][Q], n[STEPS], k = r->a.policy.refresh, differ = 0, index[3] = {0, 0, 0}, at = 0;
    for (int s = 0; s < STEPS; s++) {
        Rng rng = rng_make(21, RNG_SHUFFLE, (uint64_t)s / 3);
        rng_shuffle(&rng, order, Q);
        n[s] = s % 3 == 2 ? 1 : 3;
        memcpy(visit[s], order + s % 3 * 3, (size_t)n[s] * sizeof(int));
    }
    Ranked window = {0};
    GPT2 *start = load(in_dir("start.bin"));
    for (int s = 0; s < STEPS; s++) {
        if (s % k == 0) {
            Ranked ask = {0};
            ask.V = V;
            for (int i = s; i < s + k && i < STEPS; i++)
                for (int j = 0; j < n[i]; j++) {
                    int q = visit[i][j];
                    ranked_query(&ask, r->a.d.tokens + r->a.d.query_at[q], r->a.d.query_len[q]);
                    for (int y = r->a.d.first[q]; y < r->a.d.first[q + 1]; y++)
                        ranked_response(&ask, response(&r->a.d, y), r->a.d.resp_len[y], 0, 0);
                }
            Rng rng = rng_make(21, RNG_SAMPLE, (uint64_t)s + 1);
            ranked_free(&window);
            window = policy_respond(&r->o, r->a.policy, m, &ask, &tokenizer, rng_u64(&rng), "");
            reward_score(&r->a.reward, &window, "");
            double *pi = (double *)xalloc((size_t)window.R * 2, sizeof *pi), *rho = pi + window.R;
            evaluate_all(m, &window, "", pi);
            evaluate_all(start, &window, "", rho);
            for (int y = 0; r->o.kl_coef > 0 && y < window.R; y++)
                window.score[y] -= (float)(r->o.kl_coef * (pi[y] - rho[y]));
            differ += !same_ranked_file(&window, in_dir("%s-seen-%d.bin", r->notes, s));
            ranked_free(&ask);
            free(pi);
            at = 0;
        }
        for (int j = 0; j < n[s]; j++) index[j] = at++;
        StepRoom room = step_room(m, &window, r->t.micro_batch);
        double norm;
        int64_t tokens = 0;
        train_step(m, &r->t, &room, &window, index, n[s], learning_rate(&r->t, s + 1, STEPS), s + 1, &norm, &tokens);
        step_room_free(&room);
    }
    ranked_free(&window);
    gpt2_free(start);
    return differ;
}

static void test_online(void) {
    static const struct { int k, draws; const char *kl; } cases[] = {
        {5, 3, ""}, {1, 12, ""}, {4, 3, "--kl-coef 0.3"}, {12, 1, ""}, {13, 1, ""}, {1000, 1, ""}
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[512], notes[32];
        int k = cases[i].k, late = 0, shape = 0, older = 0;
        snprintf(line, sizeof line, OP "--policy OP-%d --checkpoint-every 1 %s", k, cases[i].kl);
        snprintf(notes, sizeof notes, "op%d", k);
        Run *r = run_make(line, notes, NULL);
        run_loop(r);
        for (int j = 0; j < r->answers; j++) late += r->at[j] != j * k;
        check(r->answers == cases[i].draws && !late,
              "OP-%d, %d steps: drawn %d times, at steps 0, k, 2k, ..., expected %d",
              k, STEPS, r->answers, cases[i].draws);
        check(r->changed == 0, "OP-%d: the window in state.bin differed after %d steps from what was drawn", k,
              r->changed);
        for (int j = 0; j < r->answers; j++) { // Table 1's row: each visit's query, its own responses, the policy's
            Ranked seen = ranked_read(in_dir("%s-seen-%d.bin", notes, r->at[j]));
            int visits = 0;
            for (int s = r->at[j]; s < r->at[j] + k && s < STEPS; s++) visits += s % 3 == 2 ? 1 : 3;
            shape += seen.Q != visits;
            for (int q = 0; q < seen.Q; q++) {
                int of = 0, y = seen.first[q], own;
                while (of < Q - 1 && !same_query(&seen, q, &r->a.d, of)) of++;
                own = r->a.d.first[of + 1] - r->a.d.first[of];
                shape += seen.first[q + 1] - y != own + 2;
                for (int e = 0; y < seen.first[q + 1]; y++, e++) {
                    shape += seen.source[y] != (e < own ? SOURCE_DATA : SOURCE_SAMPLE) ||
                             seen.resp_len[y] > (e < own ? 7 : 6);
                    if (e < own) shape += !same_response(&seen, y, &r->a.d, r->a.d.first[of] + e);
                }
            }
            ranked_free(&seen);
        }
        check(shape == 0, "OP-%d: queries, the data's own responses and 2 samples each: %d faults", k, shape);
        GPT2 *m = load(in_dir("start.bin"));
        int differ = op_by_hand(r, m), same = same_params(m, in_dir("%s/policy.bin", notes));
        gpt2_free(m);
        check(!differ && same, "OP-%d%s by hand: %d of %d windows differ, policy.bin has %s bits", k,
              *cases[i].kl ? " with KL" : "", differ, r->answers, same ? "the same" : "other");
        for (int j = 1; j < r->answers && j < 4; j++) { // who answered at step s is what a run of s steps leaves
            snprintf(line, sizeof line, OP "--policy OP-%d --steps %d %s", k, r->at[j], cases[i].kl);
            Run *before = run_make(line, "op-before", NULL);
            run_loop(before);
            older += !same_file(in_dir("op-before/policy.bin"), in_dir("%s-at-%d.bin", notes, r->at[j]));
            run_free(before);
        }
        check(older == 0, "OP-%d: %d of its draws are not by the policy of that step", k, older);
        run_free(r);
    }
    const char *op12 = in_dir("op12/policy.bin");
    int alike = same_file(op12, in_dir("op13/policy.bin")) && same_file(op12, in_dir("op1000/policy.bin"));
    check(alike && !same_file(op12, in_dir("op5/policy.bin")),
          "OP-13 and OP-1000 are OP-12 in a run of 12 steps, OP-5 is not");
}

static void test_online_resumed(void) { // Ctrl-C after step 1, 4 (within a window), 5 (at its end), 7, 11
    static const int stops[] = {1, 4, 5, 7, 11};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        char notes[32];
        int s = stops[i], draws = 0;
        snprintf(notes, sizeof notes, "stop%d", s);
        Run *r = run_make(OP "--policy OP-5", notes, NULL);
        r->raise_at = s + 1; // the hook is called before the first step too
        int stopped = run_loop(r), had_state = access(in_dir("%s/state.bin", notes), F_OK) == 0;
        run_free(r);
        r = run_make(OP "--policy OP-5", notes, in_dir("%s", notes));
        run_loop(r);
        for (int step = s; step < STEPS; step++) draws += step % 5 == 0;
        int same = same_file(in_dir("%s/policy.bin", notes), in_dir("op5/policy.bin"));
        check(stopped && had_state && same && r->answers == draws,
              "OP-5, Ctrl-C after step %d, resumed: %s bits, %d more draws, expected %d", s,
              same ? "the same" : "other", r->answers, draws);
        run_free(r);
        check(access(in_dir("%s/state.bin", notes), F_OK) && !access(in_dir("%s/settings.txt", notes), F_OK),
              "OP-5, finished: settings.txt, no state.bin");
    }
}

// A few settings a line, and where two lists differ first.
typedef struct { const char *there, *here; } Settings;

static void compare_settings(const void *arg) {
    const Settings *s = (const Settings *)arg;
    Train t = {0};
    t.resume = "DIR";
    snprintf(t.settings, sizeof t.settings, "%s", s->here);
    settings_check(&t, s->there);
}

static void test_settings(void) {
    static const struct { Settings s; const char *said; } cases[] = {
        {{"lr 1\nseed 3\n", "lr 1\nseed 32\n"}, "begun with seed 3, this is seed 32;"},
        {{"lr 12\nseed 3\n", "lr 1\nseed 4\n"}, "begun with lr 12, this is lr 1;"},
        {{"lr 1\n", "lr 1\ndraw 2\n"}, "begun with fewer settings, this is draw 2;"},
        {{"lr 1\ndraw 2\n", "lr 1\n"}, "begun with draw 2, this is with fewer settings;"},
        {{"", "lr 1\n"}, "begun with fewer settings, this is lr 1;"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_dies("settings that differ", compare_settings, &cases[i].s, cases[i].said);
    Settings same = {"lr 1\nseed 3\n", "lr 1\nseed 3\n"};
    compare_settings(&same);
    check(1, "settings that do not differ");
}

// log P of one response by itself: no shared prefix, no neighbours.
static double alone(GPT2 *m, const Ranked *d, int q, int r) {
    Ranked one = {0};
    one.V = V;
    ranked_query(&one, d->tokens + d->query_at[q], d->query_len[q]);
    ranked_response(&one, response(d, r), d->resp_len[r], 0, 0);
    Batch b = test_batch(&one);
    real *logp = (real *)xalloc((size_t)b.P, sizeof *logp);
    double sum = 0;
    gpt2_plan(m, b.N, b.U);
    gpt2_forward(m, &b, logp);
    for (int p = 0; p < b.P; p++) sum += (double)logp[p];
    free(logp);
    batch_free(&b);
    ranked_free(&one);
    return sum;
}

static void test_kl(void) { // of the run op4, with --kl-coef 0.3
    Reward reward = reward_open(in_dir("reward.bin"), NULL, 0);
    GPT2 *rho = load(in_dir("start.bin"));
    for (int step = 0; step < STEPS; step += 4) {
        GPT2 *pi = load(in_dir("op4-at-%d.bin", step));
        Ranked seen = ranked_read(in_dir("op4-seen-%d.bin", step));
        Ranked plain = ranked_read(in_dir("op4-seen-%d.bin", step));
        reward_score(&reward, &plain, "");
        int exact = 0;
        double *got = (double *)xalloc((size_t)seen.R * 2, sizeof *got), *want = got + seen.R, size = 0;
        for (int q = 0; q < seen.Q; q++)
            for (int r = seen.first[q]; r < seen.first[q + 1]; r++) {
                double kl = alone(pi, &seen, q, r) - alone(rho, &seen, q, r);
                got[r] = seen.score[r], want[r] = plain.score[r] - 0.3 * kl;
                exact += !memcmp(&seen.score[r], &plain.score[r], 4);
                size += fabs(0.3 * kl) / seen.R;
            }
        if (step == 0) check(exact == seen.R, "KL, first draw: pi = rho, %d of %d scores are the rewards, bit for bit",
                             exact, seen.R);
        else check(exact < seen.R && size > 0.01,
                   "KL, step %d: the term is %.3g on average, %d of %d scores are the bare rewards",
                   step, size, exact, seen.R);
        check_close("KL: score = reward - 0.3 (log pi - log rho), each response alone", got, want, (size_t)seen.R, 1e-4,
                    1e-4);
        free(got);
        ranked_free(&seen);
        ranked_free(&plain);
        gpt2_free(pi);
    }
    gpt2_free(rho);
    reward_close(&reward);
}

// ----------------------------------------------------------------------------
// IP-n, and the policies that draw once

#define IP "train --batch 3 --epochs 2 --lr 3e-3 --seed 21 --num-return 2 --max-new-tokens 6 --stop a "

// A round from its parts: m answers all queries, is trained on that with a new optimizer; then it is what FILE holds.
static int round_by_hand(Run *r, GPT2 **m, uint64_t seed, const char *scored, const char *policy) {
    Log log = {NULL, 0, 0};
    Ranked drawn = policy_respond(&r->o, r->a.policy, *m, &r->a.d, &tokenizer, seed, "");
    Train t = train_options(&r->o, "by hand");
    reward_score(&r->a.reward, &drawn, "");
    int same = same_ranked_file(&drawn, scored);
    t.out = in_dir("by-hand");
    quiet(1);
    make_dir(t.out);
    train_settings(&t, *m, &drawn);
    train_loop(*m, &drawn, &t, &log);
    quiet(0);
    same = same && same_params(*m, policy);
    gpt2_free(*m);
    *m = load(in_dir("by-hand/policy.bin"));
    ranked_free(&drawn);
    free(log.row);
    return same;
}

static void test_rounds(void) {
    static const char *const draws[] = {"sample", "diverse"};
    for (int i = 0; i < 2; i++) {
        char line[512], notes[32];
        snprintf(line, sizeof line, IP "--policy IP-3 --draw %s", draws[i]);
        snprintf(notes, sizeof notes, "ip-%s", draws[i]);
        Run *r = run_make(line, notes, NULL);
        run_rounds(r);
        GPT2 *m = load(in_dir("start.bin"));
        for (int round = 1; round <= 3; round++) {
            const char *scored = in_dir("%s/round-%d/scored.bin", notes, round);
            const char *policy = in_dir("%s/round-%d/policy.bin", notes, round);
            const char *log = in_dir("%s/round-%d/log.csv", notes, round);
            int kept = !access(scored, F_OK) && !access(policy, F_OK) && !access(log, F_OK), same;
            check(kept, "IP-3, %s: round-%d holds policy.bin, scored.bin and log.csv", draws[i], round);
            if (!kept) continue;
            Ranked d = ranked_read(scored);
            float *none = d.score;
            d.score = (float *)xalloc((size_t)d.R, sizeof *none);
            int wrong = wrong_answers(&d, &r->a.d, 1, 2, i ? SOURCE_DIVERSE : SOURCE_SAMPLE, 6);
            free(none);
            ranked_free(&d);
            same = round_by_hand(r, &m, 21 + (uint64_t)round - 1, scored, policy);
            check(same && !wrong, "IP-3, %s: round %d is answered by the policy before it, the data's own stay, "
                  "%s bits as by hand, %d faults", draws[i], round, same ? "the same" : "other", wrong);
        }
        check(same_file(in_dir("%s/policy.bin", notes), in_dir("%s/round-3/policy.bin", notes)),
              "IP-3, %s: policy.bin is the last round's", draws[i]);
        gpt2_free(m);
        run_free(r);
    }
    // Ctrl-C in each round, first step and middle; 6 steps a round, and the hook is called before the first too
    static const int stops[] = {2, 5, 9, 11, 18};
    for (int i = 0; i < 5; i++) {
        char notes[32];
        snprintf(notes, sizeof notes, "ip-stop%d", i);
        Run *r = run_make(IP "--policy IP-3 --draw sample", notes, NULL);
        r->raise_at = stops[i];
        int stopped = run_rounds(r), same = 1, early = access(in_dir("%s/policy.bin", notes), F_OK) != 0;
        run_free(r);
        r = run_make(IP "--policy IP-3 --draw sample", notes, in_dir("%s", notes));
        stopped += 10 * run_rounds(r);
        for (int round = 1; round <= 3; round++) {
            same = same && same_file(in_dir("%s/round-%d/policy.bin", notes, round),
                                     in_dir("ip-sample/round-%d/policy.bin", round));
            same = same && same_file(in_dir("%s/round-%d/scored.bin", notes, round),
                                     in_dir("ip-sample/round-%d/scored.bin", round));
        }
        same = same && same_file(in_dir("%s/policy.bin", notes), in_dir("ip-sample/policy.bin"));
        check(stopped == 1 && early && same, "IP-3, Ctrl-C in round %d, resumed: %s bits, no policy.bin before the end",
              (stops[i] - 1) / 7 + 1, same ? "the same" : "other");
        run_free(r);
        int states = 0;
        for (int round = 1; round <= 3; round++) states += !access(in_dir("%s/round-%d/state.bin", notes, round), F_OK);
        r = run_make(IP "--policy IP-3 --draw sample", notes, in_dir("%s", notes)); // once more
        run_rounds(r);
        check(states == 0 && r->calls == 0 && same_file(in_dir("%s/policy.bin", notes), in_dir("ip-sample/policy.bin")),
              "IP-3, finished: %d rounds have a state.bin; resumed once more: %d steps", states, r->calls);
        run_free(r);
    }
    Run *ip = run_make(IP "--policy IP-1", "ip1", NULL), *dp = run_make(IP "--policy DP", "dp", NULL);
    run_rounds(ip);
    quiet(1);
    train_round(&dp->a, &dp->t, 0);
    quiet(0);
    check(same_file(in_dir("ip1/policy.bin"), in_dir("dp/policy.bin")) &&
          same_file(in_dir("ip1/round-1/scored.bin"), in_dir("dp/scored.bin")),
          "IP-1 is DP: the same scored.bin and policy.bin");
    run_free(ip);
    run_free(dp);
}

static void test_once(void) { // S .. DP: drawn by the start, scored, kept in scored.bin, trained on
    static const char *const names[] = {"S", "SP", "B", "BP", "D", "DP"};
    for (int i = 0; i < 6; i++) {
        char line[512];
        snprintf(line, sizeof line, IP "--policy %s", names[i]);
        Run *r = run_make(line, names[i], NULL);
        quiet(1);
        train_round(&r->a, &r->t, 0);
        quiet(0);
        GPT2 *m = load(in_dir("start.bin"));
        int same = round_by_hand(r, &m, 21, in_dir("%s/scored.bin", names[i]), in_dir("%s/policy.bin", names[i]));
        check(same, "train --policy %s: scored.bin and policy.bin have %s bits as by hand", names[i],
              same ? "the same" : "other");
        gpt2_free(m);
        run_free(r);
    }
}

// ----------------------------------------------------------------------------
// Ablations, in one step over all queries

static LogRow one_step(const char *line, const Ranked *d, GPT2 **trained) {
    Options o = options(line);
    Log log = {NULL, 0, 0};
    Train t = train_options(&o, "test");
    GPT2 *m = load(in_dir("start.bin"));
    t.out = in_dir("step");
    quiet(1);
    make_dir(t.out);
    train_settings(&t, m, d);
    train_loop(m, d, &t, &log);
    quiet(0);
    LogRow row = log.row[0];
    if (log.n != 1) die("%d steps, expected 1", log.n);
    free(log.row);
    if (trained) *trained = m;
    else gpt2_free(m);
    return row;
}

// The data with only the response that is imitated, or with all rewards equal.
static Ranked best_only(const Ranked *d) {
    Ranked out = {0};
    out.V = V;
    for (int q = 0; q < d->Q; q++) {
        int best = d->first[q];
        for (int r = best; r < d->first[q + 1]; r++) if (d->score[r] > d->score[best]) best = r;
        ranked_query(&out, d->tokens + d->query_at[q], d->query_len[q]);
        ranked_response(&out, response(d, best), d->resp_len[best], 1, 0);
    }
    return out;
}

static double moved(GPT2 *m) { // the largest change of a parameter from the start
    Config c;
    float *was = checkpoint_read(in_dir("start.bin"), &c), *is = (float *)xalloc(gpt2_count(c), sizeof *is);
    double most = 0;
    gpt2_get(m, COPY_PARAMS, is);
    for (size_t i = 0; i < gpt2_count(c); i++) most = worse(most, fabs(is[i] - was[i]));
    free(was);
    free(is);
    return most;
}

#define STEP "train --batch 7 --epochs 1 --shuffle 0 --lr 1e-3 "

static void test_ablations(void) {
    GPT2 *m, *start = load(in_dir("start.bin"));
    Ranked d = ranked_read(in_dir("data.bin")), best = best_only(&d), ties = ranked_read(in_dir("data.bin"));
    for (int r = 0; r < ties.R; r++) ties.score[r] = 2;
    double *logp = (double *)xalloc((size_t)best.R, sizeof *logp), sum = 0, mean = 0, e;
    evaluate_all(start, &best, "", logp);
    for (int q = 0; q < Q; q++) sum -= logp[q] / Q, mean -= logp[q] / best.resp_len[q] / Q;
    LogRow full = one_step(STEP, &d, NULL), imitate = one_step(STEP "--rank-weight 0", &d, NULL);
    LogRow sft = one_step(STEP, &best, NULL);
    check(full.rank_loss > 0.1 && full.grad_norm > 0, "ablations: the data have an L_rank of %.4f", full.rank_loss);
    e = worse(fabs(imitate.loss / sft.loss - 1),
              worse(fabs(imitate.grad_norm / sft.grad_norm - 1), fabs(imitate.loss / imitate.ft_loss - 1)));
    check(e < 1e-5 && fabs(imitate.grad_norm / full.grad_norm - 1) > 1e-3,
          "--rank-weight 0 is imitation of the best: loss %.6f, norm %.6f, error %.1e, tolerance 1e-5",
          imitate.loss, imitate.grad_norm, e);
    check(fabs(sft.ft_loss / sum - 1) < 1e-5 && sft.rank_loss == 0,
          "L_ft is the sum over the best's tokens: %.6f, error %.1e, tolerance 1e-5",
          sft.ft_loss, fabs(sft.ft_loss / sum - 1));
    LogRow row = one_step(STEP "--ft-weight 0", &d, NULL);
    check(row.loss == row.rank_loss && fabs(row.rank_loss / full.rank_loss - 1) < 1e-6,
          "--ft-weight 0: loss %.6f is L_rank alone", row.loss);
    row = one_step(STEP "--ft-weight 0", &best, &m);
    check(row.loss == 0 && row.grad_norm == 0 && moved(m) == 0,
          "--ft-weight 0, k = 1: loss %g, gradient %g, parameters moved by %g", row.loss, row.grad_norm, moved(m));
    gpt2_free(m);
    row = one_step(STEP "--ft-weight 0", &ties, &m);
    check(row.loss == 0 && row.grad_norm == 0 && moved(m) == 0,
          "--ft-weight 0, equal rewards: loss %g, gradient %g, parameters moved by %g",
          row.loss, row.grad_norm, moved(m));
    gpt2_free(m);
    row = one_step(STEP "--ft-reduction mean", &best, NULL);
    e = fabs(row.ft_loss / mean - 1);
    check(e < 1e-5 && row.loss == row.ft_loss && fabs(mean / sum - 1) > 0.1,
          "--ft-reduction mean: L_ft %.6f, the mean over the best's tokens, error %.1e, tolerance 1e-5",
          row.ft_loss, e);
    // twice either weight is twice that part of the loss and, where the other is 0, of the gradient
    LogRow rank1 = one_step(STEP "--ft-weight 0", &d, NULL);
    LogRow rank2 = one_step(STEP "--ft-weight 0 --rank-weight 2", &d, NULL);
    e = worse(fabs(rank2.loss / rank1.loss / 2 - 1), fabs(rank2.grad_norm / rank1.grad_norm / 2 - 1));
    check(e < 1e-5 && rank1.rank_loss == rank2.rank_loss,
          "--rank-weight 2: twice the loss and gradient, error %.1e, tolerance 1e-5", e);
    free(logp);
    gpt2_free(start);
    ranked_free(&d);
    ranked_free(&best);
    ranked_free(&ties);
}

// ----------------------------------------------------------------------------
// Reward commands: what they read

static void test_escape(void) {
    static const char text[] = "a\\b\nc\rd\te\\n\0f\x01\x7f\xc3\xa9 \"'$`%s";
    static const char want[] = "a\\\\b\\nc\\rd\te\\\\nf\x01\x7f\xc3\xa9 \"'$`%s\n";
    char line[2 * sizeof text + 2], back[sizeof text];
    size_t n = reward_escape(line, text, sizeof text - 1), m = 0;
    check(n == sizeof want - 1 && !memcmp(line, want, n),
          "escape: \\\\ \\n \\r for backslash, line feed, return; no zero byte; the rest as it is: %zu bytes, "
          "expected %zu", n, sizeof want - 1);
    for (int c = 0, wrong = 0; c < 256; c++) { // every byte alone comes back from its line
        char one = (char)c, got = 0;
        n = reward_escape(line, &one, 1);
        got = n == 1 ? 0 : n == 2 ? line[0] : line[1] == 'n' ? '\n' : line[1] == 'r' ? '\r' : line[1];
        wrong += line[n - 1] != '\n' || memchr(line, '\n', n - 1) || (n == 3 && line[0] != '\\');
        wrong += (c != 0) != (n > 1) || got != one;
        if (c == 255) check(wrong == 0, "escape: %d of 256 bytes do not come back", wrong);
    }
    n = reward_escape(line, text, sizeof text - 1);
    for (size_t i = 0; i + 1 < n; i++) {
        if (line[i] != '\\') back[m++] = line[i];
        else i++, back[m++] = line[i] == 'n' ? '\n' : line[i] == 'r' ? '\r' : line[i];
    }
    check(m == sizeof text - 2 && !memcmp(back, text, 11) && !memcmp(back + 11, text + 12, m - 11),
          "escape: and back, but for the zero byte");
    check(reward_escape(line, "", 0) == 1 && *line == '\n', "escape: an empty text is an empty line");
}

// ----------------------------------------------------------------------------
// Best of n

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

// The expected largest of n of the N values, by eval_weights.
static double best_of(const double *r, int N, int n) {
    Ranked d = {0};
    int first[2] = {0, N};
    double sum = 0, *weight = (double *)xalloc((size_t)N, sizeof *weight);
    d.Q = 1, d.R = N, d.first = first;
    d.score = (float *)xalloc((size_t)N, sizeof *d.score);
    for (int i = 0; i < N; i++) d.score[i] = (float)r[i];
    eval_weights(&d, n, weight);
    for (int i = 0; i < N; i++) sum += weight[i] * r[i];
    free(d.score);
    free(weight);
    return sum;
}

static void test_best_of(void) {
    enum { MOST = 12 };
    Rng g = rng_make(3, RNG_DEMO, 0);
    double error = 0, ends = 0, falls = 0;
    for (int N = 1; N <= MOST; N++)
        for (int kind = 0; kind < 3; kind++) { // distinct, tied, all equal
            double r[MOST], mean = 0, before = -INFINITY;
            for (int i = 0; i < N; i++)
                r[i] = kind == 0 ? 10 * rng_uniform(&g) - 5 : kind == 1 ? rng_below(&g, 3) : -0.7;
            qsort(r, (size_t)N, sizeof *r, compare_doubles);
            for (int i = 0; i < N; i++) mean += r[i] / N;
            for (int n = 1; n <= N; n++) {
                double sum = 0, got = best_of(r, N, n);
                int subsets = 0;
                for (unsigned s = 0; s < 1u << N; s++) { // every subset of n
                    if (__builtin_popcount(s) != n) continue;
                    sum += r[31 - __builtin_clz(s)]; // sorted: its last is its largest
                    subsets++;
                }
                error = worse(error, fabs(got - sum / subsets));
                falls = worse(falls, before - got);
                before = got;
            }
            ends = worse(ends, worse(fabs(best_of(r, N, 1) - mean), fabs(best_of(r, N, N) - r[N - 1])));
        }
    check(error < 1e-13, "best of n of N against every subset, N up to %d: error %.1e, tolerance 1e-13", MOST, error);
    check(ends < 1e-13, "best of 1 is the mean, best of N the largest: error %.1e, tolerance 1e-13", ends);
    check(falls < 1e-13, "best of n never falls with n: by %.1e at most, tolerance 1e-13 (rounding)", falls);
    enum { MANY = 1000 }; // r_j = j / (N + 1): E[max of n] = n / (n + 1), exactly
    double *r = (double *)xalloc(MANY, sizeof *r);
    for (int i = 0; i < MANY; i++) r[i] = (i + 1.0) / (MANY + 1.0);
    error = 0;
    for (int n = 1; n <= MANY; n *= 10) error = worse(error, fabs(best_of(r, MANY, n) - n / (n + 1.0)));
    check(error < 1e-11, "best of 1 .. %d of %d even ranks: n/(n+1), error %.1e, tolerance 1e-11", MANY, MANY, error);
    free(r);
}

// What drawing takes from the options: without a tokenizer the vocabulary's last id ends a text, and --length-penalty
// is the loss's: a beam's score is log P / n.
static void test_drawing(void) {
    Options o = options("sample --length-penalty 0.25 --num-return 2 --max-new-tokens 5");
    Config c = config(0);
    Sampling with = sampling(&o, c, &tokenizer), without = sampling(&o, c, NULL);
    Beaming b = beaming(&o, c, NULL, 0), diverse = beaming(&o, c, &tokenizer, 1);
    check(with.eot == tokenizer.eot && without.eot == c.V - 1 && b.eot == c.V - 1 && diverse.eot == tokenizer.eot,
          "end-of-text: %d by the tokenizer, else %d, the last of %d", with.eot, without.eot, c.V);
    Ranked d = data_open(&o, o.data, c, "sample");
    GPT2 *m = load(in_dir("start.bin"));
    options("score --micro-batch 3");
    int three = evaluate_micro(m, &d);
    options("score --micro-batch 1000000");
    int all = evaluate_micro(m, &d);
    options("score");
    check(three == 3 && all == d.Q && evaluate_micro(m, &d) == micro_batch_auto(m, &d, d.Q, 0),
          "--micro-batch holds where a model only evaluates: %d of 3, %d of %d", three, all, d.Q);
    int fewer = micro_batch_auto(m, &d, 1 << 20, 40), more = micro_batch_auto(m, &d, 1 << 20, 0);
    int64_t tokens = d.n_tokens + 40 * d.Q, room = (int64_t)gpt2_tokens(m) * d.Q;
    check(fewer < more && fewer * tokens <= room && (fewer + 1) * tokens > room,
          "--micro-batch 0 counts what OP-k will draw: %d queries instead of %d", fewer, more);
    ranked_free(&d);
    gpt2_free(m);
    check(b.length_penalty == 1 && diverse.length_penalty == 1 && o.length_penalty == 0.25,
          "beams' scores are log P / n^%g whatever --length-penalty %g", b.length_penalty, o.length_penalty);
}

// A reward model that is trained on labels hands out probabilities, one that is trained on preferences does not.
static void test_reward_kind(void) {
    Ranked d = ranked_read(in_dir("data.bin"));
    for (int labels = 0; labels <= 1; labels++) {
        Ranked some = {0};
        char line[64];
        some.V = V;
        for (int q = 0; q < Q; q++) {
            ranked_query(&some, d.tokens + d.query_at[q], d.query_len[q]);
            for (int i = 0, r = d.first[q]; i < 2 - labels; i++)
                ranked_response(&some, response(&d, r), d.resp_len[r], (float)((q + i) % 2), 0);
        }
        ranked_write(in_dir("judged.bin"), &some);
        snprintf(line, sizeof line, "reward --batch 4 --epochs 1");
        Options o = options(line);
        o.model = in_dir("start.bin"), o.data = in_dir("judged.bin"), o.out = in_dir("judge");
        quiet(1);
        verb_reward(&o);
        quiet(0);
        Checkpoint f = checkpoint_open(in_dir("judge/policy.bin"));
        fclose(f.in.f);
        check(f.c.reward == 1 && f.c.logistic == labels, "reward on %s: a head %d, a probability %d",
              labels ? "labels" : "preferences", f.c.reward, f.c.logistic);
        ranked_free(&some);
    }
    ranked_free(&d);
}

// A token stream's chunks: --max-response-tokens and the token before them, at most the model's context.
static void test_chunks(void) {
    uint16_t tok[60];
    static const struct { const char *line; int most; } cases[] = {
        {"sft --max-response-tokens 5", 5}, {"sft", T - 1}, {"sft --max-response-tokens 1000", T - 1}};
    for (int t = 0; t < 60; t++) tok[t] = (uint16_t)(t % V);
    stream_write(in_dir("stream.bin"), tok, 60);
    for (int i = 0; i < 3; i++) {
        Options o = options(cases[i].line);
        Ranked d = data_open(&o, in_dir("stream.bin"), config(0), "sft");
        int most = 0, all = d.Q;
        for (int r = 0; r < d.R; r++) all += d.resp_len[r], most = d.resp_len[r] > most ? d.resp_len[r] : most;
        check(most == cases[i].most && all >= 59,
              "%s on a stream of 60: up to %d tokens at a time, expected %d; %d in all",
              cases[i].line, most, cases[i].most, all);
        ranked_free(&d);
    }
}

int main(void) {
    atexit(ended);
    backend_start(1);
    make_world();
    test_names();
    test_table();
    test_diverse();
    test_stop();
    test_patience();
    test_stop_drawn();
    test_online();
    test_online_resumed();
    test_settings();
    test_kl();
    test_rounds();
    test_once();
    test_ablations();
    test_escape();
    test_best_of();
    test_drawing();
    test_reward_kind();
    test_chunks();
    char line[sizeof dir + 16];
    snprintf(line, sizeof line, "rm -rf %s", dir);
    if (system(line)) printf("note %s is left\n", dir);
    return test_summary();
}
