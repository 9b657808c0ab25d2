// Values of a JSON document that are not trusted: each is read as the type and in the range that it must have.
// engines/contract/checked.py is the same in Python.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "contract/json.hpp"

namespace ebca::internal {

// A value, and where in the document it is. Every method throws EngineError if the value is another one.
class Entry {
  public:
    Entry(const json::Value& value, std::string path) : value_(value), path_(std::move(path)) {}

    const std::string& path() const { return path_; }
    const json::Value& value() const { return value_; }
    bool is_object() const { return value_.is_object(); }
    bool is_text() const { return value_.is_string(); }
    bool is_null() const { return value_.is_null(); }

    // A member that must be there.
    Entry at(const std::string& name) const;
    // The same; none if it is missing or null.
    std::optional<Entry> get(const std::string& name) const;

    using Member = std::function<void(const std::string& name, const Entry& value)>;
    // Each member of an object. Their names are checked as `name` does.
    void members(const Member& visit) const;
    // The elements of a list.
    std::vector<Entry> elements() const;

    // Any string.
    std::string text() const;
    // A string that is short, not empty, and one line.
    std::string name() const;
    // A list of names, each once.
    std::vector<std::string> names() const;
    // One of these strings.
    std::string choice(std::initializer_list<const char*> choices) const;
    bool boolean() const;
    // 2.0 is none.
    int64_t integer(int64_t low, int64_t high) const;
    double number(double low, double high) const;
    // Any finite number.
    double number() const;
    // Lower-case hexadecimal digits of a SHA-256.
    std::string sha256() const;

    [[noreturn]] void refuse(std::string_view needed) const;

  private:
    std::string member_path(const std::string& name) const;

    const json::Value& value_;
    std::string path_;
};

}  // namespace ebca::internal
