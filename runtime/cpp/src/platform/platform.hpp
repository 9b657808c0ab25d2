// What differs between operating systems, and nothing else: posix.cpp with linux.cpp or macos.cpp, or windows.cpp.
//
// Texts of this library are UTF-8 on every system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

namespace ebca::internal::platform {

// ---- numbers

#if defined(_WIN32)
constexpr bool kLittleEndian = true;
#else
constexpr bool kLittleEndian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
#endif

// ---- texts

std::filesystem::path to_path(std::string_view utf8);
std::string to_utf8(const std::filesystem::path& path);

// A variable of the environment; empty if it is not set.
std::string variable(const char* name);

// Where this user's cache of this library belongs, as Python's platformdirs has it; empty if nothing says it.
std::filesystem::path user_cache();

// While it lives, strtod, printf and the like follow the C locale on this thread, and on no other.
class ClassicThread {
  public:
    ClassicThread();
    ~ClassicThread();
    ClassicThread(const ClassicThread&) = delete;
    ClassicThread& operator=(const ClassicThread&) = delete;

  private:
    void* before_;       // the thread's locale, where the system has an object for it
    std::string named_;  // its name, where it has not
};

// ---- shared libraries

// File names by which the loader finds them, the first choice first.
std::vector<std::string> onnxruntime_names();
const char* openvino_name();
const char* cuda_driver_name();

enum class Symbols { own, shared };

// Null, and the reason, if it cannot be loaded. It is never closed. Shared symbols serve libraries that are loaded
// later.
void* load(const std::filesystem::path& file, Symbols symbols, std::string& reason);
void* find_symbol(void* library, const char* name);

// The file that holds this code; empty if it is not known.
std::filesystem::path own_file();

// ---- files

enum class FileKind { missing, dangling, denied, regular, folder, pipe, device };

struct FileFacts {
    FileKind kind = FileKind::missing;
    int64_t size = -1;
    int64_t mtime_ns = 0;  // as Python's os.stat has it
    std::error_code failure;
};

// Of the file that a link leads to.
FileFacts facts_of(const std::filesystem::path& path);

// What is in a folder; nothing if it cannot be read. (The iterators of libstdc++ end the process where memory ends.)
std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder);

// Whether it is a folder, no link to one, and belongs to this user.
bool is_own_folder(const std::filesystem::path& path);

// A new folder that only this user can enter, whose name begins with `prefix`. filesystem_error if there cannot be one.
std::filesystem::path make_folder(const std::filesystem::path& prefix);

// Writes a new file down to the disk, and says what failed.
std::error_code write_through(const std::filesystem::path& file, std::string_view bytes);

int64_t process_id();

// A file that is open and may be locked. The system unlocks it when the process ends, however it ends.
class OpenFile {
  public:
    // The file is made if it is missing. filesystem_error if it cannot be.
    explicit OpenFile(const std::filesystem::path& file);
    OpenFile(OpenFile&& other) noexcept : handle_(other.handle_) { other.handle_ = -1; }
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;
    ~OpenFile();

    // Whether it is locked now by this object, or cannot be locked on this file system; does not wait.
    bool lock();

  private:
    intptr_t handle_;
};

// ---- memory

// Drop the resident pages of every unchanged mapping of these files. The kernel reads a page from the file again when
// it is touched, so this changes memory and time, never a value. Does nothing where the system has no such call.
void forget(const std::vector<std::filesystem::path>& files);

// Give back what the C library keeps of freed memory: ONNX Runtime packs every weight again when a component is opened,
// and frees the result where the prepared file has it. Does nothing where the system has no such call.
void trim_heap();

// Held (shared) while such files are mapped or unmapped. `forget` works on addresses: if a file were unmapped
// meanwhile, they could belong to the heap by then, and dropping those pages would zero it. One per process, as
// addresses are.
std::shared_mutex& mappings();

// Host memory that this process can have for one call at most: what the machine has available, within the limits of the
// process and of its container, and what the process itself holds. INT64_MAX if it is unknown.
int64_t available_bytes();

// Of this machine, whatever the limits; 0 if it does not say.
int64_t machine_bytes();

// ---- processor

// Its model and instruction sets, spelled as engines/machine/processor.py spells them: prepared weights depend on it.
std::string processor();

// Its model alone; empty if the machine does not say.
std::string processor_model();

// Physical cores of this machine, at least 1.
int physical_cores();

}  // namespace ebca::internal::platform
