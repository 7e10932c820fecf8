#!/usr/bin/env bash
# IMDB sentiment (paper, appendix C) with a small model from random weights: pretrain, reward model, four completions
# per query, rewards, RRHF, evaluation on held-out test queries.
#
#   dev/imdb.sh [--size small|large] [--tokenizer gpt2_tokenizer.bin] [PATH ...]
#   dev/imdb.sh table [--jobs N] ...     every sampling policy of the paper: its Table 10 and more (hours, see below)
#
# PATH: the folder aclImdb, a folder that holds it or its archives, or archives (.tar.gz, .tar.xz). Without one the
# official archive (84 MB) and llm.c's GPT-2 tokenizer are fetched. small: 5 to 10 minutes on two cores; large
# (default): about an hour. Results go to out/imdb-SIZE; a step whose result is there is not done again.
# table: 18 more runs, --jobs N (all cores) at a time with one thread each, and table.md, table.csv, table.png.
set -euo pipefail
ARCHIVE=https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz
ARCHIVE_SHA256=c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe
TOKENIZER_URL=https://huggingface.co/datasets/karpathy/llmc-starter-pack/resolve/main/gpt2_tokenizer.bin

die() { echo "error: $*" >&2; exit 1; }
usage() { echo "error: $*" >&2; exit 2; }
size=large tokenizer='' paths=() table='' jobs=$(getconf _NPROCESSORS_ONLN)
if [ "${1:-}" = table ]; then table=1; shift; fi
while [ $# -gt 0 ]; do
    case $1 in --size|--tokenizer|--jobs) [ $# -ge 2 ] || usage "$1: expected a value after it; see --help";; esac
    case $1 in
        --size) size=$2; shift 2;;
        --tokenizer) [ -f "$2" ] || die "--tokenizer $2: no such file; leave it out to have one fetched"
            tokenizer=$(realpath "$2"); shift 2;;
        --jobs) jobs=$2; shift 2;;
        --help|-h) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0;;
        -*) usage "'$1': no such option; see --help";;
        *) [ -e "$1" ] || die "$1: no such file or folder"; paths+=("$(realpath "$1")"); shift;;
    esac
done
[[ $jobs =~ ^[1-9][0-9]*$ ]] || usage "--jobs $jobs: expected a whole number from 1"
case $size in # pretraining tokens, labelled reviews, queries to train on, to test on; the model; RRHF's steps
    small) data="1200000 4000 768 256"; model="--layers 3 --heads 4 --channels 128"; rrhf="--epochs 3";;
    large) data="6000000 15000 2048 512"; model="--layers 4 --heads 4 --channels 256"; rrhf="--epochs 2";;
    *) usage "--size $size: expected small or large";;
esac
cd "$(dirname "$0")/.." # not before: paths are given from where the caller stands
out=out/imdb-$size
mkdir -p "$out"

fetch() { # url file
    echo "fetching $1" >&2
    if command -v curl >/dev/null; then curl -fL --retry 3 -o "$2.part" "$1"; else wget -O "$2.part" "$1"; fi ||
        die "$1: cannot be fetched; get it by hand and give its path"
    mv "$2.part" "$2"
}

find_reviews() { # prints the folder aclImdb, unpacking what was given into out/imdb-data
    local p archives=() to=out/imdb-data
    for p in "${paths[@]}"; do
        if [ -d "$p/train/pos" ]; then echo "$p"; return; fi
        if [ -d "$p/aclImdb/train/pos" ]; then echo "$p/aclImdb"; return; fi
        if [ -f "$p" ]; then archives+=("$p"); else
            while IFS= read -r f; do archives+=("$f"); done < <(find "$p" -maxdepth 1 -name 'aclImdb*.tar*' | sort); fi
    done
    mkdir -p "$to"
    if [ ${#archives[@]} = 0 ]; then
        [ ${#paths[@]} = 0 ] || die "${paths[*]}: neither the folder aclImdb nor an archive aclImdb*.tar.* is there"
        [ -f "$to/aclImdb_v1.tar.gz" ] || fetch "$ARCHIVE" "$to/aclImdb_v1.tar.gz"
        echo "$ARCHIVE_SHA256  $to/aclImdb_v1.tar.gz" | sha256sum -c --quiet >&2 || die "$to/aclImdb_v1.tar.gz: damaged; remove it"
        archives=("$to/aclImdb_v1.tar.gz")
    fi
    if [ ! -f "$to/done" ]; then
        for p in "${archives[@]}"; do
            echo "unpacking $p" >&2
            tar -xf "$p" -C "$to" || die "$p: cannot be unpacked"
        done
        [ -d "$to/aclImdb/train/pos" ] || die "${archives[*]}: no aclImdb/train/pos inside"
        touch "$to/done"
    fi
    echo "$to/aclImdb"
}

find_tokenizer() {
    local p f
    if [ -n "$tokenizer" ]; then echo "$tokenizer"; return; fi
    for p in "${paths[@]}"; do # beside what was given, or one folder up
        [ -d "$p" ] || p=$(dirname "$p")
        f=$(find "$p" "$p/.." -maxdepth 2 -name gpt2_tokenizer.bin -print -quit 2>/dev/null || true)
        if [ -n "$f" ]; then echo "$f"; return; fi
    done
    [ -f out/gpt2_tokenizer.bin ] || fetch "$TOKENIZER_URL" out/gpt2_tokenizer.bin
    echo out/gpt2_tokenizer.bin
}

step() { # result command...: runs the command unless its result is there
    local result=$1; shift
    if [ -e "$result" ]; then echo "have     $result" >&2; return; fi
    echo "\$ $*" >&2
    "$@" || exit $?
}

make -s train_rrhf dev/imdb ${table:+dev/table} >&2
if [ ! -f "$out/queries_test.bin" ]; then
    reviews=$(find_reviews)
    gpt2=$(find_tokenizer)
    # shellcheck disable=SC2086 # the settings are words
    step "$out/queries_test.bin" dev/imdb "$reviews" "$gpt2" "$out" 8192 $data
fi
tok="--tokenizer $out/tokenizer.bin"
ask="--top-k 50 --max-new-tokens 48"
resume() { if [ -f "$1/state.bin" ] || [ -f "$1/settings.txt" ] || [ -d "$1/round-1" ]; then echo "--resume $1"; fi; } # an interrupted step goes on
# shellcheck disable=SC2046,SC2086
{
step "$out/sft/done" ./train_rrhf sft --data "$out/stream.bin" $tok $model --context 128 --ft-reduction mean --batch 16 \
    --epochs 1 --lr 1e-3 --schedule cosine --warmup 0.05 --weight-decay 0.1 --grad-clip 1 --beta2 0.99 \
    --checkpoint-every 500 --out "$out/sft" $(resume "$out/sft"); touch "$out/sft/done"
step "$out/reward/done" ./train_rrhf reward --model "$out/sft/policy.bin" --data "$out/labels.bin" --batch 16 --epochs 1 \
    --lr 2e-4 --warmup 0.1 --weight-decay 0.1 --grad-clip 1 --beta2 0.99 --checkpoint-every 300 --out "$out/reward" $(resume "$out/reward")
touch "$out/reward/done"
}

# shellcheck disable=SC2046,SC2086
# A row of the table: name, seed, options of train. Every training query once, 4 a step; one completion of 128 held-out
# queries every 64 steps; then 2 completions of every held-out query, and the accuracy of p_i on pairs of the start's
# completions. SFT has no training, but 8 completions for best-of-n.
row() {
    local dir=$out/rows/$1-$2 model=$out/rows/$1-$2/policy.bin start=0 seed=$2 name=$1; shift 2
    if [ -e "$dir/eval/eval.csv" ]; then echo "have     $dir" >&2; return; fi
    mkdir -p "$dir"
    if [ "$name" = SFT ]; then model=$out/sft/policy.bin start=8; fi
    ( # a subshell, since a step that fails ends it
        if [ "$name" != SFT ] && [ ! -e "$dir/done" ]; then
            step "$dir/done" ./train_rrhf train --model "$out/sft/policy.bin" --data "$out/queries.bin" $tok --reward "$out/reward/policy.bin" \
                "$@" $ask --batch 4 --epochs 1 --lr 5e-5 --eval-data "$out/queries_test.bin" --eval-queries 128 --eval-every 64 --draw sample \
                --threads 1 --seed "$seed" --checkpoint-every 128 --out "$dir" $(resume "$dir")
            touch "$dir/done"
        fi
        step "$dir/eval/eval.csv" ./train_rrhf eval --model "$model" --reference "$out/sft/policy.bin" --start-return $start \
            --reward "$out/reward/policy.bin" --data "$out/pairs/scored.bin" --num-return 2 $tok $ask --threads 1 --out "$dir/eval"
    ) > "$dir/run.txt" 2>&1 || die "$dir: failed; see $dir/run.txt"
    echo "done     $dir" >&2
}
rows=("SFT 0"
    "P 1 --policy P" "SP 1 --policy SP" "BP 1 --policy BP" "B 1 --policy B" "DP 1 --policy DP" "D 1 --policy D"
    "IP-3 1 --policy IP-3" "OP-128 1 --policy OP-128" "OP-128-KL 1 --policy OP-128 --kl-coef 0.1"
    "BP-no-rank 1 --policy BP --rank-weight 0" "BP-no-ft 1 --policy BP --ft-weight 0")
for seed in 2 3; do rows+=("BP $seed --policy BP" "B $seed --policy B" "OP-128 $seed --policy OP-128"); done
rows+=("BP-no-rank 2 --policy BP --rank-weight 0")
# shellcheck disable=SC2086
if [ -n "$table" ]; then
    step "$out/pairs/sampled.bin" ./train_rrhf sample --model "$out/sft/policy.bin" --data "$out/queries_test.bin" $tok --policy SP \
        --num-return 2 $ask --out "$out/pairs"
    step "$out/pairs/scored.bin" ./train_rrhf score --reward "$out/reward/policy.bin" --data "$out/pairs/sampled.bin" --out "$out/pairs"
    dirs=()
    for r in "${rows[@]}"; do
        set -- $r
        dirs+=("$out/rows/$1-$2")
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
        row $r &
    done
    wait
    for d in "${dirs[@]}"; do [ -e "$d/eval/eval.csv" ] || die "$d: this row failed; the same command goes on from here"; done
    dev/table "$out" "${dirs[@]}"
    cat "$out/table.md"
    exit
fi

# shellcheck disable=SC2046,SC2086
{
step "$out/reward/eval.csv" ./train_rrhf eval --model "$out/reward/policy.bin" --data "$out/labels_test.bin" --out "$out/reward"
step "$out/sampled/sampled.bin" ./train_rrhf sample --model "$out/sft/policy.bin" --data "$out/queries.bin" $tok --policy SP \
    --num-return 4 $ask --out "$out/sampled"
step "$out/scored/scored.bin" ./train_rrhf score --reward "$out/reward/policy.bin" --data "$out/sampled/sampled.bin" --out "$out/scored"
step "$out/rrhf/done" ./train_rrhf train --model "$out/sft/policy.bin" --data "$out/scored/scored.bin" $tok --batch 16 --lr 1e-4 \
    $rrhf --reward "$out/reward/policy.bin" --eval-data "$out/queries_test.bin" --eval-queries 256 $ask \
    --checkpoint-every 50 --out "$out/rrhf" $(resume "$out/rrhf"); touch "$out/rrhf/done"
evaluate() { "$@" > "$out/table.tmp" && mv "$out/table.tmp" "$out/table.txt"; }
step "$out/table.txt" evaluate ./train_rrhf eval --model "$out/rrhf/policy.bin" --reference "$out/sft/policy.bin" \
    --reward "$out/reward/policy.bin" --data "$out/queries_test.bin" $tok --num-return 4 $ask --out "$out/eval"
}
cat "$out/table.txt"
sed -n 's/^reward model,accuracy,\([^,]*\),\([^,]*\),\(.*\)/reward model: accuracy \1 +- \2 on \3 test snippets/p' "$out/reward/eval.csv"
if [ -f "$out/rrhf/curves.png" ]; then printf '%s  ' "$out/rrhf/curves.png"; fi
echo "$out/rrhf/samples.txt  $out/rrhf/policy.bin  $out/eval/eval.csv"
