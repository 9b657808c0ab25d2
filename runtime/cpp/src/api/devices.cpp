// The functions of ebca.h that list devices.
#include <algorithm>
#include <cstring>

#include "api/guard.hpp"
#include "api/structs.hpp"
#include "contract/utf8.hpp"
#include "devices/device_list.hpp"
#include "ebca.h"

namespace ebca::internal {
namespace {

// As UTF-8, cut between characters.
template <size_t room>
void copy(const std::string& given, char (&target)[room]) {
    const std::string from = readable(given);
    size_t end = 0;
    for (size_t next = 0; next < from.size() && next < room;) {
        next += std::max<size_t>(utf8_at(from, next).length, 1);
        if (next < room) end = next;
    }
    std::memcpy(target, from.data(), end);
    target[end] = 0;
}

}  // namespace

extern "C" {

EBCA_API ebca_status ebca_device_count(size_t* count) {
    if (count) *count = 0;
    return guarded([&] {
        if (!count) throw rules::target_null("count");
        *count = list_devices().size();
    });
}

EBCA_API ebca_status ebca_device_get_info(size_t index, ebca_device_info* info) {
    return guarded([&] {
        size_t size = checked(needed<ebca_device_info>(info, "ebca_device_info"), "ebca_device_info").struct_size;
        const std::vector<DeviceInfo> devices = list_devices();
        if (index >= devices.size()) throw rules::device_index(index, devices.size());
        const DeviceInfo& found = devices[index];
        ebca_device_info out{};
        out.struct_size = size;
        copy(found.device, out.device);
        copy(found.name, out.name);
        out.memory_bytes = found.bytes;
        out.capability_major = found.capability.first;
        out.capability_minor = found.capability.second;
        std::memcpy(info, &out, size);
    });
}
}
}  // namespace ebca::internal
