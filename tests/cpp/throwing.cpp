// Callbacks of a C++ host that throw: each call returns a status with a text.
//
//     throwing ENGINE_DIRECTORY ONNXRUNTIME EMPTY_CACHE
#include <cstdio>
#include <stdexcept>

#include "ebca.h"

namespace {

int from_step(const ebca_step_info*, void* data) {
    if (data) throw 7;
    throw std::runtime_error("a full disk");
}

void from_log(ebca_log_level, const char*, void*) {
    throw std::logic_error("no console");
}

void from_prepare(int64_t, int64_t, const char*, void*) {
    throw std::runtime_error("a closed window");
}

int64_t from_read(const char*, int64_t, void*, int64_t, void*) {
    throw std::runtime_error("a removed disk");
}

void say(ebca_status status) {
    std::printf("%d %s\n", status, ebca_last_error());
}

}  // namespace

int main(int, char** arguments) {
    ebca_engine_params open;
    ebca_engine_params_init(&open, sizeof open);
    open.path = arguments[1];
    open.onnxruntime_library = arguments[2];
    open.log = from_log;
    ebca_engine* engine = nullptr;
    if (ebca_engine_open(&open, &engine) != EBCA_OK) return 1;
    ebca_session* session = nullptr;
    if (ebca_session_create(engine, nullptr, &session) != EBCA_OK) return 1;
    const char* prompt = "a red circle";
    ebca_generate_params make;
    ebca_generate_params_init(&make, sizeof make);
    make.prompt.texts = &prompt;
    make.prompt.count = 1;
    make.steps = 1;
    make.on_step = from_step;
    ebca_result* result = nullptr;
    say(ebca_session_generate(session, &make, &result));
    make.on_step_data = &result;
    say(ebca_session_generate(session, &make, &result));
    make.on_step = nullptr;
    const char* words = "a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a";
    make.prompt.texts = &words;
    make.long_prompts = 0;
    say(ebca_session_generate(session, &make, &result));
    make.prompt.texts = &prompt;
    say(ebca_session_generate(session, &make, &result));
    ebca_result_free(result);
    ebca_session_free(session);
    ebca_engine_free(engine);
    open.cache_dir = arguments[3];
    open.on_prepare = from_prepare;
    say(ebca_engine_open(&open, &engine));
    open.path = nullptr;
    open.read = from_read;
    say(ebca_engine_open(&open, &engine));
}
