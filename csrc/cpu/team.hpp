// Threads that work in step, for loops of microseconds.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pycodec {

// All threads of a team wait here for each other. They spin for some microseconds, then sleep: the
// thread they wait for may need the processor.
class Barrier {
 public:
  explicit Barrier(int threads)
      : threads_(threads),
        spins_(static_cast<unsigned>(threads) <= std::thread::hardware_concurrency() ? kSpins : 0) {
  }

  void wait() {
    if (threads_ == 1) return;
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      // Either a sleeper's count is seen here, or it sees the new round before it sleeps.
      round_.store(round + 1, std::memory_order_seq_cst);
      if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        next_round_.notify_all();
      }
      return;
    }
    for (int spin = 0; spin < spins_; ++spin) {
      if (round_.load(std::memory_order_acquire) != round) return;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    next_round_.wait(lock, [&] { return round_.load(std::memory_order_seq_cst) != round; });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  static constexpr int kSpins = 3000;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int threads_;
  const int spins_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> round_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable next_round_;
};

// Calls body(number, team, barrier) in each thread of a team, of which the caller is number 0. The
// team is smaller than asked for where the system has no more threads. `body` must not throw.
template <class Body>
void run_team(int threads, const Body& body) {
  std::unique_ptr<Barrier> barrier;
  std::mutex mutex;
  std::condition_variable ready;
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(std::max(threads - 1, 0)));
  try {
    for (int number = 1; number < threads; ++number) {
      others.emplace_back([&, number] {
        {
          std::unique_lock<std::mutex> lock(mutex);
          ready.wait(lock, [&] { return barrier != nullptr; });
        }
        body(number, static_cast<int>(others.size()) + 1, *barrier);
      });
    }
  } catch (const std::system_error&) {
  }
  {
    std::lock_guard<std::mutex> lock(mutex);
    barrier = std::make_unique<Barrier>(static_cast<int>(others.size()) + 1);
  }
  ready.notify_all();
  body(0, static_cast<int>(others.size()) + 1, *barrier);
  for (std::thread& other : others) other.join();
}

}  // namespace pycodec
