// What the opaque handles of ebca.h hold.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "engine.hpp"
#include "session.hpp"

namespace ebca {

// The error of a call in three texts, all UTF-8; empty after a success.
struct LastError {
    std::string problem;
    std::string remedy;
    std::string text;  // both, joined with "; "
};

}  // namespace ebca

struct ebca_engine {
    std::shared_ptr<ebca::Engine> engine;
    std::string schedulers;
    mutable std::mutex lock;
    ebca::LastError last_error;
};

struct ebca_session {
    std::shared_ptr<ebca::Engine> engine;
    ebca::Session session;
    ebca::LastError last_error;
    std::atomic<bool> busy{false};
};
