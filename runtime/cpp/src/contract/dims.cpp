#include "contract/dims.hpp"

#include <algorithm>
#include <charconv>
#include <tuple>

#include "contract/limits.hpp"
#include "contract/product.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

constexpr size_t kDigits = 20;
constexpr size_t kShownDimension = 60;

bool is_digits(std::string_view part) {
    return !part.empty() && part.size() <= kDigits && part.find_first_not_of("0123456789") == part.npos;
}

bool is_name(std::string_view part) {
    return !part.empty() && part.find_first_not_of("abcdefghijklmnopqrstuvwxyz") == std::string_view::npos;
}

// -1 if it is out of range.
int64_t number(std::string_view digits, int64_t largest) {
    int64_t value = 0;
    auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return failure == std::errc() && end == digits.data() + digits.size() && value <= largest ? value : -1;
}

std::string_view stripped(std::string_view part) {
    while (!part.empty() && part.front() == ' ') part.remove_prefix(1);
    while (!part.empty() && part.back() == ' ') part.remove_suffix(1);
    return part;
}

}  // namespace

Dim parse_dim(std::string_view spelled) {
    Dim dim;
    dim.text = std::string(spelled);
    const std::string shown = text("dimension '", spelled.substr(0, kShownDimension), "' is ");
    const EngineError refusal(shown + "neither a number nor a product of names and numbers");
    size_t begin = 0;
    while (true) {
        size_t end = spelled.find('*', begin);
        std::string_view factor = stripped(spelled.substr(begin, end == std::string_view::npos ? end : end - begin));
        size_t split = factor.rfind('_');
        if (is_digits(factor)) {
            int64_t value = number(factor, limits::dimension);
            // The product of two such numbers fits 63 bits.
            dim.constant *= value;
            if (value < 1 || dim.constant > limits::dimension) {
                throw EngineError(text(shown, "not from 1 to ", limits::dimension));
            }
        } else if (is_name(factor)) {
            dim.factors.push_back({std::string(factor), 0});
        } else if (split != std::string_view::npos && is_name(factor.substr(0, split)) &&
                   is_digits(factor.substr(split + 1))) {
            int64_t halvings = number(factor.substr(split + 1), limits::halvings);
            if (halvings < 0) throw refusal;
            dim.factors.push_back({std::string(factor.substr(0, split)), static_cast<int>(halvings)});
        } else {
            throw refusal;
        }
        if (end == std::string_view::npos) break;
        begin = end + 1;
    }
    std::sort(dim.factors.begin(), dim.factors.end(), [](const Dim::Factor& a, const Dim::Factor& b) {
        return std::tie(a.name, a.halvings) < std::tie(b.name, b.halvings);
    });
    return dim;
}

Dim parse_dim(int64_t value) {
    if (value < 1 || value > limits::dimension) throw EngineError(text("dimension ", value, " is out of range"));
    Dim dim;
    dim.constant = value;
    dim.text = std::to_string(value);
    return dim;
}

bool is_same(const std::vector<Dim>& a, const std::vector<Dim>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const Dim& one, const Dim& other) { return is_same(one, other); });
}

bool is_same(const Dim& a, const Dim& b) {
    auto same = [](const Dim::Factor& one, const Dim::Factor& other) {
        return one.name == other.name && one.halvings == other.halvings;
    };
    return a.constant == b.constant &&
           std::equal(a.factors.begin(), a.factors.end(), b.factors.begin(), b.factors.end(), same);
}

int64_t evaluate(const Dim& dim, const Sizes& sizes) {
    int64_t product = dim.constant;
    for (const Dim::Factor& factor : dim.factors) {
        auto found = sizes.find(factor.name);
        if (found == sizes.end()) {
            throw EngineError(text("dimension '", dim.text, "' uses the unknown name '", factor.name, "'"));
        }
        int64_t divisor = int64_t{1} << factor.halvings;
        int64_t value = found->second / divisor + (found->second % divisor != 0);
        if (!multiply(product, value, product)) {
            throw EngineError(text("dimension '", dim.text, "' is too large for these sizes"));
        }
    }
    return product;
}

Shape evaluate(const std::vector<Dim>& dims, const Sizes& sizes) {
    Shape shape;
    for (const Dim& dim : dims) shape.push_back(evaluate(dim, sizes));
    return shape;
}

}  // namespace ebca::internal
