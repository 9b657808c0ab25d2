// The manifest reader on hostile input: only ebca::Error may come out of it, and what it accepts can be laid out.
//
// With clang:
//     clang++ -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -I../src -I$JSON fuzz_manifest.cpp $SOURCES
// where SOURCES are arena, dims, json, manifest and tensor. A good corpus: engines/bundled/shapes/manifest.json.
// Without libFuzzer, -DEBCA_FUZZ_REPLAY makes a program that runs the files it is given.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "arena.hpp"
#include "error.hpp"
#include "manifest.hpp"

namespace {

// What an executor does with a manifest before it opens anything.
void lay_out_tensors(const ebca::Manifest& manifest) {
    ebca::Sizes sizes{{"batch", 2}, {"contexts", 2}, {"tokens", 77}, {"height", 64}, {"width", 64}};
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, spec] : manifest.unet.tensors) {
        bytes[name] = ebca::byte_size(ebca::evaluate(spec.shape, sizes), spec.dtype);
    }
    std::vector<std::string> keep = manifest.unet.inputs;
    keep.insert(keep.end(), manifest.unet.outputs.begin(), manifest.unet.outputs.end());
    ebca::lay_out(ebca::lifetimes(manifest.unet.plan, bytes, keep));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    try {
        lay_out_tensors(ebca::parse_manifest({reinterpret_cast<const char*>(data), size}));
    } catch (const ebca::Error&) {
    }
    return 0;
}

#ifdef EBCA_FUZZ_REPLAY
#include <fstream>
#include <iterator>
#include <string>

int main(int count, char** paths) {
    for (int i = 1; i < count; ++i) {
        std::ifstream file(paths[i], std::ios::binary);
        std::string bytes{std::istreambuf_iterator<char>(file), {}};
        LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    }
}
#endif
