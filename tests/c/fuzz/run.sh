#!/usr/bin/env bash
# Fuzzes the kernels and the readers of files, so many seconds each: run.sh [SECONDS] [kernels|formats]; options of
# libFuzzer may follow `kernels`. What is found is left in the current directory (kernels), or printed with the line that
# repeats it (formats). Needs clang with libclang-rt-*-dev for the first, and the package with its tests' extras for the
# second. The corpus of the kernels is what libFuzzer's -merge=1 -use_counters=0 kept of longer runs.
#
# OBJECT may be the object file of a backend, which is linked as it is: with sanitizers, it takes a minute to compile.
set -euo pipefail
seconds=${1:-60}
what=${2:-kernels formats}
here=$(cd "$(dirname "$0")" && pwd)
kernels=$here/../../../src/tokenloss/_core/kernels
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fuzz_kernels() {
    local compiler
    compiler=${CC:-$(compgen -c clang | grep -E '^clang(-[0-9]+)?$' | sort -V | tail -n 1)}
    [ -n "$compiler" ] || { echo "needs clang"; exit 1; }
    local object=${OBJECT:-}
    [ -z "$object" ] || cp "$object" "$scratch"
    # comparisons of logits do not guide the fuzzer, and tracing them takes most of the time
    find "$here/kernels.c" "$kernels" -name '*.c' ! -path "*/backends/$(basename "$object" .o).c" |
        xargs -P "$(nproc)" -I{} sh -c \
        '"$1" -std=c11 -gline-tables-only -O1 -ffp-contract=off -fno-trapping-math -Wall -Wextra -Wconversion -Werror \
            -fsanitize=fuzzer-no-link,address,undefined,float-cast-overflow -fno-sanitize-recover=all \
            -fno-sanitize-coverage=trace-cmp -I"$2" -c "$4" -o "$3/$(basename "$4").o"' \
        - "$compiler" "$kernels" "$scratch" {}
    "$compiler" -fsanitize=fuzzer,address,undefined "$scratch"/*.o -lm -o "$scratch/kernels"
    mkdir "$scratch/found" "$scratch/corpus"
    tar -xzf "$here/corpus/kernels.tar.gz" -C "$scratch/corpus"
    "$scratch/kernels" -max_len=512 -len_control=0 -timeout=20 -rss_limit_mb=2048 -verbosity=0 -print_final_stats=1 \
        -max_total_time="$seconds" "$@" "$scratch/found" "$scratch/corpus"
}

fuzz_formats() {
    local end=$((SECONDS + seconds)) rounds=0
    while [ $SECONDS -lt "$end" ]; do
        TOKENLOSS_FUZZ_EXAMPLES=${TOKENLOSS_FUZZ_EXAMPLES:-100} python -m pytest -q -p no:cacheprovider \
            "$here"/../../formats/test_damaged_{files,responses}.py
        rounds=$((rounds + 1))
    done
    echo "$rounds rounds of new files"
}

for each in $what; do
    "fuzz_$each" "${@:3}"
done
