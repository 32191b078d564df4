// Several experts, each with tokens of its own, computed by one team of threads.
#pragma once
#include <cstdint>
#include <vector>

#include "gate.h"
#include "layout.h"

namespace {

// Where the part of each call begins, if part i has `size(call)` of the whole; the whole's size comes last.
template <class Call, class Size>
std::vector<int64_t> begins(const std::vector<Call>& calls, Size size) {
  std::vector<int64_t> found{0};
  for (const Call& call : calls) found.push_back(found.back() + size(call));
  return found;
}

// Hand every piece of the whole to `work(call, piece of the call)`; threads of the team share the pieces out.
template <class Call, class Work>
void shared_out(std::vector<Call>& calls, const std::vector<int64_t>& begins, Work work) {
#pragma omp for schedule(static)
  for (int64_t i = 0; i < begins.back(); ++i) {
    int64_t c = 0;
    while (begins[c + 1] <= i) ++c;
    work(calls[c], i - begins[c]);
  }
}

// A call has `tokens`; takes one in (`take`); computes its first two matrices and its third in pieces (`first_pieces`,
// `first`, `second_pieces`, `second`); and makes of a token's first two products the third's input (`between`).
template <class Call>
void run_together(std::vector<Call>& calls, bool team) {
  const auto tokens = begins(calls, [](const Call& call) { return call.tokens; });
  const auto first = begins(calls, [](const Call& call) { return call.first_pieces(); });
  const auto second = begins(calls, [](const Call& call) { return call.second_pieces(); });
  // Each loop ends with a barrier, for the next one reads what all have written.
#pragma omp parallel if (team)
  {
    shared_out(calls, tokens, [](Call& call, int64_t t) { call.take(t); });
    shared_out(calls, first, [](Call& call, int64_t piece) { call.first(piece); });
    shared_out(calls, tokens, [](Call& call, int64_t t) { call.between(t); });
    shared_out(calls, second, [](Call& call, int64_t piece) { call.second(piece); });
  }
}

// Experts of the same widths, of each of which `given` has `fields` numbers; a team of threads from `least_work`
// multiply-adds on.
template <class Call>
void run_experts(int64_t count, const int64_t* given, int64_t fields, int64_t hidden, int64_t wide, Gate gate,
                 uint8_t* scratch, int64_t least_work) {
  std::vector<Call> calls;
  int64_t tokens = 0;
  for (int64_t i = 0; i < count; ++i) {
    calls.emplace_back(given + i * fields, hidden, wide, gate, scratch);
    scratch += Call::bytes(calls.back().tokens, hidden, wide);
    tokens += calls.back().tokens;
  }
  run_together(calls, tokens * hidden * wide * 3 > least_work);
}

// Columns begin .. end-1 of all tokens, from rows `stride` apart to rows of `outputs`.
inline void store_bfloat16(const float* from, int64_t stride, uint16_t* to, int64_t outputs, int64_t begin, int64_t end,
                           int64_t tokens) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t n = begin; n < end; ++n) to[t * outputs + n] = to_bfloat16(from[t * stride + n]);
}

// Bytes in whole cache lines.
inline int64_t in_lines(int64_t bytes) { return (bytes + 63) & ~int64_t(63); }

}  // namespace
