// What a generation is asked to do, and what it needs of the pictures it was given.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine.hpp"
#include "images/images.hpp"
#include "sampling/noise.hpp"
#include "sampling/repaint.hpp"
#include "sampling/schedulers.hpp"

namespace ebca {

// Follows from what is given and from the UNet.
enum class Task { text_to_image, image_to_image, inpainting, repaint };

const char* to_string(Task task);

// Pictures and masks at the session's size: pixels [n,H,W,3] in [0, 1]; mask [n or 1,1,H,W] and hole [n or 1,1,h,w] of
// 0 and 1, both or neither.
struct Source {
    Array pixels;
    std::optional<Array> mask;
    std::optional<Array> hole;
};

// What the loop gets to see of the pictures.
struct Seen {
    Array start;                    // what the scheduler starts from [n,C,h,w]
    std::optional<Array> channels;  // what follows the latents into an inpainting UNet [n,1+C,h,w]
    std::optional<Array> known;     // latents of the picture without the hole [n,C,h,w]
};

// The task that the inputs ask for. ParameterError: inputs that do not go together; EngineError: inputs that this model
// cannot use.
Task infer(const Manifest& manifest, bool image, bool mask, bool strength, bool repaint);

// How many of the steps image to image leaves out, as diffusers counts them. ParameterError: out of range, or so small
// that no step is left.
int64_t begin(const std::optional<double>& strength, int64_t steps);

// ParameterError where RePaint cannot work because the model predicts something else than noise.
void require_noise_prediction(const Manifest& manifest, const char* what);

// Read and resize pictures and masks; nothing where there is no image. ParameterError where they cannot be counted.
std::optional<Source> load_source(const Engine& engine, int64_t batch, int64_t height, int64_t width, int64_t downscale,
                                  const std::vector<Picture>& image, const std::vector<Picture>& mask);

// Draw the start noise, in the order in which diffusers' pipelines draw, and encode the pictures. shape: of the latents
// [n,C,h,w]. latents: start noise that was given; none: drawn here. table: of image to image.
Seen prepare(Engine& engine, Task task, const std::optional<Source>& source, std::vector<NormalStream>& streams,
             const Shape& shape, const std::optional<Array>& latents, const SchedulerTable* table);

// Where the main context's update looks: the hole [n or 1,1,h,w]; nothing without a mask.
std::optional<Array> update_mask(const std::optional<Source>& source, Task task, const RePaint& repaint);

// One for all or one each to [batch,...]. ParameterError for another number.
Array per_picture(const char* name, const Array& values, int64_t batch);

}  // namespace ebca
