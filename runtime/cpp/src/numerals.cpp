#include "numerals.hpp"

#include <locale.h>

#include <locale>
#include <new>

namespace ebca::internal {
namespace {

// Kept until the process ends: a thread may be using it.
locale_t classic() {
    static const locale_t made = newlocale(LC_ALL_MASK, "C", nullptr);
    if (!made) throw std::bad_alloc();
    return made;
}

}  // namespace

ClassicText::ClassicText() {
    imbue(std::locale::classic());
}

ClassicWords::ClassicWords(const std::string& words) : std::istringstream(words) {
    imbue(std::locale::classic());
}

ClassicThread::ClassicThread() : before_(uselocale(classic())) {}

ClassicThread::~ClassicThread() {
    uselocale(static_cast<locale_t>(before_));
}

}  // namespace ebca::internal
