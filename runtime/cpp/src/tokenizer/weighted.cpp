#include "tokenizer/weighted.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>

#include "contract/limits.hpp"
#include "error.hpp"
#include "numerals.hpp"
#include "parameters.hpp"

namespace ebca::internal {
namespace {

constexpr double kUp = 1.1;
constexpr std::string_view kBreak = "BREAK";
// How much of a prompt a message shows, in characters.
constexpr size_t kShownWords = 40;

// One that was opened.
struct Bracket {
    char sign;
    size_t at;    // its byte in the prompt
    size_t item;  // its index among the items
};

// A piece of text; a bracket that opens, with its factor, or closes; or BREAK.
struct Item {
    enum Kind { text, open, close, breaks } kind;
    std::string content = {};
    double factor = 1;
};

// BREAK is a part of a longer word where one of these is beside it.
bool of_words(char c) {
    auto code = static_cast<unsigned char>(c);
    return code >= 0x80 || c == '_' || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

bool is_ascii_digit(char c) {
    return c >= '0' && c <= '9';
}

bool starts_character(char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
}

std::string_view trimmed(std::string_view full) {
    constexpr const char* kSpace = " \t\r\n";
    size_t begin = full.find_first_not_of(kSpace);
    return begin == full.npos ? "" : full.substr(begin, full.find_last_not_of(kSpace) + 1 - begin);
}

// Of white space, one blank is left, so that a message is one line.
std::string one_line(std::string_view full) {
    std::string out;
    for (char c : full) {
        bool space = c == ' ' || (c >= '\t' && c <= '\r');
        if (!space) {
            out += c;
        } else if (!out.empty() && out.back() != ' ') {
            out += ' ';
        }
    }
    return std::string(trimmed(out));
}

// A text as messages show it.
std::string cut(std::string_view full) {
    size_t end = full.size(), count = 0;
    for (size_t i = 0; i < full.size(); ++i) {
        if (!starts_character(full[i])) continue;
        if (count++ == kShownWords) end = i;
    }
    if (count <= kShownWords) return one_line(full);
    return text(one_line(full.substr(0, end)), "... (", count - kShownWords, " more characters)");
}

ParameterError unbalanced(std::string_view prompt, size_t at) {
    auto position = std::count_if(prompt.begin(), prompt.begin() + static_cast<ptrdiff_t>(at), starts_character) + 1;
    size_t begin = at, end = at;
    for (size_t n = 0; begin > 0 && n < kShownWords / 2;) n += starts_character(prompt[--begin]);
    for (size_t n = 0; end < prompt.size(); ++end) {
        if (starts_character(prompt[end]) && ++n > kShownWords / 2) break;
    }
    const std::string near = one_line(prompt.substr(begin, end - begin));
    const std::string sign(1, prompt[at]);
    if (prompt[at] == '(' || prompt[at] == '[') return rules::prompt_bracket_open(sign, position, near);
    return rules::prompt_bracket_closed(sign, position, near);
}

// The number at the end of what closes a bracket, such as " word:1.3". alone: it is all that the brackets hold.
std::optional<double> weight_at_end(std::string_view content, bool alone) {
    size_t colon = content.rfind(':');
    if (colon == content.npos) return std::nullopt;
    std::string_view words = trimmed(content.substr(0, colon)), number = trimmed(content.substr(colon + 1));
    bool negative = !number.empty() && number[0] == '-';
    if (!number.empty() && (negative || number[0] == '+')) number.remove_prefix(1);
    auto digits = std::count_if(number.begin(), number.end(), is_ascii_digit);
    auto points = std::count(number.begin(), number.end(), '.');
    if (digits == 0 || points > 1 || static_cast<size_t>(digits + points) != number.size()) return std::nullopt;
    // Ratios and times are no weights.
    if ((alone && words.empty()) || (points == 0 && !words.empty() && is_ascii_digit(words.back())))
        return std::nullopt;
    // Beyond the range of double: without an exponent, it is far above the limit, or a fraction with hundreds of zeros.
    double beyond = number.find_first_of("123456789") < number.find('.') ? HUGE_VAL : 0;
    double value = to_number(number).value_or(beyond);
    return negative ? -value : value;
}

// Reads a prompt from one place of syntax to the next.
class Reader {
  public:
    explicit Reader(std::string_view prompt) : prompt_(prompt) {}

    std::vector<Item> items() {
        for (size_t at = 0; at < prompt_.size();) at = next(at);
        if (!opened_.empty()) throw unbalanced(prompt_, opened_.back().at);
        add_text(prompt_.substr(begin_));
        return std::move(items_);
    }

  private:
    // Reads what is at a place, and returns the next one.
    size_t next(size_t at) {
        size_t slashes = 0;
        while (at + slashes < prompt_.size() && prompt_[at + slashes] == '\\') ++slashes;
        size_t place = at + slashes;
        bool breaks = is_break(place);
        if (place == prompt_.size() ||
            (!breaks && std::string_view("()[]").find(prompt_[place]) == std::string::npos)) {
            return std::max(place, at + 1);
        }
        std::string before = std::string(prompt_.substr(begin_, at - begin_)) + std::string(slashes / 2, '\\');
        size_t end = place + (breaks ? kBreak.size() : 1);
        begin_ = end;
        if (slashes % 2) {
            add_text(before + std::string(prompt_.substr(place, end - place)));
        } else if (breaks) {
            add_text(before);
            items_.push_back({Item::breaks});
        } else {
            bracket(place, before);
        }
        return end;
    }

    void bracket(size_t place, const std::string& before) {
        char sign = prompt_[place];
        if (sign == '(' || sign == '[') {
            add_text(before);
            opened_.push_back({sign, place, items_.size()});
            items_.push_back({Item::open, {}, sign == '(' ? kUp : 1 / kUp});
            return;
        }
        if (opened_.empty() || opened_.back().sign != (sign == ')' ? '(' : '[')) throw unbalanced(prompt_, place);
        Bracket open = opened_.back();
        opened_.pop_back();
        std::optional<double> weight = weight_at_end(before, open.item + 1 == items_.size());
        if (sign == ']' && (weight || before.find('|') != before.npos)) {
            throw rules::prompt_editing(cut(prompt_.substr(open.at, place + 1 - open.at)));
        }
        if (weight) items_[open.item].factor = *weight;
        add_text(weight ? before.substr(0, before.rfind(':')) : before);
        items_.push_back({Item::close});
    }

    bool is_break(size_t place) const {
        if (prompt_.substr(place, kBreak.size()) != kBreak) return false;
        size_t end = place + kBreak.size();
        return !(place > 0 && of_words(prompt_[place - 1])) && !(end < prompt_.size() && of_words(prompt_[end]));
    }

    void add_text(std::string_view content) {
        if (!content.empty()) items_.push_back({Item::text, std::string(content)});
    }

    std::string_view prompt_;
    size_t begin_ = 0;  // of the text that is not among the items yet
    std::vector<Item> items_;
    std::vector<Bracket> opened_;
};

}  // namespace

Weighted unweighted(std::string_view prompt) {
    Weighted out{std::string(prompt), {}, 1};
    if (!prompt.empty()) out.segments.push_back({0, prompt.size(), 1.0, 0});
    return out;
}

Weighted parse_weights(std::string_view prompt) {
    Weighted out;
    std::vector<double> weights{1.0};
    size_t part = 0;
    for (const Item& item : Reader(prompt).items()) {
        if (item.kind == Item::open) {
            weights.push_back(weights.back() * item.factor);
        } else if (item.kind == Item::close) {
            weights.pop_back();
        } else if (item.kind == Item::breaks) {
            out.plain += '\n';
            ++part;
        } else {
            double weight = weights.back();
            if (!(std::abs(weight) <= static_cast<double>(limits::prompt_weight))) {
                throw rules::prompt_weight(cut(item.content), weight, limits::prompt_weight);
            }
            size_t begin = out.plain.size();
            out.plain += item.content;
            if (!out.segments.empty() && out.segments.back().weight == weight && out.segments.back().part == part) {
                begin = out.segments.back().begin;
                out.segments.pop_back();
            }
            out.segments.push_back({begin, out.plain.size(), weight, part});
        }
    }
    out.parts = part + 1;
    return out;
}

}  // namespace ebca::internal
