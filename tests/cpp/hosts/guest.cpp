// A host with classes of its own that are called as the library's, and with callbacks that throw, which they must not.
// It is linked with the static library, or compiled with the library's sources in one translation unit.
//     guest ENGINE_DIRECTORY
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ebca.hpp>
#include <stdexcept>
#include <string>

struct Engine {
    int horses = 90;
};
struct Session {
    std::string room = "a hall";
};
struct Error {};
struct Result {
    double score = 1;
};
struct ParameterError {
    char text[7] = "host's";
};
namespace internal {
struct Tensor {
    char name[5] = "host";
};
}  // namespace internal

namespace {

void require(bool holds, const char* what) {
    if (holds) return;
    std::printf("not so: %s: %s\n", what, ebca_last_error());
    std::exit(1);
}

std::string said(ebca_status status) {
    return std::string(ebca_status_name(status)) + ": " + ebca_last_error();
}

// A callback of C that throws, as a mistake in a host may.
int throws(const ebca_step_info*, void* what) {
    switch (*static_cast<int*>(what)) {
        case 0:
            throw ebca::Error(EBCA_ERROR_ENGINE, "the host's own", "");
        case 1:
            throw std::bad_alloc();
        default:
            throw Error();
    }
}

void prepares(int64_t, int64_t, const char*, void*) {
    throw std::runtime_error("no progress");
}

void logs(ebca_log_level, const char*, void*) {
    throw std::runtime_error("no log");
}

}  // namespace

int main(int, char** arguments) {
    static_assert(sizeof(Engine) == sizeof(int) && sizeof(internal::Tensor) == 5, "the host's classes are its own");
    ebca::EngineParams open;
    open.path = arguments[1];
    ebca::Engine engine(open);
    ebca::Session session(engine);
    ebca::Text prompt("a red circle");
    ebca::GenerateParams make;
    make.prompt = prompt;
    make.steps = 1;
    make.on_step = throws;
    for (int what = 0; what < 3; ++what) {
        make.on_step_data = &what;
        ebca_result* result = nullptr;
        std::string text = said(ebca_session_generate(session.get(), &make, &result));
        const char* names[] = {": the host's own", "bad_alloc", "; catch it"};
        require(!result && text.find("error_parameter: the callback on_step threw an exception") == 0, text.c_str());
        require(text.find(names[what]) != std::string::npos, text.c_str());
    }
    make.on_step = nullptr;
    // With ebca.hpp a callback may throw: the call throws the same.
    try {
        session.generate(make, [](const ebca_step_info&) -> bool { throw ParameterError(); });
        require(false, "what a callback throws is thrown again");
    } catch (const ParameterError& error) {
        require(!std::strcmp(error.text, "host's"), "it is the host's");
    }
    require(session.generate(make)->width == 64, "the session makes the next image");

    open.on_prepare = prepares;
    open.cache_dir = arguments[2];
    ebca_engine* other = nullptr;
    std::string text = said(ebca_engine_open(&open, &other));
    require(text.find("error_parameter: the callback on_prepare threw an exception: no progress") == 0, text.c_str());
    open.on_prepare = nullptr;
    open.cache_dir = nullptr;
    open.log = logs;
    ebca::Engine loud(open);
    ebca::Session talker(loud);
    make.long_prompts = 0;
    std::string words;
    for (int i = 0; i < 200; ++i) words += "circle ";
    ebca::Text longer(words);
    make.prompt = longer;
    ebca_result* result = nullptr;
    text = said(ebca_session_generate(talker.get(), &make, &result));
    require(text.find("error_parameter: the callback log threw an exception: no log") == 0, text.c_str());
    make.prompt = prompt;
    require(talker.generate(make)->width == 64, "the session makes the next image");
    std::puts("ok");
}
