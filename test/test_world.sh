#!/usr/bin/env bash
# test_world.sh: several processes by mpirun against one. Run from the repository root after `make train_rrhf`.
#
#   test/test_world.sh PROGRAM ...     each is built with MPI: ./train_rrhf, and the GPU's program on the emulation
#
# Every verb, every kind of loss and the policies that sample while they train: the same figures within 1e-4 (sums of a
# step round in another order), the same completions, the same files and words as from one process, and errors said once.
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
# Open MPI: root and more processes than cores are fine here, and a container may forbid copies between processes.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe # the same in Open MPI 5
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_mpi_yield_when_idle=1
export OMPI_LONG$(printf %0300d 0)=1 # as a site may set its own
. test/check.sh # check, T
if ! mpirun -np 3 true </dev/null >"$T/err" 2>&1; then
    echo "not tested: several processes, since mpirun cannot start three here: $(grep -m 1 . "$T/err")"
    echo "0 passed, 0 failed"
    exit 0
fi
CC=${CC:-gcc} D=$T/d
mkdir "$D"
if ! $CC -std=c11 -O1 -o "$T/make_files" test/make_files.c -lm || ! "$T/make_files" all "$D"; then
    echo "FAIL test/make_files.c"; echo "0 passed, 1 failed"; exit 1
fi

printf '#!/bin/sh\nwhile IFS= read -r line; do echo ${#line}; done\n' >"$T/length" # a reward
chmod +x "$T/length"

run() { # PROCESSES ARGS...: 0 = without mpirun; what it says goes to out and err
    local n=$1
    shift
    if [ "$n" = 0 ]; then timeout 120 "$BIN" "$@"; else timeout 120 mpirun -np "$n" "$BIN" "$@"; fi \
        </dev/null >"$T/out" 2>"$T/err"
}
works() { # WHAT PROCESSES ARGS...
    local what=$1 code
    shift
    run "$@"
    code=$?
    check "$what: exit code $code $(grep -m 1 '^error' "$T/err")" [ $code = 0 ]
}
drawn() { # WHAT FILE FILE: the same completions and rewards; where the BLAS rounds by the number of rows, nearly
    if grep -q "products: \(built in\|cuBLASLt\)" "$T/banner"; then check "$1: the same bits" cmp "$2" "$3"
    else near "$1" <("$T/make_files" show "$2") <("$T/make_files" show "$3"); fi
}
near() { # WHAT FILE FILE: numbers between commas or blanks agree within 1e-4 of the larger, words are the same
    local error
    error=$(awk -v most=1e-4 '
        function size(x) { return x < 0 ? -x : +x }
        BEGIN { FS = "[, ]" }
        NR == FNR { line[n = FNR] = $0; next }
        { k = split(line[FNR], a, FS)
          seen++
          if (k != NF) bad = 1
          for (i = 1; i <= NF; i++) {
              if (a[i] == $i) continue
              s = size(a[i]) > size($i) ? size(a[i]) : size($i)
              d = s > 0 ? size(a[i] - $i) / s : 1
              if (d > largest) largest = d } }
        END { printf "%.2g", largest; exit bad || !n || seen != n || largest > most }' "$2" "$3")
    check "$1: relative error $error, tolerance 1e-4" [ $? = 0 ]
}
columns() { cut -d, -f1-7 "$1"; } # of a log without its times
one_error() { # CODE PATTERN: of the last run: exit code, one line of error, which says this
    [ $code = "$1" ] && [ "$(grep -c '^error: ' "$T/err")" = 1 ] && grep -q "^error: .*$2" "$T/err"
}

for BIN in "$@"; do
    WHO=${BIN##*/} O=$T/$WHO
    train="--batch 3 --epochs 3 --lr 1e-3" sample="--num-return 3 --max-new-tokens 6"
    M="--model $D/policy.bin" K="--tokenizer $D/tokenizer.bin" R="--reward $D/reward.bin"
    # 13 queries in batches of 3: the last step of an epoch has 1, so that of 3 processes 2 have none
    declare -A args=(
        [train]="train $M --data $D/ranked.bin $train"
        [clipped]="train $M --data $D/ranked.bin $train --grad-clip 1 --micro-batch 1 --weight-decay 0.1"
        [sft]="sft $M --data $D/stream.bin $train"
        [labels]="reward $M --data $D/labels.bin $train"
        [pairs]="reward $M --data $D/ranked.bin $train"
        [DP]="train $M --data $D/held.bin $K $R --policy DP $train --max-new-tokens 6 --eval-data $D/held.bin"
        [OP-2]="train $M --data $D/held.bin $K $R --policy OP-2 --draw sample --kl-coef 0.1 $train $sample"
        [command]="train $M --data $D/held.bin $K --reward cmd:$T/length --policy S $train $sample"
        [IP-2]="train $M --data $D/held.bin $K $R --policy IP-2 --draw sample $train $sample")
    for what in train clipped sft labels pairs DP OP-2 IP-2 command; do
        counts="2 3"
        [ "$WHO" != train_emulated ] || [ $what = train ] || counts=3 # it is slow
        for n in 0 $counts; do works "$WHO $what, $n" $n ${args[$what]} --out "$O/$what$n"; done
        cp "$T/err" "$T/banner"
        log=log.csv
        [ $what = IP-2 ] && log=round-2/log.csv
        for n in $counts; do near "$WHO $what: the log of $n processes against one" <(columns "$O/${what}0/$log") <(columns "$O/$what$n/$log"); done
    done
    near "$WHO DP: the reward's curve is that of one process" "$O/DP0/reward.csv" "$O/DP3/reward.csv"
    drawn "$WHO DP: the same responses and rewards" "$O/DP0/scored.bin" "$O/DP3/scored.bin"
    check "$WHO: the same files" cmp <(cd "$O/DP0" && ls) <(cd "$O/DP3" && ls)
    works "$WHO train again, 2" 2 ${args[train]} --out "$O/again"
    check "$WHO 2 processes twice: the same bits" cmp "$O/train2/policy.bin" "$O/again/policy.bin"

    for n in 0 3; do
        works "$WHO sample, $n" $n sample $M --data "$D/queries.bin" $K --num-return 2 --max-new-tokens 3 --out "$O/S$n"
        works "$WHO beams, $n" $n sample $M --data "$D/held.bin" --policy BP --max-new-tokens 6 --out "$O/B$n"
        works "$WHO score by the policy, $n" $n score $M --data "$D/ranked.bin"
        cp "$T/out" "$O/p$n"
        works "$WHO score by a reward model, $n" $n score $R --data "$D/held.bin" --out "$O/r$n"
        works "$WHO score by a command, $n" $n score --reward "cmd:env >$O/env; tee $O/asked$n | $T/length" $K --data "$D/ranked.bin" --out "$O/c$n"
        works "$WHO eval, $n" $n eval --model "$O/train0/policy.bin" --reference "$D/policy.bin" $R --data "$D/held.bin" $K $sample --out "$O/e$n"
        works "$WHO eval of a reward model, $n" $n eval --model "$D/reward.bin" --data "$D/labels.bin" --out "$O/er$n"
    done
    drawn "$WHO sample: the same completions" "$O/S0/sampled.bin" "$O/S3/sampled.bin"
    check "$WHO sample: the same samples.txt" cmp "$O/S0/samples.txt" "$O/S3/samples.txt"
    drawn "$WHO beams: the same" "$O/B0/sampled.bin" "$O/B3/sampled.bin"
    near "$WHO score by the policy: the same, once" "$O/p0" "$O/p3"
    near "$WHO score by a reward model: the same" <("$T/make_files" show "$O/r0/scored.bin") <("$T/make_files" show "$O/r3/scored.bin")
    check "$WHO score by a command: asked once of each response" cmp "$O/asked0" "$O/asked3"
    check "$WHO score by a command: it is no part of the run" [ "$(grep -cE '^(OMPI|PMIX|PMI)_' "$O/env")" = 0 ]
    check "$WHO score by a command: but has the rest of the environment" grep -q '^PATH=' "$O/env"
    check "$WHO score by a command: the same" cmp "$O/c0/scored.bin" "$O/c3/scored.bin"
    near "$WHO eval: the same figures" "$O/e0/eval.csv" "$O/e3/eval.csv"
    near "$WHO eval of a reward model: the same figures" "$O/er0/eval.csv" "$O/er3/eval.csv"

    works "$WHO 4 steps, 2" 2 ${args[train]} --steps 4 --out "$O/part"
    cp -r "$O/part" "$O/other"
    works "$WHO resumed, 2" 2 ${args[train]} --resume "$O/part"
    check "$WHO resumed: the weights of a run without a stop" cmp "$O/train2/policy.bin" "$O/part/policy.bin"
    check "$WHO resumed: the log of a run without a stop" cmp <(columns "$O/train2/log.csv") <(columns "$O/part/log.csv")
    run 3 ${args[train]} --resume "$O/other"
    code=$?
    check "$WHO resumed with another number of processes: refused" one_error 1 "begun with processes 2, this is processes 3"

    run 2 train $M --data "$T/none" --out "$O/x"
    code=$?
    check "$WHO no such file: said once" one_error 1 "$T/none"
    if [[ $BIN == *emulated ]]; then # what layernorm's backward cannot hold
        run 0 sft --data "$D/labels.bin" --layers 1 --heads 14 --channels 518 --steps 1 --out "$O/wide"
        code=$?
        check "$WHO too many channels for the kernels: refused" one_error 1 "518 channels in heads of 37: up to 512"
    fi
    run 2 train --nonsense 1
    code=$?
    check "$WHO no such option: said once" one_error 2 "nonsense"
    run 3 score --reward "cmd:for i in 1 2 3; do read -r line; echo 1; done" $K --data "$D/ranked.bin" --out "$O/x"
    code=$?
    check "$WHO a reward command that ends: said once, and all end" one_error 1 "it ended"
    # only the 11th of the 13 queries reaches position 14, whose embedding overflows
    huge=()
    for ((i = 0; i < 16; i++)); do huge+=(f32 $((1024 + 4 * (64 * 16 + 14 * 16 + i))) 3.3e38); done
    "$T/make_files" edit "$D/policy.bin" "$D/huge.bin" "${huge[@]}"
    run 3 score --model "$D/huge.bin" --data "$D/ranked.bin"
    code=$?
    check "$WHO a value of another process is no number: it says so" one_error 1 "process 2: NaN"

    # two processes that begin with other weights, each with those of its number
    cp "$D/policy.bin" "$D/0.bin"
    cp "$D/bf16_as_fp32.bin" "$D/1.bin"
    timeout 120 mpirun -np 2 sh -c "exec $BIN ${args[train]/policy.bin/\${OMPI_COMM_WORLD_RANK:-\$PMI_RANK\}.bin} --out $O/differ" </dev/null >"$T/out" 2>"$T/err"
    code=$?
    check "$WHO other weights: said once" one_error 1 "1 of 2 processes have come to other weights"
    check "$WHO other weights: nothing is written" [ -z "$(ls "$O/differ")" ]

    # one of them interrupted: all stop at the same step. The data last long enough not to end before
    timeout 240 mpirun -np 2 "$BIN" train $M --data "$D/queries.bin" --batch 4 --epochs 1000 --out "$O/stopped" </dev/null >"$T/out" 2>"$T/err" &
    job=$!
    for ((i = 0; i < 1200; i++)); do grep -q "^train  *[0-9]*/" "$T/err" && break; sleep 0.1; done
    one=none
    for v in /proc/[0-9]*; do
        read -r name <"$v/comm" && [ "$name" = "$WHO" ] && grep -qaF "$O/stopped" "$v/cmdline" && one=${v##*/}
    done 2>/dev/null
    kill -INT "$one"
    wait $job
    code=$?
    check "$WHO Ctrl-C in one of 2: exit code $code, and the state is saved" [ "$code $([ -s "$O/stopped/state.bin" ] && echo saved)" = "1 saved" ]
    left=$(find "$O" -name '*.tmp')
    check "$WHO nothing half-written: $left" [ -z "$left" ]
done
echo "$passed passed, $failed failed"
[ $failed = 0 ]
