// Every exception to a status with a text: nothing is thrown across the boundary of the library.
#pragma once

#include <exception>
#include <ios>
#include <mutex>
#include <new>
#include <stdexcept>
#include <system_error>

#include "api/handles.hpp"
#include "ebca.h"
#include "parameters.hpp"

namespace ebca::internal {

// ebca_last_error is about the calls of a thread.
LastError& thread_error() noexcept;

// Texts are made UTF-8, whatever the names and paths in them are. Without memory for them they are empty.
void assign(LastError& target, const char* problem, const char* remedy) noexcept;
void assign(LastError& target, const LastError& source) noexcept;

// The status of a call for which memory is short.
ebca_status short_of_memory(LastError& target, const char* problem) noexcept;

// Runs `work`, and turns what it throws into a status.
template <typename Work>
ebca_status guarded(Work&& work) noexcept {
    LastError& last = thread_error();
    try {
        last = {};
        work();
        return EBCA_OK;
    } catch (const Error& error) {
        assign(last, error.problem().c_str(), error.remedy().c_str());
        return static_cast<ebca_status>(error.status());
    } catch (const std::bad_alloc&) {
        return short_of_memory(last, "out of memory");
    } catch (const std::length_error& error) {
        return short_of_memory(last, error.what());
    } catch (const std::ios_base::failure&) {
        // Streams write to memory or read what the kernel says, so this is what some standard libraries make of it.
        return short_of_memory(last, "out of memory");
    } catch (const std::system_error& error) {
        // A thread or a mapping that cannot be had.
        bool is_short =
            error.code() == std::errc::not_enough_memory || error.code() == std::errc::resource_unavailable_try_again;
        if (is_short) return short_of_memory(last, error.what());
        assign(last, error.what(), "");
        return EBCA_ERROR_INTERNAL;
    } catch (const std::exception& error) {
        assign(last, error.what(), "");
        return EBCA_ERROR_INTERNAL;
    } catch (...) {
        assign(last, "an exception that this library does not throw", "");
        return EBCA_ERROR_INTERNAL;
    }
}

template <typename Work>
ebca_status guarded(ebca_engine* engine, Work&& work) noexcept {
    ebca_status status = guarded([&] {
        if (!engine) throw rules::engine_null();
        work();
    });
    if (engine && status != EBCA_OK) {
        std::lock_guard held(engine->lock);
        assign(engine->last_error, thread_error());
    }
    return status;
}

// One call of a session at a time.
template <typename Work>
ebca_status guarded(ebca_session* session, Work&& work) noexcept {
    bool entered = session && !session->busy.exchange(true);
    ebca_status status = guarded([&] {
        if (!session) throw rules::session_null();
        if (!entered) throw rules::session_busy();
        work();
    });
    if (entered) {
        // After a success the thread's text may be about another call, made by a callback.
        assign(session->last_error, status == EBCA_OK ? LastError{} : thread_error());
        session->busy = false;
    }
    return status;
}

}  // namespace ebca::internal
