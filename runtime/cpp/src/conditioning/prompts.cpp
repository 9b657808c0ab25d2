#include "conditioning/prompts.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "conditioning/text_rows.hpp"
#include "contract/utf8.hpp"
#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

// A prompt with texts or embeddings, and the name of its field for messages.
struct Named {
    std::string name;
    std::vector<TextPair> texts;  // one per image
    Array embeds;                 // [n,T,D]
    Array pooled;                 // [n,P]; empty for a UNet that takes none
};

// The field that embeddings are passed in.
std::string label(const std::string& name) {
    return name + ".embeds";
}

// The field of pooled embeddings.
std::string pooled_label(const std::string& name) {
    return name == "negative_prompt" ? "negative_pooled_prompt_embeds" : "pooled_prompt_embeds";
}

std::vector<std::string> per_image(const std::string& name, const std::vector<std::string>& texts, int64_t batch) {
    if (texts.size() == 1) return std::vector<std::string>(static_cast<size_t>(batch), texts[0]);
    if (static_cast<int64_t>(texts.size()) != batch) {
        throw rules::prompt_count(name, texts.size(), batch);
    }
    return texts;
}

// One row for all images, or one each, as one each.
Array for_images(const Array& given, int64_t batch) {
    Shape shape = given.shape;
    shape[0] = batch;
    Array out(shape);
    for (int64_t n = 0; n < batch; ++n) std::copy_n(given.row(given.size(0) == 1 ? 0 : n), out.stride(), out.row(n));
    return out;
}

Array checked_embeds(const std::string& name, const Array& given, int64_t batch, int64_t width) {
    const Shape& shape = given.shape;
    if (shape.size() != 3 || (shape[0] != 1 && shape[0] != batch) || shape[2] != width || shape[1] < 1) {
        throw rules::embeds_shape(name, to_string(shape), batch, width);
    }
    if (!all_finite(given.values.data(), static_cast<int64_t>(given.values.size()))) {
        throw rules::embeds_not_finite(name);
    }
    return for_images(given, batch);
}

// The same for pooled embeddings [n or 1,P].
Array checked_pooled(const std::string& name, const Array& given, int64_t batch, int64_t width) {
    const Shape& shape = given.shape;
    if (shape.size() != 2 || (shape[0] != 1 && shape[0] != batch) || shape[1] != width) {
        throw rules::pooled_shape(name, to_string(shape), batch, width);
    }
    if (!all_finite(given.values.data(), static_cast<int64_t>(given.values.size()))) {
        throw rules::embeds_not_finite(name);
    }
    return for_images(given, batch);
}

// How much of a text a warning shows, in characters.
constexpr size_t kShownPrompt = 100;

// Columns [begin,end) of embeddings: what one text encoder makes.
struct Part {
    int64_t begin, end;
};

// Multiplies a part of the embeddings [T,D] of one row by the weights of its tokens, then by one number that gives it
// its former mean. A row in which all weights are 1 keeps its bits. runtime/conditioning/weighting.py is the same in
// Python. name: of the prompt, for messages.
void weigh(float* embeddings, const float* weights, int64_t tokens, int64_t width, const Part& part,
           const std::string& name) {
    if (std::all_of(weights, weights + tokens, [](float weight) { return weight == 1.0f; })) return;
    auto each = [&](auto&& visit) {
        for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t i = part.begin; i < part.end; ++i) visit(embeddings[t * width + i], weights[t]);
        }
    };
    // Exact: a product of two floats.
    auto scaled = [](float value, float weight) { return static_cast<double>(value) * static_cast<double>(weight); };
    double before = 0, after = 0;
    each([&](float value, float weight) {
        before += static_cast<double>(value);
        after += scaled(value, weight);
    });
    double factor = before / after;
    bool finite = true;
    each([&](float& value, float weight) {
        value = static_cast<float>(scaled(value, weight) * factor);
        finite = finite && std::isfinite(value);
    });
    if (!finite) throw rules::prompt_weights_cancel(name);
}

// The distinct texts of some prompts, and the field that each is from.
struct Texts {
    std::vector<TextPair> each;
    std::vector<std::string> names;

    size_t index(const TextPair& one) const {
        return static_cast<size_t>(std::find(each.begin(), each.end(), one) - each.begin());
    }
};

Texts distinct(const std::vector<Named>& prompts) {
    Texts out;
    for (const Named& prompt : prompts) {
        for (const TextPair& one : prompt.texts) {
            if (out.index(one) < out.each.size()) continue;
            out.each.push_back(one);
            out.names.push_back(prompt.name);
        }
    }
    return out;
}

void warn_of_dropped(const Engine& engine, const std::string& name, const std::string& dropped) {
    if (dropped.empty()) return;
    int64_t room = engine.manifest().tokenizer->model_max_length - 2;
    engine.log(LogLevel::warning, rules::prompt_truncated(name, room, shortened(dropped)));
}

// What a text becomes in all of its rows, [rows,T,D]; rows that it does not have are of an empty text, the last ones.
void copy_rows(const Embeddings& made, const TextRows& rows, size_t text, float* to) {
    int64_t last = made.states.size(0) - 1;
    const TextRows::Range& own = rows.of[text];
    for (size_t r = 0; r < rows.most; ++r, to += made.states.stride()) {
        int64_t from = r < own.count ? static_cast<int64_t>(own.begin + r) : last;
        std::copy_n(made.states.row(from), made.states.stride(), to);
    }
}

// Multiplies the embeddings of every text by the weights in it. first: columns of the first text encoder.
void weigh_all(Embeddings& made, const TextRows& rows, const Texts& texts, int64_t first) {
    int64_t length = made.states.size(1), width = made.states.size(2);
    for (size_t i = 0; i < texts.each.size(); ++i) {
        for (size_t r = rows.of[i].begin; r < rows.of[i].begin + rows.of[i].count; ++r) {
            float* row = made.states.row(static_cast<int64_t>(r));
            int64_t weights = static_cast<int64_t>(r) * length;
            weigh(row, rows.weights.data() + weights, length, width, {0, first}, texts.names[i]);
            if (rows.weights_2.empty()) continue;
            weigh(row, rows.weights_2.data() + weights, length, width, {first, width}, texts.names[i] + "_2");
        }
    }
}

// All texts in one run of the text encoder. Texts are lengthened to the longest, and to embeddings beside them.
void encode_texts(Engine& engine, std::vector<Named>& prompts, const Conditioning& conditioning,
                  Cancellation* cancellation) {
    const Texts texts = distinct(prompts);
    if (texts.each.empty()) return;
    size_t given = 0;
    for (const Named& prompt : prompts) {
        if (prompt.texts.empty()) given = std::max(given, static_cast<size_t>(prompt.embeds.size(1)));
    }
    const PromptTokenizer& tokenizer = engine.tokenizer();
    bool two = engine.manifest().text_encoder && engine.manifest().text_encoder->pooled_size > 0;
    size_t fewest = conditioning.reading.long_prompts ? given / tokenizer.max_length() : 0;
    const TextRows rows = text_rows(tokenizer, texts.each, two, conditioning.reading, fewest);
    for (const Named& prompt : prompts) {
        for (const TextPair& one : std::set<TextPair>(prompt.texts.begin(), prompt.texts.end())) {
            warn_of_dropped(engine, prompt.name, rows.truncated[texts.index(one)]);
            if (two && one.second != one.first) {
                warn_of_dropped(engine, prompt.name + "_2", rows.truncated_2[texts.index(one)]);
            }
        }
    }
    Embeddings made = engine.encode(rows.tokens, conditioning.clip_skip, cancellation);
    const TextEncoderSpec& encoder = *engine.manifest().text_encoder;
    weigh_all(made, rows, texts, two ? encoder.first_hidden_size : encoder.hidden_size);
    int64_t tokens = static_cast<int64_t>(rows.most) * made.states.size(1), width = made.states.size(2);
    for (Named& prompt : prompts) {
        if (prompt.texts.empty()) continue;
        auto count = static_cast<int64_t>(prompt.texts.size());
        prompt.embeds = Array({count, tokens, width});
        if (two) prompt.pooled = Array({count, made.pooled.size(1)});
        for (int64_t n = 0; n < count; ++n) {
            size_t text = texts.index(prompt.texts[static_cast<size_t>(n)]);
            copy_rows(made, rows, text, prompt.embeds.row(n));
            if (!two) continue;
            // Of the first row: weights of words do not act on it.
            auto first = static_cast<int64_t>(rows.of[text].begin);
            std::copy_n(made.pooled.row(first), made.pooled.stride(), prompt.pooled.row(n));
        }
    }
}

// A prompt of a request, checked. Texts are encoded later.
Named named_prompt(const Engine& engine, const std::string& name, const Prompt& given, int64_t batch) {
    const UNetSpec& unet = engine.manifest().unet;
    if (given.texts.empty() == !given.embeds.has_value()) throw rules::prompt_or_embeds(name);
    Named out{name, {}, {}, {}};
    if (given.embeds) {
        out.embeds = checked_embeds(label(name), *given.embeds, batch, unet.context_dim);
        if (given.pooled) out.pooled = checked_pooled(pooled_label(name), *given.pooled, batch, unet.pooled_size());
        return out;
    }
    const std::vector<std::string> first = per_image(name, given.texts, batch);
    const std::vector<std::string> second =
        given.texts_2.empty() ? first : per_image(name + "_2", given.texts_2, batch);
    for (size_t n = 0; n < first.size(); ++n) out.texts.push_back({first[n], second[n]});
    return out;
}

std::vector<std::string> plain_texts(const Named& prompt) {
    std::vector<std::string> out;
    for (const TextPair& one : prompt.texts) out.push_back(one.first);
    return out;
}

// Whether it is given as texts, and all of them are empty.
bool is_empty(const Named& prompt) {
    auto empty = [](const TextPair& one) { return one == TextPair{}; };
    return !prompt.texts.empty() && std::all_of(prompt.texts.begin(), prompt.texts.end(), empty);
}

Named zeros_like(const Named& prompt) {
    Named out{"negative_prompt", {}, prompt.embeds, prompt.pooled};
    for (Array* array : {&out.embeds, &out.pooled}) std::fill(array->values.begin(), array->values.end(), 0.0f);
    return out;
}

// Zeros for every empty text.
void clear_empty(Named& prompt) {
    for (size_t n = 0; n < prompt.texts.size(); ++n) {
        if (!(prompt.texts[n] == TextPair{})) continue;
        for (Array* array : {&prompt.embeds, &prompt.pooled}) {
            if (!array->values.empty()) std::fill_n(array->row(static_cast<int64_t>(n)), array->stride(), 0.0f);
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

Array Prompts::text_embeds() const {
    if (pooled.values.empty()) return Array();
    Array out({unconditional_pooled.values.empty() ? pooled.size(0) : 2 * pooled.size(0), pooled.size(1)});
    float* to = std::copy(unconditional_pooled.values.begin(), unconditional_pooled.values.end(), out.values.data());
    std::copy(pooled.values.begin(), pooled.values.end(), to);
    return out;
}

Prompts encode_prompts(Engine& engine, int64_t batch, const Conditioning& conditioning,
                       const std::vector<Prompt>& edits, bool guided, Cancellation* cancellation) {
    const std::vector<TokenWeight>& token_weights = conditioning.token_weights;
    std::vector<Named> named{named_prompt(engine, "prompt", conditioning.prompt, batch)};
    for (size_t i = 0; i < edits.size(); ++i) {
        named.push_back(named_prompt(engine, text("edits[", i, "].prompt"), edits[i], batch));
    }
    if (guided) {
        Prompt unconditional = conditioning.negative_prompt;
        if (!unconditional.embeds && conditioning.prompt.embeds && !engine.manifest().text_encoder) {
            throw rules::guidance_needs_negative();
        }
        if (unconditional.embeds) unconditional.texts.clear();
        if (!unconditional.embeds && unconditional.texts.empty()) unconditional.texts = {""};
        named.push_back(named_prompt(engine, "negative_prompt", unconditional, batch));
    }
    // Zeros take as many tokens as the others.
    const bool all_zeros = guided && engine.manifest().force_zeros_for_empty_prompt && is_empty(named.back());
    if (all_zeros) named.pop_back();
    auto found = positions(engine, token_weights, plain_texts(named[0]), conditioning.reading);
    encode_texts(engine, named, conditioning, cancellation);
    for (const Named& one : named) {
        if (one.embeds.shape != named[0].embeds.shape) {
            throw rules::embeds_differ(label(one.name), to_string(one.embeds.shape), to_string(named[0].embeds.shape));
        }
    }
    Prompts out;
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
    if (all_zeros) named.push_back(zeros_like(named[0]));
    if (guided) {
        if (engine.manifest().force_zeros_for_empty_prompt) clear_empty(named.back());
        out.unconditional = std::move(named.back().embeds);
        out.unconditional_pooled = std::move(named.back().pooled);
        named.pop_back();
    }
    out.conditional = std::move(named[0].embeds);
    out.pooled = std::move(named[0].pooled);
    for (size_t i = 1; i < named.size(); ++i) out.edits.push_back(std::move(named[i].embeds));
    return out;
}

}  // namespace ebca::internal
