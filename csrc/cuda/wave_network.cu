// The kernels of wave_network.hpp; wave_network_grid.hpp has what they do.

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/wave_network.hpp"
#include "cuda/wave_network_grid.hpp"
#include "rans/warp.hpp"

namespace pycodec::cuda {
namespace {

constexpr int kMaxThreads = 256;  // of a block: more would have too few registers each

struct DeviceGrid {
  using Warp = rans::DeviceWarp;

  __device__ int block() const { return static_cast<int>(blockIdx.x); }
  __device__ int blocks() const { return static_cast<int>(gridDim.x); }
  __device__ int warp_of_block() const {
    return static_cast<int>(threadIdx.x / rans::kWarpThreads);
  }
  __device__ int warps_of_block() const {
    return static_cast<int>(blockDim.x / rans::kWarpThreads);
  }
  __device__ void sync() const { cooperative_groups::this_grid().sync(); }
  __device__ void sync_block() const { __syncthreads(); }
  __device__ std::uint8_t* shared() const {
    extern __shared__ WaveWeights memory[];
    return reinterpret_cast<std::uint8_t*>(memory);
  }
};

template <int kLanesPerThread, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads, 1) waves_kernel(WaveDecodeArguments a) {
  DeviceGrid grid;
  decode_waves<kLanesPerThread, kStaged>(grid, a);
}

__global__ void __launch_bounds__(kMaxThreads, 1) stage_kernel(WaveDecodeArguments a, int stage) {
  decode_wave_stage(DeviceGrid{}, a, stage);
}

template <int kLanesPerThread>
__global__ void __launch_bounds__(rans::kWarpThreads) draw_kernel(WaveDecodeArguments a) {
  decode_wave_draw<rans::DeviceWarp, kLanesPerThread>(a);
}

__global__ void __launch_bounds__(kMaxThreads, 1) barriers_kernel(std::int64_t count) {
  DeviceGrid grid;
  for (std::int64_t i = 0; i < count; ++i) grid.sync();
}

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("wave network: ") + cudaGetErrorString(status));
  }
}

auto* waves_kernel_for(int lanes, bool is_staged) {
  if (rans::lanes_per_thread(lanes) == 2)
    return is_staged ? waves_kernel<2, true> : waves_kernel<2, false>;
  return is_staged ? waves_kernel<1, true> : waves_kernel<1, false>;
}

template <class... Arguments>
void launch_cooperative(void (*kernel)(Arguments...), int blocks, int threads, int shared_bytes,
                        void* stream, Arguments... arguments) {
  void* pointers[] = {&arguments...};
  check(cudaLaunchCooperativeKernel(
      reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
      dim3(static_cast<unsigned>(threads)), pointers, static_cast<std::size_t>(shared_bytes),
      static_cast<cudaStream_t>(stream)));
}

int attribute(cudaDeviceAttr name) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, name, device));
  return value;
}

int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }

// Lets a kernel have more memory of a block than is usual.
template <class... Arguments>
void allow_shared(void (*kernel)(Arguments...), int bytes) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

// One wave, captured from `stream`.
class WaveGraph {
 public:
  WaveGraph(const WaveDecodeArguments& a, int threads, cudaStream_t stream) {
    const auto block = static_cast<unsigned>(threads);
    // Enough for every position of the longest wave, but no more than a few to a multiprocessor.
    const auto blocks = static_cast<unsigned>(std::max(a.groups, 2 * multiprocessors()));
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int stage = 0; stage < a.num_stages; ++stage) {
      stage_kernel<<<blocks, block, 0, stream>>>(a, stage);
    }
    auto* draw = rans::lanes_per_thread(a.lanes) == 2 ? draw_kernel<2> : draw_kernel<1>;
    draw<<<1, rans::kWarpThreads, 0, stream>>>(a);
    const cudaError_t launched = cudaGetLastError();
    check(cudaStreamEndCapture(stream, &graph_));
    check(launched);
    check(cudaGraphInstantiate(&executable_, graph_, 0));
  }

  WaveGraph(const WaveGraph&) = delete;
  WaveGraph& operator=(const WaveGraph&) = delete;

  ~WaveGraph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }

  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(executable_, stream)); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

// A stream of its own, since the default stream cannot be captured; it waits for the caller's and
// the caller's for it.
class SideStream {
 public:
  explicit SideStream(cudaStream_t caller) : caller_(caller) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    check(cudaEventRecord(event_, caller_));
    check(cudaStreamWaitEvent(stream_, event_, 0));
  }

  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  // What is queued still runs.
  ~SideStream() {
    if (event_ != nullptr) cudaEventDestroy(event_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  void join() {
    check(cudaEventRecord(event_, stream_));
    check(cudaStreamWaitEvent(caller_, event_, 0));
  }

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t caller_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t event_ = nullptr;
};

}  // namespace

int wave_decode_blocks(int lanes, int threads, int blocks_per_multiprocessor, int staged_bytes) {
  if (staged_bytes > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return 0;
  auto* const kernel = waves_kernel_for(lanes, staged_bytes > 0);
  allow_shared(kernel, staged_bytes);
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads,
                                                      static_cast<std::size_t>(staged_bytes)));
  return std::min(resident, blocks_per_multiprocessor) * multiprocessors();
}

void wave_decode(const WaveDecodeArguments& a, int blocks, int threads, int staged_bytes,
                 void* stream) {
  auto* const kernel = waves_kernel_for(a.lanes, staged_bytes > 0);
  allow_shared(kernel, staged_bytes);
  launch_cooperative(kernel, blocks, threads, staged_bytes, stream, a);
}

void wave_decode_graph(const WaveDecodeArguments& a, int threads, void* stream) {
  SideStream side(static_cast<cudaStream_t>(stream));
  const WaveGraph graph(a, threads, side.get());
  // Without waves a draw still looks at the stream.
  for (std::int64_t t = 0; t < std::max<std::int64_t>(a.num_waves, 1); ++t)
    graph.launch(side.get());
  side.join();
  check(cudaStreamSynchronize(side.get()));  // the graph must outlive its launches
}

void wave_barriers(std::int64_t count, int blocks, int threads, void* stream) {
  launch_cooperative(barriers_kernel, blocks, threads, 0, stream, count);
}

}  // namespace pycodec::cuda
