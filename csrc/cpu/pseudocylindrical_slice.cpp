#include "cpu/pseudocylindrical_slice.hpp"

#include <algorithm>
#include <stdexcept>

#include "cpu/aligned_buffer.hpp"
#include "cpu/parallel.hpp"
#include "cpu/pseudocylindrical_slice_kernel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

const ResampleKernel& kernel_for(SimdLevel level) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAmx:
    case SimdLevel::kAvx512Vnni:
      return kResampleKernelAvx512Vnni;
    case SimdLevel::kAvx2:
      return kResampleKernelAvx2;
#endif
    default:
      return kResampleKernelScalar;
  }
}

void check(const ResampleShape& s, const ResampleTables& t) {
  if (s.pictures < 0 || s.channels < 0 || s.tiles < 1 || s.height < 1 || s.width < 1) {
    throw std::invalid_argument("a picture needs tiles with pixels, and no size below 0");
  }
  for (std::int64_t tile = 0; tile < s.tiles; ++tile) {
    if (t.table[tile] < 0 || t.table[tile] >= t.maps) {
      throw std::invalid_argument("a tile's map is out of range");
    }
  }
  for (std::int64_t m = 0; m < t.maps; ++m) {
    const std::int32_t source = t.sizes[3 * m], target = t.sizes[3 * m + 1];
    const std::int32_t taps = t.sizes[3 * m + 2];
    if (source < 1 || source > s.width || target < 1 || target > s.width || taps < 0 ||
        taps > t.most_taps) {
      throw std::invalid_argument("a map's sizes are out of range");
    }
    const std::int32_t* first = t.first + m * s.width;
    if (std::any_of(first, first + target, [&](auto f) { return f < 0 || f >= source; })) {
      throw std::invalid_argument("a map's columns are out of range");
    }
  }
}

void run(const ResampleKernel& kernel, const ResampleRows<float>& rows, const float* in,
         float* out) {
  kernel.run_float(rows, in, out);
}

void run(const ResampleKernel& kernel, const ResampleRows<double>& rows, const double* in,
         double* out) {
  kernel.run_double(rows, in, out);
}

template <class Element>
void resample(const ResampleShape& s, const ResampleTables& t, const Element* x, Element* out,
              int threads) {
  using Sum = Accumulator<Element>;
  constexpr std::int64_t kLanes = kResampleBytes / sizeof(Sum);
  const ResampleKernel& kernel = kernel_for(simd_level());
  const std::int64_t rows_of_tile = s.channels * s.height;
  const std::int64_t groups = (rows_of_tile + kLanes - 1) / kLanes;
  parallel_for(s.pictures * s.tiles * groups, threads, [&](std::int64_t task) {
    const std::int64_t number = task / groups;  // of the tile, in the batch
    const std::int64_t picture = number / s.tiles, tile = number % s.tiles;
    const std::int64_t begin = task % groups * kLanes;
    const std::int64_t count = std::min(kLanes, rows_of_tile - begin);
    const std::int64_t map = t.table[tile];
    const std::int32_t* sizes = t.sizes + 3 * map;
    const ResampleRows<Sum> rows = {
        sizes[0],
        sizes[1],
        sizes[2],
        s.width,
        t.first + map * s.width,
        static_cast<const Sum*>(t.weights) + map * t.most_taps * s.width};
    const std::size_t bytes = static_cast<std::size_t>(s.width) * kResampleBytes;
    AlignedBuffer in_buffer(bytes), out_buffer(bytes);
    auto* in = reinterpret_cast<Sum*>(in_buffer.data());
    auto* result = reinterpret_cast<Sum*>(out_buffer.data());
    const auto element = [&](std::int64_t lane, bool in_tiles) {
      const std::int64_t channel = (begin + lane) / s.height, row = (begin + lane) % s.height;
      const std::int64_t plane = in_tiles ? number * s.channels + channel
                                          : (picture * s.channels + channel) * s.tiles + tile;
      return (plane * s.height + row) * s.width;
    };
    std::fill_n(in, rows.source * kLanes, Sum{0});
    for (std::int64_t lane = 0; lane < count; ++lane) {
      const Element* from = x + element(lane, !s.to_tiles);
      for (std::int64_t i = 0; i < rows.source; ++i) {
        in[i * kLanes + lane] = static_cast<Sum>(from[i]);
      }
    }
    run(kernel, rows, in, result);
    for (std::int64_t lane = 0; lane < count; ++lane) {
      Element* to = out + element(lane, s.to_tiles);
      for (std::int64_t i = 0; i < rows.target; ++i) {
        to[i] = static_cast<Element>(result[i * kLanes + lane]);
      }
      std::fill(to + rows.target, to + s.width, static_cast<Element>(Sum{0}));
    }
  });
}

}  // namespace

void pseudocylindrical_resample(const ResampleShape& s, const ResampleTables& t, const void* x,
                                void* out, int threads) {
  check(s, t);
  with_float(s.type, [&](auto element) {
    using Element = decltype(element);
    resample(s, t, static_cast<const Element*>(x), static_cast<Element*>(out), threads);
  });
}

}  // namespace pycodec
