#!/usr/bin/env bash
# test_demo.sh: the README's first command, ./train_rrhf, from nothing to its table. Run from the repository root after
# `make train_rrhf`; takes one to three minutes.
#
#   test/test_demo.sh [plots]      plots: this build has stb_image_write, so it must draw its curves
export OMP_WAIT_POLICY=passive
. test/check.sh # check, T

# Interrupted while it pretrains: the hint must work as it stands, and what is left must not be in the way of the next run.
./train_rrhf --out "$T/demo" --seed 1 --threads 2 > "$T/out" 2> "$T/err" &
demo=$!
for ((i = 0; i < 600; i++)); do grep -sqE '^sft +[0-9]+/' "$T/err" && break; sleep 0.1; done
kill -INT $demo
wait $demo
code=$?
check "Ctrl-C: exit code $code" [ $code = 1 ]
sed -n '/^The demo starts over/,$ s/^\$ //p' "$T/err" > "$T/rest"
read -r first < "$T/rest"
check "Ctrl-C: prints the $(wc -l < "$T/rest") commands of the rest" [ "$(wc -l < "$T/rest")" = 7 ]
check "Ctrl-C: each with its --seed and --threads" [ "$(grep -c -e '--seed 1 --threads 2' "$T/rest")" = 7 ]
check "Ctrl-C: $first" [ "${first##* --}" = "resume $T/demo/sft" ]
read -ra words <<< "$first --steps 1"
"${words[@]}" > "$T/out" 2> "$T/err"
code=$?
check "Ctrl-C: that command is accepted: exit code $code $(grep -m 1 '^error' "$T/err")" [ $code = 0 ]

timeout 600 ./train_rrhf --out "$T/demo" > "$T/out" 2> "$T/err"
code=$?
check "the demo: exit code $code $(grep -m 1 '^error' "$T/err")" [ $code = 0 ]

figure() { # ROW FIGURE: its mean and error in eval.csv
    awk -F, -v row="$1" -v name="$2" '$1 == row && $2 == name { print $3, $4 }' "$T/demo/eval/eval.csv" 2> /dev/null
}
above() { # MEAN ERROR MEAN ERROR: is the first above the second by more than two standard errors of the difference?
    awk -v a="$1" -v ea="$2" -v b="$3" -v eb="$4" 'BEGIN { exit !(ea > 0 && a - b > 2 * sqrt(ea * ea + eb * eb)) }'
}
read -r after after_err <<< "$(figure RRHF reward)"
read -r before before_err <<< "$(figure SFT reward)"
read -r kl kl_err <<< "$(figure RRHF kl)"
check "reward: RRHF $after +- $after_err above SFT $before +- $before_err" above "$after" "$after_err" "$before" "$before_err"
check "KL of RRHF to its start: $kl +- $kl_err, above 0" above "$kl" "$kl_err" 0 0
for row in SFT RRHF; do
    read -r mean err <<< "$(figure $row reward)"
    said=$(grep -m 1 "^$row " "$T/out")
    check "the table's row: ${said:0:60}" grep -qF "$(printf '%-10s  %.3f +- %.3f' $row "$mean" "$err")" "$T/out"
done

for file in tokenizer.bin sft/policy.bin reward/policy.bin scored/scored.bin policy.bin log.csv samples.txt eval/eval.csv; do
    check "$file is there" [ -s "$T/demo/$file" ]
done
curves() { # is there a picture, and does the last line name it? 1: yes to both, 0: no to both
    local there=0 named=0
    [ -s "$T/demo/curves.png" ] && there=1
    tail -n 1 "$T/out" | grep -qF "$T/demo/curves.png" && named=1
    [ $there$named = "$1$1" ]
}
if [ "$1" = plots ]; then check "curves.png is there, and the last line names it" curves 1
else check "no plots in this build: no curves.png, and the last line names none" curves 0; fi
check "three completions before, three after" [ "$(grep -c '^before:' "$T/out") $(grep -c '^after: ' "$T/out")" = "3 3" ]
left=$(find "$T/demo" -name '*.tmp')
check "nothing half-written: $left" [ -z "$left" ]
echo "$passed passed, $failed failed"
[ $failed = 0 ]
