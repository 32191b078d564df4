// Products of bfloat16 weights with some tokens, sums in float32.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

#include "layout.h"
#include "simd.h"

namespace {

constexpr int64_t kLine = 32;  // values of a cache line
constexpr int64_t kWork16 = 1 << 20;  // multiply-adds below which starting threads costs more than it saves

constexpr int64_t kRows = 16;  // outputs that one thread computes before it goes on

inline int64_t pieces16(int64_t outputs) { return (outputs + kRows - 1) / kRows; }
inline int64_t end16(int64_t piece, int64_t outputs) { return (piece + 1) * kRows < outputs ? (piece + 1) * kRows : outputs; }

// [outputs, inputs]; inputs are a multiple of a line's values, so that all rows begin at the same place within one.
struct Matrix16 {
  const uint16_t* weights;
  int64_t outputs, inputs;

  // Tokens as `dot` wants them: each begins within a cache line where the rows do. `room` begins with a line.
  uint16_t* near(uint16_t* room, int64_t token) const {
    return room + token * (inputs + kLine) + ((uintptr_t)weights & 63) / 2;
  }
  static int64_t room(int64_t tokens, int64_t inputs) { return tokens * (inputs + kLine); }

  // Outputs begin .. end-1 of all tokens, of which `room` has copies, to `store(token, output, value)`. Lanes of four
  // outputs are added together; each is the same sum whatever stands beside it.
  template <class Store>
  void rows(uint16_t* room, int64_t tokens, int64_t begin, int64_t end, const Store& store) const {
    for (int64_t n = begin; n < end; n += 4) {
      const int64_t some = end - n < 4 ? end - n : 4;
      for (int64_t t = 0; t < tokens; ++t) {
        __m128 v[4] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
        for (int64_t i = 0; i < some; ++i) v[i] = folded_products(weights + (n + i) * inputs, near(room, t), int(inputs));
        _MM_TRANSPOSE4_PS(v[0], v[1], v[2], v[3]);
        float sums[4];
        _mm_storeu_ps(sums, _mm_add_ps(_mm_add_ps(v[0], v[2]), _mm_add_ps(v[1], v[3])));
        for (int64_t i = 0; i < some; ++i) store(t, n + i, sums[i]);
      }
    }
  }
};

// All outputs of tokens x [tokens, inputs].
template <class Store>
void multiply16(const Matrix16& w, const uint16_t* x, int64_t tokens, const Store& store) {
  static thread_local std::vector<uint16_t> memory;
  memory.resize(Matrix16::room(tokens, w.inputs) + 2 * kLine);
  uint16_t* room = (uint16_t*)(((uintptr_t)memory.data() + 63) & ~uintptr_t(63));
  for (int64_t t = 0; t < tokens; ++t) std::memcpy(w.near(room, t), x + t * w.inputs, w.inputs * 2);
#pragma omp parallel for schedule(static) if (w.outputs * w.inputs * tokens > kWork16)
  for (int64_t piece = 0; piece < pieces16(w.outputs); ++piece)
    w.rows(room, tokens, piece * kRows, end16(piece, w.outputs), store);
}

}  // namespace
