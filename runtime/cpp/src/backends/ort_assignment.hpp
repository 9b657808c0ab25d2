// Where ONNX Runtime runs the operators of a graph: a provider that cannot have one leaves it to the CPU in silence.
#pragma once

#include <string>

#include "backends/ort_library.hpp"

namespace ebca::internal {

#if ORT_API_VERSION >= 24

// Let a session that is opened with these options be asked.
void record_assignment(const OrtLibrary& ort, OrtSessionOptions& options);

// BackendError where operators that belong on a GPU run elsewhere than on `provider`; `graph` is for the message.
// ort: of version 24 of the API or newer.
void check_assignment(const OrtLibrary& ort, const OrtSession& session, const std::string& graph,
                      const std::string& provider);

#endif

}  // namespace ebca::internal
