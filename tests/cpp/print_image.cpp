// Says in one line what an engine makes, for comparison with other builds, compilers and systems.
//     print_image ENGINE_DIRECTORY [CACHE_FOLDER]
#include <cstdint>
#include <cstdio>
#include <ebca.hpp>
#include <string>
#include <vector>

#if defined(_WIN32)
// The second needs the first.
// clang-format off
#include <windows.h>
#include <shellapi.h>
// clang-format on
#endif

namespace {

// The words of the command line in UTF-8, as the library takes paths.
std::vector<std::string> words(int count, char** given) {
#if defined(_WIN32)
    // What Windows hands to `main` is in its own code page.
    std::vector<std::string> out;
    wchar_t** wide = CommandLineToArgvW(GetCommandLineW(), &count);
    for (int i = 0; i < count; ++i) {
        std::string word(4 * std::wcslen(wide[i]) + 1, '\0');
        word.resize(static_cast<size_t>(
            WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, word.data(), int(word.size()), nullptr, nullptr) - 1));
        out.push_back(word);
    }
    LocalFree(wide);
    (void)given;
    return out;
#else
    return {given, given + count};
#endif
}

// FNV-1a.
uint64_t digest(const void* data, size_t bytes) {
    uint64_t hash = 1469598103934665603u;
    for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
    return hash;
}

}  // namespace

int main(int count, char** given) try {
    const std::vector<std::string> arguments = words(count, given);
    if (arguments.size() < 2) return 2;
    ebca::EngineParams open;
    open.path = arguments[1].c_str();
    open.cache_dir = arguments.size() > 2 ? arguments[2].c_str() : nullptr;
    open.threads = 1;
    ebca::Engine engine(open);
    ebca::Session session(engine);
    ebca::Text prompt("a (red:1.3) circle"), added("a blue square");
    const int64_t seed = 1;
    ebca::GenerateParams make;
    make.prompt = prompt;
    make.seeds = &seed;
    make.seed_count = 1;
    make.steps = 6;
    make.scheduler = "euler_ancestral";
    make.gamma_attn = ebca::constant(0.002);
    ebca::EditParams edit;
    edit.prompt = added;
    edit.alpha = ebca::constant(0.7);
    make.edits = &edit;
    make.edit_count = 1;
    ebca::Result result = session.generate(make);
    size_t pixels = static_cast<size_t>(result->height) * static_cast<size_t>(result->width) * 3, latents = 1;
    for (int64_t side : result->latents.shape) latents *= static_cast<size_t>(side);
    std::printf("ONNX Runtime %s, pixels %016llx, latents %016llx\n", engine.info().backend_version,
                static_cast<unsigned long long>(digest(result->pixels, pixels)),
                static_cast<unsigned long long>(digest(result->latents.data, latents * sizeof(float))));
    return 0;
} catch (const ebca::Error& error) {
    std::printf("error %d: %s\n", static_cast<int>(error.status()), error.what());
    return 1;
}
