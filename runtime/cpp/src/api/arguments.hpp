// What a caller passes by pointer: compared with what the call takes before anything is copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "conditioning/prompts.hpp"
#include "contract/tensor.hpp"
#include "ebca.h"
#include "engine.hpp"
#include "images/inputs.hpp"
#include "parameters.hpp"
#include "session.hpp"

namespace ebca::internal {

// Later versions give the reserved words of a struct a meaning; until then, what is in them is a mistake.
template <typename Struct>
void check_reserved(const Struct& given, const std::string& name) {
    for (uint64_t word : given.reserved) {
        if (word) throw rules::reserved_not_zero(name);
    }
}

// The pixels of a caller; nothing is read yet.
ImageView image_of(const ebca_image& given, const std::string& name);
// Those of a list, which has been checked.
std::vector<ImageView> images_of(const ebca_image* given, size_t count, const std::string& name);

// A pointer with a count: NULL only with a count of 0. ParameterError for that, and for more than `most`.
void check_list(const void* items, size_t count, const std::string& name, size_t most);

// A text of the caller; "" for NULL. ParameterError for one that is not UTF-8, or longer than any that is read.
std::string text_of(const char* given, const std::string& name);
// The same; ParameterError for NULL.
std::string needed_text(const char* given, const std::string& name);
// Those of a list, which has been checked.
std::vector<std::string> texts_of(const char* const* given, size_t count, const std::string& name);

// The shape of a tensor that is given; nothing for one without data. name: of the field. Nothing is copied yet.
std::optional<Shape> shape_of(const ebca_tensor& tensor, const std::string& name);
// The same; ParameterError without data.
Shape needed_shape(const ebca_tensor& tensor, const std::string& name);
// Its values, once the shape is known to be right.
Array copied(const Device& device, const ebca_tensor& given, const Shape& shape);
// Both at once; ParameterError for more than `most` values.
std::optional<Array> array(const Device& device, const ebca_tensor& given, const std::string& name, int64_t most);

// What a call of one session takes.
class Arguments {
  public:
    Arguments(const Engine& engine, const Session& session) : engine_(engine), session_(session) {}

    std::optional<Array> latents(const ebca_tensor& given) const;
    Prompt prompt(const ebca_prompt& given, const std::string& name) const;
    // Texts for a second text encoder. ParameterError for embeddings, which are of both.
    std::vector<std::string> second(const ebca_prompt& given, const std::string& name) const;
    std::optional<Array> pooled(const ebca_tensor& given, const std::string& name) const;
    // name: of the field, "images" or "masks".
    std::vector<ImageView> images(const ebca_image* given, size_t count, const char* name) const;
    std::vector<int64_t> seeds(const int64_t* given, size_t count) const;
    // ParameterError for more editing prompts than the engine takes.
    void check_edits(const ebca_edit* given, size_t count) const;

  private:
    std::vector<std::string> texts(const ebca_prompt& given, const std::string& name) const;
    std::optional<Array> embeds(const ebca_tensor& given, const std::string& name) const;
    bool per_image(size_t count) const;

    const Engine& engine_;
    const Session& session_;
};

}  // namespace ebca::internal
