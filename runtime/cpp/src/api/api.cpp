// The functions of ebca.h.
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

#include "api/guard.hpp"
#include "api/handles.hpp"
#include "api/made.hpp"
#include "api/structs.hpp"
#include "ebca.h"

// Defined in the library's namespace, so that no name of it is visible in a host that compiles these sources among its
// own. EBCA_API stands here too, as these are other declarations than those of the header.
namespace ebca::internal {
namespace {

// A call that can be cancelled.
template <typename Work>
ebca_status cancellable(ebca_session* session, ebca_result** result, Work&& work) {
    return made(session, result, [&] {
        Cancellation::Turn turn(session->session.cancellation());
        Result out = work();
        turn.end();
        return out;
    });
}

}  // namespace

extern "C" {

// Another thread may write the engine's error, so the caller reads a copy of its own.
static const char* last_of(const ebca_engine* engine, std::string LastError::*text) {
    if (!engine) return text == &LastError::remedy ? "" : "the engine is NULL";
    LastError& own = thread_error();
    std::lock_guard held(engine->lock);
    assign(own, engine->last_error);
    return (own.*text).c_str();
}

EBCA_API const char* ebca_version(void) {
    return EBCA_VERSION_TEXT;
}

EBCA_API uint32_t ebca_abi_version(void) {
    return EBCA_ABI_VERSION;
}

EBCA_API const char* ebca_last_error(void) {
    return thread_error().text.c_str();
}

EBCA_API const char* ebca_last_problem(void) {
    return thread_error().problem.c_str();
}

EBCA_API const char* ebca_last_remedy(void) {
    return thread_error().remedy.c_str();
}

EBCA_API void ebca_engine_params_init(ebca_engine_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API ebca_status ebca_engine_open(const ebca_engine_params* params, ebca_engine** engine) {
    if (engine) *engine = nullptr;
    return guarded([&] {
        if (!engine) throw rules::target_null("engine");
        auto handle = std::make_unique<ebca_engine>();
        handle->engine = std::make_shared<Engine>(engine_options(params));
        handle->schedulers = scheduler_names(handle->engine->manifest());
        *engine = handle.release();
    });
}

EBCA_API void ebca_engine_free(ebca_engine* engine) {
    delete engine;
}

EBCA_API const char* ebca_engine_last_error(const ebca_engine* engine) {
    return last_of(engine, &LastError::text);
}

EBCA_API const char* ebca_engine_last_problem(const ebca_engine* engine) {
    return last_of(engine, &LastError::problem);
}

EBCA_API const char* ebca_engine_last_remedy(const ebca_engine* engine) {
    return last_of(engine, &LastError::remedy);
}

EBCA_API ebca_status ebca_engine_get_info(ebca_engine* engine, ebca_engine_info* info) {
    return guarded(engine, [&] {
        size_t size = checked(needed<ebca_engine_info>(info, "ebca_engine_info"), "ebca_engine_info").struct_size;
        ebca_engine_info out = engine_info(*engine->engine, engine->schedulers);
        out.struct_size = size;
        std::memcpy(info, &out, size);
    });
}

EBCA_API void ebca_session_params_init(ebca_session_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API ebca_status ebca_session_create(ebca_engine* engine, const ebca_session_params* given,
                                         ebca_session** session) {
    if (session) *session = nullptr;
    return guarded(engine, [&] {
        if (!session) throw rules::target_null("session");
        ebca_session_params params = checked(given, "ebca_session_params");
        *session =
            new ebca_session{engine->engine, {engine->engine, params.height, params.width, params.batch}, {}, {false}};
    });
}

EBCA_API void ebca_session_free(ebca_session* session) {
    delete session;
}

EBCA_API const char* ebca_session_last_error(const ebca_session* session) {
    return session ? session->last_error.text.c_str() : "the session is NULL";
}

EBCA_API const char* ebca_session_last_problem(const ebca_session* session) {
    return session ? session->last_error.problem.c_str() : "the session is NULL";
}

EBCA_API const char* ebca_session_last_remedy(const ebca_session* session) {
    return session ? session->last_error.remedy.c_str() : "";
}

EBCA_API ebca_status ebca_session_cancel(ebca_session* session) {
    return guarded([&] {
        if (!session) throw rules::session_null();
        session->session.cancellation().request();
    });
}

EBCA_API ebca_status ebca_session_reset_cancel(ebca_session* session) {
    return guarded([&] {
        if (!session) throw rules::session_null();
        session->session.cancellation().take();
    });
}

EBCA_API void ebca_edit_init(ebca_edit* edit, size_t struct_size) {
    fill(edit, struct_size);
}

EBCA_API void ebca_repaint_params_init(ebca_repaint_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API void ebca_regularize_params_init(ebca_regularize_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API void ebca_generate_params_init(ebca_generate_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API void ebca_invert_params_init(ebca_invert_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API ebca_status ebca_session_generate(ebca_session* session, const ebca_generate_params* params,
                                           ebca_result** result) {
    return cancellable(session, result, [&] {
        return session->session.generate(generate_request(*session->engine, session->session, params));
    });
}

EBCA_API ebca_status ebca_session_invert(ebca_session* session, const ebca_invert_params* params,
                                         ebca_result** result) {
    return cancellable(session, result, [&] {
        return session->session.invert(invert_request(*session->engine, session->session, params));
    });
}

EBCA_API void ebca_denoise_params_init(ebca_denoise_params* params, size_t struct_size) {
    fill(params, struct_size);
}

EBCA_API ebca_status ebca_session_denoise(ebca_session* session, const ebca_denoise_params* params,
                                          ebca_result** result) {
    return cancellable(session, result, [&] {
        return session->session.denoise(denoise_request(*session->engine, session->session, params));
    });
}

EBCA_API ebca_status ebca_result_to_gpu(ebca_result* result, ebca_engine* engine) {
    return guarded(engine, [&] {
        if (!result) throw rules::is_null("result");
        move_to(engine->engine->device(), *result);
    });
}

EBCA_API void ebca_result_free(ebca_result* result) {
    free_result(result);
}
}
}  // namespace ebca::internal
