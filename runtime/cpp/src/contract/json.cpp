#include "contract/json.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "contract/limits.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal::json {
namespace {

constexpr size_t kLongestMessage = 200;

// The parser's message quotes its input, which may hold any bytes.
std::string printable(std::string message) {
    message.resize(std::min(message.size(), kLongestMessage));
    for (char& c : message) {
        if (c < ' ' || c > '~') c = '?';
    }
    return message;
}

[[noreturn]] void refuse(std::string_view what, const char* expected, const Value& value) {
    throw EngineError(text(what, " is ", value.type_name(), " instead of ", expected));
}

// Builds a document from what the parser reads. The document belongs to the caller, who can take it apart if memory
// ends.
class Builder : public nlohmann::json_sax<Value> {
  public:
    // strict: refuse names that an object has twice.
    Builder(Value& root, bool strict) : root_(root), strict_(strict) {}

    bool null() override { return put(nullptr); }
    bool boolean(bool value) override { return put(value); }
    bool number_integer(number_integer_t value) override { return put(value); }
    bool number_unsigned(number_unsigned_t value) override { return put(value); }
    bool number_float(number_float_t value, const string_t&) override { return put(value); }
    bool string(string_t& value) override { return put(std::move(value)); }
    bool binary(binary_t&) override { return false; }
    bool start_object(size_t) override { return open(Value::object()); }
    bool start_array(size_t) override { return open(Value::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t& name) override {
        auto [at, is_new] = open_.back()->get_ref<Value::object_t&>().emplace(std::move(name), nullptr);
        if (strict_ && !is_new) throw EngineError("an object has " + printable(Value(at->first).dump()) + " twice");
        member_ = &at->second;
        return true;
    }
    bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
        throw EngineError(printable(error.what()));
    }

  private:
    template <typename Given>
    bool put(Given&& given) {
        place(std::forward<Given>(given));
        return true;
    }

    template <typename Given>
    Value& place(Given&& given) {
        if (open_.empty()) return root_ = std::forward<Given>(given);
        if (!open_.back()->is_array()) return *member_ = std::forward<Given>(given);
        return open_.back()->get_ref<Value::array_t&>().emplace_back(std::forward<Given>(given));
    }

    bool open(Value&& empty) {
        if (open_.size() >= static_cast<size_t>(limits::depth)) {
            throw EngineError(text("nested deeper than ", limits::depth, " levels"));
        }
        open_.push_back(&place(std::move(empty)));
        return true;
    }

    bool close() {
        open_.pop_back();
        return true;
    }

    Value& root_;
    bool strict_;
    std::vector<Value*> open_;  // objects and lists
    Value* member_ = nullptr;   // of the innermost object, whose value follows
};

Value parsed(std::string_view bytes, bool strict) {
    // The parser reads fractions with strtod, and allows for a decimal point of one byte only.
    const platform::ClassicThread classic;
    return made([&](Value& root) {
        Builder builder(root, strict);
        Value::sax_parse(bytes.begin(), bytes.end(), &builder);
    });
}

}  // namespace

Value parse(std::string_view bytes) {
    return parsed(bytes, false);
}

Value parse_strict(std::string_view bytes) {
    if (bytes.substr(0, 3) == "\xef\xbb\xbf") throw EngineError("it begins with a byte order mark");
    return parsed(bytes, true);
}

void take_apart(Value& value) noexcept {
    if (auto* elements = value.get_ptr<Value::array_t*>()) {
        for (Value& element : *elements) take_apart(element);
        elements->clear();
    } else if (auto* members = value.get_ptr<Value::object_t*>()) {
        for (auto& [name, element] : *members) take_apart(element);
        members->clear();
    }
}

TakenApart::~TakenApart() {
    take_apart(root_);
}

bool is(const Value& value, std::string_view text) {
    return value.is_string() && value.get_ref<const std::string&>() == text;
}

std::string dumped(const Value& value) {
    return value.dump(-1, ' ', true, Value::error_handler_t::replace);
}

const Value& optional_member(const Value& object, const char* name) {
    static const Value kNull;
    auto found = object.is_object() ? object.find(name) : object.end();
    return object.is_object() && found != object.end() ? *found : kNull;
}

const Value& member(const Value& object, const char* name) {
    if (!object.is_object()) refuse(text("what holds '", name, "'"), "object", object);
    auto found = object.find(name);
    if (found == object.end()) throw EngineError(text("'", name, "' is missing"));
    return *found;
}

const Value& object(const Value& value, std::string_view what) {
    if (!value.is_object()) refuse(what, "object", value);
    return value;
}

const Value& array(const Value& value, std::string_view what) {
    if (!value.is_array()) refuse(what, "array", value);
    return value;
}

std::string string(const Value& value, std::string_view what) {
    if (!value.is_string()) refuse(what, "string", value);
    return value.get<std::string>();
}

bool boolean(const Value& value, std::string_view what) {
    if (!value.is_boolean()) refuse(what, "boolean", value);
    return value.get<bool>();
}

double number(const Value& value, std::string_view what) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) refuse(what, "a finite number", value);
    return value.get<double>();
}

int64_t integer(const Value& value, std::string_view what, int64_t smallest, int64_t largest) {
    if (!value.is_number_integer()) refuse(what, "a whole number", value);
    bool huge = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
    if (huge || value.get<int64_t>() < smallest || value.get<int64_t>() > largest) {
        throw EngineError(text(what, " is ", value.dump()), text("it must be between ", smallest, " and ", largest));
    }
    return value.get<int64_t>();
}

}  // namespace ebca::internal::json
