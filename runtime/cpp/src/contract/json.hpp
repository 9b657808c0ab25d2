// Reading JSON as untrusted input: every accessor checks the type and throws EngineError with the member's name.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ebca::internal::json {

using Value = nlohmann::json;

// EngineError for text that is not JSON, or is nested deeper than anything that ebca writes.
Value parse(std::string_view bytes);

// The same as untrusted input: also refuses names that an object has twice, which parsers read differently, and a byte
// order mark. engines/contract/strict_json.py accepts the same documents.
Value parse_strict(std::string_view bytes);

// Empties a document without asking for memory: nlohmann-json's own destructor allocates for what is nested, and ends
// the process if it cannot. So documents are made by `made`, and taken apart where they go out of scope.
void take_apart(Value& value) noexcept;

// An object that `fill` fills.
template <typename Fill>
Value made(Fill&& fill) {
    Value out = Value::object();
    try {
        fill(out);
    } catch (...) {
        take_apart(out);
        throw;
    }
    return out;
}

// Takes a document apart when it goes out of scope.
class TakenApart {
  public:
    explicit TakenApart(Value& root) : root_(root) {}
    ~TakenApart();
    TakenApart(const TakenApart&) = delete;
    TakenApart& operator=(const TakenApart&) = delete;

  private:
    Value& root_;
};

// Whether a value is this text. nlohmann-json's own comparison makes a value of the text, and ends the process without
// memory.
bool is(const Value& value, std::string_view text);

// As one line of ASCII; what is not UTF-8 is replaced.
std::string dumped(const Value& value);

// A member of an object.
const Value& member(const Value& object, const char* name);

// The same; null if it is missing.
const Value& optional_member(const Value& object, const char* name);

const Value& object(const Value& value, std::string_view what);
const Value& array(const Value& value, std::string_view what);
std::string string(const Value& value, std::string_view what);
bool boolean(const Value& value, std::string_view what);
double number(const Value& value, std::string_view what);  // finite
int64_t integer(const Value& value, std::string_view what, int64_t smallest, int64_t largest);

}  // namespace ebca::internal::json
