// Single stages of a generation, which need an engine and no session. Thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "contract/tensor.hpp"
#include "engine.hpp"
#include "images/inputs.hpp"
#include "request.hpp"
#include "session.hpp"

namespace ebca::internal {

struct EncodeImagesRequest {
    std::vector<ImageView> images;
    int64_t height = 0;  // in pixels; 0: the size the model was trained at
    int64_t width = 0;
    bool sample = false;  // from the VAE's distribution, rather than its mean
    std::vector<int64_t> seeds;
};

// The texts of a prompt to embeddings of equal length, and pooled ones. ParameterError, EngineError.
Result encode_prompt(Engine& engine, const Conditioning& conditioning);

// Images to latents. ParameterError, EngineError.
Result encode_images(Engine& engine, const EncodeImagesRequest& request);

// Latents [n,C,h,w], whose shape has been checked, to pixels. ParameterError, EngineError, NumericalError.
Result decode(Engine& engine, const Array& latents);

// Latents [n,C,h,w] times a scale to pixels at their own size (images/preview.hpp). ParameterError, EngineError.
Result preview(Engine& engine, const Array& latents, double scale);

// ParameterError unless latents of this shape are of images that a session could make; EngineError without a VAE.
void check_latents_shape(const Engine& engine, const Shape& shape);

}  // namespace ebca::internal
