// Errors that a caller's input or environment can cause; each names the thing, the value and the remedy.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "numerals.hpp"

namespace ebca::internal {

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

// Base of all of them, as ebca.errors.EbcaError is in Python. Anything else that is thrown is a bug of this library.
// what() joins problem and remedy with "; ".
class Error : public std::runtime_error {
  public:
    Error(Status status, std::string problem, std::string remedy = {})
        : std::runtime_error(remedy.empty() ? problem : problem + "; " + remedy),
          status_(status),
          problem_(std::move(problem)),
          remedy_(std::move(remedy)) {}

    Status status() const { return status_; }
    // What is wrong: the thing and the value.
    const std::string& problem() const { return problem_; }
    // What to do about it; empty if nothing can be done, or if the problem says it.
    const std::string& remedy() const { return remedy_; }

  private:
    Status status_;
    std::string problem_;
    std::string remedy_;
};

// A call parameter with a wrong value, shape or dtype.
struct ParameterError : Error {
    explicit ParameterError(std::string problem, std::string remedy = {})
        : Error(Status::parameter, std::move(problem), std::move(remedy)) {}
};

// A call that needs more memory than there is, on the host or on a device.
struct OutOfMemoryError : Error {
    explicit OutOfMemoryError(std::string problem, std::string remedy = {})
        : Error(Status::out_of_memory, std::move(problem), std::move(remedy)) {}
};

// A device has too little memory left for a call.
struct DeviceMemoryError : OutOfMemoryError {
    using OutOfMemoryError::OutOfMemoryError;
};

// An engine directory, or a file in it, that cannot be used.
struct EngineError : Error {
    explicit EngineError(std::string problem, std::string remedy = {})
        : Error(Status::engine, std::move(problem), std::move(remedy)) {}
};

// An inference library is missing, or cannot run the engine.
struct BackendError : Error {
    explicit BackendError(std::string problem, std::string remedy = {})
        : Error(Status::backend, std::move(problem), std::move(remedy)) {}
};

// A result that is not finite; the problem names the first segment where it happened.
struct NumericalError : Error {
    explicit NumericalError(std::string problem, std::string remedy = {})
        : Error(Status::numerical, std::move(problem), std::move(remedy)) {}
};

// The caller asked to stop. The session stays usable.
struct CancelledError : Error {
    explicit CancelledError(std::string problem, std::string remedy = {})
        : Error(Status::cancelled, std::move(problem), std::move(remedy)) {}
};

// Something this build of the library cannot do, though the Python runtime may.
struct UnsupportedError : Error {
    explicit UnsupportedError(std::string problem, std::string remedy = {})
        : Error(Status::unsupported, std::move(problem), std::move(remedy)) {}
};

// Pieces of a message, written one after the other; numbers as in C, whatever locale the host has chosen.
template <typename... Parts>
std::string text(const Parts&... parts) {
    return joined({Piece(parts)...});
}

}  // namespace ebca::internal
