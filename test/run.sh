#!/usr/bin/env bash
# Runs every test given as an argument, shows what it prints, and adds up its checks. A test that ends without its
# "N passed, N failed" line, or with a failing exit code and no failed check, counts as one failure.
passed=0 failed=0 log=$(mktemp)
trap 'rm -f "$log"' EXIT
for t in "$@"; do
    echo "== $t"
    $t 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    if [[ $(tail -n 1 "$log") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        p=${BASH_REMATCH[1]} f=${BASH_REMATCH[2]}
        [ "$code" -ne 0 ] && [ "$f" -eq 0 ] && { echo "FAIL $t: exit code $code"; f=1; }
    else
        echo "FAIL $t: ended early, exit code $code"; p=0 f=1
    fi
    passed=$((passed + p)) failed=$((failed + f))
done
echo "== all"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
