// Inner loops for processors with AVX-512 and its VNNI and BF16 extensions; `experts.cpp` says what the layouts are.
#pragma once
#include <immintrin.h>

#include "layout.h"

namespace {

constexpr int kTokens = 8;       // tokens that share one reading of the weights
constexpr int kPrefetch = 2048;  // bytes read ahead of use, within a page: the processor's own prefetching stops short

constexpr int kLanes = 16;  // outputs in a vector

using Ints = __m512i;
using Floats = __m512;

// How a tile of `T` tokens is computed: vectors of outputs at once, and sums of integers that do not wait for each other.
template <int T>
struct Shape {
  static constexpr int kVectors = 1, kChains = T == 1 ? 4 : T < 4 ? 2 : 1;
};

inline Ints load(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline Ints everywhere(int32_t value) { return _mm512_set1_epi32(value); }
inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
inline Ints sum(Ints a, Ints b) { return _mm512_add_epi32(a, b); }

// Halves of words to the right by `N` bits, to the left if it is negative.
template <int N>
inline Ints shifted(Ints a) {
  if constexpr (N >= 0) {
    return _mm512_srli_epi16(a, N);
  } else {
    return _mm512_slli_epi16(a, -N);
  }
}

// `to` and the sums of products of two neighbouring 16-bit integers.
inline Ints add_products(Ints to, Ints a, Ints b) { return _mm512_dpwssd_epi32(to, a, b); }

inline Floats floats(Ints a) { return _mm512_cvtepi32_ps(a); }
inline Floats floats(const uint16_t* bfloat16) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)bfloat16));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Floats everywhere(float value) { return _mm512_set1_ps(value); }
inline Floats product(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }

// Sums of products of a bfloat16 row with one token's bfloat16 activations. Checkpoints put tensors at any even address: loads
// that straddle cache lines cost a fifth of the bandwidth, so `x` must lie at the same place within a line as `row`.
inline __m512 products(const uint16_t* row, const uint16_t* x, int inputs) {
  const int skew = int(((uintptr_t)row & 63) / 2);
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  int k = -skew;
  if (skew) {
    const __mmask32 some = ~__mmask32(0) << skew;
    total[0] = _mm512_dpbf16_ps(total[0], (__m512bh)_mm512_maskz_loadu_epi16(some, row + k),
                                (__m512bh)_mm512_maskz_loadu_epi16(some, x + k));
    k += 32;
  }
  for (; k + 64 <= inputs; k += 64) {
    for (int half = 0; half < 2; ++half) {
      _mm_prefetch((const char*)(row + k + 32 * half) + kPrefetch, _MM_HINT_T0);
      const __m512bh weights = (__m512bh)_mm512_loadu_si512(row + k + 32 * half);
      total[half] = _mm512_dpbf16_ps(total[half], weights, (__m512bh)_mm512_loadu_si512(x + k + 32 * half));
    }
  }
  for (; k < inputs; k += 32) {
    const __mmask32 some = inputs - k < 32 ? (__mmask32(1) << (inputs - k)) - 1 : ~__mmask32(0);
    total[1] = _mm512_dpbf16_ps(total[1], (__m512bh)_mm512_maskz_loadu_epi16(some, row + k),
                                (__m512bh)_mm512_maskz_loadu_epi16(some, x + k));
  }
  return _mm512_add_ps(total[0], total[1]);
}

// The sum of sixteen lanes in four.
inline __m128 folded(__m512 v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline __m128 folded_products(const uint16_t* row, const uint16_t* x, int inputs) { return folded(products(row, x, inputs)); }

}  // namespace
