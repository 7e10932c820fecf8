#!/bin/bash
# bench_cuda.sh: the GPU's RRHF step beside PyTorch's, GPT-2 124M, in one run.
#
#   bash dev/bench/bench_cuda.sh [torch_rrhf.py [QUERIES ...]]     default: ../shared/bench/torch_rrhf.py 64 16 1
#
# Prints bench_cuda's report (step, kernel by kernel, sampling) for each number of queries per step, then PyTorch's step
# on as many: plain and compiled, bfloat16, and the ratio to the better of the two. Without python3 or torch the
# comparison is left out. NVCC, ARCH and PRECISION may be set: ARCH=sm_90 PRECISION=BF16.
set -e -o pipefail
cd "$(dirname "$0")/../.."
torch=${1:-../shared/bench/torch_rrhf.py}
queries=${*:2}
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
cap=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d . || true)
arch=${ARCH:-sm_$cap}
[ "$arch" = sm_ ] && { echo "bench_cuda.sh: no GPU found (nvidia-smi says nothing); nothing to measure" >&2; exit 1; }
[ -x "$nvcc" ] || { echo "bench_cuda.sh: $nvcc: no CUDA compiler; install the CUDA toolkit or set NVCC" >&2; exit 1; }

"$nvcc" -std=c++17 -O3 -arch="$arch" -Xcompiler -fopenmp "-DPRECISION_${PRECISION:-BF16}" -o dev/bench/bench_cuda dev/bench/bench_cuda.cu -lcublasLt
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,power.limit --format=csv,noheader

median() { sed -n 's/.*median_ms \([0-9.]*\).*/\1/p' | head -1; }
for q in ${queries:-64 16 1}; do
    echo
    echo "== $q queries per step: this program"
    ours=$(dev/bench/bench_cuda "$q" | tee /dev/stderr | median)
    if [ ! -f "$torch" ] || ! python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        echo "PyTorch: left out ($torch, or a torch that sees the GPU, is missing)"
        continue
    fi
    best=
    for how in "" --compile; do
        echo "== $q queries per step: PyTorch bfloat16 $how"
        theirs=$(python3 "$torch" --device cuda --bf16 $how --queries "$q" --steps 20 | tail -1 | tee /dev/stderr | median) || continue
        best=$(echo "$theirs $best" | awk '{print NF > 1 && $2 < $1 ? $2 : $1}')
    done 2>&1
    [ -n "$best" ] && echo "$ours $best" | awk -v q="$q" '{printf "ratio: %d queries per step, %.2f ms here, %.2f ms PyTorch: %.2f times as fast\n", q, $1, $2, $2 / $1}'
done
