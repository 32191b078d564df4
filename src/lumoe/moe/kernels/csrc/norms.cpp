// Division by the root mean square, row by row: x / sqrt(mean(x²) + epsilon) * weight, in float32 within.
//
// torch composes it of a dozen operators in bfloat16, which is most of a small model's time for one token.
#include <cmath>

#include "lanes.h"
#include "layout.h"

namespace {

constexpr int64_t kLeastWork = 1 << 17;  // values below which starting threads costs more than it saves

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

template <class W>
void normalize(const uint16_t* x, uint16_t* y, int64_t rows, int64_t width, const W* weight, float epsilon) {
#pragma omp parallel for schedule(static) if (rows * width > kLeastWork)
  for (int64_t row = 0; row < rows; ++row) {
    const uint16_t* from = x + row * width;
    uint16_t* to = y + row * width;
    const float factor = 1.0f / std::sqrt(mean_square(from, width) + epsilon);
    for (int64_t k = 0; k < width; ++k) to[k] = to_bfloat16(from_bfloat16(from[k]) * factor * value(weight, k));
  }
}

}  // namespace

extern "C" {

// x, y: bfloat16 [rows, width]; weight: [width], float32 if `wide`, else bfloat16.
void lumoe_rms_norm(const uint16_t* x, uint16_t* y, int64_t rows, int64_t width, const void* weight, int64_t wide,
                    float epsilon) {
  if (wide) return normalize(x, y, rows, width, (const float*)weight, epsilon);
  normalize(x, y, rows, width, (const uint16_t*)weight, epsilon);
}
}
