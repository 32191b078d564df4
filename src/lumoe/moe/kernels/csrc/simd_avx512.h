// Inner loops for processors with AVX-512 and its VNNI and BF16 extensions; `experts.cpp` says what the layouts are.
#pragma once
#include <immintrin.h>

#include "layout.h"

namespace {

constexpr bool kExpands = true;
constexpr int kDecodeRows = 2;  // rows that share one load of the activations, for one token and for several
constexpr int kPrefillRows = 2;
constexpr int kPrefetch = 2048;  // bytes read ahead of use, within a page: the processor's own prefetching stops short

// The first `count` (up to 16) of some bfloat16 values, zeros after them.
inline __m512 load_bfloat16(const uint16_t* from, int count) {
  const __m256i narrow = _mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

// The 64 codes of a block, as two vectors of 32 in the order of the inputs; only the low four bits of each count.
struct Nibbles {
  __m512i low, high;
};

inline Nibbles unpack(const uint8_t* block) {
  const __m512i low = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  const __m512i words = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)block));
  return {_mm512_srlv_epi16(words, low), _mm512_srlv_epi16(words, _mm512_add_epi16(low, _mm512_set1_epi16(8)))};
}

// Outputs of rows n .. n+R-1 for tokens t .. t+T-1. Sixteen groups at a time: their scales make one vector.
template <int R, int T>
inline void tile(const Int4Matrix& w, const Activations& x, int64_t n, int64_t t, float* y) {
  const int inputs = w.inputs, groups = w.inputs / w.group;
  const uint8_t* codes = w.codes + n * (inputs / 2);
  const uint16_t *scales = w.scales + n * groups, *zeros = w.zeros + n * groups;
  const int16_t* integers = x.integers + t * inputs;
  const float *steps = x.steps + t * groups, *sums = x.sums + t * groups;
  const __m512i mask = _mm512_set1_epi16(15);
  const __m512 centre = _mm512_set1_ps(-8.0f);
  __m512 total[R][T];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < T; ++i) total[r][i] = _mm512_setzero_ps();
  for (int first = 0; first < groups; first += 16) {
    const int count = groups - first < 16 ? groups - first : 16;
    const __mmask16 some = __mmask16((1u << count) - 1);
    alignas(64) float factors[R][T][16];  // what a group's integer sum is worth
    for (int r = 0; r < R; ++r) {
      const __m512 scale = load_bfloat16(scales + r * groups + first, count);
      const __m512 offset = _mm512_fmadd_ps(centre, scale, load_bfloat16(zeros + r * groups + first, count));
      for (int i = 0; i < T; ++i) {
        const __m512 step = _mm512_maskz_loadu_ps(some, steps + i * groups + first);
        _mm512_store_ps(factors[r][i], _mm512_mul_ps(scale, step));
        total[r][i] = _mm512_fmadd_ps(offset, _mm512_maskz_loadu_ps(some, sums + i * groups + first), total[r][i]);
      }
    }
    for (int g = 0; g < count; ++g) {
      __m512i part[R][T];
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < T; ++i) part[r][i] = _mm512_setzero_si512();
      const int begin = (first + g) * w.group;
      for (int k = begin; k < begin + w.group; k += kBlock) {
        Nibbles nibbles[R];
        for (int r = 0; r < R; ++r) {
          const uint8_t* block = codes + r * (inputs / 2) + k / 2;
          _mm_prefetch((const char*)block + kPrefetch, _MM_HINT_T0);
          nibbles[r] = unpack(block);
          nibbles[r].low = _mm512_and_si512(nibbles[r].low, mask);
          nibbles[r].high = _mm512_and_si512(nibbles[r].high, mask);
        }
        for (int i = 0; i < T; ++i) {
          const __m512i low = _mm512_loadu_si512(integers + int64_t(i) * inputs + k);
          const __m512i high = _mm512_loadu_si512(integers + int64_t(i) * inputs + k + 32);
          for (int r = 0; r < R; ++r) {
            part[r][i] = _mm512_dpwssd_epi32(part[r][i], nibbles[r].low, low);
            part[r][i] = _mm512_dpwssd_epi32(part[r][i], nibbles[r].high, high);
          }
        }
      }
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < T; ++i)
          total[r][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[r][i]), _mm512_set1_ps(factors[r][i][g]), total[r][i]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < T; ++i) y[(t + i) * w.outputs + n + r] = _mm512_reduce_add_ps(total[r][i]);
}

// Dot product of a bfloat16 row with one token's bfloat16 activations. Checkpoints put tensors at any even address: loads
// that straddle cache lines cost a fifth of the bandwidth, so `x` must lie at the same place within a line as `row`.
inline float dot(const uint16_t* row, const uint16_t* x, int inputs) {
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
  return _mm512_reduce_add_ps(_mm512_add_ps(total[0], total[1]));
}

// Row n as bfloat16. A group has sixteen values: they are computed once and looked up.
inline void expand_row(const Int4Matrix& w, int64_t n, uint16_t* to) {
  const int groups = w.inputs / w.group;
  const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  for (int g = 0; g < groups; ++g) {
    const __m512 scale = _mm512_set1_ps(from_bfloat16(w.scales[n * groups + g]));
    const __m512 zero = _mm512_set1_ps(from_bfloat16(w.zeros[n * groups + g]));
    const __m256i values = (__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(codes, scale, zero));
    const __m512i table = _mm512_broadcast_i64x4(values);  // twice, so that the fifth bit of an index does not count
    for (int k = g * w.group; k < (g + 1) * w.group; k += kBlock) {
      const Nibbles nibbles = unpack(w.codes + (n * w.inputs + k) / 2);
      _mm512_storeu_si512(to + k, _mm512_permutexvar_epi16(nibbles.low, table));
      _mm512_storeu_si512(to + k + 32, _mm512_permutexvar_epi16(nibbles.high, table));
    }
  }
}

}  // namespace
