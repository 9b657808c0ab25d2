// The subjects of a prompt: checks them, finds their tokens, and puts their regions on the map of the UNet. This
// library takes phrases; it does not find subjects in a prompt.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "conditioning/prompts.hpp"
#include "conditioning/schedules.hpp"
#include "contract/tensor.hpp"
#include "engine.hpp"
#include "images/inputs.hpp"
#include "images/regions.hpp"
#include "parameters.hpp"
#include "sampling/subjects.hpp"

namespace ebca::internal {

// Where a subject belongs.
struct Region {
    std::string subject;
    ImageView mask;
};

// Which things of the prompt get a place of their own, and how strongly. ebca.h describes each field.
struct Subjects {
    std::vector<std::string> phrases;
    std::vector<Region> regions;
    Schedule exclusion{Schedule::Kind::constant, defaults::generate_params::subject_exclusion, 0, {}};
    Schedule balance{Schedule::Kind::constant, defaults::generate_params::subject_balance, 0, {}};
    double window = defaults::generate_params::subject_window;

    // Whether there is anything to find in a prompt.
    bool on() const { return !phrases.empty() || !regions.empty(); }
};

// Check everything that needs no prompt's tokens, no mask and no schedule. ParameterError; EngineError for an engine
// without layers for subjects.
void check(const Subjects& subjects, const Prompt& prompt, const Manifest& manifest);

// lambda and mu of each evaluation, [evaluations,2]. ParameterError for a schedule that does not fit, or a value
// outside 0 to 1000.
Array strengths(const Subjects& subjects, int64_t steps, int64_t evaluations, const std::string& scheduler);

// The subjects of every image, which were checked; none if there is nothing to do. A subject that is alone and has no
// region is left out, with a warning. strengths: as that function returns them; latent_shape: [n,C,h,w]; size: of the
// images in pixels. ParameterError: subjects that are not in the prompt, or not within its length limit, that share
// words, or are too many; a region that is no image, or has another shape than the images; a map that is too large.
std::optional<SubjectInputs> resolve(Engine& engine, const Subjects& subjects, const Prompt& prompt,
                                     const Reading& reading, const Array& strengths, const Shape& latent_shape,
                                     const Size& size);

}  // namespace ebca::internal
