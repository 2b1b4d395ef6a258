// Integer probability tables, laid out for the coder.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "rans/kernels.hpp"
#include "rans/rans.hpp"

namespace pycodec {
namespace rans {

constexpr std::size_t kMaxTotalSlots = std::size_t{1} << 26;
// Up to here slot tables pay: 512 tables of 12 bits, 32 of 16.
constexpr std::size_t kMaxDirectSlots = std::size_t{1} << 21;
// Packed entries take 1 KiB a table whatever its precision.
constexpr std::size_t kMaxPackedTables = 8192;

inline std::int64_t last_value(const TableInfo& info) {
  return std::int64_t{info.first_value} + info.num_values - 1;
}

// An immutable set of tables of one precision; safe to share between threads.
class TableSet {
 public:
  // Table t has sizes[t] frequencies (the escape's last, where escapes[t]), taken in turn from
  // `frequencies`, and its values start at offsets[t]. Throws std::invalid_argument unless every
  // frequency is at least 1 and each table's sum is 2^precision. A set of more than
  // `max_direct_slots` is compact (kernels.hpp); the streams are the same.
  TableSet(int precision, const std::vector<std::uint32_t>& frequencies,
           const std::vector<std::uint32_t>& sizes, const std::vector<std::int32_t>& offsets,
           const std::vector<bool>& escapes, std::size_t max_direct_slots = kMaxDirectSlots)
      : precision_(precision), escapes_(escapes) {
    if (precision < 1 || precision > kMaxPrecision) {
      throw std::invalid_argument("precision must be 1..16 bits, not " + std::to_string(precision));
    }
    if (sizes.empty() || sizes.size() > kMaxTotalSlots >> precision) {
      throw std::invalid_argument("a set of this precision holds 1.." +
                                  std::to_string(kMaxTotalSlots >> precision) + " tables, not " +
                                  std::to_string(sizes.size()));
    }
    if (offsets.size() != sizes.size() || escapes.size() != sizes.size()) {
      throw std::invalid_argument("sizes, offsets and escapes must have one item a table");
    }
    std::size_t end = 0;
    for (std::size_t t = 0; t < sizes.size(); ++t) {
      if (sizes[t] > frequencies.size() - end) {
        throw std::invalid_argument("the sizes add up to more than there are frequencies");
      }
      check_table(t, frequencies.data() + end, sizes[t], offsets[t], escapes[t]);
      infos_.push_back(
          {offsets[t], sizes[t] - (escapes[t] ? 1 : 0), static_cast<std::uint32_t>(end), 0});
      end += sizes[t];
    }
    if (end != frequencies.size()) {
      throw std::invalid_argument("the sizes add up to less than there are frequencies");
    }
    build_entries(frequencies, sizes);
    if (sizes.size() > max_direct_slots >> precision) {
      build_buckets();
    } else {
      build_ranks();
      if (precision <= kPackedBits && sizes.size() <= kMaxPackedTables) pack();
    }
  }

  int precision() const { return precision_; }
  std::size_t num_tables() const { return infos_.size(); }
  const TableInfo& info(std::size_t table) const { return infos_[table]; }

  // Of `rank` (num_values: the escape) of a table.
  const EncodeEntry& encode_entry(const TableInfo& info, std::uint32_t rank) const {
    return encode_entries_[info.first_entry + rank];
  }
  const DecodeEntry& decode_entry(const TableInfo& info, std::uint32_t rank) const {
    return decode_entries_[info.first_entry + rank];
  }

  bool has_escape(std::size_t table) const { return escapes_[table]; }

  // The rank whose interval holds a slot.
  std::uint32_t rank(std::size_t table, std::uint32_t slot) const {
    if (!ranks_.empty()) return ranks_[(table << precision_) + slot];
    const TableInfo& info = infos_[table];
    const std::uint32_t bucket = info.buckets & ((1u << kBucketBits) - 1);
    std::uint32_t rank = bucket_ranks_[bucket + (slot >> (info.buckets >> kBucketBits))];
    while (slot - decode_entry(info, rank).start > decode_entry(info, rank).last_bias) ++rank;
    return rank;
  }

  // For the inner loops, which look nothing up that the above does not say.
  TableView view() const {
    return {precision_,
            infos_.data(),
            encode_entries_.data(),
            decode_entries_.data(),
            ranks_.empty() ? nullptr : ranks_.data(),
            bucket_ranks_.empty() ? nullptr : bucket_ranks_.data(),
            packed_slots_.empty() ? nullptr : packed_slots_.data(),
            packed_entries_.empty() ? nullptr : packed_entries_.data(),
            packed_base_};
  }

  // Throws std::invalid_argument if one of the indexes names no table.
  template <class Index>
  void check_indexes(const Index* indexes, std::size_t count) const {
    if (std::numeric_limits<Index>::max() < num_tables()) return;
    Index largest = 0;
    for (std::size_t i = 0; i < count; ++i) largest = largest < indexes[i] ? indexes[i] : largest;
    if (count > 0 && largest >= num_tables()) {
      throw std::invalid_argument("table index " + std::to_string(largest) + " in a set of " +
                                  std::to_string(num_tables()) + " tables");
    }
  }

 private:
  void check_table(std::size_t table, const std::uint32_t* frequencies, std::uint32_t size,
                   std::int32_t offset, bool escape) const {
    const std::string name = "table " + std::to_string(table);
    if (size == 0) throw std::invalid_argument(name + " has no frequencies");
    // Each is at least 1, so a size beyond the total shows in the sum, which cannot overflow.
    std::uint64_t sum = 0;
    for (std::uint32_t i = 0; i < size; ++i) {
      if (frequencies[i] == 0) {
        throw std::invalid_argument(name + " has a frequency of 0 at " + std::to_string(i));
      }
      sum += frequencies[i];
    }
    if (sum != std::uint64_t{1} << precision_) {
      throw std::invalid_argument("the frequencies of " + name + " add up to " +
                                  std::to_string(sum) + ", not 2^" + std::to_string(precision_));
    }
    const std::int64_t last = std::int64_t{offset} + size - (escape ? 1 : 0) - 1;
    if (last > std::numeric_limits<std::int32_t>::max()) {
      throw std::invalid_argument("the values of " + name + " exceed int32");
    }
  }

  void build_entries(const std::vector<std::uint32_t>& frequencies,
                     const std::vector<std::uint32_t>& sizes) {
    encode_entries_.reserve(frequencies.size());
    decode_entries_.reserve(frequencies.size());
    auto next = frequencies.begin();
    for (const std::uint32_t size : sizes) {
      std::uint32_t start = 0;
      for (std::uint32_t rank = 0; rank < size; ++rank) {
        const std::uint32_t frequency = *next++;
        encode_entries_.push_back(make_encode_entry(start, frequency, precision_));
        decode_entries_.push_back(
            {static_cast<std::uint16_t>(start), static_cast<std::uint16_t>(frequency - 1)});
        start += frequency;
      }
    }
  }

  // Looking the rank up by slot, then its interval by rank, keeps what is read at random small: two
  // bytes a slot.
  void build_ranks() {
    ranks_.reserve((infos_.size() << precision_) + 1);
    for (std::size_t table = 0; table < infos_.size(); ++table) {
      const TableInfo& info = infos_[table];
      for (std::uint32_t rank = 0; rank < num_entries(table); ++rank) {
        ranks_.insert(ranks_.end(), decode_entry(info, rank).last_bias + std::size_t{1},
                      static_cast<std::uint16_t>(rank));
      }
    }
    ranks_.push_back(0);  // SIMD gathers read two ranks to get one
  }

  void build_buckets() {
    for (std::size_t table = 0; table < infos_.size(); ++table) {
      TableInfo& info = infos_[table];
      int shift = precision_;
      while (shift > 0 && 1u << (precision_ - shift) < num_entries(table)) --shift;
      info.buckets = static_cast<std::uint32_t>(bucket_ranks_.size()) |
                     static_cast<std::uint32_t>(shift) << kBucketBits;
      std::uint32_t rank = 0;
      for (std::uint32_t slot = 0; slot < 1u << precision_; slot += 1u << shift) {
        while (slot - decode_entry(info, rank).start > decode_entry(info, rank).last_bias) ++rank;
        bucket_ranks_.push_back(static_cast<std::uint16_t>(rank));
      }
    }
    bucket_ranks_.push_back(0);  // as above
  }

  std::uint32_t num_entries(std::size_t table) const {
    return infos_[table].num_values + (escapes_[table] ? 1 : 0);
  }

  // See "packed tables" in kernels.hpp.
  void pack() {
    // Latents lie around zero; other alphabets start at their least value.
    packed_base_ = infos_[0].first_value;
    for (const TableInfo& info : infos_) packed_base_ = std::min(packed_base_, info.first_value);
    packed_base_ = std::max(packed_base_, -(kPackedValues / 2));
    packed_slots_.assign(infos_.size() << precision_, kUnpacked);
    packed_entries_.assign(infos_.size() * kPackedStride, kNoEntry);
    for (std::size_t table = 0; table < infos_.size(); ++table) {
      const TableInfo& info = infos_[table];
      const std::int64_t first = std::max<std::int64_t>(info.first_value, packed_base_);
      const std::int64_t last =
          std::min<std::int64_t>(last_value(info), std::int64_t{packed_base_} + kPackedValues - 1);
      for (std::int64_t value = first; value <= last; ++value) {
        const auto rank = static_cast<std::uint32_t>(value - info.first_value);
        const auto code = static_cast<std::uint32_t>(value - packed_base_);
        const DecodeEntry& entry = decode_entry(info, rank);
        packed_entries_[table * kPackedStride + code] =
            entry.start | static_cast<std::uint32_t>(entry.last_bias) << 16;
        std::uint32_t* slots = packed_slots_.data() + (table << precision_) + entry.start;
        for (std::uint32_t bias = 0; bias <= entry.last_bias; ++bias) {
          slots[bias] = entry.last_bias | bias << kPackedBits | code << (2 * kPackedBits);
        }
      }
    }
  }

  int precision_;
  std::vector<TableInfo> infos_;
  std::vector<EncodeEntry> encode_entries_;
  std::vector<DecodeEntry> decode_entries_;
  std::vector<bool> escapes_;
  std::vector<std::uint16_t> ranks_;
  std::vector<std::uint16_t> bucket_ranks_;
  std::vector<std::uint32_t> packed_slots_;
  std::vector<std::uint32_t> packed_entries_;
  std::int32_t packed_base_ = 0;
};

}  // namespace rans
}  // namespace pycodec
