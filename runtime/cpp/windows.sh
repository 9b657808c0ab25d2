#!/bin/sh
# Builds the library and its hosts for Windows with MinGW-w64, and runs one of them under Wine.
#   windows.sh ENGINE_DIRECTORY [FOLDER]      default: build/windows beside this script
# EBCA_WINDOWS_ORT names an onnxruntime.dll for x86-64; without it, or without Wine, nothing is run, and a line says so.
# EBCA_EXPECTED: the line that tests/cpp/print_image.cpp must print; a difference is a failure.
# EBCA_ORT_INCLUDE_DIR and EBCA_JSON_INCLUDE_DIR name the headers (default: where fetch_headers.sh puts them).
# Exits with 77 if the compiler, or its zlib, is missing (Debian: g++-mingw-w64-x86-64-posix libz-mingw-w64-dev).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
engine=$(cd "${1:?name an engine directory}" && pwd)
folder=${2:-$here/build/windows}
compiler=x86_64-w64-mingw32-g++-posix
sysroot=/usr/x86_64-w64-mingw32
command -v "$compiler" >/dev/null && [ -f "$sysroot/include/zlib.h" ] || {
    echo "windows.sh: there is no $compiler, or it has no zlib" >&2
    exit 77
}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

headers=$here/build/headers
cmake -G Ninja -S "$here" -B "$folder" --toolchain "$here/cmake/mingw.cmake" -DCMAKE_BUILD_TYPE=None \
    -DCMAKE_CXX_FLAGS="-O0" -DEBCA_ORT_INCLUDE_DIR="${EBCA_ORT_INCLUDE_DIR:-$headers/onnxruntime}" \
    -DEBCA_JSON_INCLUDE_DIR="${EBCA_JSON_INCLUDE_DIR:-$headers/json/usr/include}" >"$folder/cmake.log"
cmake --build "$folder" >"$folder/build.log" || {
    cat "$folder/build.log" >&2
    exit 1
}
"$compiler" -std=c++17 -Wall -Wextra -I"$here/include" "$here/../../tests/cpp/print_image.cpp" "$folder"/libebca.dll.a \
    -o "$folder/print_image.exe"
cmake --install "$folder" --prefix "$folder/prefix" >>"$folder/build.log"
cmake -G Ninja -S "$here/../../examples/cpp" -B "$folder/examples" --toolchain "$here/cmake/mingw.cmake" \
    -DCMAKE_FIND_ROOT_PATH_MODE_PACKAGE=BOTH -DCMAKE_PREFIX_PATH="$folder/prefix" >>"$folder/cmake.log"
cmake --build "$folder/examples" >>"$folder/build.log" || {
    cat "$folder/build.log" >&2
    exit 1
}
echo "built $(ls "$folder"/libebca*.dll "$folder"/examples/*.exe | tr '\n' ' ')"

wine=$(command -v wine64 || command -v wine || ls /usr/lib/wine/wine64 2>/dev/null || true)
[ -n "$wine" ] && [ -n "${EBCA_WINDOWS_ORT:-}" ] || {
    echo "windows.sh: built, but not run: there is no Wine, or EBCA_WINDOWS_ORT is not set" >&2
    exit 0
}
for name in libstdc++-6.dll libgcc_s_seh-1.dll libwinpthread-1.dll zlib1.dll; do
    found=$("$compiler" -print-file-name=$name)
    [ -f "$found" ] || found=$(find "$sysroot" -name $name | head -n 1)
    cp "$found" "$folder"
done
# A name that no Windows code page has all of.
rm -rf "$folder/Bäume 木" "$folder/cache"
cp -r "$engine" "$folder/Bäume 木"
export WINEPREFIX="$folder/wine" WINEDEBUG=-all EBCA_ORT_LIB="Z:$EBCA_WINDOWS_ORT"
cd "$folder"
for turn in cold warm; do
    said=$("$wine" ./print_image.exe "Bäume 木" "cache" 2>wine.log | tr -d '\r') || {
        echo "windows.sh: $said" >&2
        exit 1
    }
    echo "$turn cache: $said"
    [ "$said" = "${EBCA_EXPECTED:-$said}" ] || {
        echo "windows.sh: expected '$EBCA_EXPECTED'" >&2
        exit 1
    }
done
