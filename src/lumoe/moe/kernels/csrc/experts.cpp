// Products with affine int4 weights and bfloat16 ones, and a whole expert, y = W2 (silu(W1 x) * (W3 x)).
//
// Int4 weights are w = (code - 8) * scale + zero with codes 0..15, one scale and zero for each group of inputs. Activations
// are rounded to 16-bit integers group by group, finer than the bfloat16 they come in, so that sums within a group are
// exact integer sums: sum_k w x = scale * step * sum_k code * integer + (zero - 8 * scale) * sum_k x.
//
// Layout of a row: blocks of 64 inputs in 16 words of 16 bits; word i holds inputs i, 16+i, 32+i and 48+i from its low
// to its high nibble, so that shifts and masks make vectors that meet neighbouring activations.
//
// Compiled at run time with -fopenmp but linked without an OpenMP runtime: torch's own, already in the process, serves
// both, and its threads are shared.
#include <cmath>
#include <vector>

#include "activations.h"
#include "layout.h"
#ifdef LUMOE_AVX512
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif

namespace {

constexpr int kTokens = 4;               // tokens that share one reading of the weights
constexpr int kRowsInCache = 16;         // rows that stay in cache while all tokens pass by
constexpr int64_t kLeastWork = 1 << 18;  // multiply-adds below which starting threads costs more than it saves

// Round one token's activations, `inputs` floats: integers, and for each group its step and the sum of what is kept.
void round_activations(const float* from, int inputs, int group, int16_t* to, float* steps, float* sums) {
  for (int g = 0; g < inputs / group; ++g) {
    const float* values = from + g * group;
    const float top = largest(values, group);
    const __m256 inverse = _mm256_set1_ps(top > 0 ? kLargest / top : 0.0f);
    __m256i total = _mm256_setzero_si256();
    for (int k = 0; k < group; k += 16) total = _mm256_add_epi32(total, round16(values + k, inverse, to + g * group + k));
    steps[g] = top / kLargest;
    sums[g] = steps[g] * float(sum_of(total));
  }
}

// Rows begin .. end-1 for tokens t .. t+T-1, R rows at a time and the rest one by one.
template <int R, int T>
inline void band(const Int4Matrix& w, const Activations& x, int64_t begin, int64_t end, int64_t t, float* y) {
  int64_t n = begin;
  for (; n + R <= end; n += R) tile<R, T>(w, x, n, t, y);
  for (; n < end; ++n) tile<1, T>(w, x, n, t, y);
}

// y [tokens, outputs] float = activations [tokens, inputs] times the transposed weights.
void multiply(const Int4Matrix& w, const Activations& x, int64_t tokens, float* y) {
  const int64_t blocks = (w.outputs + kRowsInCache - 1) / kRowsInCache;
#pragma omp parallel for schedule(static) if (w.outputs * w.inputs * tokens > kLeastWork)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kRowsInCache;
    const int64_t end = begin + kRowsInCache < w.outputs ? begin + kRowsInCache : w.outputs;
    int64_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) band<kPrefillRows, kTokens>(w, x, begin, end, t, y);
    for (; t < tokens; ++t) band<kDecodeRows, 1>(w, x, begin, end, t, y);
  }
}

// Room for one product's inputs: floats, integers, steps and sums.
struct Scratch {
  float* values;
  float *steps, *sums;
  int16_t* integers;

  Scratch(uint8_t* memory, int64_t tokens, int64_t inputs, int64_t group)
      : values((float*)memory),
        steps(values + tokens * inputs),
        sums(steps + tokens * (inputs / group)),
        integers((int16_t*)(sums + tokens * (inputs / group))) {}

  static int64_t bytes(int64_t tokens, int64_t inputs, int64_t group) {
    return tokens * (inputs * 6 + inputs / group * 8);
  }

  void round(int64_t t, int64_t inputs, int64_t group) {
    const int64_t g = t * (inputs / group);
    round_activations(values + t * inputs, int(inputs), int(group), integers + t * inputs, steps + g, sums + g);
  }

  void take(const uint16_t* from, int64_t tokens, int64_t inputs, int64_t group) {
#pragma omp parallel for schedule(static) if (tokens > 8)
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t k = 0; k < inputs; k += 8) _mm256_storeu_ps(values + t * inputs + k, widen(from + t * inputs + k));
      round(t, inputs, group);
    }
  }

  Activations activations() const { return {integers, steps, sums}; }
};

}  // namespace

extern "C" {

// Whether `lumoe_expand` is worth calling on this processor.
int64_t lumoe_expands() { return kExpands; }

// Bytes of scratch that `lumoe_expert` needs.
int64_t lumoe_expert_scratch(int64_t tokens, int64_t hidden, int64_t wide, int64_t group) {
  const int64_t widest = hidden > wide ? hidden : wide;
  return tokens * 2 * wide * 4 + Scratch::bytes(tokens, widest, group) + 256;
}

// hidden_in, hidden_out: bfloat16 [tokens, hidden]; w13: rows of w1, then of w3, [2 wide, hidden]; w2: [hidden, wide].
void lumoe_expert(const uint16_t* hidden_in, uint16_t* hidden_out, int64_t tokens, int64_t hidden, int64_t wide,
                  int64_t group, const uint8_t* w13, const uint16_t* w13_scales, const uint16_t* w13_zeros,
                  const uint8_t* w2, const uint16_t* w2_scales, const uint16_t* w2_zeros, uint8_t* scratch) {
  float* both = (float*)scratch;  // [tokens, 2 wide], later the output [tokens, hidden]
  uint8_t* rest = scratch + tokens * 2 * wide * 4;
  Scratch in(rest, tokens, hidden, group);
  in.take(hidden_in, tokens, hidden, group);
  multiply({w13, w13_scales, w13_zeros, 2 * wide, int(hidden), int(group)}, in.activations(), tokens, both);
  Scratch middle(rest, tokens, wide, group);
#pragma omp parallel for schedule(static) if (tokens > 8)
  for (int64_t t = 0; t < tokens; ++t) {
    const float *gate = both + t * 2 * wide, *up = gate + wide;
    float* product = middle.values + t * wide;
    for (int64_t k = 0; k < wide; ++k) product[k] = gate[k] / (1.0f + std::exp(-gate[k])) * up[k];
    middle.round(t, wide, group);
  }
  float* out = both;
  multiply({w2, w2_scales, w2_zeros, hidden, int(wide), int(group)}, middle.activations(), tokens, out);
  for (int64_t i = 0; i < tokens * hidden; ++i) hidden_out[i] = to_bfloat16(out[i]);
}

// Bytes of scratch that `lumoe_linear4` needs.
int64_t lumoe_linear4_scratch(int64_t tokens, int64_t outputs, int64_t inputs, int64_t group) {
  return tokens * outputs * 4 + Scratch::bytes(tokens, inputs, group) + 256;
}

// y [tokens, outputs] = x [tokens, inputs] times the transposed int4 weights, bfloat16 in and out.
void lumoe_linear4(const uint16_t* x, uint16_t* y, int64_t tokens, int64_t outputs, int64_t inputs, int64_t group,
                   const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros, uint8_t* scratch) {
  float* out = (float*)scratch;
  Scratch in(scratch + tokens * outputs * 4, tokens, inputs, group);
  in.take(x, tokens, inputs, group);
  multiply({codes, scales, zeros, outputs, int(inputs), int(group)}, in.activations(), tokens, out);
  for (int64_t i = 0; i < tokens * outputs; ++i) y[i] = to_bfloat16(out[i]);
}

// y [outputs] = weights [outputs, inputs] times x [inputs], all bfloat16, sums in float32.
void lumoe_linear16(const uint16_t* x, uint16_t* y, int64_t outputs, int64_t inputs, const uint16_t* weights) {
  // A copy of x at the weights' place within a cache line; inputs are a multiple of a line's 32 values.
  static thread_local std::vector<uint16_t> memory;
  memory.resize(inputs + 96);
  uint16_t* line = (uint16_t*)(((uintptr_t)memory.data() + 63) & ~uintptr_t(63));
  uint16_t* near = line + ((uintptr_t)weights & 63) / 2;
  std::memcpy(near, x, inputs * 2);
#pragma omp parallel for schedule(static) if (outputs * inputs > kLeastWork)
  for (int64_t n = 0; n < outputs; ++n) y[n] = to_bfloat16(dot(weights + n * inputs, near, int(inputs)));
}

// Rows of int4 weights as bfloat16 [rows, inputs].
void lumoe_expand(uint16_t* to, int64_t rows, int64_t inputs, int64_t group, const uint8_t* codes,
                  const uint16_t* scales, const uint16_t* zeros) {
  const Int4Matrix w{codes, scales, zeros, rows, int(inputs), int(group)};
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < rows; ++n) expand_row(w, n, to + n * inputs);
}
}
