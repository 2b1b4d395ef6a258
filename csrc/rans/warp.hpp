// rANS coded by a warp: thread t has lanes t and, where there are 64, t + 32. What the lanes share,
// the words, they take in the order of their lanes: a ballot tells each how many lanes before it
// need one.
//
// A Warp is what runs the code: DeviceWarp on the GPU; the tests have one for the host. The code is
// written for all 32 threads at once. Variables of type PerThread differ from thread to thread and
// are read and written inside each(); all others are the same in all threads, and so are the
// branches that depend on them. Between two calls of each() threads exchange values by ballot(),
// shuffle() and broadcast().
#pragma once

#include <cstdint>

#include "rans/device.hpp"
#include "rans/kernels.hpp"
#include "rans/rans.hpp"

namespace pycodec {
namespace rans {

constexpr unsigned kWarpThreads = 32;

// How many lanes a thread has: what the decoder and the encoder take as kLanesPerThread.
constexpr int lanes_per_thread(int lanes) { return lanes > static_cast<int>(kWarpThreads) ? 2 : 1; }

#ifdef __CUDACC__
// Of blocks whose x dimension is a multiple of 32.
struct DeviceWarp {
  static constexpr unsigned kAll = 0xffffffff;

  template <class T>
  struct PerThread {
    T value;
    __device__ T& operator[](unsigned) { return value; }
    __device__ const T& operator[](unsigned) const { return value; }
  };

  // Calls f with the number of each thread, in no particular order.
  template <class Function>
  __device__ static void each(const Function& f) {
    f(threadIdx.x % kWarpThreads);
  }

  // Bit t says what `flag` is in thread t.
  __device__ static std::uint32_t ballot(const PerThread<bool>& flag) {
    return __ballot_sync(kAll, flag.value);
  }

  // Thread t gets the value of thread source[t].
  template <class T>
  __device__ static PerThread<T> shuffle(const PerThread<T>& value,
                                         const PerThread<unsigned>& source) {
    return {__shfl_sync(kAll, value.value, static_cast<int>(source.value))};
  }

  // What any thread of the warp wrote before it, all its threads can read after it.
  __device__ static void sync() { __syncwarp(); }

  // All threads get the value of one.
  template <class T>
  __device__ static T broadcast(const PerThread<T>& value, unsigned source) {
    return __shfl_sync(kAll, value.value, static_cast<int>(source));
  }
};
#endif

// Decodes one substream and stays where it is between calls, like Decoder; the symbols are the same
// however they are spread over calls. Functions that return std::uint64_t return a
// failure_report(), 0 for success; after a failure the decoder is of no use. Nothing is read
// outside of the substream and the tables.
template <class Warp, int kLanesPerThread>
class WarpDecoder {
  template <class T>
  using PerThread = typename Warp::template PerThread<T>;

 public:
  PYCODEC_DEVICE WarpDecoder(const DeviceTables& tables, int lanes)
      : tables_(tables), lanes_(static_cast<unsigned>(lanes)) {
    for (auto& states : states_) {
      Warp::each([&](unsigned t) { states[t] = kLowerBound; });  // idle: never asks for a word
    }
  }

  // What a decoder is between two calls, in numbers: the states, words read, next lane.
  PYCODEC_HOST_DEVICE static unsigned checkpoint_size(unsigned lanes) { return lanes + 2; }

  // States and words are at the even address `body`, whose size has been checked to be that of the
  // states and of whole words.
  PYCODEC_DEVICE std::uint64_t start(const std::uint8_t* body, std::uint64_t body_size) {
    open(body, body_size);
    const auto* halves = reinterpret_cast<const std::uint16_t*>(body);
    for (int k = 0; k < kLanesPerThread; ++k) {
      PerThread<bool> too_small;
      Warp::each([&](unsigned t) {
        const unsigned lane = lane_of(k, t);
        if (lane < lanes_) {
          states_[k][t] = load_constant(halves + 2 * lane) |
                          static_cast<std::uint32_t>(load_constant(halves + 2 * lane + 1)) << 16;
        }
        too_small[t] = states_[k][t] < kLowerBound;
      });
      const std::uint32_t wrong = Warp::ballot(too_small);
      if (wrong != 0) {
        return failure_report(Failure::kStateTooSmall, lane_of(k, lowest_bit(wrong)), 0);
      }
    }
    fill_window();
    return 0;
  }

  // Goes on where save() was called, with the same body.
  PYCODEC_DEVICE void resume(const std::uint8_t* body, std::uint64_t body_size,
                             const std::uint32_t* checkpoint) {
    open(body, body_size);
    for (int k = 0; k < kLanesPerThread; ++k) {
      Warp::each([&](unsigned t) {
        if (lane_of(k, t) < lanes_) states_[k][t] = checkpoint[lane_of(k, t)];
      });
    }
    position_ = checkpoint[lanes_];
    next_ = checkpoint[lanes_ + 1];
    fill_window();
  }

  PYCODEC_DEVICE void save(std::uint32_t* checkpoint) const {
    for (int k = 0; k < kLanesPerThread; ++k) {
      Warp::each([&](unsigned t) {
        if (lane_of(k, t) < lanes_) checkpoint[lane_of(k, t)] = states_[k][t];
      });
    }
    Warp::each([&](unsigned t) {
      if (t != 0) return;
      checkpoint[lanes_] = position_;
      checkpoint[lanes_ + 1] = next_;
    });
  }

  // Pops the next `count` symbols. fetch(n) is a struct of what is known of symbol n of this call:
  // its table, `index`, and whatever store(n, fetched, symbol) needs besides, which gets the
  // symbol. Both are called by one thread for each n; fetch() two turns ahead, since a thread that
  // waits for memory holds up all lanes.
  template <class Fetch, class Store>
  PYCODEC_DEVICE std::uint64_t decode(std::uint32_t count, const Fetch& fetch, const Store& store) {
    using Fetched = decltype(fetch(std::uint32_t{}));
    // A turn is what the lanes from the first on can pop at once: symbols from `begin` on. It is
    // shorter than the lanes only at the beginning and the end of a call. Returns its length.
    const auto fetch_turn = [&](PerThread<Fetched>(&out)[kLanesPerThread], std::uint32_t begin,
                                unsigned first_lane) {
      const std::uint32_t turn = smaller(lanes_ - first_lane, count - begin);
      for (int k = 0; k < kLanesPerThread; ++k) {
        Warp::each([&](unsigned t) {
          const std::uint32_t n = lane_of(k, t) - first_lane;  // wraps for the lanes before it
          if (n < turn) out[k][t] = fetch(begin + n);
        });
      }
      return turn;
    };
    PerThread<Fetched> fetched[kLanesPerThread], next[kLanesPerThread], after_next[kLanesPerThread];
    for (int k = 0; k < kLanesPerThread; ++k) {
      Warp::each([&](unsigned t) { next[k][t] = after_next[k][t] = Fetched{}; });
    }
    std::uint32_t turn = fetch_turn(next, 0, next_);
    std::uint32_t next_turn = fetch_turn(after_next, turn, 0);
    for (std::uint32_t done = 0; done < count;) {
      for (int k = 0; k < kLanesPerThread; ++k) {
        Warp::each([&](unsigned t) {
          fetched[k][t] = next[k][t];
          next[k][t] = after_next[k][t];
        });
      }
      PerThread<Popped> popped[kLanesPerThread];
      if (tables_.of_two != nullptr) {
        const auto table_at = [&](std::uint32_t table) { return tables_.of_two[table]; };
        pop(turn, fetched, popped, [&](std::uint32_t index, std::uint32_t x) {
          return pop_of_two(tables_, table_at, index, x);
        });
      } else if (tables_.ranks == nullptr) {
        const auto table_at = [&](std::uint32_t table) {
          return load_table_of_two(tables_, table);
        };
        pop(turn, fetched, popped, [&](std::uint32_t index, std::uint32_t x) {
          return pop_of_two(tables_, table_at, index, x);
        });
      } else {
        pop(turn, fetched, popped,
            [&](std::uint32_t index, std::uint32_t x) { return pop_by_slot(tables_, index, x); });
      }
      const std::uint32_t turn_after = fetch_turn(after_next, done + turn + next_turn, 0);
      if (!renormalize_all(popped)) {
        for (int k = 0; k < kLanesPerThread; ++k) {
          const std::uint64_t report = settle(k, fetched[k], popped[k], done);
          if (report != 0) return report;
        }
      }
      for (int k = 0; k < kLanesPerThread; ++k) {
        Warp::each([&](unsigned t) {
          states_[k][t] = popped[k][t].x;
          const std::uint32_t n = lane_of(k, t) - next_;
          if (n < turn) store(done + n, fetched[k][t], popped[k][t].symbol);
        });
      }
      next_ = (next_ + turn) & (lanes_ - 1);
      done += turn;
      turn = next_turn;
      next_turn = turn_after;
    }
    return 0;
  }

  // Whether the symbols popped so far are all that was encoded.
  PYCODEC_DEVICE std::uint64_t finish() const {
    if (position_ != num_words_) return failure_report(Failure::kGoesOn, 0, position_);
    for (int k = 0; k < kLanesPerThread; ++k) {
      PerThread<bool> elsewhere;
      Warp::each([&](unsigned t) { elsewhere[t] = states_[k][t] != kLowerBound; });
      const std::uint32_t wrong = Warp::ballot(elsewhere);
      if (wrong != 0) {
        return failure_report(Failure::kNotReturned, lane_of(k, lowest_bit(wrong)), position_);
      }
    }
    return 0;
  }

 private:
  PYCODEC_HOST_DEVICE static unsigned lane_of(int k, unsigned thread) {
    return static_cast<unsigned>(k) * kWarpThreads + thread;
  }

  PYCODEC_DEVICE void open(const std::uint8_t* body, std::uint64_t body_size) {
    words_ = reinterpret_cast<const std::uint16_t*>(body) + 2 * lanes_;
    num_words_ = static_cast<std::uint32_t>((body_size - kStateBytes * lanes_) / kWordBytes);
  }

  template <class Fetched, class PopOne>
  PYCODEC_DEVICE void pop(std::uint32_t turn, const PerThread<Fetched> (&fetched)[kLanesPerThread],
                          PerThread<Popped> (&popped)[kLanesPerThread], const PopOne& pop_one) {
    for (int k = 0; k < kLanesPerThread; ++k) {
      Warp::each([&](unsigned t) {
        popped[k][t] = pop_one(fetched[k][t].index, states_[k][t]);
        if (lane_of(k, t) - next_ >= turn) popped[k][t] = {states_[k][t], 0, Kind::kValue};
      });
    }
  }

  // Renormalizes what all lanes have popped: what settle() does for one k after the other, with
  // fewer waits. False, and nothing has happened, if something is special or the words do not last.
  PYCODEC_DEVICE bool renormalize_all(PerThread<Popped> (&popped)[kLanesPerThread]) {
    PerThread<bool> is_special;
    Warp::each([&](unsigned t) {
      is_special[t] = false;
      for (const auto& of_lanes : popped) is_special[t] |= of_lanes[t].kind != Kind::kValue;
    });
    if (Warp::ballot(is_special) != 0) return false;
    std::uint32_t masks[kLanesPerThread];
    unsigned taken = 0;
    for (int k = 0; k < kLanesPerThread; ++k) {
      PerThread<bool> needs_word;
      Warp::each([&](unsigned t) { needs_word[t] = popped[k][t].x < kLowerBound; });
      masks[k] = Warp::ballot(needs_word);
      taken += count_bits(masks[k]);
    }
    if (taken > num_words_ - position_) return false;
    for (int k = 0; k < kLanesPerThread; ++k) {
      take_words(masks[k], k + 2, popped[k]);
    }
    while (position_ - window_start_ >= kWarpThreads) move_window();
    return true;
  }

  // Renormalizes what the k-th lanes of the threads have popped and reads what follows an escape.
  // Escapes are rare: the lanes up to the first one take their words together, then it alone takes
  // its own, then the lanes after it go on.
  template <class Fetched>
  PYCODEC_DEVICE std::uint64_t settle(int k, const PerThread<Fetched>& fetched,
                                      PerThread<Popped>& popped, std::uint32_t done) {
    PerThread<bool> is_special;
    Warp::each([&](unsigned t) { is_special[t] = popped[t].kind != Kind::kValue; });
    std::uint32_t special = Warp::ballot(is_special);
    for (unsigned begin = 0;;) {
      const unsigned end = special == 0 ? kWarpThreads : lowest_bit(special) + 1;
      if (!renormalize_threads(begin, end, popped)) {
        return failure_report(Failure::kEndsEarly, 0, num_words_);
      }
      if (special == 0) return 0;
      const std::uint64_t report = settle_special(k, end - 1, fetched, popped, done);
      if (report != 0) return report;
      special &= special - 1;
      begin = end;
    }
  }

  // Of threads begin to end - 1; false if the words do not last.
  PYCODEC_DEVICE bool renormalize_threads(unsigned begin, unsigned end, PerThread<Popped>& popped) {
    PerThread<bool> needs_word;
    Warp::each(
        [&](unsigned t) { needs_word[t] = t >= begin && t < end && popped[t].x < kLowerBound; });
    const std::uint32_t mask = Warp::ballot(needs_word);
    if (mask == 0) return true;
    if (count_bits(mask) > num_words_ - position_) return false;
    take_words(mask, 2, popped);
    if (position_ - window_start_ >= kWarpThreads) move_window();
    return true;
  }

  // Gives the next words to the threads of the mask. They are in the first `parts` of the window.
  PYCODEC_DEVICE void take_words(std::uint32_t mask, int parts, PerThread<Popped>& popped) {
    PerThread<unsigned> source;  // in the window; shuffles look at the low five bits
    PerThread<std::uint32_t> word;
    Warp::each([&](unsigned t) {
      source[t] = position_ - window_start_ + count_bits(mask & low_bits(t));
    });
    for (int part = 0; part < parts; ++part) {
      const PerThread<std::uint32_t> of_part = Warp::shuffle(window_[part], source);
      Warp::each([&](unsigned t) {
        if (part == 0 || source[t] >= static_cast<unsigned>(part) * kWarpThreads) {
          word[t] = of_part[t];
        }
      });
    }
    Warp::each([&](unsigned t) {
      if ((mask >> t & 1) != 0) popped[t].x = popped[t].x << 16 | word[t];
    });
    position_ += count_bits(mask);
  }

  template <class Fetched>
  PYCODEC_DEVICE std::uint64_t settle_special(int k, unsigned thread,
                                              const PerThread<Fetched>& fetched,
                                              PerThread<Popped>& popped, std::uint32_t done) {
    const unsigned lane = lane_of(k, thread);
    PerThread<std::uint32_t> failure;
    PerThread<std::uint32_t> position;
    Warp::each([&](unsigned t) {
      if (t != thread) return;
      if (popped[t].kind == Kind::kNoTable) {
        failure[t] = static_cast<std::uint32_t>(Failure::kNoTable);
        position[t] = done + lane - next_;
        return;
      }
      WordCursor cursor = {words_, num_words_, position_};
      failure[t] = static_cast<std::uint32_t>(
          pop_escaped(tables_, fetched[t].index, popped[t].x, cursor, popped[t].symbol));
      position[t] = cursor.position;
    });
    position_ = Warp::broadcast(position, thread);
    const auto result = static_cast<Failure>(Warp::broadcast(failure, thread));
    if (result != Failure::kNone) return failure_report(result, lane, position_);
    fill_window();
    return 0;
  }

  // WINDOW. The words to come are in the threads' registers, 32 to a part, so that a turn need not
  // wait for memory. A word is fetched from its thread when it is needed: each k takes up to 32,
  // the first of which is in the first part. The last part is still on its way.
  PYCODEC_DEVICE void fill_window() {
    window_start_ = position_;
    for (unsigned part = 0; part < kWindowParts; ++part) {
      load_words(window_[part], window_start_ + part * kWarpThreads);
    }
  }

  PYCODEC_DEVICE void move_window() {
    window_start_ += kWarpThreads;
    for (unsigned part = 0; part + 1 < kWindowParts; ++part) window_[part] = window_[part + 1];
    load_words(window_[kWindowParts - 1], window_start_ + (kWindowParts - 1) * kWarpThreads);
  }

  PYCODEC_DEVICE void load_words(PerThread<std::uint32_t>& out, std::uint32_t first) const {
    Warp::each([&](unsigned t) {
      out[t] = first + t < num_words_ ? load_constant(words_ + (first + t)) : 0u;
    });
  }

  static constexpr unsigned kWindowParts = kLanesPerThread + 2;

  DeviceTables tables_;
  unsigned lanes_;
  const std::uint16_t* words_ = nullptr;
  std::uint32_t num_words_ = 0;
  std::uint32_t position_ = 0;  // words read
  unsigned next_ = 0;           // lane of the next symbol
  PerThread<std::uint32_t> states_[kLanesPerThread];
  std::uint32_t window_start_ = 0;
  PerThread<std::uint32_t> window_[kWindowParts];
};

// Encodes one substream, the last symbols first. The words go to `words` from word `capacity` - 1
// downwards; top() is the last one written.
template <class Warp, int kLanesPerThread>
class WarpEncoder {
  template <class T>
  using PerThread = typename Warp::template PerThread<T>;

 public:
  PYCODEC_DEVICE WarpEncoder(const DeviceTables& tables, int lanes, std::uint16_t* words,
                             std::uint32_t capacity)
      : tables_(tables), lanes_(static_cast<unsigned>(lanes)), words_(words), top_(capacity) {
    for (auto& states : states_) {
      Warp::each([&](unsigned t) { states[t] = kLowerBound; });
    }
  }

  // All symbols of the substream. Returns a failure_report(). Both functions are called two turns
  // ahead, as WarpDecoder::decode() calls fetch().
  template <class SymbolAt, class IndexAt>
  PYCODEC_DEVICE std::uint64_t encode(std::uint32_t count, const SymbolAt& symbol_at,
                                      const IndexAt& index_at) {
    struct Fetched {
      std::int32_t symbol;
      std::uint32_t index;
    };
    // Of the turn that ends before symbol `end`. Returns its first symbol.
    const auto fetch_turn = [&](PerThread<Fetched>(&out)[kLanesPerThread], std::uint32_t end) {
      const std::uint32_t first = first_of_turn(end);
      for (int k = 0; k < kLanesPerThread; ++k) {
        Warp::each([&](unsigned t) {
          const std::uint32_t n = first + lane_of(k, t);
          if (lane_of(k, t) < end - first) out[k][t] = {symbol_at(n), index_at(n)};
        });
      }
      return first;
    };
    PerThread<Fetched> next[kLanesPerThread], after_next[kLanesPerThread];
    std::uint32_t end = count;
    std::uint32_t first = fetch_turn(next, end);
    std::uint32_t next_first = fetch_turn(after_next, first);
    while (end > 0) {
      PerThread<Item> items[kLanesPerThread];
      for (int k = 0; k < kLanesPerThread; ++k) {
        Warp::each([&](unsigned t) {
          items[k][t] = {nothing(), 0, 0};
          if (lane_of(k, t) < end - first) {
            const Fetched& f = next[k][t];
            items[k][t] = {find_entry(tables_, f.index, f.symbol), f.symbol, f.index};
          }
          next[k][t] = after_next[k][t];
        });
      }
      const std::uint32_t first_after = fetch_turn(after_next, next_first);
      for (int k = kLanesPerThread - 1; k >= 0; --k) {
        const std::uint64_t report = push(k, items[k], first);
        if (report != 0) return report;
      }
      end = first;
      first = next_first;
      next_first = first_after;
    }
    return 0;
  }

  PYCODEC_HOST_DEVICE std::uint32_t top() const { return top_; }

  PYCODEC_DEVICE void save_states(std::uint32_t* states) const {
    for (int k = 0; k < kLanesPerThread; ++k) {
      Warp::each([&](unsigned t) {
        if (lane_of(k, t) < lanes_) states[lane_of(k, t)] = states_[k][t];
      });
    }
  }

 private:
  struct Item {
    ToPush to_push;
    std::int32_t symbol;
    std::uint32_t index;
  };

  // Changes no state: a symbol of probability 1.
  PYCODEC_HOST_DEVICE static ToPush nothing() { return {{0, 0, 0, 0xffff}, Kind::kValue}; }

  PYCODEC_HOST_DEVICE static unsigned lane_of(int k, unsigned thread) {
    return static_cast<unsigned>(k) * kWarpThreads + thread;
  }

  // The turn that ends before symbol `end` starts with lane 0.
  PYCODEC_HOST_DEVICE std::uint32_t first_of_turn(std::uint32_t end) const {
    return end == 0 ? 0 : (end - 1) & ~(lanes_ - 1);
  }

  // Pushes what the k-th lanes of the threads have, the last lane first. Like
  // WarpDecoder::settle(): together as far as the next escape, which then is alone.
  PYCODEC_DEVICE std::uint64_t push(int k, const PerThread<Item>& items, std::uint32_t first) {
    PerThread<bool> is_special;
    Warp::each([&](unsigned t) { is_special[t] = items[t].to_push.kind != Kind::kValue; });
    std::uint32_t special = Warp::ballot(is_special);
    for (unsigned end = kWarpThreads;;) {
      const unsigned begin = special == 0 ? 0 : highest_bit(special) + 1;
      if (!push_threads(k, begin, end, items)) {
        return failure_report(Failure::kOutOfSpace, 0, first);
      }
      if (special == 0) return 0;
      end = begin - 1;
      const std::uint64_t report = push_special(k, end, items, first);
      if (report != 0) return report;
      special ^= std::uint32_t{1} << end;
    }
  }

  // Of threads begin to end - 1; false if the room for words does not last.
  PYCODEC_DEVICE bool push_threads(int k, unsigned begin, unsigned end,
                                   const PerThread<Item>& items) {
    PerThread<bool> has_word;
    Warp::each([&](unsigned t) {
      has_word[t] = t >= begin && t < end && is_full(states_[k][t], items[t].to_push.entry);
    });
    const std::uint32_t mask = Warp::ballot(has_word);
    const unsigned written = count_bits(mask);
    if (written > top_) return false;
    Warp::each([&](unsigned t) {
      if (t < begin || t >= end) return;
      std::uint32_t& x = states_[k][t];
      if (has_word[t]) {
        const unsigned lanes_above = count_bits(mask & ~low_bits(t + 1));
        words_[top_ - 1 - lanes_above] = static_cast<std::uint16_t>(x);
        x >>= 16;
      }
      x = push_entry(x, items[t].to_push.entry);
    });
    top_ -= written;
    return true;
  }

  PYCODEC_DEVICE std::uint64_t push_special(int k, unsigned thread, const PerThread<Item>& items,
                                            std::uint32_t first) {
    PerThread<std::uint32_t> failure;
    PerThread<std::uint32_t> top;
    Warp::each([&](unsigned t) {
      if (t != thread) return;
      const Item& item = items[t];
      WordPile pile = {words_, top_};
      Failure result = Failure::kNoTable;
      if (item.to_push.kind == Kind::kNotCovered) result = Failure::kNotCovered;
      if (item.to_push.kind == Kind::kEscape) {
        result =
            push_escaped(tables_, item.index, item.symbol, item.to_push.entry, states_[k][t], pile);
      }
      failure[t] = static_cast<std::uint32_t>(result);
      top[t] = pile.top;
    });
    top_ = Warp::broadcast(top, thread);
    const auto result = static_cast<Failure>(Warp::broadcast(failure, thread));
    const unsigned lane = lane_of(k, thread);
    return result == Failure::kNone ? 0 : failure_report(result, lane, first + lane);
  }

  DeviceTables tables_;
  unsigned lanes_;
  std::uint16_t* words_;
  std::uint32_t top_;
  PerThread<std::uint32_t> states_[kLanesPerThread];
};

}  // namespace rans
}  // namespace pycodec
