// The wave engine's kernels on the host: the very code that the GPU runs, a thread of the host for
// each warp, which all meet at the grid's barriers. With csrc/bindings/cuda_wave_network.cpp it
// makes a module with these functions of pycodec._cuda, which take addresses of host memory.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
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
  Barrier* barrier;

  int block() const { return block_; }
  int blocks() const { return blocks_; }
  int warp_of_block() const { return warp_; }
  int warps_of_block() const { return warps_; }
  void sync() { barrier->wait(); }
};

}  // namespace

int wave_decode_blocks(int, int, int) { return resident_blocks; }

void wave_decode(const WaveDecodeArguments& a, int blocks, int threads, void*) {
  const int warps = threads / static_cast<int>(rans::kWarpThreads);
  Barrier barrier(blocks * warps);
  std::vector<std::thread> team;
  for (int i = 0; i < blocks * warps; ++i) {
    team.emplace_back([&, i] {
      HostGrid grid = {i / warps, blocks, i % warps, warps, &barrier};
      if (rans::lanes_per_thread(a.lanes) == 2) {
        decode_waves<2>(grid, a);
      } else {
        decode_waves<1>(grid, a);
      }
    });
  }
  for (std::thread& thread : team) thread.join();
}

// One warp after the other, in both directions.
void wave_decode_graph(const WaveDecodeArguments& a, int threads, void*) {
  const int warps = threads / static_cast<int>(rans::kWarpThreads);
  const int all = resident_blocks * warps;
  for (std::int64_t t = 0; t < std::max<std::int64_t>(a.num_waves, 1); ++t) {
    for (int stage = 0; stage < a.num_stages; ++stage) {
      for (int n = 0; n < all; ++n) {
        const int i = HostWarp::backwards ? all - 1 - n : n;
        decode_wave_stage(HostGrid{i / warps, resident_blocks, i % warps, warps, nullptr}, a,
                          stage);
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
