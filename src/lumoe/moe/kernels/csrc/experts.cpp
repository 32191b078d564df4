// Products with affine int4 weights and bfloat16 ones, and whole experts, y = W2 (silu(W1 x) * (W3 x)).
//
// Int4 weights are w = (code - 8) * scale + zero with codes 0..15, one scale and zero for each group of inputs. Activations
// are rounded to 16-bit integers group by group, finer than the bfloat16 they come in, so that sums within a group are
// exact integer sums: sum_k w x = scale * step * sum_k code * integer + (zero - 8 * scale) * sum_k x.
//
// Layout: bands of 16 rows (outputs). Of a band, eight inputs after another; of these, each row in turn has a word of 32
// bits, whose halves hold inputs 0, 2, 4, 6 and 1, 3, 5, 7 from the low to the high nibble: shifts and a mask make pairs of
// 16-bit codes that meet pairs of neighbouring activations, the same for all rows. A row's sum thus stays in its own lane:
// nothing is added across lanes, and results do not depend on how wide the processor's vectors are, nor on how many
// tokens are computed together. Scales and zeros: of each group, those of a band's rows one after another.
//
// Compiled at run time with -fopenmp but linked without an OpenMP runtime: torch's own, already in the process, serves
// both, and its threads are shared.
#include <vector>

#include "activations.h"
#include "gate.h"
#include "layout.h"
#include "together.h"
#ifdef LUMOE_AVX512
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif

namespace {

constexpr int kTogether = 4;             // bands that stay in cache while many tokens pass by
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

// Outputs of one band for tokens begin .. end-1: y [tokens, stride] float, at the band's first column.
void band(const Int4Matrix& w, const Activations& x, int64_t number, int64_t begin, int64_t end, float* y, int64_t stride) {
  int64_t t = begin;
  for (; t + kTokens <= end; t += kTokens) tile<kTokens>(w, x, number, t, y + t * stride, stride);
  switch (end - t) {
    case 1: return tile<1>(w, x, number, t, y + t * stride, stride);
    case 2: return tile<2>(w, x, number, t, y + t * stride, stride);
    case 3: return tile<3>(w, x, number, t, y + t * stride, stride);
    default: break;
  }
  if (end - t >= 4) {
    tile<4>(w, x, number, t, y + t * stride, stride);
    band(w, x, number, t + 4, end, y, stride);
  }
}

// Bands that one thread computes before it goes on.
inline int64_t together(int64_t tokens) { return tokens > 4 ? kTogether : 1; }
inline int64_t pieces(const Int4Matrix& w, int64_t tokens) {
  const int64_t size = together(tokens) * kBand;
  return (w.outputs + size - 1) / size;
}

// Piece `piece` of the outputs, for all tokens.
void multiply_piece(const Int4Matrix& w, const Activations& x, int64_t piece, int64_t tokens, float* y) {
  const int64_t first = piece * together(tokens), bands = (w.outputs + kBand - 1) / kBand;
  const int64_t last = first + together(tokens) < bands ? first + together(tokens) : bands;
  const int64_t stride = bands * kBand;
  for (int64_t t = 0; t < tokens; t += kTokens) {
    const int64_t end = t + kTokens < tokens ? t + kTokens : tokens;
    for (int64_t b = first; b < last; ++b) band(w, x, b, t, end, y + b * kBand, stride);
  }
}

inline int64_t whole_bands(int64_t outputs) { return (outputs + kBand - 1) / kBand * kBand; }

// Room for one product's inputs: floats, integers, steps and sums.
struct Scratch {
  float* values;
  float *steps, *sums;
  int16_t* integers;
  int64_t inputs, group;

  Scratch(uint8_t* memory, int64_t tokens, int64_t width, int64_t size)
      : values((float*)memory),
        steps(values + tokens * width),
        sums(steps + tokens * (width / size)),
        integers((int16_t*)(sums + tokens * (width / size))),
        inputs(width),
        group(size) {}

  static int64_t bytes(int64_t tokens, int64_t inputs, int64_t group) {
    return (tokens * (inputs * 6 + inputs / group * 8) + 63) & ~int64_t(63);
  }

  void round(int64_t t) {
    const int64_t g = t * (inputs / group);
    round_activations(values + t * inputs, int(inputs), int(group), integers + t * inputs, steps + g, sums + g);
  }

  void take(const uint16_t* from, int64_t t) {
    for (int64_t k = 0; k < inputs; k += 8) _mm256_storeu_ps(values + t * inputs + k, widen(from + t * inputs + k));
    round(t);
  }

  Activations activations() const { return {integers, steps, sums}; }
};

// One expert's weights, tokens and scratch.
struct Call {
  Int4Matrix w13, w2;
  const uint16_t* from;
  uint16_t* to;
  int64_t tokens;
  float *both, *out;  // [tokens, 2 wide], [tokens, hidden]
  Scratch in, middle;

  static int64_t bytes(int64_t tokens, int64_t hidden, int64_t wide, int64_t group) {
    const int64_t floats = (tokens * (2 * wide + hidden) * 4 + 63) & ~int64_t(63);
    return floats + Scratch::bytes(tokens, hidden, group) + Scratch::bytes(tokens, wide, group);
  }
};

// What callers hand over of each expert, in this order.
enum Field { kW13, kW13Scales, kW13Zeros, kW2, kW2Scales, kW2Zeros, kGateBias, kUpBias, kFrom, kTo, kCount, kFields };

Call make_call(const int64_t* given, int64_t hidden, int64_t wide, int64_t group, uint8_t* scratch) {
  const int64_t tokens = given[kCount];
  float* both = (float*)scratch;
  float* out = both + tokens * 2 * wide;
  uint8_t* rest = scratch + ((tokens * (2 * wide + hidden) * 4 + 63) & ~int64_t(63));
  return {
      {(const uint8_t*)given[kW13], (const uint16_t*)given[kW13Scales], (const uint16_t*)given[kW13Zeros], 2 * wide,
       int(hidden), int(group)},
      {(const uint8_t*)given[kW2], (const uint16_t*)given[kW2Scales], (const uint16_t*)given[kW2Zeros], hidden, int(wide),
       int(group)},
      (const uint16_t*)given[kFrom],
      (uint16_t*)given[kTo],
      tokens,
      both,
      out,
      Scratch(rest, tokens, hidden, group),
      Scratch(rest + Scratch::bytes(tokens, hidden, group), tokens, wide, group),
  };
}

}  // namespace

extern "C" {

// Whether `lumoe_expand` is worth calling on this processor.
int64_t lumoe_expands() { return kExpands; }

// Bytes of scratch that one expert of `lumoe_experts` needs.
int64_t lumoe_expert_scratch(int64_t tokens, int64_t hidden, int64_t wide, int64_t group) {
  return Call::bytes(tokens, hidden, wide, group);
}

// Several experts of the same widths, each with tokens of its own: bfloat16 [tokens, hidden] in and out. Of each `given`
// has the numbers of `Field`; w13 are rows of w1, then of w3, [2 wide, hidden]; w2 is [hidden, wide].
void lumoe_experts(int64_t count, const int64_t* given, int64_t hidden, int64_t wide, int64_t group,
                   float limit, float alpha, float offset, uint8_t* scratch) {
  std::vector<Call> calls;
  for (int64_t i = 0; i < count; ++i) {
    calls.push_back(make_call(given + i * kFields, hidden, wide, group, scratch));
    scratch += Call::bytes(calls.back().tokens, hidden, wide, group);
  }
  const auto tokens = begins(calls, [](const Call& call) { return call.tokens; });
  const auto first = begins(calls, [](const Call& call) { return pieces(call.w13, call.tokens); });
  const auto second = begins(calls, [](const Call& call) { return pieces(call.w2, call.tokens); });
  // One team of threads for all of it; each loop ends with a barrier, for the next one reads what all have written.
#pragma omp parallel if (tokens.back() * hidden * wide * 3 > kLeastWork)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tokens.back(); ++i) {
      const int64_t c = holder(tokens, i);
      calls[c].in.take(calls[c].from, i - tokens[c]);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < first.back(); ++i) {
      const int64_t c = holder(first, i);
      multiply_piece(calls[c].w13, calls[c].in.activations(), i - first[c], calls[c].tokens, calls[c].both);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tokens.back(); ++i) {
      Call& call = calls[holder(tokens, i)];
      const int64_t t = i - tokens[&call - calls.data()];
      const float *gate = call.both + t * 2 * wide, *up = gate + wide;
      float* product = call.middle.values + t * wide;
      const int64_t* of = given + (&call - calls.data()) * kFields;
      Gate{limit, alpha, offset, (const uint16_t*)of[kGateBias], (const uint16_t*)of[kUpBias]}.apply(gate, up, wide, product);
      call.middle.round(t);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < second.back(); ++i) {
      const int64_t c = holder(second, i), size = together(calls[c].tokens) * kBand;
      multiply_piece(calls[c].w2, calls[c].middle.activations(), i - second[c], calls[c].tokens, calls[c].out);
      const int64_t begin = (i - second[c]) * size, end = begin + size < hidden ? begin + size : hidden;
      for (int64_t t = 0; t < calls[c].tokens; ++t)
        for (int64_t k = begin; k < end; ++k) calls[c].to[t * hidden + k] = to_bfloat16(calls[c].out[t * hidden + k]);
    }
  }
}

// Bytes of scratch that `lumoe_linear4` needs.
int64_t lumoe_linear4_scratch(int64_t tokens, int64_t outputs, int64_t inputs, int64_t group) {
  return tokens * whole_bands(outputs) * 4 + Scratch::bytes(tokens, inputs, group) + 256;
}

// y [tokens, outputs] = x [tokens, inputs] times the transposed int4 weights, bfloat16 in and out.
void lumoe_linear4(const uint16_t* x, uint16_t* y, int64_t tokens, int64_t outputs, int64_t inputs, int64_t group,
                   const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros, uint8_t* scratch) {
  const int64_t stride = whole_bands(outputs);
  float* out = (float*)scratch;
  Scratch in(scratch + tokens * stride * 4, tokens, inputs, group);
  const Int4Matrix w{codes, scales, zeros, outputs, int(inputs), int(group)};
  const int64_t count = pieces(w, tokens), size = together(tokens) * kBand;
#pragma omp parallel if (outputs * inputs * tokens > kLeastWork)
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) in.take(x, t);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      multiply_piece(w, in.activations(), i, tokens, out);
      const int64_t begin = i * size, end = begin + size < outputs ? begin + size : outputs;
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t k = begin; k < end; ++k) y[t * outputs + k] = to_bfloat16(out[t * stride + k]);
    }
  }
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

// The first `rows` rows of int4 weights as bfloat16 [rows, inputs].
void lumoe_expand(uint16_t* to, int64_t rows, int64_t inputs, int64_t group, const uint8_t* codes,
                  const uint16_t* scales, const uint16_t* zeros) {
  const Int4Matrix w{codes, scales, zeros, rows, int(inputs), int(group)};
#pragma omp parallel for schedule(static)
  for (int64_t number = 0; number < (rows + kBand - 1) / kBand; ++number) {
    const int64_t left = rows - number * kBand;
    expand_band(w, number, left < kBand ? int(left) : kBand, to + number * kBand * inputs);
  }
}
}
