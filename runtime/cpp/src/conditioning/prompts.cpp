#include "conditioning/prompts.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "contract/utf8.hpp"
#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

// A prompt with texts or embeddings, and the name of its field for messages.
struct Named {
    std::string name;
    std::vector<std::string> texts;  // one per image
    Array embeds;                    // [n,T,D]
};

// The field that embeddings are passed in.
std::string label(const std::string& name) {
    return name + ".embeds";
}

std::vector<std::string> per_image(const std::string& name, const std::vector<std::string>& texts, int64_t batch) {
    if (texts.size() == 1) return std::vector<std::string>(static_cast<size_t>(batch), texts[0]);
    if (static_cast<int64_t>(texts.size()) != batch) {
        throw rules::prompt_count(name, texts.size(), batch);
    }
    return texts;
}

Array checked_embeds(const std::string& name, const Array& given, int64_t batch, int64_t width) {
    const Shape& shape = given.shape;
    if (shape.size() != 3 || (shape[0] != 1 && shape[0] != batch) || shape[2] != width || shape[1] < 1) {
        throw rules::embeds_shape(name, to_string(shape), batch, width);
    }
    if (!all_finite(given.values.data(), static_cast<int64_t>(given.values.size()))) {
        throw rules::embeds_not_finite(name);
    }
    Array out({batch, shape[1], shape[2]});
    for (int64_t n = 0; n < batch; ++n) std::copy_n(given.row(shape[0] == 1 ? 0 : n), out.stride(), out.row(n));
    return out;
}

// How much of a text a warning shows, in characters.
constexpr size_t kShownPrompt = 100;

// Multiplies the embeddings [T,D] of one row by the weights of its tokens, then all of them by one number that gives
// them their former mean. A row in which all weights are 1 keeps its bits. runtime/conditioning/weighting.py is the
// same in Python. name: of the prompt, for messages.
void weigh(float* embeddings, const float* weights, int64_t tokens, int64_t width, const std::string& name) {
    if (std::all_of(weights, weights + tokens, [](float weight) { return weight == 1.0f; })) return;
    int64_t count = tokens * width;
    // Exact: a product of two floats.
    auto scaled = [&](int64_t i) {
        return static_cast<double>(embeddings[i]) * static_cast<double>(weights[i / width]);
    };
    double before = 0, after = 0;
    for (int64_t i = 0; i < count; ++i) {
        before += static_cast<double>(embeddings[i]);
        after += scaled(i);
    }
    double factor = before / after;
    for (int64_t i = 0; i < count; ++i) embeddings[i] = static_cast<float>(scaled(i) * factor);
    if (!all_finite(embeddings, count)) throw rules::prompt_weights_cancel(name);
}

// All texts in one run of the text encoder. Texts are lengthened to the longest, and to embeddings beside them.
void encode_texts(Engine& engine, std::vector<Named>& prompts, const Reading& reading, Cancellation* cancellation) {
    std::vector<std::string> unique, names;
    size_t given = 0;
    auto index = [&](const std::string& one) {
        return static_cast<size_t>(std::find(unique.begin(), unique.end(), one) - unique.begin());
    };
    for (const Named& prompt : prompts) {
        for (const std::string& one : prompt.texts) {
            if (index(one) < unique.size()) continue;
            unique.push_back(one);
            names.push_back(prompt.name);
        }
        if (prompt.texts.empty()) given = std::max(given, static_cast<size_t>(prompt.embeds.size(1)));
    }
    if (unique.empty()) return;
    const PromptTokenizer& tokenizer = engine.tokenizer();
    Encoded encoded = tokenizer.encode(unique, reading);
    for (const Named& prompt : prompts) {
        for (const std::string& one : std::set<std::string>(prompt.texts.begin(), prompt.texts.end())) {
            const std::string& dropped = encoded.truncated[index(one)];
            if (dropped.empty()) continue;
            engine.log(LogLevel::warning,
                       rules::prompt_truncated(prompt.name, tokenizer.max_length() - 2, shortened(dropped)));
        }
    }
    auto [fewest, most] = std::minmax_element(encoded.rows.begin(), encoded.rows.end());
    size_t rows = std::max(*most, reading.long_prompts ? given / tokenizer.max_length() : 0);
    if (*fewest < rows) {
        // A shorter prompt is lengthened by rows of an empty one.
        Encoded empty = tokenizer.encode({""}, reading);
        encoded.ids.insert(encoded.ids.end(), empty.ids.begin(), empty.ids.end());
    }
    auto length = static_cast<int64_t>(tokenizer.max_length());
    Array embeddings = engine.encode(encoded.ids, static_cast<int64_t>(encoded.ids.size()) / length, cancellation);
    int64_t width = embeddings.size(2), last = embeddings.size(0) - 1;
    std::vector<int64_t> first;
    for (size_t i = 0, row = 0; i < unique.size(); row += encoded.rows[i++]) {
        first.push_back(static_cast<int64_t>(row));
        for (size_t r = row; r < row + encoded.rows[i]; ++r) {
            weigh(embeddings.row(static_cast<int64_t>(r)), encoded.weights.data() + static_cast<int64_t>(r) * length,
                  length, width, names[i]);
        }
    }
    for (Named& prompt : prompts) {
        if (prompt.texts.empty()) continue;
        auto tokens = static_cast<int64_t>(rows) * length;
        prompt.embeds = Array({static_cast<int64_t>(prompt.texts.size()), tokens, width});
        for (size_t n = 0; n < prompt.texts.size(); ++n) {
            size_t text = index(prompt.texts[n]);
            float* to = prompt.embeds.row(static_cast<int64_t>(n));
            for (size_t r = 0; r < rows; ++r, to += embeddings.stride()) {
                bool own = r < encoded.rows[text];
                std::copy_n(embeddings.row(own ? first[text] + static_cast<int64_t>(r) : last), embeddings.stride(),
                            to);
            }
        }
    }
}

// Positions of each token weight.
std::vector<std::vector<int64_t>> positions(Engine& engine, const std::vector<TokenWeight>& weights,
                                            const std::vector<std::string>& texts, const Reading& reading) {
    std::vector<std::vector<int64_t>> out;
    for (const TokenWeight& weight : weights) {
        const std::string key = weight.word ? *weight.word : std::to_string(weight.position);
        if (!std::isfinite(weight.factor)) {
            throw rules::token_factor(key, weight.factor);
        }
        if (!weight.word) {
            out.push_back({weight.position});
            continue;
        }
        if (texts.empty()) {
            throw rules::token_word_without_prompt(key);
        }
        if (std::set<std::string>(texts.begin(), texts.end()).size() != 1) {
            throw rules::token_word_of_several_prompts(key);
        }
        auto found = engine.tokenizer().find_words(texts[0], {key}, reading)[0];
        out.emplace_back(found.begin(), found.end());
    }
    return out;
}

}  // namespace

std::string shortened(const std::string& full) {
    size_t end = 0, count = 0, cut = 0;
    while (end < full.size()) {
        if (count == kShownPrompt) cut = end;
        end += std::max<size_t>(utf8_at(full, end).length, 1);
        ++count;
    }
    return count <= kShownPrompt ? full : text(full.substr(0, cut), "... (", count - kShownPrompt, " more characters)");
}

std::vector<std::string> texts_for_images(const std::string& name, const Prompt& prompt, int64_t batch) {
    if (prompt.texts.empty() == !prompt.embeds.has_value()) throw rules::prompt_or_embeds(name);
    return per_image(name, prompt.texts, batch);
}

Array Prompts::contexts() const {
    int64_t images = conditional.size(0), width = conditional.stride();
    auto count = static_cast<int64_t>(edits.size()) + 1;
    Array out({unconditional ? 2 * images : images, count, conditional.size(1), conditional.size(2)});
    float* to = out.values.data();
    for (int64_t n = 0; unconditional && n < images; ++n) {
        for (int64_t s = 0; s < count; ++s, to += width) std::copy_n(unconditional->row(n), width, to);
    }
    for (int64_t n = 0; n < images; ++n) {
        for (int64_t s = 0; s < count; ++s, to += width) {
            std::copy_n((s == 0 ? conditional : edits[static_cast<size_t>(s - 1)]).row(n), width, to);
        }
    }
    return out;
}

Prompts encode_prompts(Engine& engine, int64_t batch, const Prompt& prompt, const Prompt& negative,
                       const std::vector<Prompt>& edits, const std::vector<TokenWeight>& token_weights, bool guided,
                       const Reading& reading, Cancellation* cancellation) {
    int64_t width = engine.manifest().unet.context_dim;
    std::vector<Named> named;
    auto add = [&](const std::string& name, const Prompt& given) {
        if (given.texts.empty() == !given.embeds.has_value()) {
            throw rules::prompt_or_embeds(name);
        }
        Named one{name, {}, {}};
        if (given.embeds) {
            one.embeds = checked_embeds(label(name), *given.embeds, batch, width);
        } else {
            one.texts = per_image(name, given.texts, batch);
        }
        named.push_back(std::move(one));
    };
    add("prompt", prompt);
    for (size_t i = 0; i < edits.size(); ++i) add(text("edits[", i, "].prompt"), edits[i]);
    if (guided) {
        if (!negative.embeds && prompt.embeds && !engine.manifest().text_encoder) {
            throw rules::guidance_needs_negative();
        }
        Prompt unconditional = negative;
        if (negative.embeds) unconditional.texts.clear();
        if (!negative.embeds && negative.texts.empty()) unconditional.texts = {""};
        add("negative_prompt", unconditional);
    }
    auto found = positions(engine, token_weights, named[0].texts, reading);
    encode_texts(engine, named, reading, cancellation);
    Prompts out;
    for (Named& one : named) {
        if (one.embeds.shape != named[0].embeds.shape) {
            throw rules::embeds_differ(label(one.name), to_string(one.embeds.shape), to_string(named[0].embeds.shape));
        }
    }
    int64_t tokens = named[0].embeds.size(1);
    out.token_factors = Array({guided ? 2 * batch : batch, tokens}, 1.0f);
    for (size_t i = 0; i < found.size(); ++i) {
        for (int64_t position : found[i]) {
            if (position < 0 || position >= tokens) {
                throw rules::token_position(position, tokens - 1);
            }
            for (int64_t row = out.token_factors.size(0) - batch; row < out.token_factors.size(0); ++row) {
                float& factor = out.token_factors.row(row)[position];
                factor = factor * static_cast<float>(token_weights[i].factor);
            }
        }
    }
    if (guided) {
        out.unconditional = std::move(named.back().embeds);
        named.pop_back();
    }
    out.conditional = named[0].embeds;
    for (size_t i = 1; i < named.size(); ++i) out.edits.push_back(std::move(named[i].embeds));
    return out;
}

}  // namespace ebca::internal
