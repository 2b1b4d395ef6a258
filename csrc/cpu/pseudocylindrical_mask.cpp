#include "cpu/pseudocylindrical_mask.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cpu/parallel.hpp"

namespace pycodec {
namespace {

constexpr std::int64_t kTaskBytes = 256 * 1024;

}  // namespace

void pseudocylindrical_mask(std::int64_t batch, std::int64_t rows, std::int64_t columns,
                            std::int64_t pixel_bytes, const std::vector<std::int64_t>& widths,
                            const std::uint8_t* x, std::uint8_t* out, int threads) {
  const auto tiles = static_cast<std::int64_t>(widths.size());
  if (tiles == 0 || batch % tiles != 0) {
    throw std::invalid_argument("the batch must be a multiple of the number of tiles");
  }
  for (const std::int64_t width : widths) {
    if (width < 1 || width > columns) throw std::invalid_argument("a width is out of range");
  }
  const std::int64_t row_bytes = columns * pixel_bytes;
  const std::int64_t all_rows = batch * rows;
  if (row_bytes == 0) return;
  const std::int64_t rows_of_task = std::max<std::int64_t>(kTaskBytes / row_bytes, 1);
  parallel_for((all_rows + rows_of_task - 1) / rows_of_task, threads, [&](std::int64_t task) {
    const std::int64_t begin = task * rows_of_task, end = std::min(begin + rows_of_task, all_rows);
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t kept = widths[row / rows % tiles] * pixel_bytes;
      std::memcpy(out + row * row_bytes, x + row * row_bytes, static_cast<std::size_t>(kept));
      std::memset(out + row * row_bytes + kept, 0, static_cast<std::size_t>(row_bytes - kept));
    }
  });
}

}  // namespace pycodec
