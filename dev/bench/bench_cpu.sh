#!/usr/bin/env bash
# One RRHF step of GPT-2 124M on the CPU, one query of 64 tokens and 6 responses of 48, against PyTorch in the same run.
#   dev/bench/bench_cpu.sh [torch_rrhf.py [python]]     ROUNDS=3 STEPS=7
# Runs take turns; every figure is the median over a run's steps but the first two, the ratio that of the rounds' best.
set -euo pipefail
cd "$(dirname "$0")/../.."
torch=${1:-} python=${2:-python3} rounds=${ROUNDS:-3} steps=${STEPS:-7} dir=${TMPDIR:-/tmp}/rrhf_bench
threads=$(nproc)
make -s train_rrhf
gcc -O2 -o dev/bench/make_step dev/bench/make_step.c -lm
dev/bench/make_step "$dir"

ours() { # milliseconds
    ./train_rrhf train --model "$dir/model.bin" --data "$dir/ranked.bin" --batch 1 --epochs 1 --steps "$steps" --threads "$threads" \
        --out "$dir/out" 2>/dev/null
    tail -n +4 "$dir/out/log.csv" | cut -d, -f8 | sort -n | awk '{a[NR]=$1} END {print a[int((NR+1)/2)]}'
}
theirs() { "$python" "$torch" --steps "$((steps - 2))" --threads "$threads" | sed -n 's/^median_ms \([0-9.]*\).*/\1/p'; }

best_ours=1e9 best_theirs=1e9
for i in $(seq "$rounds"); do
    a=$(ours)
    best_ours=$(echo "$a $best_ours" | awk '{print ($1<$2)?$1:$2}')
    line="round $i: ours $a ms"
    if [ -n "$torch" ]; then
        b=$(theirs)
        best_theirs=$(echo "$b $best_theirs" | awk '{print ($1<$2)?$1:$2}')
        line="$line, PyTorch $b ms, ratio $(echo "$b $a" | awk '{printf "%.2f", $1/$2}')"
    fi
    echo "$line"
done
echo "ours $best_ours ms = $(echo "$best_ours" | awk '{printf "%.0f", 246e3/$1}') GFLOP/s over the step's 246 GFLOP"
[ -z "$torch" ] || echo "ratio of the best: $(echo "$best_theirs $best_ours" | awk '{printf "%.2f", $1/$2}')"
