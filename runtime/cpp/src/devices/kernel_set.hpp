// The compiled kernels as data: which binary serves a call, and how to launch it, as
// plugins/kernels/binaries.py has it. The keys of manifest.json beside the binaries are in that folder's
// README.md; nothing here knows CUDA.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include "contract/variant.hpp"
#include "devices/driver.hpp"

namespace ebca::internal {

// Sizes of one call. All tensors are contiguous, in the shapes of the op's contract.
struct OpShape {
    int64_t batch = 0;
    int64_t positions = 0;
    int64_t contexts = 0;
    int64_t tokens = 0;
    int64_t heads = 0;
    int64_t head_dim = 0;
    int64_t groups = 0;  // of tokens: only the guided variants use them, and need at least one

    int64_t channels() const { return heads * head_dim; }
    // ParameterError for sizes that a kernel cannot have.
    void check() const;
};

// One kernel parameter and its byte offset in the parameter buffer.
struct Argument {
    enum class Type { pointer, int32, float32 };
    std::string name;
    Type type;
    size_t offset;
};

// One compiled kernel for one compute capability (a cubin), or from it upwards (PTX).
struct Binary {
    std::string kernel;
    bool is_ptx = false;
    Capability capability;
    std::string dtype;  // empty: serves every dtype
    int64_t smallest_head_dim = 0;
    int64_t largest_head_dim = 0;
    int64_t unit = 1;  // head_dim and strides are multiples of it
    int64_t positions_from = 0;
    std::map<std::string, int64_t> constants;
    uint32_t num_warps = 0;
    uint32_t shared_bytes = 0;  // dynamic shared memory to ask for at launch
    size_t offset = 0;          // in its pack
    size_t size = 0;

    // The pack that contains it: "8.9" for a cubin, "ptx" for PTX.
    std::string pack() const;
    uint32_t threads() const { return 32 * num_warps; }
};

// Name to device address.
using Addresses = std::map<std::string, uint64_t>;

// One launch: its grid and every argument; pointers by name until `pack`. Belongs to its KernelSet.
struct KernelLaunch {
    // A size, a factor, or the name of a tensor ("" for the null pointer).
    using Value = std::variant<int32_t, float, std::string>;

    const Binary* binary = nullptr;
    const std::vector<Argument>* arguments = nullptr;
    std::array<uint32_t, 3> grid{};
    std::vector<Value> values;

    // The parameter buffer: each argument at its offset. ParameterError for a tensor that is missing or not aligned to
    // 16 bytes.
    std::vector<std::byte> pack(const Addresses& addresses) const;
};

// The launches of one call, in order on one stream, and the scratch memory they share: scratch tensors and their byte
// offsets. Nothing in them is kept from call to call.
struct OpLaunches {
    std::vector<KernelLaunch> launches;
    std::map<std::string, int64_t> scratch;
    int64_t scratch_bytes = 0;
};

// All binaries of a folder. Thread-safe.
class KernelSet {
  public:
    // Reads manifest.json. BackendError if it is missing, damaged or of another version.
    explicit KernelSet(std::filesystem::path folder);
    KernelSet(const KernelSet&) = delete;
    KernelSet& operator=(const KernelSet&) = delete;

    // The launches of one variant for q, k, v of a dtype, "float16" or "bfloat16". BackendError naming the capability
    // if there is neither a cubin nor PTX for it, ParameterError for sizes or a dtype that none serves.
    OpLaunches launches(Variant variant, Capability capability, const std::string& dtype, const OpShape& shape) const;

    // The launch of a kernel that has a single form; its tensors have the names of its pointers without "_ptr".
    // BackendError as `launches`, or for integers other than the kernel's.
    KernelLaunch launch(const std::string& kernel, Capability capability, int64_t blocks,
                        const std::map<std::string, int32_t>& integers) const;

    // The cubin or PTX text itself. BackendError for a damaged file.
    std::string image(const Binary& binary) const;

  private:
    struct Pack {
        std::string file;
        std::string sha256;
    };

    const Binary& choose(const std::string& kernel, Capability capability, const std::string& dtype,
                         const OpShape& shape, const std::map<std::string, int64_t>& constants) const;
    std::vector<const Binary*> on(const std::string& kernel, Capability capability) const;
    KernelLaunch launch(const Binary& binary, const std::array<int64_t, 3>& grid,
                        const std::map<std::string, KernelLaunch::Value>& values) const;
    const std::string& contents(const std::string& pack) const;

    std::filesystem::path folder_;
    std::map<std::string, std::vector<Argument>> arguments_;
    std::map<std::string, Pack> packs_;
    std::vector<Binary> binaries_;
    mutable std::mutex lock_;
    mutable std::map<std::string, std::string> read_;
};

// The folder that holds the kernels: the one named, else EBCA_KERNELS_DIR, else share/ebca/kernels of the prefix that
// this library is installed in.
std::filesystem::path kernels_folder(const std::string& named);

}  // namespace ebca::internal
