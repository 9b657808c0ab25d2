#!/bin/sh
# Builds the library with other compilers and for another system, and compares what tests/cpp/print_image.cpp says there:
# all of them must make the same bits.
#   other_compilers.sh ENGINE_DIRECTORY [FOLDER]      default: build/compilers beside this script
# c++, then clang++ with libc++, then windows.sh, which describes EBCA_WINDOWS_ORT. EBCA_ORT_LIB names ONNX Runtime's
# library. What this machine has no compiler for is left out with a line that says so.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
engine=${1:?name an engine directory}
folder=${2:-$here/build/compilers}
headers=$here/build/headers

# build NAME COMPILER OPTIONS
build() {
    mkdir -p "$folder/$1"
    cmake -G Ninja -S "$here" -B "$folder/$1" -DCMAKE_CXX_COMPILER="$2" -DCMAKE_BUILD_TYPE=None \
        -DCMAKE_CXX_FLAGS="-O0 $3" -DEBCA_ORT_INCLUDE_DIR="${EBCA_ORT_INCLUDE_DIR:-$headers/onnxruntime}" \
        -DEBCA_JSON_INCLUDE_DIR="${EBCA_JSON_INCLUDE_DIR:-$headers/json/usr/include}" >"$folder/$1.log"
    cmake --build "$folder/$1" >>"$folder/$1.log" || {
        cat "$folder/$1.log" >&2
        exit 1
    }
    # shellcheck disable=SC2086
    "$2" -std=c++17 $3 -Wall -Wextra -I"$here/include" "$here/../../tests/cpp/print_image.cpp" -L"$folder/$1" -lebca \
        -Wl,-rpath,"$folder/$1" -o "$folder/$1/print_image"
}

build native "${CXX:-c++}" ""
EBCA_EXPECTED=$("$folder/native/print_image" "$engine" "$folder/cache")
export EBCA_EXPECTED
echo "native: $EBCA_EXPECTED"

echo '#include <vector>
int main() { return std::vector<int>(1)[0]; }' >"$folder/probe.cpp"
if clang++ -stdlib=libc++ "$folder/probe.cpp" -o "$folder/probe" 2>/dev/null; then
    build libcxx clang++ -stdlib=libc++
    said=$("$folder/libcxx/print_image" "$engine" "$folder/cache")
    echo "clang++ with libc++: $said"
    [ "$said" = "$EBCA_EXPECTED" ]
else
    echo "other_compilers.sh: there is no clang++ with libc++" >&2
fi

"$here/windows.sh" "$engine" "$folder/windows" || [ $? = 77 ]
