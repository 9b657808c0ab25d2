// A picture from a prompt:
//     text_to_image ENGINE_DIRECTORY PROMPT FILE.png [SEED [STEPS]]
// ONNX Runtime is found through EBCA_ORT_LIB or the system's loader.
#include <png.h>

#include <cstdio>
#include <cstdlib>
#include <ebca.hpp>
#include <stdexcept>
#include <string>

namespace {

void save_png(const char* path, const ebca_result& result) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(result.width);
    image.height = static_cast<png_uint_32>(result.height);
    image.format = PNG_FORMAT_RGB;
    if (!png_image_write_to_file(&image, path, 0, result.pixels, 0, nullptr)) throw std::runtime_error(image.message);
}

void prepared(int64_t done, int64_t total, const char* component, void*) {
    if (done < total) std::fprintf(stderr, "preparing %s (%d of %d)\n", component, int(done) + 1, int(total));
}

int64_t number(const char* text) {
    char* end = nullptr;
    int64_t value = std::strtoll(text, &end, 10);
    if (end == text || *end) throw std::runtime_error(std::string("'") + text + "' is no whole number");
    return value;
}

}  // namespace

int main(int count, char** arguments) try {
    if (count < 4 || count > 6) {
        std::fprintf(stderr, "usage: %s ENGINE_DIRECTORY PROMPT FILE.png [SEED [STEPS]]\n", arguments[0]);
        return 2;
    }
    ebca::EngineParams open;
    open.path = arguments[1];
    open.on_prepare = prepared;
    ebca::Engine engine(open);
    ebca::Session session(engine);
    ebca::Text prompt(arguments[2]);
    ebca::GenerateParams make;
    make.prompt = prompt;
    int64_t seed = count > 4 ? number(arguments[4]) : 0;
    if (count > 4) {
        make.seeds = &seed;
        make.seed_count = 1;
    }
    if (count > 5) make.steps = static_cast<int32_t>(number(arguments[5]));
    make.gamma_norm = ebca::constant(0.003);
    ebca::Result result = session.generate(make);
    save_png(arguments[3], *result);
    std::printf("wrote %s (seed %lld)\n", arguments[3], static_cast<long long>(result->seeds[0]));
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "text_to_image: %s\n", error.what());
    return 1;
}
