// Lets AddressSanitizer see what gathers read: it checks loads and stores, but not these
// intrinsics. run.py includes this before everything else in the SIMD variants for x86.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

// Reads the first and the last byte of every item whose lane is on.
template <int kLanes>
void touch(const void* base, const std::int32_t (&offsets)[kLanes], unsigned on, int scale) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((on >> lane & 1) == 0) continue;
    const auto* const item =
        static_cast<const volatile std::uint8_t*>(base) + std::int64_t{offsets[lane]} * scale;
    static_cast<void>(item[0]);
    static_cast<void>(item[3]);
  }
}

template <int kScale>
__m256i checked_gather(__m256i other, const int* base, __m256i offsets, __m256i on) {
  alignas(32) std::int32_t items[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(items), offsets);
  const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(on));
  touch(base, items, static_cast<unsigned>(mask), kScale);
  return _mm256_mask_i32gather_epi32(other, base, offsets, on, kScale);
}

#if defined(__AVX512F__)
template <int kScale>
__m512i checked_gather(__m512i other, __mmask16 on, __m512i offsets, const void* base) {
  alignas(64) std::int32_t items[16];
  _mm512_store_si512(items, offsets);
  touch(base, items, on, kScale);
  return _mm512_mask_i32gather_epi32(other, on, offsets, base, kScale);
}
#endif

}  // namespace

#undef _mm256_mask_i32gather_epi32
#define _mm256_mask_i32gather_epi32(other, base, offsets, on, scale) \
  checked_gather<scale>(other, base, offsets, on)
#undef _mm256_i32gather_epi32
#define _mm256_i32gather_epi32(base, offsets, scale) \
  checked_gather<scale>(_mm256_setzero_si256(), base, offsets, _mm256_set1_epi32(-1))
#undef _mm512_mask_i32gather_epi32
#define _mm512_mask_i32gather_epi32(other, on, offsets, base, scale) \
  checked_gather<scale>(other, on, offsets, base)
#undef _mm512_i32gather_epi32
#define _mm512_i32gather_epi32(offsets, base, scale) \
  checked_gather<scale>(_mm512_setzero_si512(), 0xffff, offsets, base)
