#!/usr/bin/env bash
# IMDB sentiment (paper, appendix C): pretraining or fine-tuning, reward model, four completions per query, rewards,
# RRHF, evaluation on held-out test queries.
#
#   dev/imdb.sh [--size small|large|gpt2] [--tokenizer gpt2_tokenizer.bin] [--model gpt2_124M.bin] [--program CMD] [PATH ...]
#   dev/imdb.sh table [--jobs N] ...     every sampling policy of the paper: its Table 10 and more (hours, see below)
#
# PATH: the folder aclImdb, a folder that holds it or its archives, or archives (.tar.gz, .tar.xz). Without one the
# official archive (84 MB) is fetched, as are llm.c's GPT-2 tokenizer and, for gpt2, its checkpoint (500 MB). small and
# large (default) begin with small models of random weights, 3 to 10 minutes and about an hour on two cores; gpt2, the
# paper's own size, is for GPUs. Results go to out/imdb-SIZE; a step whose result is there is not done again.
# table: 18 more runs, --jobs N (all cores) at a time with one thread each, and table.md, table.csv, table.png.
# --program './train_rrhfcu', or 'mpirun -np 8 ./train_rrhfcu', runs that instead of ./train_rrhf, one job at a time.
set -eo pipefail # not -u: to bash 3.2, a Mac's, an empty array is an unset one
ARCHIVE=https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz
ARCHIVE_SHA256=c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe
GPT2=https://huggingface.co/datasets/karpathy/llmc-starter-pack/resolve/main # gpt2_tokenizer.bin, gpt2_124M.bin

die() { echo "error: $*" >&2; exit 1; }
usage() { echo "error: $*" >&2; exit 2; }
size=large tokenizer='' model='' program='' paths=() table='' jobs=''
if [ "${1:-}" = table ]; then table=1; shift; fi
while [ $# -gt 0 ]; do
    case $1 in --size|--tokenizer|--model|--program|--jobs) [ $# -ge 2 ] || usage "$1: expected a value after it; see --help";; esac
    case $1 in
        --size) size=$2; shift 2;;
        --tokenizer) [ -f "$2" ] || die "--tokenizer $2: no such file; leave it out to have one fetched"
            tokenizer=$(realpath "$2"); shift 2;;
        --model) [ -f "$2" ] || die "--model $2: no such file; leave it out to have one fetched"
            model=$(realpath "$2"); shift 2;;
        --program) [[ $2 =~ (^|\ )\./(train_rrhf|train_rrhfcu)$ ]] || usage "--program $2: expected a command that ends in ./train_rrhf or ./train_rrhfcu"
            program=$2; shift 2;;
        --jobs) [[ $2 =~ ^[1-9][0-9]*$ ]] || usage "--jobs $2: expected a whole number from 1"
            jobs=$2; shift 2;;
        --help|-h) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 0;;
        -*) usage "'$1': no such option; see --help";;
        *) [ -e "$1" ] || die "$1: no such file or folder"; paths+=("$(realpath "$1")"); shift;;
    esac
done
if [ -n "$program" ]; then jobs=${jobs:-1} one=''; else jobs=${jobs:-$(getconf _NPROCESSORS_ONLN)} one='--threads 1' program=./train_rrhf; fi
# Of each size: the vocabulary, and pretraining tokens, labelled reviews, queries to train on, to test on; options of the
# training of the start, of the reward model, of RRHF, and of a row of the table. gpt2: the paper's, where it says.
random="--context 128 --ft-reduction mean --batch 16 --epochs 1 --lr 1e-3 --schedule cosine --warmup 0.05 --weight-decay 0.1"
random+=" --grad-clip 1 --beta2 0.99 --checkpoint-every 500"
judge="--batch 16 --epochs 1 --lr 2e-4 --warmup 0.1 --weight-decay 0.1 --grad-clip 1 --beta2 0.99 --checkpoint-every 300"
align="--batch 16 --lr 1e-4 --eval-queries 256 --checkpoint-every 50"
short="--batch 4 --epochs 1 --lr 5e-5 --eval-queries 128 --eval-every 64 --checkpoint-every 128"
case $size in
    small) data="8192 1200000 4000 768 256"; sft="--layers 3 --heads 4 --channels 128 $random"; rrhf="--epochs 3 $align";;
    large) data="8192 6000000 15000 2048 512"; sft="--layers 4 --heads 4 --channels 256 $random"; rrhf="--epochs 2 $align";;
    gpt2) data="50257 9000000 25000 25000 1000"; sft="--ft-reduction mean --epochs 1 --checkpoint-every 50"
        judge="--checkpoint-every 300" rrhf="--epochs 5 --eval-queries 256 --checkpoint-every 200" short=$rrhf;;
    *) usage "--size $size: expected small, large or gpt2";;
esac
[ -z "$model" ] || [ "$size" = gpt2 ] || usage "--model: for --size gpt2 only; the others begin with random weights"
cd "$(dirname "$0")/.." # not before: paths are given from where the caller stands
out=out/imdb-$size
mkdir -p "$out"

fetch() { # url file
    echo "fetching $1" >&2
    if command -v curl >/dev/null; then curl -fL --retry 3 -o "$2.part" "$1"; else wget -O "$2.part" "$1"; fi ||
        die "$1: cannot be fetched; get it by hand and give its path"
    mv "$2.part" "$2"
}

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1; }

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
        [ "$(sha256 "$to/aclImdb_v1.tar.gz")" = $ARCHIVE_SHA256 ] || die "$to/aclImdb_v1.tar.gz: damaged; remove it"
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

find_model() { # the checkpoint that gpt2 begins with, and its reward model too
    if [ -n "$model" ]; then echo "$model"; return; fi
    [ -f out/gpt2_124M.bin ] || fetch "$GPT2/gpt2_124M.bin" out/gpt2_124M.bin
    echo out/gpt2_124M.bin
}

find_tokenizer() {
    local p f
    if [ -n "$tokenizer" ]; then echo "$tokenizer"; return; fi
    for p in "${paths[@]}"; do # beside what was given, or one folder up
        [ -d "$p" ] || p=$(dirname "$p")
        f=$(find "$p" "$p/.." -maxdepth 2 -name gpt2_tokenizer.bin -print -quit 2>/dev/null || true)
        if [ -n "$f" ]; then echo "$f"; return; fi
    done
    [ -f out/gpt2_tokenizer.bin ] || fetch "$GPT2/gpt2_tokenizer.bin" out/gpt2_tokenizer.bin
    echo out/gpt2_tokenizer.bin
}

step() { # result command...: runs the command unless its result is there; a result named done only says that it ran
    local result=$1; shift
    if [ -e "$result" ]; then echo "have     $result" >&2; return; fi
    echo "\$ $*" >&2
    "$@" || exit $?
    [[ $result != */done ]] || touch "$result"
}

make -s "${program##*./}" dev/imdb ${table:+dev/table} >&2
if [ ! -f "$out/queries_test.bin" ]; then
    reviews=$(find_reviews)
    gpt2=$(find_tokenizer)
    # shellcheck disable=SC2086 # the settings are words
    step "$out/queries_test.bin" dev/imdb "$reviews" "$gpt2" "$out" $data
fi
tok="--tokenizer $out/tokenizer.bin"
ask="--top-k 50 --max-new-tokens 48"
resume() { if [ -f "$1/state.bin" ] || [ -f "$1/settings.txt" ] || [ -d "$1/round-1" ]; then echo "--resume $1"; fi; } # an interrupted step goes on
# shellcheck disable=SC2046,SC2086
{
from=$out/sft/policy.bin start=()
if [ "$size" = gpt2 ]; then from=$(find_model) start=(--model "$from"); fi
step "$out/sft/done" $program sft "${start[@]}" --data "$out/stream.bin" $tok $sft --out "$out/sft" $(resume "$out/sft")
step "$out/reward/done" $program reward --model "$from" --data "$out/labels.bin" $judge --out "$out/reward" $(resume "$out/reward")
}

# shellcheck disable=SC2046,SC2086
# A row of the table: name, seed, options of train. One completion of some held-out queries now and then; in the end 2
# completions of every held-out query, and the accuracy of p_i on pairs among two of the start's and the review's own. SFT
# has no training, but 8 completions for best-of-n.
row() {
    local dir=$out/rows/$1-$2 model=$out/rows/$1-$2/policy.bin start=0 seed=$2 name=$1; shift 2
    if [ -e "$dir/eval/eval.csv" ]; then echo "have     $dir" >&2; return; fi
    mkdir -p "$dir"
    if [ "$name" = SFT ]; then model=$out/sft/policy.bin start=8; fi
    ( # a subshell, since a step that fails ends it
        if [ "$name" != SFT ]; then
            step "$dir/done" $program train --model "$out/sft/policy.bin" --data "$out/queries.bin" $tok --reward "$out/reward/policy.bin" \
                "$@" $ask $short --eval-data "$out/queries_test.bin" --draw sample $one --seed "$seed" --out "$dir" $(resume "$dir")
        fi
        step "$dir/eval/eval.csv" $program eval --model "$model" --reference "$out/sft/policy.bin" --start-return $start \
            --reward "$out/reward/policy.bin" --data "$out/pairs/scored.bin" --num-return 2 $tok $ask $one --out "$dir/eval"
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
    step "$out/pairs/sampled.bin" $program sample --model "$out/sft/policy.bin" --data "$out/queries_test.bin" $tok --policy SP \
        --num-return 2 $ask --out "$out/pairs"
    step "$out/pairs/scored.bin" $program score --reward "$out/reward/policy.bin" --data "$out/pairs/sampled.bin" --out "$out/pairs"
    dirs=()
    for r in "${rows[@]}"; do
        set -- $r
        dirs+=("$out/rows/$1-$2")
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n 2>/dev/null || sleep 1; done # bash 3.2 cannot
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
step "$out/reward/eval.csv" $program eval --model "$out/reward/policy.bin" --data "$out/labels_test.bin" --out "$out/reward"
step "$out/sampled/sampled.bin" $program sample --model "$out/sft/policy.bin" --data "$out/queries.bin" $tok --policy SP \
    --num-return 4 $ask --out "$out/sampled"
step "$out/scored/scored.bin" $program score --reward "$out/reward/policy.bin" --data "$out/sampled/sampled.bin" --out "$out/scored"
step "$out/rrhf/done" $program train --model "$out/sft/policy.bin" --data "$out/scored/scored.bin" $tok \
    $rrhf --reward "$out/reward/policy.bin" --eval-data "$out/queries_test.bin" $ask --out "$out/rrhf" $(resume "$out/rrhf")
evaluate() { "$@" > "$out/table.tmp" && mv "$out/table.tmp" "$out/table.txt"; }
step "$out/table.txt" evaluate $program eval --model "$out/rrhf/policy.bin" --reference "$out/sft/policy.bin" \
    --reward "$out/reward/policy.bin" --data "$out/queries_test.bin" $tok --num-return 4 $ask --out "$out/eval"
}
cat "$out/table.txt"
sed -n 's/^reward model,accuracy,\([^,]*\),\([^,]*\),\(.*\)/reward model: accuracy \1 +- \2 on \3 test snippets/p' "$out/reward/eval.csv"
if [ -f "$out/rrhf/curves.png" ]; then printf '%s  ' "$out/rrhf/curves.png"; fi
echo "$out/rrhf/samples.txt  $out/rrhf/policy.bin  $out/eval/eval.csv"
