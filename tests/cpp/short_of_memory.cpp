// Allocations that fail: the library says so, never crashes, and works again afterwards.
//
//     short_of_memory ENGINE_DIRECTORY ONNXRUNTIME open|generate once|always FIRST LAST STRIDE
//
// Opens the engine or makes an image in a child process for each n = FIRST, FIRST + STRIDE, ... LAST, in which the n-th
// allocation of the calling thread fails (once), or all from the n-th on (always). A call must succeed with the right
// image, or return EBCA_ERROR_OUT_OF_MEMORY; after a failure the same call must succeed. Prints a line per n that ends
// otherwise, with the frame in which a process crashed, and one with the counts.
#include <dlfcn.h>
#include <execinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "ebca.h"

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
}

namespace {

thread_local long left = -1;  // allocations until one fails; negative: all succeed
thread_local long counted = 0;
bool always = false;
int report = -1;

bool fails() {
    ++counted;
    if (left < 0 || --left > 0) return false;
    left = always ? 1 : -1;
    errno = ENOMEM;
    return true;
}

struct Call {
    const char* engine;
    const char* onnxruntime;
    bool opens;
    std::vector<uint8_t> expected;
    ebca_session* session = nullptr;
};

ebca_status open_engine(const Call& call, ebca_engine** engine) {
    ebca_engine_params open;
    ebca_engine_params_init(&open, sizeof open);
    open.path = call.engine;
    open.onnxruntime_library = call.onnxruntime;
    open.threads = 1;
    return ebca_engine_open(&open, engine);
}

ebca_status make(ebca_session* session, std::vector<uint8_t>& pixels) {
    ebca_generate_params params;
    ebca_generate_params_init(&params, sizeof params);
    const char* prompt = "a red circle and a blue square";
    const char* const subjects[] = {"red circle", "blue square"};
    const int64_t seed = 1;
    params.prompt.texts = &prompt;
    params.prompt.count = 1;
    params.subjects = subjects;
    params.subject_count = 2;
    params.gamma_attn.value = 0.01;
    params.seeds = &seed;
    params.seed_count = 1;
    params.steps = 1;
    params.scheduler = "ddim";
    ebca_result* result = nullptr;
    ebca_status status = ebca_session_generate(session, &params, &result);
    if (status == EBCA_OK) {
        // Without allocating: memory may still be short.
        size_t size = static_cast<size_t>(result->height) * static_cast<size_t>(result->width) * 3;
        if (pixels.empty()) pixels.assign(result->pixels, result->pixels + size);
        if (std::memcmp(pixels.data(), result->pixels, size) != 0) status = static_cast<ebca_status>(100);
    }
    ebca_result_free(result);
    return status;
}

ebca_status run(Call& call) {
    if (!call.opens) return make(call.session, call.expected);
    ebca_engine* engine = nullptr;
    ebca_status status = open_engine(call, &engine);
    ebca_engine_free(engine);
    return status;
}

// The innermost frame of this library or of ONNX Runtime.
void on_crash(int signal) {
    left = -1;
    void* frames[64];
    int count = backtrace(frames, 64);
    char line[512];
    int length = std::snprintf(line, sizeof line, "signal %d, no frame", signal);
    for (int i = 0; i < count; ++i) {
        Dl_info info{};
        if (!dladdr(frames[i], &info) || !info.dli_fname) continue;
        const char* slash = std::strrchr(info.dli_fname, '/');
        const char* name = slash ? slash + 1 : info.dli_fname;
        bool known = std::strncmp(name, "libebca", 7) == 0 || std::strncmp(name, "libonnxruntime", 14) == 0;
        if (!known) continue;
        length = std::snprintf(line, sizeof line, "signal %d in %s+0x%zx", signal, name,
                               static_cast<size_t>(static_cast<char*>(frames[i]) - static_cast<char*>(info.dli_fbase)));
        break;
    }
    if (write(report, line, static_cast<size_t>(length)) < 0) std::_Exit(3);
    std::_Exit(2);
}

// What became of the n-th: "ok", "out of memory", or what is wrong.
std::string outcome(Call& call, long n) {
    int ends[2];
    if (pipe(ends) != 0) return "no pipe";
    pid_t child = fork();
    if (child == 0) {
        report = ends[1];
        for (int signal : {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL}) std::signal(signal, on_crash);
        left = n;
        ebca_status status = run(call);
        left = -1;
        std::string said = status == EBCA_OK ? "ok" : status == EBCA_ERROR_OUT_OF_MEMORY ? "out of memory" : "";
        if (said.empty()) said = "status " + std::to_string(status) + ": " + ebca_last_error();
        // Once more, with memory.
        bool again = status != EBCA_ERROR_OUT_OF_MEMORY || run(call) == EBCA_OK;
        if (!again) said = std::string("then: ") + ebca_last_error();
        if (write(ends[1], said.data(), said.size()) < 0) std::_Exit(3);
        std::_Exit(0);
    }
    close(ends[1]);
    std::string said;
    char buffer[512];
    for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) said.append(buffer, static_cast<size_t>(got));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return said.empty() ? "ended with " + std::to_string(status) : said;
}

}  // namespace

extern "C" {
void* malloc(size_t size) {
    return fails() ? nullptr : __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
    return fails() ? nullptr : __libc_calloc(count, size);
}
void* realloc(void* old, size_t size) {
    return fails() ? nullptr : __libc_realloc(old, size);
}
void* memalign(size_t alignment, size_t size) {
    return fails() ? nullptr : __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
    return fails() ? nullptr : __libc_memalign(alignment, size);
}
int posix_memalign(void** out, size_t alignment, size_t size) {
    if (fails()) return ENOMEM;
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}
}

int main(int count, char** arguments) {
    if (count < 8) {
        std::fprintf(stderr, "usage: short_of_memory ENGINE ONNXRUNTIME open|generate once|always FIRST LAST STRIDE\n");
        return 2;
    }
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    Call call{arguments[1], arguments[2], std::strcmp(arguments[3], "open") == 0, {}, nullptr};
    always = std::strcmp(arguments[4], "always") == 0;
    long first = std::atol(arguments[5]), last = std::atol(arguments[6]), stride = std::atol(arguments[7]);
    void* warm[4];
    backtrace(warm, 4);
    // ONNX Runtime is loaded, the engine is prepared, and what is expected is known.
    ebca_engine* engine = nullptr;
    if (open_engine(call, &engine) != EBCA_OK || ebca_session_create(engine, nullptr, &call.session) != EBCA_OK ||
        make(call.session, call.expected) != EBCA_OK) {
        std::fprintf(stderr, "short_of_memory: %s\n", ebca_last_error());
        return 1;
    }
    ebca_session_free(call.session);
    call.session = nullptr;
    if (ebca_session_create(engine, nullptr, &call.session) != EBCA_OK) return 1;
    counted = 0;
    if (call.opens && run(call) != EBCA_OK) return 1;
    long total = counted;
    std::map<std::string, int> outcomes;
    for (long n = first; n <= last; n += stride) {
        std::string said = outcome(call, n);
        ++outcomes[said == "ok" || said == "out of memory" ? said : "wrong"];
        if (said != "ok" && said != "out of memory") std::printf("%ld: %s\n", n, said.c_str());
    }
    std::printf("%d ok, %d out of memory, %d wrong", outcomes["ok"], outcomes["out of memory"], outcomes["wrong"]);
    if (call.opens) std::printf(", of %ld allocations", total);
    std::printf("\n");
    ebca_session_free(call.session);
    ebca_engine_free(engine);
}
