// The reader of scheduler tables on untrusted files: it may throw only this library's errors, and what it accepts can
// be sampled with. run.sh builds it.
//
// An input is a header of eight bytes, and the file. The header: steps; evaluations - 1; start of image to image; how
// many latents and noise predictions a step looks back at, both - 1; whether the manifest announces the file's own size
// (0: the size that its records need); steps and evaluations - 1 of one more record (0 steps: none).

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "error.hpp"
#include "sampling/schedulers.hpp"

using namespace ebca::internal;

namespace {

constexpr size_t kHeader = 8;

// A file in memory, to keep disks out of the measurement.
class File {
  public:
    File() : handle_(memfd_create("table", 0)) {}
    std::string name() const { return std::to_string(handle_); }
    void write(const uint8_t* data, size_t size) const {
        if (ftruncate(handle_, 0) != 0 || pwrite(handle_, data, size, 0) != static_cast<ssize_t>(size))
            __builtin_trap();
    }

  private:
    int handle_;
};

void sample_with(const SchedulerTable& table) {
    const Shape shape{1, 1, 1, 2};
    Scheduler scheduler(table, shape);
    Array begin = scheduler.start(Array(shape, 1.0f)), current = begin, input(shape);
    for (int64_t i = 0; i < table.evaluations(); ++i) {
        scheduler.model_input(i, current, input);
        scheduler.noise(i) = input;
        scheduler.combine(i, begin, current);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const File file;
    if (size < kHeader) return 0;
    int64_t steps = data[0], begin = data[2];
    file.write(data + kHeader, size - kHeader);
    EngineDirectory directory;
    directory.path = "/proc/self/fd";
    TableSpec table;
    table.file = file.name();
    table.latents = 1 + data[3] % 8;
    table.noises = 1 + data[4] % 16;
    table.steps[steps] = 1 + data[1];
    if (data[6] > 0) table.steps[data[6]] = 1 + data[7];
    auto announced = static_cast<int64_t>(size - kHeader);
    if (data[5] == 0) {
        announced = 0;
        for (const auto& [count, evaluations] : table.steps) announced += 8 * table.values(evaluations);
    }
    directory.manifest.files[file.name()] = {announced, ""};
    SchedulerSection& section = directory.manifest.schedulers;
    section.alphas_cumprod = file.name();
    section.train_timesteps = announced / 8;
    section.tables["ddim"] = table;
    try {
        SchedulerTable loaded = load_table(directory, "DDIM", steps);
        sample_with(loaded);
        SchedulerTable rest = loaded.after(begin);
        sample_with(rest);
        const Shape shape{1, 1, 1, 2};
        rest.add_noise(Array(shape), Array(shape, 1.0f), load_alphas_cumprod(directory));
    } catch (const Error&) {
    }
    return 0;
}
