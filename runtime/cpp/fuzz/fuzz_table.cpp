// The reader of scheduler tables on untrusted files: it may throw only ebca::Error, and what it accepts can be sampled
// with. run.sh builds it.
//
// An input is a header of eight bytes (steps, evaluations - 1, start of image to image, offset in values as two bytes,
// bytes that the manifest announces beyond the file's own as two, one unused), and the file.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "error.hpp"
#include "sampling/schedulers.hpp"

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

void sample_with(const ebca::SchedulerTable& table) {
    const ebca::Shape shape{1, 1, 1, 2};
    ebca::Scheduler scheduler(table, shape);
    ebca::Array begin = scheduler.start(ebca::Array(shape, 1.0f)), current = begin, input(shape);
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
    int64_t steps = data[0], begin = data[2], offset = data[3] | data[4] << 8, beyond = data[5] | data[6] << 8;
    file.write(data + kHeader, size - kHeader);
    ebca::EngineDirectory directory;
    directory.path = "/proc/self/fd";
    directory.manifest.files[file.name()] = {static_cast<int64_t>(size - kHeader) + beyond, ""};
    ebca::SchedulerSection& section = directory.manifest.schedulers;
    section.alphas_cumprod = file.name();
    section.train_timesteps = 1 + data[2];
    section.tables["ddim"] = {file.name(), 1, {{steps, {offset, 1 + data[1]}}}};
    try {
        ebca::SchedulerTable table = ebca::load_table(directory, "DDIM", steps);
        sample_with(table);
        ebca::SchedulerTable rest = table.after(begin);
        sample_with(rest);
        const ebca::Shape shape{1, 1, 1, 2};
        rest.add_noise(ebca::Array(shape), ebca::Array(shape, 1.0f), ebca::load_alphas_cumprod(directory));
    } catch (const ebca::Error&) {
    }
    return 0;
}
