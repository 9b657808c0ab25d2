#include "tokenizer/tokenizer_json.hpp"

#include <algorithm>
#include <limits>
#include <unordered_set>
#include <utility>

#include "contract/json.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

using json::Value;

const char kWords[] = R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";
const char kSpecialOrWords[] =
    R"(<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";

std::string shown(const Value& value) {
    return value.dump(-1, ' ', false, Value::error_handler_t::replace);
}

[[noreturn]] void refuse(std::string_view part, const Value& found, std::string_view supported) {
    throw UnsupportedError(text("the tokenizer's ", part, " is ", shown(found)),
                           text("supported is ", supported, ", as CLIP tokenizers have it"));
}

// A setting that CLIP tokenizers leave at one of these values.
void expect(const Value& component, std::string_view part, const char* name, std::initializer_list<Value> supported) {
    const Value& found = json::optional_member(component, name);
    for (const Value& value : supported) {
        if (found == value) return;
    }
    refuse(text(part, ".", name), found, supported.begin()->dump());
}

std::string type_of(const Value& component, std::string_view part) {
    return json::string(json::member(json::object(component, text("the tokenizer's ", part)), "type"),
                        text(part, ".type"));
}

// The text of {"Regex": text}.
std::string regex_of(const Value& component, std::string_view part) {
    const Value& pattern = json::member(component, "pattern");
    return json::string(json::member(pattern, "Regex"), text(part, ".pattern.Regex"));
}

// The components of a Sequence, or the single component.
std::vector<Value> components(const Value& component, std::string_view part, const char* members) {
    if (component.is_null()) return {};
    if (type_of(component, part) != "Sequence") return {component};
    const Value& found = json::array(json::member(component, members), text("the tokenizer's ", part));
    return {found.begin(), found.end()};
}

Normalizer normalizer_of(const Value& component) {
    std::string type = type_of(component, "normalizer");
    if (type == "NFC") return Normalizer::nfc;
    if (type == "Lowercase") return Normalizer::lowercase;
    if (type != "Replace") refuse("normalizer", type, "NFC, Replace and Lowercase");
    if (regex_of(component, "normalizer") != R"(\s+)") refuse("normalizer", component, R"(Replace of \s+ by a space)");
    expect(component, "normalizer", "content", {" "});
    return Normalizer::collapse_spaces;
}

void read_pre_tokenizer(const Value& component, TokenizerJson& result) {
    auto parts = components(component, "pre_tokenizer", "pretokenizers");
    std::string types;
    for (const Value& part : parts) types += (types.empty() ? "" : ", ") + type_of(part, "pre_tokenizer");
    if (types != "Split, ByteLevel") refuse("pre_tokenizer", types, "Split, ByteLevel");

    std::string pattern = regex_of(parts[0], "pre_tokenizer");
    if (pattern != kWords && pattern != kSpecialOrWords) refuse("pre_tokenizer.pattern", pattern, kSpecialOrWords);
    expect(parts[0], "pre_tokenizer", "behavior", {"Removed"});
    expect(parts[0], "pre_tokenizer", "invert", {true});
    expect(parts[1], "pre_tokenizer", "add_prefix_space", {false});
    result.split_special = pattern == kSpecialOrWords;
    const Value& use_regex = json::optional_member(parts[1], "use_regex");
    result.use_regex = use_regex.is_null() || json::boolean(use_regex, "pre_tokenizer.use_regex");
}

// A pair, or both with a space between them as older files have it.
std::pair<std::string, std::string> merge_of(const Value& merge) {
    if (merge.is_array() && merge.size() == 2) {
        return {json::string(merge[0], "a part of a merge"), json::string(merge[1], "a part of a merge")};
    }
    std::string both = json::string(merge, "the tokenizer's merge");
    size_t space = both.find(' ');
    if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos) {
        throw EngineError(text("the tokenizer's merge ", shown(merge), " is no pair of entries"), "export again");
    }
    return {both.substr(0, space), both.substr(space + 1)};
}

uint32_t id_of(const Value& id, std::string_view entry) {
    constexpr int64_t kLargest = std::numeric_limits<uint32_t>::max();
    // There are tens of thousands of them, so the name for a message is made only if it is needed.
    if (id.is_number_unsigned() && id.get<uint64_t>() <= kLargest) return id.get<uint32_t>();
    return static_cast<uint32_t>(json::integer(id, text("the tokenizer's id of '", entry, "'"), 0, kLargest));
}

std::optional<std::string> text_of(const Value& model, const char* name) {
    const Value& found = json::optional_member(model, name);
    return found.is_null() ? std::nullopt : std::optional(json::string(found, text("model.", name)));
}

BytePairEncodingJson model_of(const Value& model) {
    if (std::string type = type_of(model, "model"); type != "BPE") refuse("model", type, "BPE");
    expect(model, "model", "dropout", {nullptr, 0.0});
    expect(model, "model", "continuing_subword_prefix", {"", nullptr});
    for (const char* name : {"fuse_unk", "byte_fallback", "ignore_merges"}) {
        expect(model, "model", name, {false, nullptr});
    }
    BytePairEncodingJson result;
    result.unk_token = text_of(model, "unk_token");
    result.end_of_word_suffix = text_of(model, "end_of_word_suffix").value_or("");
    const Value& vocabulary = json::object(json::member(model, "vocab"), "the tokenizer's vocab");
    result.vocabulary.reserve(vocabulary.size());
    for (const auto& [entry, id] : vocabulary.items()) result.vocabulary.emplace(entry, id_of(id, entry));
    const Value& merges = json::array(json::member(model, "merges"), "the tokenizer's merges");
    result.merges.reserve(merges.size());
    for (const Value& merge : merges) result.merges.push_back(merge_of(merge));
    return result;
}

// Added tokens have the vocabulary's id, or else the next free one; the file says which, and must be right.
std::vector<AddedTokenJson> added_tokens_of(const Value& tokens, const BytePairEncodingJson& model) {
    std::vector<AddedTokenJson> result;
    if (tokens.is_null()) return result;
    int64_t free = static_cast<int64_t>(model.vocabulary.size());
    std::unordered_set<std::string> known;
    for (const Value& token : json::array(tokens, "the tokenizer's added_tokens")) {
        std::string content = json::string(json::member(token, "content"), "the content of an added token");
        if (content.empty()) continue;
        std::string part = text("added token '", content, "'");
        for (const char* name : {"single_word", "lstrip", "rstrip"}) expect(token, part, name, {false});

        auto entry = model.vocabulary.find(content);
        int64_t id = entry != model.vocabulary.end() ? entry->second : free;
        if (id_of(json::member(token, "id"), content) != id) {
            throw EngineError(text("the tokenizer's ", part, " has id ", shown(json::member(token, "id")),
                                   ", but by the vocabulary it is ", id),
                              "export again");
        }
        if (!known.insert(content).second) {
            throw EngineError(text("the tokenizer has ", part, " twice"), "export again");
        }
        free = std::max(free, id + 1);
        result.push_back(
            {std::move(content), id, json::boolean(json::member(token, "normalized"), part + ".normalized")});
    }
    return result;
}

TokenizerJson read(const Value& root) {
    json::object(root, "the tokenizer");
    if (const Value& version = json::optional_member(root, "version"); !version.is_null() && version != "1.0") {
        refuse("version", version, "1.0");
    }
    // Without start and end token, this one leaves the ids alone; another kind may not.
    if (const Value& processor = json::optional_member(root, "post_processor"); !processor.is_null()) {
        std::string type = type_of(processor, "post_processor");
        if (type != "RobertaProcessing") refuse("post_processor", type, "RobertaProcessing");
    }
    TokenizerJson result;
    for (const Value& component : components(json::optional_member(root, "normalizer"), "normalizer", "normalizers")) {
        result.normalizers.push_back(normalizer_of(component));
    }
    read_pre_tokenizer(json::optional_member(root, "pre_tokenizer"), result);
    result.model = model_of(json::member(root, "model"));
    result.added_tokens = added_tokens_of(json::optional_member(root, "added_tokens"), result.model);
    return result;
}

}  // namespace

TokenizerJson parse_tokenizer_json(std::string_view bytes) {
    Value root;
    const json::TakenApart without_memory(root);
    try {
        root = json::parse(bytes);
    } catch (const Error& error) {
        // A piece of the file follows, which may hold any bytes.
        std::string_view problem = error.what();
        problem = problem.substr(0, problem.find("; last read"));
        throw EngineError(text("the tokenizer is not valid `tokenizers` JSON: ", problem), "export again");
    }
    return read(root);
}

}  // namespace ebca::internal
