#include "api/guard.hpp"

#include "contract/utf8.hpp"

namespace ebca::internal {

LastError& thread_error() noexcept {
    static thread_local LastError last;
    return last;
}

void assign(LastError& target, const char* problem, const char* remedy) noexcept {
    try {
        target.problem = readable(problem);
        target.remedy = readable(remedy);
        target.text = target.problem;
        if (!target.remedy.empty()) target.text += "; " + target.remedy;
    } catch (...) {
        target = {};
    }
}

void assign(LastError& target, const LastError& source) noexcept {
    try {
        target = source;
    } catch (...) {
        target = {};
    }
}

}  // namespace ebca::internal
