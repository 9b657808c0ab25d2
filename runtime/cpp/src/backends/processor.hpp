// The machine: what packed weights and thread counts depend on.
#pragma once

#include <string>

namespace ebca::internal {

// The processor model and its instruction sets, spelled as engines/machine/processor.py spells them.
std::string processor();

// The processor model alone; "" if the machine does not say.
std::string processor_model();

// Physical cores of this machine, at least 1.
int physical_cores();

}  // namespace ebca::internal
