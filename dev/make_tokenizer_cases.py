#!/usr/bin/env python3
"""Writes test/tokenizer_cases.bin: a small vocabulary, texts, and the tokens that others make of them.

    pip install regex tiktoken tokenizers && python3 dev/make_tokenizer_cases.py gpt2_tokenizer.bin

The small vocabulary is GPT-2's first 1499 tokens and end-of-text; reference ids are given for it and for the
whole vocabulary. Three implementations must agree on each text: tiktoken, Hugging Face tokenizers, and the
definition written out below (for texts that are not UTF-8, where the others have no answer, the last alone).

File, little-endian: int32 bytes of the vocabulary file, that file; uint64 FNV-1a of the classes of all code
points (0 other, 1 space, 2 number, 3 letter); int32 number of cases; per case int32 bytes of its name, bytes
of its text, small-vocabulary tokens, whole-vocabulary tokens, then these four, the tokens as uint16.
"""
import os
import random
import struct
import sys

import regex
import tiktoken
import tokenizers

SMALL = 1500
EOT = b"<|endoftext|>"
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def read_vocabulary(path):
    data = open(path, "rb").read()
    V, at, tokens = struct.unpack_from("<i", data, 8)[0], 1024, []
    for _ in range(V):
        tokens.append(data[at + 1:at + 1 + data[at]])
        at += 1 + data[at]
    assert at == len(data) and tokens[-1] == EOT
    return tokens


def vocabulary_file(tokens):
    header = struct.pack("<4i", 20240328, 2, len(tokens), len(tokens) - 1).ljust(1024, b"\0")
    return header + b"".join(bytes([len(t)]) + t for t in tokens)


def merge(ranks, word):
    """The definition: join the neighbours of lowest rank, leftmost first, until none can be joined."""
    parts = [bytes([b]) for b in word]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]
        if not pairs:
            return parts
        i = min(pairs)[1]
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


class Reference:
    def __init__(self, tokens):
        self.ranks = {t: i for i, t in reversed(list(enumerate(tokens[:-1])))}
        self.tiktoken = tiktoken.Encoding("reference", pat_str=PATTERN, mergeable_ranks=self.ranks,
                                          special_tokens={EOT.decode(): len(tokens) - 1})
        spelling = self.spelling()
        spell = lambda t: "".join(spelling[b] for b in t)
        merges = []
        for i, t in enumerate(tokens[:-1]):
            if len(t) > 1: # the merge that made token i: what its bytes come to with the merges before it
                a, b = merge({k: v for k, v in self.parts_of(t).items() if v < i}, t)
                merges.append((spell(a), spell(b)))
        model = tokenizers.models.BPE(vocab={spell(t): i for t, i in self.ranks.items()}, merges=merges)
        self.hf = tokenizers.Tokenizer(model)
        self.hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)

    def parts_of(self, token):
        n = len(token)
        parts = {token[i:j] for i in range(n) for j in range(i + 1, n + 1)}
        return {p: self.ranks[p] for p in parts if p in self.ranks}

    @staticmethod
    def spelling():
        """The printable character that vocab.json writes for each byte."""
        keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
        rest = [b for b in range(256) if b not in keep]
        return {**{b: chr(b) for b in keep}, **{b: chr(256 + i) for i, b in enumerate(rest)}}

    def encode(self, data):
        # a byte outside UTF-8 becomes a lone surrogate here: no letter, number or space
        text = data.decode("utf-8", "surrogateescape")
        words = [w.encode("utf-8", "surrogateescape") for w in regex.findall(PATTERN, text)]
        assert b"".join(words) == data
        ids = [self.ranks[p] for w in words for p in merge(self.ranks, w)]
        try:
            text = data.decode()
        except UnicodeDecodeError:
            assert ids == [i for w in words for i in self.tiktoken._core_bpe.encode_single_piece(w)]
            return ids
        assert ids == self.tiktoken.encode_ordinary(text), text
        assert ids == self.hf.encode(text).ids, text
        return ids


def classes_hash():
    match = [regex.compile(p).match for p in (r"\s", r"\p{N}", r"\p{L}")]
    h = 0xCBF29CE484222325
    for c in range(0x110000):
        k = next((i + 1 for i, m in enumerate(match) if m(chr(c))), 0)
        h = (h ^ k) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


CASES = {
    "empty": "",
    "one letter": "a",
    "review": "I rented this one on a rainy Sunday and, honestly, I've rarely been so pleasantly surprised. "
              "The plot isn't new (two brothers, one boat, no map), but the acting carries it; they'll make "
              "you laugh AND cry. Don't leave before the credits! 9/10.",
    "bad review": "What a mess...<br /><br />The director couldn't decide whether he'd made a comedy or a "
                  "funeral. \"Nobody's home,\" says the hero at minute 12 -- and he's right!! I'm giving it "
                  "2 out of 10; we're owed 90 minutes.",
    "contractions": "it's it'S IT'S 's 't 're 've 'm 'll 'd 'S 'T 'RE x's's 'sa 'lla 'l 'r 'v '' ''s ' s "
                    "don''t 'tis",
    "end of a contraction cut short": "we'l",
    "apostrophes": "'''ll '",
    "curly apostrophe": "it’s don’t ‘quoted’",
    "spaces": "a b  c   d    e     f ",
    "two spaces at the end": "trailing  ",
    "one space": " ",
    "three spaces": "   ",
    "newlines": "one\ntwo\n\nthree\n\n\nfour\n \n five\r\n\r\nsix\n",
    "tabs": "\tif x:\n\t\treturn\t y\t\t\n",
    "space then newline": "a \nb  \nc \n\nd\n  e",
    "every white space": "a\tb\nc\x0bd\x0ce\rf\x85g\xa0h\u1680i\u2000j\u2001k\u2002l\u2003m\u2004n\u2005"
                         "o\u2006p\u2007q\u2008r\u2009s\u200at\u2028u\u2029v\u202fw\u205fx\u3000y",
    "runs of wide spaces": "a\u3000\u3000b\xa0\xa0 c \xa0d\u2003\u2003\u2003e\u3000",
    "not quite white space": "a\x1cb\x1dc\x1ed\x1fe\u200bf\u2060g\ufeffh\u180ei",
    "control characters": "\x00\x01\x02\x7f\x00\x00 \x00a",
    "digits": "0 1 22 333 4444 55555 1,234,567.89 3.14e-10 a1b2c3 12th 007 x2y",
    "other digits": "²³¹ x² ½⅕ ⅠⅣↈ ①⑳ ١٢٣ १२ 一二三 １２ "
                    "\U0001d7ce\U0001d7ff \u3007 \u0bf0 \U00010107",
    "punctuation": "!!! ??? ... --- ,.;: ()[]{} @#$%^&*_+=~`|\\/ <br /> a-b_c (yes!) \"no\" :-) ;-P $5.00 "
                   "50%",
    "capitals": "WHAT A FILM hElLo ABCdef XyZ",
    "end-of-text spelt out": "<|endoftext|>a<|endoftext|> <|endoftext|",
    "French": "Un film d’une beauté rare\u00a0: l'œuvre n'a rien perdu, ça va de soi. Noël, déjà vu\u00a0!",
    "German": "Großartig! Über zwei Stunden Spannung, und trotzdem hätte ich gern länger zugesehen. STRASẞE",
    "Chinese": "这部电影很好看，我喜欢它的结局。一共两个小时 90 分钟。",
    "Japanese": "この映画はとても面白かったです。スーパーヒーロー！\u3000星5つ。",
    "Korean": "이 영화는 정말 재미있었습니다. 한\u1112\u1161\u11ab",
    "Arabic": "هذا الفيلم رائع، مُمتِعٌ جِدًّا! ٤٢",
    "Hebrew": "הסרט הזה מצוין. שָׁלוֹם 5",
    "Hindi": "यह फिल्म बहुत अच्छी है। १०/१०",
    "Thai": "หนังเรื่องนี้สนุกมาก ๒๕๖๗",
    "Russian": "Этот фильм — настоящий шедевр, Ёлки-палки! 10 из 10",
    "Greek": "Η ταινία ήταν υπέροχη· δεν ξεχνιέται. ἐν ἀρχῇ",
    "more scripts": "გამარჯობა բարև አማርኛ தம\u0bbfழ\u0bcd བ\u0f7cད ᏣᎳᎩ ᚠᚢ ᠠ \U00010400\U00010428 "
                    "\U00012000\U00012001 \U00020000\U0002a6d6",
    "combining marks": "e\u0301a\u0300 n\u0303o Z\u0351\u036b\u0343a\u0328\u0304l\u0334g\u0353o\u030a "
                       "\u0301x \u20dd1",
    "emoji": "Great \U0001f600\U0001f44d\U0001f3fd! \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d"
             "\U0001f466 \u2764\ufe0f\U0001f1eb\U0001f1f7 1\ufe0f\u20e3 "
             "\U0001f3f4\U000e0067\U000e0062\U000e007f \u2728\u2728",
    "symbols": "€5 £10 ™®© →⇒ ∑∫∞ ªºµ … —– « x » � ʰʼ",
    "ends of the planes": "\ud7ff \ue000 \ufffd\uffff \U00010000 \U0001ffff \U0002fa1d\U0002fa1e \U0010ffff",
    "a long word": "ab" * 150 + "cd" * 40,
    "a long run of marks": "=" * 100 + "-" * 77 + "." * 50,
    "a long run of spaces": " " * 100 + "x" + " " * 65 + "\n" * 33,
}

BROKEN = {
    "a byte alone": b"\xff",
    "continuation bytes": b"a\x80\xbf\x80b \x80 \x80\x80 1\x80",
    "cut short at the end": b"caf\xc3",
    "cut short, then a letter": b"\xe2\x82a \xf0\x9f\x98b \xe2\x82\xe2\x82\xac \xf0\x9f\x98\xf0\x9f\x98\x80",
    "overlong": b"\xc0\x80 \xc1\xbf \xe0\x80\xa0 \xe0\x9f\xbf \xf0\x80\x80\xa0 \xf0\x8f\xbf\xbf",
    "surrogates": b"\xed\xa0\x80\xed\xb0\x80 \xed\x9f\xbf\xed\xbf\xbf",
    "beyond the last plane": b"\xf4\x90\x80\x80 \xf5\x80\x80\x80 \xf8\x88\x80\x80\x80 \xfe\xff",
    "white space cut short": b"a \xe3\x80 b\xe3\x80\x80c  \xc2\xa0 \xc2 \xa0",
    "Latin-1": "Un film déjà vu, à éviter ¿".encode("latin-1"),
    "every byte": bytes(range(256)),
    "every byte backwards": bytes(range(255, -1, -1)),
}


def random_cases():
    """Characters of all kinds in random order: where classes meet is where splitting goes wrong."""
    rng = random.Random(20230411)
    kinds = ["abcxyzABC", "0123", " ", "  ", "\n", "\t", "'", "'s'll", ".,!-", "éЖ中א", "²٣Ⅷ",
             "\u00a0\u3000", "\u0301\u200d\U0001f600", "theing of", "strdm"]
    for i in range(24):
        yield f"random {i}", "".join(rng.choice(rng.choice(kinds)) for _ in range(120)).encode()
    for i in range(8):
        soup = [rng.choice(rng.choice(kinds)).encode() for _ in range(60)]
        for _ in range(12):
            soup.insert(rng.randrange(60), bytes([rng.randrange(0x80, 0x100)]))
        yield f"random with broken bytes {i}", b"".join(soup)


def main():
    full = read_vocabulary(sys.argv[1])
    small = full[:SMALL - 1] + [EOT]
    references = Reference(small), Reference(full)
    cases = [(n, t.encode("utf-8", "surrogatepass")) for n, t in CASES.items()]
    cases += list(BROKEN.items()) + list(random_cases())
    vocabulary = vocabulary_file(small)
    out = struct.pack("<i", len(vocabulary)) + vocabulary + struct.pack("<Qi", classes_hash(), len(cases))
    for name, text in cases:
        ids = [r.encode(text) for r in references]
        out += struct.pack("<4i", len(name), len(text), len(ids[0]), len(ids[1])) + name.encode() + text
        out += b"".join(struct.pack(f"<{len(x)}H", *x) for x in ids)
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "tokenizer_cases.bin")
    with open(path, "wb") as f:
        f.write(out)
    print(f"{len(cases)} cases, {len(out)} bytes")


if __name__ == "__main__":
    main()
