/*
table.c: the table and the picture of several runs (paper, Table 10 and Figure 3): one row per policy, over seeds.

  dev/table OUT_DIR ROW_DIR...

A ROW_DIR is named NAME-SEED (BP-1; OP-128-KL-2: the seed is what follows the last '-') and holds
  eval/eval.csv       as the eval verb writes it; its rows of the policy named `policy` are this row's figures
  reward.csv          the reward during training, if there is one; IP-n has round-1/reward.csv, round-2/reward.csv, ...
SFT's eval.csv may also have rows of best-of-2, best-of-4, ...: they become rows of their own.

Writes to OUT_DIR
  table.md            for the README: mean +- standard error over seeds; of a single seed, over its queries
  table.csv           the same for programs: every seed, then the mean; a *_err is one standard error
  table.png           reward against perplexity, and the reward during training
Rows come in the order of the arguments. A missing or damaged file ends the program, with its name and line.
*/
#include "../util.h"     // defines: die, Out; first, for _GNU_SOURCE
#include "../eval.h"     // defines: Figure, figure_names, EVAL_HEADER, REWARD_HEADER
#include "plot.h"        // defines: plot_png
#include <ctype.h>       // defines: isdigit

// n of a Figure here: queries or seeds behind it; its err is NaN where there is none.
typedef struct { double *step, *reward; int n; size_t cap[2]; } Curve;
typedef struct { const char *seed; Figure cell[FIGURES]; Curve curve; } Seed;
typedef struct { char *name; Seed *seed; int n; size_t cap; Figure mean[FIGURES]; Curve curve; } Row;
typedef struct { Row *row; int n; size_t cap; } Table;

static char *copy(const char *s, size_t n) {
    char *t = (char *)xalloc(n + 1, 1);
    memcpy(t, s, n);
    return t;
}

// The row of that name, a new one at the end if there is none.
static Row *row_of(Table *t, const char *name, size_t n) {
    for (int i = 0; i < t->n; i++)
        if (strlen(t->row[i].name) == n && !memcmp(t->row[i].name, name, n)) return &t->row[i];
    XGROW(t->row, t->cap, (size_t)t->n + 1);
    Row *r = &t->row[t->n++];
    memset(r, 0, sizeof *r);
    r->name = copy(name, n);
    return r;
}

static Seed *seed_of(Row *row, const char *seed) {
    for (int i = 0; i < row->n; i++) if (!strcmp(row->seed[i].seed, seed)) return &row->seed[i];
    XGROW(row->seed, row->cap, (size_t)row->n + 1);
    Seed *s = &row->seed[row->n++];
    memset(s, 0, sizeof *s);
    s->seed = seed;
    return s;
}

// ----------------------------------------------------------------------------
// Reading: comma-separated lines of a known header

enum { LINE = 1024, COLUMNS = 5 };
typedef struct { FILE *f; char path[RRHF_PATH_MAX], line[LINE], *column[COLUMNS]; int number, columns; } Csv;

static Csv csv_open(const char *path, const char *header) {
    Csv c = {0};
    snprintf(c.path, sizeof c.path, "%s", path);
    c.f = fopen(path, "r");
    if (!c.f) die("%s: %s; run eval for this row first", path, strerror(errno));
    if (!fgets(c.line, sizeof c.line, c.f)) die("%s:1: empty, expected '%s'", path, header);
    c.line[strcspn(c.line, "\r\n")] = 0;
    if (strcmp(c.line, header)) die("%s:1: '%.80s', expected '%s'", path, c.line, header);
    for (c.number = c.columns = 1; *header; header++) c.columns += *header == ',';
    return c;
}

static int csv_next(Csv *c) { // 0 = the end
    if (!fgets(c->line, sizeof c->line, c->f)) {
        fclose(c->f);
        return 0;
    }
    int n = 0, whole = strchr(c->line, '\n') != NULL;
    c->number++;
    c->line[strcspn(c->line, "\r\n")] = 0;
    if (!whole) die("%s:%d: '%.80s' has no line end: cut short; run eval again", c->path, c->number, c->line);
    for (char *s = c->line; s; n++) {
        if (n < c->columns) c->column[n] = s;
        if ((s = strchr(s, ','))) *s++ = 0;
    }
    if (n != c->columns) die("%s:%d: %d columns, expected %d", c->path, c->number, n, c->columns);
    return 1;
}

static double csv_number(const Csv *c, int column, double least, const char *what) {
    char *end;
    double v = strtod(c->column[column], &end);
    if (end == c->column[column] || *end || !isfinite(v) || v < least)
        die("%s:%d: %s '%.80s', expected a finite number%s", c->path, c->number, what, c->column[column],
            least > 0 ? " of at least 1" : least == 0 ? " of at least 0" : "");
    return v;
}

// One line's figure: mean, standard error and number of queries; distinct-1 and -2 of older files have the mean only.
static void read_cell(const Csv *c, Figure cell[FIGURES]) {
    int f = 0;
    while (f < FIGURES && strcmp(c->column[1], figure_names[f])) f++;
    if (f == FIGURES)
        die("%s:%d: figure '%.80s', expected reward, perplexity, ...; write it again with this version's eval",
            c->path, c->number, c->column[1]);
    if (cell[f].n) die("%s:%d: %s of %s a second time", c->path, c->number, c->column[1], c->column[0]);
    Figure v = {csv_number(c, 2, -INFINITY, "mean"), NAN, 1};
    if (*c->column[3] || *c->column[4]) {
        v.err = csv_number(c, 3, 0, "standard error");
        double n = csv_number(c, 4, 1, "number of queries");
        if (n > INT32_MAX || n != floor(n)) die("%s:%d: %.9g queries, expected a whole number", c->path, c->number, n);
        v.n = (int)n;
    }
    cell[f] = v;
}

// The row's own figures; those of every best-of-n of SFT go to rows of their own.
static void read_eval(Table *t, int row, const char *dir, const char *seed) {
    char path[RRHF_PATH_MAX];
    Csv c = csv_open(path_join(path, dir, "eval/eval.csv"), EVAL_HEADER);
    int sft = !strcmp(t->row[row].name, "SFT");
    while (csv_next(&c)) {
        if (!strcmp(c.column[0], "policy")) read_cell(&c, seed_of(&t->row[row], seed)->cell);
        else if (sft && !strncmp(c.column[0], "best-of-", 8)) {
            Row *best = row_of(t, c.column[0], strlen(c.column[0]));
            read_cell(&c, seed_of(best, seed)->cell);
        }
    }
    for (int i = row; i < t->n; i++) {
        Row *r = &t->row[i];
        if (r->n && !strcmp(r->seed[r->n - 1].seed, seed) && !r->seed[r->n - 1].cell[REWARD].n)
            die("%s: no reward of %s; run eval with --reward", path, i == row ? "the policy named 'policy'" : r->name);
    }
}

// One reward.csv; its steps count from `from`. Returns its last step.
static double read_curve(Curve *curve, const char *path, double from) {
    Csv c = csv_open(path, REWARD_HEADER);
    double last = from;
    for (int first = 1; csv_next(&c); first = 0) {
        double step = from + csv_number(&c, 0, 0, "step");
        if (!first && step <= last) die("%s:%d: step %s after step %g", path, c.number, c.column[0], last - from);
        XGROW(curve->step, curve->cap[0], (size_t)curve->n + 1);
        XGROW(curve->reward, curve->cap[1], (size_t)curve->n + 1);
        curve->step[curve->n] = last = step;
        curve->reward[curve->n++] = csv_number(&c, 1, -INFINITY, "reward");
    }
    return last;
}

static void read_curves(Curve *curve, const char *dir) {
    char path[RRHF_PATH_MAX], name[64];
    if (!access(path_join(path, dir, "reward.csv"), F_OK)) {
        read_curve(curve, path, 0);
        return;
    }
    double at = 0; // IP-n: a round goes on where the one before ended
    for (int i = 1;; i++) {
        snprintf(name, sizeof name, "round-%d/reward.csv", i);
        if (access(path_join(path, dir, name), F_OK)) break;
        at = read_curve(curve, path, at);
    }
}

// ----------------------------------------------------------------------------
// Rows and seeds

static void row_read(Table *t, const char *dir) {
    size_t end = strlen(dir), start, digits;
    while (end > 1 && dir[end - 1] == '/') end--;
    for (start = end; start && dir[start - 1] != '/'; start--) {}
    for (digits = end; digits > start && isdigit((unsigned char)dir[digits - 1]); digits--) {}
    if (digits == end || digits < start + 2 || dir[digits - 1] != '-')
        die_usage("'%s': expected a directory NAME-SEED, such as BP-1 or OP-128-KL-2", dir);
    size_t n = digits - 1 - start;
    if (memchr(dir + start, ',', n) ||
        memchr(dir + start, '|', n)) die_usage("'%s': a row's name may not hold ',' or '|'", dir);
    Row *row = row_of(t, dir + start, n);
    int at = (int)(row - t->row), before = row->n;
    char *seed = copy(dir + digits, end - digits);
    seed_of(row, seed);
    if (row->n == before) die_usage("'%s': %s with seed %s a second time", dir, row->name, seed);
    read_eval(t, at, dir, seed);
    read_curves(&seed_of(&t->row[at], seed)->curve, dir);
}

// Over seeds: the mean and its standard error; of one seed, what eval said over queries.
static Figure cell_mean(const Row *row, int f) {
    Figure m = row->seed[0].cell[f];
    double sum = 0, var = 0;
    for (int i = 0; i < row->n; i++) {
        if (!row->seed[i].cell[f].n != !m.n)
            die("%s: %s is there for seed %s, but not for seed %s; run eval with the same options for both", row->name,
                figure_names[f], row->seed[m.n ? 0 : i].seed, row->seed[m.n ? i : 0].seed);
        sum += row->seed[i].cell[f].mean;
    }
    if (row->n == 1 || !m.n) return m;
    m.mean = sum / row->n, m.n = row->n;
    for (int i = 0; i < row->n; i++) var += (row->seed[i].cell[f].mean - m.mean) * (row->seed[i].cell[f].mean - m.mean);
    m.err = sqrt(var / (m.n - 1) / m.n);
    return m;
}

// The mean curve, at the steps where every seed that has a curve has a point.
static void curve_mean(Row *row) {
    int seeds = 0, longest = 0, k = -1;
    for (int i = 0; i < row->n; i++) {
        int n = row->seed[i].curve.n;
        seeds += n > 0;
        longest = n > longest ? n : longest;
        if (n && (k < 0 || n < row->seed[k].curve.n)) k = i;
    }
    if (!seeds) return;
    if (seeds < row->n) fprintf(stderr, "note: %s: %d of its %d seeds have a reward.csv\n", row->name, seeds, row->n);
    const Curve *least = &row->seed[k].curve;
    row->curve.step = (double *)xalloc((size_t)least->n, sizeof(double));
    row->curve.reward = (double *)xalloc((size_t)least->n, sizeof(double));
    int *at = (int *)xalloc((size_t)row->n, sizeof(int));
    for (int p = 0; p < least->n; p++) {
        int found = 0;
        double sum = 0;
        for (int i = 0; i < row->n; i++) {
            const Curve *c = &row->seed[i].curve;
            while (at[i] < c->n && c->step[at[i]] < least->step[p]) at[i]++;
            if (at[i] < c->n && c->step[at[i]] == least->step[p]) sum += c->reward[at[i]++], found++;
        }
        if (found < seeds) continue;
        row->curve.step[row->curve.n] = least->step[p];
        row->curve.reward[row->curve.n++] = sum / seeds;
    }
    free(at);
    if (row->curve.n < longest)
        fprintf(stderr, "note: %s: its seeds' curves share %d of %d steps; only those are shown\n", row->name,
                row->curve.n, longest);
}

// ----------------------------------------------------------------------------
// Writing

static void md_cell(Out *out, Figure c, int digits) {
    if (!c.n) out_printf(out, " - |");
    else if (isnan(c.err)) out_printf(out, " %.*f |", digits, c.mean);
    else out_printf(out, " %.*f ± %.*f |", digits, c.mean, digits, c.err);
}

static void write_md(const Table *t, const char *dir) {
    static const struct { int figure, digits; } columns[] = {
        {REWARD, 3}, {PERPLEXITY, 2}, {KL, 2}, {TOKENS, 1}, {DISTINCT_2, 3}, {ACCURACY, 3}};
    char path[RRHF_PATH_MAX];
    int several = 0, single = 0;
    Out out = out_open(path_join(path, dir, "table.md"));
    out_printf(&out, "| row | seeds | reward | perplexity | KL to the start | tokens | distinct-2 | accuracy of p_i |\n"
                     "|:--|--:|--:|--:|--:|--:|--:|--:|\n");
    for (int i = 0; i < t->n; i++) {
        out_printf(&out, "| %s | %d |", t->row[i].name, t->row[i].n);
        for (size_t k = 0; k < sizeof columns / sizeof *columns; k++)
            md_cell(&out, t->row[i].mean[columns[k].figure], columns[k].digits);
        out_printf(&out, "\n");
        *(t->row[i].n > 1 ? &several : &single) = 1;
    }
    out_printf(&out, "\nEach figure is on held-out queries. ±:");
    if (several)
        out_printf(&out, " of a row with two or more seeds, one standard error of the mean over seeds (training and "
                   "sampling differ, the held-out queries are the same)%s", single ? ";" : ".");
    if (single)
        out_printf(&out, " of a row with one seed, one standard error over its queries, which leaves out how much "
                   "another seed would differ.");
    out_printf(&out, "\n");
    out_close(&out);
}

static void csv_row(Out *out, const char *name, const char *seed, const Figure cell[FIGURES]) {
    out_printf(out, "%s,%s", name, seed);
    for (int f = 0; f < FIGURES; f++) {
        if (cell[f].n) out_printf(out, ",%.6g", cell[f].mean);
        else out_printf(out, ",");
        if (cell[f].n && !isnan(cell[f].err)) out_printf(out, ",%.6g", cell[f].err);
        else out_printf(out, ",");
    }
    out_printf(out, ",%d\n", cell[REWARD].n);
}

static void write_csv(const Table *t, const char *dir) {
    char path[RRHF_PATH_MAX];
    Out out = out_open(path_join(path, dir, "table.csv"));
    out_printf(&out, "row,seed");
    for (int f = 0; f < FIGURES; f++) out_printf(&out, ",%s,%s_err", figure_names[f], figure_names[f]);
    out_printf(&out, ",n\n"); // a seed's: queries; a mean's: seeds
    for (int i = 0; i < t->n; i++) {
        const Row *r = &t->row[i];
        for (int k = 0; k < r->n; k++) csv_row(&out, r->name, r->seed[k].seed, r->seed[k].cell);
        csv_row(&out, r->name, "mean", r->mean);
    }
    out_close(&out);
}

// A row that has a curve has a colour, and dashes where the colours are used up; the others are grey.
enum { COLORS = 6, GREY = 6 };

static int write_png(const Table *t, const char *dir) {
    char path[RRHF_PATH_MAX];
    int curves = 0;
    PlotSeries *point = (PlotSeries *)xalloc((size_t)t->n * 2, sizeof *point), *curve = point + t->n;
    const char **label = (const char **)xalloc((size_t)t->n, sizeof *label);
    for (int i = 0; i < t->n; i++) {
        const Row *r = &t->row[i];
        const Figure *x = &r->mean[PERPLEXITY], *y = &r->mean[REWARD];
        int color = r->curve.n ? curves % COLORS : GREY;
        label[i] = r->name;
        point[i] = plot_series(NULL, &x->mean, &y->mean, x->n && y->n, PLOT_POINTS, color);
        point[i].xerr = &x->err, point[i].yerr = &y->err, point[i].label = &label[i];
        if (!r->curve.n) continue;
        curve[curves] = plot_series(r->name, r->curve.step, r->curve.reward, r->curve.n,
                                    PLOT_LINE | (curves >= COLORS ? PLOT_DASHED : 0), color);
        curves++;
    }
    PlotPanel p[2];
    memset(p, 0, sizeof p);
    p[0].title = "Reward against perplexity", p[0].label[PLOT_X] = "perplexity", p[0].label[PLOT_LEFT] = "mean reward";
    p[0].series = point, p[0].n_series = t->n;
    p[1].title = "Reward during training", p[1].label[PLOT_X] = "optimizer step", p[1].label[PLOT_LEFT] = "mean reward";
    p[1].series = curve, p[1].n_series = curves;
    int drawn = plot_png(path_join(path, dir, "table.png"), p, curves ? 2 : 1, curves ? 1800 : 900, 720);
    free(point);
    free(label);
    return drawn;
}

int main(int argc, char **argv) {
    Table t = {NULL, 0, 0};
    if (argc < 3) die_usage("usage: dev/table OUT_DIR ROW_DIR...");
    for (int i = 2; i < argc; i++) row_read(&t, argv[i]);
    for (int i = 0; i < t.n; i++) {
        for (int f = 0; f < FIGURES; f++) t.row[i].mean[f] = cell_mean(&t.row[i], f);
        curve_mean(&t.row[i]);
    }
    make_dir(argv[1]);
    write_md(&t, argv[1]);
    write_csv(&t, argv[1]);
    if (!write_png(&t, argv[1]))
        fprintf(stderr, "table.png: not drawn; install stb_image_write (Debian: libstb-dev) and make again\n");
    return 0;
}
