#include "conditioning/added_inputs.hpp"

#include <algorithm>

#include "parameters.hpp"

namespace ebca::internal {
namespace {

void refuse(bool given, const std::string& name) {
    if (given) throw rules::added_engine(name);
}

// name: "prompt" or "negative_prompt". width: of pooled embeddings; 0: the UNet takes none.
void check_prompt(const Prompt& prompt, const std::string& name, int64_t width) {
    const std::string second = name + "_2", embeds = name + ".embeds",
                      pooled = (name == "prompt" ? "" : "negative_") + std::string("pooled_prompt_embeds");
    if (!width) {
        refuse(!prompt.texts_2.empty(), second);
        refuse(prompt.pooled.has_value(), pooled);
        return;
    }
    if (prompt.embeds && !prompt.texts_2.empty()) throw rules::second_prompt_with_embeds(second, embeds);
    if (prompt.embeds && !prompt.pooled) throw rules::pooled_needed(embeds, pooled, width);
    if (prompt.pooled && !prompt.embeds) throw rules::pooled_alone(pooled, embeds);
}

void check_pair(const std::string& name, const SizeConditions::Pair& pair, const char* meaning) {
    bool fits = std::all_of(pair.begin(), pair.end(),
                            [](int64_t value) { return value >= 0 && value <= limits::size_condition; });
    if (!fits)
        throw rules::size_condition(name, text("(", pair[0], ", ", pair[1], ")"), limits::size_condition, meaning);
}

void check_sizes(const SizeConditions& sizes, const std::string& name) {
    if (sizes.original) check_pair(name + ".original", *sizes.original, "height and width");
    check_pair(name + ".crop", sizes.crop, "pixels from the top and from the left");
    if (sizes.target) check_pair(name + ".target", *sizes.target, "height and width");
}

}  // namespace

void check_added_inputs(const Conditioning& conditioning, const SizeConditions& sizes, const SizeConditions& negative,
                        const UNetSpec& unet) {
    int64_t width = unet.pooled_size();
    check_prompt(conditioning.prompt, "prompt", width);
    check_prompt(conditioning.negative_prompt, "negative_prompt", width);
    if (!width) {
        refuse(sizes.given(), "size_conditions");
        refuse(negative.given(), "negative_size_conditions");
        return;
    }
    check_sizes(sizes, "size_conditions");
    check_sizes(negative, "negative_size_conditions");
    if (!negative.given() || (negative.original && negative.target)) return;
    throw rules::negative_sizes("negative_size_conditions", negative.original ? "a target size" : "an original size");
}

Array time_ids(const UNetSpec& unet, int64_t batch, bool guided, const SizeConditions& sizes,
               const SizeConditions& negative, const SizeConditions::Pair& image) {
    if (!unet.pooled_size()) return Array();
    Array out({guided ? 2 * batch : batch, kTimeIdCount});
    for (int64_t row = 0; row < out.size(0); ++row) {
        const SizeConditions& own = guided && row < batch && negative.given() ? negative : sizes;
        float* to = out.row(row);
        for (const SizeConditions::Pair& pair : {own.original.value_or(image), own.crop, own.target.value_or(image)}) {
            for (int64_t value : pair) *to++ = static_cast<float>(value);
        }
    }
    return out;
}

}  // namespace ebca::internal
