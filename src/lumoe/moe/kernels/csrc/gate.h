// What an expert makes of its first two products before the third: silu(gate) * up, or gpt-oss's clamped form of it.
#pragma once
#include <cmath>
#include <cstdint>

#include "layout.h"

namespace {

// gate * sigmoid(alpha * gate) * (up + offset), gate and up within `limit`, after biases (bfloat16 [wide]; or none).
// An infinite limit, alpha 1 and offset 0 are silu(gate) * up to the bit.
struct Gate {
  float limit, alpha, offset;
  const uint16_t *gate_bias = nullptr, *up_bias = nullptr;

  Gate with(int64_t gates, int64_t ups) const {
    return {limit, alpha, offset, (const uint16_t*)gates, (const uint16_t*)ups};
  }

  void apply(const float* gate, const float* up, int64_t wide, float* product) const {
    for (int64_t k = 0; k < wide; ++k) {
      const float a = std::fmin(gate_bias ? gate[k] + from_bfloat16(gate_bias[k]) : gate[k], limit);
      const float b = up_bias ? up[k] + from_bfloat16(up_bias[k]) : up[k];
      product[k] = a / (1.0f + std::exp(-alpha * a)) * (std::fmax(std::fmin(b, limit), -limit) + offset);
    }
  }
};

}  // namespace
