#ifndef NOMINMAX
#define NOMINMAX
#endif
#define WIN32_LEAN_AND_MEAN
#define _WIN32_WINNT 0x0A00  // Windows 10
// The second needs the first.
// clang-format off
#include <windows.h>
#include <psapi.h>
// clang-format on

#include <locale.h>

#include <clocale>
#include <random>

#include "platform/platform.hpp"

namespace ebca::internal::platform {
namespace fs = std::filesystem;
namespace {

// FILETIME counts from 1601 in units of 100 ns.
constexpr int64_t kEpoch = 116444736000000000;
constexpr int64_t kUnitNs = 100;

std::error_code last_error() {
    return {static_cast<int>(::GetLastError()), std::system_category()};
}

class Handle {
  public:
    explicit Handle(HANDLE handle) : handle_(handle) {}
    ~Handle() {
        if (*this) ::CloseHandle(handle_);
    }
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    explicit operator bool() const { return handle_ != INVALID_HANDLE_VALUE; }
    HANDLE get() const { return handle_; }

  private:
    HANDLE handle_;
};

HANDLE opened(const fs::path& path, DWORD access, DWORD disposition, DWORD flags) {
    DWORD shared = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    return ::CreateFileW(path.c_str(), access, shared, nullptr, disposition, flags, nullptr);
}

bool is_not_there(DWORD error) {
    return error == ERROR_FILE_NOT_FOUND || error == ERROR_PATH_NOT_FOUND || error == ERROR_INVALID_NAME;
}

}  // namespace

// The thread's locale comes and goes with what setlocale changes then.
ClassicThread::ClassicThread() : before_(nullptr) {
    before_ = reinterpret_cast<void*>(static_cast<intptr_t>(::_configthreadlocale(_ENABLE_PER_THREAD_LOCALE)));
    if (const char* name = std::setlocale(LC_ALL, nullptr)) named_ = name;
    std::setlocale(LC_ALL, "C");
}

ClassicThread::~ClassicThread() {
    std::setlocale(LC_ALL, named_.c_str());
    ::_configthreadlocale(static_cast<int>(reinterpret_cast<intptr_t>(before_)));
}

fs::path to_path(std::string_view utf8) {
    return fs::u8path(utf8);
}

std::string to_utf8(const fs::path& path) {
    return path.u8string();
}

std::string variable(const char* name) {
    std::wstring wide(name, name + std::char_traits<char>::length(name));
    std::wstring value(::GetEnvironmentVariableW(wide.c_str(), nullptr, 0), L'\0');
    if (value.empty()) return {};
    value.resize(::GetEnvironmentVariableW(wide.c_str(), value.data(), static_cast<DWORD>(value.size())));
    return to_utf8(value);
}

fs::path user_cache() {
    std::string local = variable("LOCALAPPDATA");
    return local.empty() ? fs::path() : to_path(local) / "ebca" / "ebca" / "Cache";
}

std::vector<std::string> onnxruntime_names() {
    return {"onnxruntime.dll"};
}

const char* openvino_name() {
    return "openvino_c.dll";
}

const char* cuda_driver_name() {
    return "nvcuda.dll";
}

void* load(const fs::path& file, Symbols, std::string& reason) {
    // A library that is named by its path finds those that lie beside it.
    DWORD flags = file.is_absolute() ? LOAD_WITH_ALTERED_SEARCH_PATH : 0;
    HMODULE library = ::LoadLibraryExW(file.c_str(), nullptr, flags);
    if (!library) reason = to_utf8(file) + ": " + last_error().message();
    return reinterpret_cast<void*>(library);
}

void* find_symbol(void* library, const char* name) {
    return reinterpret_cast<void*>(::GetProcAddress(reinterpret_cast<HMODULE>(library), name));
}

fs::path own_file() {
    HMODULE library = nullptr;
    DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    // Any address in this library will do.
    if (!::GetModuleHandleExW(flags, reinterpret_cast<LPCWSTR>(&own_file), &library)) return {};
    std::wstring name(32768, L'\0');
    name.resize(::GetModuleFileNameW(library, name.data(), static_cast<DWORD>(name.size())));
    return name;
}

FileFacts facts_of(const fs::path& path) {
    FileFacts found;
    Handle file(opened(path, FILE_READ_ATTRIBUTES, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS));
    if (!file) {
        found.failure = last_error();
        bool link = ::GetFileAttributesW(path.c_str()) != INVALID_FILE_ATTRIBUTES;
        bool gone = is_not_there(static_cast<DWORD>(found.failure.value()));
        found.kind = !gone ? FileKind::denied : link ? FileKind::dangling : FileKind::missing;
        return found;
    }
    DWORD type = ::GetFileType(file.get());
    BY_HANDLE_FILE_INFORMATION info{};
    if (type != FILE_TYPE_DISK || !::GetFileInformationByHandle(file.get(), &info)) {
        found.kind = type == FILE_TYPE_PIPE ? FileKind::pipe : FileKind::device;
        return found;
    }
    found.kind = info.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? FileKind::folder : FileKind::regular;
    found.size = static_cast<int64_t>(info.nFileSizeHigh) << 32 | info.nFileSizeLow;
    int64_t time = static_cast<int64_t>(info.ftLastWriteTime.dwHighDateTime) << 32 | info.ftLastWriteTime.dwLowDateTime;
    found.mtime_ns = (time - kEpoch) * kUnitNs;
    return found;
}

std::vector<fs::path> entries_of(const fs::path& folder) {
    std::vector<fs::path> out;
    std::error_code failure;
    for (const auto& entry : fs::directory_iterator(folder, failure)) out.push_back(entry.path());
    return out;
}

bool is_own_folder(const fs::path& path) {
    // Folders for temporary files belong to one user here.
    DWORD attributes = ::GetFileAttributesW(path.c_str());
    return attributes != INVALID_FILE_ATTRIBUTES && attributes & FILE_ATTRIBUTE_DIRECTORY &&
           !(attributes & FILE_ATTRIBUTE_REPARSE_POINT);
}

fs::path make_folder(const fs::path& prefix) {
    static constexpr char kLetters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    std::random_device random;
    for (int tries = 0; tries < 100; ++tries) {
        fs::path folder = prefix;
        for (int i = 0; i < 8; ++i) folder += kLetters[random() % (sizeof kLetters - 1)];
        // It inherits the access rights of the folder that it is in.
        if (fs::create_directory(folder)) return folder;
    }
    throw fs::filesystem_error("cannot make a folder", prefix, std::make_error_code(std::errc::file_exists));
}

std::error_code write_through(const fs::path& path, std::string_view bytes) {
    Handle file(opened(path, GENERIC_WRITE, CREATE_ALWAYS, FILE_ATTRIBUTE_NORMAL));
    if (!file) return last_error();
    DWORD written = 0;
    if (!::WriteFile(file.get(), bytes.data(), static_cast<DWORD>(bytes.size()), &written, nullptr))
        return last_error();
    if (written != bytes.size()) return std::make_error_code(std::errc::no_space_on_device);
    return ::FlushFileBuffers(file.get()) ? std::error_code() : last_error();
}

int64_t process_id() {
    return ::GetCurrentProcessId();
}

OpenFile::OpenFile(const fs::path& path)
    : handle_(
          reinterpret_cast<intptr_t>(opened(path, GENERIC_READ | GENERIC_WRITE, OPEN_ALWAYS, FILE_ATTRIBUTE_NORMAL))) {
    if (handle_ == -1) throw fs::filesystem_error("cannot lock", path, last_error());
}

OpenFile::~OpenFile() {
    if (handle_ != -1) ::CloseHandle(reinterpret_cast<HANDLE>(handle_));
}

bool OpenFile::lock() {
    OVERLAPPED begin{};
    DWORD flags = LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY;
    return ::LockFileEx(reinterpret_cast<HANDLE>(handle_), flags, 0, 1, 0, &begin) ||
           ::GetLastError() != ERROR_LOCK_VIOLATION;
}

// The system trims mapped pages that a process does not use.
void forget(const std::vector<fs::path>&) {}

void trim_heap() {}

std::shared_mutex& mappings() {
    static std::shared_mutex lock;
    return lock;
}

int64_t machine_bytes() {
    MEMORYSTATUSEX machine{};
    machine.dwLength = sizeof machine;
    return ::GlobalMemoryStatusEx(&machine) ? static_cast<int64_t>(machine.ullTotalPhys) : 0;
}

int64_t available_bytes() {
    MEMORYSTATUSEX machine{};
    machine.dwLength = sizeof machine;
    if (!::GlobalMemoryStatusEx(&machine)) return INT64_MAX;
    PROCESS_MEMORY_COUNTERS own{};
    ::K32GetProcessMemoryInfo(::GetCurrentProcess(), &own, sizeof own);
    // Memory and page file that nobody has been promised.
    return static_cast<int64_t>(machine.ullAvailPageFile) + static_cast<int64_t>(own.PagefileUsage);
}

std::string processor() {
    return variable("PROCESSOR_ARCHITECTURE") + " " + variable("PROCESSOR_IDENTIFIER");
}

std::string processor_model() {
    return variable("PROCESSOR_IDENTIFIER");
}

int physical_cores() {
    DWORD bytes = 0;
    ::GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &bytes);
    std::vector<char> records(bytes);
    auto* first = reinterpret_cast<SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data());
    if (!bytes || !::GetLogicalProcessorInformationEx(RelationProcessorCore, first, &bytes)) return 1;
    int cores = 0;
    // One record for each core.
    for (DWORD at = 0; at < bytes; ++cores) {
        at += reinterpret_cast<const SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX*>(records.data() + at)->Size;
    }
    return cores;
}

}  // namespace ebca::internal::platform
