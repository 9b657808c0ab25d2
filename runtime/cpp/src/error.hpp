// Errors that a caller's input or environment can cause; each message names the thing, the value and the remedy.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ebca {

// The numbers are those of ebca_status in ebca.h.
enum class Status {
    ok = 0,
    parameter = 1,
    engine = 2,
    backend = 3,
    numerical = 4,
    cancelled = 5,
    unsupported = 6,
    out_of_memory = 7,
    internal = 8,
};

// Base of all of them, as ebca.errors.EbcaError is in Python. Anything else that is thrown is a bug of ours.
struct Error : std::runtime_error {
    Error(Status status, const std::string& message) : std::runtime_error(message), status(status) {}
    Status status;
};

// A call parameter with a wrong value, shape or dtype.
struct ParameterError : Error {
    explicit ParameterError(const std::string& message) : Error(Status::parameter, message) {}
};

// An engine directory, or a file in it, that cannot be used.
struct EngineError : Error {
    explicit EngineError(const std::string& message) : Error(Status::engine, message) {}
};

// ONNX Runtime or OpenVINO is missing, or cannot run the engine.
struct BackendError : Error {
    explicit BackendError(const std::string& message) : Error(Status::backend, message) {}
};

// A result that is not finite; the message names the first segment where it happened.
struct NumericalError : Error {
    explicit NumericalError(const std::string& message) : Error(Status::numerical, message) {}
};

// The caller asked to stop. The session stays usable.
struct CancelledError : Error {
    explicit CancelledError(const std::string& message) : Error(Status::cancelled, message) {}
};

// What this library cannot do yet, though the Python runtime may.
struct UnsupportedError : Error {
    explicit UnsupportedError(const std::string& message) : Error(Status::unsupported, message) {}
};

// Pieces of a message, written one after the other.
template <typename... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

}  // namespace ebca
