// What an expert makes of its first two products before the third: silu(gate) * up, or gpt-oss's clamped form of it.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "lanes.h"
#include "layout.h"

namespace {

// gate * sigmoid(alpha * gate) * (up + offset), gate and up within `limit`, after biases (bfloat16 [wide]; or none).
// An infinite limit, alpha 1 and offset 0 are silu(gate) * up.
struct Gate {
  float limit, alpha, offset;
  const uint16_t *gate_bias = nullptr, *up_bias = nullptr;

  Gate with(int64_t gates, int64_t ups) const {
    return {limit, alpha, offset, (const uint16_t*)gates, (const uint16_t*)ups};
  }

  // `wide` is a multiple of 8; `product` may be `gate`.
  void apply(const float* gate, const float* up, int64_t wide, float* product) const {
    const __m256 most = _mm256_set1_ps(limit), least = _mm256_set1_ps(-limit), one = _mm256_set1_ps(1.0f);
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int64_t k = 0; k < wide; k += 8) {
      __m256 a = _mm256_loadu_ps(gate + k), b = _mm256_loadu_ps(up + k);
      if (gate_bias) a = _mm256_add_ps(a, widen(gate_bias + k));
      if (up_bias) b = _mm256_add_ps(b, widen(up_bias + k));
      // What is not a number comes second, which these keep.
      a = _mm256_min_ps(most, a);
      b = _mm256_max_ps(least, _mm256_min_ps(most, b));
      // sigmoid(x) is 1 / (1 + e^-x), and e^x / (1 + e^x): the exponent is never above 0.
      const __m256 x = _mm256_mul_ps(_mm256_set1_ps(alpha), a), power = exponential(_mm256_or_ps(x, sign));
      const __m256 above = _mm256_blendv_ps(one, power, x);
      const __m256 share = _mm256_div_ps(above, _mm256_add_ps(one, power));
      _mm256_storeu_ps(product + k, _mm256_mul_ps(_mm256_mul_ps(a, share), _mm256_add_ps(b, _mm256_set1_ps(offset))));
    }
  }
};

}  // namespace
