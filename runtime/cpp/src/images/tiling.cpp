#include "images/tiling.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace ebca::internal {
namespace {

// A tile overlaps the one before by 1 / kParts of its side.
constexpr int64_t kParts = 4;

// Rows and columns of the planes of an array [1,C,h,w].
struct Tile {
    int64_t top, left, height, width;
};

float& at(Array& array, int64_t channel, int64_t row, int64_t column) {
    return array.values[static_cast<size_t>((channel * array.size(2) + row) * array.size(3) + column)];
}

Array cut(const Array& whole, const Tile& part) {
    Array out({1, whole.size(1), part.height, part.width});
    float* to = out.values.data();
    for (int64_t c = 0; c < whole.size(1); ++c) {
        for (int64_t y = 0; y < part.height; ++y, to += part.width) {
            const float* from = whole.values.data() + (c * whole.size(2) + part.top + y) * whole.size(3) + part.left;
            std::copy_n(from, part.width, to);
        }
    }
    return out;
}

// Blends the first rows (axis 2) or columns (axis 3) of a tile with the last ones of the tile before it.
void blend(Array& before, Array& tile, size_t axis, int64_t most) {
    int64_t count = std::min({before.size(axis), tile.size(axis), most}), across = tile.size(axis == 2 ? 3 : 2);
    for (int64_t c = 0; c < tile.size(1); ++c) {
        for (int64_t i = 0; i < count; ++i) {
            float weight = static_cast<float>(i) / static_cast<float>(count);
            int64_t last = before.size(axis) - count + i;
            for (int64_t j = 0; j < across; ++j) {
                float& to = axis == 2 ? at(tile, c, i, j) : at(tile, c, j, i);
                float from = axis == 2 ? at(before, c, last, j) : at(before, c, j, last);
                to = from * (1.0f - weight) + to * weight;
            }
        }
    }
}

// Copies the first rows and columns of a tile, up to `most` of each, to a place in `whole`.
void place(Array& tile, int64_t most, int64_t top, int64_t left, Array& whole) {
    int64_t height = std::min(tile.size(2), most), width = std::min(tile.size(3), most);
    for (int64_t c = 0; c < tile.size(1); ++c) {
        for (int64_t y = 0; y < height; ++y) std::copy_n(&at(tile, c, y, 0), width, &at(whole, c, top + y, left));
    }
}

}  // namespace

int64_t tile_side(int64_t sample_size) {
    return std::max<int64_t>(sample_size / kParts, 1) * kParts;
}

bool is_tiled(int64_t height, int64_t width, int64_t side) {
    return height > side || width > side;
}

Array in_tiles(const Array& whole, const RunTile& run, int64_t side, int64_t made) {
    int64_t stride = side - side / kParts, blended = made / kParts, kept = made - blended;
    int64_t height = whole.size(2), width = whole.size(3);
    Array out;
    std::vector<Array> above, row;
    for (int64_t top = 0, to_top = 0; top < height; top += stride, to_top += kept) {
        row.clear();
        for (int64_t left = 0; left < width; left += stride) {
            Array part = cut(whole, {top, left, std::min(side, height - top), std::min(side, width - left)});
            Array tile = run(part);
            if (out.values.empty()) out = Array({1, tile.size(1), height * made / side, width * made / side});
            if (!above.empty()) blend(above[row.size()], tile, 2, blended);
            if (!row.empty()) blend(row.back(), tile, 3, blended);
            place(tile, kept, to_top, static_cast<int64_t>(row.size()) * kept, out);
            row.push_back(std::move(tile));
        }
        std::swap(above, row);
    }
    return out;
}

}  // namespace ebca::internal
