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

// [outputs, inputs]; inputs are a multiple of a line's values, so that all rows begin at the same place within one.
struct Matrix16 {
  const uint16_t* weights;
  int64_t outputs, inputs;

  // Tokens as `dot` wants them: each begins within a cache line where the rows do. `room` begins with a line.
  uint16_t* near(uint16_t* room, int64_t token) const {
    return room + token * (inputs + kLine) + ((uintptr_t)weights & 63) / 2;
  }
  static int64_t room(int64_t tokens, int64_t inputs) { return tokens * (inputs + kLine); }

  // Outputs begin .. end-1 of all tokens, of which `room` has copies, to `store(token, output, value)`.
  template <class Store>
  void rows(uint16_t* room, int64_t tokens, int64_t begin, int64_t end, const Store& store) const {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t t = 0; t < tokens; ++t) store(t, n, dot(weights + n * inputs, near(room, t), int(inputs)));
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
  for (int64_t n = 0; n < w.outputs; ++n) w.rows(room, tokens, n, n + 1, store);
}

}  // namespace
