// Inner loops for processors with AVX2 and FMA; `experts.cpp` says what the layouts are.
#pragma once
#include <immintrin.h>

#include "lanes.h"
#include "layout.h"

namespace {

constexpr bool kExpands = false;  // expanding weights for a bfloat16 product does not pay without its instructions
constexpr int kTokens = 4;        // tokens that share one reading of the weights
constexpr int kPrefetch = 2048;  // bytes read ahead of use: the processor's own prefetching stops short

// Outputs of `H` halves of a band, eight rows each, from half `first` on, for tokens t .. t+T-1.
template <int H, int T>
inline void halves(const Int4Matrix& w, const Activations& x, int64_t number, int first, int64_t t, float* y, int64_t stride) {
  const int inputs = w.inputs, groups = w.inputs / w.group;
  const uint8_t* codes = w.codes + number * kBand * (inputs / 2) + 32 * first;
  const uint16_t *scales = w.scales + number * kBand * groups + 8 * first, *zeros = w.zeros + number * kBand * groups + 8 * first;
  const int16_t* integers = x.integers + t * inputs;
  const float *steps = x.steps + t * groups, *sums = x.sums + t * groups;
  const __m256i mask = _mm256_set1_epi32(0x000f000f);
  __m256 total[H][T];
  for (int h = 0; h < H; ++h)
    for (int i = 0; i < T; ++i) total[h][i] = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    __m256i part[H][T];
    for (int h = 0; h < H; ++h)
      for (int i = 0; i < T; ++i) part[h][i] = _mm256_setzero_si256();
    for (int k = g * w.group; k < (g + 1) * w.group; k += kStep, codes += 4 * kBand) {
      __m256i word[H];
      _mm_prefetch((const char*)codes + kPrefetch, _MM_HINT_T0);
      for (int h = 0; h < H; ++h) word[h] = _mm256_loadu_si256((const __m256i*)(codes + 32 * h));
      for (int pair = 0; pair < 4; ++pair) {
        __m256i nibbles[H];
        for (int h = 0; h < H; ++h) nibbles[h] = _mm256_and_si256(_mm256_srli_epi16(word[h], 4 * pair), mask);
        for (int i = 0; i < T; ++i) {
          int32_t two;
          std::memcpy(&two, integers + int64_t(i) * inputs + k + 2 * pair, 4);
          const __m256i v = _mm256_set1_epi32(two);
          for (int h = 0; h < H; ++h) part[h][i] = _mm256_add_epi32(part[h][i], _mm256_madd_epi16(nibbles[h], v));
        }
      }
    }
    for (int h = 0; h < H; ++h) {
      const __m256 scale = widen(scales + g * kBand + 8 * h);
      const __m256 offset = _mm256_fmadd_ps(_mm256_set1_ps(-8.0f), scale, widen(zeros + g * kBand + 8 * h));
      for (int i = 0; i < T; ++i) {
        const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(steps[i * groups + g]));
        total[h][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[h][i]), factor, total[h][i]);
        total[h][i] = _mm256_fmadd_ps(offset, _mm256_set1_ps(sums[i * groups + g]), total[h][i]);
      }
    }
  }
  for (int h = 0; h < H; ++h)
    for (int i = 0; i < T; ++i) _mm256_storeu_ps(y + i * stride + 8 * (first + h), total[h][i]);
}

// Outputs of band `number` for tokens t .. t+T-1; more than one token need the registers of half a band.
template <int T>
inline void tile(const Int4Matrix& w, const Activations& x, int64_t number, int64_t t, float* y, int64_t stride) {
  if constexpr (T == 1) {
    halves<2, T>(w, x, number, 0, t, y, stride);
  } else {
    halves<1, T>(w, x, number, 0, t, y, stride);
    halves<1, T>(w, x, number, 1, t, y, stride);
  }
}

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

inline void expand_band(const Int4Matrix&, int64_t, int, uint16_t*) {}

}  // namespace
