// Products with affine weights of 8, 4, 3 and 2 bits, and whole experts, y = W2 (silu(W1 x) * (W3 x)).
//
// Affine weights are w = (code - centre) * scale + zero, with one scale and zero for each group of inputs and a centre of 8,
// at 8 bits 128. Activations are rounded to 16-bit integers group by group, finer than the bfloat16 they come in, so that
// sums within a group are exact integer sums:
// sum_k w x = scale * step * sum_k code * integer + (zero - centre * scale) * sum_k x.
//
// Layout: bands of 16 rows (outputs). Of a band, some inputs after another; of these, each row in turn has a word of 32
// bits (`unpack.h`). Shifts and a mask make pairs of 16-bit codes that meet pairs of neighbouring activations, the same for
// all rows. A row's sum thus stays in its own lane: nothing is added across lanes, and results do not depend on how wide the
// processor's vectors are, nor on how many tokens are computed together. Scales and zeros: of each group, those of a
// band's rows one after another.
//
// Compiled at run time with -fopenmp but linked without an OpenMP runtime: torch's own, already in the process, serves
// both, and its threads are shared.
#include <vector>

#include "activations.h"
#include "gate.h"
#include "layout.h"
#include "tile.h"
#include "together.h"
#ifdef LUMOE_AVX512
#include "expand.h"
#endif

namespace {

constexpr int kTogether = 4;             // bands that stay in cache while many tokens pass by
constexpr int kSmallestGroup = 32;
constexpr int64_t kLeastWork = 1 << 20;  // multiply-adds below which starting threads costs more than it saves

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
template <int Bits>
void band(const AffineMatrix& w, const Activations& x, int64_t number, int64_t begin, int64_t end, float* y,
          int64_t stride) {
  int64_t t = begin;
  for (; t + kTokens <= end; t += kTokens) tile<Bits, kTokens>(w, x, number, t, y + t * stride, stride);
  if (end - t >= 4) {
    tile<Bits, 4>(w, x, number, t, y + t * stride, stride);
    t += 4;
  }
  switch (end - t) {
    case 1: return tile<Bits, 1>(w, x, number, t, y + t * stride, stride);
    case 2: return tile<Bits, 2>(w, x, number, t, y + t * stride, stride);
    case 3: return tile<Bits, 3>(w, x, number, t, y + t * stride, stride);
    default: break;
  }
}

void band(const AffineMatrix& w, const Activations& x, int64_t number, int64_t begin, int64_t end, float* y,
          int64_t stride) {
  switch (w.bits) {
    case 2: return band<2>(w, x, number, begin, end, y, stride);
    case 3: return band<3>(w, x, number, begin, end, y, stride);
    case 8: return band<8>(w, x, number, begin, end, y, stride);
    default: return band<4>(w, x, number, begin, end, y, stride);
  }
}

// Bands that one thread computes before it goes on.
inline int64_t together(int64_t tokens) { return tokens > 4 ? kTogether : 1; }
inline int64_t pieces(const AffineMatrix& w, int64_t tokens) {
  const int64_t size = together(tokens) * kBand;
  return (w.outputs + size - 1) / size;
}

// Piece `piece` of the outputs, for all tokens.
void multiply_piece(const AffineMatrix& w, const Activations& x, int64_t piece, int64_t tokens, float* y) {
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

  // Enough for the smallest groups that there are.
  static int64_t bytes(int64_t tokens, int64_t inputs) {
    return in_lines(tokens * (inputs * 6 + inputs / kSmallestGroup * 8));
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

// Piece `piece` of the outputs for all tokens, in bfloat16; `y` has room for whole bands.
void multiply_piece(const AffineMatrix& w, const Activations& x, int64_t piece, int64_t tokens, float* y, uint16_t* to) {
  multiply_piece(w, x, piece, tokens, y);
  const int64_t size = together(tokens) * kBand, begin = piece * size;
  const int64_t end = begin + size < w.outputs ? begin + size : w.outputs;
  store_bfloat16(y, whole_bands(w.outputs), to, w.outputs, begin, end, tokens);
}

// What callers hand over of each expert, in this order.
enum Field {
  kBits, kGroup, kW13, kW13Scales, kW13Zeros, kW2, kW2Scales, kW2Zeros, kGateBias, kUpBias, kFrom, kTo, kCount, kFields
};

// One expert's weights, tokens and scratch; see `run_together`.
struct Call {
  AffineMatrix w13, w2;
  Gate gate;
  const uint16_t* from;
  uint16_t* to;
  int64_t tokens, wide;
  float *both, *out;  // [tokens, 2 wide], [tokens, hidden]
  Scratch in, middle;

  Call(const int64_t* given, int64_t hidden, int64_t width, Gate shared, uint8_t* scratch)
      : w13{(const uint8_t*)given[kW13], (const uint16_t*)given[kW13Scales], (const uint16_t*)given[kW13Zeros],
            2 * width, int(hidden), int(given[kGroup]), int(given[kBits])},
        w2{(const uint8_t*)given[kW2], (const uint16_t*)given[kW2Scales], (const uint16_t*)given[kW2Zeros], hidden,
           int(width), int(given[kGroup]), int(given[kBits])},
        gate(shared.with(given[kGateBias], given[kUpBias])),
        from((const uint16_t*)given[kFrom]),
        to((uint16_t*)given[kTo]),
        tokens(given[kCount]),
        wide(width),
        both((float*)scratch),
        out(both + tokens * 2 * wide),
        in(scratch + floats(tokens, hidden, wide), tokens, hidden, given[kGroup]),
        middle(scratch + floats(tokens, hidden, wide) + Scratch::bytes(tokens, hidden), tokens, wide, given[kGroup]) {}

  static int64_t floats(int64_t tokens, int64_t hidden, int64_t wide) { return in_lines(tokens * (2 * wide + hidden) * 4); }
  static int64_t bytes(int64_t tokens, int64_t hidden, int64_t wide) {
    return floats(tokens, hidden, wide) + Scratch::bytes(tokens, hidden) + Scratch::bytes(tokens, wide);
  }

  void take(int64_t t) { in.take(from, t); }
  int64_t first_pieces() const { return pieces(w13, tokens); }
  void first(int64_t piece) { multiply_piece(w13, in.activations(), piece, tokens, both); }
  void between(int64_t t) {
    const float* products = both + t * 2 * wide;
    gate.apply(products, products + wide, wide, middle.values + t * wide);
    middle.round(t);
  }
  int64_t second_pieces() const { return pieces(w2, tokens); }
  void second(int64_t piece) { multiply_piece(w2, middle.activations(), piece, tokens, out, to); }
};

}  // namespace

extern "C" {

// Whether there is `lumoe_expand`: without bfloat16 products in hardware it would not pay.
int64_t lumoe_expands() {
#ifdef LUMOE_AVX512
  return 1;
#else
  return 0;
#endif
}

// Bytes of scratch that one expert of `lumoe_experts` needs.
int64_t lumoe_expert_scratch(int64_t tokens, int64_t hidden, int64_t wide) { return Call::bytes(tokens, hidden, wide); }

// Several experts of the same widths, each with a precision and tokens of its own: bfloat16 [tokens, hidden] in and out.
// Of each `given` has the numbers of `Field`; w13 are rows of w1, then of w3, [2 wide, hidden]; w2 is [hidden, wide].
void lumoe_experts(int64_t count, const int64_t* given, int64_t hidden, int64_t wide, float limit, float alpha,
                   float offset, uint8_t* scratch) {
  run_experts<Call>(count, given, kFields, hidden, wide, {limit, alpha, offset}, scratch, kLeastWork);
}

// Bytes of scratch that `lumoe_affine_linear` needs.
int64_t lumoe_affine_linear_scratch(int64_t tokens, int64_t outputs, int64_t inputs) {
  return tokens * whole_bands(outputs) * 4 + Scratch::bytes(tokens, inputs) + 256;
}

// y [tokens, outputs] = x [tokens, inputs] times the transposed affine weights, bfloat16 in and out.
void lumoe_affine_linear(const uint16_t* x, uint16_t* y, int64_t tokens, int64_t outputs, int64_t inputs, int64_t bits,
                         int64_t group, const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros,
                         uint8_t* scratch) {
  float* out = (float*)scratch;
  Scratch in(scratch + tokens * whole_bands(outputs) * 4, tokens, inputs, group);
  const AffineMatrix w{codes, scales, zeros, outputs, int(inputs), int(group), int(bits)};
#pragma omp parallel if (outputs * inputs * tokens > kLeastWork)
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) in.take(x, t);
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < pieces(w, tokens); ++piece)
      multiply_piece(w, in.activations(), piece, tokens, out, y);
  }
}

#ifdef LUMOE_AVX512
// The first `rows` rows of affine weights as bfloat16 [rows, inputs].
void lumoe_expand(uint16_t* to, int64_t rows, int64_t inputs, int64_t bits, int64_t group, const uint8_t* codes,
                  const uint16_t* scales, const uint16_t* zeros) {
  const AffineMatrix w{codes, scales, zeros, rows, int(inputs), int(group), int(bits)};
#pragma omp parallel for schedule(static)
  for (int64_t number = 0; number < (rows + kBand - 1) / kBand; ++number) {
    const int64_t left = rows - number * kBand;
    expand_band(w, number, left < kBand ? int(left) : kBand, to + number * kBand * inputs);
  }
}
#endif
}
