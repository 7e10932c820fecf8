/*
tokenizer.h: GPT-2's byte-level byte-pair encoding, text to tokens and back.

  Tokenizer    tokenizer_read(path)              from a file; dies on a bad one
  void         tokenizer_write(path, &t)
  Tokenizer    tokenizer_truncate(&t, n)         a vocabulary of the first n - 1 tokens and end-of-text
  Tokenizer    tokenizer_train(text, n, V)       a vocabulary learnt from a text
  void         tokenizer_free(&t)
  size_t       tokenizer_encode(&t, text, n, &tokens)     appends to a Tokens, returns how many
  const char  *tokenizer_decode(&t, id, &len)             the bytes of one token; they belong to t
  char        *tokenizer_text(&t, ids, n, &len)           the bytes of many; free() them

    Tokenizer t = tokenizer_read("gpt2_tokenizer.bin");
    Tokens tokens = {0, 0, 0};
    tokenizer_encode(&t, "Hello world", 11, &tokens);     // tokens.id[0..1] = 15496, 995
    tokens_free(&tokens);
    tokenizer_free(&t);

File, little-endian: int32[256] [0]=20240328 [1]=2 [2]=V [3]=end-of-text id, then per token one byte of length
and that many bytes. Nothing else is needed: a token's id is the rank of the merge that made it.

Encoding takes two steps. A text is split into words by GPT-2's published pattern,
    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
and in each word, starting from its bytes, the neighbours whose joined bytes are the token of lowest id are
joined (the leftmost such pair first) until no neighbours make a token.

Any bytes go in and the same bytes come out: a byte that is not part of valid UTF-8 counts as a character that
is no letter, number or space. The end-of-text token is never made from text, even from text that spells it.
A Tokenizer remembers words it has seen, so threads need one each.
*/
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "util.h"        // defines: die, In, Out, xalloc, XGROW, hash64, VOCABULARY_MAX
#include "dev/unicode.h" // defines: unicode_letters, unicode_numbers, unicode_spaces, UNICODE_END

enum { TOKENIZER_MAGIC = 20240328, TOKENIZER_VERSION = 2, TOKEN_BYTES_MAX = 255 };
#define END_OF_TEXT "<|endoftext|>"

// ----------------------------------------------------------------------------
// A vocabulary in memory

typedef struct { uint16_t *id; size_t n, cap; } Tokens; // a growing run of tokens; starts as {0, 0, 0}

// One remembered word; a cache line. len = 0: nothing here yet.
enum { WORD_BYTES = 30, WORD_IDS = 16, CACHE_WORDS = 1 << 15 };
typedef struct {
    uint8_t len, n;
    char bytes[WORD_BYTES];
    uint16_t id[WORD_IDS];
} CachedWord;

// One piece of a word while it is being merged. A piece is known by the offset of its first byte.
typedef struct {
    uint32_t prev, end; // offsets: first byte of the piece before (0 if none), one past its own last byte
    int32_t id;         // its token
    int32_t rank;       // the token that it makes with the next piece, -1 = none
} Piece;

typedef struct {
    int V;                // tokens, ids 0..V-1
    int eot;              // end-of-text id, -1 = the vocabulary has none
    char *bytes;          // all tokens' bytes, one after another
    uint32_t *at;         // (V+1) token i is bytes[at[i]] .. bytes[at[i+1]-1]
    int32_t *table;       // (mask+1) bytes -> id by open addressing, -1 = free
    uint32_t mask;
    uint32_t longest;     // bytes in the longest token
    int32_t byte_id[256]; // the token of each single byte, -1 = none
    uint8_t *kind;        // (UNICODE_END) class of each code point
    CachedWord *cache;    // (CACHE_WORDS)
    Piece *piece;         // scratch of the merge: one per byte of the longest word so far
    uint64_t *heap;       // scratch of the merge
    size_t piece_cap, heap_cap;
} Tokenizer;

static inline void tokens_free(Tokens *tokens) {
    free(tokens->id);
    memset(tokens, 0, sizeof *tokens);
}

static inline void tokenizer_free(Tokenizer *t) {
    free(t->bytes); free(t->at); free(t->table); free(t->kind);
    free(t->cache); free(t->piece); free(t->heap);
    memset(t, 0, sizeof *t);
}

// The slot of these bytes: the one that holds them, or the free one where they belong.
static inline int32_t *tokenizer_slot(const Tokenizer *t, const char *s, size_t n) {
    uint32_t i = (uint32_t)hash64(HASH64, s, n) & t->mask;
    for (;; i = (i + 1) & t->mask) {
        int32_t id = t->table[i];
        if (id < 0) return &t->table[i];
        if (t->at[id + 1] - t->at[id] == n && memcmp(t->bytes + t->at[id], s, n) == 0) return &t->table[i];
    }
}

// The token with exactly these bytes, or -1. Of equal tokens, the lowest id.
static inline int32_t tokenizer_find(const Tokenizer *t, const char *s, size_t n) {
    return n > t->longest ? -1 : *tokenizer_slot(t, s, n);
}

// ----------------------------------------------------------------------------
// Building

enum { KIND_OTHER, KIND_SPACE, KIND_NUMBER, KIND_LETTER };

static inline void kind_fill(uint8_t *kind, const uint16_t *runs, size_t n, int k) {
    for (size_t i = 0, c = 0; i < n; c += runs[i++])
        if (i % 2) memset(kind + c, k, runs[i]);
}

// An empty vocabulary with room for V tokens of `bytes` bytes in all.
static inline Tokenizer tokenizer_make(int V, size_t bytes) {
    Tokenizer t = {0};
    t.eot = -1;
    t.bytes = (char *)xalloc(bytes, 1);
    t.at = (uint32_t *)xalloc((size_t)V + 1, sizeof(uint32_t));
    t.mask = 1023;
    while (t.mask < 2 * (uint32_t)V) t.mask = 2 * t.mask + 1; // at most half full: short searches
    t.table = (int32_t *)xalloc(t.mask + 1, sizeof(int32_t));
    memset(t.table, -1, (t.mask + 1) * sizeof(int32_t));
    memset(t.byte_id, -1, sizeof t.byte_id);
    t.kind = (uint8_t *)xalloc(UNICODE_END, 1);
    kind_fill(t.kind, unicode_spaces, sizeof unicode_spaces / sizeof(uint16_t), KIND_SPACE);
    kind_fill(t.kind, unicode_numbers, sizeof unicode_numbers / sizeof(uint16_t), KIND_NUMBER);
    kind_fill(t.kind, unicode_letters, sizeof unicode_letters / sizeof(uint16_t), KIND_LETTER);
    t.cache = (CachedWord *)xalloc(CACHE_WORDS, sizeof(CachedWord));
    return t;
}

// Appends token t->V. The caller made room. s may point at the bytes' own place.
// End-of-text stays out of the table: text never becomes it.
static inline void tokenizer_add(Tokenizer *t, const char *s, size_t n, int is_eot) {
    uint32_t at = t->at[t->V];
    memmove(t->bytes + at, s, n);
    t->at[t->V + 1] = at + (uint32_t)n;
    int32_t id = t->V++;
    if (is_eot) {
        t->eot = id;
        return;
    }
    int32_t *slot = tokenizer_slot(t, s, n);
    if (*slot >= 0) return;
    *slot = id;
    if (n > t->longest) t->longest = (uint32_t)n;
    if (n == 1) t->byte_id[(uint8_t)s[0]] = id;
}

static inline Tokenizer tokenizer_read(const char *path) {
    int32_t header[256];
    In in = in_open(path);
    in_header(&in, header, TOKENIZER_MAGIC, TOKENIZER_VERSION, "tokenizer");
    int V = header[2], eot = header[3];
    if (V < 1 || V > VOCABULARY_MAX)
        die("%s: a vocabulary of %d tokens, expected 1 to %d; is the file damaged?", path, V, VOCABULARY_MAX);
    if (eot < -1)
        die("%s: end-of-text id %d, expected 0 to %d; is the file damaged?", path, eot, V - 1);
    Tokenizer t = tokenizer_make(V, (size_t)in_left(&in));
    for (int i = 0; i < V; i++) {
        uint8_t n;
        char s[TOKEN_BYTES_MAX];
        in_read(&in, &n, 1, "a token's length");
        if (n == 0) die("%s: token %d is empty, expected 1 to %d bytes; is the file damaged?", path, i,
                        TOKEN_BYTES_MAX);
        in_read(&in, s, n, "a token's bytes");
        tokenizer_add(&t, s, n, i == eot);
    }
    in_close(&in);
    return t; // an end-of-text id beyond the vocabulary (a file cut to its first ids) leaves eot = -1
}

static inline void tokenizer_write(const char *path, const Tokenizer *t) {
    int32_t header[256] = {TOKENIZER_MAGIC, TOKENIZER_VERSION, t->V, t->eot};
    Out out = out_open(path);
    out_write(&out, header, sizeof header);
    for (int i = 0; i < t->V; i++) {
        uint8_t n = (uint8_t)(t->at[i + 1] - t->at[i]);
        out_write(&out, &n, 1);
        out_write(&out, t->bytes + t->at[i], n);
    }
    out_close(&out);
}

// A vocabulary of n tokens: the first n - 1 under their own ids, then end-of-text. Ids are ranks, so what
// remains is again a vocabulary; 256 bytes and end-of-text (n = 257 for GPT-2) still encode any text.
static inline Tokenizer tokenizer_truncate(const Tokenizer *t, int n) {
    const char *eot = t->eot >= 0 ? t->bytes + t->at[t->eot] : END_OF_TEXT;
    size_t eot_bytes = t->eot >= 0 ? t->at[t->eot + 1] - t->at[t->eot] : strlen(eot);
    int have = t->V + (t->eot < 0);
    if (n < 1 || n > have)
        die("tokenizer: cannot cut a vocabulary of %d tokens to %d; use 1 to %d", t->V, n, have);
    Tokenizer u = tokenizer_make(n, t->at[t->V] + eot_bytes);
    for (int i = 0; u.V < n - 1; i++)
        if (i != t->eot) tokenizer_add(&u, t->bytes + t->at[i], t->at[i + 1] - t->at[i], 0);
    tokenizer_add(&u, eot, eot_bytes, 1);
    return u;
}

// ----------------------------------------------------------------------------
// Splitting a text into words

// The class of the character at s, n > 0 bytes left; *len is its length in bytes (invalid UTF-8: 1).
static inline int kind_at(const Tokenizer *t, const char *s, size_t n, size_t *len) {
    const uint8_t *b = (const uint8_t *)s;
    *len = 1;
    if (b[0] < 0x80) return t->kind[b[0]];
    size_t more = b[0] < 0xC2 ? 0 : b[0] < 0xE0 ? 1 : b[0] < 0xF0 ? 2 : b[0] < 0xF5 ? 3 : 0;
    if (more == 0 || more >= n) return KIND_OTHER;
    uint32_t c = b[0] & (0x3Fu >> more);
    for (size_t i = 1; i <= more; i++) {
        if ((b[i] & 0xC0) != 0x80) return KIND_OTHER;
        c = c << 6 | (b[i] & 0x3F);
    }
    int too_long = (more == 2 && c < 0x800) || (more == 3 && c < 0x10000); // fits in fewer bytes: invalid
    if (too_long || (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF) return KIND_OTHER;
    *len = more + 1;
    return c < UNICODE_END ? t->kind[c] : (int)KIND_OTHER;
}

// One past the run of characters of class k that starts at i.
static inline size_t run_end(const Tokenizer *t, const char *s, size_t n, size_t i, int k) {
    while (i < n) {
        uint8_t b = (uint8_t)s[i];
        size_t len = 1;
        if ((b < 0x80 ? t->kind[b] : kind_at(t, s + i, n - i, &len)) != k) break;
        i += len;
    }
    return i;
}

// Bytes of the contraction at s (an apostrophe), 0 if it is none.
static inline size_t contraction(const char *s, size_t n) {
    char a = n > 1 ? s[1] : 0, b = n > 2 ? s[2] : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return 0;
}

// One past the word that starts at i < n. One space joins the word after it; of a longer run of white space
// the last character is left for the next word, unless the text ends there.
static inline size_t word_end(const Tokenizer *t, const char *s, size_t n, size_t i) {
    size_t len, end = s[i] == '\'' ? contraction(s + i, n - i) : 0, last = i;
    if (end) return i + end;
    int k = kind_at(t, s + i, n - i, &len);
    if (s[i] == ' ' && i + 1 < n) {
        int next = kind_at(t, s + i + 1, n - i - 1, &len);
        if (next != KIND_SPACE) return run_end(t, s, n, i + 1 + len, next);
        len = 1;
    }
    if (k != KIND_SPACE) return run_end(t, s, n, i + len, k);
    for (end = i; end < n && kind_at(t, s + end, n - end, &len) == KIND_SPACE; end += len) last = end;
    return end == n || last == i ? end : last;
}

// ----------------------------------------------------------------------------
// Merging a word's bytes into tokens

// A binary heap of (rank, offset) pairs as 64-bit keys: smallest rank first, then leftmost.
static inline void heap_push(uint64_t *heap, size_t n, uint64_t key) { // n: how many before
    for (; n > 0 && heap[(n - 1) / 2] > key; n = (n - 1) / 2) heap[n] = heap[(n - 1) / 2];
    heap[n] = key;
}

static inline uint64_t heap_pop(uint64_t *heap, size_t n) { // n: how many before
    uint64_t top = heap[0], key = heap[--n];
    size_t i = 0;
    for (size_t c = 1; c < n; c = 2 * i + 1) {
        if (c + 1 < n && heap[c + 1] < heap[c]) c++;
        if (heap[c] >= key) break;
        heap[i] = heap[c];
        i = c;
    }
    heap[i] = key;
    return top;
}

// Looks up what piece i makes with the next one and enters it in the heap. Returns the new heap size.
static inline size_t merge_offer(Tokenizer *t, const char *s, uint32_t n, uint32_t i, size_t heap_n) {
    Piece *p = t->piece;
    p[i].rank = p[i].end < n ? tokenizer_find(t, s + i, p[p[i].end].end - i) : -1;
    if (p[i].rank < 0) return heap_n;
    XGROW(t->heap, t->heap_cap, heap_n + 1);
    heap_push(t->heap, heap_n, (uint64_t)p[i].rank << 32 | i);
    return heap_n + 1;
}

// Appends the tokens of one word to out, which has room for n. O(n log n): a word may be the whole text.
static inline void merge_word(Tokenizer *t, const char *s, size_t n, Tokens *out) {
    if (n > INT32_MAX) die("tokenizer: a word of %zu bytes without a space; split the text", n);
    XGROW(t->piece, t->piece_cap, n);
    Piece *p = t->piece;
    size_t heap_n = 0;
    for (uint32_t i = 0; i < n; i++) {
        Piece one = {i ? i - 1 : 0, i + 1, t->byte_id[(uint8_t)s[i]], -1};
        if (one.id < 0)
            die("tokenizer: the text has byte 0x%02X, but the vocabulary of %d tokens has none for it; use "
                "one with all 256 bytes", (uint8_t)s[i], t->V);
        p[i] = one;
    }
    for (uint32_t i = 0; i + 1 < n; i++) heap_n = merge_offer(t, s, (uint32_t)n, i, heap_n);
    while (heap_n) {
        uint64_t key = heap_pop(t->heap, heap_n--);
        uint32_t i = (uint32_t)key;
        if (p[i].rank != (int32_t)(key >> 32)) continue; // out of date: the piece was merged since
        uint32_t j = p[i].end;                           // piece j becomes part of piece i
        p[i].id = p[i].rank;
        p[i].end = p[j].end;
        p[j].rank = -1;
        if (p[i].end < n) p[p[i].end].prev = i;
        heap_n = merge_offer(t, s, (uint32_t)n, i, heap_n);
        if (i) heap_n = merge_offer(t, s, (uint32_t)n, p[i].prev, heap_n);
    }
    for (uint32_t i = 0; i < n; i = p[i].end) out->id[out->n++] = (uint16_t)p[i].id;
}

// ----------------------------------------------------------------------------
// Encoding and decoding

// Appends the tokens of text[0..n-1] to out; returns how many. Adds no end-of-text.
static inline size_t tokenizer_encode(Tokenizer *t, const char *text, size_t n, Tokens *out) {
    size_t before = out->n;
    for (size_t i = 0, end; i < n; i = end) {
        end = word_end(t, text, n, i);
        const char *s = text + i;
        size_t len = end - i, first = out->n;
        XGROW(out->id, out->cap, first + len); // a token is at least a byte
        CachedWord *w = len <= WORD_BYTES ? &t->cache[hash64(HASH64, s, len) % CACHE_WORDS] : NULL;
        if (w && w->len == len && memcmp(w->bytes, s, len) == 0) {
            memcpy(out->id + first, w->id, w->n * sizeof(uint16_t));
            out->n += w->n;
            continue;
        }
        merge_word(t, s, len, out);
        if (!w || out->n - first > WORD_IDS) continue;
        w->len = (uint8_t)len;
        w->n = (uint8_t)(out->n - first);
        memcpy(w->bytes, s, len);
        memcpy(w->id, out->id + first, w->n * sizeof(uint16_t));
    }
    return out->n - before;
}

// The bytes of one token, not terminated by a zero; *len is their number.
static inline const char *tokenizer_decode(const Tokenizer *t, int id, int *len) {
    if (id < 0 || id >= t->V)
        die("tokenizer: token %d, but the vocabulary has ids 0 to %d; do the model and the tokenizer belong "
            "together?", id, t->V - 1);
    *len = (int)(t->at[id + 1] - t->at[id]);
    return t->bytes + t->at[id];
}

// The bytes of n tokens and a terminating zero, to be freed; *len is their number without it.
static inline char *tokenizer_text(const Tokenizer *t, const uint16_t *ids, size_t n, size_t *len) {
    char *text = NULL;
    size_t cap = 0, at = 0;
    XGROW(text, cap, 1);
    for (size_t i = 0; i < n; i++) {
        int k;
        const char *s = tokenizer_decode(t, ids[i], &k);
        XGROW(text, cap, at + (size_t)k + 1);
        memcpy(text + at, s, (size_t)k);
        at += (size_t)k;
    }
    text[at] = 0;
    *len = at;
    return text;
}

// ----------------------------------------------------------------------------
// Learning a vocabulary

// The distinct words of a text, each as the tokens it is made of so far.
typedef struct {
    const char **text;     // (n) where it first stands
    size_t *len;           // (n) bytes there
    int64_t *count;        // (n) how often it occurs
    size_t *at;            // (n+1) word i has room for its bytes' tokens at id[at[i]] .. id[at[i+1]-1]
    uint16_t *id;          // (at[n])
    size_t *n_ids;         // (n) and this many now
    size_t n;
} Words;

// Neighbouring tokens a, b as a << 16 | b, with how often they occur in the text: a list to scan for the most
// frequent and an index by open addressing to find one. (There are at most 3 pairs per byte: those at the
// start, and at most 2 new ones for each merge, which leaves one token less.)
typedef struct { uint32_t key; int64_t count; } Pair;
typedef struct { Pair *list; size_t n, cap; int32_t *index; size_t mask; } Pairs;

static inline Words words_collect(const Tokenizer *t, const char *text, size_t n) {
    Words w = {0};
    size_t all = 0, mask = 1023;
    for (size_t i = 0; i < n; i = word_end(t, text, n, i)) all++;
    while (mask < 2 * all) mask = 2 * mask + 1;
    size_t *slots = (size_t *)xalloc(mask + 1, sizeof(size_t)); // word's number + 1, 0 = free
    w.text = (const char **)xalloc(all, sizeof(char *));
    w.len = (size_t *)xalloc(all, sizeof(size_t));
    w.count = (int64_t *)xalloc(all, sizeof(int64_t));
    for (size_t i = 0, end; i < n; i = end) {
        end = word_end(t, text, n, i);
        size_t h = hash64(HASH64, text + i, end - i) & mask, k;
        while ((k = slots[h]) && (w.len[k - 1] != end - i || memcmp(w.text[k - 1], text + i, end - i)))
            h = (h + 1) & mask;
        if (!k) {
            slots[h] = k = ++w.n;
            w.text[k - 1] = text + i;
            w.len[k - 1] = end - i;
        }
        w.count[k - 1]++;
    }
    free(slots);
    return w;
}

// Sets every word to one token per byte.
static inline void words_to_bytes(Words *w) {
    w->at = (size_t *)xalloc(w->n + 1, sizeof(size_t));
    w->n_ids = (size_t *)xalloc(w->n, sizeof(size_t));
    for (size_t i = 0; i < w->n; i++) w->at[i + 1] = w->at[i] + (w->n_ids[i] = w->len[i]);
    w->id = (uint16_t *)xalloc(w->at[w->n], sizeof(uint16_t));
    for (size_t i = 0; i < w->n; i++)
        for (size_t k = 0; k < w->len[i]; k++) w->id[w->at[i] + k] = (uint8_t)w->text[i][k];
}

static inline void words_free(Words *w) {
    free(w->text); free(w->len); free(w->count); free(w->at); free(w->id); free(w->n_ids);
    memset(w, 0, sizeof *w);
}

// Adds `count` to each pair of neighbours among these tokens.
static inline void pairs_count(Pairs *p, const uint16_t *id, size_t n, int64_t count) {
    for (size_t i = 0; i + 1 < n; i++) {
        uint32_t key = (uint32_t)id[i] << 16 | id[i + 1];
        size_t h = (key * 0x9E3779B97F4A7C15ull >> 32) & p->mask;
        while (p->index[h] >= 0 && p->list[p->index[h]].key != key) h = (h + 1) & p->mask;
        if (p->index[h] < 0) {
            XGROW(p->list, p->cap, p->n + 1);
            Pair fresh = {key, 0};
            p->list[p->n] = fresh;
            p->index[h] = (int32_t)p->n++;
        }
        p->list[p->index[h]].count += count;
    }
}

// The most frequent pair that fits a token, the lowest ids among equals; its count is 0 if there is none.
static inline Pair pairs_best(const Pairs *p, const Tokenizer *t) {
    Pair best = {0, 0};
    for (size_t i = 0; i < p->n; i++) {
        Pair c = p->list[i];
        if (c.count < best.count || c.count == 0 || (c.count == best.count && c.key > best.key)) continue;
        uint32_t a = c.key >> 16, b = c.key & 0xFFFF;
        if (t->at[a + 1] - t->at[a] + t->at[b + 1] - t->at[b] <= TOKEN_BYTES_MAX) best = c;
    }
    return best;
}

// The token that a pair makes, added to the vocabulary unless its bytes are a token already.
static inline int32_t pair_token(Tokenizer *t, uint32_t key) {
    char s[TOKEN_BYTES_MAX];
    int na, nb;
    const char *a = tokenizer_decode(t, (int)(key >> 16), &na);
    const char *b = tokenizer_decode(t, (int)(key & 0xFFFF), &nb);
    memcpy(s, a, (size_t)na);
    memcpy(s + na, b, (size_t)nb);
    int32_t id = tokenizer_find(t, s, (size_t)(na + nb));
    if (id >= 0) return id;
    tokenizer_add(t, s, (size_t)(na + nb), 0);
    return t->V - 1;
}

// Replaces the pair by the token in every word and keeps the counts right.
static inline void words_merge(Words *w, Pairs *p, uint32_t key, int32_t token) {
    uint16_t a = (uint16_t)(key >> 16), b = (uint16_t)key;
    for (size_t i = 0; i < w->n; i++) {
        uint16_t *id = w->id + w->at[i];
        size_t n = w->n_ids[i], k = 0, m = 0;
        while (k + 1 < n && !(id[k] == a && id[k + 1] == b)) k++;
        if (k + 1 >= n) continue;
        pairs_count(p, id, n, -w->count[i]);
        for (k = 0; k < n; k++) {
            int hit = k + 1 < n && id[k] == a && id[k + 1] == b;
            id[m++] = hit ? (uint16_t)token : id[k];
            k += (size_t)hit;
        }
        w->n_ids[i] = m;
        pairs_count(p, id, m, w->count[i]);
    }
}

// Learns a vocabulary of V tokens from a text: the 256 bytes (id = byte), then again and again the most
// frequent pair of neighbours within words, then "<|endoftext|>". Fewer than V if the text has no more pairs.
static inline Tokenizer tokenizer_train(const char *text, size_t n, int V) {
    if (V < 257 || V > VOCABULARY_MAX)
        die("tokenizer: cannot learn a vocabulary of %d tokens; use 257 to %d", V, VOCABULARY_MAX);
    if (n > INT32_MAX / 3)
        die("tokenizer: %zu bytes of text to learn from; use at most %d", n, INT32_MAX / 3);
    Tokenizer t = tokenizer_make(V, (size_t)V * TOKEN_BYTES_MAX);
    for (int i = 0; i < 256; i++) {
        char c = (char)i;
        tokenizer_add(&t, &c, 1, 0);
    }
    Words w = words_collect(&t, text, n);
    words_to_bytes(&w);
    Pairs p = {0};
    for (p.mask = 1023; p.mask < 6 * w.at[w.n];) p.mask = 2 * p.mask + 1;
    p.index = (int32_t *)xalloc(p.mask + 1, sizeof(int32_t));
    memset(p.index, -1, (p.mask + 1) * sizeof(int32_t));
    for (size_t i = 0; i < w.n; i++) pairs_count(&p, w.id + w.at[i], w.n_ids[i], w.count[i]);
    while (t.V < V - 1) {
        Pair best = pairs_best(&p, &t);
        if (best.count == 0) break;
        words_merge(&w, &p, best.key, pair_token(&t, best.key));
    }
    tokenizer_add(&t, END_OF_TEXT, sizeof END_OF_TEXT - 1, 1);
    words_free(&w);
    free(p.list);
    free(p.index);
    return t;
}

#endif
