/*
convert.c: this program's files from and to the formats that others use.

    make dev/convert      (needs libcjson-dev; by hand: gcc -O2 -o dev/convert dev/convert.c -lcjson -lm)

    dev/convert ranked  IN.jsonl OUT.bin --tokenizer T [--eos 0|1]
                        [--max-query-tokens N] [--max-response-tokens N]
    dev/convert jsonl   IN.bin OUT.jsonl --tokenizer T
    dev/convert from-hf DIR OUT_PREFIX              writes OUT_PREFIX.model.bin and OUT_PREFIX.tokenizer.bin
    dev/convert to-hf   MODEL.bin TOKENIZER.bin DIR

Ranked responses as JSON lines, the format of the RRHF authors: UTF-8, one object per query,
    {"query": "x", "responses": ["y1", "y2"], "scores": [0.5, -1]}
Without "scores" all are 0; without "responses", or with none in it, the query gets one of nothing but end-of-text:
data whose responses `train_rrhf sample`, and whose scores `train_rrhf score`, are still to make. Two more keys are
optional, with an entry per response each: "sources" (0 = the data set, 1.. = a sampling policy) and "eos" (1:
end-of-text ends the response, 0: it does not; stronger than --eos). `jsonl` writes them only where they say
something: a source that is not 0, a response without end-of-text. Other keys are ignored.
A text has no zero character: \u0000 is refused.
    ranked -> jsonl -> ranked gives the same file if nothing was cut. Not every run of tokens is what its text
encodes to, so a file of sampled responses may come back in other tokens. Bytes that JSON cannot hold, those
that are not UTF-8 (half a character, say) and zeros, `jsonl` writes as U+FFFD and says how many. Text that
spells <|endoftext|> is text, never the token; `jsonl` says if the token stands elsewhere than at an end.

Hugging Face directories: config.json, model.safetensors, vocab.json, merges.txt (and, written only,
tokenizer_config.json, for AutoTokenizer). Only what is exactly this program's GPT-2 is taken: tanh GELU,
LayerNorm eps 1e-5, classifier tied to wte, no added tokens, end-of-text (if there is one) spelled
<|endoftext|>, one file of weights in F32, F16 or BF16. Their matrices are (in, out), ours (out, in); their
vocabulary is not padded, ours to a multiple of 128, zero rows.
    Our encoder knows no list of merges: a token's id is its rank, and any neighbours that spell it may join.
Theirs joins only the pairs listed in merges.txt, in its order. The two agree when each token's bytes, under
the merges of lower rank alone, come to exactly two pieces: these are then the only neighbours that ever spell
it. So that is what both directions demand, and the pairs are what merges.txt lists in order of id.

Outputs appear under their names when complete. Exit code 0: done, 1: the work failed, 2: bad command line.
*/
#include "../util.h"       // defines: die, die_usage, In, Out, xalloc, XGROW, make_dir, path_join
#include "../dataloader.h" // defines: Ranked, ranked_read, ranked_write, ranked_limit
#include "../model.h"      // defines: Config, GPT2_PARAMS, gpt2_tensors, checkpoint_read, checkpoint_write
#include "../tokenizer.h"  // defines: Tokenizer, tokenizer_encode, tokenizer_text, kind_at, merge_word
#include <cjson/cJSON.h>   // defines: cJSON, cJSON_Parse*
#include <float.h>         // defines: FLT_MAX

#define COUNT(a) (sizeof (a) / sizeof *(a))

typedef struct {
    const char *path[3];                  // the positional arguments
    const char *tokenizer;
    int eos, max_query, max_response;     // limits in tokens, 0 = none
} Args;

// ----------------------------------------------------------------------------
// JSON, read

typedef struct { const char *path; long line; } Where; // line 0: the file as a whole

__attribute__((format(printf, 2, 3), noreturn))
static void die_at(Where w, const char *fmt, ...) {
    char what[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    if (w.line) die("%s:%ld: %s", w.path, w.line, what);
    die("%s: %s", w.path, what);
}

static const char *json_kind(const cJSON *j) {
    switch (j->type & 0xFF) {
        case cJSON_False: case cJSON_True: return "true or false";
        case cJSON_NULL: return "null";
        case cJSON_Number: return "a number";
        case cJSON_String: return "a string";
        case cJSON_Array: return "an array";
        case cJSON_Object: return "an object";
        default: return "something else";
    }
}

// Up to 40 printable bytes of s on one line, for an error message. Two static buffers take turns.
static const char *excerpt(const char *s) {
    static char buf[2][41];
    static int turn;
    char *d = buf[turn ^= 1];
    int n = 0;
    for (; n < 40 && s[n] && s[n] != '\n'; n++) d[n] = s[n] >= 32 && s[n] < 127 ? s[n] : '?';
    d[n] = 0;
    return d;
}

// Escapes that cJSON would take for the zero character, where a string would end.
static void escapes_check(Where w, const char *s) {
    for (const char *e = s; (e = strchr(e, '\\')) && e[1]; e += 2) { // an escape is at least two bytes
        if (e[1] != 'u') continue;
        if (strspn(e + 2, "0123456789abcdefABCDEF") < 4)
            die_at(w, "the escape '%.6s' at byte %td, expected four hexadecimal digits after \\u", excerpt(e),
                   e - s + 1);
        if (strncmp(e + 2, "0000", 4) == 0)
            die_at(w, "the escape \\u0000 at byte %td; a text has no zero character: remove it", e - s + 1);
    }
}

// Parses text, which must be one object and nothing after it.
static cJSON *json_object(Where w, const char *text) {
    const char *end = text, *hint = "expected one complete object";
    escapes_check(w, text);
    cJSON *j = cJSON_ParseWithOpts(text, &end, 1);
    if (!j && (strncmp(end, "NaN", 3) == 0 || strncmp(end + (*end == '-'), "Inf", 3) == 0))
        hint = "JSON has no NaN and no Infinity: leave these responses out";
    if (!j) die_at(w, "not JSON from byte %td on, at '%s'; %s", end - text + 1, excerpt(end), hint);
    if (!cJSON_IsObject(j)) die_at(w, "found %s, expected an object {...}", json_kind(j));
    return j;
}

// The member `key`, NULL if there is none. Which of two would be meant? Readers differ.
static const cJSON *json_member(Where w, const cJSON *j, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(j, key);
    for (const cJSON *other = v ? v->next : NULL; other; other = other->next)
        if (strcmp(other->string, key) == 0) die_at(w, "\"%s\" is there twice, expected it once", key);
    return v;
}

// The member `key` of the wanted type. A missing one is NULL if optional.
static const cJSON *json_get(Where w, const cJSON *j, const char *key, int type, int optional) {
    const cJSON *v = json_member(w, j, key), want = {.type = type};
    if (!v && !optional) die_at(w, "no \"%s\", expected %s under that key", key, json_kind(&want));
    if (v && (v->type & 0xFF) != type)
        die_at(w, "\"%s\" is %s, expected %s", key, json_kind(v), json_kind(&want));
    return v;
}

// A whole number from lo to hi, or -1 if it is none. (Doubles hold them exactly up to 2^53.)
static int64_t json_whole(const cJSON *v, double lo, double hi) {
    if (!cJSON_IsNumber(v) || !(v->valuedouble >= lo && v->valuedouble <= hi)) return -1;
    int64_t n = (int64_t)v->valuedouble;
    return (double)n == v->valuedouble ? n : -1;
}

// The next `size` bytes, text without a zero, and a terminating zero; to be freed.
static char *text_read(In *in, int64_t size, const char *what) {
    char *text = (char *)xalloc((size_t)size + 1, 1);
    in_read(in, text, size, what);
    if (strlen(text) != (size_t)size)
        die("%s: a zero byte at %zu of %s, expected text; is the file damaged?", in->path, strlen(text) + 1, what);
    return text;
}

// The whole of a file.
static char *file_text(const char *path) {
    In in = in_open(path);
    char *text = text_read(&in, in.size, "the text");
    in_close(&in);
    return text;
}

// ----------------------------------------------------------------------------
// JSON, written

// Bytes of the UTF-8 character at s, n > 0 bytes left; 0 if it is none.
static size_t utf8_char(const Tokenizer *t, const char *s, size_t n) {
    size_t len;
    kind_at(t, s, n, &len);
    return (uint8_t)s[0] < 0x80 || len > 1 ? len : 0;
}

// Writes n bytes as a JSON string; returns how many had to become U+FFFD.
static long json_string(Out *out, const Tokenizer *t, const char *s, size_t n) {
    long lost = 0;
    size_t done = 0, len;
    out_write(out, "\"", 1);
    for (size_t i = 0; i < n; i += len ? len : 1) {
        uint8_t b = (uint8_t)s[i];
        len = utf8_char(t, s + i, n - i);
        if (len && b >= 32 && b != '"' && b != '\\') continue; // stands for itself
        out_write(out, s + done, i - done);
        done = i + 1;
        if (!len || b == 0) out_write(out, "\xEF\xBF\xBD", 3), lost++;
        else if (b == '\n') out_write(out, "\\n", 2);
        else if (b == '\t') out_write(out, "\\t", 2);
        else if (b == '\r') out_write(out, "\\r", 2);
        else if (b < 32) out_printf(out, "\\u%04x", b);
        else out_printf(out, "\\%c", b);
    }
    out_write(out, s + done, n - done);
    out_write(out, "\"", 1);
    return lost;
}

// ----------------------------------------------------------------------------
// ranked: JSON lines to ranked responses

// What cJSON would let through: zero bytes (the text would end there) and bytes that are not UTF-8.
static void line_check(Where w, const Tokenizer *t, const char *s, size_t n) {
    if (strlen(s) != n)
        die_at(w, "a zero byte at %zu, expected UTF-8 text; convert the file (UTF-16?)", strlen(s) + 1);
    for (size_t i = 0, len; i < n; i += len)
        if (!(len = utf8_char(t, s + i, n - i)))
            die_at(w, "byte 0x%02X at %zu is not UTF-8; convert the file (iconv)", (uint8_t)s[i], i + 1);
}

// Tokens of a text, in ids; `what` and i (from 0, -1 = there is only one) name it in errors.
static void text_encode(Where w, Tokenizer *t, const char *text, Tokens *ids, const char *what, int i) {
    char name[64];
    if (i < 0) snprintf(name, sizeof name, "the %s", what);
    else snprintf(name, sizeof name, "%s %d", what, i);
    size_t n = strlen(text);
    for (size_t k = 0; k < n; k++)
        if (t->byte_id[(uint8_t)text[k]] < 0)
            die_at(w, "%s has byte 0x%02X, for which the vocabulary of %d has no token; use one with all 256",
                   name, (uint8_t)text[k], t->V);
    ids->n = 0;
    tokenizer_encode(t, text, n, ids);
    if (ids->n > INT32_MAX - 1) die_at(w, "%s has %zu tokens, expected fewer than 2^31", name, ids->n);
}

static void ids_append(Tokens *ids, int id) {
    XGROW(ids->id, ids->cap, ids->n + 1);
    ids->id[ids->n++] = (uint16_t)id;
}

static float score_value(Where w, const cJSON *v, int i) {
    if (!cJSON_IsNumber(v)) die_at(w, "score %d is %s, expected a number", i, json_kind(v));
    if (!isfinite((float)v->valuedouble)) // which rounds, and so takes FLT_MAX as it was written
        die_at(w, "score %d is %g, expected a finite float32, up to %g", i, v->valuedouble, (double)FLT_MAX);
    return (float)v->valuedouble;
}

// Entry i of an optional array, `absent` without one.
static int option_value(Where w, const cJSON *v, const char *key, int i, int hi, int absent) {
    if (!v) return absent;
    if (cJSON_IsBool(v) && hi == 1) return cJSON_IsTrue(v);
    int64_t n = json_whole(v, 0, hi);
    if (n < 0) die_at(w, "entry %d of \"%s\" is no whole number from 0 to %d", i, key, hi);
    return (int)n;
}

// The array `key`, which has k entries: one per response. NULL if it is missing.
static const cJSON *line_array(Where w, const cJSON *j, const char *key, int k) {
    const cJSON *v = json_get(w, j, key, cJSON_Array, 1);
    if (v && cJSON_GetArraySize(v) != k)
        die_at(w, "%d responses but %d entries in \"%s\", expected as many", k, cJSON_GetArraySize(v), key);
    return v ? v->child : NULL;
}

typedef struct { long responses, scores; } Missing; // lines without them

// Appends one line's query and responses.
static void line_append(Where w, const cJSON *j, Ranked *d, Tokenizer *t, Tokens *ids, int eos_default,
                        Missing *missing) {
    const cJSON *query = json_get(w, j, "query", cJSON_String, 0);
    const cJSON *y = json_get(w, j, "responses", cJSON_Array, 1);
    int k = y ? cJSON_GetArraySize(y) : 0;
    const cJSON *score = line_array(w, j, "scores", k);
    const cJSON *source = line_array(w, j, "sources", k), *eos = line_array(w, j, "eos", k);
    text_encode(w, t, query->valuestring, ids, "query", -1);
    if (ids->n == 0) die_at(w, "the query is empty, expected at least one token");
    ranked_query(d, ids->id, (int)ids->n);
    missing->scores += k && !score;
    missing->responses += !k;
    if (!k) {
        if (!eos_default)
            die_at(w, "no responses; one must have a token: use --eos 1, which makes one of end-of-text alone");
        ranked_response(d, (const uint16_t[]){(uint16_t)t->eot}, 1, 0, 0);
        return;
    }
    y = y->child;
    for (int i = 0; i < k; i++, y = y->next) {
        if (!cJSON_IsString(y)) die_at(w, "response %d is %s, expected a string", i, json_kind(y));
        text_encode(w, t, y->valuestring, ids, "response", i);
        if (option_value(w, eos, "eos", i, 1, eos_default)) {
            if (t->eot < 0) die_at(w, "response %d: \"eos\" 1, but the tokenizer has no end-of-text", i);
            ids_append(ids, t->eot);
        }
        if (ids->n == 0) die_at(w, "response %d is empty, expected a token; --eos 1 gives it one", i);
        int from = option_value(w, source, "sources", i, INT32_MAX, 0);
        ranked_response(d, ids->id, (int)ids->n, score ? score_value(w, score, i) : 0, from);
        if (score) score = score->next;
        if (source) source = source->next;
        if (eos) eos = eos->next;
    }
}

static void convert_ranked(const Args *a) {
    Tokenizer t = tokenizer_read(a->tokenizer);
    if (a->eos && t.eot < 0)
        die("%s: no end-of-text token, but --eos 1, the default, needs one; use --eos 0", a->tokenizer);
    In in = in_open(a->path[0]);
    Ranked d = {.V = t.V};
    Where w = {a->path[0], 0};
    Tokens ids = {0, 0, 0};
    Missing missing = {0, 0};
    char *line = NULL;
    size_t cap = 0;
    for (ssize_t n; (n = getline(&line, &cap, in.f)) >= 0;) {
        w.line++;
        line_check(w, &t, line, (size_t)n);
        if (strspn(line, " \t\r\n") == (size_t)n) continue;
        cJSON *j = json_object(w, line);
        line_append(w, j, &d, &t, &ids, a->eos, &missing);
        cJSON_Delete(j);
    }
    if (!feof(in.f)) die("%s: cannot read: %s", w.path, strerror(errno));
    if (d.Q == 0) die("%s: no query in %ld lines, expected JSON lines {\"query\":...}", w.path, w.line);
    fclose(in.f);
    ranked_limit(&d, a->max_query, a->max_response);
    ranked_write(a->path[1], &d);
    printf("%s: %d queries, %d responses\n", a->path[1], d.Q, d.R);
    if (missing.responses)
        fprintf(stderr, "note: %s: %ld queries without \"responses\" got one of end-of-text alone; make them: "
                "train_rrhf sample\n", w.path, missing.responses);
    if (missing.scores)
        fprintf(stderr, "note: %s: %ld queries without \"scores\" got 0 for all; make them: train_rrhf score\n",
                w.path, missing.scores);
    free(line);
    tokens_free(&ids);
    ranked_free(&d);
    tokenizer_free(&t);
}

// ----------------------------------------------------------------------------
// jsonl: ranked responses to JSON lines

typedef struct { Out out; const Tokenizer *t; long lost, inner_eot; } Lines; // what JSON could not hold

static void lines_text(Lines *l, const uint16_t *ids, int n) {
    size_t len;
    char *text = tokenizer_text(l->t, ids, (size_t)n, &len);
    for (int i = 0; i < n; i++) l->inner_eot += ids[i] == l->t->eot;
    l->lost += json_string(&l->out, l->t, text, len);
    free(text);
}

static void lines_query(Lines *l, const Ranked *d, int q) {
    int r0 = d->first[q], r1 = d->first[q + 1], sources = 0, ended = 0;
    out_printf(&l->out, "{\"query\": ");
    lines_text(l, d->tokens + d->query_at[q], d->query_len[q]);
    out_printf(&l->out, ", \"responses\": [");
    for (int r = r0; r < r1; r++) {
        const uint16_t *y = d->tokens + d->resp_at[r];
        int eos = y[d->resp_len[r] - 1] == l->t->eot;
        if (r > r0) out_printf(&l->out, ", ");
        lines_text(l, y, d->resp_len[r] - eos);
        ended += eos;
        sources |= d->source[r];
    }
    out_printf(&l->out, "], \"scores\": [");
    for (int r = r0; r < r1; r++) out_printf(&l->out, "%s%.9g", r > r0 ? ", " : "", d->score[r]);
    for (int r = r0; sources && r < r1; r++)
        out_printf(&l->out, "%s%d", r > r0 ? ", " : "], \"sources\": [", d->source[r]);
    for (int r = r0; ended < r1 - r0 && r < r1; r++)
        out_printf(&l->out, "%s%d", r > r0 ? ", " : "], \"eos\": [",
                   d->tokens[d->resp_at[r] + d->resp_len[r] - 1] == l->t->eot);
    out_printf(&l->out, "]}\n");
}

static void convert_jsonl(const Args *a) {
    Tokenizer t = tokenizer_read(a->tokenizer);
    Ranked d = ranked_read(a->path[0]);
    if (d.V != t.V) die("%s: made with a vocabulary of %d, but %s has %d; use the tokenizer that made it",
                        a->path[0], d.V, a->tokenizer, t.V);
    Lines l = {out_open(a->path[1]), &t, 0, 0};
    for (int q = 0; q < d.Q; q++) lines_query(&l, &d, q);
    out_close(&l.out);
    printf("%s: %d queries, %d responses\n", a->path[1], d.Q, d.R);
    if (l.lost)
        fprintf(stderr, "note: %s: U+FFFD stands for %ld bytes that are not UTF-8\n", a->path[1], l.lost);
    if (l.inner_eot)
        fprintf(stderr, "note: %s: %ld end-of-text tokens that do not end a response became plain text\n",
                a->path[1], l.inner_eot);
    ranked_free(&d);
    tokenizer_free(&t);
}

// ----------------------------------------------------------------------------
// Hugging Face: names of the tensors, GPT-2's alphabet, merges

typedef struct { const char *name, *hf; int in_block, transpose; } HfTensor;

static const HfTensor hf_tensor[] = {
    {"wte", "wte.weight", 0, 0},                 {"wpe", "wpe.weight", 0, 0},
    {"ln1w", "ln_1.weight", 1, 0},               {"ln1b", "ln_1.bias", 1, 0},
    {"qkvw", "attn.c_attn.weight", 1, 1},        {"qkvb", "attn.c_attn.bias", 1, 0},
    {"attprojw", "attn.c_proj.weight", 1, 1},    {"attprojb", "attn.c_proj.bias", 1, 0},
    {"ln2w", "ln_2.weight", 1, 0},               {"ln2b", "ln_2.bias", 1, 0},
    {"fcw", "mlp.c_fc.weight", 1, 1},            {"fcb", "mlp.c_fc.bias", 1, 0},
    {"fcprojw", "mlp.c_proj.weight", 1, 1},      {"fcprojb", "mlp.c_proj.bias", 1, 0},
    {"lnfw", "ln_f.weight", 0, 0},               {"lnfb", "ln_f.bias", 0, 0},
};

// One layer's slice of a tensor, as both sides see it.
typedef struct {
    char name[64];     // theirs, without "transformer."
    size_t at;         // where it starts in our parameters
    int rows, cols;    // ours; wte without its padding
    int transpose;     // theirs is (cols, rows)
} Slice;

// All slices in the order of our file, to be freed; *n is their number.
static Slice *slices_make(Config c, int *n) {
    Tensor t[N_TENSORS];
    gpt2_tensors(c, t);
    Slice *all = (Slice *)xalloc(N_TENSORS * (size_t)c.L, sizeof *all);
    *n = 0;
    for (int i = 0; i < N_TENSORS; i++)
        for (int l = 0; l < t[i].layers; l++) {
            size_t k = 0;
            while (k < COUNT(hf_tensor) && strcmp(hf_tensor[k].name, t[i].name)) k++;
            if (k == COUNT(hf_tensor)) die("tensor %s has no Hugging Face name; see hf_tensor", t[i].name);
            const HfTensor *h = &hf_tensor[k];
            Slice *s = &all[(*n)++];
            if (h->in_block) snprintf(s->name, sizeof s->name, "h.%d.%s", l, h->hf);
            else snprintf(s->name, sizeof s->name, "%s", h->hf);
            s->at = t[i].at + (size_t)l * (size_t)t[i].rows * (size_t)t[i].cols;
            s->rows = strcmp(t[i].name, "wte") ? t[i].rows : c.V;
            s->cols = t[i].cols;
            s->transpose = h->transpose;
        }
    return all;
}

// Their shape; returns the number of dimensions: embeddings and weights have 2, LayerNorms and biases 1.
static int slice_shape(const Slice *s, int64_t shape[2]) {
    int matrix = s->transpose || strcmp(s->name, "wte.weight") == 0 || strcmp(s->name, "wpe.weight") == 0;
    shape[0] = s->transpose || !matrix ? s->cols : s->rows;
    shape[1] = s->transpose ? s->rows : s->cols;
    return matrix ? 2 : 1;
}

static void transpose(float *out, const float *in, size_t rows, size_t cols) { // in (rows, cols)
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) out[c * rows + r] = in[r * cols + c];
}

// GPT-2 writes each byte as one visible character: itself if it is one in Latin-1, else from U+0100 on.
static uint16_t alphabet[256];

static void alphabet_make(void) {
    for (int b = 0, n = 256; b < 256; b++) {
        int visible = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        alphabet[b] = (uint16_t)(visible ? b : n++);
    }
}

enum { LETTERS_MAX = 2 * TOKEN_BYTES_MAX + 1 }; // a token in that alphabet, as UTF-8 with a zero

static char *letters(char dst[LETTERS_MAX], const char *bytes, size_t n) {
    char *d = dst;
    for (size_t i = 0; i < n; i++) {
        int c = alphabet[(uint8_t)bytes[i]];
        if (c >= 0x80) *d++ = (char)(0xC0 | c >> 6);
        *d++ = (char)(c < 0x80 ? c : 0x80 | (c & 0x3F));
    }
    *d = 0;
    return dst;
}

// The way back, for n bytes of UTF-8. Returns the number of bytes, 0 if there are too many or none, or if a
// character is not of the alphabet.
static size_t letters_bytes(char dst[TOKEN_BYTES_MAX], const char *s, size_t n) {
    size_t m = 0;
    for (size_t i = 0; i < n; i++) {
        int c = (uint8_t)s[i], b = 0, two = (c & 0xE0) == 0xC0 && i + 1 < n && (s[i + 1] & 0xC0) == 0x80;
        if (two) c = (c & 0x1F) << 6 | (s[++i] & 0x3F);
        else if (c >= 0x80) return 0;
        while (b < 256 && alphabet[b] != c) b++;
        if (b == 256 || m == TOKEN_BYTES_MAX) return 0;
        dst[m++] = (char)b;
    }
    return m;
}

static int needs_merge(const Tokenizer *t, int id) {
    return id != t->eot && t->at[id + 1] - t->at[id] > 1;
}

// A vocabulary that grows token by token: at each id it knows the merges of lower rank and no others.
static Tokenizer merges_start(const Tokenizer *t) {
    Tokenizer low = tokenizer_make(t->V, t->at[t->V]);
    memcpy(low.byte_id, t->byte_id, sizeof low.byte_id); // single bytes need no merge, whatever their ids
    return low;
}

// The pieces of token id under the merges below it: exactly two, or there is no list of merges that makes it.
static void merge_pair(Tokenizer *low, const Tokenizer *t, const char *path, int id, Tokens *pair) {
    const char *s = t->bytes + t->at[id];
    size_t n = t->at[id + 1] - t->at[id];
    char text[LETTERS_MAX];
    for (size_t i = 0; i < n; i++)
        if (t->byte_id[(uint8_t)s[i]] < 0)
            die("%s: token %d ('%s') has byte 0x%02X, which is no token: no merges make it", path, id,
                letters(text, s, n), (uint8_t)s[i]);
    for (int k = low->V; k < id; k++)
        tokenizer_add(low, t->bytes + t->at[k], t->at[k + 1] - t->at[k], k == t->eot);
    XGROW(pair->id, pair->cap, n);
    pair->n = 0;
    merge_word(low, s, n, pair);
    if (pair->n != 2)
        die("%s: token %d ('%s') comes to %zu pieces under the tokens of lower id, expected 2: no list of "
            "merges makes it, so only one of the formats can hold this vocabulary", path, id,
            letters(text, s, n), pair->n);
}

// ----------------------------------------------------------------------------
// from-hf: a Hugging Face directory to a checkpoint and a tokenizer

static int config_int(Where w, const cJSON *j, const char *key, const char *other_key) {
    const cJSON *v = json_member(w, j, key);
    if (!v && other_key) v = json_member(w, j, other_key);
    if (!v) die_at(w, "no \"%s\", expected a GPT-2's configuration", key);
    int64_t n = json_whole(v, 1, INT32_MAX);
    if (n < 0) die_at(w, "\"%s\" is no whole number above 0", key);
    return (int)n;
}

// Settings under which a model of the same shapes computes something else.
static void config_check(Where w, const cJSON *j, int C) {
    const cJSON *v = json_get(w, j, "model_type", cJSON_String, 1);
    if (v && strcmp(v->valuestring, "gpt2"))
        die_at(w, "\"model_type\" is '%s', expected 'gpt2'", excerpt(v->valuestring));
    v = json_get(w, j, "activation_function", cJSON_String, 1);
    if (v && strcmp(v->valuestring, "gelu_new") && strcmp(v->valuestring, "gelu_pytorch_tanh"))
        die_at(w, "\"activation_function\" is '%s', expected 'gelu_new': no other is implemented",
               excerpt(v->valuestring));
    v = json_get(w, j, "layer_norm_epsilon", cJSON_Number, 1);
    if (v && fabs(v->valuedouble - LAYERNORM_EPS) > 1e-6 * LAYERNORM_EPS)
        die_at(w, "\"layer_norm_epsilon\" is %g, expected %g: no other is implemented", v->valuedouble, LAYERNORM_EPS);
    v = json_member(w, j, "n_inner");
    if (v && !cJSON_IsNull(v) && json_whole(v, 1, INT32_MAX) != 4 * (int64_t)C)
        die_at(w, "\"n_inner\" is not 4 * n_embd = %d: no other width is implemented", 4 * C);
    static const struct { const char *key; int want; } flag[] = {
        {"scale_attn_weights", 1}, {"scale_attn_by_inverse_layer_idx", 0}, {"add_cross_attention", 0},
        {"tie_word_embeddings", 1},
    };
    for (size_t i = 0; i < COUNT(flag); i++) {
        v = json_member(w, j, flag[i].key);
        if (v && (flag[i].want ? !cJSON_IsTrue(v) : !cJSON_IsFalse(v) && !cJSON_IsNull(v)))
            die_at(w, "\"%s\" is not %s: no other is implemented", flag[i].key,
                   flag[i].want ? "true" : "false");
    }
}

static Config config_read(const char *path) {
    Where w = {path, 0};
    char *text = file_text(path);
    cJSON *j = json_object(w, text);
    int32_t h[256] = {CHECKPOINT_MAGIC, CHECKPOINT_FP32};
    h[2] = config_int(w, j, "n_positions", "n_ctx");
    h[3] = config_int(w, j, "vocab_size", NULL);
    h[4] = config_int(w, j, "n_layer", NULL);
    h[5] = config_int(w, j, "n_head", NULL);
    h[6] = config_int(w, j, "n_embd", NULL);
    h[7] = h[3] > VOCABULARY_MAX ? h[3] : vocabulary_padded(h[3]);
    Config c = checkpoint_config(path, h);
    config_check(w, j, c.C);
    cJSON_Delete(j);
    free(text);
    return c;
}

static Tokenizer vocab_read(const char *path, int V) {
    Where w = {path, 0};
    char *text = file_text(path), bytes[TOKEN_BYTES_MAX];
    cJSON *j = json_object(w, text), **token = (cJSON **)xalloc((size_t)V, sizeof *token);
    if (cJSON_GetArraySize(j) != V)
        die_at(w, "%d tokens, but config.json's vocab_size is %d; added tokens are not supported",
               cJSON_GetArraySize(j), V);
    for (cJSON *v = j->child; v; v = v->next) {
        int64_t id = json_whole(v, 0, V - 1);
        if (id < 0) die_at(w, "the id of '%s' is no whole number from 0 to %d", excerpt(v->string), V - 1);
        if (token[id]) die_at(w, "'%s' and '%s' both have id %d, expected an id for each",
                              excerpt(token[id]->string), excerpt(v->string), (int)id);
        token[id] = v;
    }
    Tokenizer t = tokenizer_make(V, (size_t)V * TOKEN_BYTES_MAX);
    for (int i = 0; i < V; i++) {
        size_t n = letters_bytes(bytes, token[i]->string, strlen(token[i]->string));
        if (n == 0) die_at(w, "token %d '%s': expected 1 to %d characters of GPT-2's byte alphabet; "
                           "added tokens are not supported", i, excerpt(token[i]->string), TOKEN_BYTES_MAX);
        tokenizer_add(&t, bytes, n, n == sizeof END_OF_TEXT - 1 && !memcmp(bytes, END_OF_TEXT, n));
    }
    cJSON_Delete(j);
    free(token);
    free(text);
    return t;
}

// The token that a line "A B" of merges.txt makes; its first part has *first bytes.
static int merge_line(Where w, const Tokenizer *t, const char *line, size_t n, size_t *first) {
    const char *space = (const char *)memchr(line, ' ', n);
    char a[TOKEN_BYTES_MAX], b[TOKEN_BYTES_MAX], ab[2 * TOKEN_BYTES_MAX];
    size_t na = space ? letters_bytes(a, line, (size_t)(space - line)) : 0;
    size_t nb = space ? letters_bytes(b, space + 1, (size_t)(line + n - space - 1)) : 0;
    if (!na || !nb) die_at(w, "'%s', expected two tokens and one space between them", excerpt(line));
    memcpy(ab, a, na);
    memcpy(ab + na, b, nb);
    int id = tokenizer_find(t, ab, na + nb);
    if (id < 0) die_at(w, "'%s' makes no token of vocab.json", excerpt(line));
    *first = na;
    return id;
}

// The first token from `from` on that is made by a merge, `to` if there is none before it.
static int merge_next(const Tokenizer *t, int from, int to) {
    while (from < to && !needs_merge(t, from)) from++;
    return from;
}

// Does merges.txt say what the ids say? (See the head comment.)
static void merges_check(const char *path, const Tokenizer *t) {
    Tokenizer low = merges_start(t);
    Tokens pair = {0, 0, 0};
    Where w = {path, 0};
    char *text = file_text(path);
    int next = merge_next(t, 0, t->V);
    for (char *line = text, *end; *line; line = end + (*end != 0)) {
        size_t first, n = strcspn(line, "\n");
        end = line + n;
        w.line++;
        if (n && line[n - 1] == '\r') n--;
        if (n == 0 || (w.line == 1 && strncmp(line, "#version", 8) == 0)) continue;
        int id = merge_line(w, t, line, n, &first);
        if (id < next) die_at(w, "makes token %d a second time; expected one merge for each token", id);
        if (id > next)
            die_at(w, "makes token %d before there was a merge for %d; expected them in order of id, like "
                   "GPT-2's: in this program a token's id is its rank", id, next);
        merge_pair(&low, t, path, id, &pair);
        if (t->at[pair.id[0] + 1] - t->at[pair.id[0]] != first)
            die_at(w, "token %d comes to another pair under the merges above; this line never acts", id);
        next = merge_next(t, id + 1, t->V);
    }
    if (next < t->V) die("%s: no merge makes token %d; added tokens are not supported", path, next);
    free(text);
    tokens_free(&pair);
    tokenizer_free(&low);
}

typedef struct { In in; cJSON *header; int64_t data; } Safetensors; // data: where the tensors start

typedef struct { int64_t begin, end; } Span;

static int compare_spans(const void *a, const void *b) {
    const Span *x = (const Span *)a, *y = (const Span *)b;
    return x->begin != y->begin ? (x->begin > y->begin) - (x->begin < y->begin) : (x->end > y->end) - (x->end < y->end);
}

static Span tensor_span(Where w, const cJSON *v) {
    const cJSON *at = json_get(w, v, "data_offsets", cJSON_Array, 0);
    Span s = {json_whole(cJSON_GetArrayItem(at, 0), 0, 0x1p53), json_whole(cJSON_GetArrayItem(at, 1), 0, 0x1p53)};
    if (cJSON_GetArraySize(at) != 2 || s.begin < 0 || s.end < s.begin)
        die_at(w, "%s: data_offsets are not where it begins and where it ends", v->string);
    return s;
}

// The format has tensors follow one another, and fill the file.
static void spans_check(Where w, const cJSON *header, int64_t room) {
    Span *s = (Span *)xalloc((size_t)cJSON_GetArraySize(header), sizeof *s);
    size_t n = 0;
    for (const cJSON *v = header->child; v; v = v->next)
        if (strcmp(v->string, "__metadata__")) s[n++] = tensor_span(w, v);
    qsort(s, n, sizeof *s, compare_spans);
    int64_t at = 0;
    for (size_t i = 0; i < n && s[i].begin == at; i++) at = s[i].end;
    if (at != room)
        die_at(w, "its tensors follow one another for %" PRId64 " bytes, it has %" PRId64 " of data; truncated or "
               "damaged, fetch it again", at, room);
    free(s);
}

static Safetensors safetensors_open(const char *path) {
    Safetensors st;
    uint64_t n;
    st.in = in_open(path);
    in_read(&st.in, &n, 8, "the length of the header");
    if (n > (uint64_t)in_left(&st.in)) // also what a file of Git LFS looks like
        die("%s: a header of %" PRIu64 " bytes, the file has %" PRId64 " more; is it a safetensors file, and "
            "whole?", path, n, in_left(&st.in));
    char *text = text_read(&st.in, (int64_t)n, "the header");
    st.header = json_object((Where){path, 0}, text);
    st.data = st.in.at;
    spans_check((Where){path, 0}, st.header, in_left(&st.in));
    free(text);
    return st;
}

static float half_float(uint16_t h) { // float16: 1 sign, 5 exponent, 10 mantissa bits
    int e = h >> 10 & 31, m = h & 1023;
    float x = e == 31 ? (m ? NAN : INFINITY) : e ? ldexpf((float)(m + 1024), e - 25) : ldexpf((float)m, -24);
    return h >> 15 ? -x : x;
}

// Widens n elements of 2 bytes in place; buf has room for 4 each.
static void widen(float *buf, size_t n, int bfloat) {
    const char *src = (const char *)buf;
    for (size_t i = n; i-- > 0;) { // from the end: element i's 4 bytes overwrite only what is done
        uint16_t h;
        memcpy(&h, src + 2 * i, 2);
        uint32_t bits = (uint32_t)h << 16;
        if (bfloat) memcpy(&buf[i], &bits, 4);
        else buf[i] = half_float(h);
    }
}

static void tensor_shape(Where w, const cJSON *v, const int64_t *shape, int dims) {
    const cJSON *got = json_get(w, v, "shape", cJSON_Array, 0);
    int same = cJSON_GetArraySize(got) == dims;
    for (int i = 0; i < dims; i++)
        same = same && json_whole(cJSON_GetArrayItem(got, i), 0, 0x1p53) == shape[i];
    if (same) return;
    char *text = cJSON_PrintUnformatted(got), want[64];
    if (dims == 1) snprintf(want, sizeof want, "[%" PRId64 "]", shape[0]);
    else snprintf(want, sizeof want, "[%" PRId64 ",%" PRId64 "]", shape[0], shape[1]);
    die_at(w, "%s: shape %.60s, expected %s by config.json", v->string, text ? text : "?", want);
}

static int tensor_bytes(Where w, const cJSON *v) { // of one element
    const char *type = json_get(w, v, "dtype", cJSON_String, 0)->valuestring;
    if (strcmp(type, "F32") == 0) return 4;
    if (strcmp(type, "F16") == 0 || strcmp(type, "BF16") == 0) return 2;
    die_at(w, "%s: dtype '%s', expected F32, F16 or BF16", v->string, excerpt(type));
}

// Reads the tensor of header entry v into buf after checking all that the entry says.
static void tensor_read(Safetensors *st, const cJSON *v, const int64_t *shape, int dims, float *buf) {
    Where w = {st->in.path, 0};
    int bytes = tensor_bytes(w, v);
    tensor_shape(w, v, shape, dims);
    int64_t n = dims == 1 ? shape[0] : shape[0] * shape[1];
    Span s = tensor_span(w, v);
    if (s.end - s.begin != n * bytes)
        die_at(w, "%s: data_offsets are not %" PRId64 " elements of %d bytes; the file is damaged, fetch it again",
               v->string, n, bytes);
    if (fseeko(st->in.f, st->data + s.begin, SEEK_SET)) die("%s: cannot seek: %s", w.path, strerror(errno));
    st->in.at = st->data + s.begin;
    in_read(&st->in, buf, s.end - s.begin, v->string);
    if (bytes == 2) widen(buf, (size_t)n, json_get(w, v, "dtype", cJSON_String, 0)->valuestring[0] == 'B');
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(buf[i]))
            die_at(w, "%s: element %" PRId64 " is %g, expected finite weights", v->string, i, buf[i]);
}

// With or without the prefix; NULL: not there.
static cJSON *tensor_find(const Safetensors *st, const char *name) {
    char full[96];
    snprintf(full, sizeof full, "transformer.%s", name);
    cJSON *v = cJSON_GetObjectItemCaseSensitive(st->header, full);
    return v ? v : cJSON_GetObjectItemCaseSensitive(st->header, name);
}

// Is this entry one that the model does without? (The causal mask is stored as a tensor by some versions.)
static int tensor_ignored(const char *name) {
    if (strncmp(name, "transformer.", 12) == 0) name += 12;
    int end = 0;
    if (sscanf(name, "h.%*d.attn.%n", &end) == 0 && end > 0) name += end;
    else return strcmp(name, "__metadata__") == 0;
    return strcmp(name, "bias") == 0 || strcmp(name, "masked_bias") == 0;
}

// What is left in the header when our tensors are taken out: nothing may change what the model computes.
static void leftovers_check(Safetensors *st, Config c, const float *params) {
    cJSON *head = cJSON_DetachItemFromObjectCaseSensitive(st->header, "lm_head.weight");
    if (head) {
        size_t n = (size_t)c.V * (size_t)c.C;
        float *buf = (float *)xalloc(n, sizeof *buf);
        tensor_read(st, head, (int64_t[]){c.V, c.C}, 2, buf);
        if (memcmp(buf, params, n * sizeof *buf)) // wte comes first in params
            die("%s: lm_head.weight differs from wte.weight, expected tied weights", st->in.path);
        free(buf);
        cJSON_Delete(head);
    }
    for (const cJSON *v = st->header->child; v; v = v->next)
        if (!tensor_ignored(v->string))
            die("%s: tensor '%s' is none of a GPT-2 of %d layers; save the language model alone", st->in.path,
                excerpt(v->string), c.L);
}

static float *weights_read(const char *path, Config c) {
    struct stat sb;
    if (stat(path, &sb)) die("%s: %s; in Python, model.save_pretrained(DIR, safe_serialization=True, "
                             "max_shard_size='100GB') writes it", path, strerror(errno));
    Safetensors st = safetensors_open(path);
    float *params = (float *)xalloc(gpt2_count(c), sizeof *params); // zeros: wte's padding stays so
    float *buf = (float *)xalloc((size_t)c.C * 4 * (size_t)c.C, sizeof *buf);
    int n;
    Slice *s = slices_make(c, &n);
    for (int i = 0; i < n; i++) {
        cJSON *v = tensor_find(&st, s[i].name);
        if (!v) die("%s: no tensor '%s', also not with 'transformer.' before it; config.json has %d layers",
                    path, s[i].name, c.L);
        int64_t shape[2];
        int dims = slice_shape(&s[i], shape);
        tensor_read(&st, v, shape, dims, s[i].transpose ? buf : params + s[i].at);
        if (s[i].transpose) transpose(params + s[i].at, buf, (size_t)s[i].cols, (size_t)s[i].rows);
        cJSON_Delete(cJSON_DetachItemViaPointer(st.header, v));
    }
    leftovers_check(&st, c, params);
    cJSON_Delete(st.header);
    fclose(st.in.f);
    free(s);
    free(buf);
    return params;
}

static void convert_from_hf(const Args *a) {
    char path[RRHF_PATH_MAX], out[2][RRHF_PATH_MAX];
    static const char *suffix[2] = {".model.bin", ".tokenizer.bin"};
    for (int i = 0; i < 2; i++)
        if (snprintf(out[i], RRHF_PATH_MAX, "%s%s", a->path[1], suffix[i]) >= RRHF_PATH_MAX)
            die("%.60s...: the path is too long", a->path[1]);
    for (int i = 0; i < 2; i++) out_check(out[i]); // both, before one is written
    Config c = config_read(path_join(path, a->path[0], "config.json"));
    Tokenizer t = vocab_read(path_join(path, a->path[0], "vocab.json"), c.V);
    merges_check(path_join(path, a->path[0], "merges.txt"), &t);
    float *params = weights_read(path_join(path, a->path[0], "model.safetensors"), c);
    checkpoint_write(out[0], c, params);
    tokenizer_write(out[1], &t);
    printf("%s: %zu parameters, %d layers, %d channels, context %d\n", out[0], gpt2_count(c), c.L, c.C, c.T);
    printf("%s: %d tokens, end-of-text %d\n", out[1], t.V, t.eot);
    if (t.eot < 0) fprintf(stderr, "note: %s/vocab.json has no <|endoftext|>: use --eos 0\n", a->path[0]);
    free(params);
    tokenizer_free(&t);
}

// ----------------------------------------------------------------------------
// to-hf: a checkpoint and a tokenizer to a Hugging Face directory

// merges.txt as text (to be freed), made before anything is written: it is where a vocabulary may be refused.
static char *merges_text(const char *path, const Tokenizer *t) {
    Tokenizer low = merges_start(t);
    Tokens pair = {0, 0, 0};
    char *text = NULL, piece[LETTERS_MAX];
    size_t cap = 0, n = 0;
    XGROW(text, cap, 64);
    n = (size_t)sprintf(text, "#version: 0.2\n");
    for (int id = 0; id < t->V; id++) {
        if (id != t->eot && tokenizer_find(t, t->bytes + t->at[id], t->at[id + 1] - t->at[id]) != id)
            die("%s: tokens %d and %d have the same bytes; vocab.json cannot hold both", path,
                tokenizer_find(t, t->bytes + t->at[id], t->at[id + 1] - t->at[id]), id);
        if (!needs_merge(t, id)) continue;
        merge_pair(&low, t, path, id, &pair);
        XGROW(text, cap, n + 2 * LETTERS_MAX + 2);
        for (int i = 0; i < 2; i++) {
            int len;
            const char *s = tokenizer_decode(t, pair.id[i], &len);
            n += (size_t)sprintf(text + n, "%s%c", letters(piece, s, (size_t)len), i ? '\n' : ' ');
        }
    }
    tokens_free(&pair);
    tokenizer_free(&low);
    return text;
}

// End-of-text must be spelled as GPT-2's is, else transformers would add a token of its own; and no other token may be.
static void eot_check(const char *path, const Tokenizer *t) {
    if (t->eot < 0) return;
    int n;
    char text[LETTERS_MAX];
    const char *s = tokenizer_decode(t, t->eot, &n);
    if (n != sizeof END_OF_TEXT - 1 || memcmp(s, END_OF_TEXT, (size_t)n))
        die("%s: end-of-text, token %d, is '%s', expected " END_OF_TEXT ", which transformers looks for", path, t->eot,
            letters(text, s, (size_t)n));
    int same = tokenizer_find(t, s, (size_t)n);
    if (same >= 0)
        die("%s: token %d spells end-of-text, token %d; vocab.json cannot hold both", path, same, t->eot);
}

static void weights_write(const char *path, Config c, const float *params) {
    int n;
    Slice *s = slices_make(c, &n);
    cJSON *header = cJSON_CreateObject();
    cJSON_AddStringToObject(cJSON_AddObjectToObject(header, "__metadata__"), "format", "pt");
    double at = 0;
    for (int i = 0; i < n; i++) {
        char name[96];
        int64_t shape[2];
        int dims = slice_shape(&s[i], shape);
        snprintf(name, sizeof name, "transformer.%s", s[i].name);
        double end = at + 4.0 * s[i].rows * s[i].cols, size[2] = {(double)shape[0], (double)shape[1]};
        cJSON *v = cJSON_AddObjectToObject(header, name);
        cJSON_AddStringToObject(v, "dtype", "F32");
        cJSON_AddItemToObject(v, "shape", cJSON_CreateDoubleArray(size, dims));
        cJSON_AddItemToObject(v, "data_offsets", cJSON_CreateDoubleArray((double[]){at, end}, 2));
        at = end;
    }
    char *text = cJSON_PrintUnformatted(header);
    if (!text) die("memory: no room for the header of %s", path);
    uint64_t len = (strlen(text) + 7) / 8 * 8; // padded with spaces, so that the data is aligned
    Out out = out_open(path);
    out_write(&out, &len, 8);
    out_printf(&out, "%-*s", (int)len, text);
    float *buf = (float *)xalloc((size_t)c.C * 4 * (size_t)c.C, sizeof *buf);
    for (int i = 0; i < n; i++) {
        const float *ours = params + s[i].at;
        if (s[i].transpose) transpose(buf, ours, (size_t)s[i].rows, (size_t)s[i].cols);
        out_write(&out, s[i].transpose ? buf : ours, (size_t)s[i].rows * (size_t)s[i].cols * sizeof *buf);
    }
    out_close(&out);
    free(buf);
    cJSON_free(text);
    cJSON_Delete(header);
    free(s);
}

static void config_write(const char *path, Config c, int eot) {
    char id[16] = "null";
    if (eot >= 0) snprintf(id, sizeof id, "%d", eot);
    Out out = out_open(path);
    out_printf(&out, "{\n  \"architectures\": [\"GPT2LMHeadModel\"],\n  \"model_type\": \"gpt2\",\n"
               "  \"activation_function\": \"gelu_new\",\n  \"layer_norm_epsilon\": %g,\n", LAYERNORM_EPS);
    out_printf(&out, "  \"n_positions\": %d,\n  \"n_ctx\": %d,\n  \"vocab_size\": %d,\n", c.T, c.T, c.V);
    out_printf(&out, "  \"n_layer\": %d,\n  \"n_head\": %d,\n  \"n_embd\": %d,\n", c.L, c.NH, c.C);
    out_printf(&out, "  \"n_inner\": null,\n  \"bos_token_id\": %s,\n  \"eos_token_id\": %s,\n", id, id);
    out_printf(&out, "  \"initializer_range\": 0.02,\n  \"scale_attn_weights\": true,\n"
               "  \"tie_word_embeddings\": true,\n  \"torch_dtype\": \"float32\"\n}\n");
    out_close(&out);
}

static void vocab_write(const char *path, const Tokenizer *t) {
    char text[LETTERS_MAX];
    Out out = out_open(path);
    for (int id = 0; id < t->V; id++) {
        int len;
        const char *s = tokenizer_decode(t, id, &len);
        out_printf(&out, id ? ", " : "{");
        letters(text, s, (size_t)len);
        json_string(&out, t, text, strlen(text));
        out_printf(&out, ": %d", id);
    }
    out_printf(&out, "}\n");
    out_close(&out);
}

static void tokenizer_config_write(const char *path, const Tokenizer *t, int T) {
    static const char *role[] = {"bos_token", "eos_token", "unk_token"};
    Out out = out_open(path);
    out_printf(&out, "{\n  \"tokenizer_class\": \"GPT2Tokenizer\",\n  \"model_max_length\": %d,\n", T);
    for (int i = 0; i < 3; i++) {
        out_printf(&out, "  \"%s\": ", role[i]);
        if (t->eot < 0) out_printf(&out, "null");
        else json_string(&out, t, t->bytes + t->at[t->eot], t->at[t->eot + 1] - t->at[t->eot]);
        out_printf(&out, ",\n");
    }
    out_printf(&out, "  \"add_prefix_space\": false,\n  \"clean_up_tokenization_spaces\": false\n}\n");
    out_close(&out);
}

static void convert_to_hf(const Args *a) {
    const char *model = a->path[0], *tokenizer = a->path[1], *dir = a->path[2];
    char path[RRHF_PATH_MAX];
    Config c;
    float *params = checkpoint_read(model, &c);
    if (c.reward) die("%s: a reward model, expected a policy: GPT2LMHeadModel has no scalar head", model);
    Tokenizer t = tokenizer_read(tokenizer);
    if (t.V != c.V) die("%s: %d tokens, but the vocabulary of %s has %d; use the model's own tokenizer",
                        tokenizer, t.V, model, c.V);
    eot_check(tokenizer, &t);
    char *merges = merges_text(tokenizer, &t);
    make_dir(dir);
    weights_write(path_join(path, dir, "model.safetensors"), c, params);
    config_write(path_join(path, dir, "config.json"), c, t.eot);
    vocab_write(path_join(path, dir, "vocab.json"), &t);
    Out out = out_open(path_join(path, dir, "merges.txt"));
    out_write(&out, merges, strlen(merges));
    out_close(&out);
    tokenizer_config_write(path_join(path, dir, "tokenizer_config.json"), &t, c.T);
    printf("%s: %d layers, %d channels, context %d, %d tokens\n", dir, c.L, c.C, c.T, c.V);
    free(merges);
    free(params);
    tokenizer_free(&t);
}

// ----------------------------------------------------------------------------
// The command line

static const char usage[] =
    "usage: dev/convert COMMAND ...\n"
    "  ranked IN.jsonl OUT.bin --tokenizer T   JSON lines to ranked responses; a line is\n"
    "                         {\"query\": \"x\", \"responses\": [\"y1\", \"y2\"], \"scores\": [0.5, -1]}\n"
    "                         without scores all are 0, without responses there is one of end-of-text alone\n"
    "      --eos 0|1                  end each response with end-of-text (1)\n"
    "      --max-query-tokens N       cut longer queries on the left, 0 = never (0)\n"
    "      --max-response-tokens N    cut longer responses on the right, end-of-text first, 0 = never (0)\n"
    "  jsonl IN.bin OUT.jsonl --tokenizer T    ranked responses to JSON lines\n"
    "  from-hf DIR OUT_PREFIX                  a Hugging Face GPT-2 to OUT_PREFIX.model.bin and\n"
    "                                          OUT_PREFIX.tokenizer.bin\n"
    "  to-hf MODEL.bin TOKENIZER.bin DIR       a model to a Hugging Face directory\n";

typedef struct {
    const char *name;
    void (*run)(const Args *);
    int n_paths, needs_tokenizer, encodes;
} Command;

static const Command command[] = {
    {"ranked", convert_ranked, 2, 1, 1},
    {"jsonl", convert_jsonl, 2, 1, 0},
    {"from-hf", convert_from_hf, 2, 0, 0},
    {"to-hf", convert_to_hf, 3, 0, 0},
};

static int option_int(const char *name, const char *value, int hi) {
    char *end;
    errno = 0;
    long n = strtol(value, &end, 10);
    if (end == value || *end || errno || n < 0 || n > hi)
        die_usage("%s '%s': expected a whole number from 0 to %d", name, value, hi);
    return (int)n;
}

static Args parse(const Command *c, int argc, char **argv) {
    Args a = {.eos = 1};
    int n = 0;
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i];
        if (strncmp(name, "--", 2) != 0) {
            if (n == c->n_paths)
                die_usage("%s takes %d paths, '%s' is one too many; see --help", c->name, n, name);
            a.path[n++] = name;
            continue;
        }
        int tokenizer = c->needs_tokenizer && strcmp(name, "--tokenizer") == 0;
        int eos = c->encodes && strcmp(name, "--eos") == 0;
        int query = c->encodes && strcmp(name, "--max-query-tokens") == 0;
        int response = c->encodes && strcmp(name, "--max-response-tokens") == 0;
        if (!tokenizer && !eos && !query && !response)
            die_usage("%s: %s has no such option; see --help", name, c->name);
        if (i + 1 == argc) die_usage("%s: expected a value after it", name);
        const char *value = argv[++i];
        if (tokenizer) a.tokenizer = value;
        else if (eos) a.eos = option_int(name, value, 1);
        else if (query) a.max_query = option_int(name, value, INT32_MAX);
        else a.max_response = option_int(name, value, INT32_MAX);
    }
    if (n < c->n_paths) die_usage("%s takes %d paths, found %d; see --help", c->name, c->n_paths, n);
    if (c->needs_tokenizer && !a.tokenizer) die_usage("%s needs --tokenizer FILE; see --help", c->name);
    return a;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(usage, stdout);
            return 0;
        }
    if (argc < 2) die_usage("no command; ranked, jsonl, from-hf and to-hf are there: see --help");
    for (size_t i = 0; i < COUNT(command); i++)
        if (strcmp(argv[1], command[i].name) == 0) {
            Args a = parse(&command[i], argc, argv);
            alphabet_make();
            command[i].run(&a);
            return 0;
        }
    die_usage("'%s' is no command; ranked, jsonl, from-hf and to-hf are: see --help", argv[1]);
}
