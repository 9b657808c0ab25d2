// Prompts: texts or embeddings, checked and encoded, and the positions of words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "contract/tensor.hpp"
#include "engine.hpp"
#include "parameters.hpp"
#include "tokenizer/prompt_tokenizer.hpp"

namespace ebca::internal {

// Either texts, one for all images or one each, or embeddings [n or 1,T,D]. Neither: not given.
struct Prompt {
    std::vector<std::string> texts;
    std::optional<Array> embeds;
    std::vector<std::string> texts_2 = {};  // for a second text encoder; empty: the same texts
    std::optional<Array> pooled = {};       // [n or 1,P], beside embeddings for a UNet that takes it
};

// Factor of gamma_attn on the conditional rows, for a word of the prompt or for one position.
struct TokenWeight {
    std::optional<std::string> word;
    int64_t position = 0;
    double factor = 1;
};

// How prompts are read where nothing else is said.
inline constexpr Reading kDefaultReading{defaults::generate_params::prompt_weighting != 0,
                                         defaults::generate_params::long_prompts != 0};

// What images show.
struct Conditioning {
    Prompt prompt;
    Prompt negative_prompt;
    std::vector<TokenWeight> token_weights;
    Reading reading = kDefaultReading;
    int64_t clip_skip = 0;  // layers of the text encoder that are left out at its end
};

// Embeddings [n,T,D] of both halves (unconditional: none without guidance) and of each editing prompt.
struct Prompts {
    Array conditional;
    std::optional<Array> unconditional;
    std::vector<Array> edits;
    // [n,P] of both halves, for a UNet that takes it; editing prompts have none.
    Array pooled;
    Array unconditional_pooled;
    Array token_factors;  // [B,T] factors of gamma_attn: those of the token weights on the conditional rows, else 1

    // [B,S,T,D]: the unconditional rows first. There, editing contexts start as copies of the main one.
    Array contexts() const;

    // [B,P], in the same order; empty for a UNet that takes none.
    Array text_embeds() const;
};

// The texts of a prompt, one per image. name: of its field. ParameterError if it has none, or another number.
std::vector<std::string> texts_for_images(const std::string& name, const Prompt& prompt, int64_t batch);

// A text as messages show it: all of it, or its beginning and how many more characters there are.
std::string shortened(const std::string& full);

// Encodes the prompts of a generation for `batch` images; all get as many tokens as the longest. ParameterError,
// EngineError; CancelledError as soon as that is requested.
Prompts encode_prompts(Engine& engine, int64_t batch, const Conditioning& conditioning,
                       const std::vector<Prompt>& edits, bool guided, Cancellation* cancellation);

}  // namespace ebca::internal
