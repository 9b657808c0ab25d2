// Images and masks to what the samplers start from.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine.hpp"
#include "images/inputs.hpp"
#include "request.hpp"
#include "sampling/noise.hpp"
#include "sampling/schedulers.hpp"

namespace ebca::internal {

// Images and masks at the session's size: pixels [n,H,W,3] in [0, 1]; mask [n or 1,1,H,W] and hole [n or 1,1,h,w] of
// 0 and 1, both or neither.
struct Source {
    Array pixels;
    std::optional<Array> mask;
    std::optional<Array> hole;
};

// What a sampler needs of noise and images.
struct SamplerInputs {
    Array initial;                        // initial latents [n,C,h,w]
    std::optional<Array> extra_channels;  // follow the latents into the UNet of an inpainting model [n,1+C,h,w]
    std::optional<Array> clean;           // clean latents of the image without the hole [n,C,h,w]
};

// Read and resize images and masks; nothing without images. ParameterError for a number that does not fit the batch.
std::optional<Source> load_source(const Engine& engine, int64_t batch, int64_t height, int64_t width, int64_t downscale,
                                  const std::vector<ImageView>& images, const std::vector<ImageView>& masks);

// A sample of the VAE's latents [n,C,h,w] of pixels [n,H,W,3], drawn as diffusers draws it. tiled: as of
// `Engine::decode`. cancellation: null: none.
Array sampled_latents(Engine& engine, const Array& pixels, std::vector<NormalStream>& streams, bool tiled = false,
                      Cancellation* cancellation = nullptr);

// Draw the noise, in the order in which diffusers' pipelines draw, and encode the images. shape: of the latents
// [n,C,h,w]. latents: noise that was given; none: drawn here. table: of image to image. tiled: images are encoded in
// tiles. CancelledError as soon as that is requested.
SamplerInputs prepare(Engine& engine, Task task, const std::optional<Source>& source,
                      std::vector<NormalStream>& streams, const Shape& shape, const std::optional<Array>& latents,
                      const SchedulerTable* table, bool tiled, Cancellation* cancellation);

// The region that the main context's update uses: the hole [n or 1,1,h,w]; nothing without a mask.
std::optional<Array> update_mask(const std::optional<Source>& source, Task task, const RePaint& repaint);

// One for all or one each to [batch,...]. items: "images" or "masks". ParameterError for another number.
Array per_image(const char* items, const Array& values, int64_t batch);

}  // namespace ebca::internal
