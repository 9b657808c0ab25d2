#!/bin/sh
# Headers that the library is compiled against, from Debian packages, without root: nothing is installed.
#   fetch_headers.sh [FOLDER]      default: build/headers beside this script
# Leaves FOLDER/onnxruntime and FOLDER/json, and prints the CMake options that name them. The headers of ONNX Runtime
# only have to be as new as the functions that are called; the library itself is found at run time.
set -eu

folder=${1:-$(dirname "$0")/build/headers}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
mirror=${EBCA_DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
    echo "fetch_headers.sh: $*" >&2
    exit 1
}

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    fail "needs apt-get and dpkg-deb; elsewhere, get onnxruntime_c_api.h and nlohmann/json.hpp and name their folders"
[ -f "$keyring" ] || fail "'$keyring' is missing; install debian-archive-keyring"

# fetch SUITE PACKAGE TARGET: the newest version in that suite, unpacked into TARGET. Apt keeps its lists in a folder of
# its own, so that neither the system's sources nor its cache are touched.
fetch() {
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    echo "deb [signed-by=$keyring] $mirror $1 main" >"$work/sources.list"
    options="-qq -o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::Lists=$work/lists -o Dir::Cache=$work/cache -o APT::Sandbox::User=root"
    found=1
    if (cd "$work" && apt-get $options update && apt-get $options download "$2") >"$work/log" 2>&1; then
        rm -rf "$3.new" "$3"
        dpkg-deb -x "$work"/*.deb "$3.new"
        mv "$3.new" "$3"
        echo "$(basename "$work"/*.deb) from $1" >&2
        found=0
    else
        echo "no $2 from $1: $(tail -n 1 "$work/log")" >&2
    fi
    rm -rf "$work"
    return $found
}

# first TARGET PACKAGE SUITE...: from the first suite that has it
first() {
    target=$1 package=$2
    shift 2
    for suite in "$@"; do
        if fetch "$suite" "$package" "$target"; then
            return 0
        fi
    done
    fail "no $package could be fetched from $mirror (tried $*); set EBCA_DEBIAN_MIRROR to one that can be reached"
}

ort=$(dirname "$(find "$folder/ort" -name onnxruntime_c_api.h 2>/dev/null | head -n 1)")
[ "$ort" != . ] || first "$folder/ort" libonnxruntime-dev experimental sid trixie
json=$(find "$folder/json" -name json.hpp 2>/dev/null | head -n 1)
[ -n "$json" ] || first "$folder/json" nlohmann-json3-dev trixie bookworm

ort=$(dirname "$(find "$folder/ort" -name onnxruntime_c_api.h | head -n 1)")
[ "$ort" != . ] || fail "the package in '$folder/ort' holds no onnxruntime_c_api.h"
rm -f "$folder/onnxruntime"
ln -s "${ort#"$folder/"}" "$folder/onnxruntime"
echo "-DEBCA_ORT_INCLUDE_DIR=$folder/onnxruntime -DEBCA_JSON_INCLUDE_DIR=$folder/json/usr/include"
