#include "devices/kernel_set.hpp"

#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <set>

#include "contract/directory.hpp"
#include "contract/json.hpp"
#include "contract/product.hpp"
#include "contract/sha256.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace {

using json::Value;

constexpr const char* kKernelsFormat = "ebca-kernels";
constexpr int64_t kKernelsVersion = 1;
constexpr int64_t kScratchAlignment = 256;
constexpr uint64_t kPointerAlignment = 16;
constexpr int64_t kMostElements = int64_t{1} << 31;
constexpr int64_t kMostBlocks = 65535;  // of a grid's second and third axis
constexpr size_t kLargestImage = size_t{64} << 20;
constexpr int64_t kLargestNumber = int64_t{1} << 30;

std::string shown(Capability capability) {
    return text(capability.first, ".", capability.second);
}

Capability parse_capability(const std::string& given) {
    size_t dot = given.find('.');
    if (dot == given.npos || dot == 0 || given.size() > 5 || given.find_first_not_of("0123456789.") != given.npos ||
        given.find('.', dot + 1) != given.npos || dot + 1 == given.size()) {
        throw EngineError(text("'", given, "' is no compute capability"));
    }
    return {std::stoi(given.substr(0, dot)), std::stoi(given.substr(dot + 1))};
}

int64_t blocks(int64_t size, int64_t block) {
    return (size + block - 1) / block;
}

Argument parse_argument(const Value& record) {
    static const std::map<std::string, Argument::Type> types{
        {"pointer", Argument::Type::pointer}, {"int32", Argument::Type::int32}, {"float32", Argument::Type::float32}};
    auto type = types.find(json::string(json::member(record, "type"), "type"));
    if (type == types.end()) throw EngineError("an argument has an unknown type");
    return {json::string(json::member(record, "name"), "name"), type->second,
            static_cast<size_t>(json::integer(json::member(record, "offset"), "offset", 0, 4096))};
}

size_t size_of(Argument::Type type) {
    return type == Argument::Type::pointer ? 8 : 4;
}

int64_t constant(const Binary& binary, const char* name) {
    auto found = binary.constants.find(name);
    if (found == binary.constants.end() || found->second < 0) {
        throw BackendError(text("a GPU kernel ", binary.kernel, " has no constant ", name), "install ebca again");
    }
    return found->second;
}

int64_t block(const Binary& binary, const char* name) {
    return std::max<int64_t>(constant(binary, name), 1);
}

Binary parse_binary(const Value& record) {
    auto number = [&](const char* name, int64_t smallest = 0) {
        return json::integer(json::member(record, name), name, smallest, kLargestNumber);
    };
    Binary out;
    out.kernel = json::string(json::member(record, "kernel"), "kernel");
    std::string format = json::string(json::member(record, "format"), "format");
    if (format != "cubin" && format != "ptx") throw EngineError(text("format is '", format, "'"));
    out.is_ptx = format == "ptx";
    out.capability = parse_capability(json::string(json::member(record, "capability"), "capability"));
    const Value& dtype = json::optional_member(record, "dtype");
    if (!dtype.is_null()) out.dtype = json::string(dtype, "dtype");
    const Value& head_dims = json::array(json::member(record, "head_dims"), "head_dims");
    if (head_dims.size() != 2) throw EngineError("head_dims are not two numbers");
    out.smallest_head_dim = json::integer(head_dims[0], "head_dims", 1, kLargestNumber);
    out.largest_head_dim = json::integer(head_dims[1], "head_dims", 1, kLargestNumber);
    out.unit = number("unit", 1);
    out.positions_from = number("positions_from");
    for (const auto& [name, value] : json::object(json::member(record, "constants"), "constants").items()) {
        out.constants[name] = json::integer(value, name, 0, kLargestNumber);
    }
    out.num_warps = static_cast<uint32_t>(number("num_warps", 1));
    out.shared_bytes = static_cast<uint32_t>(number("shared_bytes"));
    out.offset = static_cast<size_t>(number("offset"));
    out.size = static_cast<size_t>(number("size"));
    return out;
}

// zlib's format. Nothing if the bytes have another.
std::optional<std::string> inflated(std::string_view bytes) {
    z_stream stream{};
    if (inflateInit(&stream) != Z_OK) throw std::bad_alloc();
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
    stream.avail_in = static_cast<uInt>(bytes.size());
    std::string out;
    std::array<char, 1 << 16> piece;
    int status = Z_OK;
    while (status == Z_OK && out.size() <= kLargestImage) {
        stream.next_out = reinterpret_cast<Bytef*>(piece.data());
        stream.avail_out = static_cast<uInt>(piece.size());
        status = inflate(&stream, Z_NO_FLUSH);
        out.append(piece.data(), piece.size() - stream.avail_out);
    }
    inflateEnd(&stream);
    return status == Z_STREAM_END ? std::optional(std::move(out)) : std::nullopt;
}

// Scratch tensors of a call and their bytes, in order.
std::vector<std::pair<const char*, int64_t>> scratch_sizes(Variant variant, const OpShape& shape, int64_t splits) {
    std::vector<std::pair<const char*, int64_t>> out;
    if (plain(variant) != Variant::attention) {
        int64_t elements = 0;
        if (!multiply(splits * shape.tokens, shape.head_dim, elements) || elements >= kMostElements) {
            throw ParameterError("the operator needs scratch of 2^31 elements or more per head",
                                 "make the image smaller");
        }
        int64_t rows = shape.batch * shape.contexts;
        out = {{"partial", rows * shape.heads * elements * 2},
               {"column", rows * shape.heads * splits * 2 * shape.tokens * 4},
               {"norm2", rows * shape.tokens * 4}};
    }
    if (is_guided(variant)) {
        out.emplace_back("head_maps", shape.batch * shape.heads * shape.groups * shape.positions * 4);
    }
    return out;
}

void check_groups(Variant variant, const OpShape& shape, int64_t most) {
    if (shape.groups >= 1 && shape.groups <= most) return;
    throw ParameterError(text("variant '", to_string(variant), "' is given ", shape.groups, " token groups"),
                         text("the GPU kernels take 1 to ", most));
}

// Programs per head and row that ebca_forward adds for the step.
int64_t update_places(const OpShape& shape, int64_t splits, const Binary& forward) {
    int64_t rows = block(forward, "ROWS"), tail = block(forward, "TAIL");
    int64_t wide = (shape.tokens + tail - 1) / rows;
    int64_t narrow = blocks(std::max<int64_t>(shape.tokens - wide * rows, 0), tail);
    int64_t norms = shape.contexts * blocks(shape.tokens, block(forward, "NORM_T"));
    return shape.contexts * splits * (wide + narrow) + blocks(norms, shape.heads);
}

// Inputs and outputs of a variant, as in the op's contract.
std::set<std::string> tensors_of(Variant variant) {
    std::set<std::string> names{"q", "k", "v", "weights", "out"};
    if (plain(variant) != Variant::attention) names.insert({"gamma_attn", "gamma_norm", "norm_factor", "tie", "g"});
    if (plain(variant) == Variant::update_masked) names.insert("mask");
    if (is_guided(variant)) names.insert({"bias", "token_groups", "maps"});
    return names;
}

}  // namespace

void OpShape::check() const {
    const std::pair<const char*, int64_t> sizes[] = {{"batch", batch},       {"positions", positions},
                                                     {"contexts", contexts}, {"tokens", tokens},
                                                     {"heads", heads},       {"head_dim", head_dim}};
    for (const auto& [name, value] : sizes) {
        if (value < 1 || value >= kMostElements) {
            throw ParameterError(text(name, " is ", value), "every size of the operator must be at least 1");
        }
    }
    if (groups < 0 || groups >= kMostElements) {
        throw ParameterError(text("groups is ", groups), "every size of the operator must be at least 1");
    }
    int64_t row = 0, keys = 0, mask = 0, rows = 0;
    bool large = !multiply(contexts, tokens, keys) ||
                 !multiply(std::max(channels(), heads * groups), std::max(positions, keys), row) ||
                 row >= kMostElements || !multiply(positions, contexts, mask) || mask >= kMostElements;
    if (large)
        throw ParameterError("one batch row of the operator has 2^31 elements or more", "make the image smaller");
    if (!multiply(batch, contexts, rows) || std::max(heads, rows) > kMostBlocks) {
        throw ParameterError(text("heads is ", heads, " and batch * contexts is ", rows),
                             text("both must be at most ", kMostBlocks, ", the limit of a grid"));
    }
}

std::string Binary::pack() const {
    return is_ptx ? "ptx" : shown(capability);
}

std::vector<std::byte> KernelLaunch::pack(const Addresses& addresses) const {
    const Argument& last = arguments->back();
    std::vector<std::byte> packed(last.offset + size_of(last.type));
    for (size_t i = 0; i < arguments->size(); ++i) {
        std::byte* at = packed.data() + (*arguments)[i].offset;
        if (const auto* number = std::get_if<int32_t>(&values[i])) std::memcpy(at, number, sizeof *number);
        if (const auto* factor = std::get_if<float>(&values[i])) std::memcpy(at, factor, sizeof *factor);
        const auto* name = std::get_if<std::string>(&values[i]);
        if (!name || name->empty()) continue;
        auto found = addresses.find(*name);
        if (found == addresses.end()) throw ParameterError(text("no device address for tensor '", *name, "'"));
        if (found->second == 0 || found->second % kPointerAlignment) {
            throw ParameterError(text("tensor '", *name, "' is at address ", found->second),
                                 text("the kernels need addresses in steps of ", kPointerAlignment));
        }
        std::memcpy(at, &found->second, sizeof found->second);
    }
    return packed;
}

KernelSet::KernelSet(std::filesystem::path folder) : folder_(std::move(folder)) {
    std::filesystem::path path = folder_ / "manifest.json";
    try {
        Value data = json::parse(read_file(path));
        const json::TakenApart without_memory(data);
        std::string format = json::string(json::member(data, "format"), "format");
        int64_t version = json::integer(json::member(data, "version"), "version", 0, kLargestNumber);
        if (format != kKernelsFormat || version != kKernelsVersion) {
            throw EngineError(text("it is '", format, "' version ", version, ", not '", kKernelsFormat, "' version ",
                                   kKernelsVersion));
        }
        for (const auto& [kernel, records] : json::object(json::member(data, "arguments"), "arguments").items()) {
            std::vector<Argument>& arguments = arguments_[kernel];
            for (const Value& record : json::array(records, kernel)) {
                arguments.push_back(parse_argument(record));
                if (arguments.size() > 1 && arguments.back().offset <= arguments[arguments.size() - 2].offset) {
                    throw EngineError(text("the arguments of ", kernel, " are not in order"));
                }
            }
            if (arguments.empty()) throw EngineError(text(kernel, " has no arguments"));
        }
        for (const auto& [key, record] : json::object(json::member(data, "packs"), "packs").items()) {
            Pack pack{json::string(json::member(record, "file"), "file"),
                      json::string(json::member(record, "sha256"), "sha256")};
            if (std::filesystem::path(pack.file).filename() != pack.file) {
                throw EngineError(text("the pack '", pack.file, "' is not a file of this folder"));
            }
            packs_.emplace(key, std::move(pack));
        }
        for (const Value& record : json::array(json::member(data, "binaries"), "binaries")) {
            binaries_.push_back(parse_binary(record));
            const Binary& binary = binaries_.back();
            if (!packs_.count(binary.pack()) || !arguments_.count(binary.kernel)) {
                throw EngineError(text("the binary ", binary.kernel, " for ", binary.pack(), " has no pack"));
            }
        }
    } catch (const EngineError& error) {
        throw BackendError(text(platform::to_utf8(path), ": the GPU kernels cannot be read (", error.what(), ")"),
                           "name their folder in the parameters or in EBCA_KERNELS_DIR, or install ebca again");
    }
}

const std::string& KernelSet::contents(const std::string& pack) const {
    std::lock_guard held(lock_);
    auto found = read_.find(pack);
    if (found != read_.end()) return found->second;
    const Pack& wanted = packs_.at(pack);
    std::filesystem::path path = folder_ / wanted.file;
    std::string bytes;
    try {
        bytes = read_file(path);
    } catch (const EngineError& error) {
        throw BackendError(text(platform::to_utf8(path), ": the GPU kernels cannot be read (", error.what(), ")"),
                           "install ebca again");
    }
    if (sha256(bytes) != wanted.sha256) {
        throw BackendError(text(platform::to_utf8(path), " is damaged: its SHA-256 is not the manifest's"),
                           "install ebca again");
    }
    return read_.emplace(pack, std::move(bytes)).first->second;
}

std::string KernelSet::image(const Binary& binary) const {
    const std::string& bytes = contents(binary.pack());
    std::optional<std::string> made;
    if (binary.offset <= bytes.size() && binary.size <= bytes.size() - binary.offset) {
        made = inflated(std::string_view(bytes).substr(binary.offset, binary.size));
    }
    if (!made) {
        throw BackendError(
            text(platform::to_utf8(folder_), ": the kernel ", binary.kernel, " for ", binary.pack(), " is damaged"),
            "install ebca again");
    }
    return *made;
}

// All forms of a kernel for a device: cubins of exactly its capability, else the PTX that the driver compiles for it.
std::vector<const Binary*> KernelSet::on(const std::string& kernel, Capability capability) const {
    std::vector<const Binary*> cubins, ptx;
    std::set<Capability> with_cubins, with_ptx;
    for (const Binary& binary : binaries_) {
        (binary.is_ptx ? with_ptx : with_cubins).insert(binary.capability);
        if (binary.kernel != kernel) continue;
        if (!binary.is_ptx && binary.capability == capability) cubins.push_back(&binary);
        if (binary.is_ptx && binary.capability <= capability) ptx.push_back(&binary);
    }
    if (!cubins.empty()) return cubins;
    if (!ptx.empty()) return ptx;
    std::string known;
    for (Capability one : with_cubins) known += (known.empty() ? "" : ", ") + shown(one);
    throw BackendError(text("no GPU kernel for compute capability ", shown(capability)),
                       text("there are cubins for ", known, " and PTX for any GPU from ",
                            with_ptx.empty() ? "none" : shown(*with_ptx.begin()), " on"));
}

const Binary& KernelSet::choose(const std::string& kernel, Capability capability, const std::string& dtype,
                                const OpShape& shape, const std::map<std::string, int64_t>& constants) const {
    bool has_dtype = false, has_head_dim = false;
    std::set<std::array<int64_t, 3>> ranges;
    const Binary* best = nullptr;
    for (const Binary* one : on(kernel, capability)) {
        if (!one->dtype.empty() && one->dtype != dtype) continue;
        has_dtype = true;
        ranges.insert({one->smallest_head_dim, one->largest_head_dim, one->unit});
        if (shape.head_dim < one->smallest_head_dim || shape.head_dim > one->largest_head_dim ||
            shape.head_dim % one->unit) {
            continue;
        }
        has_head_dim = true;
        bool same = std::all_of(constants.begin(), constants.end(), [&](const auto& wanted) {
            return constant(*one, wanted.first.c_str()) == wanted.second;
        });
        if (!same || one->positions_from > shape.positions) continue;
        if (!best || one->positions_from > best->positions_from) best = one;
    }
    if (!has_dtype) throw ParameterError(text("no GPU kernel for dtype '", dtype, "'"), "use float16 or bfloat16");
    if (!has_head_dim) {
        std::string known;
        for (const auto& [low, high, unit] : ranges) {
            known += text(known.empty() ? "" : ", ", low, " to ", high, " in steps of ", unit);
        }
        throw ParameterError(text("no GPU kernel for head_dim ", shape.head_dim),
                             text("there are kernels for ", known));
    }
    if (!best) throw BackendError(text("no GPU kernel ", kernel, " of this form"), "install ebca again");
    return *best;
}

KernelLaunch KernelSet::launch(const Binary& binary, const std::array<int64_t, 3>& grid,
                               const std::map<std::string, KernelLaunch::Value>& values) const {
    KernelLaunch out;
    out.binary = &binary;
    out.arguments = &arguments_.at(binary.kernel);
    for (size_t axis = 0; axis < 3; ++axis) out.grid[axis] = static_cast<uint32_t>(grid[axis]);
    for (const Argument& argument : *out.arguments) {
        auto found = values.find(argument.name);
        if (argument.type == Argument::Type::pointer) {
            // The null pointer for tensors that the variant does not read.
            out.values.push_back(found == values.end() ? KernelLaunch::Value(std::string()) : found->second);
            continue;
        }
        bool fits = found != values.end() &&
                    (argument.type == Argument::Type::int32 ? std::holds_alternative<int32_t>(found->second)
                                                            : std::holds_alternative<float>(found->second));
        if (!fits) {
            throw BackendError(text("the GPU kernel ", binary.kernel, " has the unknown argument ", argument.name),
                               "install the kernels of this version of ebca");
        }
        out.values.push_back(found->second);
    }
    return out;
}

KernelLaunch KernelSet::launch(const std::string& kernel, Capability capability, int64_t blocks,
                               const std::map<std::string, int32_t>& integers) const {
    const Binary& binary = *on(kernel, capability).front();
    std::map<std::string, KernelLaunch::Value> values(integers.begin(), integers.end());
    const std::string suffix = "_ptr";
    for (const Argument& argument : arguments_.at(kernel)) {
        size_t length = argument.name.size();
        if (length <= suffix.size() || argument.name.compare(length - suffix.size(), suffix.size(), suffix)) continue;
        values[argument.name] = argument.name.substr(0, length - suffix.size());
    }
    return launch(binary, {blocks, 1, 1}, values);
}

OpLaunches KernelSet::launches(Variant variant, Capability capability, const std::string& dtype,
                               const OpShape& shape) const {
    shape.check();
    bool update = plain(variant) != Variant::attention, masked = plain(variant) == Variant::update_masked;
    bool single = shape.contexts == 1 && !masked, guided = is_guided(variant);
    const Binary& forward = guided ? choose("ebca_forward_guided", capability, dtype, shape, {})
                                   : choose("ebca_forward", capability, dtype, shape, {{"SINGLE", single ? 1 : 0}});
    if (guided) check_groups(variant, shape, constant(forward, "GROUPS"));
    const Binary& combine = choose("ebca_combine", capability, dtype, shape, {});
    // At most SPLITS ranges of whole blocks; the last one may be shorter.
    int64_t positions = block(forward, "BLOCK_P");
    int64_t span = positions * blocks(blocks(shape.positions, positions), block(combine, "SPLITS"));
    int64_t splits = blocks(shape.positions, span);
    int64_t tiles = blocks(shape.positions, block(forward, "BLOCK_N"));
    OpLaunches out;
    for (const auto& [name, bytes] : scratch_sizes(variant, shape, splits)) {
        out.scratch[name] = out.scratch_bytes;
        out.scratch_bytes += blocks(bytes, kScratchAlignment) * kScratchAlignment;
    }
    std::map<std::string, KernelLaunch::Value> values;
    auto size = [&](const char* name, int64_t value) { values[name] = static_cast<int32_t>(value); };
    size("N", shape.positions);
    size("T", shape.tokens);
    size("S", shape.contexts);
    size("d", shape.head_dim);
    size("heads", shape.heads);
    size("groups", shape.groups);
    size("cells", shape.groups * shape.positions);
    size("splits", update ? splits : 0);
    size("span", span);
    size("q_batch", shape.positions * shape.channels());
    size("q_position", shape.channels());
    size("k_batch", shape.contexts * shape.tokens * shape.channels());
    size("k_context", shape.tokens * shape.channels());
    size("k_token", shape.channels());
    size("out_batch", shape.positions * shape.channels());
    size("out_position", shape.channels());
    size("mask_batch", shape.contexts * shape.positions);
    size("mask_context", shape.positions);
    size("mask_positions", masked ? shape.positions : 0);
    values["scale"] = static_cast<float>(std::log2(std::exp(1.0)) / std::sqrt(static_cast<double>(shape.head_dim)));
    for (const std::string& name : tensors_of(variant)) values[name + "_ptr"] = name;
    for (const auto& [name, offset] : out.scratch) values[name + "_ptr"] = name;
    int64_t places = tiles + (update ? update_places(shape, splits, forward) : 0);
    out.launches.push_back(launch(forward, {places, shape.heads, shape.batch}, values));
    if (update) {
        int64_t of_tokens = blocks(shape.tokens, block(combine, "BLOCK_T"));
        int64_t of_channels = blocks(shape.head_dim, block(combine, "BLOCK_D"));
        out.launches.push_back(
            launch(combine, {of_tokens * of_channels, shape.heads, shape.batch * shape.contexts}, values));
    }
    if (guided) {
        const Binary& maps = choose("ebca_maps", capability, dtype, shape, {});
        int64_t of_cells = blocks(shape.groups * shape.positions, block(maps, "BLOCK"));
        out.launches.push_back(launch(maps, {of_cells, 1, shape.batch}, values));
    }
    return out;
}

}  // namespace ebca::internal
