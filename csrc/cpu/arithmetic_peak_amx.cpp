#include <immintrin.h>

#include "cpu/arithmetic_peak_kernel.hpp"
#include "cpu/tile_configuration.hpp"

namespace pycodec {
namespace {

// Four register tiles of sums, as in the convolution.
void run_burst(int rounds) {
  // Static: GCC's intrinsic says that it reads a pointer, so stores to a local could be left out.
  static const TileConfiguration configuration;
  _tile_loadconfig(&configuration);
  for (int round = 0; round < rounds; ++round) {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
}

}  // namespace

const PeakBurst kInt8TilesPeakAmx = {run_burst, 4.0 * kTileRows * kTileRows * kTileBytes};

}  // namespace pycodec
