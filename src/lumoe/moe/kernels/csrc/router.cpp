// Which experts each token goes to, and the sum of what they make of it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "linear16.h"
#include "rms.h"

namespace {

// Sum of a float32 row times a bfloat16 one; `count` is a multiple of 8.
inline float product(const float* row, const uint16_t* x, int64_t count) {
  __m256 total = _mm256_setzero_ps();
  for (int64_t k = 0; k < count; k += 8) total = _mm256_fmadd_ps(_mm256_loadu_ps(row + k), widen(x + k), total);
  return sum(total);
}

// What callers hand over of a router; `Router` of `kernels/steps.py` has the same fields.
struct Router {
  const void* norm;
  const void* gate;         // [experts, hidden], float32 or bfloat16
  const void* bias;         // [experts], of the gate's type; null: there is none
  const float* correction;  // [experts], added to scores for the choice alone; null: there is none
  int64_t norm_wide, gate_wide, hidden, experts, chosen, sigmoid, normalize;
  float epsilon, least_sum, scale;

  // Logits as the gate's type has them: a choice must not depend on digits that it rounds away.
  void logits(const uint16_t* x, int64_t tokens, float* found) const {
    const auto wide = (const float*)gate;
    const auto store = [&](int64_t t, int64_t n, float value) {
      if (bias) value = gate_wide ? value + ((const float*)bias)[n] : value + from_bfloat16(((const uint16_t*)bias)[n]);
      found[t * experts + n] = gate_wide ? value : from_bfloat16(to_bfloat16(value));
    };
    if (!gate_wide) return multiply16({(const uint16_t*)gate, experts, hidden}, x, tokens, store);
#pragma omp parallel for schedule(static) if (tokens * experts * hidden > kWork16)
    for (int64_t n = 0; n < experts; ++n)
      for (int64_t t = 0; t < tokens; ++t) store(t, n, product(wide + n * hidden, x + t * hidden, hidden));
  }

  void scores(float* row) const {
    if (sigmoid) {
      for (int64_t e = 0; e < experts; ++e) row[e] = 1.0f / (1.0f + std::exp(-row[e]));
      return;
    }
    const float top = *std::max_element(row, row + experts);
    float total = 0;
    for (int64_t e = 0; e < experts; ++e) total += row[e] = std::exp(row[e] - top);
    for (int64_t e = 0; e < experts; ++e) row[e] /= total;
  }

  // The best experts first; of equals the one with the lower number.
  void choose(const float* score, uint16_t* weights, int64_t* indices) const {
    static thread_local std::vector<float> left, kept;
    left.assign(score, score + experts);
    kept.resize(chosen);
    if (correction)
      for (int64_t e = 0; e < experts; ++e) left[e] += correction[e];
    float total = 0;
    for (int64_t j = 0; j < chosen; ++j) {
      const int64_t best = std::max_element(left.begin(), left.end()) - left.begin();
      left[best] = -std::numeric_limits<float>::infinity();
      indices[j] = best;
      total += kept[j] = score[best];
    }
    const float factor = normalize ? scale / std::max(total, least_sum) : scale;
    for (int64_t j = 0; j < chosen; ++j) weights[j] = to_bfloat16(kept[j] * factor);
  }
};

}  // namespace

extern "C" {

// Normalise `hidden` [tokens, hidden] and choose experts; all bfloat16.
// normed: [tokens, hidden]; weights: [tokens, chosen]; indices: int64 [tokens, chosen].
void lumoe_route(const Router* router, int64_t tokens, const uint16_t* hidden, uint16_t* normed, uint16_t* weights,
                 int64_t* indices) {
  const Norm norm{router->norm, router->norm_wide, router->hidden, router->epsilon};
  static thread_local std::vector<float> memory;
  memory.resize(tokens * router->experts);
  for (int64_t t = 0; t < tokens; ++t) norm.row(hidden + t * router->hidden, normed + t * router->hidden);
  router->logits(normed, tokens, memory.data());
  for (int64_t t = 0; t < tokens; ++t) {
    float* const row = memory.data() + t * router->experts;
    router->scores(row);
    router->choose(row, weights + t * router->chosen, indices + t * router->chosen);
  }
}

// Sort the choices `indices` [tokens, chosen] by expert: how many each has (`counts`), the token of each place of that order
// (`rows`), and the place of each choice (`places`).
void lumoe_group(int64_t tokens, int64_t chosen, int64_t experts, const int64_t* indices, int64_t* counts, int64_t* rows,
                 int64_t* places) {
  std::fill(counts, counts + experts, 0);
  for (int64_t i = 0; i < tokens * chosen; ++i) ++counts[indices[i]];
  std::vector<int64_t> next(experts);
  for (int64_t e = 1; e < experts; ++e) next[e] = next[e - 1] + counts[e - 1];
  for (int64_t i = 0; i < tokens * chosen; ++i) {
    places[i] = next[indices[i]]++;
    rows[places[i]] = i / chosen;
  }
}

// sums [tokens, hidden] = each token's `outputs`, weighted, added in the order of its weights [tokens, chosen].
// outputs: [rows, hidden]; places: which row is token t's choice j, int64 [tokens, chosen]; null: they follow
// one another. onto: [tokens, hidden], what the sum is added to once it is rounded; null: nothing. All else is bfloat16.
void lumoe_weighted_sums(int64_t tokens, int64_t chosen, int64_t hidden, const uint16_t* outputs, const uint16_t* weights,
                         const int64_t* places, const uint16_t* onto, uint16_t* sums) {
#pragma omp parallel for schedule(static) if (tokens * chosen * hidden > kWork16)
  for (int64_t t = 0; t < tokens; ++t) {
    static thread_local std::vector<float> total;
    total.assign(hidden, 0.0f);
    for (int64_t j = 0; j < chosen; ++j) {
      const uint16_t* const row = outputs + (places ? places[t * chosen + j] : t * chosen + j) * hidden;
      const float weight = from_bfloat16(weights[t * chosen + j]);
      for (int64_t k = 0; k < hidden; ++k) total[k] += weight * from_bfloat16(row[k]);
    }
    for (int64_t k = 0; k < hidden; ++k) {
      const uint16_t found = to_bfloat16(total[k]);
      sums[t * hidden + k] = onto ? to_bfloat16(from_bfloat16(onto[t * hidden + k]) + from_bfloat16(found)) : found;
    }
  }
}
}
