#include "conditioning/subjects.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "error.hpp"

namespace ebca::internal {
namespace {

constexpr double kSmallestWindow = 0.01, kLargestWindow = 10.0;

using Positions = std::vector<size_t>;

// A subject of one image.
struct Found {
    Positions positions;  // of its tokens
    const Region* region;
};

void check_phrase(const char* field, const std::string& phrase) {
    if (phrase.find_first_not_of(" \t\n\v\f\r") == phrase.npos) throw rules::subject_empty(field);
}

// Finds the subjects of images one after the other.
class Resolver {
  public:
    Resolver(Engine& engine, const Subjects& subjects, const Reading& reading)
        : engine_(engine), tokenizer_(engine.tokenizer()), subjects_(subjects), reading_(reading) {}

    std::vector<Found> of_image(const std::string& text) const {
        std::vector<std::string> phrases = subjects_.phrases;
        std::set<Key> known;
        for (const std::string& phrase : phrases) known.insert(key(phrase));
        for (const Region& region : subjects_.regions) {
            if (!known.count(key(region.subject)) && is_in(text, region.subject)) phrases.push_back(region.subject);
        }
        if (static_cast<int64_t>(phrases.size()) > limits::subjects) {
            throw rules::subjects_too_many(shortened(text), phrases.size(), limits::subjects);
        }
        std::map<Key, const Region*> regions;
        for (const Region& region : subjects_.regions) regions[key(region.subject)] = &region;
        std::vector<Found> found;
        std::vector<Positions> places = this->places(phrases, text);
        for (size_t i = 0; i < phrases.size(); ++i) {
            // The first of two equal phrases has the region.
            const Region*& region = regions[key(phrases[i])];
            found.push_back({std::move(places[i]), std::exchange(region, nullptr)});
        }
        if (found.size() == 1 && !found[0].region) {
            engine_.log(LogLevel::warning, rules::subject_alone(phrases[0], shortened(text)));
            found.clear();
        }
        return found;
    }

    // ParameterError for a region whose phrase no prompt has.
    void check_regions(const std::vector<std::string>& texts) const {
        for (const Region& region : subjects_.regions) {
            bool used = std::any_of(texts.begin(), texts.end(),
                                    [&](const std::string& text) { return is_in(text, region.subject); });
            if (!used) occurrences(region.subject, texts.front());
        }
    }

  private:
    // What is equal for phrases that are found in the same places.
    using Key = std::vector<int64_t>;
    Key key(const std::string& phrase) const { return tokenizer_.ids(phrase); }

    bool is_in(const std::string& text, const std::string& phrase) const {
        return !tokenizer_.occurrences(text, phrase, reading_).fitting.empty();
    }

    // All that fit, at least one.
    std::vector<Positions> occurrences(const std::string& phrase, const std::string& text) const {
        Occurrences found = tokenizer_.occurrences(text, phrase, reading_);
        if (!found.fitting.empty()) return std::move(found.fitting);
        if (found.beyond) throw rules::subject_beyond_limit(phrase, tokenizer_.max_length() - 2);
        throw rules::subject_not_in_prompt(phrase, shortened(text));
    }

    // Token positions of each phrase: its first occurrence that no other phrase uses. Longer phrases choose first, so
    // that "cat" leaves "red cat" alone where it can.
    std::vector<Positions> places(const std::vector<std::string>& phrases, const std::string& text) const {
        std::vector<std::vector<Positions>> every;
        for (const std::string& phrase : phrases) every.push_back(occurrences(phrase, text));
        std::vector<size_t> order(phrases.size());
        std::iota(order.begin(), order.end(), size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return every[a][0].size() > every[b][0].size(); });
        std::map<size_t, size_t> users;  // token to phrase
        std::vector<Positions> out(phrases.size());
        for (size_t index : order) {
            auto is_free = [&](const Positions& place) {
                return std::none_of(place.begin(), place.end(), [&](size_t token) { return users.count(token); });
            };
            auto free = std::find_if(every[index].begin(), every[index].end(), is_free);
            if (free == every[index].end()) refuse(phrases, index, users, every[index], text);
            for (size_t token : *free) users[token] = index;
            out[index] = *free;
        }
        return out;
    }

    // About a phrase whose occurrences are all used.
    [[noreturn]] void refuse(const std::vector<std::string>& phrases, size_t index,
                             const std::map<size_t, size_t>& users, const std::vector<Positions>& occurrences,
                             const std::string& text) const {
        const std::string& phrase = phrases[index];
        size_t first = phrases.size() - 1;
        for (size_t token : occurrences[0]) {
            auto user = users.find(token);
            if (user != users.end()) first = std::min(first, user->second);
        }
        const std::string& other = phrases[first];
        if (key(other) != key(phrase)) throw rules::subjects_overlap(other, phrase, shortened(text));
        auto count = std::count_if(phrases.begin(), phrases.end(),
                                   [&](const std::string& one) { return key(one) == key(phrase); });
        throw rules::subject_repeated(phrase, count, shortened(text), occurrences.size());
    }

    Engine& engine_;
    const PromptTokenizer& tokenizer_;
    const Subjects& subjects_;
    const Reading reading_;
};

// Writes the group of each token: a subject has its words and, if no other subject does, the token after them, in which
// a causal text encoder gathers what they mean.
void mark(const std::vector<Found>& image, int32_t* token_groups) {
    for (size_t group = 0; group < image.size(); ++group) {
        for (size_t token : image[group].positions) token_groups[token] = static_cast<int32_t>(group);
    }
    for (size_t group = 0; group < image.size(); ++group) {
        int32_t& after = token_groups[image[group].positions.back() + 1];
        if (after < 0) after = static_cast<int32_t>(group);
    }
}

}  // namespace

void check(const Subjects& subjects, const Prompt& prompt, const Manifest& manifest) {
    for (const std::string& phrase : subjects.phrases) check_phrase("subjects", phrase);
    for (const Region& region : subjects.regions) check_phrase("regions", region.subject);
    if (!std::isfinite(subjects.window)) throw rules::finite_number("subject_window", subjects.window);
    if (!(subjects.window >= kSmallestWindow && subjects.window <= kLargestWindow)) {
        throw rules::number_range("subject_window", subjects.window, kSmallestWindow, kLargestWindow);
    }
    if (!subjects.on()) return;
    if (prompt.embeds) throw rules::subjects_need_text();
    if (!manifest.unet.subject_layers) throw rules::subjects_engine();
}

Array strengths(const Subjects& subjects, int64_t steps, int64_t evaluations, const std::string& scheduler) {
    Array out({evaluations, 2});
    int64_t column = 0;
    for (const auto& [name, schedule] :
         {std::pair{"subject_exclusion", &subjects.exclusion}, {"subject_balance", &subjects.balance}}) {
        std::vector<float> values = ebca::internal::resolve(*schedule, steps, evaluations, name, scheduler);
        for (int64_t i = 0; i < evaluations; ++i) {
            float value = values[static_cast<size_t>(i)];
            if (!(value >= 0 && value <= static_cast<float>(limits::subject_strength))) {
                throw rules::subject_strength(name, value, i, limits::subject_strength);
            }
            out.row(i)[column] = value;
        }
        ++column;
    }
    return out;
}

std::optional<SubjectInputs> resolve(Engine& engine, const Subjects& subjects, const Prompt& prompt,
                                     const Reading& reading, const Array& strengths, const Shape& latent_shape,
                                     const Size& size) {
    if (!subjects.on()) return std::nullopt;
    const UNetSpec& unet = engine.manifest().unet;
    const LayerSpec& layer = unet.layers.at(static_cast<size_t>(unet.subject_layers->biased.front()));
    const Sizes latents{{"height", latent_shape.at(2)}, {"width", latent_shape.at(3)}};
    Size grid{evaluate(layer.height, latents), evaluate(layer.width, latents)};
    if (grid[0] * grid[1] > limits::subject_positions) {
        throw rules::subject_map_size(grid[0], grid[1], limits::subject_positions);
    }
    std::vector<std::string> texts = texts_for_images("prompt", prompt, latent_shape[0]);
    Resolver resolver(engine, subjects, reading);
    std::map<std::string, std::vector<Found>> found;
    size_t most = 0;
    for (const std::string& text : texts) {
        if (!found.count(text)) found[text] = resolver.of_image(text);
        most = std::max(most, found[text].size());
    }
    resolver.check_regions(texts);
    if (most == 0) return std::nullopt;
    auto images = static_cast<int64_t>(texts.size()), groups = static_cast<int64_t>(most);
    size_t rows = 1;
    for (const auto& [text, subjects_of_text] : found) rows = std::max(rows, engine.tokenizer().rows(text, reading));
    auto tokens = static_cast<int64_t>(rows * engine.tokenizer().max_length());
    SubjectInputs out;
    out.token_groups.assign(static_cast<size_t>(images * tokens), -1);
    out.strengths = strengths;
    out.window = subjects.window;
    out.regions = Array({images, groups, grid[0], grid[1]});
    out.fixed.assign(static_cast<size_t>(images * groups), 0);
    auto warn = [&](const std::string& message) { engine.log(LogLevel::warning, message); };
    std::map<const Region*, Array> read;
    for (int64_t n = 0; n < images; ++n) {
        const std::vector<Found>& image = found[texts[static_cast<size_t>(n)]];
        out.counts.push_back(static_cast<int32_t>(image.size()));
        mark(image, out.token_groups.data() + n * tokens);
        for (size_t group = 0; group < image.size(); ++group) {
            const Region* region = image[group].region;
            if (!region) continue;
            if (!read.count(region)) {
                const std::string name = ebca::internal::text("regions[", region - subjects.regions.data(), "].mask");
                read[region] = coverage(region->subject, region->mask, name, size, grid, warn);
            }
            int64_t cells = grid[0] * grid[1], at = n * groups + static_cast<int64_t>(group);
            std::copy_n(read[region].values.begin(), cells, out.regions.values.begin() + at * cells);
            out.fixed[static_cast<size_t>(at)] = 1;
        }
    }
    return out;
}

}  // namespace ebca::internal
