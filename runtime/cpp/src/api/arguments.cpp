#include "api/arguments.hpp"

#include <cstring>

#include "contract/limits.hpp"
#include "contract/product.hpp"
#include "contract/utf8.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

constexpr size_t kMostTextBytes = size_t{4} << 20;
constexpr size_t kMostEdits = 4096;

}  // namespace

std::optional<Shape> shape_of(const ebca_tensor& tensor, const std::string& name) {
    check_reserved(tensor, name);
    if (!tensor.data) return std::nullopt;
    if (tensor.memory != EBCA_MEMORY_HOST && tensor.memory != EBCA_MEMORY_CUDA) {
        throw rules::tensor_memory(name, tensor.memory);
    }
    if (tensor.rank < 1 || tensor.rank > 4) throw rules::tensor_rank(name, tensor.rank);
    Shape shape(tensor.shape, tensor.shape + tensor.rank);
    int64_t count = 1;
    for (int64_t size : shape) {
        if (size < 1 || !multiply(count, size, count) || count > int64_t{1} << 40) {
            throw rules::tensor_shape(name, to_string(shape));
        }
    }
    return shape;
}

Shape needed_shape(const ebca_tensor& tensor, const std::string& name) {
    std::optional<Shape> shape = shape_of(tensor, name);
    if (!shape) throw rules::is_null(name + ".data");
    return *shape;
}

Array copied(const Device& device, const ebca_tensor& given, const Shape& shape) {
    Array out(shape);
    size_t bytes = out.values.size() * sizeof(float);
    if (given.memory == EBCA_MEMORY_CUDA) {
        device.read(out.values.data(), given.data, static_cast<int64_t>(bytes));
    } else {
        std::memcpy(out.values.data(), given.data, bytes);
    }
    return out;
}

std::optional<Array> array(const Device& device, const ebca_tensor& given, const std::string& name, int64_t most) {
    std::optional<Shape> shape = shape_of(given, name);
    if (!shape) return std::nullopt;
    if (elements(*shape) > most) throw rules::tensor_shape(name, to_string(*shape));
    return copied(device, given, *shape);
}

ImageView image_of(const ebca_image& given, const std::string& name) {
    check_reserved(given, name);
    return {given.pixels, given.height, given.width, given.channels};
}

void check_list(const void* items, size_t count, const std::string& name, size_t most) {
    if (count && !items) throw rules::list_null(name, count);
    if (count > most) throw rules::list_too_long(name, count, most);
}

std::string text_of(const char* given, const std::string& name) {
    if (!given) return {};
    size_t length = strnlen(given, kMostTextBytes + 1);
    if (length > kMostTextBytes) throw rules::text_too_long(name, kMostTextBytes);
    std::string_view text(given, length);
    for (size_t begin = 0; begin < length;) {
        size_t bytes = utf8_at(text, begin).length;
        if (bytes == 0) throw rules::text_not_utf8(name, begin);
        begin += bytes;
    }
    return std::string(text);
}

std::string needed_text(const char* given, const std::string& name) {
    if (!given) throw rules::is_null(name);
    return text_of(given, name);
}

std::vector<std::string> texts_of(const char* const* given, size_t count, const std::string& name) {
    std::vector<std::string> out;
    for (size_t i = 0; i < count; ++i) out.push_back(needed_text(given[i], text(name, "[", i, "]")));
    return out;
}

std::vector<ImageView> images_of(const ebca_image* given, size_t count, const std::string& name) {
    std::vector<ImageView> out;
    for (size_t i = 0; i < count; ++i) out.push_back(image_of(given[i], text(name, "[", i, "]")));
    return out;
}

std::optional<Array> Arguments::latents(const ebca_tensor& given) const {
    std::optional<Shape> shape = shape_of(given, "latents");
    if (!shape) return std::nullopt;
    if (*shape != session_.latent_shape()) {
        throw rules::latents_shape(to_string(*shape), to_string(session_.latent_shape()));
    }
    return copied(engine_.device(), given, *shape);
}

std::optional<Array> Arguments::embeds(const ebca_tensor& given, const std::string& name) const {
    std::optional<Shape> shape = shape_of(given, name + ".embeds");
    if (!shape) return std::nullopt;
    int64_t width = engine_.manifest().unet.context_dim, batch = session_.batch();
    if (shape->size() != 3 || (shape->at(0) != 1 && shape->at(0) != batch) || shape->at(2) != width) {
        throw rules::embeds_shape(name + ".embeds", to_string(*shape), batch, width);
    }
    if (shape->at(1) > limits::tokens) throw rules::embeds_too_long(name, shape->at(1), limits::tokens);
    return copied(engine_.device(), given, *shape);
}

std::optional<Array> Arguments::pooled(const ebca_tensor& given, const std::string& name) const {
    std::optional<Shape> shape = shape_of(given, name);
    if (!shape) return std::nullopt;
    int64_t width = engine_.manifest().unet.pooled_size(), batch = session_.batch();
    if (!width) throw rules::added_engine(name);
    if (shape->size() != 2 || (shape->at(0) != 1 && shape->at(0) != batch) || shape->at(1) != width) {
        throw rules::pooled_shape(name, to_string(*shape), batch, width);
    }
    return copied(engine_.device(), given, *shape);
}

std::vector<std::string> Arguments::texts(const ebca_prompt& given, const std::string& name) const {
    check_reserved(given, name);
    check_list(given.texts, given.count, name + ".texts", limits::images);
    if (given.count && !per_image(given.count)) throw rules::prompt_count(name, given.count, session_.batch());
    return texts_of(given.texts, given.count, name + ".texts");
}

Prompt Arguments::prompt(const ebca_prompt& given, const std::string& name) const {
    Prompt out;
    out.texts = texts(given, name);
    out.embeds = embeds(given.embeds, name);
    return out;
}

std::vector<std::string> Arguments::second(const ebca_prompt& given, const std::string& name) const {
    if (shape_of(given.embeds, name + ".embeds")) throw rules::embeds_of_second(name);
    return texts(given, name);
}

std::vector<ImageView> Arguments::images(const ebca_image* given, size_t count, const char* name) const {
    check_list(given, count, name, limits::images);
    if (count && !per_image(count)) throw rules::count_per_image(count, name, session_.batch());
    return images_of(given, count, name);
}

std::vector<int64_t> Arguments::seeds(const int64_t* given, size_t count) const {
    check_list(given, count, "seeds", limits::images);
    if (count && !per_image(count)) throw rules::seed_count(count, session_.batch());
    return {given, given + count};
}

void Arguments::check_edits(const ebca_edit* given, size_t count) const {
    check_list(given, count, "edits", kMostEdits);
    const std::optional<int64_t>& most = engine_.manifest().unet.max_contexts;
    if (most && static_cast<int64_t>(count) > *most - 1) throw rules::edits_too_many(count, *most - 1);
}

bool Arguments::per_image(size_t count) const {
    return count == 1 || static_cast<int64_t>(count) == session_.batch();
}

}  // namespace ebca::internal
