// What the opaque handles of ebca.h hold.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "engine.hpp"
#include "session.hpp"

namespace ebca::internal {

// The error of a call in three texts, all UTF-8; empty after a success.
struct LastError {
    std::string problem;
    std::string remedy;
    std::string text;  // both, joined with "; "
};

}  // namespace ebca::internal

struct ebca_engine {
    std::shared_ptr<ebca::internal::Engine> engine;
    std::string schedulers;
    mutable std::mutex lock;
    ebca::internal::LastError last_error;
};

struct ebca_session {
    std::shared_ptr<ebca::internal::Engine> engine;
    ebca::internal::Session session;
    ebca::internal::LastError last_error;
    std::atomic<bool> busy{false};
};
