// An image from a prompt, with progress; Ctrl-C stops it.
//     paint ENGINE_DIRECTORY PROMPT FILE.png
#include <csignal>
#include <cstdio>
#include <ebca.hpp>
#include <stdexcept>

#include "save_image.h"

namespace {

volatile std::sig_atomic_t interrupted = 0;

void prepared(int64_t done, int64_t total, const char* component, void*) {
    if (done < total) std::fprintf(stderr, "preparing %s (%d of %d)\n", component, int(done) + 1, int(total));
}

bool show(const ebca_step_info& step) {
    std::fprintf(stderr, "\rstep %d of %d", int(step.index) + 1, int(step.total));
    return !interrupted;
}

}  // namespace

int main(int count, char** arguments) try {
    if (count != 4) {
        std::fprintf(stderr, "usage: %s ENGINE_DIRECTORY PROMPT FILE.png\n", arguments[0]);
        return 2;
    }
    std::signal(SIGINT, [](int) { interrupted = 1; });
    ebca::EngineParams open;
    open.path = arguments[1];
    open.on_prepare = prepared;
    ebca::Engine engine(open);
    ebca::Session session(engine);
    ebca::Text prompt(arguments[2]);
    ebca::GenerateParams make;
    make.prompt = prompt;
    int64_t seed = 1;
    make.seeds = &seed;
    make.seed_count = 1;
    make.gamma_norm = ebca::constant(0.003);
    ebca::Result result = session.generate(make, show);
    if (const char* failed = save_image(arguments[3], &*result)) throw std::runtime_error(failed);
    std::fprintf(stderr, "\nwrote %s\n", arguments[3]);
    return 0;
} catch (const ebca::Error& error) {
    std::fprintf(stderr, "\npaint: %s\n", error.what());
    return error.status() == EBCA_ERROR_CANCELLED ? 130 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "\npaint: %s\n", error.what());
    return 1;
}
