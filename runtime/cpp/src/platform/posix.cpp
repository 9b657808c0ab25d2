#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <locale.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <xlocale.h>
#endif

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <new>

#include "platform/platform.hpp"

namespace ebca::internal::platform {
namespace fs = std::filesystem;
namespace {

std::error_code last_error() {
    return {errno, std::generic_category()};
}

int64_t modified_ns(const struct stat& info) {
#if defined(__APPLE__)
    return int64_t{info.st_mtimespec.tv_sec} * 1000000000 + info.st_mtimespec.tv_nsec;
#else
    return int64_t{info.st_mtim.tv_sec} * 1000000000 + info.st_mtim.tv_nsec;
#endif
}

FileKind kind_of(const struct stat& info) {
    if (S_ISREG(info.st_mode)) return FileKind::regular;
    if (S_ISDIR(info.st_mode)) return FileKind::folder;
    return S_ISFIFO(info.st_mode) ? FileKind::pipe : FileKind::device;
}

// Kept until the process ends: a thread may be using it.
locale_t classic() {
    static const locale_t made = ::newlocale(LC_ALL_MASK, "C", nullptr);
    if (!made) throw std::bad_alloc();
    return made;
}

}  // namespace

ClassicThread::ClassicThread() : before_(::uselocale(classic())) {}

ClassicThread::~ClassicThread() {
    ::uselocale(static_cast<locale_t>(before_));
}

fs::path to_path(std::string_view utf8) {
    return fs::path(utf8);
}

std::string to_utf8(const fs::path& path) {
    return path.string();
}

std::string variable(const char* name) {
    const char* found = std::getenv(name);
    return found ? found : "";
}

void* load(const fs::path& file, Symbols symbols, std::string& reason) {
    int visible = symbols == Symbols::shared ? RTLD_GLOBAL : RTLD_LOCAL;
    void* library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_NODELETE | visible);
    if (!library) {
        const char* said = ::dlerror();
        reason = said ? said : file.string();
    }
    return library;
}

void* find_symbol(void* library, const char* name) {
    return ::dlsym(library, name);
}

fs::path own_file() {
    Dl_info found{};
    // Any address in this library will do.
    if (!::dladdr(reinterpret_cast<void*>(&own_file), &found) || !found.dli_fname) return {};
    std::error_code failure;
    fs::path file = fs::absolute(found.dli_fname, failure);
    return failure ? fs::path() : file;
}

FileFacts facts_of(const fs::path& path) {
    struct stat info {};
    if (::stat(path.c_str(), &info) == 0) return {kind_of(info), info.st_size, modified_ns(info), {}};
    FileFacts none;
    none.failure = last_error();
    if (errno == EACCES) {
        none.kind = FileKind::denied;
    } else if (::lstat(path.c_str(), &info) == 0) {
        none.kind = FileKind::dangling;
    }
    return none;
}

std::vector<fs::path> entries_of(const fs::path& folder) {
    struct Close {
        void operator()(DIR* opened) const { ::closedir(opened); }
    };
    std::vector<fs::path> out;
    errno = 0;
    std::unique_ptr<DIR, Close> opened(::opendir(folder.c_str()));
    if (!opened && errno == ENOMEM) throw std::bad_alloc();
    while (const dirent* entry = opened ? ::readdir(opened.get()) : nullptr) {
        const std::string_view name(entry->d_name);
        if (name != "." && name != "..") out.push_back(folder / name);
    }
    return out;
}

bool is_own_folder(const fs::path& path) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode) && info.st_uid == ::geteuid();
}

fs::path make_folder(const fs::path& prefix) {
    std::string pattern = prefix.string() + "XXXXXX";
    if (!::mkdtemp(pattern.data())) throw fs::filesystem_error("cannot make a folder", prefix, last_error());
    return pattern;
}

std::error_code write_through(const fs::path& file, std::string_view bytes) {
    int handle = ::open(file.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (handle < 0) return last_error();
    errno = 0;
    bool written = ::write(handle, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
    written = written && ::fsync(handle) == 0;
    // A short write sets no error.
    std::error_code failure(written ? 0 : errno ? errno : ENOSPC, std::generic_category());
    ::close(handle);
    return failure;
}

int64_t process_id() {
    return ::getpid();
}

OpenFile::OpenFile(const fs::path& file) : handle_(::open(file.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666)) {
    if (handle_ < 0) throw fs::filesystem_error("cannot lock", file, last_error());
}

OpenFile::~OpenFile() {
    if (handle_ >= 0) ::close(static_cast<int>(handle_));
}

bool OpenFile::lock() {
    return ::flock(static_cast<int>(handle_), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

}  // namespace ebca::internal::platform
