/*
demo.h: made-up film reviews with a known sentiment, for the demo that needs no download.

  void demo_review(Rng *r, int positive, char **buf, size_t *len, size_t *cap)

appends one review, a paragraph of ASCII of about 45-90 words, to buf, which grows as by XGROW; a NUL follows
that *len does not count. The same Rng state gives the same review.

A review opens with what says little about its sentiment (when, with whom, what the film is about), mixes
praise and blame as real ones do, mostly one of the two, and ends with a verdict. Part of it lies in negation
and contrast ("far from dull", "beautiful to look at, but empty"): counting words is not quite enough.

It is all one grammar. A rule is a list of alternatives separated by |, made of words and names of rules:
  $rule   one of its alternatives, none of them twice in a review before all were used
  $!rule  the same with the sentiment turned round: a good $pred may be "never $!trait", never dull
  $Rule   a capital: one choice for the whole review. Names with the same first letter choose alike, so a
          $Hero at an odd place in its list is a $Hhe and an $Hactor, at an even one a she and an actress.
As the text is written, "a" becomes "an" before a vowel and sentences get their capitals.
*/
#ifndef DEMO_H
#define DEMO_H

#include "../util.h"     // defines: Rng, rng_below, XGROW, die

// ----------------------------------------------------------------------------
// The films: a review is about one row

#define DEMO_COLUMNS 5
static const char *const demo_column[DEMO_COLUMNS] = {"Genre", "Bits", "Hero", "Place", "Deed"};
static const char *const demo_film[][DEMO_COLUMNS] = {
    {"western", "gunfights", "old sheriff|young widow|tired gambler|stubborn teacher",
     "in a dusty border town|on a lonely ranch",
     "must bring a killer to justice|fights the railroad for the land|comes home to pay an old debt"},
    {"comedy", "jokes", "lazy waiter|nervous bride|shy dentist|bored secretary",
     "in a cheap hotel|in a village by the sea",
     "loses the money for a wedding|is mistaken for a famous singer|has to look after six noisy children"},
    {"horror film", "scares", "young doctor|lonely student|night guard|nervous widow",
     "in an empty hospital|in a house in the woods",
     "hears voices behind the wall|wakes up without a memory|is followed by something in the dark"},
    {"love story", "love scenes", "young painter|famous dancer|shy sailor|lonely baker",
     "in an old harbor|in the capital",
     "falls for a stranger|writes letters to a lost friend|meets an old love after ten years"},
    {"war film", "battles", "young soldier|army nurse|wounded pilot|young widow",
     "behind enemy lines|in a burning city",
     "tries to get home before winter|must carry a message to the front|hides a child from the enemy"},
    {"musical", "songs", "street singer|young dancer|retired waiter|shy teacher",
     "in an old theater|in the capital",
     "dreams of the big stage|puts on a show without any money|falls for the star of the show"},
    {"space adventure", "special effects", "lonely pilot|ship doctor|old captain|young engineer",
     "on a distant planet|on a lost ship",
     "gets a message from the future|is the last person alive|builds a machine that can dream"},
    {"crime drama", "twists", "tired detective|stubborn lawyer|young policeman|old judge",
     "in a big city|on a night train",
     "reopens a murder case|looks for a missing child|must choose between justice and family"},
    {"family film", "adventures", "small boy|little girl|lonely uncle|old aunt",
     "on a farm|in a village in the woods",
     "finds a wounded horse|makes friends with a ghost|has to save the school"},
};

// ----------------------------------------------------------------------------
// The rules: the alternatives in praise, and in blame where they differ

static const struct { const char *name, *good, *bad; } demo_rule[] = {
    {"review", "$opening $body $body $body $body $verdict", 0},
    {"body", "$sentence|$sentence|$sentence|$sentence|$sentence|$sentence|$sentence|"
     "$!concede.|$aside.|$aside.", 0},

    // the opening: a hint in one of four, honest two times out of three
    {"opening",
     "I saw this $Genre $when with $Who. $premise.|$Who and I saw this $Genre $when. $premise.|"
     "I saw this $Genre $when. $premise.|set $Place, this $Genre follows a $Hero who $Deed.|"
     "I saw this $Genre $when. it is set $Place, where a $Hero $Deed.|"
     "a $Hero $Place $Deed. that is how this $Genre begins.|"
     "this $Genre is the $nth film of a young director. $premise.|"
     "the hero of this $Genre is a $Hero who $Deed. I saw it $when.|$Who picked this $Genre $when. $premise.|"
     "$Who $hint this $Genre. $premise.|$Who $hint this $Genre. $premise.|"
     "$Who $!hint this $Genre. $premise.", 0},
    {"premise", "it is about a $Hero who $Deed|it follows a $Hero who $Deed|in it, a $Hero $Deed", 0},
    {"when", "last night|last week|last month|on Sunday|at a festival|on a rainy evening", 0},
    {"Who", "my sister|my brother|my wife|my husband|my father|my daughter|an old friend", 0},
    {"hint", "told me to see", "warned me about"}, {"nth", "first|second|third", 0},
    {"Film", "film|movie|picture", 0}, {"Hactor", "actor|actress", 0}, {"Hhe", "he|she", 0},

    // sentences
    {"sentence",
     "$say.|$say.|$say.|$say.|$say.|$say, and $say.|$say, and $say.|$!say, but $say.|although $!say, $say.|"
     "$luckily, $say.|it is $!pretty to look at, but $heart.|I expected $hope.|"
     "there is nothing $!trait about the $Film.|the first half $!moves, but the second half $moves.", 0},
    {"concede", "I admit that $say|it is true that $say|some say that $say|I will not deny that $say", 0},
    {"aside",
     "it runs for about two hours|it is based on a book I have not read|most of it was shot in winter|"
     "most of the actors are new to me|there is very little violence|there is a small part for a dog|"
     "I sat near the front|the theater was half full|"
     "the $Hero has a secret, but I will not give it away|the director also wrote the script", 0},
    {"verdict",
     "I would see it again.|do not miss it!|it is the best $Genre of the year.|what a $adj $Film!|"
     "it is far from the worst $Genre of the year.|I am glad that I did not stay at home.|"
     "it is hard not to recommend it.|it is worth the time.|in the end, it is $thing.|"
     "all in all, it is $pred.",
     "I would not see it again.|do not see it!|it is the worst $Genre of the year.|what a $adj $Film!|"
     "it is far from the best $Genre of the year.|I would be glad to have stayed at home.|"
     "it is hard to recommend.|it is not worth the time.|in the end, it is $thing.|"
     "all in all, it is $pred."},
    {"luckily", "luckily|to my surprise|to my delight", "sadly|to my surprise|to my regret"},
    {"pretty", "beautiful|lovely", "ugly|plain"}, {"heart", "full of heart|full of life", "empty|heartless"},
    {"thing", "a small miracle|a real pleasure|a joy|a little gem",
     "a mess|a long bore|an empty shell|a waste of time"},
    {"hope", "$!thing and got $thing|little and was rewarded|to leave early and stayed to the end",
     "$!thing and got $thing|a lot and was let down|to stay to the end and left early"},
    {"moves", "is full of life|picks up speed|knows where to go", "drags|is far too slow|loses its way"},

    // clauses, by what they are about
    {"say", "$acting|$story|$pace|$look|$music|$talk|$bits|$direction|$ending|$crowd|$feeling", 0},
    {"acting", "the $Hactor who plays the $Hero is $pred|the lead gives a $adj performance as the $Hero|"
     "the cast is $pred|the two leads $leads|it is $easy to believe in the $Hero|"
     "you believe $word $Hhe says", 0},
    {"leads", "look happy together|make a fine pair", "look bored together|make a poor pair"},
    {"easy", "easy|not hard", "hard|not easy"}, {"word", "every word that", "hardly a word that"},
    {"story", "the story is $pred|the plot $plots|I $cared what happened to the $Hero|it is a $adj story", 0},
    {"plots", "makes perfect sense|keeps you guessing|never falls apart|is full of surprises",
     "makes no sense|stops you guessing in ten minutes|soon falls apart|is full of holes"},
    {"cared", "always wanted to know|really cared", "never wanted to know|soon stopped caring"},
    {"pace", "there is not a dull moment|two hours pass like ten minutes|I never looked at my watch|"
     "no scene is too long",
     "there is hardly a good moment|ten minutes pass like two hours|I often looked at my watch|"
     "every scene is too long"},
    {"look", "the $camera is $pred|every shot looks $adj|the $Film looks $looks", 0},
    {"camera", "photography|lighting", 0},
    {"looks", "bright and alive|like a dream", "gray and dead|like a cheap show"},
    {"music", "the music is $pred|the music $plays|the score is $adj", 0},
    {"plays", "fits every scene|never gets in the way|stays with you",
     "fits no scene|gets in the way|is too loud"},
    {"talk", "the dialogue is $pred|the dialogue sounds $adj|people talk like people $life", 0},
    {"life", "you know|in real life", "in a bad play|in a commercial"},
    {"bits", "the $Bits are $pred|the $Bits $work|the $Bits look $adj", 0},
    {"work", "work every time|get better and better|are worth the ticket",
     "never work|get worse and worse|are not worth the ticket"},
    {"direction", "the director $directs|the direction is $pred", 0},
    {"directs", "knows what to leave out|never tries too hard|trusts the audience",
     "leaves nothing out|tries far too hard|never trusts the audience"},
    {"ending", "the ending is $pred|the last scene left me $left|the ending $ends", 0},
    {"left", "smiling|in tears|wanting more", "cold|bored|wanting my money back"},
    {"ends", "could not be better|makes up for everything|is worth the wait",
     "could not be worse|ruins everything|is not worth the wait"},
    {"crowd", "$Who loved every minute|nobody left early|nobody made a sound|people clapped at the end",
     "$Who fell asleep|half of the people left early|nobody laughed|nobody clapped at the end"},
    {"feeling", "I was never bored|I had a great time|it made me $feel|it has $soul",
     "I was never moved|I had a terrible time|it made me $feel|it has $soul"},
    {"feel", "laugh and cry|happy", "yawn|angry"}, {"soul", "a soul of its own", "no soul of its own"},

    // adjectives: plain ones, and those that also work turned round
    {"pred", "$trait|$trait|$trait and $trait|$very $trait|$adj|$adj|never $!trait|far from $!trait|"
     "not $!trait at all", 0}, {"very", "very|really|always", 0},
    {"adj", "wonderful|brilliant|beautiful|superb|great|remarkable|lovely|splendid",
     "terrible|awful|poor|dreadful|lifeless|cheap|tired|ugly"},
    {"trait", "convincing|original|moving|exciting|surprising|interesting|memorable|clever",
     "dull|predictable|forced|clumsy|boring|flat|tiresome|careless"},
};

// ----------------------------------------------------------------------------
// The expander

enum { DEMO_FILMS = sizeof demo_film / sizeof *demo_film, DEMO_RULES = sizeof demo_rule / sizeof *demo_rule };

typedef struct {
    Rng *r;
    char **buf;
    size_t *len, *cap, start;       // start: where this review begins in buf
    int film, capital[26];          // the row of demo_film; what each capital letter chooses
    uint64_t used[DEMO_RULES][2];   // a bit per alternative, in blame and in praise: already used
} Demo;

// Writes one character, and mends the article and the capital that depend on it.
static inline void demo_put(Demo *d, char c) {
    XGROW(*d->buf, *d->cap, *d->len + 3);
    char *s = *d->buf + d->start;
    size_t n = *d->len - d->start;
    int article = n >= 2 && s[n-1] == ' ' && (s[n-2] == 'a' || s[n-2] == 'A') && (n == 2 || s[n-3] == ' ');
    if (article && strchr("aeiou", c)) {
        s[n-1] = 'n';
        s[n++] = ' ';
    }
    int first = n == 0 || (n >= 2 && s[n-1] == ' ' && strchr(".!", s[n-2]));
    s[n++] = first && c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
    s[n] = 0;
    *d->len = d->start + n;
}

// The list of alternatives that a name stands for, and its deck.
static inline const char *demo_find(Demo *d, const char *name, size_t n, int good, uint64_t **used) {
    for (int i = 0; i < DEMO_COLUMNS; i++)
        if (strlen(demo_column[i]) == n && !memcmp(demo_column[i], name, n)) return demo_film[d->film][i];
    for (int i = 0; i < DEMO_RULES; i++) {
        if (strlen(demo_rule[i].name) != n || memcmp(demo_rule[i].name, name, n)) continue;
        int praise = good || !demo_rule[i].bad;
        *used = &d->used[i][praise];
        return praise ? demo_rule[i].good : demo_rule[i].bad;
    }
    die("demo.h: no rule is called '%.*s'", (int)n, name);
}

// Which of n (at most 63) alternatives: the choice of its capital letter, else a new card from the deck.
static inline int demo_choose(Demo *d, char initial, int n, uint64_t *used) {
    if (initial >= 'A' && initial <= 'Z') return d->capital[initial - 'A'] % n;
    if (*used == (1ull << n) - 1) *used = 0;
    int i;
    do i = rng_below(d->r, n); while (*used >> i & 1);
    *used |= 1ull << i;
    return i;
}

// Writes one alternative of a rule, the rules in it written out in turn.
static inline void demo_expand(Demo *d, const char *name, size_t n, int good) {
    uint64_t *used = NULL;
    const char *s = demo_find(d, name, n, good, &used);
    int count = 1;
    for (const char *p = s; *p; p++) count += *p == '|';
    for (int i = demo_choose(d, name[0], count, used); i > 0; i--) s = strchr(s, '|') + 1;
    while (*s && *s != '|') {
        if (*s != '$') { demo_put(d, *s++); continue; }
        int flip = s[1] == '!';
        s += 1 + flip;
        size_t m = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz");
        demo_expand(d, s, m, good ^ flip);
        s += m;
    }
}

static inline void demo_review(Rng *r, int positive, char **buf, size_t *len, size_t *cap) {
    Demo d = {0};
    d.r = r; d.buf = buf; d.len = len; d.cap = cap; d.start = *len;
    d.film = rng_below(r, DEMO_FILMS);
    for (int i = 0; i < 26; i++) d.capital[i] = rng_below(r, 1 << 20);
    demo_expand(&d, "review", 6, positive != 0);
}

#endif
