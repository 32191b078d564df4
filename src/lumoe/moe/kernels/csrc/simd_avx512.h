// Inner loops for processors with AVX-512 and its VNNI and BF16 extensions; `experts.cpp` says what the layouts are.
#pragma once
#include <immintrin.h>

#include "layout.h"

namespace {

constexpr bool kExpands = true;
constexpr int kTokens = 8;        // tokens that share one reading of the weights
constexpr int kPrefetch = 2048;  // bytes read ahead of use, within a page: the processor's own prefetching stops short

inline __m512 load_bfloat16(const uint16_t* from) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}

// Outputs of band `number` for tokens t .. t+T-1.
template <int T>
inline void tile(const Int4Matrix& w, const Activations& x, int64_t number, int64_t t, float* y, int64_t stride) {
  constexpr int kChains = T == 1 ? 4 : T < 4 ? 2 : 1;  // sums of integers that do not wait for each other
  const int inputs = w.inputs, groups = w.inputs / w.group;
  const uint8_t* codes = w.codes + number * kBand * (inputs / 2);
  const uint16_t *scales = w.scales + number * kBand * groups, *zeros = w.zeros + number * kBand * groups;
  const int16_t* integers = x.integers + t * inputs;
  const float *steps = x.steps + t * groups, *sums = x.sums + t * groups;
  const __m512i mask = _mm512_set1_epi32(0x000f000f);
  __m512 total[T];
  for (int i = 0; i < T; ++i) total[i] = _mm512_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    __m512i part[T][kChains];
    for (int i = 0; i < T; ++i)
      for (int c = 0; c < kChains; ++c) part[i][c] = _mm512_setzero_si512();
    for (int k = g * w.group; k < (g + 1) * w.group; k += kStep, codes += 4 * kBand) {
      _mm_prefetch((const char*)codes + kPrefetch, _MM_HINT_T0);
      const __m512i word = _mm512_loadu_si512(codes);
      for (int pair = 0; pair < 4; ++pair) {
        const __m512i nibbles = _mm512_and_si512(_mm512_srli_epi16(word, 4 * pair), mask);
        for (int i = 0; i < T; ++i) {
          int32_t two;
          std::memcpy(&two, integers + int64_t(i) * inputs + k + 2 * pair, 4);
          part[i][pair % kChains] = _mm512_dpwssd_epi32(part[i][pair % kChains], nibbles, _mm512_set1_epi32(two));
        }
      }
    }
    const __m512 scale = load_bfloat16(scales + g * kBand);
    const __m512 offset = _mm512_fmadd_ps(_mm512_set1_ps(-8.0f), scale, load_bfloat16(zeros + g * kBand));
    for (int i = 0; i < T; ++i) {
      for (int c = 1; c < kChains; ++c) part[i][0] = _mm512_add_epi32(part[i][0], part[i][c]);
      const __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(steps[i * groups + g]));
      total[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[i][0]), factor, total[i]);
      total[i] = _mm512_fmadd_ps(offset, _mm512_set1_ps(sums[i * groups + g]), total[i]);
    }
  }
  for (int i = 0; i < T; ++i) _mm512_storeu_ps(y + i * stride, total[i]);
}

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

// The first `count` rows of band `number` as bfloat16 [count, inputs]. A group of a row has sixteen values: they are
// computed once and looked up.
inline void expand_band(const Int4Matrix& w, int64_t number, int count, uint16_t* to) {
  const int inputs = w.inputs, groups = w.inputs / w.group;
  const uint8_t* codes = w.codes + number * kBand * (inputs / 2);
  const uint16_t *scales = w.scales + number * kBand * groups, *zeros = w.zeros + number * kBand * groups;
  const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i shifts = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 4, 8, 12));
  const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  for (int g = 0; g < groups; ++g) {
    __m512i table[kBand];
    for (int r = 0; r < count; ++r) {
      const __m512 scale = _mm512_set1_ps(from_bfloat16(scales[g * kBand + r]));
      const __m512 zero = _mm512_set1_ps(from_bfloat16(zeros[g * kBand + r]));
      // Twice, so that the fifth bit of an index does not count.
      table[r] = _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(values, scale, zero)));
    }
    for (int k = g * w.group; k < (g + 1) * w.group; k += 4 * kStep, codes += 16 * kBand) {
      // Four words of each row beside each other: rows 0, 4, 8, 12 in the first vector, 1, 5, 9, 13 in the second, ...
      const __m512i a = _mm512_loadu_si512(codes), b = _mm512_loadu_si512(codes + 64);
      const __m512i c = _mm512_loadu_si512(codes + 128), d = _mm512_loadu_si512(codes + 192);
      const __m512i low = _mm512_unpacklo_epi32(a, b), high = _mm512_unpackhi_epi32(a, b);
      const __m512i low2 = _mm512_unpacklo_epi32(c, d), high2 = _mm512_unpackhi_epi32(c, d);
      const __m512i rows[4] = {_mm512_unpacklo_epi64(low, low2), _mm512_unpackhi_epi64(low, low2),
                               _mm512_unpacklo_epi64(high, high2), _mm512_unpackhi_epi64(high, high2)};
      for (int r = 0; r < count; ++r) {
        const __m512i index = _mm512_add_epi32(each, _mm512_set1_epi32(r / 4 * 4));
        const __m512i pairs = _mm512_srlv_epi32(_mm512_permutexvar_epi32(index, rows[r % 4]), shifts);
        _mm512_storeu_si512(to + int64_t(r) * inputs + k, _mm512_permutexvar_epi16(pairs, table[r]));
      }
    }
  }
}

}  // namespace
