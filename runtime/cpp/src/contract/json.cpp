#include "contract/json.hpp"

#include <algorithm>
#include <cmath>
#include <set>
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

// `depth`: of the object or list that begins.
bool check_depth(int depth, Value::parse_event_t event) {
    bool begins = event == Value::parse_event_t::object_start || event == Value::parse_event_t::array_start;
    if (begins && depth >= limits::depth) throw EngineError(text("nested deeper than ", limits::depth, " levels"));
    return true;
}

Value parsed(std::string_view bytes, const Value::parser_callback_t& look) {
    // The parser reads fractions with strtod, and allows for a decimal point of one byte only.
    const platform::ClassicThread classic;
    try {
        return Value::parse(bytes.begin(), bytes.end(), look);
    } catch (const Value::exception& error) {
        throw EngineError(printable(error.what()));
    }
}

}  // namespace

Value parse(std::string_view bytes) {
    return parsed(bytes, [](int depth, Value::parse_event_t event, Value&) { return check_depth(depth, event); });
}

Value parse_strict(std::string_view bytes) {
    if (bytes.substr(0, 3) == "\xef\xbb\xbf") throw EngineError("it begins with a byte order mark");
    std::vector<std::set<std::string>> names;  // of the objects that are open
    return parsed(bytes, [&](int depth, Value::parse_event_t event, Value& value) {
        if (event == Value::parse_event_t::object_start) names.emplace_back();
        if (event == Value::parse_event_t::object_end) names.pop_back();
        if (event == Value::parse_event_t::key) {
            const auto& name = value.get_ref<const std::string&>();
            if (!names.back().insert(name).second)
                throw EngineError("an object has " + printable(value.dump()) + " twice");
        }
        return check_depth(depth, event);
    });
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
