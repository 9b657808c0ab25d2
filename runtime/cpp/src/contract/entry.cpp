#include "contract/entry.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "contract/limits.hpp"
#include "error.hpp"

namespace ebca::internal {
namespace {

constexpr size_t kShownValue = 60;

bool is_word(std::string_view name) {
    auto plain = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    };
    return !name.empty() && std::all_of(name.begin(), name.end(), plain);
}

// Control characters and line separators, in UTF-8: they would break the line of an error message.
bool has_control(std::string_view name) {
    for (size_t i = 0; i < name.size(); ++i) {
        auto byte = [&](size_t ahead) {
            return i + ahead < name.size() ? static_cast<unsigned char>(name[i + ahead]) : 0u;
        };
        if (byte(0) < 0x20 || byte(0) == 0x7F) return true;
        if (byte(0) == 0xC2 && byte(1) >= 0x80 && byte(1) < 0xA0) return true;
        if (byte(0) == 0xE2 && byte(1) == 0x80 && (byte(2) == 0xA8 || byte(2) == 0xA9)) return true;
    }
    return false;
}

// A value as messages show it: on one line, and short.
std::string spelled(const json::Value& value) {
    if (value.is_structured()) {
        return std::string(value.is_object() ? "an object" : "a list") + (value.empty() ? " that is empty" : "");
    }
    // Escapes everything that is not ASCII, so that it can be cut anywhere.
    std::string dumped = json::dumped(value);
    if (value.is_string()) {
        std::replace(dumped.begin(), dumped.begin() + 1, '"', '\'');
        dumped.back() = '\'';
    }
    return dumped.size() <= kShownValue ? dumped : dumped.substr(0, kShownValue) + "...";
}

void check_name(const std::string& name, std::string_view what, int64_t limit) {
    if (name.empty() || name.size() > static_cast<size_t>(limit) || has_control(name)) {
        throw EngineError(text(what, " is ", spelled(name), " instead of a line of at most ", limit, " bytes"));
    }
}

}  // namespace

Entry Entry::at(const std::string& name) const {
    if (!value_.is_object()) refuse("an object");
    auto found = value_.find(name);
    if (found == value_.end()) throw EngineError(ebca::internal::text(member_path(name), " is missing"));
    return {*found, member_path(name)};
}

std::optional<Entry> Entry::get(const std::string& name) const {
    if (!value_.is_object()) refuse("an object");
    auto found = value_.find(name);
    if (found == value_.end() || found->is_null()) return std::nullopt;
    return Entry(*found, member_path(name));
}

void Entry::members(const Member& visit) const {
    if (!value_.is_object()) refuse("an object");
    for (const auto& [name, value] : value_.items()) {
        check_name(name, ebca::internal::text("a name in ", path_), limits::path_bytes);
        visit(name, Entry(value, member_path(name)));
    }
}

std::vector<Entry> Entry::elements() const {
    if (!value_.is_array()) refuse("a list");
    std::vector<Entry> out;
    for (const json::Value& element : value_)
        out.emplace_back(element, ebca::internal::text(path_, "[", out.size(), "]"));
    return out;
}

std::string Entry::text() const {
    if (!value_.is_string()) refuse("a text");
    return value_.get<std::string>();
}

std::string Entry::name() const {
    std::string found = text();
    check_name(found, path_, limits::name_bytes);
    return found;
}

std::vector<std::string> Entry::names() const {
    std::vector<std::string> out;
    std::set<std::string> seen;
    for (const Entry& element : elements()) {
        out.push_back(element.name());
        if (!seen.insert(out.back()).second) {
            throw EngineError(ebca::internal::text(path_, " has ", spelled(out.back()), " twice"));
        }
    }
    return out;
}

std::string Entry::choice(std::initializer_list<const char*> choices) const {
    auto same = [&](const char* one) { return value_.is_string() && value_.get_ref<const std::string&>() == one; };
    if (std::none_of(choices.begin(), choices.end(), same)) {
        std::string needed;
        for (const char* one : choices) needed += (needed.empty() ? "" : " or ") + std::string(one);
        refuse(needed);
    }
    return value_.get<std::string>();
}

bool Entry::boolean() const {
    if (!value_.is_boolean()) refuse("true or false");
    return value_.get<bool>();
}

int64_t Entry::integer(int64_t low, int64_t high) const {
    bool huge = value_.is_number_unsigned() && value_.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
    if (!value_.is_number_integer() || huge || value_.get<int64_t>() < low || value_.get<int64_t>() > high) {
        refuse(ebca::internal::text("an integer from ", low, " to ", high));
    }
    return value_.get<int64_t>();
}

double Entry::number(double low, double high) const {
    bool fits = value_.is_number() && value_.get<double>() >= low && value_.get<double>() <= high;
    if (!fits) refuse(ebca::internal::text("a number from ", low, " to ", high));
    return value_.get<double>();
}

double Entry::number() const {
    if (!value_.is_number() || !std::isfinite(value_.get<double>())) refuse("a finite number");
    return value_.get<double>();
}

std::string Entry::sha256() const {
    std::string found = text();
    if (found.size() != 64 || found.find_first_not_of("0123456789abcdef") != found.npos) {
        refuse("64 hexadecimal digits");
    }
    return found;
}

void Entry::refuse(std::string_view needed) const {
    throw EngineError(
        ebca::internal::text(path_.empty() ? "the document" : path_, " is ", spelled(value_), " instead of ", needed));
}

std::string Entry::member_path(const std::string& name) const {
    if (!is_word(name)) return ebca::internal::text(path_, "[", spelled(name), "]");
    return path_.empty() ? name : path_ + "." + name;
}

}  // namespace ebca::internal
