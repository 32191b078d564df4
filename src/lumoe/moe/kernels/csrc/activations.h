// Rounding activations to 16-bit integers: finer than the bfloat16 they come in, so that sums of products are exact.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "lanes.h"

namespace {

constexpr float kLargest = 32767.0f;

// Largest magnitude of `count` values, a multiple of 8.
inline float largest(const float* values, int count) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 found = _mm256_setzero_ps();
  for (int k = 0; k < count; k += 8) found = _mm256_max_ps(found, _mm256_andnot_ps(sign, _mm256_loadu_ps(values + k)));
  float parts[8], top = 0;
  _mm256_storeu_ps(parts, found);
  for (float part : parts) top = part > top ? part : top;
  return top;
}

// Store 16 values times `inverse` as integers; return their sums by eights.
inline __m256i round16(const float* values, __m256 inverse, int16_t* to) {
  const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values), inverse));
  const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + 8), inverse));
  _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
  return _mm256_add_epi32(low, high);
}

inline int32_t sum_of(__m256i counts) {
  int32_t parts[8], count = 0;
  _mm256_storeu_si256((__m256i*)parts, counts);
  for (int32_t part : parts) count += part;
  return count;
}

}  // namespace
