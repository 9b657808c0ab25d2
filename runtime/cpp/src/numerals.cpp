#include "numerals.hpp"

#include <locale>

namespace ebca::internal {
ClassicText::ClassicText() {
    imbue(std::locale::classic());
    // Without memory, pieces would be left out in silence.
    exceptions(std::ios_base::badbit);
}

ClassicWords::ClassicWords(const std::string& words) : std::istringstream(words) {
    imbue(std::locale::classic());
    // Without memory, pieces would be left out in silence.
    exceptions(std::ios_base::badbit);
}

}  // namespace ebca::internal
