#!/usr/bin/env bash
# test_cli.sh: train_rrhf from the outside. Run from the repository root after `make train_rrhf`.
#
#   1 bad input          files, options and outputs: one line on stderr, exit 1 or 2, nothing left behind
#   2 checkpoints        bfloat16 is read, float32 written
#   3 resume             after --steps, Ctrl-C and kill -9: bit for bit the uninterrupted run
#   4 same seed          same result
#   5 outputs            every verb's files and figures
#   6 the worked case    ../shared/cases or $RRHF_CASES, where it exists
#   7 the sanitizers     parts 1 and 8, damaged files at random and every verb under AddressSanitizer and UBSan
#   8 reward commands    good, slow and broken ones: one line that names the command, nothing lost, nothing left running
#   9 the table          dev/table over made-up runs: means, errors, order, and damaged files
#  10 options            every one does something
#
# Prints a line per check, then "N passed, N failed". Models and data are tiny; test/make_files.c writes them.
# RRHF_SANITIZE=0 leaves part 7 out, CLI_PARTS="1 3" runs only some.
export OMP_WAIT_POLICY=passive LC_ALL=C
CC=${CC:-gcc} BIN=$PWD/train_rrhf PARTS=" ${CLI_PARTS:-1 2 3 4 5 6 7 8 9 10} " WHO=
CASES=${RRHF_CASES:-$PWD/../shared/cases}
passed=0 failed=0 build= T=$(mktemp -d)
cleanup() {
    mountpoint -q "$T/tmpfs" 2>/dev/null && umount "$T/tmpfs"
    [ -n "$build" ] && kill "$build" 2>/dev/null
    rm -rf "$T"
}
trap cleanup EXIT

ok() { passed=$((passed + 1)); echo "ok   $WHO$*"; }
bad() { failed=$((failed + 1)); echo "FAIL $WHO$*"; }
note() { echo "note $WHO$*"; }
check() { # WHAT COMMAND...: the command must succeed
    local what=$1
    shift
    if "$@" >"$T/said" 2>&1; then ok "$what"; else bad "$what$(sed 's/^/: /;q' "$T/said")"; fi
}
part() { [[ $PARTS == *" $1 "* ]]; }

run() { timeout 60 "$BIN" "$@" <"${STDIN:-/dev/null}" >"$T/out" 2>"$T/err"; } # ARGS...: stdout and stderr go to files
works() { # WHAT ARGS...: must exit 0 without an error
    local what=$1 rc
    shift
    run "$@"
    rc=$?
    if [ $rc -eq 0 ] && ! grep -qE '^error|Sanitizer|runtime error' "$T/err"; then ok "$what"
    else bad "$what: exit code $rc: $(grep -m1 -E '^error|Sanitizer|runtime error' "$T/err")"; fi
}

# Lines that may stand on stderr before the error: the banner, notes, progress.
BANNER='^((CPU|GPU|CUDA|NVIDIA)[ ,]|note: |finishing this step|(sft|reward|sample|score|train|eval|start|policy|explain|round-[0-9]+|curves\.png)[: ]|==[0-9]+==WARNING: AddressSanitizer failed to allocate)'
refused() { # RC CODE NEEDLE WHAT: what the last run did, against what it should do. NEEDLE: a pattern in the error
    local rc=$1 code=$2 needle=$3 what=$4 line error= errors=0 others=
    while IFS= read -r line; do
        if [[ $line == "error: "* ]]; then error=$line errors=$((errors + 1))
        elif [ -n "$line" ] && ! [[ $line =~ $BANNER ]]; then others+="$line | "; fi
    done < <(tr -d "\\000" <"$T/err")
    if [ "$rc" -ne "$code" ]; then bad "$what: exit code $rc, expected $code: ${error:-$others}"
    elif [ $errors -ne 1 ] || [ -n "$others" ]; then bad "$what: expected one line, got: $error | ${others:0:200}"
    elif ! [[ $error =~ $needle ]]; then bad "$what: expected $needle in: $error"
    else ok "$what: ${error:7:150}"; fi
}
refuse() { # CODE NEEDLE WHAT ARGS...
    local code=$1 needle=$2 what=$3 rc
    shift 3
    run "$@"
    rc=$?
    refused $rc "$code" "$needle" "$what"
}

begun() { grep -qE '^(sft|reward|sample|score|train|eval|policy|start|round-[0-9]+) +[0-9]+/' "$T/err"; } # a progress line

as_user() { # COMMAND: as one to whom permissions apply
    if [ "$(id -u)" -eq 0 ]; then setpriv --bounding-set=-dac_override,-dac_read_search "$@"; else "$@"; fi
}
make_files() { "$T/make_files" "$@"; }
edit() { make_files edit "$@"; }
same() { cmp "$1" "$2"; }
differ() { ! cmp -s "$1" "$2"; }
columns() { cut -d, -f1-7 "$1"; } # a log without its times
same_log() { cmp <(columns "$1") <(columns "$2"); }

# ----------------------------------------------------------------------------
# 1 bad input

# A damaged copy of a file, and the verb that reads it. F: the path that the error must name.
bad_model() { local what=$1 needle=$2; shift 2; edit "$D/policy.bin" "$F" "$@"; refuse 1 "bad\.bin.*$needle" "checkpoint, $what" score --model "$F" --data "$D/ranked.bin"; }
bad_data() { local what=$1 needle=$2; shift 2; edit "$D/ranked.bin" "$F" "$@"; refuse 1 "bad\.bin.*$needle" "ranked, $what" score --model "$D/policy.bin" --data "$F"; }
bad_stream() { local what=$1 needle=$2; shift 2; edit "$D/stream.bin" "$F" "$@"; refuse 1 "bad\.bin.*$needle" "stream, $what" sft --model "$D/policy.bin" --data "$F" --out "$O"; }
bad_tokenizer() { local what=$1 needle=$2; shift 2; edit "$D/tokenizer.bin" "$F" "$@"; refuse 1 "bad\.bin.*$needle" "tokenizer, $what" sample --model "$D/policy.bin" --data "$D/held.bin" --tokenizer "$F" --out "$O" --max-new-tokens 4; }

bad_input() {
    local D=$T/d F=$T/bad.bin O=$T/o kind n v max=2147483647
    local M="--model $D/policy.bin" R="--data $D/ranked.bin"
    rm -rf "$O"

    # every kind of file: missing, a directory, a device, empty, cut anywhere, too long, wrong magic, wrong version
    refuse 1 "$T/none" "model missing" score --model "$T/none" $R
    refuse 1 "$T/none" "data missing" score $M --data "$T/none"
    refuse 1 "$T/none" "tokenizer missing" sample $M $R --tokenizer "$T/none" --out "$O"
    refuse 1 "$T/none" "reward missing" score --reward "$T/none" $R --out "$O"
    refuse 1 "$T/none" "reference missing" eval $M $R --reference "$T/none" --out "$O" --max-new-tokens 4
    refuse 1 "$T/none" "held-out data missing" train $M $R --eval-data "$T/none" --out "$O"
    for v in model data tokenizer reward out resume; do refuse 2 "--$v '': expected a value" "--$v ''" train $M $R --$v ""; done
    refuse 1 "$T/none" "directory to resume from missing" train $M $R --resume "$T/none" --out "$O"
    refuse 1 "$D" "model is a directory" score --model "$D" $R
    refuse 1 "$D" "data is a directory" score $M --data "$D"
    refuse 1 "$D" "tokenizer is a directory" sample $M $R --tokenizer "$D" --out "$O"
    refuse 1 "/dev/null" "data is a device" score $M --data /dev/null
    for kind in model data stream tokenizer; do
        bad_$kind "empty" "" cut 0
        bad_$kind "1 byte" "" cut 1
        bad_$kind "half a header" "" cut 512
        bad_$kind "1 byte short of a header" "" cut 1023
        bad_$kind "a header only" "" cut 1024
        bad_$kind "a header and 3 bytes" "" cut 1027
        bad_$kind "1 byte short" "" cut -1
        bad_$kind "a third missing" "" cut -400
        bad_$kind "1 byte too long" "" pad 1
        bad_$kind "1 MB too long" "" pad 1000000
        bad_$kind "wrong magic" "" h 0 1234567
        bad_$kind "version 2000000" 2000000 h 1 2000000
        bad_$kind "version -1" -1 h 1 -1
    done
    bad_model "version 1" "version 1" h 1 1
    bad_model "float32 marked bfloat16" "" h 1 5
    for n in 2 3 4 5 6 7; do # T V L NH C Vp
        for v in 0 -1 -$max $max; do bad_model "header[$n] $v" "" h $n $v; done
    done
    bad_model "heads do not divide C" "heads" h 5 3
    bad_model "Vp < V" "" h 7 59
    bad_model "sizes whose product overflows" "" h 2 1048576 h 4 1024 h 6 65536 h 7 131072
    bad_model "reward flag 7" "" h 8 7
    bad_model "reward flag without its head" "" h 8 1
    bad_model "probability flag 7" "" h 9 7
    bad_model "one layer more" "" h 4 3
    bad_model "a NaN" "nan" f32 4000 nan
    bad_model "an infinity at the end" "parameter $((($(wc -c <"$D/policy.bin") - 1024) / 4 - 1)) is inf" f32 -4 inf
    refuse 1 "ranked\.bin" "ranked file as a model" score --model "$D/ranked.bin" $R
    refuse 1 "policy\.bin" "model as data" score $M --data "$D/policy.bin"
    refuse 1 "reward\.bin" "reward model as policy: score" score --model "$D/reward.bin" $R
    refuse 1 "reward\.bin" "reward model as policy: train" train --model "$D/reward.bin" $R --out "$O"
    refuse 1 "reward\.bin" "reward model as policy: sample" sample --model "$D/reward.bin" $R --out "$O"
    refuse 1 "reward\.bin" "reward model as policy: sft" sft --model "$D/reward.bin" --data "$D/labels.bin" --out "$O"
    refuse 1 "reward\.bin" "reward model as reference" eval $M $R --reference "$D/reward.bin" --out "$O" --max-new-tokens 4
    refuse 1 "--reward .*policy\.bin" "policy as reward model: score" score --reward "$D/policy.bin" $R --out "$O"
    refuse 1 "--reward .*policy\.bin" "policy as reward model: train" train $M $R --reward "$D/policy.bin" --eval-data "$D/held.bin" --out "$O"

    for n in 2 3 4; do # queries, responses, tokens
        for v in 0 -1 -$max $max; do bad_data "header[$n] $v" "" h $n $v; done
    done
    bad_data "counts whose bytes overflow" "" h 2 $max h 3 $max h 4 $max
    bad_data "counts that cancel" "" h 2 -1 h 3 1
    bad_data "vocabulary 0" "vocabulary 0" h 5 0
    bad_data "vocabulary -1" "vocabulary -1" h 5 -1
    bad_data "vocabulary 70000" "vocabulary 70000" h 5 70000
    bad_data "another vocabulary than the model's" "61" h 5 61
    for v in 0 -1 -$max $max 2 4; do
        bad_data "query length $v" "query" i32 1024 $v
        [ $v = 2 ] || [ $v = 4 ] || bad_data "k $v" "query 0" i32 1028 $v
        bad_data "response length $v" "query" i32 $((v == 2 ? 1044 : 1032)) $v
    done
    bad_data "k 1, one response fewer than there are" "" i32 1028 1
    bad_data "a token beyond its vocabulary" "60" u16 1056 60
    bad_data "last token 65535" "65535" u16 -2 65535
    bad_data "a source of -1" "query 0, response 0: source -1" i32 1040 -1
    bad_data "a NaN score" "query 0, response 0.*nan" f32 1036 nan
    bad_data "an infinite score" "query 0, response 1.*inf" f32 1048 -inf
    refuse 1 "ranked\.bin.*60.*61" "data of another vocabulary" score --model "$D/policy61.bin" $R
    refuse 1 "tokenizer61\.bin.*61.*60" "tokenizer of another vocabulary: train" train $M $R --tokenizer "$D/tokenizer61.bin" --out "$O"
    refuse 1 "tokenizer61\.bin" "tokenizer of another vocabulary: sample" sample $M $R --tokenizer "$D/tokenizer61.bin" --out "$O" --max-new-tokens 4
    refuse 1 "tokenizer61\.bin" "tokenizer of another vocabulary: eval" eval $M $R --tokenizer "$D/tokenizer61.bin" --out "$O" --max-new-tokens 4
    refuse 1 "" "reference of another vocabulary" eval $M $R --reference "$D/policy61.bin" --out "$O" --max-new-tokens 4
    edit "$D/reward.bin" "$T/reward61.bin" h 3 61
    refuse 1 "reward61\.bin" "reward model of another vocabulary" eval $M $R --reward "$T/reward61.bin" --out "$O" --max-new-tokens 4
    refuse 1 "long\.bin.*max-query-tokens" "sequence longer than T" score $M --data "$D/long.bin"
    works "fits with --max-query-tokens" score $M --data "$D/long.bin" --max-query-tokens 14
    works "fits with --max-response-tokens" score $M --data "$D/long.bin" --max-response-tokens 4
    refuse 1 "long\.bin" "one token too many" score $M --data "$D/long.bin" --max-query-tokens 15
    refuse 1 "max-query-tokens|max-new-tokens" "no room for --max-new-tokens" sample $M $R --max-new-tokens 48 --out "$O"
    v=$(sed -n 's/.*try --max-new-tokens \([0-9]*\).*/\1/p' "$T/err")
    works "there is for the --max-new-tokens $v that it says" sample $M $R --max-new-tokens "$v" --out "$T/fits"
    refuse 1 "max-new-tokens" "but not for one more" sample $M $R --max-new-tokens $((v + 1)) --out "$O"
    works "train --tokenizer without room for the completions of samples.txt" train $M $R --tokenizer "$D/tokenizer.bin" --epochs 1 --out "$T/fits"
    [ -s "$T/fits/samples.txt" ] && ok "they are shorter" || bad "no samples.txt"
    refuse 1 "max-query-tokens|max-new-tokens" "no room for --max-new-tokens: eval" eval $M $R --max-new-tokens 24 --out "$O"
    run eval $M --data "$D/held.bin" --out "$O"
    v=$((24 - $(sed -n 's/.*queries have up to \([0-9]*\) tokens.*/\1/p' "$T/err")))
    works "eval, just room enough" eval $M --data "$D/held.bin" --max-new-tokens $v --out "$T/fits"
    n="context 24, but queries have up to $((24 - v)) tokens and completions $((v + 1))"
    refuse 1 "$n" "eval, a token too many" eval $M --data "$D/held.bin" --max-new-tokens $((v + 1)) --out "$O"
    refuse 1 "$n" "train, held-out queries too long" train $M $R --reward "$D/reward.bin" --eval-data "$D/held.bin" --max-new-tokens $((v + 1)) --epochs 1 --out "$O"
    works "those that are not used may be" train $M $R --reward "$D/reward.bin" --eval-data "$D/held.bin" --eval-queries 1 --max-new-tokens $((v + 1)) --epochs 1 --out "$T/fits"
    for v in 0 1 -1 -$max $max; do bad_stream "header[2] $v" "" h 2 $v; done
    bad_stream "a token beyond the vocabulary" "60" u16 -2 60
    refuse 1 "stream\.bin" "stream where ranked data are expected: train" train $M --data "$D/stream.bin" --out "$O"
    refuse 1 "stream\.bin" "stream where ranked data are expected: score" score $M --data "$D/stream.bin"
    for v in 0 -1 -$max $max 61 59; do bad_tokenizer "vocabulary $v" "" h 2 $v; done
    bad_tokenizer "end-of-text -5" "" h 3 -5
    bad_tokenizer "an empty token" "" u8 1024 0
    bad_tokenizer "a token of 255 bytes" "" u8 1024 255
    bad_tokenizer "last token too long" "" u8 -14 14
    refuse 1 "ranked\.bin" "sft with several responses" sft $M $R --out "$O"
    edit "$D/labels.bin" "$F" f32 1036 1.5
    refuse 1 "bad\.bin.*1\.5" "a label of 1.5" reward $M --data "$F" --out "$O"
    edit "$D/labels.bin" "$F" f32 1036 -0.25
    refuse 1 "bad\.bin.*-0\.25" "a label of -0.25" reward $M --data "$F" --out "$O"
    works "labels that are all equal" score --data "$D/labels.bin" --tokenizer "$D/tokenizer.bin" --reward "cmd:while read -r l; do echo 1; done" --out "$T/equal"
    refuse 1 "scored\.bin: every label is 1; a reward model needs" "they train no reward model" reward $M --data "$T/equal/scored.bin" --out "$O"
    works "but can be what one is judged by" eval --model "$D/reward.bin" --data "$T/equal/scored.bin" --out "$T/equal"

    # the command line
    refuse 2 "frobnicate" "unknown verb" frobnicate
    refuse 2 "" "empty verb" ""
    refuse 2 "--frobnicate" "unknown option" train --frobnicate 1
    refuse 2 "--lrr" "misspelt option" train $M $R --lrr 1
    refuse 2 "-x" "single dash" -x
    refuse 2 "3" "a word that is no option" train 3
    refuse 2 "--lr: needs a verb before it" "a verb after an option" --lr 1e-3 train
    refuse 2 "--data: needs a verb" "the demo with an option that it does not take" --data x
    refuse 2 "'--lr=1e-4': expected two words: --lr 1e-4" "--lr=1e-4" train --lr=1e-4
    refuse 2 "'--lrr'" "--lrr=1e-4" train --lrr=1e-4
    refuse 2 "from 0 to 2147483647" "a range in full" train --seed -1
    refuse 2 "from 1 to 1000000" "another" train --batch 0
    refuse 2 "--lr" "missing value" train $M $R --lr
    refuse 2 "--model" "missing value of the first option" train --model
    for v in "" 3x 1e 1e- nan NAN inf -1 1e9 0,1 "1 2" x -; do refuse 2 "--lr .*from" "--lr '$v'" train $M $R --lr "$v"; done
    for v in "" 3x 2.5 1e1 nan 0 -1 99999999999999999999 2147483648 x; do refuse 2 "--batch .*whole" "--batch '$v'" train $M $R --batch "$v"; done
    refuse 2 "--warmup" "--warmup 1.5" train $M $R --warmup 1.5
    refuse 2 "--top-p" "--top-p -0.1" sample $M $R --top-p -0.1
    refuse 2 "--beta1" "--beta1 1" train $M $R --beta1 1
    refuse 2 "--shuffle" "--shuffle 2" train $M $R --shuffle 2
    refuse 2 "--seed" "--seed -1" train $M $R --seed -1
    refuse 2 "--threads" "--threads -1" train $M $R --threads -1
    refuse 2 "--num-return" "--num-return 0" sample $M $R --num-return 0
    refuse 2 "--max-new-tokens" "--max-new-tokens 0" sample $M $R --max-new-tokens 0
    refuse 2 "--explain" "--explain 13 of 13 queries" train $M $R --explain 13
    for v in sft reward sample score eval; do refuse 2 "--explain 0: for the train verb only" "--explain of $v" $v $M $R --explain 0 --out "$O"; done
    refuse 2 "--explain 0: shows the data's own responses" "--explain with --policy SP" train $M $R --policy SP --reward "$D/reward.bin" --explain 0
    for v in "" lin LINEAR "linear|cosine" "linear:"; do refuse 2 "--schedule .*linear" "--schedule '$v'" train $M $R --schedule "$v"; done
    refuse 2 "--policy" "--policy XY" train $M $R --policy XY
    refuse 2 "--kl-coef: for --policy OP-k only" "--kl-coef with --policy SP" train $M $R --policy SP --reward "$D/reward.bin" --kl-coef 0.1 --out "$O"
    refuse 2 "--policy" "--policy '' of sample" sample $M $R --policy ""
    for v in P IP-2 OP-2; do refuse 2 "sample takes" "sample --policy $v" sample $M $R --policy $v --out "$O"; done
    for v in S SP B D IP-2 OP-2; do refuse 2 "--reward.*every --policy but P" "train --policy $v without --reward" train $M $R --policy $v --out "$O"; done
    refuse 2 "--steps 1: IP-n trains whole rounds" "IP-2 --steps 1" train $M $R --policy IP-2 --reward "$D/reward.bin" --steps 1 --out "$O"
    refuse 2 "--stop 'i': expected at most 8 times" "nine --stop" sample $M $R --stop a --stop b --stop c --stop d --stop e --stop f --stop g --stop h --stop i
    refuse 2 "--ft-reduction" "--ft-reduction max" train $M $R --ft-reduction max
    refuse 2 "--dtype" "--dtype fp16" train $M $R --dtype fp16
    for v in sft reward sample score train eval; do
        refuse 2 "--data" "$v without --data" $v $M --out "$O"
        [ "$(wc -l <"$T/err")" -eq 1 ] && ok "and nothing else is said" || bad "$v without --data: $(head -n 1 "$T/err")"
        [ $v = sft ] || refuse 2 "--model" "$v without --model" $v $R --out "$O"
    done
    refuse 2 "--tokenizer" "sft without model or tokenizer" sft --data "$D/stream.bin" --out "$O"
    refuse 2 "--channels" "channels not divisible by heads" sft --data "$D/labels.bin" --channels 10 --heads 4 --out "$O"
    refuse 1 "memory" "more memory than there is" sft --data "$D/labels.bin" --channels 65536 --layers 1024 --heads 1 --out "$O"
    # a hundred thousand epochs of 2,200 steps are more than an int holds: refused or begun, but no overflow
    run train $M --data "$D/queries.bin" --batch 1 --epochs 1000000 --steps 1 --threads 1 --out "$T/many"
    n=$?
    if [ $n -eq 0 ] && [ "$(tail -n +2 "$T/many/log.csv" | wc -l)" -eq 1 ] && ! grep -q "runtime error" "$T/err"; then ok "2.2e9 steps, --steps 1: one done"
    else refused $n 2 "--epochs|--batch" "2.2e9 steps"; fi

    # outputs that cannot be written; what was there stays
    echo "a file" >"$T/file"
    for v in sft reward sample train eval; do
        n=$D/ranked.bin
        case $v in sft) n=$D/labels.bin ;; esac
        refuse 1 "$T/file" "$v: --out is a file" $v $M --data "$n" --out "$T/file" --max-new-tokens 4
        refuse 1 "$T/file" "$v: --out is below a file" $v $M --data "$n" --out "$T/file/x" --max-new-tokens 4
    done
    refuse 1 "$T/file" "score: --out is a file" score --reward "$D/reward.bin" $R --out "$T/file"
    refuse 1 "/proc/" "--out where no directory can be made" train $M $R --out /proc/rrhf/x
    refuse 1 "/dev/null" "--out below a device" train $M $R --out /dev/null/x
    run train $M $R --out "" --epochs 1
    n=$?
    refused $n $((n == 1 ? 1 : 2)) "--out" "--out ''"
    refuse 1 "--out|path|long" "--out longer than a path may be" train $M $R --out "$(printf 'x%.0s' {1..5000})"
    mkdir -p "$T/taken/policy.bin" "$T/taken2/sampled.bin"
    for v in sft reward train "train --policy SP" "train --policy IP-2"; do
        n="$R --reward $D/reward.bin"
        case $v in sft) n="--data $D/labels.bin" ;; reward) n=$R ;; esac
        refuse 1 "taken/policy\.bin: exists and is not a regular file" "$v: policy.bin is a directory" $v $M $n --out "$T/taken" --epochs 1 --max-new-tokens 4
        begun && bad "$v: found after the work: $(tail -n 2 "$T/err")" || ok "$v: before any work"
    done
    mkdir -p "$T/pipe"
    mkfifo "$T/pipe/curves.png" "$T/pipe/scored.bin"
    refuse 1 "pipe/curves\.png: exists and is not a regular file" "train: curves.png is a pipe" train $M $R --out "$T/pipe"
    refuse 1 "pipe/scored\.bin: exists and is not a regular file" "score: scored.bin is a pipe" score --reward "$D/reward.bin" $R --out "$T/pipe"
    check "the pipe is still there" [ -p "$T/pipe/scored.bin" ]
    mkdir -p "$T/linked"
    ln -s "$D/policy61.bin" "$T/linked/policy.bin"
    works "policy.bin is a link to a file" sft $M --data "$D/labels.bin" --out "$T/linked" --epochs 1
    refuse 1 "sampled\.bin" "sampled.bin is a directory" sample $M $R --out "$T/taken2" --max-new-tokens 4
    begun && bad "sample: found after the work" || ok "sample: before any work"
    mkdir -p "$T/readonly"
    chmod 555 "$T/readonly"
    if as_user true 2>/dev/null && ! as_user touch "$T/readonly/x" 2>/dev/null; then
        for v in sft reward sample train eval score; do
            n="$M --data $D/ranked.bin"
            case $v in sft) n="$M --data $D/labels.bin" ;; score) n="--reward $D/reward.bin $R" ;; esac
            as_user timeout 60 "$BIN" $v $n --out "$T/readonly" --max-new-tokens 4 </dev/null >"$T/out" 2>"$T/err"
            refused $? 1 "readonly: cannot write there" "$v: --out without permission"
            begun && bad "$v: found after the work: $(tail -n 2 "$T/err")" || ok "$v: before any work"
        done
    else note "skipped: --out without permission (nothing is forbidden here)"; fi
    if command -v flock >/dev/null; then
        mkdir -p "$T/busy"
        echo "half of it" >"$T/busy/policy.bin.tmp"
        (flock -x 9; run train $M $R --epochs 1 --out "$T/busy") 9<"$T/busy/policy.bin.tmp"
        refused $? 1 "busy/policy\.bin: another run is writing here; write elsewhere" "two runs into one --out"
        [ "$(cat "$T/busy/policy.bin.tmp")" = "half of it" ] && ok "the other's file is unharmed" || bad "the other's file was changed"
        (flock -x 9; run train $M $R --epochs 1 --out "$T/busy") 9<"$T/busy"
        refused $? 1 "busy: another run is writing here; write elsewhere" "a run begun beside another in its --out"
        head -c 1000000 /dev/zero >"$T/busy/policy.bin.tmp" # as a run that was killed leaves it, but longer
        works "its lock goes with it" train $M $R --epochs 1 --out "$T/busy"
        works "what it left half-written too" score --model "$T/busy/policy.bin" $R
    else note "skipped: two runs into one --out (no flock)"; fi
    [ "$(cat "$T/file")" = "a file" ] && ok "the file in the way is unharmed" || bad "the file in the way was changed"

    mkdir -p "$T/full"
    cp "$D/policy61.bin" "$T/full/policy.bin"
    (ulimit -f 16; ulimit -c 0; run train $M $R --out "$T/full" --epochs 1)
    refused $? 1 "policy\.bin" "file size limit at policy.bin"
    if [ -x dev/convert ] && [ "$BIN" = "$PWD/train_rrhf" ]; then # its JSON is longer than the file it reads
        (ulimit -f 1; ulimit -c 0; BIN=$PWD/dev/convert run jsonl "$D/queries.bin" "$T/full/queries.jsonl" --tokenizer "$D/tokenizer.bin")
        refused $? 1 "queries\.jsonl: cannot write" "file size limit at dev/convert's output"
    fi
    (ulimit -f 60; ulimit -c 0; run train $M $R --out "$T/stateless" --epochs 2 --batch 5 --steps 2)
    refused $? 1 "state\.bin" "file size limit at state.bin"
    works "policy.bin came before it" score --model "$T/stateless/policy.bin" $R
    [ "$(ls "$T/stateless" | tr '\n' ' ')" = "log.csv policy.bin " ] && ok "nothing else was left" || bad "left $(ls "$T/stateless" | tr '\n' ' ')"
    (ulimit -f 1; ulimit -c 0; run sample $M $R --out "$T/full" --max-new-tokens 8)
    refused $? 1 "sampled\.bin" "file size limit at sampled.bin"
    (ulimit -f 1; ulimit -c 0; run score --reward "$D/reward.bin" $R --out "$T/full")
    refused $? 1 "scored\.bin" "file size limit at scored.bin"
    check "the old policy.bin is unharmed, nothing else was left: $(ls "$T/full" | tr '\n' ' ')" same "$D/policy61.bin" "$T/full/policy.bin"
    [ "$(ls "$T/full")" = policy.bin ] && ok "no file under its final name, no .tmp" || bad "left behind: $(ls "$T/full" | tr '\n' ' ')"
    if [ -e /dev/full ]; then
        for v in score eval --help; do
            timeout 60 "$BIN" $v $([ $v = --help ] || echo $M $R --out "$T/of" --max-new-tokens 4) >/dev/full 2>"$T/err"
            refused $? 1 "stdout" "$v: stdout is full"
        done
    else note "skipped: full stdout (no /dev/full)"; fi
    [ -z "$(ls -A "$O" 2>/dev/null)" ] && ok "none of the refused runs left a file in --out" || bad "refused runs left $(ls -A "$O" | tr '\n' ' ')"

    # numbers that blow up: refused, or a policy that can be read again
    for v in "--lr 1000 --weight-decay 1000 --steps 2" "--lr 1000 --weight-decay 1000" "--eps 0 --steps 1" "--eps 0 --steps 2" "--eps 0"; do
        rm -rf "$T/blow"
        run train $M $R --batch 1 --epochs 10 --schedule constant --warmup 0 --steps 10 $v --threads 1 --out "$T/blow"
        n=$?
        if [ $n -eq 0 ]; then works "train $v: its policy.bin is readable" score --model "$T/blow/policy.bin" $R
        else refused $n $((n == 2 ? 2 : 1)) "NaN|nan|inf|finite|--eps" "train $v"; [ ! -e "$T/blow/policy.bin" ] || bad "train $v: left a policy.bin"; fi
    done

    # a model whose activations are no numbers, though its parameters are: its last LayerNorm's weights are the largest
    v=""
    for n in {0..15}; do v+=" f32 -$((128 - 4 * n)) 3e38"; done
    edit "$D/policy.bin" "$T/nan.bin" $v
    for v in "S" "S --temperature 0" "S --top-k 5" "S --top-p 0.9" B "D --num-beams 4"; do
        refuse 1 "NaN: query 0: the model's logits are no numbers" "sample --policy $v from a model without logits" sample --model "$T/nan.bin" $R --policy $v --max-new-tokens 4 --out "$T/nan"
    done
    [ -z "$(ls "$T/nan")" ] && ok "nothing is left of them" || bad "they left $(ls "$T/nan")"

    # models that do not suit each other or the data
    for v in policy reward; do # a context of 1
        edit "$D/$v.bin" "$T/short-$v.bin" h 2 1 cut $((1024 + 4 * 64 * 16))
        dd if="$D/$v.bin" of="$T/short-$v.bin" bs=1 skip=$((1024 + 4 * (64 + 24) * 16 - 4 * 16)) seek=$((1024 + 4 * 64 * 16)) conv=notrunc 2>"$T/said"
    done
    refuse 1 "stream\.bin: a token stream, but the model's context is 1" "a stream for a model of context 1" sft --model "$T/short-policy.bin" --data "$D/stream.bin" --out "$O"
    edit "$D/reward.bin" "$T/other.bin" h 3 61
    refuse 1 "--reward $T/other\.bin: vocabulary 61, the policy has 60" "train, a reward model of another vocabulary" train $M $R --policy S --reward "$T/other.bin" --max-new-tokens 4 --out "$O"
    refuse 1 "--reward $T/other\.bin: vocabulary 61, the policy has 60" "eval, a reward model of another vocabulary" eval $M $R --reward "$T/other.bin" --max-new-tokens 4 --out "$O"
    for v in perplexity reference; do
        refuse 1 "--$v $T/short-policy\.bin: context 1, but queries have up to [0-9]* tokens and completions 4" "eval, a shorter --$v" eval $M $R --$v "$T/short-policy.bin" --max-new-tokens 4 --out "$O"
    done
    n="--reward $T/short-reward\.bin: context 1, but queries have up to [0-9]* tokens and completions 4"
    refuse 1 "$n" "eval, a shorter reward model" eval $M $R --reward "$T/short-reward.bin" --max-new-tokens 4 --out "$O"
    for v in S OP-4 IP-2 "P --eval-data $D/held.bin"; do # before anything is drawn
        refuse 1 "$n" "train, a shorter reward model, policy $v" train $M $R --policy $v --reward "$T/short-reward.bin" --max-new-tokens 4 --out "$O"
        refuse 1 "--model $D/policy\.bin: context 24, but queries have up to [0-9]* tokens and completions 24" "train, completions too long, policy $v" train $M $R --policy $v --reward "$D/reward.bin" --max-new-tokens 24 --out "$O"
    done
    for v in sample eval "train --policy S --reward $D/reward.bin"; do
        refuse 2 "--stop: needs --tokenizer" "$v --stop without --tokenizer" $v $M $R --stop a --max-new-tokens 4 --out "$O"
    done

    # a run that will replace what it begins with says so
    mkdir -p "$T/own" && cp "$D/policy.bin" "$D/ranked.bin" "$T/own/" && mv "$T/own/ranked.bin" "$T/own/scored.bin"
    works "a run on its own start" train --model "$T/own/../own/policy.bin" $R --epochs 1 --out "$T/own"
    grep -q "^note: $T/own/policy.bin is this run's --model and will be replaced" "$T/err" && ok "it says that --model is replaced" || bad "it does not say that --model is replaced"
    works "a run on its own data" train $M --data "$T/own/scored.bin" --policy S --reward "$D/reward.bin" --max-new-tokens 4 --epochs 1 --out "$T/own"
    grep -q "^note: $T/own/scored.bin is this run's --data and will be replaced" "$T/err" && ok "it says that --data is replaced" || bad "it does not say that --data is replaced"

    # a damaged state.bin
    rm -rf "$T/st"
    works "a run to resume" train $M $R --batch 4 --epochs 2 --steps 3 --threads 1 --out "$T/st"
    mkdir -p "$T/st2"
    n=$(od -An -tu4 -j8 -N4 "$T/st/state.bin" | tr -d ' ') # bytes of settings; the log of 72 bytes a row follows them
    while IFS='|' read -r kind v; do
        edit "$T/st/state.bin" "$T/st2/state.bin" $v
        refuse 1 "$T/st2|state\.bin" "state.bin, $kind" train $M $R --batch 4 --epochs 2 --threads 1 --resume "$T/st2" --out "$O"
    done <<END
empty|cut 0
half a header|cut 700
a header only|cut 1024
cut in its settings|cut 1100
cut in its log|cut $((1024 + n + 80))
cut in half|cut 50000
1 byte short|cut -1
1 byte too long|pad 1
wrong magic|h 0 5
version 9|h 1 9
settings' length -1|h 2 -1
settings' length 2147483647|h 2 2147483647
settings' length 10|h 2 10
log rows -1|h 3 -1
log rows 2147483647|h 3 2147483647
log rows 2|h 3 2
a step of -1e300|u8 $((1024 + n + 2 * 72 + 7)) 254 u8 $((1024 + n + 2 * 72 + 6)) 255
a step of 0|i32 $((1024 + n + 2 * 72)) 0 i32 $((1024 + n + 2 * 72 + 4)) 0
a NaN parameter|f32 $((1024 + n + 3 * 72 + 400)) nan
an infinite moment|f32 -8 inf
a negative second moment|f32 -8 -1
a loss of NaN|u8 $((1024 + n + 16 + 7)) 127 u8 $((1024 + n + 16 + 6)) 248
END
    { head -c $((1024 + n + 3 * 72)) "$T/st/state.bin"
        for v in 10 14 18 1c 20 22 24 26 28; do printf "\0\0\0\0\0\0\x$v\x40"; head -c 64 /dev/zero; done # steps 4 to 12
        tail -c +$((1024 + n + 3 * 72 + 1)) "$T/st/state.bin"; } >"$T/st/longer"
    edit "$T/st/longer" "$T/st2/state.bin" h 3 12
    refuse 1 "state\.bin: 12 steps are done of 8" "state.bin, more steps than there are" train $M $R --batch 4 --epochs 2 --threads 1 --resume "$T/st2" --out "$O"
    [ -z "$(ls -A "$O" 2>/dev/null)" ] && ok "and none of those left a file in --out" || bad "refused resumes left $(ls -A "$O" | tr '\n' ' ')"
    echo x >"$T/st2/state.bin"
    refuse 1 "state\.bin" "state.bin is text" train $M $R --batch 4 --epochs 2 --threads 1 --resume "$T/st2" --out "$O"
    refuse 1 "policy\.bin" "--resume is a file" train $M $R --resume "$D/policy.bin" --out "$O"
}

disk_full() { # a file system that holds one checkpoint, and not its successor beside it
    local D=$T/d rc
    mkdir -p "$T/tmpfs"
    if ! mount -t tmpfs -o size=192k tmpfs "$T/tmpfs" 2>/dev/null; then note "skipped: full disk (cannot mount a tmpfs)"; return; fi
    run train --model "$D/policy.bin" --data "$D/ranked.bin" --batch 4 --epochs 4 --checkpoint-every 3 --threads 1 --out "$T/tmpfs"
    rc=$?
    refused $rc 1 "$T/tmpfs" "full disk at the second checkpoint"
    [ -z "$(ls "$T/tmpfs" | grep tmp)" ] && ok "no .tmp left on the full disk" || bad "left $(ls "$T/tmpfs" | tr '\n' ' ')"
    works "the first checkpoint's policy.bin is whole" score --model "$T/tmpfs/policy.bin" --data "$D/ranked.bin"
    works "resume from the full disk's state.bin" train --model "$D/policy.bin" --data "$D/ranked.bin" --batch 4 --epochs 4 --threads 1 --resume "$T/tmpfs" --out "$T/after_full"
    works "the same run with room" train --model "$D/policy.bin" --data "$D/ranked.bin" --batch 4 --epochs 4 --threads 1 --out "$T/with_room"
    check "their policies are equal" same "$T/after_full/policy.bin" "$T/with_room/policy.bin"
    dd if=/dev/zero of="$T/tmpfs/fill" bs=4096 2>/dev/null
    cp "$T/tmpfs/policy.bin" "$T/before.bin"
    run sample --model "$D/policy.bin" --data "$D/ranked.bin" --max-new-tokens 8 --num-return 64 --threads 1 --out "$T/tmpfs"
    refused $? 1 "sampled\.bin" "sample on a full disk"
    [ -e "$T/tmpfs/sampled.bin" ] && bad "sampled.bin on the full disk" || ok "no sampled.bin on the full disk"
    check "policy.bin on it is unharmed" same "$T/before.bin" "$T/tmpfs/policy.bin"
    umount "$T/tmpfs"
}

# ----------------------------------------------------------------------------
# 2 checkpoints

header() { od -An -td4 -N"$((4 * $2))" "$1" | tr -s ' \n' ' '; } # FILE N: its first N int32

checkpoints() {
    local D=$T/d v
    for v in bf16 bf16_as_fp32; do
        run score --model "$D/$v.bin" --data "$D/ranked.bin"
        mv "$T/out" "$T/$v.scores"
        works "train from $v" train --model "$D/$v.bin" --data "$D/ranked.bin" --batch 5 --epochs 1 --out "$T/$v"
    done
    check "bfloat16 scores as the same values in float32" same "$T/bf16.scores" "$T/bf16_as_fp32.scores"
    check "and trains as they do" same "$T/bf16/policy.bin" "$T/bf16_as_fp32/policy.bin"
    [ -s "$T/bf16.scores" ] && ok "there are scores" || bad "no scores"
    v=$(header "$T/bf16/policy.bin" 10)
    [ "$v" = " 20240326 3 24 60 2 2 16 64 0 0" ] || [ "$v" = " 20240326 3 24 60 2 2 16 64 0 0 " ] && ok "policy.bin: magic, version 3, sizes:$v" || bad "policy.bin's header is$v"
    [ "$(wc -c <"$T/bf16/policy.bin")" -eq "$(wc -c <"$D/policy.bin")" ] && ok "policy.bin has a float32 checkpoint's size" || bad "policy.bin's size"
    works "a reward model from bfloat16" reward --model "$D/bf16.bin" --data "$D/labels.bin" --batch 5 --epochs 1 --out "$T/bf16r"
    v=$(header "$T/bf16r/policy.bin" 9)
    [[ $v == " 20240326 3 24 60 2 2 16 64 1"* ]] && ok "reward model: header[8] = 1" || bad "the reward model's header is$v"
    [ "$(wc -c <"$T/bf16r/policy.bin")" -eq $(($(wc -c <"$D/policy.bin") + 4 * 17)) ] && ok "reward model: C + 1 floats more" || bad "the reward model's size"
}

# ----------------------------------------------------------------------------
# 3 resume

finish() { # WHAT DIR: what a resumed run must share with the uninterrupted one
    check "$1: policy.bin is the uninterrupted run's" same "$T/whole/policy.bin" "$2/policy.bin"
    check "$1: so is log.csv but for the times" same_log "$T/whole/log.csv" "$2/log.csv"
}

stop_at_state() { # SIGNAL DIR ARGS...: runs, and sends the signal once a checkpoint is there
    local signal=$1 dir=$2 pid
    shift 2
    "$BIN" "$@" --out "$dir" >"$T/out" 2>"$T/err" </dev/null &
    pid=$!
    while kill -0 $pid 2>/dev/null && [ ! -e "$dir/state.bin" ]; do sleep 0.005; done
    kill -$signal $pid 2>/dev/null
    wait $pid 2>/dev/null
}

rows() { tail -n +2 "$1" | wc -l; }

resume() {
    local D=$T/d rc n A v
    A="train --model $D/policy.bin --data $D/ranked.bin --batch 3 --epochs 400 --lr 1e-3 --grad-clip 1 --weight-decay 0.01 --threads 1"
    works "an uninterrupted run of 2,000 steps" $A --out "$T/whole"
    [ "$(rows "$T/whole/log.csv")" -eq 2000 ] && ok "2,000 rows in log.csv" || bad "$(rows "$T/whole/log.csv") rows in log.csv"

    works "stopped by --steps 7" $A --steps 7 --out "$T/a"
    [ "$(rows "$T/a/log.csv")" -eq 7 ] && ok "7 rows" || bad "$(rows "$T/a/log.csv") rows"
    works "again, to --steps 1001, from there to elsewhere" $A --resume "$T/a" --steps 1001 --out "$T/a2"
    [ -e "$T/a2/state.bin" ] && ok "a state.bin there" || bad "no state.bin there"
    works "resumed" $A --resume "$T/a2"
    grep -q "going on from step 1001 of 2000" "$T/err" && ok "says from where" || bad "resumed: does not say from where"
    finish "--steps" "$T/a2"
    [ ! -e "$T/a2/state.bin" ] && ok "finished: no state.bin is left" || bad "finished: a state.bin is left"
    works "to where it stands already" $A --resume "$T/a" --steps 7
    grep -q "nothing to do: $T/a stands at step 7 of 2000" "$T/err" && ok "says that nothing is to do" || bad "says $(tail -n 1 "$T/err")"
    refuse 1 "--resume $T/a2: that run has finished" "resumed to elsewhere when finished" $A --resume "$T/a2" --out "$T/x"

    for v in 1 2 3; do # until the signal arrived in the middle
        rm -rf "$T/b"
        stop_at_state INT "$T/b" $A --checkpoint-every 200
        rc=$?
        n=$(rows "$T/b/log.csv")
        [ "$n" -lt 2000 ] && break
    done
    [ $rc -eq 1 ] && [ "$n" -ge 200 ] && [ "$n" -lt 2000 ] && ok "Ctrl-C: exit code 1 after $n steps" || bad "Ctrl-C: exit code $rc after $n steps"
    grep -q -- "--resume $T/b" "$T/err" && ok "Ctrl-C: says how to go on" || bad "Ctrl-C: says $(tail -n 1 "$T/err")"
    grep -q "^finishing this step, then saving" "$T/err" && ok "Ctrl-C: answers at once" || bad "Ctrl-C: no answer"
    grep -q "^error" "$T/err" && bad "Ctrl-C: $(grep ^error "$T/err")" || ok "Ctrl-C: no error"
    works "Ctrl-C: its policy.bin is whole" score --model "$T/b/policy.bin" --data "$D/ranked.bin"
    works "Ctrl-C: resumed" $A --resume "$T/b"
    finish "Ctrl-C" "$T/b"

    for v in 1 2 3; do
        rm -rf "$T/c"
        stop_at_state KILL "$T/c" $A --checkpoint-every 200
        rc=$?
        [ $rc -eq 137 ] && break
    done
    [ $rc -eq 137 ] && ok "kill -9 after a checkpoint" || bad "kill -9: exit code $rc"
    works "kill -9: resumed" $A --resume "$T/c"
    finish "kill -9" "$T/c"
    cp "$T/c/log.csv" "$T/c.csv"
    works "resumed once more: nothing to do, exit 0" $A --resume "$T/c" --checkpoint-every 200
    grep -q "nothing to do: $T/c stands at step 2000 of 2000" "$T/err" && ok "says so" || bad "says $(tail -n 1 "$T/err")"
    check "and nothing is done: log.csv with its times" same "$T/c.csv" "$T/c/log.csv"
    refuse 1 "begun with lr 0.001, this is lr 0.002;" "finished, resumed with another --lr" $A --lr 2e-3 --resume "$T/c"
    mv "$T/c/policy.bin" "$T/moved"
    refuse 1 "that run has finished, but its policy\.bin is gone" "finished, resumed without its policy.bin" $A --resume "$T/c"
    mv "$T/moved" "$T/c/policy.bin"
    works "a new run over the finished one, stopped" $A --lr 2e-3 --steps 3 --out "$T/c"
    works "resumed, as the new one" $A --lr 2e-3 --steps 5 --resume "$T/c"

    # other settings are refused, by name
    local B="train --model $D/policy.bin --data $D/ranked.bin --resume $T/a --out $T/x"
    for v in "--lr 2e-3" "--batch 4" "--epochs 3" "--seed 2" "--grad-clip 2" "--weight-decay 0" "--warmup 0.5" "--schedule cosine" \
             "--beta1 0.8" "--beta2 0.99" "--eps 1e-6" "--shuffle 0" "--rank-weight 2" "--ft-weight 2" "--length-penalty 0.5" \
             "--margin 0.1" "--ft-reduction mean" "--micro-batch 2"; do
        set -- $v
        refuse 1 "${1#--}" "resume with $v" $B --batch 3 --epochs 400 --lr 1e-3 --grad-clip 1 --weight-decay 0.01 --threads 1 $v
    done
    refuse 1 "data|queries|responses" "resume with other data" $A --data "$D/held.bin" --resume "$T/a" --out "$T/x"
    edit "$D/ranked.bin" "$T/other.bin" f32 1036 0.5
    refuse 1 "data|responses" "resume with another score in the data" $A --data "$T/other.bin" --resume "$T/a" --out "$T/x"
    for v in -2 1056; do # of a response, of a query
        edit "$D/ranked.bin" "$T/other.bin" u16 $v 3
        refuse 1 "data|responses" "resume with another token in the data" $A --data "$T/other.bin" --resume "$T/a" --out "$T/x"
    done
    refuse 1 "data|responses" "resume with shorter responses" $A --max-response-tokens 2 --resume "$T/a" --out "$T/x"
    edit "$D/policy.bin" "$T/other.bin" f32 4000 0.5
    refuse 1 "begun with start #[0-9a-f]*, this is start #" "resume with another start" $A --model "$T/other.bin" --resume "$T/a" --out "$T/x"
    [ -e "$T/x/policy.bin" ] && bad "a refused resume wrote policy.bin" || ok "a refused resume writes nothing"

    works "sft from random weights, stopped" sft --data "$D/labels.bin" --layers 1 --heads 2 --channels 8 --context 24 --batch 4 --steps 2 --out "$T/rnd"
    works "sft from random weights, resumed" sft --data "$D/labels.bin" --layers 1 --heads 2 --channels 8 --context 24 --batch 4 --resume "$T/rnd"

    # the other verbs, and a held-out reward curve
    for v in "sft --data $D/stream.bin" "reward --data $D/labels.bin" "reward --data $D/ranked.bin"; do
        A="$v --model $D/policy.bin --batch 4 --epochs 4 --threads 2"
        works "$v, uninterrupted" $A --out "$T/whole"
        rm -rf "$T/part"
        works "$v, stopped" $A --out "$T/part" --steps 3
        works "$v, resumed" $A --resume "$T/part"
        finish "${v%% *}" "$T/part"
    done
    A="train --model $D/policy.bin --data $D/ranked.bin --reward $D/reward.bin --eval-data $D/held.bin --eval-every 4
       --tokenizer $D/tokenizer.bin --max-new-tokens 4 --batch 4 --epochs 4 --threads 2 --lr 1e-3"
    rm -rf "$T/whole" "$T/part"
    works "with a reward curve" $A --out "$T/whole"
    works "with a reward curve, stopped" $A --steps 5 --out "$T/part"
    works "with a reward curve, gone on and killed later" $A --resume "$T/part" --steps 13 --out "$T/late"
    while IFS='|' read -r kind v; do
        printf 'step,reward,stderr,queries\n%b' "$v" >"$T/part/reward.csv"
        refuse 1 "part/reward\.csv:$kind" "resume with such a reward.csv" $A --resume "$T/part"
    done <<'END'
3: '0,0\.5|2,0.5,0.1,2\n0,0.5,0.1,2\n
2: '0\.5,|0.5,0.5,0.1,2\n
2: '1e300,|1e300,0.5,0.1,2\n
2: '0,nan,|0,nan,0.1,2\n
2: 'none|none\n
END
    cp "$T/late/reward.csv" "$T/part/reward.csv" # as kill -9 leaves it: points later than the state
    works "with a reward curve, resumed" $A --resume "$T/part"
    finish "reward curve" "$T/part"
    # --steps 5 and 13 end a run, and the end is a point of the curve too
    check "reward.csv is the uninterrupted run's" same "$T/part/reward.csv" "$T/whole/reward.csv"
    rm -rf "$T/far"
    works "resumed to elsewhere" $A --resume "$T/late" --out "$T/far"
    check "reward.csv moves with it" same "$T/far/reward.csv" "$T/whole/reward.csv"

    # Ctrl-C before the first step: the reward of the curve's first point sends it
    printf '#!/bin/sh\nkill -INT $PPID\nwhile read -r line; do echo 1; done\n' >"$T/now.sh"
    printf '#!/bin/sh\nwhile read -r line; do echo 1; done\n' >"$T/never.sh"
    chmod +x "$T/now.sh" "$T/never.sh"
    A="train --model $D/policy.bin --data $D/ranked.bin --eval-data $D/held.bin --eval-every 4
       --tokenizer $D/tokenizer.bin --max-new-tokens 4 --batch 4 --epochs 4 --threads 2 --lr 1e-3"
    printf '#!/bin/sh\nread -r line; kill -INT $PPID; sleep 0.2; echo 1; while read -r line; do echo 1; done\n' >"$T/now.sh"
    rm -rf "$T/early" "$T/whole"
    works "the same with a command for a reward" $A --reward "cmd:exec $T/never.sh" --out "$T/whole"
    # without a tokenizer there would be no samples before the loop; eval-data's are scored then, when Ctrl-C still kills
    printf '#!/bin/sh\nn=0; while read -r line; do n=$((n + 1)); [ $n -eq 6 ] && { kill -INT $PPID; sleep 0.1; }; echo 1; done\n' >"$T/now.sh"
    run $A --reward "cmd:exec $T/now.sh" --out "$T/early"
    rc=$?
    [ $rc -eq 1 ] && [ "$(rows "$T/early/log.csv")" -eq 0 ] && ok "Ctrl-C before the first step: exit code 1, no rows" || bad "Ctrl-C before the first step: exit code $rc, $(rows "$T/early/log.csv") rows"
    works "Ctrl-C before the first step: resumed" $A --reward "cmd:exec $T/never.sh" --resume "$T/early"
    finish "Ctrl-C before the first step" "$T/early"
    check "its reward.csv too" same "$T/whole/reward.csv" "$T/early/reward.csv"

    # a command that hangs when Ctrl-C comes: its silence is not waited for
    printf '#!/bin/sh\nn=0; while read -r line; do n=$((n + 1)); [ $n -eq 6 ] && { kill -INT $PPID; exec sleep 60; }; echo 1; done\n' >"$T/hang.sh"
    chmod +x "$T/hang.sh"
    rc=$SECONDS
    refuse 1 "--reward cmd:.*interrupted, and no answer to response 0 within 15 s" "Ctrl-C while a silent command is waited for" $A --reward "cmd:exec $T/hang.sh" --out "$T/hung"
    [ $((SECONDS - rc)) -lt 40 ] && ok "after $((SECONDS - rc)) s" || bad "after $((SECONDS - rc)) s"
    grep -q "^note: --reward cmd:.*waiting at most 15 s more" "$T/err" && ok "and says so meanwhile" || bad "it does not say that it waits"

    # OP-k: the window of responses belongs to the state
    A="train --policy OP-4 --draw sample --model $D/policy.bin --data $D/ranked.bin --reward $D/reward.bin --max-new-tokens 4
       --num-return 2 --batch 4 --epochs 5 --threads 2 --lr 1e-3"
    rm -rf "$T/whole" "$T/part" "$T/late"
    works "OP-4, uninterrupted" $A --out "$T/whole"
    works "OP-4, stopped within a window" $A --steps 6 --out "$T/part"
    cp -r "$T/part" "$T/killed"
    edit "$T/part/state.bin" "$T/odd.bin" u16 -2 59999
    mkdir -p "$T/odd" && mv "$T/odd.bin" "$T/odd/state.bin"
    refuse 1 "state\.bin: .*token 59999" "OP-4, a damaged window" $A --resume "$T/odd"
    edit "$T/part/state.bin" "$T/odd/state.bin" cut -2
    refuse 1 "state\.bin: .*truncated" "OP-4, a window cut short" $A --resume "$T/odd"
    works "OP-4, gone on to the next window" $A --resume "$T/part" --steps 9 --out "$T/late"
    works "OP-4, carried elsewhere within its window" $A --resume "$T/part" --steps 6 --out "$T/carried"
    works "OP-4, resumed there, by another name of the directory" $A --resume "$T/carried/" --out "$T/carried"
    finish "OP-4, carried elsewhere" "$T/carried"
    [ ! -e "$T/carried/state.bin" ] && ok "OP-4, finished: no state" || bad "OP-4, finished: left $(ls "$T/carried" | tr '\n' ' ')"
    works "OP-4, resumed" $A --resume "$T/part"
    finish "OP-4" "$T/part"
    works "OP-1000000 and a batch of 1000000 take the room of the run" ${A/OP-4/OP-1000000} --batch 1000000 --out "$T/whole-op"
    # kill -9 at step 9, the last checkpoint at step 6: the state of one, every other file of the other
    for v in "$T/late"/*; do case $v in */state.bin) ;; *) cp "$v" "$T/killed/" ;; esac; done
    works "OP-4, killed in a later window than its checkpoint's, resumed" $A --resume "$T/killed"
    finish "OP-4 after kill -9" "$T/killed"

    # IP-n: rounds, each in its own directory
    A="${A/OP-4/IP-2}"
    rm -rf "$T/whole"
    works "IP-2, uninterrupted" $A --out "$T/whole"
    mkdir "$T/ip"
    cp -r "$T/whole/round-1" "$T/ip"
    sed -i "s/^1,/1.0,/" "$T/ip/round-1/log.csv" # a mark that would go if round 1 were run again
    works "IP-2, killed between its rounds, resumed" $A --resume "$T/ip"
    check "IP-2: policy.bin is the uninterrupted run's" same "$T/whole/policy.bin" "$T/ip/policy.bin"
    grep -q "^1\.0," "$T/ip/round-1/log.csv" && ok "IP-2: the finished round was not run again" || bad "IP-2: the finished round was run again"
    for v in "--lr 2e-3" "--temperature 0.5" "--num-return 3" "--stop a"; do # nor is its policy taken for another run's
        set -- $v
        refuse 1 "begun with ${1#--} .*this is ${1#--} " "resume IP-2 with $v" $A --resume "$T/ip" --tokenizer "$D/tokenizer.bin" $v
    done
    edit "$D/ranked.bin" "$T/other.bin" u16 -2 3
    refuse 1 "begun with queries" "resume IP-2 with other queries" $A --resume "$T/ip" --data "$T/other.bin"
    edit "$D/reward.bin" "$T/reward-other.bin" f32 1024 0.5
    edit "$D/tokenizer.bin" "$T/tokenizer-other.bin" h 3 5
    refuse 1 "begun with reward #" "resume IP-2 with another reward model" $A --resume "$T/ip" --reward "$T/reward-other.bin"
    refuse 1 "begun with end-of-text 59, this is end-of-text 5;" "resume IP-2 with another end-of-text" $A --resume "$T/ip" --tokenizer "$T/tokenizer-other.bin"
    refuse 1 "--resume $T/none: No such file" "resume IP-2 from nothing" $A --resume "$T/none"
    [ ! -e "$T/none" ] && ok "nothing was made of it" || bad "resuming from nothing made $T/none"
    refuse 1 "--resume $T/part: no round-1" "resume IP-2 from a run without rounds" $A --resume "$T/part"
    refuse 1 "--policy IP-1: .* has a round-2 already" "resume IP-2 as IP-1" ${A/IP-2/IP-1} --resume "$T/ip"
    refuse 1 "--model $T/ip/round-2/policy\.bin: this run would remove it first" "IP-2 from a model that it replaces" $A --model "$T/ip/round-2/policy.bin" --out "$T/ip"
    [ -s "$T/ip/round-1/policy.bin" ] && [ -s "$T/ip/round-2/policy.bin" ] && ok "all is still there" || bad "something is gone"
    works "resume IP-2 by another name of its directory" $A --resume "$T/ip" --out "$T/ip/"
    refuse 2 "resumed in place" "resume IP-2 to elsewhere" $A --resume "$T/ip" --out "$T/x"
    # a fresh run over an older one: what is there after a kill must not pass for its own
    cp -r "$T/whole" "$T/over"
    refuse 1 "--reward cmd:" "IP-2 with another rate over the old one, its reward ends" $A --lr 2e-3 --tokenizer "$D/tokenizer.bin" --reward "cmd:exit 3" --out "$T/over"
    works "resumed" $A --lr 2e-3 --resume "$T/over"
    works "the same, uninterrupted" $A --lr 2e-3 --out "$T/over2"
    check "IP-2 over an older one: the new rate's policy.bin" same "$T/over/policy.bin" "$T/over2/policy.bin"

    # Ctrl-C while the last step of round 1 is evaluated: round 2 does not begin
    v="$A --tokenizer $D/tokenizer.bin --eval-data $D/held.bin --eval-every 1000"
    printf '#!/bin/sh\nwhile read -r line; do\n  if [ ! -e %s ] && [ "$(grep -c , %s 2>/dev/null)" = 2 ]; then : >%s; kill -INT $PPID; sleep 0.2; fi\n  echo 1\ndone\n' \
        "$T/sent" "$T/last/round-1/reward.csv" "$T/sent" >"$T/last.sh"
    chmod +x "$T/last.sh"
    works "IP-2 with a command for a reward" $v --reward "cmd:exec $T/never.sh" --out "$T/last2"
    run $v --reward "cmd:exec $T/last.sh" --out "$T/last"
    rc=$?
    [ $rc -eq 1 ] && [ -e "$T/sent" ] && [ -e "$T/last/round-1/settings.txt" ] && [ ! -e "$T/last/round-2" ] && ok "Ctrl-C in the last step of round 1: exit code 1, no round 2" || bad "Ctrl-C in the last step of round 1: exit code $rc, $(ls "$T/last" | tr '\n' ' ')"
    grep -q "^interrupted.* --resume $T/last$" "$T/err" && ok "says how to go on" || bad "says $(tail -n 1 "$T/err")"
    works "Ctrl-C in the last step of round 1: resumed" $v --reward "cmd:exec $T/never.sh" --resume "$T/last"
    check "its policy.bin is the uninterrupted run's" same "$T/last/policy.bin" "$T/last2/policy.bin"
    # in a run's last step
    rm "$T/sent"
    sed -i "s#last/round-1#last3#" "$T/last.sh"
    run ${v/--policy IP-2/} --reward "cmd:exec $T/last.sh" --out "$T/last3"
    rc=$?
    [ $rc -eq 1 ] && [ -e "$T/last3/settings.txt" ] && grep -q "^interrupted; the run in $T/last3 is finished$" "$T/err" && ok "Ctrl-C in the last step: exit code 1, says that the run is finished" || bad "Ctrl-C in the last step: exit code $rc, $(tail -n 1 "$T/err")"
    works "IP-2 over that run, whose settings are gone" $v --reward "cmd:exec $T/never.sh" --out "$T/last3"
    [ ! -e "$T/last3/settings.txt" ] && ok "no settings.txt of another run" || bad "settings.txt of another run"

    # SP: the scored responses go elsewhere with the state
    v="${A/IP-2/SP}"
    works "SP, uninterrupted" $v --out "$T/sp"
    works "SP, stopped" $v --steps 3 --out "$T/sp1"
    works "SP, carried elsewhere" $v --steps 5 --resume "$T/sp1" --out "$T/sp2"
    works "SP, resumed there" $v --resume "$T/sp2"
    check "SP: the uninterrupted run's policy.bin" same "$T/sp/policy.bin" "$T/sp2/policy.bin"
    refuse 1 "temperature" "resume SP with another temperature" $v --resume "$T/sp1" --temperature 0.5 --out "$T/x"

    A="${A/IP-2/OP-4} --tokenizer $D/tokenizer.bin"
    n="a long stop text of more than forty characters, a comma and"
    works "OP-4 with stop texts" $A --stop 'a,b' --stop "$n one" --steps 6 --out "$T/stop"
    refuse 1 "begun with stop" "resume with another --stop after a comma" $A --stop 'a,c' --stop "$n one" --resume "$T/stop" --out "$T/x"
    refuse 1 "begun with stop" "resume with another end of a long --stop" $A --stop 'a,b' --stop "$n two" --resume "$T/stop" --out "$T/x"
    works "resume with the same stop texts" $A --stop 'a,b' --stop "$n one" --resume "$T/stop"
    for v in "--num-return 3" "--temperature 0.5" "--max-new-tokens 5" "--top-k 3" "--draw beam" "--num-beams 5" "--num-beam-groups 2" \
             "--diversity-penalty 2" "--top-p 0.5" "--kl-coef 1"; do
        set -- $v
        refuse 1 "begun with ${1#--} .*this is ${1#--} " "resume OP-4 with $v" $A --resume "$T/late" --out "$T/x" $v
    done
    refuse 1 "begun with refresh 4, this is refresh 2;" "resume OP-4 as OP-2" ${A/OP-4/OP-2} --resume "$T/late" --out "$T/x"
    A="${A/OP-4 --draw sample/S}"
    works "S, stopped" $A --steps 3 --out "$T/own"
    refuse 1 "begun with own 0, this is own 1;" "resume S as SP" ${A/--policy S/--policy SP} --resume "$T/own" --out "$T/x"
}

# ----------------------------------------------------------------------------
# 4 same seed, same result

seeds() {
    local D=$T/d A S v
    A="train --model $D/policy.bin --data $D/ranked.bin --batch 3 --epochs 3 --lr 1e-3"
    S="sample --model $D/policy.bin --data $D/held.bin --num-return 3 --max-new-tokens 8"
    for v in 1 2; do
        works "train, run $v" $A --seed 7 --threads 2 --out "$T/s$v"
        works "sample, run $v" $S --seed 7 --threads 2 --out "$T/s$v"
    done
    check "same seed: the same policy.bin" same "$T/s1/policy.bin" "$T/s2/policy.bin"
    check "same seed: the same log" same_log "$T/s1/log.csv" "$T/s2/log.csv"
    check "same seed: the same sampled.bin" same "$T/s1/sampled.bin" "$T/s2/sampled.bin"
    works "train, another seed" $A --seed 8 --threads 2 --out "$T/s3"
    works "sample, another seed" $S --seed 8 --threads 2 --out "$T/s3"
    check "another seed: another policy.bin" differ "$T/s1/policy.bin" "$T/s3/policy.bin"
    check "another seed: another sampled.bin" differ "$T/s1/sampled.bin" "$T/s3/sampled.bin"
    works "sft from random weights" sft --data "$D/stream.bin" --tokenizer "$D/tokenizer.bin" --layers 1 --heads 2 --channels 8 --context 16 --steps 1 --out "$T/s1"
    cp "$T/s1/policy.bin" "$T/random.bin"
    works "sft from other random weights" sft --data "$D/stream.bin" --tokenizer "$D/tokenizer.bin" --layers 1 --heads 2 --channels 8 --context 16 --steps 1 --seed 2 --out "$T/s1"
    check "another seed: other weights" differ "$T/random.bin" "$T/s1/policy.bin"
}

threads() { # plain loops only
    local D=$T/d A S n
    "$BIN" score --model "$D/policy.bin" --data "$D/ranked.bin" 2>&1 >/dev/null </dev/null | grep -q "built in" || { note "skipped: --threads 1 against 2 (built with a BLAS)"; return; }
    run score --model "$D/policy.bin" --data "$D/ranked.bin"
    if grep -q ", 1 thread," "$T/err" && ! OMP_NUM_THREADS=2 "$BIN" score --model "$D/policy.bin" --data "$D/ranked.bin" 2>&1 >/dev/null </dev/null | grep -q ", 2 threads,"
    then note "skipped: --threads 1 against 2 (built without OpenMP)"; return; fi
    run score --model "$D/policy.bin" --data "$D/ranked.bin" --threads 3
    grep -q ", 3 threads," "$T/err" && ok "--threads 3: three threads" || bad "--threads 3: $(grep -m1 thread "$T/err")"
    A="train --model $D/policy.bin --data $D/ranked.bin --batch 7 --epochs 3 --lr 1e-3"
    S="sample --model $D/policy.bin --data $D/held.bin --num-return 3 --max-new-tokens 8"
    for n in 1 2; do
        works "plain loops, --threads $n: train" $A --threads $n --out "$T/t$n"
        works "plain loops, --threads $n: sample" $S --threads $n --out "$T/t$n"
        works "plain loops, --threads $n: reward" reward --model "$D/policy.bin" --data "$D/labels.bin" --batch 4 --threads $n --out "$T/t$n/r"
    done
    check "plain loops, 1 and 2 threads: the same policy.bin" same "$T/t1/policy.bin" "$T/t2/policy.bin"
    check "plain loops, 1 and 2 threads: the same log" same_log "$T/t1/log.csv" "$T/t2/log.csv"
    check "plain loops, 1 and 2 threads: the same sampled.bin" same "$T/t1/sampled.bin" "$T/t2/sampled.bin"
    check "plain loops, 1 and 2 threads: the same reward model" same "$T/t1/r/policy.bin" "$T/t2/r/policy.bin"
}

# ----------------------------------------------------------------------------
# 5 outputs

HEADER="step,epoch,loss,rank_loss,ft_loss,lr,grad_norm,ms,tokens_per_s"

log_is() { # WHAT LOG STEPS PER_EPOCH LR WARMUP SCHEDULE RANK_WEIGHT FT_WEIGHT
    local what=$1
    shift
    [ "$(head -n 1 "$1")" = "$HEADER" ] && ok "$what: log.csv's header" || bad "$what: log.csv's header is $(head -n 1 "$1")"
    if awk -F, -v steps="$2" -v per="$3" -v lr="$4" -v warm="$5" -v schedule="$6" -v wr="$7" -v wf="$8" '
        function off(a, b) { return a > b ? a - b : b - a }
        function abs(a) { return a < 0 ? -a : a }
        NR == 1 { next }
        {
            s = NR - 1
            if (NF != 9) { print "row " s ": " NF " columns"; exit 1 }
            if ($1 != s) { print "row " s ": step " $1; exit 1 }
            if ($2 != int((s - 1) / per) + 1) { print "row " s ": epoch " $2; exit 1 }
            if (off($3, wr * $4 + wf * $5) > 1e-6 * (abs($3) + 1e-6)) { print "row " s ": loss " $3 " is not " wr " x " $4 " + " wf " x " $5; exit 1 }
            up = warm * steps; up = up > int(up) + 1e-9 ? int(up) + 1 : int(up + 1e-9)
            left = steps > up ? (steps - s + 1) / (steps - up) : 0
            want = s <= up ? lr * s / up : schedule == "linear" ? lr * left : schedule == "cosine" ? lr * 0.5 * (1 - cos(3.141592653589793 * left)) : lr
            if (off($6, want) > 1e-6 * lr) { print "row " s ": lr " $6 ", expected " want; exit 1 }
            if (!($7 >= 0) || !($8 >= 0) || !($9 > 0)) { print "row " s ": norm, ms, tokens/s " $7 " " $8 " " $9; exit 1 }
        }
        END { if (NR - 1 != steps) { print NR - 1 " rows, expected " steps; exit 1 } }' "$1" >"$T/said"
    then ok "$what: $2 rows; epochs, loss, lr as they should be"; else bad "$what: $(head -n 1 "$T/said")"; fi
}

column() { cut -d, -f"$2" "$1" | sed -n "${3}p"; } # LOG COLUMN LINE

outputs() {
    local D=$T/d v n O=$T/out5 option value row A
    local M="--model $D/policy.bin" R="--data $D/ranked.bin" K="--tokenizer $D/tokenizer.bin"

    # train and its log
    for v in linear cosine constant; do
        works "train, $v" train $M $R --batch 3 --epochs 4 --lr 3e-4 --warmup 0.22 --schedule $v --rank-weight 2 --ft-weight 0.5 --out "$O/$v"
        log_is "train, $v" "$O/$v/log.csv" 20 5 3e-4 0.22 $v 2 0.5
    done
    works "train, no warm-up, margin" train $M $R --batch 13 --epochs 3 --warmup 0 --margin 0.3 --ft-reduction mean --length-penalty 0.5 --out "$O/m"
    log_is "train, no warm-up" "$O/m/log.csv" 3 1 2e-5 0 linear 1 1
    works "train, defaults" train $M $R --out "$O/def"
    v=$(awk -F, 'NR == 2 { printf "%.0f", $8 * $9 / 1000 }' "$O/def/log.csv")
    [ "$v" -gt 100 ] && [ "$v" -lt 500 ] && ok "log.csv: ms times tokens/s are the step's $v tokens, more or less" || bad "log.csv: ms times tokens/s are $v tokens"
    log_is "train, defaults (batch 64, 3 epochs, lr 2e-5)" "$O/def/log.csv" 3 1 2e-5 0.03 linear 1 1
    for v in 0 0.001; do works "train, --grad-clip $v" train $M $R --batch 13 --epochs 1 --shuffle 0 --grad-clip $v --eps 1 --lr 1 --out "$O/clip$v"; done
    n=$(column "$O/clip0/log.csv" 7 2)
    [ "$n" = "$(column "$O/clip0.001/log.csv" 7 2)" ] && ok "grad_norm is the one before clipping: $n" || bad "grad_norm $n, clipped $(column "$O/clip0.001/log.csv" 7 2)"
    check "clipping changes the step" differ "$O/clip0/policy.bin" "$O/clip0.001/policy.bin"
    for v in 1 2 5 13; do
        works "train, --micro-batch $v" train $M $R --batch 13 --epochs 2 --lr 1e-3 --micro-batch $v --out "$O/mb$v"
        [ $v = 1 ] && continue
        if awk -F, 'NR == FNR { for (i = 3; i <= 7; i++) a[FNR, i] = $i; next }
                    FNR > 1 { for (i = 3; i <= 7; i++) { e = a[FNR, i] - $i; if (e < 0) e = -e; w = $i < 0 ? -$i : $i; if (e > 1e-4 * w + 1e-7) { print "row " FNR - 1 " column " i ": " a[FNR, i] " against " $i; exit 1 } } }' \
            "$O/mb1/log.csv" "$O/mb$v/log.csv" >"$T/said"; then ok "--micro-batch $v as --micro-batch 1, within 1e-4"
        else bad "--micro-batch $v against 1: $(cat "$T/said")"; fi
    done
    works "train with a tokenizer" train $M $R $K --batch 4 --epochs 2 --max-new-tokens 6 --out "$O/t"
    for v in policy.bin log.csv samples.txt; do [ -s "$O/t/$v" ] && ok "train wrote $v" || bad "train wrote no $v"; done
    if grep -q "curves.png: not drawn" "$T/err"; then note "no curves.png (built without stb)"; else
        [ "$(od -An -tx1 -N8 "$O/t/curves.png" | tr -d ' ')" = 89504e470d0a1a0a ] && ok "curves.png is a PNG" || bad "curves.png is none"
    fi
    [ "$(grep -c '^--- query' "$O/t/samples.txt")" -eq 8 ] && [ "$(grep -c '^before:' "$O/t/samples.txt")" -eq 8 ] && [ "$(grep -c '^after:' "$O/t/samples.txt")" -eq 8 ] \
        && ok "samples.txt: 8 queries, before and after" || bad "samples.txt: $(grep -c '^---' "$O/t/samples.txt") queries"
    for v in 0 1e-1; do works "train, greedy samples, --lr $v" train $M $R $K --batch 4 --epochs 2 --max-new-tokens 6 --temperature 0 --lr $v --out "$O/greedy$v"; done
    texts() { sed -n "s/^$1 *//p" "$2/samples.txt"; } # WHICH DIR
    [ "$(texts before: "$O/greedy0")" = "$(texts after: "$O/greedy0")" ] && [ "$(texts before: "$O/greedy0")" = "$(texts before: "$O/greedy1e-1")" ] && \
        [ "$(texts after: "$O/greedy0")" != "$(texts after: "$O/greedy1e-1")" ] && ok "samples.txt: before is before, after is after" || bad "samples.txt: before and after"
    works "the new policy.bin can be trained on" train --model "$O/t/policy.bin" $R --batch 4 --epochs 1 --out "$O/t2"

    # sft and reward
    works "sft on ranked data, k = 1" sft $M --data "$D/labels.bin" --batch 5 --epochs 2 --out "$O/sft"
    log_is "sft" "$O/sft/log.csv" 6 3 2e-5 0.03 linear 0 1
    works "sft on a stream" sft $M --data "$D/stream.bin" --batch 5 --epochs 2 --out "$O/lm"
    log_is "sft on a stream (13 chunks)" "$O/lm/log.csv" 6 3 2e-5 0.03 linear 0 1
    works "sft on a stream, chunks of 9" sft $M --data "$D/stream.bin" --batch 64 --epochs 2 --max-response-tokens 8 --out "$O/lm9"
    works "sft from random weights on ranked data" sft --data "$D/labels.bin" --layers 1 --heads 2 --channels 8 --context 24 --out "$O/new"
    works "sft from random weights on a stream" sft --data "$D/stream.bin" $K --layers 1 --heads 2 --channels 8 --context 24 --epochs 30 --batch 4 --lr 1e-2 --out "$O/new2"
    if awk -F, 'NR == 2 { a = $3 } { b = $3 } END { exit !(b < 0.97 * a) }' "$O/new2/log.csv"; then ok "it learns: loss $(column "$O/new2/log.csv" 3 2) to $(tail -n 1 "$O/new2/log.csv" | cut -d, -f3)"; else bad "it does not learn"; fi
    works "reward on labels" reward $M --data "$D/labels.bin" --batch 4 --epochs 20 --lr 1e-3 --out "$O/labels"
    log_is "reward on labels" "$O/labels/log.csv" 60 3 1e-3 0.03 linear 0 1
    works "reward on pairs" reward $M $R --batch 4 --epochs 20 --lr 1e-3 --out "$O/pairs"
    log_is "reward on pairs" "$O/pairs/log.csv" 80 4 1e-3 0.03 linear 1 0
    for v in labels pairs; do
        [ -s "$O/$v/curves.png" ] || ! [ -s "$O/def/curves.png" ] && ok "reward on $v draws its curve" || bad "reward on $v: no curves.png"
        if awk -F, 'NR == 2 { a = $3 } { b = $3 } END { exit !(b < 0.8 * a) }' "$O/$v/log.csv"; then ok "reward on $v learns"; else bad "reward on $v does not learn"; fi
    done

    # score
    run score $M $R
    cp "$T/out" "$T/scores.txt"
    make_files show "$D/ranked.bin" >"$T/show.txt"
    if awk 'NR == FNR { q[FNR] = $1; r[FNR] = $2; n[FNR] = $3; s[FNR] = $4; rows = FNR; next }
            { l = FNR
              if (NF != 5 || $1 != q[l] || $2 != r[l] || $4 != n[l] || $5 != s[l]) { print "line " l ": " $0; exit 1 }
              if ($3 !~ /^-[0-9]+(\.[0-9]+)?(e[-+][0-9]+)?$/ || sprintf("%.9g", $3) != $3) { print "line " l ": p " $3; exit 1 }
              digits = $3; gsub(/[-.]/, "", digits); if (length(digits) >= 9) full++ }
            END { if (FNR != rows || full < rows / 2) { print FNR " lines of " rows ", " full + 0 " with 9 digits"; exit 1 } }' "$T/show.txt" "$T/scores.txt" >"$T/said"
    then ok "score: 'query response p n score', p with 9 digits, $(wc -l <"$T/scores.txt") lines"; else bad "score: $(cat "$T/said")"; fi
    run score $M $R --length-penalty 0
    if awk 'NR == FNR { p[FNR] = $3 * $4; next } { e = p[FNR] - $3; if (e < 0) e = -e; if (e > 1e-6 * -$3) { print $0; exit 1 } }' "$T/scores.txt" "$T/out" >"$T/said"
    then ok "score --length-penalty 0: p n"; else bad "score --length-penalty 0: $(cat "$T/said")"; fi
    run score $M $R --micro-batch 1
    if awk 'NR == FNR { p[FNR] = $3; next } { e = p[FNR] - $3; if (e < 0) e = -e; if (e > 1e-6 * -$3) { print $0; exit 1 } }' "$T/scores.txt" "$T/out" >"$T/said"
    then ok "score --micro-batch 1: the same p"; else bad "score --micro-batch 1: $(cat "$T/said")"; fi
    works "score by the policy into a file" score $M $R --out "$O/p"
    check "the same lines" same "$T/scores.txt" "$T/out"
    if make_files show "$O/p/scored.bin" | awk 'NR == FNR { p[FNR] = $3; next } { e = p[FNR] - $4; if (e < 0) e = -e; if (e > 1e-6 * -$4) exit 1 }' "$T/scores.txt" -; then ok "scored.bin holds p"; else bad "scored.bin does not hold p"; fi
    works "score by a reward model" score --reward "$D/reward.bin" $R --out "$O/r"
    [ "$(head -n 1 "$T/out")" = "$O/r/scored.bin" ] && ok "says where" || bad "stdout: $(head -n 1 "$T/out")"
    if make_files show "$O/r/scored.bin" | awk '!($4 > 0 && $4 < 1) { exit 1 } { different += $4 != last; last = $4 } END { exit !(NR == 26 && different > 20) }'; then ok "probabilities, since header[9] says so"; else bad "no probabilities"; fi
    works "train on scored.bin" train $M --data "$O/r/scored.bin" --batch 4 --epochs 1 --out "$O/r2"

    # sample
    works "sample" sample $M --data "$D/held.bin" $K --num-return 3 --max-new-tokens 6 --top-k 10 --out "$O/s"
    make_files show "$O/s/sampled.bin" >"$T/said"
    make_files show "$D/held.bin" >"$T/show.txt"
    n=$(wc -l <"$T/show.txt")
    [ "$(grep -c ' 0 [0-9]*$' "$T/said")" -eq "$n" ] && [ "$(wc -l <"$T/said")" -eq $((n + 15)) ] && ok "sampled.bin: the data's $n responses and 3 of each of 5 queries" || bad "sampled.bin: $(wc -l <"$T/said") responses"
    [ -s "$O/s/samples.txt" ] && ok "samples.txt" || bad "no samples.txt"
    works "sample texts with line ends" sample $M --data "$D/odd.bin" --tokenizer "$D/odd_tokenizer.bin" --num-return 2 --max-new-tokens 4 --out "$O/odd"
    awk '/^--- query/ { q++; next } /^(data:  |sample:) \|/ { r++; next } { texts++ } END { exit !(q == 8 && texts == 8 && r == 24) }' "$O/odd/samples.txt" \
        && ok "samples.txt: a line each" || bad "samples.txt: $(wc -l <"$O/odd/samples.txt") lines"
    works "sample --policy S with texts" sample $M --data "$D/held.bin" $K --policy S --num-return 2 --max-new-tokens 6 --out "$O/s2"
    grep -q "^data:" "$O/s2/samples.txt" && bad "samples.txt of S has data's responses" || ok "samples.txt: no response is called the data's that is none"
    works "sample --policy S" sample $M --data "$D/held.bin" --policy S --num-return 2 --max-new-tokens 6 --out "$O/s2"
    [ "$(make_files show "$O/s2/sampled.bin" | awk '$3 >= 1 && $3 <= 6 && $5 == 1' | wc -l)" -eq 10 ] && ok "samples only, 1 to 6 tokens" || bad "sampled.bin of S: $(make_files show "$O/s2/sampled.bin" | wc -l)"
    works "score sampled.bin" score --reward "$D/reward.bin" --data "$O/s/sampled.bin" --out "$O/s"
    works "train on its scored.bin" train $M --data "$O/s/scored.bin" --batch 2 --epochs 1 --out "$O/s3"
    works "sample from sampled.bin" sample $M --data "$O/s/sampled.bin" --num-return 1 --max-new-tokens 2 --out "$O/s4"
    works "greedy" sample $M --data "$D/held.bin" --policy S --temperature 0 --num-return 1 --max-new-tokens 6 --out "$O/g0"
    for v in "--temperature 1e-300" "--top-k 1" "--top-p 0" "--temperature 0 --seed 99" "--top-k 1 --temperature 1000"; do
        works "sample $v" sample $M --data "$D/held.bin" --policy S --num-return 1 --max-new-tokens 6 $v --out "$O/g"
        check "sample $v is greedy" same "$O/g0/sampled.bin" "$O/g/sampled.bin"
    done
    works "sample up to the last position of T" sample $M --data "$D/held.bin" --max-new-tokens 16 --temperature 1000 --num-return 100 --out "$O/g"
    works "sample --top-k beyond the vocabulary" sample $M --data "$D/held.bin" --max-new-tokens 4 --top-k 65536 --out "$O/g"

    # eval
    works "eval a policy" eval $M --data "$D/held.bin" --reference "$D/bf16.bin" --reward "$D/reward.bin" $K --num-return 3 --max-new-tokens 6 --out "$O/e"
    grep -q "perplexity under the start" "$T/out" && ok "says whose perplexity it is" || bad "it says $(grep -o 'perplexity under.*' "$T/out")"
    v=$(awk '$1 == "policy" && $3 == "+-" { print $11 }' "$T/out") n=$(awk -F, '$1 == "policy" && $2 == "kl" { printf "%.2f", $3 }' "$O/e/eval.csv")
    [ "$v" = "$n" ] && ok "prints the KL of eval.csv: $n" || bad "prints a KL of $v, eval.csv has $n"
    for v in reward perplexity tokens kl accuracy distinct-1 distinct-2; do
        grep -q "^policy,$v," "$O/e/eval.csv" && ok "eval.csv: $v" || bad "eval.csv: no $v"
    done
    [ "$(head -n 1 "$O/e/eval.csv")" = "policy,figure,mean,stderr,n" ] && ok "eval.csv's header" || bad "eval.csv's header"
    for v in 2 4 8; do
        grep -q "^best-of-$v,reward," "$O/e/eval.csv" && ok "eval.csv: best-of-$v of the start" || bad "eval.csv: no best-of-$v"
    done
    awk -F, '$2 == "reward" { if ($1 != "policy" && $3 + 0 < last) exit 1; if ($1 != "policy") last = $3 + 0 }' "$O/e/eval.csv" && ok "best-of-n does not fall as n grows" || bad "best-of-n falls: $(grep ,reward, "$O/e/eval.csv")"
    works "eval with a judge of its own" eval $M --data "$D/held.bin" --reference "$D/bf16.bin" --start-return 0 --perplexity "$D/bf16.bin" $K --num-return 3 --max-new-tokens 6 --out "$O/e4"
    [ "$(grep -E '^policy,(tokens|kl)' "$O/e4/eval.csv")" = "$(grep -E '^policy,(tokens|kl)' "$O/e/eval.csv")" ] && ok "the same tokens and KL with and without the start's completions" || bad "eval.csv differs without the start"
    grep -q "^start," "$O/e4/eval.csv" && bad "--start-return 0 shows the start" || ok "--start-return 0 leaves the start out"
    works "eval under the policy itself" eval $M --data "$D/held.bin" --reference "$D/bf16.bin" --start-return 0 --perplexity "$D/policy.bin" $K --num-return 3 --max-new-tokens 6 --out "$O/e5"
    works "eval without a reference" eval $M --data "$D/held.bin" $K --num-return 3 --max-new-tokens 6 --out "$O/e6"
    [ "$(grep perplexity "$O/e5/eval.csv")" = "$(grep perplexity "$O/e6/eval.csv")" ] && [ "$(grep perplexity "$O/e5/eval.csv")" != "$(grep perplexity "$O/e/eval.csv")" ] && ok "perplexity is the judge's" || bad "perplexity: $(grep -h perplexity "$O/e"/eval.csv "$O/e5/eval.csv" "$O/e6/eval.csv")"
    n=$(grep ^policy,perplexity "$O/e4/eval.csv")
    [ -n "$n" ] && [ "$n" = "$(grep ^policy,perplexity "$O/e/eval.csv")" ] && [ "$n" != "$(grep ^policy,perplexity "$O/e6/eval.csv")" ] && ok "perplexity without a judge is under --reference: $n" || bad "perplexity without a judge: $(grep -h ^policy,perplexity "$O"/e/eval.csv "$O/e4/eval.csv" "$O/e6/eval.csv")"
    works "eval, more completions than of the start" eval $M --data "$D/held.bin" --reference "$D/policy.bin" --start-return 2 --num-return 3 --temperature 0 --max-new-tokens 6 --out "$O/e7"
    [ "$(grep ^start,distinct "$O/e7/eval.csv" | cut -d, -f2-)" = "$(grep ^policy,distinct "$O/e7/eval.csv" | cut -d, -f2-)" ] && ok "distinct-n of as many completions of either" || bad "distinct-n of the same texts: $(grep ,distinct "$O/e7/eval.csv" | tr '\n' ' ')"
    grep -qiE 'nan|inf' "$O/e/eval.csv" && bad "eval.csv: $(grep -iE 'nan|inf' "$O/e/eval.csv")" || ok "eval.csv: finite"
    works "eval a policy alone" eval $M --data "$D/held.bin" --max-new-tokens 6 --out "$O/e2"
    works "eval a policy, k = 1 data, one query" eval $M --data "$D/labels.bin" --eval-queries 1 --num-return 1 --max-new-tokens 6 --out "$O/e2"
    grep -qE "^policy  *0?-?[0-9.]+  |^policy  *-  " "$T/out" && ! grep "^policy " "$T/out" | grep -q -- "+-" && ok "one query: no error is claimed" || bad "one query: $(grep "^policy " "$T/out")"
    grep -qiE 'nan|inf' "$O/e2/eval.csv" && bad "one query: $(grep -iE 'nan|inf' "$O/e2/eval.csv")" || ok "one query: finite"
    [ -z "$(grep ',0$' "$O/e2/eval.csv")" ] && ok "eval.csv: no line for what was not measured" || bad "eval.csv: $(grep ',0$' "$O/e2/eval.csv" | tr '\n' ' ')"
    works "eval of the data's pairs" eval --model "$O/new2/policy.bin" $R --reference "$D/policy.bin" --reward "$D/reward.bin" --max-new-tokens 4 --out "$O/e8"
    works "the same with --length-penalty 0" eval --model "$O/new2/policy.bin" $R --reference "$D/policy.bin" --reward "$D/reward.bin" --max-new-tokens 4 --length-penalty 0 --out "$O/e9"
    for v in policy:e8:new2/policy.bin:1 start:e8:policy.bin:1 policy:e9:new2/policy.bin:0; do
        IFS=: read -r row n value option <<<"$v" # the row, eval.csv's directory, the model, its length penalty
        [ $row = start ] && value=$D/policy.bin || value=$O/$value
        run score --model "$value" $R --length-penalty $option
        value=$(awk '{ q[NR] = $1; p[NR] = $3; s[NR] = $5 }
            END { for (i = 1; i <= NR; i++) for (j = 1; j <= NR; j++) if (q[i] == q[j] && s[i] < s[j]) { all++; right += p[i] < p[j] ? 1 : p[i] == p[j] ? 0.5 : 0 }
                  printf "%.6f", right / all }' "$T/out")
        n=$(awk -F, -v row=$row '$1 == row && $2 == "accuracy" { printf "%.6f", $3 }' "$O/$n/eval.csv")
        [ "$n" = "$value" ] && ok "accuracy of $row, --length-penalty $option: $n, as score orders the data's pairs" || bad "accuracy of $row, --length-penalty $option: $n, score says $value"
    done
    for v in policy bf16; do
        works "eval, perplexity under $v" eval $M --data "$D/held.bin" --reference "$D/policy.bin" --perplexity "$D/$v.bin" --max-new-tokens 4 --out "$O/judge-$v"
        grep -q "perplexity under $D/$v.bin" "$T/out" && ok "it says so" || bad "it says $(grep -o 'perplexity under.*' "$T/out")"
    done
    [ "$(grep ^start,perplexity "$O/judge-policy/eval.csv")" != "$(grep ^start,perplexity "$O/judge-bf16/eval.csv")" ] && ok "the start's is the judge's too" || bad "the start's perplexity knows no judge"
    edit "$D/labels.bin" "$T/soft.bin" f32 1036 0.3
    edit "$D/labels.bin" "$T/hard.bin" f32 1036 0
    for v in soft hard; do works "eval a reward model on $v labels" eval --model "$O/labels/policy.bin" --data "$T/$v.bin" --out "$O/$v"; done
    check "a label of 0.3 counts as bad" same "$O/soft/eval.csv" "$O/hard/eval.csv"
    for v in labels:labels.bin pairs:ranked.bin; do
        works "eval a reward model on ${v%:*}" eval --model "$O/${v%:*}/policy.bin" --data "$D/${v#*:}" --out "$O/e3"
        if awk -F, '$2 == "accuracy" { good = $3 > 0.6 && $3 <= 1 } END { exit !good }' "$O/e3/eval.csv"; then ok "accuracy on ${v%:*} it was trained on: $(cut -d, -f3 "$O/e3/eval.csv" | tail -n 1)"; else bad "accuracy on ${v%:*}: $(tail -n 1 "$O/e3/eval.csv")"; fi
    done

    # explain
    works "explain" train $M $R --explain 2 --lr 1e-2 --margin 1 --out "$O/x"
    [ -e "$O/x" ] && bad "--explain wrote $(ls "$O/x" | tr '\n' ' ')" || ok "--explain writes nothing"
    n=$(awk '$1 == 2' "$T/scores.txt" | wc -l) row='^ +[0-9]+ +[-+.0-9e]+ +[0-9]+ +-[.0-9]+ +-[.0-9]+ +'
    [ "$(grep -cE "$row" "$T/out")" -eq $((2 * n)) ] && ok "--explain: $n responses, before and after" || bad "--explain: $(grep -cE "$row" "$T/out") rows for $n responses"
    grep -q "c_i" "$T/out" && ok "--explain names c_i" || bad "--explain does not name c_i"
    if awk '$1 == 2 { printf "%.6f\n", $3 }' "$T/scores.txt" | while read -r v; do grep -q -- "$v" "$T/out" || exit 1; done; then ok "--explain: p_i as score gives them"; else bad "--explain: other p_i than score gives"; fi
    if grep -E "$row" "$T/out" | head -n "$n" | awk -v wr=1 '{ i = NR - 1; r[i] = $2; n[i] = $3; p[i] = $5; c[i] = $6 }
        END { best = 0; for (i = 1; i < NR; i++) if (r[i] > r[best]) best = i
              for (i = 0; i < NR; i++) { want = 0
                  for (j = 0; j < NR; j++) {
                      g = 0; for (k = 0; k < NR; k++) { lo = r[i] < r[j] ? r[i] : r[j]; hi = r[i] < r[j] ? r[j] : r[i]; seen = !(r[k] > lo && r[k] <= hi); for (m = 0; m < k && !seen; m++) seen = r[m] == r[k]; g += !seen }
                      if (r[i] < r[j] && p[i] - p[j] + g > 0) want += 1 / n[i]
                      if (r[i] > r[j] && p[j] - p[i] + g > 0) want -= 1 / n[i] }
                  if (i == best) want -= 1
                  if (want - c[i] > 1e-6 || c[i] - want > 1e-6) { print "c_" i " is " c[i] ", expected " want; exit 1 } } }' >"$T/said"
    then ok "--explain: c_i is the formula's"; else bad "--explain: $(cat "$T/said")"; fi
    if grep -E "$row" "$T/out" | awk -v n="$n" '{ p[NR] = $5 } END { for (i = 1; i <= n; i++) moved += p[i] != p[i + n]; exit !moved }'; then ok "--explain: a step is made"; else bad "--explain: no step"; fi
    v=$(grep -E "$row" "$T/out" | head -n "$n" | awk '{ r[NR] = $2; p[NR] = $5 } END { for (i = 1; i <= NR; i++) for (j = 1; j <= NR; j++) wrong += r[i] < r[j] && p[i] > p[j]; print wrong + 0 }')
    [ "$(grep -m1 -o '[0-9]* pairs* out of order' "$T/out" | cut -d' ' -f1)" = "$v" ] && ok "--explain: $v pairs out of order" || bad "--explain: $(grep -m1 'out of order;' "$T/out"), expected $v"
    works "explain with texts" train $M $R $K --explain 0

    # what would be silent otherwise
    works "train --eval-data without a reward" train $M $R --eval-data "$D/held.bin" --epochs 1 --out "$O/n"
    grep -q "^note: --eval-data without --reward" "$T/err" && ok "says that there is no curve" || bad "--eval-data without --reward: no note"
    works "sft with an option that it does not take" sft $M --data "$D/labels.bin" --epochs 1 --margin 1 --out "$O/n"
    grep -q "^note: --margin.*no effect" "$T/err" && ok "it says so" || bad "sft --margin: no note"
    run train $M $R --batch 4 --micro-batch 4 --epochs 1 --out "$O/n"
    n=$(grep -o '[0-9]* MiB' "$T/err")
    run train $M $R --batch 4 --micro-batch 1000000 --epochs 1 --out "$O/n"
    [ -n "$n" ] && [ "$n" = "$(grep -o '[0-9]* MiB' "$T/err")" ] && ok "a --micro-batch beyond --batch needs no more memory: $n" || bad "--micro-batch beyond --batch: $(grep -o '[0-9]* MiB' "$T/err") against $n"
    if script -qec true /dev/null >/dev/null 2>&1; then # a terminal
        for v in 80 40; do
            script -qec "stty cols $v; '$BIN' train $M $R --batch 1 --epochs 50 --out '$O/tty'" /dev/null </dev/null 2>&1 | tr -d '\n' | tr '\r' '\n' >"$T/said"
            n=$(sed -n 's/^\x1b\[K\(train  *[0-9]*\/.*\)/\1/p' "$T/said" | awk '{ if (length($0) > most) most = length($0) } END { print most + 0 }')
            [ "$n" -gt 20 ] && [ "$n" -lt $v ] && ok "a terminal of $v columns: progress lines of at most $n" || bad "a terminal of $v columns: progress lines of $n"
        done
    else note "skipped: progress on a terminal (no script)"; fi

    # the reward's curve
    A="train $M $R $K --batch 13 --epochs 20 --eval-data $D/held.bin --max-new-tokens 4"
    works "a curve of two queries" $A --reward "$D/reward.bin" --eval-queries 2 --num-return 3 --out "$O/curve"
    [ "$(rows "$O/curve/reward.csv")" -eq 11 ] && [ "$(tail -n 1 "$O/curve/reward.csv" | cut -d, -f1)" = 20 ] && ok "20 steps: ten points and the start" || bad "20 steps: $(cut -d, -f1 "$O/curve/reward.csv" | tr '\n' ' ')"
    [ "$(tail -n +2 "$O/curve/reward.csv" | cut -d, -f4 | sort -u)" = 2 ] && ok "of two queries" || bad "not of two queries: $(tail -n 1 "$O/curve/reward.csv")"
    [ "$(grep -c '^after:  \[-\?[0-9.]*\] |' "$O/curve/samples.txt")" -eq 5 ] && ok "samples.txt: with rewards, a completion of each held-out query" || bad "samples.txt: $(grep -c '^after:  \[' "$O/curve/samples.txt") rewards"
    works "the same whatever --num-return" $A --reward "$D/reward.bin" --eval-queries 2 --num-return 1 --out "$O/curve1"
    check "one completion a query" same "$O/curve/reward.csv" "$O/curve1/reward.csv"
    works "a curve with --steps and --eval-every" $A --reward "$D/reward.bin" --steps 5 --eval-every 4 --out "$O/curve5"
    [ "$(tail -n +2 "$O/curve5/reward.csv" | cut -d, -f1 | tr '\n' ' ')" = "0 4 5 " ] && ok "its last point is the last step" || bad "its points: $(cut -d, -f1 "$O/curve5/reward.csv" | tr '\n' ' ')"
    works "a curve of rewards 1, 0, 1, 0" $A --steps 1 --eval-queries 4 --out "$O/curve4" --reward 'cmd:n=0; while read -r l; do n=$((1 - n)); echo $n; done'
    [ "$(column "$O/curve4/reward.csv" 2,3,4 2)" = "0.5,0.288675,4" ] && ok "their mean is 0.5 +- 0.2887" || bad "reward.csv: $(column "$O/curve4/reward.csv" 2,3,4 2)"
    if [ -s "$O/curve/curves.png" ]; then
        v=$(od -An -tu1 -j16 -N4 "$O/curve/curves.png" | awk '{ print $3 * 256 + $4 }') n=$(od -An -tu1 -j16 -N4 "$O/def/curves.png" | awk '{ print $3 * 256 + $4 }')
        [ "$v" = 1400 ] && [ "$n" = 800 ] && ok "curves.png: 1400 pixels wide, 800 without a reward" || bad "curves.png: $v and $n pixels wide"
    fi

    # --dtype and --profile
    run train $M $R --epochs 1 --dtype bf16 --out "$O/bf16"
    if [ $? -eq 2 ] && grep -q "^error: --dtype bf16: this build has no oneDNN" "$T/err"; then note "skipped: --dtype bf16 (built without oneDNN)"
    else
        grep -qx "dtype bf16" "$O/bf16/settings.txt" && grep -q "rounded to bfloat16" "$T/err" && ok "--dtype bf16" || bad "--dtype bf16: $(tail -n 1 "$T/err")"
        works "in bfloat16, stopped" train $M $R --epochs 2 --dtype bf16 --steps 1 --out "$O/bf16"
        refuse 1 "begun with dtype bf16, this is dtype fp32;" "resumed in float32" train $M $R --epochs 2 --resume "$O/bf16"
    fi
    works "train --profile 1" train $M $R --batch 13 --epochs 9 --profile 1 --out "$O/profile"
    if awk '{ for (i = 2; i <= NF; i++) if ($i ~ /^[0-9.]+%$/) { if ($1 == "all") all = $(i - 1); else { share += $i; ms += $(i - 1) } } }
            END { printf "shares sum to %.1f %%, stages to %.2f of %.2f ms", share, ms, all; exit !(share > 98 && share < 102 && ms > 0.8 * all - 0.11 && ms < 1.2 * all + 0.11) }' "$T/err" >"$T/said"
    then ok "--profile 1: $(cat "$T/said")"; else bad "--profile 1: $(cat "$T/said")"; fi

    # help
    works "--help" --help
    cp "$T/out" "$T/help"
    for v in model tokenizer data out seed threads batch micro-batch epochs steps lr warmup schedule weight-decay grad-clip beta1 beta2 eps shuffle \
             rank-weight ft-weight ft-reduction length-penalty margin max-query-tokens max-response-tokens policy num-return num-beams num-beam-groups \
             diversity-penalty temperature top-k top-p max-new-tokens reward kl-coef dtype resume checkpoint-every explain; do
        grep -q "^ *--$v " "$T/help" || bad "--help does not list --$v"
    done
    for v in "lr 2e-5" "batch 64" "epochs 3" "beta1 0.9" "beta2 0.999" "eps 1e-8" "weight-decay 0" "grad-clip 0" "rank-weight 1" "ft-weight 1" "length-penalty 1" "margin 0" "schedule linear" "ft-reduction sum" "dtype fp32" "temperature 1" "top-k 0" "top-p 1" "num-return 4" "num-beams 4" "num-beam-groups 4" "max-new-tokens 48" "seed 1337" "start-return 8"; do
        set -- $v
        grep -qE "^ *--$1 .*\[$2\]$" "$T/help" && ok "default: --$1 $2" || bad "default of --$1: $(grep -E "^ *--$1 " "$T/help")"
    done
    n=0
    while read -r option value; do
        n=$((n + 1))
        [ "$option" = --explain ] && value=0 # a number, without a default
        run sample "$option" "$value" --help
        v=$?
        [ $v -eq 0 ] || bad "$option '$value' of --help is not accepted: $(tail -n 1 "$T/err")"
    done < <(awk '/^ *--[a-z]/ { v = "x"; if ($NF ~ /^\[[^:]+\]$/) v = substr($NF, 2, length($NF) - 2); else if ($2 ~ /^[A-Za-z0-9]+\|/) { split($2, a, "|"); v = a[1] } print $1, v }' "$T/help")
    [ $n -gt 35 ] && ok "each of the $n options of --help is accepted with its default" || bad "--help has $n options"
    works "-h" -h
    works "train --help" train --help
}

# ----------------------------------------------------------------------------
# 6 the worked case

worked_case() {
    local A
    [ -e "$CASES/model.bin" ] || { note "not tested: the worked case (no $CASES; set RRHF_CASES)"; return; }
    A=$(head -n 1 "$CASES/log.txt") # "# train --policy P ...": the command that made the log
    run score --model "$CASES/model.bin" --data "$CASES/ranked.bin"
    if awk 'function off(a, b) { a -= b; return a < 0 ? -a : a } function size(a) { return a < 0 ? -a : a }
            NR == FNR { for (i = 1; i <= 5; i++) a[FNR, i] = $i; rows = FNR; next }
            { for (i = 1; i <= 5; i++) { e = off($i, a[FNR, i]) / (size(a[FNR, i]) + 1e-30); if (off($i, a[FNR, i]) == 0) e = 0; if (e > worst) worst = e } }
            END { printf "%d lines, worst error %.1e, tolerance 1e-4", FNR, worst; exit !(FNR == rows && worst <= 1e-4) }' "$CASES/scores.txt" "$T/out" >"$T/said"
    then ok "worked case, scores.txt: $(cat "$T/said")"; else bad "worked case, scores.txt: $(cat "$T/said")"; fi
    works "worked case:${A#\#}" ${A#\#} --model "$CASES/model.bin" --data "$CASES/ranked.bin" --out "$T/case"
    if awk 'function off(a, b) { a -= b; return a < 0 ? -a : a } function size(a) { return a < 0 ? -a : a }
            NR == FNR { if ($1 != "#") { rows++; for (i = 1; i <= 5; i++) a[$1, i] = $i } next }
            FNR > 1 { split($0, c, ","); split("1 3 4 5 7", at, " ")
                      for (i = 1; i <= 5; i++) { v = size(a[c[1], i]); e = off(c[at[i]], a[c[1], i]) / (v > 0.01 ? v : 0.01); if (e > worst) worst = e } }
            END { printf "%d steps, worst error %.1e, tolerance 1e-4", FNR - 1, worst; exit !(FNR - 1 == rows && worst <= 1e-4) }' "$CASES/log.txt" "$T/case/log.csv" >"$T/said"
    then ok "worked case, log.txt: $(cat "$T/said")"; else bad "worked case, log.txt: $(cat "$T/said")"; fi
}

# ----------------------------------------------------------------------------
# 8 reward commands

LENGTHS='while IFS= read -r l; do echo ${#l}; done' # a text's reward is its length
first() { echo "n=0; while [ \$n -lt $1 ] && IFS= read -r l; do n=\$((n + 1)); echo \${#l}; done"; } # of so many texts

gone() { # the process whose id the command left in $T/pid: is it no longer running?
    local i
    for i in {1..100}; do
        { read -r state <"/proc/$(cat "$T/pid")/stat"; } 2>/dev/null || return 0
        [[ $state == *") Z "* ]] && return 0 # ended; a container's first process may not collect it
        sleep 0.02
    done
    return 1
}

rewards() {
    local D=$T/d O=$T/out8 v n what needle command A
    local K="--tokenizer $D/tokenizer.bin"
    rm -rf "$O" "$T/pid"
    works "a reward command" score --data "$D/held.bin" $K --reward "cmd:$LENGTHS" --out "$O"
    if make_files show "$O/scored.bin" | awk '{ q = $4 - $3; if ($4 < 2 || ($1 in seen && seen[$1] != q)) { print; exit 1 } seen[$1] = q } END { if (NR < 6 || seen[0] != 3) { print NR " rows"; exit 1 } }' >"$T/said"
    then ok "its numbers are the scores: query and response together"; else bad "its numbers are not the scores: $(cat "$T/said")"; fi
    cp "$O/scored.bin" "$T/scored8.bin"
    works "a slow one, a number in two pieces" score --data "$D/held.bin" $K --out "$O/slow" \
        --reward 'cmd:while IFS= read -r l; do printf 0; sleep 0.03; printf "%s\n" "${#l}"; done'
    check "the same scores" same "$O/slow/scored.bin" "$T/scored8.bin"
    works "one that writes blanks, a sign and an exponent" score --data "$D/labels.bin" $K --reward 'cmd:while read -r l; do printf " \t-2.5e1 \r\n"; done' --out "$O/blanks"
    make_files show "$O/blanks/scored.bin" | awk '$4 != -25 { exit 1 } END { exit NR != 12 }' && ok "all scores are -25" || bad "scores: $(make_files show "$O/blanks/scored.bin" | head -n 1)"
    v=$SECONDS
    works "one that stays when its input ends" score --data "$D/held.bin" $K --out "$O/stays" --reward "cmd:echo \$\$ >$T/pid; while read -r l; do echo 1; done; sleep 60"
    grep -q "note: --reward cmd:.*still running 10 s after the end of its input, so stopped" "$T/err" && ok "it is stopped, in $((SECONDS - v)) s" || bad "it is not said to have stayed: $(tail -n 1 "$T/err")"
    gone || bad "it is still running"
    rm -r "$O/stays"
    if timeout 60 "$BIN" score --data "$D/held.bin" $K --reward "cmd:$LENGTHS" --out "$O/closed" <&- >"$T/out" 2>"$T/err" && same "$O/closed/scored.bin" "$T/scored8.bin"
    then ok "with standard input closed: the same scores"; else bad "with standard input closed: $(tail -n 1 "$T/err")"; fi
    rm -r "$O/closed"
    works "one that never looks for the end" score --data "$D/held.bin" $K --out "$O/odd" --reward 'cmd:while :; do read -r l; echo 1; done'
    works "odd texts" score --data "$D/odd.bin" --tokenizer "$D/odd_tokenizer.bin" --out "$O/odd" \
        --reward "cmd:exec 3>$T/asked; while IFS= read -r l; do printf '%s\\n' \"\$l\" >&3; echo 1; done"
    check "line ends, backslashes, tabs, zero bytes, quotes: the command reads what reward.h says" same "$D/odd.txt" "$T/asked"

    # every fault: exit code 1, one line with the command, the earlier scored.bin as it was
    while IFS='|' read -r what needle command; do
        refuse 1 "--reward cmd:.*$needle" "$what" score --data "$D/held.bin" $K --reward "cmd:echo \$\$ >$T/pid; $command" --out "$O"
        gone || bad "$what: its command is still running"
        [ "$(ls "$O")" = $'blanks\nodd\nscored.bin\nslow' ] && cmp -s "$O/scored.bin" "$T/scored8.bin" || bad "$what: left $(ls "$O" | tr '\n' ' ')"
    done <<'END'
ends at once|exit code 3.*response 0|exit 3
ends at once without a word|exit code 0.*response 0|:
ends after reading|exit code 4.*response 0|read -r l; exit 4
ends in the middle|exit code 5.*response 4|for i in 1 2 3 4; do read -r l; echo 1; done; exit 5
is killed|signal 9.*response 2|for i in 1 2; do read -r l; echo 1; done; kill -9 $$
half a number|exit code 0.*response 0|read -r l; printf 1
reads nothing|response|exec 2>/dev/null; exec yes 1
reads nothing and sleeps|exit code 0.*response 0|sleep 0.2
answers before it is asked|response 0|exec 2>/dev/null; printf '1\n2\n'; while read -r l; do echo 1; done
answers twice|line|while read -r l; do echo 1; sleep 0.01; echo 1; done
a number before all others|line|exec 2>/dev/null; echo 1; while read -r l; do sleep 0.01; echo 1; done
goes on after the end|answer|while :; do read -r l; echo x; done
two lines at once|response 0: more than one line|while read -r l; do printf '1\n2\n'; done
a word|response 0: answer 'good'|while read -r l; do echo good; done
a word later on|response 3: answer 'x'|for i in 1 2 3; do read -r l; echo 1; done; while read -r l; do echo x; done
a number and more|response 0: answer '1 2'|while read -r l; do echo 1 2; done
a decimal comma|response 0: answer '0,5'|while read -r l; do echo 0,5; done
an empty line|response 0: answer ''|while read -r l; do echo; done
blanks|response 0: answer '  '|while read -r l; do echo "  "; done
NaN|response 0: answer 'nan'|while read -r l; do echo nan; done
infinite|response 0: answer '-inf'|while read -r l; do echo -inf; done
beyond float|response 0: answer '1e39'|while read -r l; do echo 1e39; done
a zero byte|response 0: a zero byte|while read -r l; do printf '1\0 2\n'; done
closes its output and stays|closed its input or output before answering response 0|read -r l; exec >&-; sleep 60
a line without an end|response 0: over 255 bytes|read -r l; printf '%0300d' 7; read -r l
not found|exit code 127|exec 2>/dev/null; no-such-command
a directory|exit code 126|exec 2>/dev/null; /
END
    refuse 1 "--reward cmd:.*exit code 0.*response 6" "too few lines" score --data "$D/held.bin" $K --reward "cmd:$(first 6)" --out "$O"
    refuse 1 "--reward cmd:: .*response 0" "an empty command" score --data "$D/held.bin" $K --reward "cmd:" --out "$O"
    refuse 2 "--tokenizer" "a command without a tokenizer" score --data "$D/held.bin" --reward "cmd:$LENGTHS" --out "$O"
    mkdir -p "$O/e" && echo old >"$O/e/eval.csv"
    refuse 1 "--reward cmd:exit 3" "eval, ends at once" eval --model "$D/policy.bin" --data "$D/held.bin" $K --max-new-tokens 4 --reward "cmd:exit 3" --out "$O/e"
    [ "$(cat "$O/e/"*)" = old ] && ok "eval.csv is the old one" || bad "eval changed $(ls "$O/e")"
    A="train --model $D/policy.bin --data $D/ranked.bin $K --max-new-tokens 4 --num-return 2 --batch 4 --epochs 4 --threads 1 --lr 1e-3"
    refuse 1 "--reward cmd:" "train --policy S, ends in the middle of the scores" $A --policy S --reward "cmd:$(first 20)" --out "$O/s"
    [ -z "$(ls -A "$O/s")" ] && ok "nothing half-written in its --out" || bad "left $(ls "$O/s" | tr '\n' ' ')"

    refuse 1 "--reward cmd:exit 3 +# a second line: it ended" "a command of two lines" score --data "$D/held.bin" $K --reward $'cmd:exit 3\n# a second line' --out "$O"
    # more than a pipe holds: a query of 200,000 tokens, and a command in no hurry to read it
    make_files wide "$T/wide.bin"
    works "a long text to a slow reader" score --data "$T/wide.bin" $K --reward 'cmd:sleep 1; while IFS= read -r l; do echo ${#l}; done' --out "$O/wide"
    [ "$(make_files show "$O/wide/scored.bin" | cut -d" " -f4)" -gt 199999 ] && ok "it has read all of it" || bad "it has read $(make_files show "$O/wide/scored.bin")"
    rm -r "$O/wide"

    # in the middle of a training run: what the last checkpoint saved is there, and a command that works goes on from it
    for v in "OP-3 --draw sample --checkpoint-every 2" "IP-2 --draw sample"; do
        rm -rf "$O/whole" "$O/part"
        works "train --policy $v" $A --policy $v --reward "cmd:$LENGTHS" --out "$O/whole"
        n=$([ "${v:0:2}" = OP ] && echo 150 || echo 90) # more than the first draw, fewer than all
        refuse 1 "--reward cmd:.*exit code 0" "train --policy $v, the command ends" $A --policy $v --reward "cmd:$(first $n)" --out "$O/part"
        [ -n "$(find "$O/part" -name policy.bin)" ] && [ -z "$(find "$O/part" -name '*.tmp')" ] && ok "a checkpoint is there, no .tmp" || bad "left $(find "$O/part" -type f | tr '\n' ' ')"
        for n in $(find "$O/part" -name policy.bin); do works "$(basename "$(dirname "$n")")/policy.bin is whole" score --model "$n" --data "$D/held.bin"; done
        works "resumed with a command that works" $A --policy $v --reward "cmd:$LENGTHS" --resume "$O/part"
        check "the uninterrupted run's policy.bin" same "$O/whole/policy.bin" "$O/part/policy.bin"
    done

    # after the last step, when samples are judged: the run has not finished, and what is missing is made up for
    for v in "--policy S" "--policy OP-3 --draw sample"; do
        rm -rf "$O/whole" "$O/part"
        works "train $v" $A $v --reward "cmd:n=0; while IFS= read -r l; do n=\$((n + 1)); echo \$n >$T/asked; echo \${#l}; done" --out "$O/whole"
        n=$(cat "$T/asked")
        refuse 1 "--reward cmd:.*exit code 0" "train $v, the command ends after the last step" $A $v --reward "cmd:$(first $((n - 4)))" --out "$O/part"
        [ -e "$O/part/settings.txt" ] && bad "it counts as finished" || ok "it has not finished"
        works "resumed with a command that works" $A $v --reward "cmd:$LENGTHS" --resume "$O/part"
        check "the uninterrupted run's policy.bin" same "$O/whole/policy.bin" "$O/part/policy.bin"
        grep -q "nothing to do: $O/part stands at step 16 of 16" "$T/err" && ok "without another step" || bad "it took more steps: $(tail -n 3 "$T/err")"
        check "and its samples.txt" same "$O/whole/samples.txt" "$O/part/samples.txt"
        [ -e "$O/part/settings.txt" ] && [ ! -e "$O/part/state.bin" ] && ok "it has finished" || bad "it has not finished: $(ls "$O/part" | tr '\n' ' ')"
    done

    # Ctrl-C in a terminal goes to the command too, which must not mind. Here the command sends it, to all of its group.
    # set -m: else what runs in the background ignores it. No timeout, which would pass it on a second time
    set -m
    "$BIN" $A --policy OP-2 --draw sample --reward "cmd:n=0; while IFS= read -r l; do n=\$((n + 1)); [ \$n -eq 40 ] && kill -INT 0; echo \${#l}; done" --out "$O/int" >"$T/out" 2>"$T/err" </dev/null &
    n=$!
    set +m
    wait $n
    if grep -q '^interrupted; everything is saved' "$T/err" && ! grep -q '^error' "$T/err"; then ok "Ctrl-C at the terminal reaches the command as well: all is saved"
    else bad "Ctrl-C at the terminal: $(tail -n 1 "$T/err")"; fi

    # where whoever began us ignores SIGCHLD, a command's end is not told
    if env --ignore-signal=CHLD true 2>/dev/null; then
        timeout 60 env --ignore-signal=CHLD "$BIN" score --data "$D/held.bin" $K --reward "cmd:$LENGTHS" --out "$O/chld" >"$T/out" 2>"$T/err" </dev/null
        [ $? -eq 0 ] && ! grep -q "still running" "$T/err" && ok "with SIGCHLD ignored: no wait for the command" || bad "with SIGCHLD ignored: $(tail -n 1 "$T/err")"
    else note "skipped: SIGCHLD ignored (env cannot)"; fi
}

# ----------------------------------------------------------------------------
# 9 the table of several runs

eval_row() { # DIR POLICY REWARD PERPLEXITY: appends its lines to DIR/eval/eval.csv
    mkdir -p "$1/eval"
    [ -e "$1/eval/eval.csv" ] || echo "policy,figure,mean,stderr,n" >"$1/eval/eval.csv"
    printf '%s\n' "$2,reward,$3,0.01,100" "$2,perplexity,$4,0.25,100" "$2,tokens,40,0.5,100" "$2,distinct-1,0.1,0.01,100" "$2,distinct-2,0.25,," >>"$1/eval/eval.csv"
}

table_says() { # WHAT LINE FILE: this line is in it
    if grep -qxF -- "$2" "$3"; then ok "$1"; else bad "$1: no '$2' in $3: $(grep -m1 -F -- "${2:0:6}" "$3")"; fi
}

tables() {
    local R=$T/rows O=$T/table9 BIN=$T/table needle what v
    if ! $CC -std=c11 -O1 -fsanitize=undefined -fno-sanitize-recover=all -o "$T/table" dev/table.c -lm 2>"$T/said"; then bad "dev/table: $(head -n 1 "$T/said")"; return; fi
    eval_row "$R/SFT-0" policy 0.5 30
    for v in 2:0.6 4:0.7 8:0.75; do eval_row "$R/SFT-0" "best-of-${v%:*}" "${v#*:}" 29; done
    for v in start best-of-2; do eval_row "$R/OP-128-KL-1" $v 0.5 30; done # no rows: only SFT's are
    eval_row "$R/OP-128-KL-1" policy 0.8 10
    eval_row "$R/OP-128-KL-2" policy 0.9 14
    for v in 1 2; do echo "policy,kl,12.5,0.125,100" >>"$R/OP-128-KL-$v/eval/eval.csv"; done
    eval_row "$R/IP-2-7" policy 0.85 20
    mkdir -p "$R/IP-2-7/round-1" "$R/IP-2-7/round-2"
    printf 'step,reward,stderr,queries\n0,0.5,0.1,9\n10,0.6,0.1,9\n' | tee "$R/IP-2-7/round-1/reward.csv" "$R/IP-2-7/round-2/reward.csv" "$R/OP-128-KL-1/reward.csv" >"$R/OP-128-KL-2/reward.csv"
    echo "20,0.7,0.1,9" >>"$R/OP-128-KL-2/reward.csv"
    works "table" "$O" "$R/OP-128-KL-2" "$R/SFT-0/" "$R/IP-2-7" "$R/OP-128-KL-1"
    table_says "two seeds: their mean, +- their spread / sqrt 2" "| OP-128-KL | 2 | 0.850 ± 0.050 | 12.00 ± 2.00 | 12.50 ± 0.00 | 40.0 ± 0.0 | 0.250 ± 0.000 | - |" "$O/table.md"
    table_says "one seed: +- over its queries; '-' where there is no figure" "| SFT | 1 | 0.500 ± 0.010 | 30.00 ± 0.25 | - | 40.0 ± 0.5 | 0.250 | - |" "$O/table.md"
    v=$(sed -n 's/^| \([A-Za-z][^ ]*\) | [0-9].*/\1/p' "$O/table.md" | tr '\n' ' ')
    [ "$v" = "OP-128-KL SFT best-of-2 best-of-4 best-of-8 IP-2 " ] && ok "rows in the order of the arguments: $v" || bad "rows: $v"
    [ "$(grep -c "^note: OP-128-KL: its seeds' curves share 2 of 3 steps" "$T/err")" -eq 1 ] && ok "says that a curve is cut to the steps of all seeds" || bad "says $(tail -n 1 "$T/err")"
    [ "$(grep -c 'one standard error' "$O/table.md")" -eq 1 ] && ok "table.md says what +- is" || bad "table.md does not say what +- is"
    table_says "table.csv: a seed" "OP-128-KL,1,0.8,0.01,10,0.25,12.5,0.125,40,0.5,0.1,0.01,0.25,,,,100" "$O/table.csv"
    table_says "table.csv: the mean" "OP-128-KL,mean,0.85,0.05,12,2,12.5,0,40,0,0.1,0,0.25,0,,,2" "$O/table.csv"
    [ "$(grep -c . "$O/table.csv")" -eq 14 ] && ok "table.csv: a header, 7 seeds, 6 means" || bad "table.csv has $(grep -c . "$O/table.csv") lines"
    cp "$O/table.csv" "$T/table.csv"

    # what is missing or damaged, by name and line; the table that was there stays
    refuse 2 "usage" "no rows" "$O"
    refuse 1 "$T/none-1/eval/eval\.csv" "no such row" "$O" "$T/none-1"
    refuse 2 "NAME-SEED" "a name without a seed" "$O" "$R/SFT-0" "$T/rows"
    for v in , '|'; do refuse 2 "may not hold ',' or '\|'" "a name with $v in it" "$O" "$R/SFT-0" "$R/a${v}b-1"; done
    refuse 2 "second time" "a row given twice" "$O" "$R/SFT-0" "$R/SFT-0/"
    eval_row "$R/IP-2-8" policy 0.86 20
    echo "policy,kl,1,0.1,100" >>"$R/IP-2-8/eval/eval.csv"
    refuse 1 "IP-2: kl is there for seed 8, but not for seed 7" "a figure of one seed only" "$O" "$R/IP-2-7" "$R/IP-2-8"
    while IFS='|' read -r what needle v; do
        rm -rf "$R/X-1"
        mkdir -p "$R/X-1/eval"
        { [ "${v:0:1}" = ! ] || echo "policy,figure,mean,stderr,n"; printf '%b' "${v#!}"; } >"$R/X-1/eval/eval.csv"
        refuse 1 "X-1/eval/eval\.csv$needle" "eval.csv, $what" "$O" "$R/SFT-0" "$R/X-1"
    done <<'END'
empty|:1: empty|!
another header|:1: 'policy,mean'|!policy,mean\n
no lines|: no reward|
of the start only|: no reward|start,reward,0.5,0.1,9\n
no reward|: no reward|policy,perplexity,0.5,0.1,9\n
cut short|:3: 'policy,perplexity,1' has no line end|policy,reward,0.5,0.1,9\npolicy,perplexity,1
too few columns|:2: 4 columns|policy,reward,0.5,0.1\n
too many columns|:2: 6 columns|policy,reward,0.5,0.1,9,\n
a word|:2: mean 'high'|policy,reward,high,0.1,9\n
no mean|:2: mean ''|policy,reward,,0.1,9\n
NaN|:3: mean 'nan'|policy,tokens,1,0,1\npolicy,reward,nan,0.1,9\n
a negative error|:2: standard error '-0.1'|policy,reward,0.5,-0.1,9\n
an infinite error|:2: standard error 'inf'|policy,reward,0.5,inf,9\n
no queries|:2: number of queries '0'|policy,reward,0.5,0.1,0\n
too many queries|:2: 4e\+09 queries|policy,reward,0.5,0.1,4e9\n
half a query|:2: 1\.5 queries|policy,reward,0.5,0.1,1.5\n
half empty|:2: standard error ''|policy,reward,0.5,,9\n
an unknown figure|:2: figure 'rewrad'|policy,rewrad,0.5,0.1,9\n
a figure twice|:3: reward of policy a second time|policy,reward,0.5,0.1,9\npolicy,reward,0.5,0.1,9\n
END
    while IFS='|' read -r what needle v; do
        printf '%b' "$v" >"$R/OP-128-KL-1/reward.csv"
        refuse 1 "OP-128-KL-1/reward\.csv:$needle" "reward.csv, $what" "$O" "$R/SFT-0" "$R/OP-128-KL-1"
    done <<'END'
another header|1: 'step,mean'|step,mean\n
a step back|4: step 3 after step 5|step,reward,stderr,queries\n0,1,0,1\n5,1,0,1\n3,1,0,1\n
a word|2: reward 'x'|step,reward,stderr,queries\n0,x,0,1\n
cut short|3: '5,1' has no line end|step,reward,stderr,queries\n0,1,0,1\n5,1
END
    check "the table that was there is as it was" same "$O/table.csv" "$T/table.csv"
    [ -z "$(ls "$O" | grep tmp)" ] && ok "no .tmp" || bad "left $(ls "$O" | tr '\n' ' ')"
}

# ----------------------------------------------------------------------------
# 10 every option does something

# VERB FILE OPTION A B MORE: with A and with B the verb leaves different files. MORE: what else it is given; K: a tokenizer
options_table() {
    cat <<'END'
sft policy.bin --layers 1 2 --data labels.bin --heads 2 --channels 8 --context 24
sft policy.bin --heads 2 4 --data labels.bin --layers 1 --channels 8 --context 24
sft policy.bin --channels 8 16 --data labels.bin --layers 1 --heads 2 --context 24
sft policy.bin --context 24 30 --data labels.bin --layers 1 --heads 2 --channels 8
train policy.bin --batch 3 5
train policy.bin --epochs 1 3
train policy.bin --steps 1 2
train policy.bin --lr 1e-3 1e-2
train policy.bin --warmup 0 0.5
train policy.bin --schedule linear cosine
train policy.bin --weight-decay 0 1
train policy.bin --grad-clip 0 0.01 --eps 1
train policy.bin --beta1 0.9 0.5
train policy.bin --beta2 0.999 0.5
train policy.bin --eps 1e-8 1
train policy.bin --shuffle 0 1
train policy.bin --seed 1 2
train policy.bin --rank-weight 1 9
train policy.bin --ft-weight 1 9
train policy.bin --ft-reduction sum mean
train policy.bin --length-penalty 1 0
train policy.bin --margin 0 1
train policy.bin --max-query-tokens 0 2
train policy.bin --max-response-tokens 0 2
train scored.bin --policy S SP --reward reward.bin
train scored.bin --policy B D --reward reward.bin --num-return 2
train policy.bin --draw diverse sample --reward reward.bin --policy OP-4
train policy.bin --draw diverse beam --reward reward.bin --policy OP-4
train policy.bin --kl-coef 0 5 --reward reward.bin --policy OP-4 --draw sample --epochs 5
train reward.csv --eval-every 1 2 --reward reward.bin --eval-data held.bin
train reward.csv --eval-queries 2 3 --reward reward.bin --eval-data held.bin
train reward.csv --seed 1 2 --reward reward.bin --eval-data held.bin
train reward.csv --stop A a --reward reward.bin --eval-data held.bin K
sample sampled.bin --policy S SP
sample sampled.bin --seed 1 2
sample sampled.bin --num-return 1 2
sample sampled.bin --num-beams 2 8 --policy B --num-return 2
sample sampled.bin --num-beam-groups 2 4 --policy D
sample sampled.bin --diversity-penalty 0.5 5 --policy D
sample sampled.bin --temperature 0.1 9
sample sampled.bin --top-k 0 2
sample sampled.bin --top-p 1 0.1
sample sampled.bin --max-new-tokens 2 4
sample sampled.bin --stop A a K
eval eval.csv --seed 1 2
eval eval.csv --num-return 1 2
eval eval.csv --temperature 0.1 9
eval eval.csv --top-k 0 2
eval eval.csv --top-p 1 0.1
eval eval.csv --max-new-tokens 2 4
eval eval.csv --max-query-tokens 0 1
eval eval.csv --stop A a K
eval eval.csv --length-penalty 1 0
eval eval.csv --eval-queries 2 3
eval eval.csv --start-return 2 4 --reference bf16.bin
eval eval.csv --reference policy.bin bf16.bin
eval eval.csv --perplexity policy.bin bf16.bin
eval eval.csv --reward reward.bin reward2.bin
END
}

options() {
    local D=$T/d O=$T/out10 verb file option a b more word args
    # these other parts test, or they change only how a run goes:
    local known=" --model --data --tokenizer --out --resume --checkpoint-every --threads --dtype --micro-batch --profile --explain --eval-data "
    edit "$D/reward.bin" "$D/reward2.bin" f32 1024 0.5
    while read -r verb file option a b more; do
        known+=" $option "
        case $verb in
            sft) args="--epochs 1" ;;
            train) args="--model $D/policy.bin --data $D/ranked.bin --batch 4 --epochs 2 --lr 1e-2 --max-new-tokens 4" ;;
            sample) args="--model $D/policy.bin --data $D/held.bin --num-return 4 --max-new-tokens 6" ;;
            eval) args="--model $D/policy.bin --data $D/ranked.bin --num-return 4 --max-new-tokens 6" ;;
        esac
        for word in $more; do
            [ "$word" = K ] && word="--tokenizer $D/tokenizer.bin"
            [ -f "$D/$word" ] && word=$D/$word
            args+=" $word"
        done
        for word in a b; do
            [ -f "$D/${!word}" ] && printf -v $word %s "$D/${!word}"
            rm -rf "$O/$word"
            run $verb $args $option "${!word}" --out "$O/$word" || bad "$verb $option ${!word}: $(tail -n 1 "$T/err")"
        done
        if [ -s "$O/a/$file" ] && [ -s "$O/b/$file" ] && ! cmp -s "$O/a/$file" "$O/b/$file"; then ok "$verb $option ${a##*/} or ${b##*/}: another $file"
        else bad "$verb $option ${a##*/} or ${b##*/}: the same $file, or none"; fi
    done < <(options_table)
    for word in $("$BIN" --help | grep -o '^ *--[a-z0-9-]*'); do
        [[ $known == *" $word "* ]] || bad "--help lists an option that nothing tests: $word"
    done
}

# ----------------------------------------------------------------------------
# 7 the sanitizers

fuzz() { # files damaged at random: refused or read, but never out of bounds
    local D=$T/d F=$T/bad.bin i rc kind n=0 refusals=0
    for i in {1..25}; do
        for kind in model data stream tokenizer; do
            case $kind in
                model) edit "$D/policy.bin" "$F" fuzz $i; run score --model "$F" --data "$D/ranked.bin" ;;
                data) edit "$D/ranked.bin" "$F" fuzz $i; run train --model "$D/policy.bin" --data "$F" --epochs 1 --out "$T/fuzz" ;;
                stream) edit "$D/stream.bin" "$F" fuzz $i; run sft --model "$D/policy.bin" --data "$F" --epochs 1 --out "$T/fuzz" ;;
                tokenizer) edit "$D/tokenizer.bin" "$F" fuzz $i; run sample --model "$D/policy.bin" --data "$D/held.bin" --tokenizer "$F" --max-new-tokens 3 --num-return 1 --out "$T/fuzz" ;;
            esac
            rc=$?
            n=$((n + 1))
            [ $rc -eq 1 ] && refusals=$((refusals + 1))
            if [ $rc -gt 1 ] || grep -qE "Sanitizer|runtime error" "$T/err"; then bad "damaged $kind, seed $i: exit code $rc: $(grep -m1 -E 'Sanitizer|runtime error|error' "$T/err")"; fi
            [ $rc -eq 1 ] && [ "$(grep -a -c '^error: ' "$T/err")" -ne 1 ] && bad "damaged $kind, seed $i: $(head -n 3 "$T/err" | tr '\n' '|')"
        done
    done
    [ $refusals -gt 10 ] && ok "$n files damaged at random: $refusals refused, the others read" || bad "only $refusals of $n damaged files refused"
}

sanitizers() { # beside the other parts, with its own directory
    local D=$T/d v omp=
    echo "int main(void) { return 0; }" | $CC -x c - -o "$T/none.out" -fopenmp 2>/dev/null && omp=-fopenmp
    rm -f "$T/none.out"
    $CC -std=c11 -O0 -fsanitize=address,undefined -fno-sanitize-recover=all $omp -o "$T/sanitized" train_rrhf.c -lm >"$T/build" 2>&1 # -O0: compiling takes longer than all of the runs
    if [ ! -x "$T/sanitized" ]; then bad "the build with -fsanitize=address,undefined failed: $(grep -m1 error "$T/build")"; return; fi
    export ASAN_OPTIONS=detect_leaks=0:exitcode=99:allocator_may_return_null=1 UBSAN_OPTIONS=exitcode=99:print_stacktrace=0
    BIN=$T/sanitized WHO="[asan] "
    bad_input
    part 8 && rewards
    fuzz
    local M="--model $D/policy.bin" K="--tokenizer $D/tokenizer.bin" O=$T/san
    works "sft on a stream, a new model" sft --data "$D/stream.bin" $K --layers 1 --heads 2 --channels 8 --context 24 --epochs 1 --out "$O/a"
    works "sft on ranked data" sft $M --data "$D/labels.bin" --epochs 2 --batch 5 --out "$O/a"
    works "reward on labels" reward $M --data "$D/labels.bin" --epochs 2 --batch 5 --out "$O/r"
    works "reward on pairs" reward $M --data "$D/ranked.bin" --epochs 2 --batch 5 --out "$O/r2"
    works "sample" sample $M --data "$D/held.bin" $K --num-return 3 --max-new-tokens 16 --top-k 9 --top-p 0.9 --out "$O/s"
    works "score by a reward model" score --reward "$O/r/policy.bin" --data "$O/s/sampled.bin" --out "$O/s"
    works "score by the policy" score $M --data "$O/s/sampled.bin"
    works "train, stopped" train $M --data "$O/s/scored.bin" $K --reward "$O/r/policy.bin" --eval-data "$D/held.bin" --max-new-tokens 6 --batch 2 --epochs 3 --steps 4 --out "$O/t"
    works "train, resumed" train $M --data "$O/s/scored.bin" $K --reward "$O/r/policy.bin" --eval-data "$D/held.bin" --max-new-tokens 6 --batch 2 --epochs 3 --resume "$O/t"
    works "explain" train $M --data "$O/s/scored.bin" $K --explain 1
    works "eval a policy" eval --model "$O/t/policy.bin" --reference "$D/policy.bin" --reward "$O/r/policy.bin" --data "$D/held.bin" $K --max-new-tokens 6 --out "$O/e"
    works "eval a reward model" eval --model "$O/r/policy.bin" --data "$D/labels.bin" --out "$O/e"
    part 4 && threads # this build has the plain loops
    for v in OMPI_COMM_WORLD_SIZE PMI_SIZE; do # as mpirun would; this build has no MPI
        export $v=2
        refuse 2 "one of 2 processes, but built without MPI" "started by mpirun, $v" score $M --data "$D/ranked.bin"
        unset $v
    done
}

# ----------------------------------------------------------------------------

[ -x "$BIN" ] || { bad "./train_rrhf is not there: make train_rrhf first"; echo "$passed passed, $failed failed"; exit 1; }
mkdir "$T/d"
if ! $CC -std=c11 -O1 -o "$T/make_files" test/make_files.c -lm 2>"$T/said" || ! make_files all "$T/d"; then
    bad "test/make_files.c: $(head -n 1 "$T/said")"; echo "$passed passed, $failed failed"; exit 1
fi
if part 7 && [ "${RRHF_SANITIZE:-1}" != 0 ]; then
    mkdir "$T/asan"
    ln -s "$T/d" "$T/asan/d"
    ln -s "$T/make_files" "$T/asan/make_files"
    (T=$T/asan; sanitizers; echo "$passed $failed" >"$T/counts") >"$T/asan.log" 2>&1 &
    build=$!
fi
part 1 && { bad_input; disk_full; }
part 2 && checkpoints
part 3 && resume
part 4 && { seeds; threads; }
part 5 && outputs
part 6 && worked_case
part 8 && rewards
part 9 && tables
part 10 && options
if [ -n "$build" ]; then
    wait $build
    build=
    cat "$T/asan.log"
    if read -r p f <"$T/asan/counts"; then passed=$((passed + p)) failed=$((failed + f)); else bad "part 7 ended early"; fi
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
