// Inner loops for processors with AVX2 and FMA; `experts.cpp` says what the layouts are.
#pragma once
#include <immintrin.h>

#include "lanes.h"
#include "layout.h"

namespace {

constexpr int kTokens = 4;       // tokens that share one reading of the weights
constexpr int kPrefetch = 2048;  // bytes read ahead of use: the processor's own prefetching stops short

constexpr int kLanes = 8;  // outputs in a vector

using Ints = __m256i;
using Floats = __m256;

// How a tile of `T` tokens is computed: vectors of outputs at once, and sums of integers that do not wait for each other.
// More than one token need the registers of half a band.
template <int T>
struct Shape {
  static constexpr int kVectors = T == 1 ? 2 : 1, kChains = 1;
};

inline Ints load(const uint8_t* from) { return _mm256_loadu_si256((const __m256i*)from); }
inline Ints everywhere(int32_t value) { return _mm256_set1_epi32(value); }
inline Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints either(Ints a, Ints b) { return _mm256_or_si256(a, b); }
inline Ints sum(Ints a, Ints b) { return _mm256_add_epi32(a, b); }

// Halves of words to the right by `N` bits, to the left if it is negative.
template <int N>
inline Ints shifted(Ints a) {
  if constexpr (N >= 0) {
    return _mm256_srli_epi16(a, N);
  } else {
    return _mm256_slli_epi16(a, -N);
  }
}

// `to` and the sums of products of two neighbouring 16-bit integers.
inline Ints add_products(Ints to, Ints a, Ints b) { return _mm256_add_epi32(to, _mm256_madd_epi16(a, b)); }

inline Floats floats(Ints a) { return _mm256_cvtepi32_ps(a); }
inline Floats floats(const uint16_t* bfloat16) { return widen(bfloat16); }
inline Floats everywhere(float value) { return _mm256_set1_ps(value); }
inline Floats product(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline void store(float* to, Floats a) { _mm256_storeu_ps(to, a); }

// Sums of products of a bfloat16 row with one token's bfloat16 activations.
inline __m128 folded_products(const uint16_t* row, const uint16_t* x, int inputs) {
  __m256 total[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int k = 0; k < inputs; k += 32) {
    _mm_prefetch((const char*)(row + k) + kPrefetch, _MM_HINT_T0);
    for (int i = 0; i < 4; ++i)
      total[i] = _mm256_fmadd_ps(widen(row + k + 8 * i), widen(x + k + 8 * i), total[i]);
  }
  const __m256 all = _mm256_add_ps(_mm256_add_ps(total[0], total[1]), _mm256_add_ps(total[2], total[3]));
  return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

}  // namespace
