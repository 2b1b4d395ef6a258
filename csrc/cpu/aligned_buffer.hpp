#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace pycodec {

// Uninitialized memory that starts on a cache line, so that no full vector load crosses two lines.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(std::size_t bytes)
      : data_(static_cast<std::uint8_t*>(::operator new(bytes, kAlignment))) {}

  std::uint8_t* data() { return data_.get(); }
  const std::uint8_t* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Delete {
    void operator()(std::uint8_t* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<std::uint8_t[], Delete> data_;
};

}  // namespace pycodec
