/*
test.h: what the tests share. One line per check, then "N passed, N failed".

  check(ok, "what  error %g  tolerance %g", ...)    prints "ok   ..." or "FAIL ..."
  check_dies("what", f, arg, "text")                f(arg) must end the program as die() does
  return test_summary();                            the last line, and main's exit code
*/
#ifndef TEST_H
#define TEST_H

#include <stdarg.h>      // defines: va_list
#include <stdio.h>       // defines: printf
#include <stdlib.h>      // defines: exit
#include <string.h>      // defines: strstr
#include <sys/wait.h>    // defines: waitpid
#include <unistd.h>      // defines: fork, pipe, dup2

static int passed, failed;

__attribute__((format(printf, 2, 3), unused))
static int check(int ok, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    printf(ok ? "ok   " : "FAIL ");
    vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
    fflush(stdout); // so that a crash later on does not swallow it
    if (ok) passed++;
    else failed++;
    return ok;
}

// Runs f(arg) in a child process: it must exit with code 1 and leave one line on stderr that holds `text`.
__attribute__((unused))
static int check_dies(const char *what, void (*f)(const void *), const void *arg, const char *text) {
    char said[4096];
    int pipe_fd[2], status = 0;
    size_t n = 0;
    fflush(stdout);
    if (pipe(pipe_fd)) return check(0, "%s: no pipe", what);
    pid_t child = fork();
    if (child == 0) {
        close(pipe_fd[0]);
        if (dup2(pipe_fd[1], 2) < 0) _exit(99);
        f(arg);
        _exit(0); // it should not have come back
    }
    close(pipe_fd[1]);
    for (ssize_t k; child > 0 && n < sizeof said - 1; n += (size_t)k)
        if ((k = read(pipe_fd[0], said + n, sizeof said - 1 - n)) <= 0) break;
    said[n] = 0;
    close(pipe_fd[0]);
    if (child < 0 || waitpid(child, &status, 0) != child) return check(0, "%s: no child process", what);
    const char *end = strchr(said, '\n');
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    int one_line = end && end[1] == 0 && strncmp(said, "error: ", 7) == 0;
    if (n && said[n - 1] == '\n') said[n - 1] = 0;
    return check(code == 1 && one_line && strstr(said, text), "%s: exit code %d, \"%s\"", what, code, said);
}

__attribute__((unused))
static int test_summary(void) {
    printf("%d passed, %d failed\n", passed, failed);
    return failed ? 1 : 0;
}

#endif
