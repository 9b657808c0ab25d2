// The numbers that ONNX Runtime writes about packed weights into an optimised graph: "key|offset;length;0".
#pragma once

#include <string>

namespace ebca::internal {

// ONNX Runtime formats them as the host's global C++ locale says, "50,176;1,024;0", and reads only "50176;1024;0". What
// it wrote is put right here, in place: zeros in front keep every length, so nothing else of the graph moves. Returns
// whether anything was changed.
//
// Nothing else is both safe and complete: that locale belongs to the whole process, so replacing it meanwhile would
// change the numbers of the host's other threads, and a host may change it while a graph is written; and without packed
// weights every later process would pack them again.
bool ungroup_packed_numbers(std::string& model);

// Whether every packed weight that a graph names may be mapped as it lies.
bool packed_weights_are_aligned(const std::string& model);

}  // namespace ebca::internal
