// The host's callbacks. What one throws, though it must not, is reported as its own error.
#pragma once

#include <exception>
#include <string>

#include "parameters.hpp"

namespace ebca::internal {

template <typename Callback, typename... Arguments>
auto called(const char* name, Callback callback, Arguments... arguments) {
    try {
        return callback(arguments...);
    } catch (const std::exception& error) {
        throw rules::callback_threw(name, std::string(error.what()));
    } catch (...) {
        throw rules::callback_threw(name, "not a std::exception");
    }
}

}  // namespace ebca::internal
