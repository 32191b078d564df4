// Division by the root mean square: x / sqrt(mean(x²) + epsilon) * weight, in float32 within.
#pragma once
#include <cmath>

#include "lanes.h"
#include "layout.h"

namespace {

inline float mean_square(const uint16_t* x, int64_t width) {
  __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  float rest = 0;
  int64_t k = 0;
  for (; k + 16 <= width; k += 16)
    for (int half = 0; half < 2; ++half) {
      const __m256 v = widen(x + k + 8 * half);
      total[half] = _mm256_fmadd_ps(v, v, total[half]);
    }
  for (; k < width; ++k) rest += from_bfloat16(x[k]) * from_bfloat16(x[k]);
  return (sum(_mm256_add_ps(total[0], total[1])) + rest) / float(width);
}

inline float value(const uint16_t* weight, int64_t k) { return from_bfloat16(weight[k]); }
inline float value(const float* weight, int64_t k) { return weight[k]; }

// One row; weights in bfloat16 or float32.
template <class W>
void normalize(const uint16_t* x, uint16_t* y, int64_t width, const W* weight, float epsilon) {
  const float factor = 1.0f / std::sqrt(mean_square(x, width) + epsilon);
  for (int64_t k = 0; k < width; ++k) y[k] = to_bfloat16(from_bfloat16(x[k]) * factor * value(weight, k));
}

// Weights of a norm: float32 if `wide`, else bfloat16.
struct Norm {
  const void* weight;
  int64_t wide, width;
  float epsilon;

  void row(const uint16_t* x, uint16_t* y) const {
    if (wide) normalize(x, y, width, (const float*)weight, epsilon);
    else normalize(x, y, width, (const uint16_t*)weight, epsilon);
  }
};

}  // namespace
