/*
test_plot.c: dev/plot.h. Round ticks, the alphabet, awkward data, labels that keep clear of each other, and
the file itself (signature, size, nothing left behind). Best under -fsanitize=address,undefined.

  cc -O1 -g -fsanitize=address,undefined -DHAVE_STB -I/usr/include/stb -o test_plot test/test_plot.c -lm
  ./test_plot
*/
#include "../dev/plot.h"  // defines: plot_png
#include "test.h"         // defines: check, check_dies, test_summary

static char dir[] = "/tmp/rrhf_plot_XXXXXX", file[64]; // file: curves.png in it

// ----------------------------------------------------------------------------
// Ticks

static int is_round(double step) {
    double m = step / pow(10, floor(log10(step) + 1e-9));
    return fabs(m - 1) < 1e-6 || fabs(m - 2) < 1e-6 || fabs(m - 5) < 1e-6;
}

static int covers(double step, double lo, double hi, int n) {
    double start = floor(lo / step + 1e-6) * step;
    return start <= lo + 1e-5 * step && start + (n + 1e-5) * step >= hi;
}

static void test_ticks(void) {
    static const double range[8][2] = {{0, 1}, {0.539, 0.99}, {-3, 7}, {1e-7, 3e-7}, {0, 2340}, {-1e9, 3e9},
                                       {31.6, 35.8}, {1e299, 9e299}};
    for (int r = 0; r < 8; r++) {
        double lo = range[r][0], hi = range[r][1], start;
        int ok = 1;
        for (int n = 2; n <= 8; n++) {
            double step = plot_step(lo, hi, n, &start), mantissa = step / pow(10, floor(log10(step) + 1e-9));
            double smaller = step * (fabs(mantissa - 5) < 1e-6 ? 0.4 : 0.5); // 5 -> 2, 2 -> 1, 1 -> 0.5
            ok = ok && is_round(step) && covers(step, lo, hi, n) && !covers(smaller, lo, hi, n);
            ok = ok && fabs(start / step - floor(start / step + 0.5)) < 1e-6;
        }
        check(ok, "ticks of %g .. %g: the smallest 1, 2 or 5 x 10^k that covers, from a multiple", lo, hi);
    }
}

// Under lines the axis ends with the data. Columns: the data, the steps asked for, whole numbers?, the ticks.
static void test_inside(void) {
    static const struct { double lo, hi; int n, whole; double first, step; int steps; } want[8] = {
        {0, 128, 7, 1, 0, 20, 6}, {1, 1250, 8, 1, 200, 200, 5}, {1, 3, 8, 1, 1, 1, 2}, {1, 3, 8, 0, 1, 0.5, 4},
        {0.9, 1.1, 8, 1, 1, 1, 0}, {-3, 7, 5, 0, -2, 2, 4}, {10, 10000, 5, 1, 2000, 2000, 4}, {0, 64, 8, 1, 0, 10, 6}
    };
    for (int k = 0; k < 8; k++) {
        PlotAxis a = {want[k].lo, want[k].hi, 0, 0, 0, 1, 0};
        plot_inside(&a, want[k].n, want[k].whole);
        check(a.lo == want[k].lo && a.hi == want[k].hi && fabs(a.first - want[k].first) < 1e-9 &&
              fabs(a.step - want[k].step) < 1e-9 && a.n == want[k].steps,
              "ticks within %g .. %g%s: %d steps of %g from %g",
              a.lo, a.hi, want[k].whole ? ", whole" : "", a.n, a.step, a.first);
    }
}

static void test_numbers(void) {
    static const struct { double lo, step; int i; const char *text; } want[8] = {
        {0, 0.2, 3, "0.6"}, {-0.2, 0.1, 2, "0.0"}, {0, 50, 8, "400"}, {-3e-5, 1e-5, 5, "2e-5"},
        {-1e9, 1e9, 1, "0"}, {0, 5e6, 3, "1.5e7"}, {31, 1, 5, "36"}, {0.535, 0.005, 1, "0.540"}
    };
    for (int k = 0; k < 8; k++) {
        PlotAxis a = {want[k].lo, want[k].lo + 8 * want[k].step, want[k].lo, want[k].step, 0, 1, 8};
        char s[32];
        const char *got = plot_number(&a, want[k].i, s), *expected = want[k].text;
        check(!strcmp(got, expected), "tick %g + %d x %g reads %s", a.lo, want[k].i, a.step, got);
    }
}

// ----------------------------------------------------------------------------
// Text

// Pairs of digits on the grid; a line has two points or more, a curve three.
static int glyph_ok(const char *g) {
    while (*g) {
        int n = 0, curve = *g == '~';
        for (g += curve; *g && *g != ' '; n++, g += 2) {
            if (!g[1] || g[1] == ' ') return 0;
            int x = plot_digit(g[0]), y = plot_digit(g[1]);
            if (x < 0 || x > 14 || y < 0 || y > 18) return 0;
        }
        if (n < 2 + curve || n > 16) return 0;
        if (*g) g++;
    }
    return 1;
}

static void test_text(void) {
    int good = 0;
    for (int ch = 32; ch < 127; ch++) {
        good += glyph_ok(plot_font[ch - 32]) && (ch == ' ' || *plot_font[ch - 32]);
        for (int k = 33; k < ch; k++) good -= !strcmp(plot_font[ch - 32], plot_font[k - 32]);
    }
    check(good == 95, "alphabet: %d of 95 characters are well formed and unlike any other", good);
    char s[128], longer[300];
    memset(longer, 'w', sizeof longer);
    longer[299] = 0;
    double w = plot_text_width(plot_fit(s, longer, 10, 100), 10);
    check(w <= 100 && strstr(s, "w..."), "a label of 299 letters is cut to %.0f of 100 pixels", w);
    check(!strcmp(plot_fit(s, "short", 10, 100), "short"), "a short label is left alone");
    plot_fit(s, "abcdef", 10, 0);
    check(strlen(s) <= 3, "a label without room is \"%s\"", s);
    double other = plot_text_width("\xc3\xa9", 14), question = plot_text_width("?", 14);
    check(other == question, "a letter that the alphabet lacks is as wide as '?': %g", other);
}

// ----------------------------------------------------------------------------
// Pictures

enum { BLUE, RED, DARK }; // palette colours 0 and 1, and the ink of text and numbers

// Pixels of a hue, in a box.
static long count_in(const PlotCanvas *c, int hue, int x0, int y0, int x1, int y1) {
    long n = 0;
    for (int y = y0; y < y1; y++) for (int x = x0; x < x1; x++) {
        const unsigned char *p = &c->rgb[3 * ((size_t)y * c->w + x)];
        if (hue == DARK) n += p[0] < 96 && p[1] < 96 && p[2] < 96;
        else n += hue == RED ? p[0] > p[2] + 60 : p[2] > p[0] + 60;
    }
    return n;
}

static long count(const PlotCanvas *c, int hue) { return count_in(c, hue, 0, 0, c->w, c->h); }

static PlotPanel panel(const PlotSeries *s, int n) {
    PlotPanel p = {0};
    p.title = "title", p.label[PLOT_X] = "x", p.label[PLOT_LEFT] = "left", p.label[PLOT_RIGHT] = "right";
    p.series = s, p.n_series = n;
    return p;
}

// Draws one series on its own; `least` is how many pixels of its colour must show.
static void try_series(const char *what, const double *x, const double *y, const double *err, int n,
                       long least) {
    PlotSeries s = plot_series("name", x, y, n, PLOT_LINE | PLOT_POINTS, 1);
    s.xerr = s.yerr = err;
    PlotPanel p = panel(&s, 1);
    PlotCanvas c = plot_render(&p, 1, 400, 300), tiny = plot_render(&p, 1, 32, 32);
    long red = count(&c, RED), dark = count(&c, DARK);
    check(red >= least && dark > 200, "%s: %ld pixels in its colour, %ld of text", what, red, dark);
    plot_free(&c);
    plot_free(&tiny);
}

static void test_awkward(void) {
    static const double x[4] = {0, 1, 2, 3}, up[4] = {1, 2, 3, 4}, same[4] = {7, 7, 7, 7}, zero[4] = {0};
    static const double gap[4] = {1, NAN, -INFINITY, 4}, none[4] = {NAN, NAN, NAN, NAN};
    static const double huge[4] = {-1e299, 1e299, 1e308, 0}, small[4] = {1e-280, 2e-280, 5e-324, 0};
    static const double least[4] = {5e-324, 0, 5e-324, 0};
    static const double close[4] = {1e6, 1e6 + 1e-4, 1e6, 1e6}, err[4] = {0.1, NAN, 0, INFINITY};
    try_series("a line", x, up, NULL, 4, 300);
    try_series("error bars, some not finite", x, up, err, 4, 300);
    try_series("no points", x, up, NULL, 0, 20); // the legend's sample
    try_series("one point", x, up, NULL, 1, 40);
    try_series("a constant", x, same, NULL, 4, 300);
    try_series("zeros", x, zero, err, 4, 300);
    try_series("one x", same, up, NULL, 4, 200);
    try_series("gaps", x, gap, NULL, 4, 60);
    try_series("nothing but gaps", none, none, NULL, 4, 20);
    try_series("huge values", x, huge, NULL, 4, 60);
    try_series("tiny values", x, small, NULL, 4, 60);
    try_series("the smallest number", x, least, NULL, 4, 300);
    try_series("a range below the resolution", x, close, NULL, 4, 300);
}

static void test_gap(void) { // the line is not drawn across a NaN
    static const double x[3] = {0, 1, 2}, y[3] = {0, NAN, 2}, whole[3] = {0, 1, 2};
    PlotSeries s = plot_series(NULL, x, y, 3, PLOT_LINE, 1);
    PlotPanel p = panel(&s, 1);
    PlotCanvas with = plot_render(&p, 1, 400, 300);
    s.y = whole;
    PlotCanvas without = plot_render(&p, 1, 400, 300);
    long a = count(&with, RED), b = count(&without, RED);
    check(a > 0 && a < 80 && b > 300, "a gap breaks the line: %ld pixels, %ld without the gap", a, b);
    plot_free(&with);
    plot_free(&without);
}

// A run of one step, its loss faint and smooth: a point one can see, over a whole number.
static void test_one_step(void) {
    static const double x[1] = {1}, y[1] = {3.5};
    PlotSeries s[2] = {plot_series(NULL, x, y, 1, PLOT_LINE, 1), plot_series(NULL, x, y, 1, PLOT_LINE | PLOT_FAINT, 1)};
    PlotPanel p = panel(s, 2);
    PlotCanvas c = plot_render(&p, 1, 400, 300);
    PlotSeries dot = plot_series(NULL, x, y, 1, PLOT_POINTS, 1);
    p.series = &dot, p.n_series = 1;
    PlotCanvas want = plot_render(&p, 1, 400, 300);
    long a = count(&c, RED), b = count(&want, RED);
    check(a > 15 && a == b, "one step: %ld pixels, as a point has: %ld", a, b);
    plot_free(&c);
    plot_free(&want);
}

// The strongest red: the largest excess over blue, 213 in palette colour 1.
static int strongest(const PlotCanvas *c) {
    int most = 0;
    for (size_t i = 0; i < (size_t)c->w * c->h; i++) {
        int excess = c->rgb[3 * i] - c->rgb[3 * i + 2];
        most = excess > most ? excess : most;
    }
    return most;
}

static void test_styles(void) { // dashes cover half of a line; the faint is faint, and lies behind what came before it
    static const double x[2] = {0, 1}, y[2] = {0, 1};
    static const int styles[3] = {PLOT_LINE, PLOT_DASHED, PLOT_FAINT};
    PlotSeries s[2];
    long pixels[3];
    int red[3];
    for (int k = 0; k < 3; k++) {
        s[0] = plot_series(NULL, x, y, 2, styles[k], 1);
        PlotPanel p = panel(s, 1);
        PlotCanvas c = plot_render(&p, 1, 800, 600); // so large that a faint line is more than a pixel wide
        pixels[k] = count(&c, RED), red[k] = strongest(&c);
        plot_free(&c);
    }
    check(pixels[1] > 0.4 * pixels[0] && pixels[1] < 0.7 * pixels[0] && red[1] == red[0],
          "a dashed line: %ld pixels, solid %ld", pixels[1], pixels[0]);
    check(red[2] > 50 && red[2] < 80 && red[0] > 180, "a faint line: its strongest red is %d, a solid one's %d", red[2],
          red[0]);
    s[0] = plot_series(NULL, x, y, 2, PLOT_LINE, 1), s[1] = plot_series(NULL, x, y, 2, PLOT_FAINT, 0);
    PlotPanel p = panel(s, 2);
    PlotCanvas c = plot_render(&p, 1, 800, 600);
    check(strongest(&c) == red[0], "a faint line on a solid one lies behind: red %d, alone %d", strongest(&c), red[0]);
    plot_free(&c);
}

// One series on each axis: numbers and name in its colour and on its side, its line within the frame. Two colours on an
// axis: numbers and name in ink.
static void test_two_axes(void) {
    static const double x[2] = {0, 1}, y[2] = {1, 0}, large[2] = {100, 300};
    PlotSeries s[3] = {plot_series(NULL, x, y, 2, PLOT_LINE, BLUE), plot_series(NULL, x, large, 2, PLOT_LINE, RED),
                       plot_series(NULL, x, x, 2, PLOT_LINE, 2)};
    s[1].right = 1;
    for (int n = 2; n <= 3; n++) {
        PlotPanel p = panel(s, n);
        PlotCanvas c = plot_render(&p, 1, 400, 300); // leaves the clip at the frame
        int x0 = c.clip[0], y0 = c.clip[1], x1 = c.clip[2], y1 = c.clip[3], ink = n == 3;
        long left[3], right[3];
        for (int hue = BLUE; hue <= DARK; hue++) {
            left[hue] = count_in(&c, hue, 0, y0, x0 - 4, y1);
            right[hue] = count_in(&c, hue, x1 + 4, y0, 400, y1);
        }
        check((left[BLUE] > 50) == !ink && (left[DARK] > 50) == ink && !left[RED] && !right[BLUE] && right[RED] > 50 &&
              !right[DARK], "%d series on two axes: %ld pixels blue, %ld red, %ld dark on the left; %ld, %ld, %ld on "
              "the right", n, left[BLUE], left[RED], left[DARK], right[BLUE], right[RED], right[DARK]);
        if (n == 2)
            check(!count_in(&c, BLUE, x0 - 4, y0, x0 + 5, y1) && !count_in(&c, RED, x1 - 5, y0, x1 + 4, y1) &&
                  count_in(&c, BLUE, x0, y0, x1, y1) > 200 && count_in(&c, RED, x0, y0, x1, y1) > 200,
                  "the numbers end before the frame, both lines are within");
        plot_free(&c);
    }
    PlotSeries bars = plot_series(NULL, x, y, 2, PLOT_POINTS, BLUE);
    PlotPanel p = panel(&bars, 1);
    PlotAxis a[2];
    bars.xerr = x, bars.yerr = large;
    for (int k = 0; k < 2; k++) plot_range(&p, k, &a[k]);
    check(a[PLOT_X].lo == 0 && a[PLOT_X].hi == 2 && a[PLOT_LEFT].lo == -300 && a[PLOT_LEFT].hi == 300,
          "the range with error bars: %g .. %g across, %g .. %g up", a[PLOT_X].lo, a[PLOT_X].hi, a[PLOT_LEFT].lo,
          a[PLOT_LEFT].hi);
}

static void test_labels(void) { // a second label leaves the first one whole
    static const double x[2] = {1, 1}, y[2] = {1, 1};
    static const char *const first[1] = {"MMMMMM"}, *const second[1] = {"WWWWWW"};
    PlotSeries s[2];
    for (int k = 0; k < 2; k++) s[k] = plot_series(NULL, x, y, 1, PLOT_POINTS, k);
    PlotPanel p = panel(s, 2);
    s[0].label = first;
    PlotCanvas one = plot_render(&p, 1, 400, 300);
    s[1].label = second;
    PlotCanvas two = plot_render(&p, 1, 400, 300);
    long a = count(&one, BLUE), b = count(&two, BLUE), c = count(&two, RED) - count(&one, RED);
    check(a > 50 && a == b && c > 50, "two labels at one point: %ld and %ld pixels, alone %ld", b, c, a);
    plot_free(&one);
    plot_free(&two);
    static const double apart[2] = {1, 2};
    static const char *const each[3][2] = {{NULL, NULL}, {NULL, "WWWWWW"}, {"MMMMMM", "WWWWWW"}};
    for (int k = 0; k < 3; k++) {
        s[0] = plot_series(NULL, apart, y, 2, PLOT_POINTS, 1);
        s[0].label = each[k];
        p = panel(s, 1);
        one = plot_render(&p, 1, 400, 300);
        long now = count(&one, RED);
        if (k) check(now > c + 50, "labels of one series, %d of 2: %ld pixels, with one less %ld", k, now, c);
        c = now;
        plot_free(&one);
    }
}

static void test_tie(void) { // a label that finds no room near its point is tied to it, one that does is not
    enum { W = 900, H = 720, NEAR = 100 };
    for (int full = 0; full < 2; full++) {
        static const double at[2] = {W / 2, H / 2};
        PlotPanel p = panel(NULL, 0);
        PlotCanvas c = plot_render(&p, 1, W, H);
        PlotArea a = {0};
        a.c = &c, a.p = &p, a.u = W / 480.0, a.size = 9.2 * a.u, a.x1 = W;
        int x0 = W / 2 - NEAR, x1 = W / 2 + NEAR, y0 = H / 2 - NEAR, y1 = H / 2 + NEAR;
        if (full) plot_busy(&c, x0, y0, x1, y1, 1);
        plot_label(&a, at, plot_dark(RED), "label");
        long inside = count_in(&c, RED, x0, y0, x1, y1), all = count(&c, RED);
        check(all > 50 && (full ? inside > 20 && all - inside > 50 : inside == all && !count_in(&c, RED, W / 2, 0,
              W / 2 + (int)(6 * a.u), H)), "a label %s: %ld pixels near its point, %ld in all",
              full ? "far off" : "at its point", inside, all);
        plot_free(&c);
    }
}

// Pictures of 16 points, many of them close together: no label on another, on a marker or outside of the frame.
static void test_label_places(void) {
    enum { PICTURES = 100, POINTS = 16, W = 900, H = 720 };
    Rng g = rng_make(5, RNG_DEMO, 0);
    int on_label = 0, on_marker = 0, outside = 0, far = 0;
    for (int k = 0; k < PICTURES; k++) {
        double at[POINTS][2], w[POINTS], box[POINTS][4];
        PlotPanel p = panel(NULL, 0);
        PlotCanvas c = plot_render(&p, 1, W, H); // leaves the clip at the frame
        PlotArea a = {0};
        a.c = &c, a.p = &p, a.u = W / 480.0, a.size = 9.2 * a.u;
        const double r = 4 * a.u, pad = 3 * a.u;
        for (int i = 0; i < POINTS; i++) {
            w[i] = (20 + rng_below(&g, 120)) * a.u / 2;
            for (int j = 0; j < 2; j++) {
                double lo = c.clip[j] + 2 * r, hi = c.clip[j + 2] - 2 * r;
                at[i][j] = i % 4 ? at[i - 1][j] + 40 * (rng_uniform(&g) - 0.5) : lo + rng_uniform(&g) * (hi - lo);
                at[i][j] = fmax(lo, fmin(hi, at[i][j]));
            }
            plot_busy(&c, at[i][0] - r, at[i][1] - r, at[i][0] + r, at[i][1] + r, 1);
        }
        for (int i = 0; i < POINTS; i++) {
            double xy[2];
            far += plot_label_place(&a, at[i], w[i], xy);
            double now[4] = {xy[0], xy[1], xy[0] + w[i], xy[1] + a.size};
            memcpy(box[i], now, sizeof now);
            outside += now[0] < c.clip[0] || now[1] < c.clip[1] || now[2] > c.clip[2] || now[3] > c.clip[3];
            for (int j = 0; j < POINTS; j++) {
                const double *o = box[j], *m = at[j];
                if (j < i) on_label += now[0] < o[2] && o[0] < now[2] && now[1] < o[3] && o[1] < now[3];
                on_marker += now[0] - pad / 2 < m[0] + r && m[0] - r < now[2] + pad / 2 &&
                             now[1] < m[1] + r && m[1] - r < now[3];
            }
        }
        plot_free(&c);
    }
    check(!on_label && !on_marker && !outside,
          "%d labels of crowded points: %d on another, %d on a marker, %d outside; %d far off",
          PICTURES * POINTS, on_label, on_marker, outside, far);
}

// A bar as long as its axis: the extent of what is red, across and down.
static void test_error_bars(void) {
    static const double one[1] = {1}, err[1] = {0.5}, none[1] = {NAN};
    static const struct { const char *what; const double *xerr, *yerr; int wide, high; } cases[] = {
        {"none", NULL, NULL, 0, 0}, {"across", err, NULL, 1, 0}, {"down", NULL, err, 0, 1}, {"both", err, err, 1, 1},
        {"not finite", none, none, 0, 0}
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        PlotSeries s = plot_series(NULL, one, one, 1, PLOT_POINTS, 1);
        s.xerr = cases[k].xerr, s.yerr = cases[k].yerr;
        PlotPanel p = panel(&s, 1);
        PlotCanvas c = plot_render(&p, 1, 400, 300);
        int x0 = 400, x1 = 0, y0 = 300, y1 = 0;
        for (int y = 0; y < 300; y++) for (int x = 0; x < 400; x++)
            if (count_in(&c, RED, x, y, x + 1, y + 1)) {
                x0 = x < x0 ? x : x0, x1 = x > x1 ? x : x1;
                y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1;
            }
        check((x1 - x0 > 200) == cases[k].wide && (y1 - y0 > 150) == cases[k].high && x1 > x0 &&
              (cases[k].wide || x1 - x0 < 15) && (cases[k].high || y1 - y0 < 15),
              "error bars, %s: %d pixels across, %d down", cases[k].what, x1 - x0 + 1, y1 - y0 + 1);
        plot_free(&c);
    }
}

// Column of the frame's right side: the last grey pixel half way down.
static int frame_end(const PlotCanvas *c) {
    int end = 0;
    for (int x = 0; x < c->w; x++) {
        const unsigned char *p = &c->rgb[3 * ((size_t)(c->h / 2) * c->w + x)];
        if (p[0] == 0x80 && p[1] == 0x80 && p[2] == 0x80) end = x;
    }
    return end;
}

static void test_axis_end(void) { // the line goes from side to side, and its highest column is the last
    enum { STEPS = 129 };
    double x[STEPS], y[STEPS];
    for (int i = 0; i < STEPS; i++) x[i] = i, y[i] = i;
    PlotSeries s = plot_series(NULL, x, y, STEPS, PLOT_LINE, 1);
    PlotPanel p = panel(&s, 1);
    PlotCanvas c = plot_render(&p, 1, 400, 300);
    int end = frame_end(&c), last = 0;
    for (int k = 0; k < 400; k++) if (count_in(&c, RED, k, 0, k + 1, 300)) last = k;
    check(end > 300 && end - last < 10, "129 steps: the line ends at column %d, the frame at %d", last, end);
    plot_free(&c);
}

static void test_legend_beside(void) { // of many names: beside the frame, however long they are
    static const double x[2] = {0, 1}, y[2] = {1, 0};
    static const struct { const char *name; int n, beside; } cases[] = {
        {"abc", 6, 0}, {"abc", 7, 1}, {"abc", 18, 1},
        {"a name that is far too long to stand beside the picture", 9, 1}, {NULL, 9, 0}
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        PlotSeries s[18];
        for (int i = 0; i < cases[k].n; i++) s[i] = plot_series(cases[k].name, x, y, 2, PLOT_LINE, 1);
        PlotPanel p = panel(s, cases[k].n);
        PlotCanvas c = plot_render(&p, 1, 400, 300), tiny = plot_render(&p, 1, 32, 32);
        int end = frame_end(&c);
        long outside = count_in(&c, DARK, end + 2, 20, 400, 300), below = count_in(&c, DARK, end + 30, 262, 400, 300);
        check((end < 380) == cases[k].beside && end > 200 && (outside > 100) == cases[k].beside && !below,
              "legend of %d x %.20s: the frame ends at %d of 400, %ld pixels of text beside it", cases[k].n,
              cases[k].name ? cases[k].name : "nothing", end, outside);
        plot_free(&c);
        plot_free(&tiny);
    }
}

static void test_legend(void) { // a falling line leaves it the top right corner, a rising one the top left
    static const double x[2] = {0, 1}, fall[2] = {1, 0}, rise[2] = {0, 1};
    for (int k = 0; k < 2; k++) {
        PlotSeries s = plot_series("a legend", x, k ? rise : fall, 2, PLOT_LINE, 1);
        PlotPanel p = panel(&s, 1);
        PlotCanvas c = plot_render(&p, 1, 400, 300);
        long left = count_in(&c, DARK, 60, 32, 220, 100), right = count_in(&c, DARK, 220, 32, 380, 100);
        int ok = k ? left > 20 && !right : right > 20 && !left;
        check(ok, "legend of a %s line: %ld pixels left, %ld right", k ? "rising" : "falling", left, right);
        plot_free(&c);
    }
}

static void test_smooth(void) {
    static const double v[6] = {1, 3, NAN, 5, 7, 9}, fall[6] = {10, 8, 6, 4, 2, 0};
    double s[6];
    int same = 1;
    plot_smooth(s, v, 6, 3);
    check(s[0] == 1 && s[1] == 2 && isnan(s[2]) && s[3] == 6 && s[4] == 7 && s[5] == 9,
          "moving average of 3: %g %g %g %g %g %g", s[0], s[1], s[2], s[3], s[4], s[5]);
    for (int window = 1; window <= 9; window++) {
        plot_smooth(s, fall, 6, window);
        for (int i = 0; i < 6; i++) same = same && s[i] == fall[i];
    }
    check(same, "moving averages of 1 to 9: a straight line stays as it is, to its ends");
}

// ----------------------------------------------------------------------------
// File

#ifdef HAVE_STB
static size_t slurp(unsigned char *buf, size_t max) {
    FILE *f = fopen(file, "rb");
    size_t n = f ? fread(buf, 1, max, f) : 0;
    if (f) fclose(f);
    return n;
}

static void to_nowhere(const void *path) {
    PlotPanel p = panel(NULL, 0);
    plot_png((const char *)path, &p, 1, 100, 100);
}

static void too_large(const void *path) {
    PlotPanel p = panel(NULL, 0);
    plot_png((const char *)path, &p, 1, 100000, 100);
}

static void test_file(void) {
    static const double x[3] = {0, 1, 2}, y[3] = {3, 1, 2};
    static const unsigned char start[26] = {
        0x89, 'P', 'N', 'G', 13, 10, 26, 10, 0, 0, 0, 13, 'I', 'H', 'D', 'R',
        0, 0, 2, 0x8A, 0, 0, 1, 0x40, 8, 2 // 650 x 320, 8 bits, RGB
    };
    enum { MAX = 1 << 20 };
    unsigned char *a = (unsigned char *)xalloc(MAX, 1), *b = (unsigned char *)xalloc(MAX, 1);
    PlotSeries s[2] = {plot_series("a", x, y, 3, PLOT_LINE, 0), plot_series("b", x, x, 3, PLOT_DASHED, 1)};
    s[1].right = 1;
    PlotPanel p[2] = {panel(s, 2), panel(s, 1)};
    char tmp[80];
    int made = plot_png(file, p, 2, 650, 320);
    size_t n = slurp(a, MAX);
    check(made == 1 && n > 2000, "plot_png: returns %d, %zu bytes", made, n);
    int ends = n > 38 && !memcmp(a, start, 26) && !memcmp(a + n - 8, "IEND", 4);
    check(ends, "PNG: signature, 650 x 320 RGB, its end");
    plot_png(file, p, 2, 650, 320);
    check(slurp(b, MAX) == n && !memcmp(a, b, n), "PNG: drawn again, the same bytes");
    check(access(strcat(strcpy(tmp, file), ".tmp"), F_OK) != 0, "PNG: no temporary file is left");
    unlink(file);
    check_dies("unwritable path", to_nowhere, "/no/such/dir/curves.png", "/no/such/dir/curves.png");
    check_dies("too large", too_large, file, "100000 x 100");
    check(access(file, F_OK) != 0, "a refused plot leaves no file");
    free(a);
    free(b);
}
#else
static void test_file(void) {
    PlotPanel p = panel(NULL, 0);
    check(plot_png(file, &p, 1, 100, 100) == 0, "plot_png: returns 0 without stb_image_write");
}
#endif

int main(void) {
    if (!mkdtemp(dir)) die("%s: cannot make it", dir);
    snprintf(file, sizeof file, "%s/curves.png", dir);
    test_ticks();
    test_inside();
    test_numbers();
    test_text();
    test_awkward();
    test_gap();
    test_one_step();
    test_styles();
    test_two_axes();
    test_labels();
    test_tie();
    test_label_places();
    test_error_bars();
    test_axis_end();
    test_legend();
    test_legend_beside();
    test_smooth();
    test_file();
    rmdir(dir);
    return test_summary();
}
