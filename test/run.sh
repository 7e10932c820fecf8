#!/usr/bin/env bash
# Runs every test given as an argument, JOBS at once, shows in their order what they print, and adds up their checks. A test
# that ends without its "N passed, N failed" line, or with a failing exit code and no failed check, counts as one failure.
unset MAKEFLAGS # make's own, of which a make within a test knows nothing
export OMP_WAIT_POLICY=passive # threads that wait leave the cores to the others
jobs=${JOBS:-1} passed=0 failed=0 tests=("$@") pids=() at=0 T=$(mktemp -d)
trap 'kill "${pids[@]}" 2>/dev/null; rm -rf "$T"' EXIT
trap 'exit 1' INT TERM
begin() { # the next test, where there is one
    [ $at -lt ${#tests[@]} ] || return
    ${tests[at]} >"$T/$at" 2>&1 &
    pids[at++]=$!
}
for ((i = 0; i < jobs; i++)); do begin; done
for ((i = 0; i < ${#tests[@]}; i++)); do
    wait "${pids[i]}"
    code=$?
    begin
    echo "== ${tests[i]}"
    cat "$T/$i"
    if [[ $(tail -n 1 "$T/$i") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        p=${BASH_REMATCH[1]} f=${BASH_REMATCH[2]}
        [ "$code" -ne 0 ] && [ "$f" -eq 0 ] && { echo "FAIL ${tests[i]}: exit code $code"; f=1; }
    else
        echo "FAIL ${tests[i]}: ended early, exit code $code"; p=0 f=1
    fi
    passed=$((passed + p)) failed=$((failed + f))
done
echo "== all"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
