#include "cpu/parallel.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

namespace pycodec {
namespace {

constexpr int kMaxThreads = 256;

// One parallel_for. It lives on the caller's stack, so the caller leaves only when no worker is in
// it.
struct Job {
  Job(std::int64_t n, const std::function<void(std::int64_t)>& f) : count(n), body(f) {}

  const std::int64_t count;
  const std::function<void(std::int64_t)>& body;
  std::atomic<std::int64_t> next{0};
  int workers_inside = 0;    // guarded by the pool's mutex
  std::exception_ptr error;  // guarded by the pool's mutex
};

class ThreadPool {
 public:
  void run(Job& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < helpers; ++workers_) std::thread([this] { work(); }).detach();
      tickets_.insert(tickets_.end(), helpers, &job);
    }
    ticket_added_.notify_all();
    take_part(job);

    std::unique_lock<std::mutex> lock(mutex_);
    // All indices are taken: whoever has not come yet need not come any more.
    tickets_.erase(std::remove(tickets_.begin(), tickets_.end(), &job), tickets_.end());
    worker_left_.wait(lock, [&job] { return job.workers_inside == 0; });
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  [[noreturn]] void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      ticket_added_.wait(lock, [this] { return !tickets_.empty(); });
      Job& job = *tickets_.front();
      tickets_.pop_front();
      ++job.workers_inside;
      lock.unlock();
      take_part(job);
      lock.lock();
      if (--job.workers_inside == 0) worker_left_.notify_all();
    }
  }

  void take_part(Job& job) {
    for (std::int64_t i; (i = job.next.fetch_add(1)) < job.count;) {
      try {
        job.body(i);
      } catch (...) {
        job.next = job.count;
        std::lock_guard<std::mutex> lock(mutex_);
        if (!job.error) job.error = std::current_exception();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable ticket_added_;
  std::condition_variable worker_left_;
  std::deque<Job*> tickets_;  // a job stands here once for every worker it may still take
  int workers_ = 0;
};

// The pool is never destroyed: its threads may be asleep in it while the process exits. A forked
// child has none of the threads, and perhaps a locked mutex, so it starts with a pool of its own.
std::atomic<ThreadPool*> pool{nullptr};

ThreadPool& current_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
  static_cast<void>(registered);
  ThreadPool* existing = pool.load();
  if (existing != nullptr) return *existing;
  auto* fresh = new ThreadPool;
  if (pool.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;
  return *existing;
}

}  // namespace

void parallel_for(std::int64_t count, int threads, const std::function<void(std::int64_t)>& body) {
  const auto useful = std::min<std::int64_t>({count, threads, kMaxThreads});
  if (useful <= 1) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  Job job(count, body);
  current_pool().run(job, static_cast<int>(useful) - 1);
}

}  // namespace pycodec
