#include "cache/files.hpp"

#include <chrono>
#include <fstream>
#include <system_error>
#include <thread>

#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {
namespace fs = std::filesystem;

int64_t seconds_now() {
    auto since = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::seconds>(since).count();
}

void make_way(const fs::path& file) {
    fs::file_status found = fs::symlink_status(file);
    if (fs::exists(found) && !fs::is_regular_file(found)) fs::remove_all(file);
}

void write_atomically(const fs::path& path, const std::string& contents) {
    fs::path temporary = path;
    temporary += text(".", platform::process_id(), ".", std::this_thread::get_id(), ".tmp");
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << contents;
    file.close();
    if (!file) {
        std::error_code ignored;
        fs::remove(temporary, ignored);
        throw fs::filesystem_error("cannot write", path, std::make_error_code(std::errc::io_error));
    }
    make_way(path);
    fs::rename(temporary, path);
}

}  // namespace ebca::internal
