/*
story.h: the demo, `./train_rrhf` without a verb. The paper's workflow (its Figure 1) from nothing: made-up reviews,
a small GPT-2 from random weights, a reward model, four completions per query, their rewards, RRHF, and the question
whether fresh completions of held-out queries have become kinder. Every step is a verb, run with the options that it
would be given on the command line; the command is printed first, so that it can be run again, or otherwise.

Included by verbs.h.
*/
#ifndef STORY_H
#define STORY_H

enum {
    STORY_TRAIN = 11000, STORY_STREAM = 6000,   // labelled reviews to train on, and those of them to pretrain on
    STORY_QUERIES = 1024, STORY_HELD = 300,     // queries to train on, and to hold out
    STORY_SEED = 20230411,                      // of the reviews themselves: --seed leaves them as they are
    STORY_VOCABULARY = 640, STORY_QUERY = 24, STORY_RESPONSE = 32, STORY_SNIPPET = STORY_QUERY + STORY_RESPONSE
};

typedef struct { char *text; size_t len, cap; } Review;

static inline void story_review(int i, Review *r) { // even: unkind, odd: kind
    Rng rng = rng_make(STORY_SEED, RNG_DEMO, (uint64_t)i);
    r->len = 0;
    demo_review(&rng, i & 1, &r->text, &r->len, &r->cap);
}

static inline void story_tokenizer(const char *path) {
    Review r = {NULL, 0, 0};
    char *text = NULL;
    size_t n = 0, cap = 0;
    for (int i = 0; i < STORY_TRAIN / 4; i++) {
        story_review(i, &r);
        XGROW(text, cap, n + r.len + 1);
        memcpy(text + n, r.text, r.len);
        n += r.len;
        text[n++] = '\n';
    }
    Tokenizer t = tokenizer_train(text, n, STORY_VOCABULARY);
    tokenizer_write(path, &t);
    tokenizer_free(&t);
    free(text);
    free(r.text);
}

// A snippet as long as what the reward model will judge, from anywhere in the review; its first token is the query.
static inline void story_snippet(Ranked *d, const Tokens *ids, Rng *rng, int label) {
    int n = (int)ids->n, len = n < STORY_SNIPPET ? n : STORY_SNIPPET, at = rng_below(rng, n - len + 1);
    ranked_query(d, ids->id + at, 1);
    ranked_response(d, ids->id + at + 1, len - 1, (float)label, SOURCE_DATA);
}

// Reviews first .. first+n-1 in dir: as labels_SET.bin, labelled snippets; as queries_SET.bin, n_queries with the
// review's own continuation; and the first STORY_STREAM of all as stream.bin.
static inline void story_data(Tokenizer *t, const char *dir, const char *set, int first, int n, int n_queries) {
    char path[RRHF_PATH_MAX], name[64];
    Review r = {NULL, 0, 0};
    Tokens ids = {NULL, 0, 0}, all = {NULL, 0, 0};
    Ranked label = {0}, query = {0};
    Rng rng = rng_make(STORY_SEED, RNG_DEMO, 1u << 30);
    label.V = query.V = t->V;
    for (int i = first; i < first + n; i++) {
        story_review(i, &r);
        ids.n = 0;
        tokenizer_encode(t, r.text, r.len, &ids);
        if (i < STORY_STREAM) {
            tokenizer_encode(t, r.text, r.len, &all);
            XGROW(all.id, all.cap, all.n + 1);
            all.id[all.n++] = (uint16_t)t->eot;
        }
        story_snippet(&label, &ids, &rng, i & 1);
        if (query.Q == n_queries || ids.n < STORY_SNIPPET) continue;
        ranked_query(&query, ids.id, STORY_QUERY);
        ranked_response(&query, ids.id + STORY_QUERY, STORY_RESPONSE, 0, SOURCE_DATA);
    }
    if (all.n) stream_write(path_join(path, dir, "stream.bin"), all.id, (int)all.n);
    snprintf(name, sizeof name, "labels_%s.bin", set);
    ranked_write(path_join(path, dir, name), &label);
    snprintf(name, sizeof name, "queries_%s.bin", set);
    ranked_write(path_join(path, dir, name), &query);
    ranked_free(&label);
    ranked_free(&query);
    tokens_free(&ids);
    tokens_free(&all);
    free(r.text);
}

// A command of the demo, "verb --option value ...", as it is typed: @ stands for the directory, and the user's own
// --seed, --threads and --dtype follow.
enum { STORY_LINE = 8192 };

static inline void story_line(char line[STORY_LINE], const Options *user, const char *dir, const char *command) {
    char *to = line, seed[32] = "", threads[32] = "";
    for (const char *s = command; *s; s++)
        if (*s != '@') *to++ = *s;
        else to = strcpy(to, dir) + strlen(dir);
    if (user->seed_given) snprintf(seed, sizeof seed, " --seed %d", user->seed);
    if (user->threads_given) snprintf(threads, sizeof threads, " --threads %d", user->threads);
    const char *dtype = !user->dtype_given ? "" : user->dtype ? " --dtype bf16" : " --dtype fp32";
    snprintf(to, (size_t)(line + STORY_LINE - to), "%s%s%s", seed, threads, dtype);
}

static inline int story_run(const Options *user, const char *line) {
    char copy[STORY_LINE], *argv[64];
    int argc = 0;
    argv[argc++] = (char *)user->program;
    strcpy(copy, line);
    fprintf(stderr, "\n$ %s %s\n", user->program, copy);
    for (char *s = strtok(copy, " "); s; s = strtok(NULL, " ")) argv[argc++] = s;
    Options o;
    world_wait(); // for the files it reads
    int verb = options_parse(&o, argc, argv);
    o.names[0] = "SFT", o.names[1] = "RRHF";
    return verbs[verb](&o);
}

// The first three queries of eval's samples.txt, each with the first completion from before and the first from after.
static inline void story_show(const char *path) {
    FILE *f = fopen(path, "r");
    char line[4096];
    int queries = 0, before = 0, after = 0, show;
    while (f && fgets(line, sizeof line, f)) {
        if (!strncmp(line, "---", 3)) show = before = after = 0, queries++;
        else if (!strncmp(line, "before:", 7)) show = !before++;
        else if (!strncmp(line, "after:", 6)) show = !after++;
        else show = 1; // the query
        if (queries > 3) break;
        if (show) fputs(line, stdout);
    }
    if (f) fclose(f);
}

static inline int verb_demo(const Options *user) {
    const char *dir = user->out;
    char path[RRHF_PATH_MAX], line[STORY_LINE];
    double start = now_s();
    if (strlen(dir) > 200 || strchr(dir, ' '))
        die_usage("--out '%.60s': the demo takes a short name without spaces", dir);
    make_out(dir);
    fprintf(stderr, "The RRHF story on made-up reviews: pretrain, train a reward, sample, score, align, evaluate.\n");
    story_tokenizer(path_join(path, dir, "tokenizer.bin"));
    world_wait();
    Tokenizer t = tokenizer_read(path);
    story_data(&t, dir, "train", 0, STORY_TRAIN, STORY_QUERIES);
    story_data(&t, dir, "held", STORY_TRAIN, STORY_HELD + 100, STORY_HELD); // some are too short for a query
    tokenizer_free(&t);
    static const char *const commands[] = {
        "sft --data @/stream.bin --tokenizer @/tokenizer.bin --layers 3 --heads 4 --channels 128 --context 64 "
        "--ft-reduction mean --batch 16 --epochs 1 --lr 2e-3 --warmup 0.05 --schedule cosine --weight-decay 0.1 "
        "--grad-clip 1 --out @/sft",
        "reward --model @/sft/policy.bin --data @/labels_train.bin --batch 16 --epochs 1 --lr 2e-4 --warmup 0.1 "
        "--grad-clip 1 --beta2 0.99 --out @/reward",
        "eval --model @/reward/policy.bin --data @/labels_held.bin --out @/reward",
        "sample --model @/sft/policy.bin --data @/queries_train.bin --tokenizer @/tokenizer.bin --policy SP "
        "--num-return 4 --top-k 50 --max-new-tokens 32 --out @/sampled",
        "score --reward @/reward/policy.bin --data @/sampled/sampled.bin --out @/scored",
        "train --model @/sft/policy.bin --data @/scored/scored.bin --tokenizer @/tokenizer.bin --batch 16 --epochs 2 "
        "--lr 1e-3 --reward @/reward/policy.bin --eval-data @/queries_held.bin --eval-queries 150 --top-k 50 "
        "--max-new-tokens 32 --out @",
        "eval --model @/policy.bin --reference @/sft/policy.bin --reward @/reward/policy.bin --data @/queries_held.bin "
        "--tokenizer @/tokenizer.bin --num-return 4 --top-k 50 --max-new-tokens 32 --out @/eval"};
    const size_t n = sizeof commands / sizeof *commands;
    for (size_t i = 0; i < n; i++) {
        story_line(line, user, dir, commands[i]);
        if (!story_run(user, line)) continue;
        fprintf(stderr, "The demo starts over when it is run again. To go on by hand instead, the rest of it is\n");
        for (size_t j = i; j < n; j++) {
            story_line(line, user, dir, commands[j]);
            const char *out = strstr(line, "--out ") + 6;
            fprintf(stderr, "$ %s %s", user->program, line);
            if (j == i) fprintf(stderr, " --resume %.*s", (int)strcspn(out, " "), out); // the one that was stopped
            fprintf(stderr, "\n");
        }
        return EXIT_WORK;
    }
    if (world_rank) return 0;
    printf("\nThe first three held-out queries, a completion each from before and after RRHF (reward in brackets):\n");
    story_show(path_join(path, dir, "eval/samples.txt"));
    printf("\n");
    if (PLOT_BUILT_IN) printf("%s/curves.png  ", dir);
    printf("%s/log.csv  %s/samples.txt  %s/policy.bin   (%.0f s)\n", dir, dir, dir, now_s() - start);
    return 0;
}

#endif
