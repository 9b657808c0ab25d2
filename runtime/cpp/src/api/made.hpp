// Calls that make a result.
#pragma once

#include <utility>

#include "api/guard.hpp"
#include "api/structs.hpp"

namespace ebca::internal {

// Runs `work`, which returns a Result, as a call of an engine or of a session.
template <typename Handle, typename Work>
ebca_status made(Handle* handle, ebca_result** result, Work&& work) noexcept {
    if (result) *result = nullptr;
    return guarded(handle, [&] {
        if (!result) throw rules::target_null("result");
        *result = handed_over(work());
    });
}

}  // namespace ebca::internal
