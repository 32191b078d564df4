// What the inner loops work on.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

constexpr int kBand = 16;  // rows whose codes stand together

struct AffineMatrix {
  const uint8_t* codes;
  const uint16_t *scales, *zeros;  // bfloat16
  int64_t outputs;
  int inputs, group, bits;
};

// Activations in integers, with each group's step and the sum of what is kept.
struct Activations {
  const int16_t* integers;
  const float *steps, *sums;
};

inline float from_bfloat16(uint16_t value) {
  uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline uint16_t to_bfloat16(float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace
