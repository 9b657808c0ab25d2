// What every session of ONNX Runtime needs, wherever it runs: its inputs by name, and arrays bound to it.
#pragma once

#include <set>
#include <string>

#include "backends/ort_library.hpp"
#include "contract/tensor.hpp"
#include "log.hpp"

namespace ebca::internal {

// Options that every session has: errors alone are logged, to `log`, which must outlive the session; no memory
// patterns, `threads` for each graph.
OrtPointer<OrtSessionOptions> session_options(const OrtLibrary& ort, int threads, const Log& log);

// Names of the inputs that an operator reads; others may be optimised away.
std::set<std::string> input_names(const OrtLibrary& ort, const OrtSession& session);

// Arrays bound to a session called `name`; they are in `place`, belong to the caller and must outlive the binding.
// Inputs that are not `known` are left out.
OrtPointer<OrtIoBinding> bind_arrays(const OrtLibrary& ort, OrtSession& session, const std::string& name,
                                     const std::set<std::string>& known, const OrtMemoryInfo& place,
                                     const Tensors& inputs, const Tensors& outputs);

}  // namespace ebca::internal
