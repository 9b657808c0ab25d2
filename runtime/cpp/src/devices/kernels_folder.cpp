#include "devices/kernel_set.hpp"
#include "error.hpp"
#include "platform/platform.hpp"

namespace ebca::internal {

std::filesystem::path kernels_folder(const std::string& named) {
    // Kernels are read when they are first needed: the host may be in another folder by then.
    if (!named.empty()) return std::filesystem::absolute(platform::to_path(named));
    if (std::string chosen = platform::variable("EBCA_KERNELS_DIR"); !chosen.empty()) {
        return std::filesystem::absolute(platform::to_path(chosen));
    }
    if (std::filesystem::path file = platform::own_file(); !file.empty()) {
        std::filesystem::path at = file.parent_path();
        // The library is in lib, lib64 or lib/x86_64-linux-gnu of the prefix.
        for (int up = 0; up < 2; ++up) {
            at = at.parent_path();
            std::filesystem::path folder = at / "share" / "ebca" / "kernels";
            if (std::filesystem::is_regular_file(folder / "manifest.json")) return folder;
        }
    }
    throw BackendError("the GPU kernels are not beside the installed library",
                       "name their folder in the parameters or in EBCA_KERNELS_DIR");
}

}  // namespace ebca::internal
