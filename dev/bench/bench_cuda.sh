#!/bin/bash
# bench_cuda.sh: the GPU's RRHF step beside PyTorch's, its kernels, and sampling, GPT-2 124M, in one run.
#
#   bash dev/bench/bench_cuda.sh [--torch SCRIPT] [QUERIES ...]     default: 64 16 1
#
# Prints, and keeps in dev/bench/cuda.txt: bench_cuda's report (step, kernel by kernel, sampling, beams) for each number
# of queries per step; then SCRIPT's step [dev/bench/torch_step.py] on as many: plain and compiled, bfloat16, and the ratio
# to the better of the two. SCRIPT is called with --device cuda --bf16 [--compile] --queries Q --steps 20 and prints a line
# "median_ms M". At last the sampling of 64 queries by transformers' generate, where python3 has it.
# A part that fails, or takes longer than LIMIT seconds, is left out and said so; so is what Python lacks.
# May be set: NVCC, NVCC_EXTRA, CC, ARCH=sm_90, PRECISION=BF16, PYTHON=python3, LIMIT=200.
set -o pipefail
here=$PWD
cd "$(dirname "$0")/../.." || exit 1
torch=dev/bench/torch_step.py
[ "$1" = --torch ] && { torch=$2; [[ $torch == /* ]] || torch=$here/$torch; shift 2; }
[ -f "$torch" ] || { echo "bench_cuda.sh: --torch $torch: no such file" >&2; exit 1; }
queries=$*
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
python=${PYTHON:-python3}
limit=${LIMIT:-200}
cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -Eo '^[0-9]+\.[0-9]+' | head -1 | tr -d .)
arch=${ARCH:-sm_$cap}
[ "$arch" = sm_ ] && { echo "bench_cuda.sh: no GPU found (nvidia-smi says nothing); nothing to measure" >&2; exit 1; }
[ -x "$nvcc" ] || { echo "bench_cuda.sh: $nvcc: no CUDA compiler; install the CUDA toolkit or set NVCC" >&2; exit 1; }
"$nvcc" -std=c++17 -O3 -arch="$arch" -Xlinker "-rpath,$(dirname "$nvcc")/../lib64:$(dirname "$nvcc")/../lib" -Xcompiler -fopenmp \
    "-DPRECISION_${PRECISION:-BF16}" $NVCC_EXTRA -o dev/bench/bench_cuda dev/bench/bench_cuda.cu -lcublasLt || exit 1

compare() {
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader | head -1
    there=$("$python" -c 'import torch; assert torch.cuda.is_available(); print(torch.__version__)' 2>/dev/null)
    echo "PyTorch's step: ${there:-left out (no torch that sees the GPU)}"
    for q in ${queries:-64 16 1}; do
        echo
        echo "== $q queries per step: this program"
        timeout "$limit" dev/bench/bench_cuda "$q" > dev/bench/part.tmp 2>&1 || echo "failed: exit code $?"
        cat dev/bench/part.tmp
        ours=$(sed -n 's/^step:.*median_ms \([0-9.]*\).*/\1/p' dev/bench/part.tmp | head -1)
        best=
        for how in ${there:+plain --compile}; do
            echo "== $q queries per step: PyTorch bfloat16, ${how#--}"
            timeout "$limit" "$python" "$torch" --device cuda --bf16 ${how%plain} --queries "$q" --steps 20 > dev/bench/part.tmp 2>&1 || echo "failed: exit code $?"
            tail -1 dev/bench/part.tmp
            theirs=$(sed -n 's/^median_ms \([0-9.]*\).*/\1/p' dev/bench/part.tmp | tail -1)
            best=$(echo "$theirs $best" | awk '{b = $1; for (i = 2; i <= NF; i++) if ($i < b) b = $i; print b}')
        done
        [ -n "$ours" ] && [ -n "$best" ] &&
            awk -v q="$q" -v o="$ours" -v t="$best" 'BEGIN {printf "ratio: %d queries per step, %.2f ms here, %.2f ms PyTorch: %.2f times as fast\n", q, o, t, t / o}'
    done
    rm -f dev/bench/part.tmp
    generate
}

generate() { # what bench_cuda reports as sampling of 64 queries
    echo
    "$python" -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null ||
        { echo "transformers' sampling: left out (no transformers with a torch that sees the GPU)"; return; }
    local dir
    dir=$(mktemp -d) || return
    echo "sampling: queries 64 completions 4 x 48 tokens, top-k 50, transformers in bfloat16"
    "${CC:-cc}" -std=c11 -O3 -o "$dir/make_step" dev/bench/make_step.c -lm && "$dir/make_step" "$dir" 1 &&
        timeout "$limit" "$python" dev/bench/peers.py sample "$dir/model.bin" "$dir/ask64.bin" "$(nproc)" cuda 2>&1 | tail -1
    rm -rf "$dir"
}
compare 2>&1 | tee dev/bench/cuda.txt
