#!/usr/bin/env bash
# gpu.sh: what only a GPU can tell, in one command of some minutes: the CUDA tests on it in both precisions, then every
# kernel once under compute-sanitizer, for accesses out of bounds and for races. (make test runs the tests, too, after
# all others; dev/bench/bench_cuda.sh measures.)
#
#   bash test/gpu.sh         LIMIT=100: seconds that a tool may take over a precision's kernels
#
# Prints all checks and ends with "N passed, N failed".
PATH=$PATH:/usr/local/cuda/bin
if [ "$1" = sanitize ]; then # TOOL PROGRAM, as one check
    # What a library's calls return is checked where they are called; racecheck is known to suspect cuBLAS's own kernels.
    # They are left out by name: what the list forgets may fail here. A list of ours could pass without checking any.
    options=(--report-api-errors no)
    if [ "$2" = racecheck ] && compute-sanitizer --help | grep -q -e --kernel-name-exclude; then
        options+=(--kernel-name-exclude 'regex=cublas|cutlass|nvjet|xmma|gemmSN|gemv|gemmk1|sgemm|volta_|turing_|ampere_')
    fi
    said=$(timeout "${LIMIT:-100}" compute-sanitizer --tool "$2" --error-exitcode 1 "${options[@]}" "$3" kernels 2>&1)
    code=$?
    if [[ $said == *"Device not supported"* ]]; then
        echo "not tested: $2 of $3 (compute-sanitizer does not support this device)"; echo "0 passed, 0 failed"; exit
    fi
    [ "$code" -ne 124 ] || said="========= no end within ${LIMIT:-100} s; LIMIT=SECONDS allows more"
    [ "$code" -eq 0 ] || echo "$said" | grep -E '^FAIL|^=========' | head -40
    summary=$(echo "$said" | grep -E 'SUMMARY' | tail -1)
    if [ "$code" -eq 0 ] && [ -n "$summary" ]; then echo "ok   $2 of $3: ${summary#========= }"; echo "1 passed, 0 failed"
    else echo "FAIL $2 of $3: exit code $code"; echo "0 passed, 1 failed"; exit 1
    fi
    exit
fi
cd "$(dirname "$0")/.." || exit 1
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+\.[0-9]+$')
[ -n "$capability" ] || { echo "gpu.sh: no GPU found (nvidia-smi says nothing)" >&2; exit 1; }
precisions=(fp32 bf16)
[[ $capability != 7.* ]] || precisions=(fp32) # Turing has no bfloat16
tests=("${precisions[@]/#/test/test_cuda_gpu_}")
make -j "${tests[@]}" || exit 1
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck; do
        for p in "${precisions[@]}"; do tests+=("bash test/gpu.sh sanitize $tool test/test_cuda_gpu_$p"); done
    done
else echo "not tested: memory and races (no compute-sanitizer on PATH)"
fi
JOBS=1 exec bash test/run.sh "${tests[@]}"
