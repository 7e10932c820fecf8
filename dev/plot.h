/*
plot.h: line charts and scatter plots into a PNG: curves.png, reward against perplexity.

  PlotSeries plot_series(name, x, y, n, style, color)            the rest zero: set .yerr, .label, .right, ...
  void       plot_smooth(dst, src, n, window)                    centred moving average, narrower towards the ends
  int        plot_png(path, panels, n_panels, width, height)     side by side; 1 = written, 0 = not built in

  PlotSeries s = plot_series("held out", step, reward, n, PLOT_LINE | PLOT_POINTS, 0);
  PlotPanel p = {0};
  p.title = "Reward", p.label[PLOT_X] = "optimizer step", p.series = &s, p.n_series = 1;
  if (!plot_png("curves.png", &p, 1, 900, 600)) printf("no plots: apt-get install libstb-dev, then make\n");

The compressor is stb_image_write's, where the build found it (-DHAVE_STB); without it nothing is drawn and
plot_png returns 0. A path that cannot be written ends the program like any other output (util.h). Arrays stay
the caller's. Text and lines grow with the panel: a larger image is the same picture, finer.

How: a shape is a set of capsules (a segment and a radius). Each leaves in a mask how much of every pixel it
covers, the larger of two winning; one blend then lays a colour through the mask, so half-transparent lines
have no dark joints. Letters are such shapes too: an alphabet of strokes (below), not of pixels.
*/
#ifndef PLOT_H
#define PLOT_H

#include "../util.h"         // defines: die, xalloc, Out; includes math.h, stdio.h, string.h
#include <limits.h>          // defines: LONG_MAX

#ifdef HAVE_STB
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBIWDEF static inline
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include "stb_image_write.h" // defines: stbi_write_png_to_func
#pragma GCC diagnostic pop
#endif

// ----------------------------------------------------------------------------
// What to draw

enum { PLOT_LINE = 1, PLOT_POINTS = 2, PLOT_DASHED = 4, PLOT_FAINT = 8 }; // styles, or-ed; 0 = line
enum { PLOT_X, PLOT_LEFT, PLOT_RIGHT, PLOT_AXES };

typedef struct {
    const char *name;          // in the legend; NULL = not there
    const double *x, *y;       // (n) NaN in either = a gap in the line
    const double *xerr, *yerr; // (n) half lengths of error bars; NULL = none
    const char *const *label;  // (n) text beside each point; NULL = none
    int n, style, color;       // color: 0 blue, 1 red, 2 green, ... as in plot_palette
    int right;                 // 1 = measured on the right axis
} PlotSeries;

typedef struct {
    const char *title;            // NULL = none, as in label
    const char *label[PLOT_AXES];
    const PlotSeries *series;
    int n_series;
} PlotPanel;

static inline PlotSeries plot_series(const char *name, const double *x, const double *y, int n,
                                     int style, int color) {
    PlotSeries s = {0};
    s.name = name, s.x = x, s.y = y, s.n = n, s.style = style, s.color = color;
    return s;
}

// Towards the ends the window narrows on both sides: cut off on one alone, it would drag them towards the middle. Gaps
// (NaN) stay, and are left out of the sums.
static inline void plot_smooth(double *dst, const double *src, int n, int window) {
    for (int i = 0; i < n; i++) {
        int nearest = i < n - 1 - i ? i : n - 1 - i, half = window / 2 < nearest ? window / 2 : nearest, count = 0;
        double sum = 0;
        for (int j = i - half; j <= i + half; j++) if (isfinite(src[j])) sum += src[j], count++;
        dst[i] = isfinite(src[i]) ? sum / count : NAN;
    }
}

// ----------------------------------------------------------------------------
// Canvas: capsules into the mask, the mask into the picture

// Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow, which is lost on white.
static inline unsigned plot_palette(int color) {
    static const unsigned rgb[7] = {0x0072B2, 0xD55E00, 0x009E73, 0xCC79A7, 0xE69F00, 0x56B4E9, 0x444444};
    return rgb[(unsigned)color % 7];
}

enum { PLOT_INK = 0x262626, PLOT_FRAME = 0x808080, PLOT_GRID = 0xE8E8E8, PLOT_WHITE = 0xFFFFFF };

// A colour at three quarters of its brightness, for text.
static inline unsigned plot_dark(int color) {
    unsigned c = plot_palette(color);
    return c - ((c >> 2) & 0x3F3F3F);
}

typedef struct {
    int w, h;
    int clip[4], dirty[4];            // boxes x0, y0, x1, y1: where to draw at all; where mask is not zero
    unsigned char *rgb, *mask, *busy; // (h,w,3), (h,w), (h,w); busy: data or a label is here, keep clear
} PlotCanvas;

// The part of a box inside the clip, in whole pixels; it counts as dirty.
static inline void plot_box(PlotCanvas *c, int box[4], double x0, double y0, double x1, double y1) {
    double v[4] = {x0, y0, x1, y1};
    for (int k = 0; k < 4; k++) {
        int lo = c->clip[k % 2], hi = c->clip[k % 2 + 2];
        box[k] = v[k] > lo ? v[k] < hi ? (int)v[k] : hi : lo;
        if (k < 2 ? box[k] < c->dirty[k] : box[k] > c->dirty[k]) c->dirty[k] = box[k];
    }
}

// All points within r of the segment a-b; a = b makes a disc.
static inline void plot_segment(PlotCanvas *c, double ax, double ay, double bx, double by, double r) {
    double dx = bx - ax, dy = by - ay, len2 = dx * dx + dy * dy, full = fmin(1, 2 * r);
    int box[4];
    plot_box(c, box, fmin(ax, bx) - r - 1, fmin(ay, by) - r - 1, fmax(ax, bx) + r + 2, fmax(ay, by) + r + 2);
    for (int y = box[1]; y < box[3]; y++) for (int x = box[0]; x < box[2]; x++) {
        double px = x + 0.5 - ax, py = y + 0.5 - ay;
        double t = len2 > 0 ? fmin(1, fmax(0, (px * dx + py * dy) / len2)) : 0;
        double inside = fmin(1, r + 0.5 - hypot(px - t * dx, py - t * dy));
        int cover = inside > 0 ? (int)(255 * full * inside + 0.5) : 0;
        unsigned char *m = &c->mask[(size_t)y * c->w + x];
        if (cover > *m) *m = (unsigned char)cover;
    }
}

// Lays a colour through the mask and clears it.
static inline void plot_ink(PlotCanvas *c, unsigned color, double alpha, int busy) {
    for (int y = c->dirty[1]; y < c->dirty[3]; y++) for (int x = c->dirty[0]; x < c->dirty[2]; x++) {
        size_t at = (size_t)y * c->w + x;
        double a = alpha * c->mask[at] / 255;
        if (!c->mask[at]) continue;
        for (int k = 0; k < 3; k++)
            c->rgb[3 * at + k] = (unsigned char)(c->rgb[3 * at + k] * (1 - a)
                                                 + ((color >> (16 - 8 * k)) & 255) * a + 0.5);
        if (busy) c->busy[at] = 1;
        c->mask[at] = 0;
    }
    c->dirty[0] = c->w, c->dirty[1] = c->h, c->dirty[2] = c->dirty[3] = 0;
}

// Whole pixels: boxes, and lines that must be crisp.
static inline void plot_rect(PlotCanvas *c, double x0, double y0, double x1, double y1, unsigned color) {
    int box[4];
    plot_box(c, box, x0, y0, x1, y1);
    for (int y = box[1]; y < box[3]; y++)
        for (int x = box[0]; x < box[2]; x++) c->mask[(size_t)y * c->w + x] = 255;
    plot_ink(c, color, 1, 0);
}

// How many pixels of a box are busy; very many where it leaves the clip. mark: it is busy from now on.
static inline long plot_busy(PlotCanvas *c, double x0, double y0, double x1, double y1, int mark) {
    long n = x0 < c->clip[0] || y0 < c->clip[1] || x1 > c->clip[2] || y1 > c->clip[3] ? 1 << 30 : 0;
    for (int y = (int)fmax(0, y0); y < y1 && y < c->h; y++)
        for (int x = (int)fmax(0, x0); x < x1 && x < c->w; x++) {
            n += c->busy[(size_t)y * c->w + x];
            if (mark) c->busy[(size_t)y * c->w + x] = 1;
        }
    return n;
}

// ----------------------------------------------------------------------------
// Text: ASCII ' ' to '~' as strokes. A point is two base-36 digits, x to the right and y down: capitals start
// at 0, small letters at 4, the baseline is e (14), descenders end at i (18). A blank parts strokes; "~"
// makes one a smooth curve: a quadratic B-spline, from its first point to its last, bent by those between.

static const char *const plot_font[95] = {
    "", "0009 0d0e", "0003 3033", "302e 706e 0595 0999", "~84820206888c0c0a 404e",
    "~204046060020 ~98b8be7e7898 902e", "~9e4814106064080e6e98", "0003", "~30040d3h", "~00343d0h",
    "3036 0165 0561", "454d 0989", "1d0g", "0959", "0d0e", "600g", "~40808e0e0040", "13404e 0e8e",
    "~040080860e 0e8e", "~0300707737 ~37878e0e0b", "6e600a8a", "701007 ~0725858e0e0b",
    "~45858e0e0545 ~7270000a", "00803e", "~407076161040 ~46868e0e0646", "~490900808949 ~1c1e8e84",
    "0506 0d0e", "1516 1d0g", "85098d", "0787 0b8b", "05890d", "~03007075363a 3d3e",
    "~9e0e00c0ca8a84 ~64848a4a4464", "0e50ae 2989", "000e ~004080874707 ~0757979e5e0e", "~a4a0000eaeaa",
    "000e ~0040a0ae4e0e", "80000e8e 0777", "80000e 0777", "~a4a0000eaea8 a868", "000e a0ae 07a7", "000e",
    "~60656e0e0a", "000e 9009 369e", "000e8e", "0e0069c0ce", "0e00aea0", "~50a0ae0e0050",
    "000e ~004090984808", "~50a0ae0e0050 6aaf", "000e ~004090984808 589e", "~93900006989e0e0b", "00a0 505e",
    "~00050eaea5a0", "005ea0", "004e72aee0", "009e 900e", "0057a0 575e", "00900e9e", "30000g3g", "006g",
    "00303g0g", "054085", "0g8g", "0023", "~061474797e ~7848080e7e79", "000e ~0904848e0e09", "~8784040e8e8b",
    "808e ~8984040e8e89", "0989 ~8984040e8e8c", "~6020262e 0454", "~8984040e8e89 ~848b8i0i1g",
    "000e ~0904747a7e", "040e 0001", "~343c3i0i 3031", "000e 740b 388e", "~00090e3e",
    "040e ~0904646a6e ~6964c4cace", "040e ~0904747a7e", "~44848e0e0444", "040i ~0904848e0e09",
    "848i ~8984040e8e89", "040e ~090454", "~767404087a7e0e0c", "~20282e6e 0454", "~04080e7e79 747e", "044e84",
    "043e659ec4", "048e 840e", "044e 842i", "04740e7e", "~50202808 ~08282g5g", "000h", "~00303858 ~58383g0g",
    "~0a266c88",
};

// The next character's strokes; '?' for what is not in the alphabet.
static inline const char *plot_glyph(const char **s) {
    unsigned char ch = (unsigned char)*(*s)++;
    int plus_minus = ch == 0xC2 && (unsigned char)**s == 0xB1;
    if (ch >= 0x80) while (((unsigned char)**s & 0xC0) == 0x80) (*s)++;
    return plus_minus ? "4149 0585 0d8d" : plot_font[(ch < 32 || ch > 126 ? '?' : ch) - 32];
}

static inline int plot_digit(char ch) { return ch <= '9' ? ch - '0' : ch - 'a' + 10; }

static inline int plot_advance(const char *glyph) { // its width and the gap to the next letter
    int w = *glyph ? 0 : 2;
    for (; *glyph; glyph++) if (*glyph != ' ' && *glyph != '~') {
        int x = plot_digit(*glyph++);
        if (x > w) w = x;
    }
    return w + 4;
}

typedef struct { PlotCanvas *c; double x, y, unit, r; int up; } PlotPen; // x, y: on the baseline, in pixels

static inline void plot_pen(const PlotPen *p, const double a[2], const double b[2]) {
    double u = p->unit, ay = a[1] - 14, by = b[1] - 14;
    if (p->up) plot_segment(p->c, p->x + u * ay, p->y - u * a[0], p->x + u * by, p->y - u * b[0], p->r);
    else plot_segment(p->c, p->x + u * a[0], p->y + u * ay, p->x + u * b[0], p->y + u * by, p->r);
}

// Each inner point bends a parabola between the middles of the lines to its neighbours.
static inline void plot_curve(const PlotPen *pen, double p[][2], int n) {
    double a[2] = {p[0][0], p[0][1]}, b[2];
    for (int i = 1; i + 1 < n; i++) for (int j = 1; j <= 8; j++, memcpy(a, b, sizeof a)) {
        double t = j / 8.0;
        for (int k = 0; k < 2; k++) {
            double from = i == 1 ? p[0][k] : (p[i - 1][k] + p[i][k]) / 2;
            double to = i + 2 == n ? p[n - 1][k] : (p[i][k] + p[i + 1][k]) / 2;
            b[k] = (1 - t) * (1 - t) * from + 2 * t * (1 - t) * p[i][k] + t * t * to;
        }
        plot_pen(pen, a, b);
    }
}

static inline void plot_letter(const PlotPen *pen, const char *glyph) {
    while (*glyph) {
        double p[16][2];
        int n = 0, curve = *glyph == '~';
        for (glyph += curve; *glyph && *glyph != ' ' && n < 16; n++, glyph += 2)
            p[n][0] = plot_digit(glyph[0]), p[n][1] = plot_digit(glyph[1]);
        if (curve) plot_curve(pen, p, n);
        else for (int i = 1; i < n; i++) plot_pen(pen, p[i - 1], p[i]);
        if (*glyph) glyph++;
    }
}

// Pixels wide; size: height of the capitals in pixels.
static inline double plot_text_width(const char *s, double size) {
    double w = 0;
    while (*s) w += plot_advance(plot_glyph(&s));
    return w > 4 ? (w - 4) * size / 14 : 0;
}

// x, y: on the baseline, where the text starts (align 0), has its middle (0.5) or ends (1). up: runs upwards.
static inline void plot_text(PlotCanvas *c, double x, double y, double size, double align, int up,
                             unsigned color, const char *s) {
    double shift = align * plot_text_width(s, size);
    PlotPen pen = {c, up ? x : x - shift, up ? y + shift : y, size / 14, size * 0.065, up};
    while (*s) {
        const char *glyph = plot_glyph(&s);
        plot_letter(&pen, glyph);
        *(up ? &pen.y : &pen.x) += (up ? -pen.unit : pen.unit) * plot_advance(glyph);
    }
    plot_ink(c, color, 1, 0);
}

// s, or as much of it as `max` pixels hold, and "...".
static inline const char *plot_fit(char dst[128], const char *s, double size, double max) {
    snprintf(dst, 128, "%s", s);
    size_t n = strlen(dst);
    if (n == 127) strcpy(dst + 124, "...");
    for (; n > 3 && plot_text_width(dst, size) > max; n--) strcpy(dst + n - 4, "...");
    return dst;
}

// ----------------------------------------------------------------------------
// Axes: round numbers (1, 2 or 5 times a power of ten) that cover the data, or on the x axis of lines lie within them

typedef struct {
    double lo, hi;
    double first, step;  // ticks at first, first + step, ... first + n * step
    double from, to;     // pixels of lo and hi
    int n;
} PlotAxis;

static inline int plot_usable(double v) { return isfinite(v) && fabs(v) < 1e300; }

static inline double plot_pixel(const PlotAxis *a, double v) {
    return a->from + (v - a->lo) / (a->hi - a->lo) * (a->to - a->from);
}

// The smallest step of which n >= 2 cover lo..hi from a multiple of it, *start. (One cannot straddle 0.)
static inline double plot_step(double lo, double hi, int n, double *start) {
    static const double mantissa[3] = {1, 2, 5};
    for (int e = (int)floor(log10((hi - lo) / n)) - 1;; e++) for (int i = 0; i < 3; i++) {
        double step = mantissa[i] * pow(10, e);
        *start = floor(lo / step + 1e-6) * step;
        if (*start + (n + 1e-6) * step >= hi) return step;
    }
}

// Widens the axis to n steps; returns how much of it the data fill.
static inline double plot_round(PlotAxis *a, int n) {
    double range = a->hi - a->lo, start;
    a->step = plot_step(a->lo, a->hi, n, &start);
    a->lo = a->first = start, a->hi = start + n * a->step, a->n = n;
    return range / (a->hi - a->lo);
}

// Leaves the axis as long as the data: ticks inside, at most n steps of them, whole numbers where the data are.
static inline void plot_inside(PlotAxis *a, int n, int whole) {
    double start;
    a->step = plot_step(0, a->hi - a->lo, n, &start);
    if (whole && a->step < 1) a->step = 1;
    a->first = ceil(a->lo / a->step - 1e-6) * a->step;
    a->n = (int)floor((a->hi - a->first) / a->step + 1e-6);
}

static inline double plot_tick(const PlotAxis *a, int i) { return a->first + i * a->step; }

static inline const char *plot_number(const PlotAxis *a, int i, char s[32]) {
    double v = plot_tick(a, i), big = fmax(fabs(a->lo), fabs(a->hi));
    double place = floor(log10(a->step) + 1e-9); // decimal place of the step
    if (fabs(v) < a->step * 1e-6) v = 0; // no -0, no 1e-17
    int exponent = big >= 1e7 || big < 1e-3 || place < -12;
    if (exponent) snprintf(s, 32, "%.*e", (int)fmax(0, fmin(15, floor(log10(big)) - place)), v);
    else snprintf(s, 32, "%.*f", (int)fmax(0, -place), v);
    char *e = strchr(s, 'e');
    if (e) snprintf(e, 8, "e%d", atoi(e + 1)); // 2e+06 -> 2e6
    return v == 0 && e ? "0" : s;
}

static inline double plot_widest(const PlotAxis *a, double size) {
    double w = 0;
    char s[32];
    for (int i = 0; i <= a->n; i++) w = fmax(w, plot_text_width(plot_number(a, i, s), size));
    return w;
}

static inline int plot_is_line(const PlotSeries *s) { return (s->style & PLOT_LINE) || !(s->style & PLOT_POINTS); }

static inline int plot_vertical(const PlotSeries *s) { return s->right ? PLOT_RIGHT : PLOT_LEFT; }

// The range of the data on an axis, error bars included, or 0..1 where there is none. Returns: is there any?
static inline int plot_range(const PlotPanel *p, int axis, PlotAxis *a) {
    a->lo = INFINITY, a->hi = -INFINITY;
    for (int k = 0; k < p->n_series; k++) {
        const PlotSeries *s = &p->series[k];
        const double *v = axis == PLOT_X ? s->x : s->y, *err = axis == PLOT_X ? s->xerr : s->yerr;
        for (int i = 0; i < s->n && (axis == PLOT_X || axis == plot_vertical(s)); i++) {
            if (!plot_usable(s->x[i]) || !plot_usable(s->y[i])) continue;
            double e = err && plot_usable(err[i]) ? fabs(err[i]) : 0;
            a->lo = fmin(a->lo, v[i] - e), a->hi = fmax(a->hi, v[i] + e);
        }
    }
    int any = a->lo <= a->hi;
    if (!any) a->lo = 0, a->hi = 1;
    double big = fmax(fabs(a->lo), fabs(a->hi));
    if (a->hi - a->lo <= 1e-9 * big || big < 1e-290) { // one value: in the middle
        double half = big < 1e-290 ? 1 : 0.1 * big;
        a->lo -= half, a->hi += half;
    }
    return any;
}

// ----------------------------------------------------------------------------
// Panel: its frame, its series, its labels, its legend

typedef struct {
    PlotCanvas *c;
    const PlotPanel *p;
    PlotAxis ax[PLOT_AXES];
    double u, size;     // one "point" and the height of capitals, in pixels
    int left, right;    // the panel
    int x0, y0, x1, y1; // the frame
    int vertical;       // last vertical axis in use: PLOT_LEFT or PLOT_RIGHT
    int names, beside;  // entries of the legend; where it starts if it stands beside the frame, else 0
} PlotArea;

enum { PLOT_BESIDE = 7 }; // a legend of so many entries would hide much of what it is in: it goes beside

// Width of the legend, and its text, cut to max pixels.
static inline int plot_legend_width(const PlotArea *a, double max) {
    double widest = 0;
    char text[128];
    for (int k = 0; k < a->p->n_series; k++) {
        const char *name = a->p->series[k].name;
        if (name) widest = fmax(widest, plot_text_width(plot_fit(text, name, a->size, max), a->size));
    }
    return (int)(widest + 44 * a->u);
}

// Under lines, which end where their data end: as many ticks as fit into `room` pixels, up to 8 steps.
static inline void plot_ticks_inside(PlotArea *a, double room) {
    PlotAxis *x = &a->ax[PLOT_X];
    int whole = 1;
    for (int k = 0; k < a->p->n_series; k++)
        for (int i = 0; i < a->p->series[k].n; i++) {
            double v = a->p->series[k].x[i];
            whole = whole && (!plot_usable(v) || v == floor(v));
        }
    for (int n = 8; n >= 2; n--) {
        plot_inside(x, n, whole);
        if ((plot_widest(x, a->size) + 14 * a->u) * (x->n + 1) <= room) return;
    }
}

// Gives axes first..last one number of steps, so that one grid serves both vertical ones: near `ideal`, so
// that the data fill the axes, and no more than fit into `room` pixels.
static inline void plot_ticks(PlotArea *a, int first, int last, int ideal, double room) {
    double best_score = -INFINITY;
    int best = 2;
    for (int n = 2; n <= 8; n++) {
        double score = -0.02 * abs(n - ideal), each = 0;
        for (int k = first; k <= last; k++) {
            PlotAxis t = a->ax[k];
            score += plot_round(&t, n);
            each = fmax(each, k == PLOT_X ? plot_widest(&t, a->size) : a->size);
        }
        if (score > best_score && (each + 14 * a->u) * (n + 1) <= room) best_score = score, best = n;
    }
    for (int k = first; k <= last; k++) plot_round(&a->ax[k], best);
}

// The frame: what its labels leave of the panel.
static inline void plot_layout(PlotArea *a, int left, int width, int height) {
    const PlotPanel *p = a->p;
    double u = a->u, inset = 9 * u;
    int lines = 0;
    a->left = left, a->right = left + width;
    for (int k = 0; k < PLOT_AXES; k++) if (plot_range(p, k, &a->ax[k]) && k) a->vertical = k;
    if (!a->vertical) a->vertical = PLOT_LEFT;
    a->y0 = (int)((p->title ? 32 : 14) * u);
    a->y1 = height - (int)(a->size + (p->label[PLOT_X] ? 35 : 16) * u);
    plot_ticks(a, PLOT_LEFT, a->vertical, 5, a->y1 - a->y0);
    a->x0 = left + (int)(plot_widest(&a->ax[PLOT_LEFT], a->size) + (p->label[PLOT_LEFT] ? 38 : 20) * u);
    a->x1 = left + width - (int)(14 * u);
    for (int k = 0; k < p->n_series; k++) a->names += p->series[k].name != NULL, lines |= plot_is_line(&p->series[k]);
    if (a->names >= PLOT_BESIDE) a->beside = a->x1 -= plot_legend_width(a, width * 0.25);
    if (a->beside) a->x1 -= (int)(7 * u);
    if (a->vertical == PLOT_RIGHT)
        a->x1 -= (int)(plot_widest(&a->ax[PLOT_RIGHT], a->size) + (p->label[PLOT_RIGHT] ? 24 : 8) * u);
    if (a->x1 < a->x0 + 8) a->x0 = left + width / 4, a->x1 = left + width - width / 4; // hopeless: be safe
    if (lines) plot_ticks_inside(a, a->x1 - a->x0);
    else plot_ticks(a, PLOT_X, PLOT_X, 7, a->x1 - a->x0);
    a->ax[PLOT_X].from = a->x0 + inset, a->ax[PLOT_X].to = a->x1 - inset;
    for (int k = PLOT_LEFT; k < PLOT_AXES; k++) a->ax[k].from = a->y1 - inset, a->ax[k].to = a->y0 + inset;
}

// Where two axes carry one colour each, their numbers wear it.
static inline unsigned plot_axis_color(const PlotArea *a, int axis) {
    int color = -1;
    for (int k = 0; k < a->p->n_series && a->vertical == PLOT_RIGHT && axis != PLOT_X; k++) {
        const PlotSeries *s = &a->p->series[k];
        if (plot_vertical(s) != axis || !s->n) continue;
        if (color >= 0 && color != s->color) return PLOT_INK;
        color = s->color;
    }
    return color >= 0 ? plot_dark(color) : (unsigned)PLOT_INK;
}

static inline void plot_frame(const PlotArea *a) {
    PlotCanvas *c = a->c;
    int x0 = a->x0, y0 = a->y0, x1 = a->x1, y1 = a->y1;
    int t = (int)fmax(1, floor(a->u * 0.8 + 0.5)), len = (int)(3.5 * a->u + 0.5);
    plot_rect(c, x0 - t, y0 - t, x1 + t, y1 + t, PLOT_FRAME);
    plot_rect(c, x0, y0, x1, y1, PLOT_WHITE);
    for (int k = 0; k <= a->vertical; k++) for (int i = 0; i <= a->ax[k].n; i++) {
        int at = (int)(plot_pixel(&a->ax[k], plot_tick(&a->ax[k], i)) - t / 2.0 + 0.5);
        if (k == PLOT_X) plot_rect(c, at, y0, at + t, y1, PLOT_GRID);
        if (k == PLOT_X) plot_rect(c, at, y1, at + t, y1 + len, PLOT_FRAME);
        if (k == PLOT_LEFT) plot_rect(c, x0, at, x1, at + t, PLOT_GRID);
        if (k == PLOT_LEFT) plot_rect(c, x0 - len, at, x0, at + t, PLOT_FRAME);
        if (k == PLOT_RIGHT) plot_rect(c, x1, at, x1 + len, at + t, PLOT_FRAME);
    }
}

// The numbers beside the ticks, the axes' labels, the title.
static inline void plot_names(const PlotArea *a) {
    const PlotPanel *p = a->p;
    const double u = a->u, h = a->size, wide = a->x1 - a->x0, high = a->y1 - a->y0;
    char s[128];
    for (int k = 0; k <= a->vertical; k++) {
        const PlotAxis *axis = &a->ax[k];
        unsigned color = plot_axis_color(a, k);
        double numbers = plot_widest(axis, h) + 8 * u, side = numbers + 8 * u;
        for (int i = 0; i <= axis->n; i++) {
            double at = plot_pixel(axis, plot_tick(axis, i));
            const char *number = plot_number(axis, i, s);
            double x = k == PLOT_LEFT ? a->x0 - 7 * u : a->x1 + numbers;
            if (k == PLOT_X) plot_text(a->c, at, a->y1 + 8 * u + h, h, 0.5, 0, color, number);
            else plot_text(a->c, x, at + h / 2, h, 1, 0, color, number);
        }
        if (!p->label[k]) continue;
        plot_fit(s, p->label[k], h, k == PLOT_X ? wide : high + 30 * u);
        double x = k == PLOT_X ? a->x0 + wide / 2 : k == PLOT_LEFT ? a->x0 - side : a->x1 + side + h;
        double y = k == PLOT_X ? a->y1 + 27 * u + h : a->y0 + high / 2;
        plot_text(a->c, x, y, h, 0.5, k != PLOT_X, color, s);
    }
    if (!p->title) return;
    plot_fit(s, p->title, h * 1.2, wide + 40 * u);
    plot_text(a->c, a->x0 + wide / 2, a->y0 - 11 * u, h * 1.2, 0.5, 0, PLOT_INK, s);
}

// Pixel of point i of a series; 0 = there is none.
static inline int plot_point(const PlotArea *a, const PlotSeries *s, int i, double xy[2]) {
    if (!plot_usable(s->x[i]) || !plot_usable(s->y[i])) return 0;
    xy[0] = plot_pixel(&a->ax[PLOT_X], s->x[i]);
    xy[1] = plot_pixel(&a->ax[plot_vertical(s)], s->y[i]);
    return 1;
}

// A piece of a line, in dashes where `dash` (pixels on, as many off) is not 0. *at: its length so far.
static inline void plot_dashes(PlotCanvas *c, const double a[2], const double b[2], double r, double dash,
                               double *at) {
    double len = hypot(b[0] - a[0], b[1] - a[1]), x = b[0] - a[0], y = b[1] - a[1];
    if (dash <= 0 || len <= 0) plot_segment(c, a[0], a[1], b[0], b[1], r);
    else for (double t = 0, end; t < len; t = end) {
        double phase = fmod(*at + t, 2 * dash), p = t / len, q;
        end = fmin(len, t + (phase < dash ? dash : 2 * dash) - phase + 1e-6);
        q = end / len;
        if (phase < dash) plot_segment(c, a[0] + x * p, a[1] + y * p, a[0] + x * q, a[1] + y * q, r);
    }
    *at += len;
}

static inline void plot_lines(const PlotArea *a, const PlotSeries *s, double r) {
    double was[2] = {0, 0}, now[2] = {0, 0}, at = 0;
    for (int i = 0, pen = 0; i < s->n; i++, memcpy(was, now, sizeof was)) {
        int ok = plot_point(a, s, i, now);
        if (ok) plot_dashes(a->c, pen ? was : now, now, r, s->style & PLOT_DASHED ? 5 * a->u : 0, &at);
        pen = ok;
    }
}

static inline void plot_error_bars(const PlotArea *a, const PlotSeries *s, int i) {
    double p[2], cap = 3 * a->u, r = 0.6 * a->u;
    if (!plot_point(a, s, i, p)) return;
    for (int k = 0; k < 2; k++) {
        const PlotAxis *axis = &a->ax[k ? plot_vertical(s) : PLOT_X];
        const double *err = k ? s->yerr : s->xerr, v = k ? s->y[i] : s->x[i];
        if (!err || !plot_usable(err[i])) continue;
        double end[2] = {plot_pixel(axis, v - err[i]), plot_pixel(axis, v + err[i])};
        if (k) plot_segment(a->c, p[0], end[0], p[0], end[1], r);
        else plot_segment(a->c, end[0], p[1], end[1], p[1], r);
        for (int e = 0; e < 2; e++)
            if ((s->style & PLOT_POINTS) && fabs(end[e] - p[k]) < 4 * a->u) continue; // the marker hides the bar
            else if (k) plot_segment(a->c, p[0] - cap, end[e], p[0] + cap, end[e], r);
            else plot_segment(a->c, end[e], p[1] - cap, end[e], p[1] + cap, r);
    }
}

// A point of a line without a neighbour to join it to, as a run of one step has: drawn as a point.
static inline int plot_alone(const PlotArea *a, const PlotSeries *s, int i) {
    double p[2];
    return !(i > 0 && plot_point(a, s, i - 1, p)) && !(i + 1 < s->n && plot_point(a, s, i + 1, p));
}

static inline void plot_draw(const PlotArea *a, const PlotSeries *s) {
    unsigned color = plot_palette(s->color);
    int faint = s->style & PLOT_FAINT;
    double u = a->u, alpha = faint ? 0.3 : 1, p[2];
    if (plot_is_line(s)) plot_lines(a, s, (faint ? 0.55 : 0.85) * u);
    for (int i = 0; i < s->n; i++) plot_error_bars(a, s, i);
    plot_ink(a->c, color, alpha, 1);
    double dot = s->xerr || s->yerr ? 2.6 * u : 3.2 * u;
    for (int i = 0; i < s->n; i++) if (((s->style & PLOT_POINTS) || plot_alone(a, s, i)) && plot_point(a, s, i, p)) {
        plot_segment(a->c, p[0], p[1], p[0], p[1], dot + 0.8 * u); // a white rim keeps neighbours apart
        plot_ink(a->c, PLOT_WHITE, 1, 1);
        plot_segment(a->c, p[0], p[1], p[0], p[1], dot);
        plot_ink(a->c, color, alpha, 1);
    }
}

// Where a label w wide hides least, near its point before far, in eight directions: its upper left corner. 1 = far.
static inline int plot_label_place(const PlotArea *a, const double p[2], double w, double xy[2]) {
    static const int dir[8][2] = {{1, 0}, {-1, 0}, {0, -1}, {0, 1}, {1, -1}, {1, 1}, {-1, -1}, {-1, 1}};
    double h = a->size, pad = 3 * a->u, best = INFINITY;
    int far_off = 0;
    for (int ring = 0; ring < 24; ring++) for (int d = 0; d < 8; d++) {
        double far = (8 + 4 * ring) * a->u * (dir[d][0] && dir[d][1] ? 0.7 : 1);
        double tx = p[0] + dir[d][0] * far + (dir[d][0] - 1) * w / 2;
        double ty = p[1] + dir[d][1] * (far + h / 2) - h / 2;
        double busy = (double)plot_busy(a->c, tx - pad, ty - pad, tx + w + pad, ty + h + pad, 0);
        double cost = 10 * busy + 20 * ring + d;
        if (cost < best) best = cost, xy[0] = tx, xy[1] = ty, far_off = ring > 2;
    }
    plot_busy(a->c, xy[0] - pad, xy[1] - pad, xy[0] + w + pad, xy[1] + h + pad, 1);
    return far_off;
}

// Writes a point's label; a far one is tied to its point by a line.
static inline void plot_label(const PlotArea *a, const double p[2], unsigned color, const char *label) {
    char s[128];
    plot_fit(s, label, a->size, (a->x1 - a->x0) * 0.45);
    double w = plot_text_width(s, a->size), h = a->size, pad = 3 * a->u, xy[2] = {0, 0};
    int tied = plot_label_place(a, p, w, xy);
    double x = xy[0], y = xy[1];
    double dx = fmax(x - pad, fmin(x + w + pad, p[0])) - p[0];
    double dy = fmax(y - pad, fmin(y + h + pad, p[1])) - p[1];
    double gap = 5 * a->u / fmax(1, hypot(dx, dy)); // keeps off the marker
    if (tied) plot_segment(a->c, p[0] + gap * dx, p[1] + gap * dy, p[0] + dx, p[1] + dy, 0.4 * a->u);
    plot_ink(a->c, color, 0.6, 1);
    plot_text(a->c, x, y + h, h, 0, 0, color, s);
}

static inline void plot_labels(const PlotArea *a, const PlotSeries *s) {
    double xy[2];
    for (int i = 0; i < s->n && s->label; i++)
        if (s->label[i] && plot_point(a, s, i, xy)) plot_label(a, xy, plot_dark(s->color), s->label[i]);
}

// Where a box of w x h hides least of the data, corners first.
static inline void plot_emptiest(const PlotArea *a, int w, int h, int *x, int *y) {
    static const int half[9][2] = {{2, 0}, {0, 0}, {2, 2}, {0, 2}, {1, 0}, {1, 2}, {2, 1}, {0, 1}, {1, 1}};
    long best = LONG_MAX;
    int gap = (int)(7 * a->u);
    for (int i = 0; i < 9; i++) {
        int to_x = a->x0 + gap + half[i][0] * (a->x1 - a->x0 - w - 2 * gap) / 2;
        int to_y = a->y0 + gap + half[i][1] * (a->y1 - a->y0 - h - 2 * gap) / 2;
        long n = plot_busy(a->c, to_x, to_y, to_x + w, to_y + h, 0);
        if (n < best) best = n, *x = to_x, *y = to_y;
    }
}

static inline void plot_legend_row(const PlotArea *a, const PlotSeries *s, double x, double mid,
                                   const char *text) {
    double u = a->u, from[2] = {x + 9 * u, mid}, to[2] = {x + 29 * u, mid}, at = 0;
    int points = s->style & PLOT_POINTS;
    if (plot_is_line(s)) plot_dashes(a->c, from, to, 0.85 * u, s->style & PLOT_DASHED ? 5 * u : 0, &at);
    if (points) plot_segment(a->c, x + 19 * u, mid, x + 19 * u, mid, 3.2 * u);
    plot_ink(a->c, plot_palette(s->color), s->style & PLOT_FAINT ? 0.4 : 1, 0);
    plot_text(a->c, x + 36 * u, mid + a->size / 2, a->size, 0, 0, PLOT_INK, text);
}

static inline void plot_legend(const PlotArea *a) {
    double u = a->u, row = a->size + 8 * u, max = a->beside ? (a->right - a->left) * 0.25 : (a->x1 - a->x0) * 0.6;
    char text[128];
    int x = a->beside, y = a->y0;
    if (!a->names) return;
    if (a->beside) row = fmin(row, (a->y1 - a->y0 - 6 * u) / a->names);
    int w = plot_legend_width(a, max), h = (int)(a->names * row + 6 * u), t = (int)fmax(1, u * 0.8);
    if (!a->beside) plot_emptiest(a, w, h, &x, &y);
    plot_rect(a->c, x, y, x + w, y + h, 0xCCCCCC);
    plot_rect(a->c, x + t, y + t, x + w - t, y + h - t, PLOT_WHITE);
    double mid = y + 3 * u + row / 2;
    for (int k = 0; k < a->p->n_series; k++) {
        const PlotSeries *s = &a->p->series[k];
        if (!s->name) continue;
        plot_legend_row(a, s, x, mid, plot_fit(text, s->name, a->size, max));
        mid += row;
    }
}

static inline void plot_panel(PlotCanvas *c, const PlotPanel *p, int left, int width) {
    PlotArea a = {0};
    a.c = c, a.p = p, a.u = fmin(width / 480.0, c->h / 360.0), a.size = 9.2 * a.u;
    plot_layout(&a, left, width, c->h);
    int whole[4] = {left, 0, left + width, c->h}, inner[4] = {a.x0, a.y0, a.x1, a.y1};
    memcpy(c->clip, whole, sizeof whole);
    plot_frame(&a);
    plot_names(&a);
    memcpy(c->clip, inner, sizeof inner);
    for (int faint = 1; faint >= 0; faint--) // the faint lie behind
        for (int k = 0; k < p->n_series; k++)
            if ((p->series[k].style & PLOT_FAINT ? 1 : 0) == faint) plot_draw(&a, &p->series[k]);
    for (int k = 0; k < p->n_series; k++) plot_labels(&a, &p->series[k]);
    if (a.beside) memcpy(c->clip, whole, sizeof whole);
    plot_legend(&a);
}

// ----------------------------------------------------------------------------
// File

// The picture in memory; plot_free gives it back.
static inline PlotCanvas plot_render(const PlotPanel *panels, int n_panels, int width, int height) {
    PlotCanvas c = {0};
    size_t pixels = (size_t)width * height;
    c.w = c.dirty[0] = width, c.h = c.dirty[1] = height;
    c.rgb = (unsigned char *)xalloc(pixels, 3);
    c.mask = (unsigned char *)xalloc(pixels, 1);
    c.busy = (unsigned char *)xalloc(pixels, 1);
    memset(c.rgb, 255, pixels * 3);
    for (int i = 0; i < n_panels; i++) {
        int left = (int)((int64_t)width * i / n_panels), right = (int)((int64_t)width * (i + 1) / n_panels);
        plot_panel(&c, &panels[i], left, right - left);
    }
    return c;
}

static inline void plot_free(PlotCanvas *c) { free(c->rgb), free(c->mask), free(c->busy); }

#ifdef HAVE_STB
enum { PLOT_BUILT_IN = 1 };
static inline void plot_bytes(void *out, void *data, int size) { out_write((Out *)out, data, (size_t)size); }

static inline int plot_png(const char *path, const PlotPanel *panels, int n_panels, int width, int height) {
    if (width < 32 || height < 32 || width > 16384 || height > 16384)
        die("%s: an image of %d x %d pixels; its sides can be 32 to 16384", path, width, height);
    Out out = out_open(path);
    PlotCanvas c = plot_render(panels, n_panels, width, height);
    free(c.mask), free(c.busy), c.mask = c.busy = NULL; // drawn; the compression needs room
    if (!stbi_write_png_to_func(plot_bytes, &out, width, height, 3, c.rgb, width * 3))
        die("%s: no memory to compress %d x %d pixels; make the image smaller", path, width, height);
    out_close(&out);
    plot_free(&c);
    return 1;
}
#else
enum { PLOT_BUILT_IN = 0 };
static inline int plot_png(const char *path, const PlotPanel *panels, int n_panels, int width, int height) {
    (void)path, (void)panels, (void)n_panels, (void)width, (void)height;
    return 0;
}
#endif

#endif
