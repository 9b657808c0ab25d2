#!/bin/sh
# Builds the library with sanitizers and runs tests/cpp/stress.cpp under them: many threads, sessions and cancellations.
#   sanitize.sh address|thread ENGINE_DIRECTORY [THREADS IMAGES [FOLDER]]
# address: addresses, leaks, undefined behaviour. thread: data races. Default: 4 threads with 3 images each, and
# build/sanitize-* beside the library. The compiler is CXX (default c++). EBCA_ORT_LIB names ONNX Runtime's library;
# EBCA_ORT_INCLUDE_DIR and EBCA_JSON_INCLUDE_DIR the headers (default: where fetch_headers.sh puts them).
# Exits with 77 if the compiler has no sanitizers.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
kind=${1:-} engine=${2:?name an engine directory} threads=${3:-4} images=${4:-3}
folder=${5:-$here/build/sanitize-$kind}
compiler=${CXX:-c++}
case $kind in
address) flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer" ;;
thread) flags="-fsanitize=thread" ;;
*)
    echo "sanitize.sh: '$kind' is neither address nor thread" >&2
    exit 2
    ;;
esac
mkdir -p "$folder"
echo 'int main() { return 0; }' >"$folder/probe.cpp"
"$compiler" $flags "$folder/probe.cpp" -o "$folder/probe" 2>/dev/null && "$folder/probe" || {
    echo "sanitize.sh: $compiler has no $kind sanitizer here" >&2
    exit 77
}

headers=$here/build/headers
cmake -G Ninja -S "$here" -B "$folder" -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=None \
    -DEBCA_STATIC_LIBRARY=OFF \
    -DCMAKE_CXX_FLAGS="-O1 -g $flags" \
    -DEBCA_ORT_INCLUDE_DIR="${EBCA_ORT_INCLUDE_DIR:-$headers/onnxruntime}" \
    -DEBCA_JSON_INCLUDE_DIR="${EBCA_JSON_INCLUDE_DIR:-$headers/json/usr/include}" >"$folder/cmake.log"
cmake --build "$folder" >"$folder/build.log" || {
    cat "$folder/build.log" >&2
    exit 1
}
# shellcheck disable=SC2086
"$compiler" -std=c++17 -g -O1 $flags -Wall -Wextra -I"$here/include" "$here/../../tests/cpp/stress.cpp" \
    -L"$folder" -lebca -Wl,-rpath,"$folder" -pthread -o "$folder/stress"

# ONNX Runtime is not built with sanitizers: what its threads order by atomics of their own looks unordered.
cat >"$folder/races" <<'END'
# Its environment ends, and with it a condition variable that a thread of its own waited on before.
race:libonnxruntime
# Its exit handlers unlock a mutex that was locked in code without instrumentation.
mutex:libonnxruntime
END
export ASAN_OPTIONS="detect_leaks=1:check_initialization_order=1:detect_stack_use_after_return=1"
export UBSAN_OPTIONS="print_stacktrace=1"
export TSAN_OPTIONS="suppressions=$folder/races:exitcode=66:history_size=4"
exec "$folder/stress" "$engine" "$threads" "$images"
