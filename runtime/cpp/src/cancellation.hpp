// A request to stop a call, made by any thread, which reaches a graph that is running.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <utility>

#include "parameters.hpp"

namespace ebca::internal {

// A request stays until a call has taken it, so that one made just before a call is not lost. Thread-safe.
class Cancellation {
  public:
    void request() {
        std::lock_guard held(lock_);
        requested_ = true;
        if (stop_) stop_();
    }

    bool requested() const { return requested_; }

    // Whether there was a request; there is none afterwards.
    bool take() { return requested_.exchange(false); }

    // CancelledError that names what is stopped.
    void check(const char* what) const {
        if (requested_) throw rules::cancelled_in(what);
    }

    // One call. It takes the request, however it ends; CancelledError if there is one at its begin or at its end.
    class Turn {
      public:
        explicit Turn(Cancellation& cancellation) : cancellation_(cancellation) {
            if (cancellation_.take()) throw rules::cancelled_early();
        }
        ~Turn() { cancellation_.take(); }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        void end() {
            if (cancellation_.take()) throw rules::cancelled_late();
        }

      private:
        Cancellation& cancellation_;
    };

    // As long as it lives, a request calls `stop`; so does one that was made already. `stop` must not throw or wait.
    class Reach {
      public:
        Reach(Cancellation& cancellation, std::function<void()> stop) : cancellation_(cancellation) {
            std::lock_guard held(cancellation_.lock_);
            cancellation_.stop_ = std::move(stop);
            if (cancellation_.requested_) cancellation_.stop_();
        }
        ~Reach() {
            std::lock_guard held(cancellation_.lock_);
            cancellation_.stop_ = nullptr;
        }
        Reach(const Reach&) = delete;
        Reach& operator=(const Reach&) = delete;

      private:
        Cancellation& cancellation_;
    };

  private:
    std::atomic<bool> requested_{false};
    std::mutex lock_;
    std::function<void()> stop_;  // of the graph that is running; guarded by lock_
};

}  // namespace ebca::internal
