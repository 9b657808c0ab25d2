#!/bin/sh
# Fuzzes every target for some seconds; stops at the first failure.
#   run.sh [SECONDS] [FOLDER]      default: 60, and build/fuzz beside the library
# With clang (EBCA_CLANG names one outside of PATH) it uses libFuzzer, which learns from coverage and keeps its corpus in
# FOLDER/corpus; otherwise g++ and mutations of the seeds. Both under the address and undefined-behaviour
# sanitizers. EBCA_JSON_INCLUDE_DIR: folder of nlohmann/json.hpp (default: where fetch_headers.sh puts it).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
source=$here/../src
seconds=${1:-60}
folder=${2:-$here/../build/fuzz}
json=${EBCA_JSON_INCLUDE_DIR:-$here/../build/headers/json/usr/include}
[ -f "$json/nlohmann/json.hpp" ] || {
    echo "run.sh: there is no '$json/nlohmann/json.hpp'; run fetch_headers.sh or set EBCA_JSON_INCLUDE_DIR" >&2
    exit 1
}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$folder"

checks="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
compiler=${EBCA_CLANG:-clang++}
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >probe.cpp
if $compiler -fsanitize=fuzzer probe.cpp -o probe 2>probe.log; then
    compile="-fsanitize=fuzzer-no-link $checks" link="-fsanitize=fuzzer $checks" main=
else
    compiler=${CXX:-g++} compile=$checks link=$checks main=$here/standalone.cpp
    echo "no clang with libFuzzer ($(head -n 1 probe.log)); mutating the seeds with $compiler" >&2
fi
options="-std=c++17 -g -O1 $compile -I$source -isystem $json"

sources=$(cd "$source" && ls numerals.cpp contract/*.cpp platform/linux.cpp platform/posix.cpp tokenizer/*.cpp execution/arena.cpp sampling/schedulers.cpp images/inputs.cpp images/regions.cpp images/resize.cpp | grep -v absent)
objects=
for name in $sources; do
    objects="$objects $(basename "$name" .cpp).o"
done
echo "$sources" | xargs -P "${EBCA_JOBS:-2}" -I{} sh -c "$compiler $options -c '$source/{}' -o \$(basename {} .cpp).o"

for target in images manifest table tokenizer; do
    $compiler $options $link "$here/fuzz_$target.cpp" $main $objects -o "fuzz_$target"
    corpus=$folder/corpus/$target
    mkdir -p "$corpus"
    export ASAN_OPTIONS="handle_sigill=1:allocator_may_return_null=1" UBSAN_OPTIONS="print_stacktrace=1"
    echo "== $target"
    if [ -z "$main" ]; then
        "./fuzz_$target" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=4096 -verbosity=0 \
            -print_final_stats=1 -artifact_prefix="$folder/$target-" "$corpus" "$here/seeds/$target"
    else
        "./fuzz_$target" -seconds="$seconds" "$corpus" "$here/seeds/$target"
    fi
done
