// The wave engine's kernels on the host: the very code that the GPU runs, a thread of the host for
// each warp, which all meet at the grid's barriers. With csrc/bindings/cuda_wave_network.cpp it
// makes a module with these functions of pycodec._cuda, which take addresses of host memory.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../coding/host_warp.hpp"
#include "bindings/cuda_module.hpp"
#include "cuda/wave_network.hpp"
#include "cuda/wave_network_grid.hpp"

namespace pycodec::cuda {
namespace {

int resident_blocks = 1;

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const std::int64_t round = round_;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++round_;
      all_.notify_all();
      return;
    }
    all_.wait(lock, [&] { return round_ != round; });
  }

 private:
  const int threads_;
  int arrived_ = 0;
  std::int64_t round_ = 0;
  std::mutex mutex_;
  std::condition_variable all_;
};

// See DeviceGrid: one warp of it.
struct HostGrid {
  using Warp = HostWarp;

  int block_, blocks_, warp_, warps_;
  Barrier *barrier, *block_barrier;
  WaveWeights* memory;  // of the block

  int block() const { return block_; }
  int blocks() const { return blocks_; }
  int warp_of_block() const { return warp_; }
  int warps_of_block() const { return warps_; }
  void sync() { barrier->wait(); }
  void sync_block() { block_barrier->wait(); }
  std::uint8_t* shared() { return reinterpret_cast<std::uint8_t*>(memory); }
};

}  // namespace

int wave_decode_blocks(int, int, int, int) { return resident_blocks; }

template <int kLanesPerThread>
void decode(HostGrid& grid, const WaveDecodeArguments& a, bool is_staged) {
  if (is_staged) {
    decode_waves<kLanesPerThread, true>(grid, a);
  } else {
    decode_waves<kLanesPerThread, false>(grid, a);
  }
}

void wave_decode(const WaveDecodeArguments& a, int blocks, int threads, int staged_bytes, void*) {
  const int warps = threads / static_cast<int>(rans::kWarpThreads);
  Barrier barrier(blocks * warps);
  std::vector<std::unique_ptr<Barrier>> block_barriers;
  const WaveWeights behind = {{1, 2, 3, 4}};
  std::vector<std::vector<WaveWeights>> memories;
  for (int block = 0; block < blocks; ++block) {
    block_barriers.push_back(std::make_unique<Barrier>(warps));
    memories.emplace_back(static_cast<std::size_t>(staged_bytes) / sizeof(WaveWeights));
    memories.back().push_back(behind);
  }
  std::vector<std::thread> team;
  for (int i = 0; i < blocks * warps; ++i) {
    team.emplace_back([&, i] {
      const auto block = static_cast<std::size_t>(i / warps);
      HostGrid grid = {i / warps,
                       blocks,
                       i % warps,
                       warps,
                       &barrier,
                       block_barriers[block].get(),
                       memories[block].data()};
      if (rans::lanes_per_thread(a.lanes) == 2) {
        decode<2>(grid, a, staged_bytes > 0);
      } else {
        decode<1>(grid, a, staged_bytes > 0);
      }
    });
  }
  for (std::thread& thread : team) thread.join();
  for (const auto& memory : memories) {
    if (!std::equal(memory.back().words, memory.back().words + 4, behind.words)) {
      throw std::logic_error("a block has written beyond its memory");
    }
  }
}

// One warp after the other, in both directions.
void wave_decode_graph(const WaveDecodeArguments& a, int threads, void*) {
  const int warps = threads / static_cast<int>(rans::kWarpThreads);
  const int all = resident_blocks * warps;
  for (std::int64_t t = 0; t < std::max<std::int64_t>(a.num_waves, 1); ++t) {
    for (int stage = 0; stage < a.num_stages; ++stage) {
      for (int n = 0; n < all; ++n) {
        const int i = HostWarp::backwards ? all - 1 - n : n;
        const HostGrid grid = {i / warps, resident_blocks, i % warps, warps, {}, {}, {}};
        decode_wave_stage(grid, a, stage);
      }
    }
    if (rans::lanes_per_thread(a.lanes) == 2) {
      decode_wave_draw<HostWarp, 2>(a);
    } else {
      decode_wave_draw<HostWarp, 1>(a);
    }
  }
}

void wave_barriers(std::int64_t, int, int, void*) {}

}  // namespace pycodec::cuda

PYBIND11_MODULE(wave_network_emulation, m) {
  bind_cuda_wave_network(m);
  m.def("set_backwards", [](bool value) { pycodec::HostWarp::backwards = value; });
  m.def("set_resident_blocks", [](int value) { pycodec::cuda::resident_blocks = value; });
}
