// Products with bfloat16 weights for few tokens, and whole experts of them, y = W2 (silu(W1 x) * (W3 x)).
//
// Weights are read once for all tokens of an expert; the activation between its matrices is rounded to bfloat16 once.
#include "gate.h"
#include "linear16.h"
#include "together.h"

namespace {

// What callers hand over of each expert, in this order.
enum Field { kW1, kW3, kW2, kGateBias, kUpBias, kFrom, kTo, kCount, kFields };

// One expert's weights, tokens and scratch; see `run_together`.
struct Call {
  Matrix16 w1, w3, w2;
  Gate gate;
  const uint16_t* from;
  uint16_t* to;
  int64_t tokens;
  uint16_t *in1, *in3, *middle;  // copies of tokens, see `Matrix16`
  float *first_out, *third_out;  // [tokens, wide]

  Call(const int64_t* given, int64_t hidden, int64_t wide, Gate shared, uint8_t* scratch)
      : w1{(const uint16_t*)given[kW1], wide, hidden},
        w3{(const uint16_t*)given[kW3], wide, hidden},
        w2{(const uint16_t*)given[kW2], hidden, wide},
        gate(shared.with(given[kGateBias], given[kUpBias])),
        from((const uint16_t*)given[kFrom]),
        to((uint16_t*)given[kTo]),
        tokens(given[kCount]),
        in1((uint16_t*)scratch),
        in3(in1 + Matrix16::room(tokens, hidden)),
        middle(in3 + Matrix16::room(tokens, hidden)),
        first_out((float*)(middle + Matrix16::room(tokens, wide))),
        third_out(first_out + tokens * wide) {}

  static int64_t bytes(int64_t tokens, int64_t hidden, int64_t wide) {
    return in_lines(2 * (2 * Matrix16::room(tokens, hidden) + Matrix16::room(tokens, wide)) + 8 * tokens * wide);
  }

  void take(int64_t t) {
    std::memcpy(w1.near(in1, t), from + t * w1.inputs, w1.inputs * 2);
    std::memcpy(w3.near(in3, t), from + t * w3.inputs, w3.inputs * 2);
  }
  int64_t first_pieces() const { return 2 * pieces16(w1.outputs); }
  void first(int64_t piece) {
    const int64_t half = pieces16(w1.outputs);
    const Matrix16& w = piece < half ? w1 : w3;
    float* const out = piece < half ? first_out : third_out;
    uint16_t* const in = piece < half ? in1 : in3;
    piece %= half;
    w.rows(in, tokens, piece * kRows, end16(piece, w.outputs),
           [&](int64_t t, int64_t n, float found) { out[t * w.outputs + n] = found; });
  }
  void between(int64_t t) {
    const int64_t wide = w2.inputs;
    float* const product = first_out + t * wide;
    gate.apply(product, third_out + t * wide, wide, product);
    uint16_t* const next = w2.near(middle, t);
    for (int64_t k = 0; k < wide; ++k) next[k] = to_bfloat16(product[k]);
  }
  int64_t second_pieces() const { return pieces16(w2.outputs); }
  void second(int64_t piece) {
    w2.rows(middle, tokens, piece * kRows, end16(piece, w2.outputs),
            [&](int64_t t, int64_t n, float found) { to[t * w2.outputs + n] = to_bfloat16(found); });
  }
};

}  // namespace

extern "C" {

// y [tokens, outputs] = x [tokens, inputs] times the transposed weights [outputs, inputs], all bfloat16.
void lumoe_linear16(const uint16_t* x, uint16_t* y, int64_t tokens, int64_t outputs, int64_t inputs,
                    const uint16_t* weights) {
  multiply16({weights, outputs, inputs}, x, tokens,
             [&](int64_t t, int64_t n, float found) { y[t * outputs + n] = to_bfloat16(found); });
}

// Bytes of scratch that one expert of `lumoe_dense_experts` needs.
int64_t lumoe_dense_scratch(int64_t tokens, int64_t hidden, int64_t wide) { return Call::bytes(tokens, hidden, wide); }

// Several experts of the same widths, each with tokens of its own: bfloat16 [tokens, hidden] in and out. Of each `given`
// has the numbers of `Field`; w1 and w3 are [wide, hidden], w2 is [hidden, wide].
void lumoe_dense_experts(int64_t count, const int64_t* given, int64_t hidden, int64_t wide, float limit, float alpha,
                         float offset, uint8_t* scratch) {
  run_experts<Call>(count, given, kFields, hidden, wide, {limit, alpha, offset}, scratch, kWork16);
}
}
