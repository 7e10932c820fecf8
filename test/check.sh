# check.sh: what test_demo.sh, test_scripts.sh and test_world.sh share. T is a folder for them, gone at the end.
export LC_ALL=C
passed=0 failed=0 T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
check() { # WHAT COMMAND...: the command must succeed
    local what=$1
    shift
    if "$@"; then passed=$((passed + 1)); echo "ok   $what"; else failed=$((failed + 1)); echo "FAIL $what"; fi
}
