// Runs a target without libFuzzer: replays inputs, and mutates them for a given time.
//
//     fuzz_manifest [-seconds=N] FILE_OR_FOLDER...
//
// Mutations come from a fixed seed, so a run that fails fails again. The input that fails is left in failed-input.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// Of a sanitizer, if one is linked.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

using Bytes = std::string;

constexpr size_t kLargest = 1 << 16;

// A callback has no arguments.
Bytes running;

void keep_input() {
    std::ofstream("failed-input", std::ios::binary) << running;
}

void run(const Bytes& input) {
    running = input;
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(running.data()), running.size());
}

class Mutator {
  public:
    explicit Mutator(std::vector<Bytes> inputs) : inputs_(std::move(inputs)) {}

    Bytes next() {
        Bytes out = inputs_[below(inputs_.size())];
        for (size_t count = 1 + below(6); count > 0; --count) change(out);
        out.resize(std::min(out.size(), kLargest));
        return out;
    }

  private:
    size_t below(size_t bound) { return static_cast<size_t>(random_()) % bound; }

    void change(Bytes& bytes) {
        static const char* const kPieces[] = {"0",     "-1",       "9223372036854775808",
                                              "1e308", "1e-320",   "null",
                                              "true",  "\"\"",     "[]",
                                              "{}",    "\"..\"",   "\\u0000",
                                              "batch", "width_6",  "height_1*width_1",
                                              "\xff",  "\xcc\x81", "</w>"};
        size_t at = below(bytes.size() + 1), length = below(std::min<size_t>(bytes.size() - at, 64) + 1);
        switch (below(6)) {
            case 0:
                if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
                return;
            case 1:
                if (at < bytes.size()) bytes[at] = static_cast<char>(random_());
                return;
            case 2:
                bytes.erase(at, length);
                return;
            case 3:
                bytes.insert(below(bytes.size() + 1), bytes.substr(at, length));
                return;
            case 4:
                bytes.replace(at, length, kPieces[below(std::size(kPieces))]);
                return;
            default: {
                const Bytes& other = inputs_[below(inputs_.size())];
                size_t from = below(other.size() + 1);
                bytes.replace(at, length, other, from, below(65));
            }
        }
    }

    std::vector<Bytes> inputs_;
    std::mt19937_64 random_{1};
};

}  // namespace

int main(int count, char** arguments) {
    namespace fs = std::filesystem;
    int seconds = 0;
    std::vector<Bytes> inputs;
    auto read = [&](const fs::path& path) {
        std::ifstream file(path, std::ios::binary);
        inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    };
    for (int i = 1; i < count; ++i) {
        if (std::strncmp(arguments[i], "-seconds=", 9) == 0) {
            seconds = std::atoi(arguments[i] + 9);
        } else if (fs::is_directory(arguments[i])) {
            for (const auto& entry : fs::directory_iterator(arguments[i])) read(entry.path());
        } else {
            read(arguments[i]);
        }
    }
    if (inputs.empty()) inputs.emplace_back();
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(keep_input);
    for (const Bytes& input : inputs) run(input);
    size_t runs = inputs.size();
    Mutator mutator(inputs);
    auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    for (; std::chrono::steady_clock::now() < end; ++runs) run(mutator.next());
    std::printf("%zu inputs\n", runs);
}
