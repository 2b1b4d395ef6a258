// Spans: what ran when and how much it did, for pycodec.profiling. While nobody records, a span
// costs one relaxed load; while somebody does, two readings of the clock and a lock that no other
// thread wants.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <functional>
#include <thread>
#endif

namespace pycodec {

// kInt8Tiles is int8 in matrix tiles (AMX).
enum class Arithmetic : std::uint8_t { kNone, kInt8, kFloat32, kInt16, kInt8Tiles };

// kWave is shown in a lane of its own: it spans what several threads do. A kernel belongs to the
// layer that it runs in.
enum class SpanKind : std::uint8_t { kKernel, kLayer, kWave };

// What a span did. Bytes are inputs, outputs and weights, each once; a product and its addition are
// two operations.
struct SpanWork {
  std::int64_t bytes = 0;
  std::int64_t operations = 0;
  Arithmetic arithmetic = Arithmetic::kNone;
  std::int64_t number = -1;  // of a layer, stage or wave
  SpanKind kind = SpanKind::kKernel;
};

struct Span {
  const char* name;         // a literal, or of span_name
  std::int64_t begin, end;  // nanoseconds of the steady clock
  SpanWork work;
};

// The same characters for as long as the process lives, since spans may outlive what they are of.
inline const char* span_name(const std::string& name) {
  static auto* const mutex = new std::mutex;
  static auto* const names = new std::set<std::string>;
  const std::lock_guard<std::mutex> lock(*mutex);
  return names->insert(name).first->c_str();
}

// Keeps the spans of all threads, each in a buffer of its own.
class SpanRecorder {
 public:
  struct OfThread {
    std::int64_t thread;  // as Python's threading.get_native_id
    std::vector<Span> spans;
  };

  static bool is_on() { return on_.load(std::memory_order_relaxed); }
  static void set_on(bool on) { on_.store(on, std::memory_order_relaxed); }

  static std::int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  static void add(const Span& span) noexcept {
    try {
      Buffer& buffer = own_buffer();
      const std::lock_guard<std::mutex> lock(buffer.mutex);
      if (buffer.spans.size() < kMostSpans) {
        buffer.spans.push_back(span);
        return;
      }
    } catch (const std::bad_alloc&) {
    }
    dropped_.fetch_add(1, std::memory_order_relaxed);
  }

  // Takes all spans away, and how many found no room.
  static std::pair<std::vector<OfThread>, std::int64_t> take() {
    std::vector<OfThread> taken;
    Registry& all = registry();
    const std::lock_guard<std::mutex> lock(all.mutex);
    std::vector<std::shared_ptr<Buffer>> alive;
    for (const auto& buffer : all.buffers) {
      const bool has_thread = buffer.use_count() > 1;
      const std::lock_guard<std::mutex> own_lock(buffer->mutex);
      if (!buffer->spans.empty()) taken.push_back({buffer->thread, std::move(buffer->spans)});
      buffer->spans = {};
      if (has_thread) alive.push_back(buffer);
    }
    all.buffers = std::move(alive);
    return {std::move(taken), dropped_.exchange(0)};
  }

 private:
  static constexpr std::size_t kMostSpans = 1 << 18;  // of a thread: 16 MiB

  struct Buffer {
    std::mutex mutex;
    std::int64_t thread;
    std::vector<Span> spans;
  };
  struct Registry {
    std::mutex mutex;
    std::vector<std::shared_ptr<Buffer>> buffers;
  };

  // Never destroyed: threads may outlive what is static.
  static Registry& registry() {
    static auto* const all = new Registry;
    return *all;
  }

  static Buffer& own_buffer() {
    thread_local const std::shared_ptr<Buffer> own = [] {
      auto buffer = std::make_shared<Buffer>();
      buffer->thread = thread_number();
      Registry& all = registry();
      const std::lock_guard<std::mutex> lock(all.mutex);
      all.buffers.push_back(buffer);
      return buffer;
    }();
    return *own;
  }

  static std::int64_t thread_number() {
#if defined(__linux__)
    return syscall(SYS_gettid);
#else
    return static_cast<std::int64_t>(std::hash<std::thread::id>()(std::this_thread::get_id()));
#endif
  }

  inline static std::atomic<bool> on_{false};
  inline static std::atomic<std::int64_t> dropped_{0};
};

// A span from here to the end of the block. `work` returns its SpanWork; it is called at the end,
// and only while spans are recorded.
template <class Work>
class SpanScope {
 public:
  SpanScope(const char* name, const Work& work)
      : name_(name), work_(work), begin_(SpanRecorder::is_on() ? SpanRecorder::now() : 0) {}
  ~SpanScope() {
    if (begin_ == 0) return;
    const std::int64_t end = SpanRecorder::now();
    SpanRecorder::add({name_, begin_, end, work_()});
  }
  SpanScope(const SpanScope&) = delete;
  SpanScope& operator=(const SpanScope&) = delete;

 private:
  const char* const name_;
  const Work work_;
  const std::int64_t begin_;
};

}  // namespace pycodec
