#!/usr/bin/env bash
# test_scripts.sh: when make builds again, and dev/imdb.sh: its arguments, and what becomes of a step that fails. The
# script runs in a copy, where a few lines of shell stand for the programs: nothing is fetched, nothing is trained.
# Run from the repository root after `make train_rrhf`.
. test/check.sh # check, T

# ----------------------------------------------------------------------------
# make

rebuilds() { make -n train_rrhf "$@" 2> /dev/null | grep -q -e '-o train_rrhf '; }
not() { ! "$@"; }
check "make: train_rrhf is up to date" not rebuilds
check "make: other options build it again" rebuilds CFLAGS_EXTRA=-DANOTHER
check "make: another compiler builds it again" rebuilds CC="gcc -DANOTHER"

# ----------------------------------------------------------------------------
# dev/imdb.sh. The made-up programs note their arguments, and write what the script waits for.

mkdir -p "$T/copy/dev" "$T/elsewhere/aclImdb/train/pos"
touch "$T/elsewhere/tok.bin" "$T/commands"
cp dev/imdb.sh "$T/copy/dev"
printf '%s:\n\t@:\n' "train_rrhf dev/imdb dev/table" > "$T/copy/Makefile"
cat > "$T/copy/train_rrhf" <<'END'
#!/bin/bash
echo "$*${BY:+ by $BY}" >> "$COMMANDS"
[[ -n $FAIL && "$*" == *$FAIL* ]] && { echo "error: as asked" >&2; exit 1; }
while [ $# -gt 1 ]; do [ "$1" = --out ] && out=$2; shift; done
mkdir -p "$out"
touch "$out"/{policy,sampled,scored}.bin "$out/eval.csv"
END
cat > "$T/copy/dev/imdb" <<'END'
#!/bin/bash
echo "imdb $*" >> "$COMMANDS"
touch "$3/queries_test.bin"
END
cat > "$T/copy/dev/table" <<'END'
#!/bin/bash
touch "$1/table.md"
shift
echo "table of $# rows" >> "$COMMANDS"
END
chmod +x "$T/copy/train_rrhf" "$T/copy/dev/imdb" "$T/copy/dev/table"
export COMMANDS=$T/commands FAIL=

imdb() { # ARGS...: from another folder, as a user might; the exit code
    (cd "$T/elsewhere" && timeout 60 ../copy/dev/imdb.sh "$@" > "$T/out" 2> "$T/err" < /dev/null)
    code=$?
}
refuses() { # CODE NEEDLE ARGS...: one line, before anything is done
    local want=$1 needle=$2
    shift 2
    imdb "$@"
    check "imdb.sh $*: exit code $code, $(head -n 1 "$T/err")" \
        [ "$code $(grep -c . "$T/err") $(grep -c "^error: .*$needle" "$T/err")" = "$want 1 1" ]
}
refuses 2 "--size: expected a value" --size
refuses 2 "--size medium: expected small, large or gpt2" --size medium
refuses 2 "'--fast': no such option" --fast
for jobs in 0 x -1 1.5 ''; do refuses 2 "--jobs $jobs: expected a whole number" table --jobs "$jobs"; done
refuses 1 "--tokenizer /nope: no such file" --tokenizer /nope
refuses 1 "--model /nope: no such file" --size gpt2 --model /nope
refuses 2 "--model: for --size gpt2 only" --model tok.bin
for program in ./train './train_rrhf --threads 2' train_rrhf; do refuses 2 "--program $program: expected" --program "$program"; done
refuses 1 "nope: no such file or folder" nope
check "imdb.sh: what it refused, it had not begun" not test -e "$T/copy/out"
imdb --help
check "imdb.sh --help from elsewhere: $(head -n 1 "$T/out")" grep -q -e '--size small|large|gpt2' "$T/out"

imdb --size small --tokenizer tok.bin aclImdb
check "imdb.sh: relative paths from elsewhere: exit code $code, $(head -n 1 "$T/commands")" \
    grep -q "^imdb $T/elsewhere/aclImdb $T/elsewhere/tok.bin out/imdb-small 8192 " "$T/commands"
check "imdb.sh: names no curves.png where none was drawn: $(tail -n 1 "$T/out")" not grep -q curves.png "$T/out"

# The archive, fetched by a stand-in for curl: refused unless it is the known one.
mkdir "$T/bin"
tar -czf "$T/reviews.tar.gz" -C "$T/elsewhere" aclImdb
printf '#!/bin/bash\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && cp %s "$2"; shift; done\n' "$T/reviews.tar.gz" > "$T/bin/curl"
chmod +x "$T/bin/curl"
path=$PATH PATH=$T/bin:$PATH
mv "$T/copy/out" "$T/out-before"
imdb --size small --tokenizer tok.bin
check "imdb.sh, another archive: exit code $code, $(tail -n 1 "$T/err")" \
    [ "$code $(grep -c "^error: .*aclImdb_v1.tar.gz: damaged; remove it" "$T/err")" = "1 1" ]
sed -i "s/^ARCHIVE_SHA256=.*/ARCHIVE_SHA256=$(sha256sum "$T/reviews.tar.gz" | cut -d ' ' -f 1)/" "$T/copy/dev/imdb.sh"
: > "$T/commands"
imdb --size small --tokenizer tok.bin
check "imdb.sh, the archive: exit code $code, $(head -n 1 "$T/commands")" grep -q "^imdb out/imdb-data/aclImdb " "$T/commands"
rm -r "$T/copy/out"
mv "$T/out-before" "$T/copy/out"
PATH=$path

FAIL="train *--policy DP"
imdb table --size small --jobs 2
check "imdb.sh table: a row that fails ends it: exit code $code" [ $code = 1 ]
check "imdb.sh table: and is named: $(grep -m 1 DP "$T/err")" grep -q '^error: .*rows/DP-1: failed; see .*/run.txt' "$T/err"
check "imdb.sh table: the other rows are done: $(grep -c '^done' "$T/err")" [ "$(grep -c '^done' "$T/err")" = 18 ]
check "imdb.sh table: no table without it" not grep -q '^table' "$T/commands"
FAIL=
imdb table --size small --jobs 2
check "imdb.sh table: goes on from there: exit code $code, $(tail -n 1 "$T/commands")" \
    [ "$code $(grep -c '^done' "$T/err") $(tail -n 1 "$T/commands")" = "0 1 table of 19 rows" ]
check "imdb.sh table: one thread for each job" grep -q '^train .* --policy IP-3 .* --threads 1 ' "$T/commands"

rm "$T/commands"
touch "$T/elsewhere/a model.bin"
imdb table --size gpt2 --tokenizer tok.bin --model "a model.bin" --program 'env BY=others ./train_rrhf' aclImdb
check "imdb.sh table --size gpt2 --program: exit code $code, $(grep -c ' by others$' "$T/commands") commands by that program" \
    [ "$code $(grep -c ' by others$' "$T/commands") $(grep -vc ' by others$' "$T/commands")" = "0 40 2" ]
check "imdb.sh --size gpt2: $(sed -n 2p "$T/commands")" grep -q "^sft --model $T/elsewhere/a model.bin --data .* by others" "$T/commands"
check "imdb.sh --size gpt2: $(sed -n 3p "$T/commands")" grep -q "^reward --model $T/elsewhere/a model.bin --data " "$T/commands"
check "imdb.sh --program: as many threads as it likes" not grep -q -e --threads "$T/commands"

# test/gpu.sh with a stand-in for compute-sanitizer, which runs the program and says what it is told to.
mkdir "$T/tools"
printf '#!/bin/sh\necho "========= ERROR SUMMARY: $FOUND errors"\nexit "$FOUND"\n' > "$T/tools/compute-sanitizer"
printf '#!/bin/sh\nexit 9\n' > "$T/tools/nvidia-smi"
chmod +x "$T/tools"/*
sanitize() { FOUND=$1 PATH=$T/tools:$PATH bash test/gpu.sh sanitize memcheck true > "$T/out"; code=$?; }
sanitize 0
check "gpu.sh: $(head -n 1 "$T/out")" [ "$code $(tail -n 1 "$T/out")" = "0 1 passed, 0 failed" ]
sanitize 3
check "gpu.sh, a tool that finds something: exit code $code" [ "$code $(tail -n 1 "$T/out")" = "1 0 passed, 1 failed" ]
PATH=$T/tools:$PATH bash test/gpu.sh > "$T/out" 2> "$T/err"
check "gpu.sh without a GPU: $(cat "$T/err")" grep -q '^gpu.sh: no GPU found' "$T/err"

# test/ptx.py and an instruction that it does not know, or knows without that modifier; then the tests of the PTX are none.
if command -v python3 > /dev/null; then
    for op in foo.bar.s32 add.cc.s32; do
        printf '.visible .entry k()\n{\n.reg .b32 %%r<2>;\n%s %%r1, %%r1, 1;\nret;\n}\n' $op | python3 test/ptx.py > "$T/out" 2> "$T/err"
        code=$?
        check "ptx.py, $op: exit code $code, $(tail -n 1 "$T/err")" [ "$code $(grep -c $op "$T/err")" = "1 1" ]
    done
    rm -f test/kernels_none.h
    make -s NVCC=false test/kernels_none.h > "$T/out" 2>&1
    check "PTX tests where nvcc fails: $(cat test/kernels_none.h)" grep -q '^#define PTX_NONE "nvcc or test/ptx.py gave up' test/kernels_none.h
    rm -f test/kernels_none.h
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ]
