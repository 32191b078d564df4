// Inner loops for processors with AVX2 and FMA; `experts.cpp` says what the layouts are.
#pragma once
#include <immintrin.h>

#include "layout.h"

namespace {

constexpr bool kExpands = false;  // expanding weights for a bfloat16 product does not pay without its instructions
constexpr int kDecodeRows = 2;    // rows that share one load of the activations, for one token and for several
constexpr int kPrefillRows = 2;
constexpr int kPrefetch = 1024;  // bytes read ahead of use

inline __m256 load_bfloat16(const uint16_t* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16));
}

inline float sum(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// Outputs of rows n .. n+R-1 for tokens t .. t+T-1.
template <int R, int T>
inline void tile(const Int4Matrix& w, const Activations& x, int64_t n, int64_t t, float* y) {
  const int inputs = w.inputs, groups = w.inputs / w.group;
  const uint8_t* codes = w.codes + n * (inputs / 2);
  const uint16_t *scales = w.scales + n * groups, *zeros = w.zeros + n * groups;
  const int16_t* integers = x.integers + t * inputs;
  const float *steps = x.steps + t * groups, *sums = x.sums + t * groups;
  const __m256i mask = _mm256_set1_epi16(15);
  __m256 total[R][T];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < T; ++i) total[r][i] = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    __m256i part[R][T];
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < T; ++i) part[r][i] = _mm256_setzero_si256();
    for (int k = g * w.group; k < (g + 1) * w.group; k += kBlock) {
      __m256i word[R];
      for (int r = 0; r < R; ++r) word[r] = _mm256_loadu_si256((const __m256i*)(codes + r * (inputs / 2) + k / 2));
      for (int quarter = 0; quarter < 4; ++quarter) {
        __m256i nibbles[R];
        for (int r = 0; r < R; ++r) {
          nibbles[r] = _mm256_and_si256(word[r], mask);
          word[r] = _mm256_srli_epi16(word[r], 4);
        }
        for (int i = 0; i < T; ++i) {
          const __m256i v = _mm256_loadu_si256((const __m256i*)(integers + int64_t(i) * inputs + k + 16 * quarter));
          for (int r = 0; r < R; ++r) part[r][i] = _mm256_add_epi32(part[r][i], _mm256_madd_epi16(nibbles[r], v));
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const float scale = from_bfloat16(scales[r * groups + g]);
      for (int i = 0; i < T; ++i) {
        const __m256 factor = _mm256_set1_ps(scale * steps[i * groups + g]);
        total[r][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[r][i]), factor, total[r][i]);
      }
    }
  }
  const __m256 centre = _mm256_set1_ps(-8.0f);
  for (int r = 0; r < R; ++r) {
    float rest[T] = {};
    int g = 0;
    for (; g + 8 <= groups; g += 8) {
      const __m256 offset = _mm256_fmadd_ps(centre, load_bfloat16(scales + r * groups + g), load_bfloat16(zeros + r * groups + g));
      for (int i = 0; i < T; ++i)
        total[r][i] = _mm256_fmadd_ps(offset, _mm256_loadu_ps(sums + i * groups + g), total[r][i]);
    }
    for (; g < groups; ++g) {
      const float offset = from_bfloat16(zeros[r * groups + g]) - 8.0f * from_bfloat16(scales[r * groups + g]);
      for (int i = 0; i < T; ++i) rest[i] += offset * sums[i * groups + g];
    }
    for (int i = 0; i < T; ++i) y[(t + i) * w.outputs + n + r] = sum(total[r][i]) + rest[i];
  }
}

// Dot product of a bfloat16 row with one token's bfloat16 activations.
inline float dot(const uint16_t* row, const uint16_t* x, int inputs) {
  __m256 total[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int k = 0; k < inputs; k += 32) {
    _mm_prefetch((const char*)(row + k) + kPrefetch, _MM_HINT_T0);
    for (int i = 0; i < 4; ++i)
      total[i] = _mm256_fmadd_ps(load_bfloat16(row + k + 8 * i), load_bfloat16(x + k + 8 * i), total[i]);
  }
  return sum(_mm256_add_ps(_mm256_add_ps(total[0], total[1]), _mm256_add_ps(total[2], total[3])));
}

inline void expand_row(const Int4Matrix&, int64_t, uint16_t*) {}

}  // namespace
