// Images in tiles, for a VAE that would need too much memory for a whole one; runtime/tiling.py is the same in Python.
//
// Tiles overlap by a quarter, and their edges are blended linearly. Each tile is decoded without a view of the others,
// so colours may differ slightly from tile to tile.
#pragma once

#include <cstdint>
#include <functional>

#include "contract/tensor.hpp"

namespace ebca::internal {

// Height and width of a tile in latents: those that the model was trained at, as whole quarters.
int64_t tile_side(int64_t sample_size);

// Whether an image of this size has more than one tile.
bool is_tiled(int64_t height, int64_t width, int64_t side);

// A tile [1,C,h,w] to its result [1,K,H,W].
using RunTile = std::function<Array(Array& tile)>;

// The result [1,K,h made/side,w made/side] of a whole array [1,C,h,w], from those of its tiles. side: of a tile, a
// multiple of 4; made: that of its result, likewise.
Array in_tiles(const Array& whole, const RunTile& run, int64_t side, int64_t made);

}  // namespace ebca::internal
