// What an engine reports while it works.
#pragma once

#include <functional>
#include <string>

namespace ebca::internal {

// The numbers are those of ebca_log_level in ebca.h.
enum class LogLevel { warning = 0, info = 1 };

// Called from any thread.
using Log = std::function<void(LogLevel, const std::string&)>;

}  // namespace ebca::internal
