// Portable: 16 outputs at a time, in a form that compilers vectorize for SSE2 and NEON.
#include "cpu/int16_conv2d_kernel.hpp"

namespace pycodec {

void run_int16_scalar(const Int16Chunk& chunk, const Int16Tile& tile) {
  for (int p = 0; p < tile.positions; ++p) {
    for (int v = 0; v < chunk.vectors; ++v) {
      // Unsigned sums wrap modulo 2^32, as the definition says; signed ones would be undefined.
      std::uint32_t acc[kInt16Lanes];
      for (int lane = 0; lane < kInt16Lanes; ++lane) {
        acc[lane] = static_cast<std::uint32_t>(chunk.bias[v * kInt16Lanes + lane]);
      }
      const std::int16_t* w = chunk.weights + v * 2 * kInt16Lanes;
      for (int tap = 0; tap < chunk.num_taps; ++tap) {
        const std::int16_t* x = tile.x[p] + chunk.taps[tap];
        for (int pair = 0; pair < chunk.pairs; ++pair, w += chunk.vectors * 2 * kInt16Lanes) {
          const std::int32_t x0 = x[2 * pair];
          const std::int32_t x1 = x[2 * pair + 1];
          for (int lane = 0; lane < kInt16Lanes; ++lane) {
            acc[lane] += static_cast<std::uint32_t>(w[2 * lane] * x0);
            acc[lane] += static_cast<std::uint32_t>(w[2 * lane + 1] * x1);
          }
        }
      }
      std::int32_t sums[kInt16Lanes];
      for (int lane = 0; lane < kInt16Lanes; ++lane)
        sums[lane] = static_cast<std::int32_t>(acc[lane]);
      store_int16_lanes(chunk, tile, p, v * kInt16Lanes, sums);
    }
  }
}

}  // namespace pycodec
