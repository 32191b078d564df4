// The root mean square's norm, row by row.
//
// torch composes it of a dozen operators in bfloat16, which is most of a small model's time for one token.
#include "rms.h"

namespace {

constexpr int64_t kLeastWork = 1 << 17;  // values below which starting threads costs more than it saves

}  // namespace

extern "C" {

// x, y: bfloat16 [rows, width]; weight: [width], float32 if `wide`, else bfloat16.
void lumoe_rms_norm(const uint16_t* x, uint16_t* y, int64_t rows, int64_t width, const void* weight, int64_t wide,
                    float epsilon) {
  const Norm norm{weight, wide, width, epsilon};
#pragma omp parallel for schedule(static) if (rows * width > kLeastWork)
  for (int64_t row = 0; row < rows; ++row) norm.row(x + row * width, y + row * width);
}
}
