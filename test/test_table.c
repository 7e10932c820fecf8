/*
test_table.c: the curves of dev/table.c, which only its picture shows: rounds one after the other, means over seeds.
test_cli.sh has its tables.
*/
#define main table_main
#include "../dev/table.c" // defines: read_curves, curve_mean
#undef main
#include "test.h"         // defines: check, test_summary

static char dir[] = "/tmp/rrhf_table_XXXXXX";

static Curve curve_of(int n, const double *step, const double *reward) {
    Curve c = {NULL, NULL, n, {0, 0}};
    c.step = (double *)xalloc((size_t)n, sizeof(double));
    c.reward = (double *)xalloc((size_t)n, sizeof(double));
    for (int i = 0; i < n; i++) c.step[i] = step[i], c.reward[i] = reward[i];
    return c;
}

static int curve_is(const Curve *c, int n, const double *step, const double *reward) {
    int right = c->n == n;
    for (int i = 0; right && i < n; i++) right = c->step[i] == step[i] && fabs(c->reward[i] - reward[i]) < 1e-15;
    return right;
}

// IP-2: the second round goes on where the first ended.
static void test_rounds(void) {
    static const double step[4] = {0, 10, 10, 20}, reward[4] = {0.5, 0.6, 0.7, 0.8};
    char path[RRHF_PATH_MAX], round[RRHF_PATH_MAX];
    Curve c = {NULL, NULL, 0, {0, 0}};
    for (int i = 0; i < 2; i++) {
        make_dir(path_join(round, dir, i ? "round-2" : "round-1"));
        Out out = out_open(path_join(path, round, "reward.csv"));
        out_printf(&out, "%s\n0,%g,0.1,9\n10,%g,0.1,9\n", REWARD_HEADER, reward[2 * i], reward[2 * i + 1]);
        out_close(&out);
    }
    read_curves(&c, dir);
    check(curve_is(&c, 4, step, reward), "two rounds: %d points, the last at step %g", c.n, c.n ? c.step[c.n - 1] : -1);
    for (int i = 0; i < 2; i++) {
        path_join(round, dir, i ? "round-2" : "round-1");
        unlink(path_join(path, round, "reward.csv")), rmdir(round);
    }
    free(c.step), free(c.reward);
}

// Three seeds, one without a curve, another with a step that the first lacks.
static void test_means(void) {
    static const double a[3] = {0, 10, 20}, ra[3] = {0.5, 0.5, 0.75};
    static const double b[4] = {0, 5, 10, 20}, rb[4] = {0.7, 9, 0.8, 0.25};
    static const double mean[3] = {0.6, 0.65, 0.5};
    Seed seed[3];
    Row row = {0};
    memset(seed, 0, sizeof seed);
    seed[0].curve = curve_of(3, a, ra), seed[2].curve = curve_of(4, b, rb);
    row.name = "X", row.seed = seed, row.n = 3;
    curve_mean(&row);
    check(curve_is(&row.curve, 3, a, mean), "two seeds' curves: %d points that both have, rewards %g %g %g",
          row.curve.n, row.curve.reward[0], row.curve.reward[1], row.curve.reward[2]);
}

int main(void) {
    if (!mkdtemp(dir)) die("%s: %s", dir, strerror(errno));
    test_rounds();
    test_means();
    rmdir(dir);
    return test_summary();
}
