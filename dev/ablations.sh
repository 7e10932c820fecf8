#!/usr/bin/env bash
# What the choices of the loss change, measured on the demo's made-up reviews: each variant is trained on the same scored
# responses with three seeds, and judged on fresh completions of held-out queries. Figures are means over the seeds, +-
# their standard error.
#
#   ./train_rrhf && dev/ablations.sh [DIR]      DIR: the demo's --out (out); results go to DIR/ablations; 7 to 15 minutes
set -euo pipefail
dir=${1:+$(realpath "$1")} # from where the caller stands
cd "$(dirname "$0")/.."
dir=${dir:-out}
[ -f "$dir/scored/scored.bin" ] || { echo "error: $dir/scored/scored.bin: not found; run ./train_rrhf --out $dir first" >&2; exit 1; }
make -s train_rrhf >&2
variants=("as in the paper|" "released code's rank weight|--rank-weight 100" "no ranking loss|--rank-weight 0" "no fine-tuning loss|--ft-weight 0"
    "mean fine-tuning loss|--ft-reduction mean" "mean, rank weight 100|--ft-reduction mean --rank-weight 100"
    "no length normalisation|--length-penalty 0" "margin 0.1|--margin 0.1" "one query per step|--batch 1 --lr 2.5e-4")
ask=(--tokenizer "$dir/tokenizer.bin" --top-k 50 --max-new-tokens 32)
printf '%-30s  %-17s  %-17s  %-17s  %-15s  %s\n' variant reward perplexity "KL to start" tokens distinct-2
# shellcheck disable=SC2086 # the options are words
for v in "${variants[@]}"; do
    name=${v%%|*} options=${v#*|} files=()
    for seed in 1 2 3; do
        mkdir -p "$dir/ablations"
        to="$dir/ablations/${name// /-}-$seed"
        files+=("$to/eval.csv")
        [ ! -f "$to/eval.csv" ] || continue
        ./train_rrhf train --model "$dir/sft/policy.bin" --data "$dir/scored/scored.bin" "${ask[@]}" --batch 16 --epochs 2 \
            --lr 1e-3 $options --seed $seed --out "$to" > /dev/null 2> "$to.log" || { cat "$to.log" >&2; exit 1; }
        ./train_rrhf eval --model "$to/policy.bin" --reference "$dir/sft/policy.bin" --start-return 0 --reward "$dir/reward/policy.bin" \
            --data "$dir/queries_held.bin" "${ask[@]}" --seed $seed --out "$to" > /dev/null 2>> "$to.log" || { cat "$to.log" >&2; exit 1; }
    done
    awk -F, -v name="$name" '$1 == "policy" { n[$2]++; s[$2] += $3; q[$2] += $3 * $3 }
        function figure(f, m, e) { m = s[f] / n[f]; e = (q[f] / n[f] - m * m) / (n[f] - 1); return sprintf("%.3f +- %.3f", m, sqrt(e > 0 ? e : 0)) }
        END { printf "%-30s  %-17s  %-17s  %-17s  %-15s  %.3f\n", name, figure("reward"), figure("perplexity"), figure("kl"), figure("tokens"), s["distinct-2"] / n["distinct-2"] }' "${files[@]}"
done
