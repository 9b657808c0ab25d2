// The host's callbacks. What one throws, though it must not, is reported as its own error.
#pragma once

#include <exception>

#include "error.hpp"
#include "parameters.hpp"

namespace ebca::internal {

template <typename Callback, typename... Arguments>
auto called(const char* name, Callback callback, Arguments... arguments) {
    try {
        return callback(arguments...);
    } catch (const std::exception& error) {
        throw rules::callback_threw(name, text(": ", error.what()));
    } catch (...) {
        throw rules::callback_threw(name, "");
    }
}

}  // namespace ebca::internal
