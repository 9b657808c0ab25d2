#include "api/guard.hpp"

#include "contract/utf8.hpp"
#include "memory.hpp"

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

ebca_status short_of_memory(LastError& target, const char* problem) noexcept {
    assign(target, problem, kLessMemory);
    return EBCA_ERROR_OUT_OF_MEMORY;
}

void assign(LastError& target, const LastError& source) noexcept {
    try {
        target = source;
    } catch (...) {
        target = {};
    }
}

}  // namespace ebca::internal
