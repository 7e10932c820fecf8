#!/usr/bin/env bash
# The CPU's speed beside PyTorch's, transformers' and tiktoken's: GPT-2 124M, all threads, everything in one run.
#
#   dev/bench/bench_cpu.sh [--torch SCRIPT] [--python PYTHON]... [--tokenizer gpt2_tokenizer.bin --text TEXT]
#                          [--only step,k,sample,beam,memory,tokenizer,start] [--rounds 3] [--steps 5]
#   dev/bench/bench_cpu.sh SCRIPT [PYTHON]...      the same as --torch and --python
#
# --torch      the training step in PyTorch [dev/bench/torch_step.py]
# --python     an interpreter with torch, transformers or tiktoken; several take turns and the fastest counts [python3];
#              where a package is missing, its rows show our figure only
# --tokenizer, --text    GPT-2's vocabulary, and reviews to encode: a file, a folder or a tar archive of .txt files
# --rounds, --steps      runs of each program, which take turns; steps counted in each run, after two that are not
#
# A figure is the median over rounds (of the median over a run's steps). A run of all rows also writes the table to
# dev/bench/cpu_table.md. dev/bench/README.md says what each row means. Needs bash 5, Linux, 2 GB in TMPDIR.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/../.."

torch='' tokenizer='' text='' only=step,k,sample,beam,memory,tokenizer,start rounds=${ROUNDS:-3} steps=${STEPS:-5}
pythons=() all=$only
die() { echo "bench_cpu.sh: $*" >&2; exit 1; }
while [ $# -gt 0 ]; do
    case $1 in
        --torch|--python|--tokenizer|--text|--only|--rounds|--steps) [ $# -gt 1 ] || die "$1: expected a value after it" ;;&
        --torch) torch=$2 ;; --python) pythons+=("$2") ;; --tokenizer) tokenizer=$2 ;; --text) text=$2 ;;
        --only) only=$2 ;; --rounds) rounds=$2 ;; --steps) steps=$2 ;;
        -*) die "'$1': no such option; see the head of this file" ;;
        *) if [ -z "$torch" ]; then torch=$1; else pythons+=("$1"); fi; shift; continue ;; # the short form
    esac
    shift 2
done
for n in "$rounds" "$steps"; do [[ $n =~ ^[1-9][0-9]*$ ]] || die "'$n': expected a whole number from 1"; done
for r in ${only//,/ }; do [[ ,$all, == *",$r,"* ]] || die "--only '$r': expected some of $all"; done
for f in torch tokenizer text; do # relative to where we were called
    [ -z "${!f}" ] || [[ ${!f} == /* ]] || printf -v $f %s "$here/${!f}"
    [ -z "${!f}" ] || [ -e "${!f}" ] || die "${!f}: no such file"
done
torch=${torch:-dev/bench/torch_step.py}
[ ${#pythons[@]} -gt 0 ] || pythons=(python3)
wanted() { [[ ,$only, == *",$1,"* ]]; }

# ----------------------------------------------------------------------------
# The programs and their files

threads=$(nproc)
dir=$(mktemp -d "${TMPDIR:-/tmp}/rrhf_bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
make -s train_rrhf > "$dir/make.txt"
cc=${CC:-gcc}
"$cc" -O3 -march=native -fno-math-errno -fopenmp -o "$dir/fma_peak" dev/bench/fma_peak.c -lm
"$cc" -std=c11 -O3 -march=native -o "$dir/make_step" dev/bench/make_step.c -lm
"$cc" -std=c11 -O3 -march=native -o "$dir/encode" dev/bench/encode.c -lm
if wanted step; then # the same program without a library for matrix products
    mkdir -p "$dir/noblas/dev"
    cp Makefile ./*.c ./*.h "$dir/noblas" && cp dev/*.h "$dir/noblas/dev"
    make -s -C "$dir/noblas" NO_BLAS=1 train_rrhf > "$dir/make.txt"
fi
"$dir/make_step" "$dir" $((steps + 2))
model=$dir/model.bin

# ----------------------------------------------------------------------------
# Measuring. A sample is one number, the lower the better; KEY.WHO holds those of one program.

median() { sort -n "$1" | awk '{a[NR] = $1} END {if (NR) print (a[int((NR + 1) / 2)] + a[int(NR / 2) + 1]) / 2}'; }
value() { sed -n "s/.*$1 \([0-9.]*\).*/\1/p" | tail -1; } # the number after a name

ours() { # key, command that prints the number; its failure is ours to mend
    local number
    { number=$("${@:2}") && [ -n "$number" ]; } || die "no figure for $1"
    echo "$number" >> "$dir/$1.ours.samples"
}

# A program of the peer's may be missing or fail: then it has no sample, and after the first round no other turn.
peer() { # key, who, round, command that prints the number
    [ "$3" = 1 ] || [ -s "$dir/$1.$2.samples" ] || return 0
    local number
    number=$("${@:4}" 2> "$dir/peer.txt") || true
    [ -z "$number" ] || echo "$number" >> "$dir/$1.$2.samples"
    [ -s "$dir/$1.$2.samples" ] || echo "   $2: no figure; it said: $(tail -1 "$dir/peer.txt")" >&2
}

# Milliseconds from the line that matches FROM ('' = the start of the program) to the line that matches TO, less the
# milliseconds that TO's group, where it has one, reads there.
span() { # from, to, command
    local begin='' end='' less=0 line out last=''
    [ -n "$1" ] || begin=$EPOCHREALTIME
    exec {out}< <("${@:3}" 2>&1 || echo "failed")
    while read -r line <&$out; do
        if [ -z "$begin" ]; then [[ $line =~ $1 ]] && begin=$EPOCHREALTIME
        elif [ -z "$end" ] && [[ $line =~ $2 ]]; then end=$EPOCHREALTIME less=${BASH_REMATCH[1]:-0}; fi
        [ "$line" != failed ] || end=''
        [ "$line" = failed ] || last=$line
    done
    exec {out}<&-
    [ -n "$end" ] || { echo "$last" >&2; return 1; }
    echo "$begin $end $less" | awk '{printf "%.1f\n", ($2 - $1) * 1e3 - $3}'
}

peak_mib() { # command, no function: the largest resident memory of the whole process
    local pid peak='' now
    "$@" > /dev/null 2> "$dir/said.txt" &
    pid=$!
    while kill -0 $pid 2> /dev/null; do
        now=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/$pid/status 2> /dev/null || true)
        peak=${now:-$peak}
        sleep 0.05
    done
    { wait $pid && [ -n "$peak" ]; } || { tail -1 "$dir/said.txt" >&2; return 1; }
    echo "$peak" | awk '{printf "%.0f\n", $1 / 1024}'
}

train() { # program, file, options: a step for each query
    "$1" train --model "$model" --data "$2" --batch 1 --epochs 1 --threads "$threads" --out "$dir/out" "${@:3}"
}
step_ms() { # program, file, options: the median step, without the first two
    train "$@" 2> "$dir/said.txt" || { cat "$dir/said.txt" >&2; return 1; }
    tail -n +4 "$dir/out/log.csv" | cut -d, -f8 > "$dir/ms.txt"
    median "$dir/ms.txt"
}
torch_ms() { "$1" "$torch" --steps "$steps" --threads "$threads" "${@:2}" | value median_ms; }

complete_ms() { # file of queries, options: from the loaded model to the last token; checks how many tokens there are
    span '^sample +policy:' '\([0-9.]+ s\)' ./train_rrhf sample --model "$model" --data "$dir/$1" --num-return 4 --max-new-tokens 48 \
        --threads "$threads" --out "$dir/out" "${@:2}" || return 1
    local queries new
    read -r queries _ new <<< "$(od -An -t d4 -j 8 -N 12 "$dir/out/sampled.bin")"
    new=$((new - 64 * queries))
    [ $new = $((queries * 4 * 48)) ] || die "$1: $new new tokens instead of $((queries * 4 * 48)): random weights met end-of-text"
}
generate_ms() { "$1" dev/bench/peers.py "$2" "$model" "$dir/$3" "$threads" | value generate_ms; }

encode_ms() { "$@" | tee "$dir/tokens.txt" | value encode_mb_per_s | awk '{print 1e3 / $1}'; } # per megabyte

# ----------------------------------------------------------------------------
# The table

table=$dir/table.md
say() { echo "$*" | tee -a "$table"; }

# A figure as it is shown: KIND is ms, MiB, MB/s, or a number of tokens for tokens/s.
show() { # kind, number
    case $1 in
        ms) printf '%.0f ms' "$2" ;; MiB) printf '%.0f MiB' "$2" ;;
        MB/s) echo "$2" | awk '{printf "%.1f MB/s", 1e3 / $1}' ;;
        *) echo "$1 $2" | awk '{printf "%.0f tokens/s", $1 / $2 * 1e3}' ;;
    esac
}

# One row: ours beside the best of the peers that were measured under the same key.
row() { # work, kind, key of ours, key of the peers, least ratio
    local ours best='' name='' f m
    ours=$(median "$dir/$3.ours.samples")
    for f in "$dir/$4".*.samples; do
        case $f in *.ours.samples|*'*'*) continue ;; esac
        m=$(median "$f")
        f=${f#"$dir/$4."}
        echo "   $1: ${f%.samples} $(show "$2" "$m")" >&2
        if [ -z "$best" ] || awk "BEGIN {exit !($m < $best)}"; then best=$m name=${f%.samples}; fi
    done
    if [ -z "$best" ]; then say "| $1 | $(show "$2" "$ours") | not measured | | $5 | |"; return; fi
    say "| $1 | $(show "$2" "$ours") | $(show "$2" "$best") ($name) | $(echo "$best $ours $5" |
        awk '{printf "%.2f | %s | %s", $1 / $2, $3, ($3 == "" ? "" : $1 / $2 >= $3 ? "yes" : "no")}') |"
}

labels=() # of the interpreters: what they have
for p in "${pythons[@]}"; do
    command -v "$p" > /dev/null || die "--python $p: no such program"
    labels+=("$("$p" - << 'PY'
import importlib.metadata as m
def has(name):
    try: return f"{name} {m.version(name).split('+')[0]}"
    except m.PackageNotFoundError: return ""
print(" ".join(filter(None, map(has, ("torch", "transformers", "tiktoken")))) or "no packages")
PY
    )")
done
label() { # index, package: "torch 2.1.0"; nothing where it is missing
    local package="$2 [^ ]+"
    [[ ${labels[$1]} =~ $package ]] && echo "${BASH_REMATCH[0]}"
}
compiles() { [ "$("${pythons[$1]}" dev/bench/peers.py versions 2> /dev/null | value compile)" = 1 ]; }

# All PyTorch steps of one round: each interpreter, plain and, where it has torch.compile, compiled.
torch_round() { # key, round, options
    local i name
    for i in "${!pythons[@]}"; do
        name=$(label "$i" torch) || continue
        peer "$1" "$name" "$2" torch_ms "${pythons[$i]}" "${@:3}"
        if compiles "$i"; then peer "$1" "$name --compile" "$2" torch_ms "${pythons[$i]}" "${@:3}" --compile; fi
    done
}

say "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $threads threads; $(train ./train_rrhf "$dir/one.bin" 2>&1 | sed -n 1p)."
say "GPT-2 124M, random weights; medians of $rounds rounds in turns, $steps steps each; Python: $(printf '%s; ' "${labels[@]}" | sed 's/; $//')."
say ""
say "| work | ours | theirs | ratio | target | met |"
say "| --- | --- | --- | --- | --- | --- |"

if wanted step; then
    bf16=''
    grep -qwE 'amx_bf16|avx512_bf16' /proc/cpuinfo || bf16='this CPU has neither AMX nor AVX512-BF16'
    [ -n "$bf16" ] || train ./train_rrhf "$dir/one.bin" --dtype bf16 2> "$dir/said.txt" || bf16=$(tail -1 "$dir/said.txt")
    for i in $(seq "$rounds"); do
        echo "step: round $i" >&2
        "$dir/fma_peak" "$threads" > "$dir/peak.txt"
        sed -n 's/.* \([0-9.]*\) GFLOP.*/\1/p' "$dir/peak.txt" >> "$dir/peak.samples"
        ours step step_ms ./train_rrhf "$dir/k6.bin" --profile 1
        sed -n 's/.* \([0-9.]*\) GFLOP\/s in products.*/\1/p' "$dir/said.txt" >> "$dir/rate.samples"
        torch_round step "$i"
        ours noblas step_ms "$dir/noblas/train_rrhf" "$dir/k6.bin"
        [ -n "$bf16" ] || ours bf16 step_ms ./train_rrhf "$dir/k6.bin" --dtype bf16
        [ -n "$bf16" ] || torch_round bf16 "$i" --bf16
    done
    row "RRHF step, float32" ms step step 4
    peak_row() { # work, GFLOP/s, least share of the FMA peak
        say "$(echo "$2 $(median "$dir/peak.samples") $3" | awk -v work="$1" '{share = 100 * $1 / $2
            printf "| %s | %.0f GFLOP/s | %.0f GFLOP/s (FMA peak) | %.1f %% | %s | %s |", work, $1, $2, share,
                   ($3 ? $3 " %" : ""), ($3 ? (share >= $3 ? "yes" : "no") : "")}')"
    }
    peak_row "its 246 GFLOP, part of them spared, over its time" "$(median "$dir/step.ours.samples" | awk '{print 246e3 / $1}')" 65
    peak_row "its matrix products, those computed, over its time" "$(median "$dir/rate.samples")" ""
    row "RRHF step, float32, without a BLAS" ms noblas step 1
    if [ -n "$bf16" ]; then say "| RRHF step, bfloat16 | not measured: $bf16 | | | 2 | |"; else row "RRHF step, bfloat16" ms bf16 bf16 2; fi
fi

if wanted k; then
    for i in $(seq "$rounds"); do
        echo "k: round $i" >&2
        for k in 2 4 8 16; do ours "k$k" step_ms ./train_rrhf "$dir/k$k.bin" --margin 1000; done
    done
    say "$(for k in 2 4 8 16; do echo "$k $((64 + 48 * k)) $(median "$dir/k$k.ours.samples")"; done | awk '
        function spread(a,  i, lo, hi) {lo = hi = a[1]; for (i in a) {if (a[i] < lo) lo = a[i]; if (a[i] > hi) hi = a[i]}; return lo > 0 ? 100 * (hi / lo - 1) : 1e9}
        {n = NR; k = k s $1; N[n] = $2; ms[n] = $3; s = ", "; x += $2; y += $3; xx += $2 * $2; xy += $2 * $3}
        END {slope = (n * xy - x * y) / (n * xx - x * x); fixed = (y - slope * x) / n; s = ""
             for (i = 1; i <= n; i++) {all[i] = ms[i] / N[i]; net[i] = (ms[i] - fixed) / N[i]; a = a s sprintf("%.2f", all[i]); b = b s sprintf("%.2f", net[i]); s = ", "}
             printf "| ms per distinct token, k = %s | %s | less the fixed %.0f ms a step: %s | %.0f %% apart, less the fixed %.0f %% | 10 %% apart | %s |",
                 k, a, fixed, b, spread(all), spread(net), (spread(net) <= 10 ? "yes" : "no")}')"
fi

completions() { # row's name, its key, file of queries, tokens, work, options
    local i j name
    for i in $(seq "$rounds"); do
        echo "$1: round $i" >&2
        ours "$1" complete_ms "$2" "${@:5}"
        for j in "${!pythons[@]}"; do
            name="$(label "$j" transformers), $(label "$j" torch)" && peer "$1" "$name" "$i" generate_ms "${pythons[$j]}" "$1" "$2"
        done
    done
    row "$4" "$3" "$1" "$1" 3
}
if wanted sample; then completions sample ask64.bin $((64 * 4 * 48)) "sampling, 64 queries x 4 x 48 tokens, top-k 50" --policy S --top-k 50; fi
if wanted beam; then completions beam ask16.bin $((16 * 4 * 48)) "beam search, 4 beams, 16 queries x 48 tokens" --policy B --num-beams 4; fi

if wanted memory; then
    echo "memory" >&2
    ours memory peak_mib ./train_rrhf train --model "$model" --data "$dir/k6.bin" --batch 1 --epochs 1 --threads "$threads" --out "$dir/out"
    for i in "${!pythons[@]}"; do
        ! name=$(label "$i" torch) || peer memory "$name" 1 peak_mib "${pythons[$i]}" "$torch" --steps 1 --threads "$threads"
    done
    row "peak memory of training" MiB memory memory 2
fi

if wanted tokenizer; then
    if [ -z "$tokenizer" ] || [ -z "$text" ]; then say "| tokenizer | not measured: needs --tokenizer and --text | | | 1 | |"; else
        { if [ -d "$text" ]; then find "$text" -name '*.txt' -print0 | sort -z | xargs -0 cat
          elif [[ $text == *.tar* || $text == *.tgz ]]; then tar -xOf "$text" --wildcards '*.txt'
          else cat "$text"; fi || true; } 2> /dev/null | head -c 30000000 | iconv -c -f utf-8 -t utf-8 > "$dir/text.txt" || true # cut mid-character
        [ -s "$dir/text.txt" ] || die "$text: no text found"
        for i in $(seq "$rounds"); do
            echo "tokenizer: round $i" >&2
            ours tokenizer encode_ms "$dir/encode" "$tokenizer" "$dir/text.txt"
            ids=$(value sum < "$dir/tokens.txt") tried=''
            for j in "${!pythons[@]}"; do
                { name=$(label "$j" tiktoken) && [[ $tried != *"$name;"* ]]; } || continue # the same release only once
                tried+="$name;"
                peer tokenizer "$name" "$i" encode_ms "${pythons[$j]}" dev/bench/peers.py tiktoken "$tokenizer" "$dir/text.txt"
                [ "$(value sum < "$dir/tokens.txt")" = "$ids" ] || echo "   $name made other tokens than ours" >&2
            done
        done
        row "encoding $(wc -c < "$dir/text.txt" | awk '{printf "%.0f", $1 / 1e6}') MB of text, one thread" MB/s tokenizer tokenizer 1
    fi
fi

if wanted start; then
    for i in $(seq "$rounds"); do
        echo "start: round $i" >&2
        ours start span '' '^train +policy:' train ./train_rrhf "$dir/one.bin"
        ours first span '' '^train +1/1 ' train ./train_rrhf "$dir/one.bin"
        for j in "${!pythons[@]}"; do
            ! name=$(label "$j" torch) || for to in 'start ^step 0 .* ([0-9.]+) ms' 'first ^step 0 '; do
                peer "${to%% *}" "$name" "$i" span '' "${to#* }" "${pythons[$j]}" "$torch" --steps 1 --threads "$threads"
            done
        done
    done
    row "from the command to the first step" ms start start 5
    row "from the command to the first step done" ms first first ""
fi

if [ -s "$dir/peak.txt" ]; then say ""; say "Ceilings: $(paste -sd';' "$dir/peak.txt" | sed 's/;/; /g')."; fi
if [ "$only" = "$all" ]; then cp "$table" dev/bench/cpu_table.md && echo "dev/bench/cpu_table.md" >&2; fi
