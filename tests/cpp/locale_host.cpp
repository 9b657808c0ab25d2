// A host that sets a locale, opens an engine, and prints a digest of an image and the texts of some errors.
//
// locale_host ENGINE ONNXRUNTIME CACHE KIND NAME
// KIND: "c" (setlocale), "c++" (std::locale::global), "thread" (uselocale), "facet" (a global locale without a name
// whose numbers are grouped by the character NAME).
#include <ebca.h>
#include <locale.h>

#include <clocale>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>

namespace {

struct Grouped : std::numpunct<char> {
    explicit Grouped(char separator) : separator_(separator) {}
    char do_thousands_sep() const override { return separator_; }
    std::string do_grouping() const override { return "\3"; }

  private:
    char separator_;
};

void set_locale(const std::string& kind, const std::string& name) {
    if (kind == "c") {
        if (!std::setlocale(LC_ALL, name.c_str())) throw std::runtime_error("there is no locale " + name);
    } else if (kind == "thread") {
        locale_t made = newlocale(LC_ALL_MASK, name.c_str(), nullptr);
        if (!made) throw std::runtime_error("there is no locale " + name);
        uselocale(made);
    } else if (kind == "c++") {
        std::locale::global(std::locale(name));
    } else {
        std::locale::global(std::locale(std::locale::classic(), new Grouped(name.at(0))));
    }
}

// What the host's own streams and conversions make of numbers: the library must leave it alone.
std::string own() {
    char number[32];
    std::snprintf(number, sizeof number, "%.1f", 1.5);
    std::ostringstream out;
    out << 1234567 << ' ' << number << ' ' << std::setlocale(LC_ALL, nullptr) << ' ' << std::locale().name();
    return out.str();
}

void print_image(ebca_session* session) {
    const char* texts[] = {"a red circle"};
    ebca_generate_params params;
    ebca_generate_params_init(&params, sizeof params);
    params.prompt.texts = texts;
    params.prompt.count = 1;
    params.steps = 2;
    const int64_t seed = 7;
    params.seeds = &seed;
    params.seed_count = 1;
    ebca_result* result = nullptr;
    if (ebca_session_generate(session, &params, &result) != EBCA_OK) throw std::runtime_error(ebca_last_error());
    uint64_t digest = 14695981039346656037u;
    for (int64_t i = 0; i < int64_t{3} * result->image_count * result->height * result->width; ++i) {
        digest = (digest ^ result->pixels[i]) * 1099511628211u;
    }
    std::printf("image %llx\n", static_cast<unsigned long long>(digest));
    ebca_result_free(result);
}

}  // namespace

int main(int, char** given) try {
    // A limit with a fraction, which a decimal comma would end.
    setenv("EBCA_CACHE_LIMIT_GB", "39.5", 1);
    const std::string engine_path = given[1], library = given[2], cache = given[3];
    set_locale(given[4], given[5]);
    const std::string before = own();
    ebca_engine_params params;
    ebca_engine_params_init(&params, sizeof params);
    params.path = engine_path.c_str();
    params.onnxruntime_library = library.c_str();
    params.cache_dir = cache.c_str();
    params.threads = 1;
    ebca_engine* engine = nullptr;
    if (ebca_engine_open(&params, &engine) != EBCA_OK) throw std::runtime_error(ebca_last_error());
    ebca_session* session = nullptr;
    ebca_session_params sizes;
    ebca_session_params_init(&sizes, sizeof sizes);
    sizes.height = 1234567;
    if (ebca_session_create(engine, &sizes, &session) == EBCA_OK) throw std::runtime_error("any size is accepted");
    std::printf("error %s\n", ebca_last_error());
    // What the machine has is read from texts, and the answer has a fraction.
    ebca_session_params_init(&sizes, sizeof sizes);
    sizes.height = sizes.width = 4096;
    sizes.batch = 4096;
    if (ebca_session_create(engine, &sizes, &session) == EBCA_OK) throw std::runtime_error("any size is accepted");
    std::printf("memory %s\n", ebca_last_error());
    ebca_session_params_init(&sizes, sizeof sizes);
    if (ebca_session_create(engine, &sizes, &session) != EBCA_OK) throw std::runtime_error(ebca_last_error());
    print_image(session);
    ebca_session_free(session);
    ebca_engine_free(engine);
    if (own() != before) throw std::runtime_error("the host's numbers became " + own());
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
