#include "memory.hpp"

#include <algorithm>
#include <iomanip>
#include <map>
#include <sstream>
#include <vector>

#include "contract/tensor.hpp"
#include "execution/arena.hpp"
#include "parameters.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

std::string shown(int64_t bytes) {
    std::ostringstream out;
    auto number = static_cast<double>(bytes);
    out << std::fixed << std::setprecision(1);
    if (number >= 1e12) {
        out << number / 1e12 << " TB";
    } else if (number >= 1e9) {
        out << number / 1e9 << " GB";
    } else {
        out << std::setprecision(0) << number / 1e6 << " MB";
    }
    return out.str();
}

int64_t arena_bytes(const UNetSpec& unet, const Sizes& sizes) {
    std::map<std::string, int64_t> bytes;
    for (const auto& [name, spec] : unet.tensors) bytes[name] = byte_size(evaluate(spec.shape, sizes), spec.dtype);
    std::vector<std::string> keep = unet.inputs;
    keep.insert(keep.end(), unet.outputs.begin(), unet.outputs.end());
    return lay_out(lifetimes(unet.steps, bytes, keep)).bytes;
}

}  // namespace

void check_host_memory(const UNetSpec& unet, const Sizes& sizes, const std::string& what) {
    int64_t needed = arena_bytes(unet, sizes), available = platform::available_bytes();
    if (needed > available) throw rules::memory_needed(shown(needed), "", what, shown(available));
}

}  // namespace ebca::internal
