// Products with affine codes: one band of outputs for some tokens. `experts.cpp` says what the layout is.
#pragma once
#include "layout.h"
#include "unpack.h"

namespace {

// Outputs of `V` vectors of band `number`, from lane `first` on, for tokens t .. t+T-1, in `C` chains of sums.
template <int Bits, int V, int T, int C>
inline void rows(const AffineMatrix& w, const Activations& x, int64_t number, int first, int64_t t, float* y,
                 int64_t stride) {
  using Code = Codes<Bits>;
  const int inputs = w.inputs, groups = w.inputs / w.group;
  const uint8_t* codes = w.codes + number * kBand * (int64_t(inputs) * Bits / 8) + 4 * first;
  const uint16_t* scales = w.scales + number * kBand * groups + first;
  const uint16_t* zeros = w.zeros + number * kBand * groups + first;
  const int16_t* integers = x.integers + t * inputs;
  const float *steps = x.steps + t * groups, *sums = x.sums + t * groups;
  Floats total[V][T];
  for (int v = 0; v < V; ++v)
    for (int i = 0; i < T; ++i) total[v][i] = everywhere(0.0f);
  for (int g = 0; g < groups; ++g) {
    Ints part[V][T][C];
    for (int v = 0; v < V; ++v)
      for (int i = 0; i < T; ++i)
        for (int c = 0; c < C; ++c) part[v][i][c] = everywhere(int32_t(0));
    for (int k = g * w.group; k < (g + 1) * w.group; k += Code::kInputs, codes += 4 * kBand * Code::kWords) {
      Ints words[V][Code::kWords];
      for (int word = 0; word < Code::kWords; ++word) {
        const uint8_t* from = codes + 4 * kBand * word;
        _mm_prefetch((const char*)from + kPrefetch, _MM_HINT_T0);
        for (int v = 0; v < V; ++v) words[v][word] = load(from + 4 * kLanes * v);
      }
      unrolled<Code::kInputs / 2>([&](auto p) {
        constexpr int P = decltype(p)::value;
        Ints two[V];
        for (int v = 0; v < V; ++v) two[v] = Code::template pair<P>(words[v]);
        for (int i = 0; i < T; ++i) {
          int32_t given;
          std::memcpy(&given, integers + int64_t(i) * inputs + k + 2 * P, 4);
          const Ints near = everywhere(given);
          for (int v = 0; v < V; ++v) part[v][i][P % C] = add_products(part[v][i][P % C], two[v], near);
        }
      });
    }
    for (int v = 0; v < V; ++v) {
      const Floats scale = floats(scales + g * kBand + kLanes * v);
      const Floats offset = fused(everywhere(float(-Code::kCentre)), scale, floats(zeros + g * kBand + kLanes * v));
      for (int i = 0; i < T; ++i) {
        for (int c = 1; c < C; ++c) part[v][i][0] = sum(part[v][i][0], part[v][i][c]);
        const Floats factor = product(scale, everywhere(steps[i * groups + g]));
        total[v][i] = fused(floats(part[v][i][0]), factor, total[v][i]);
        total[v][i] = fused(offset, everywhere(sums[i * groups + g]), total[v][i]);
      }
    }
  }
  for (int v = 0; v < V; ++v)
    for (int i = 0; i < T; ++i) store(y + i * stride + first + kLanes * v, total[v][i]);
}

// Outputs of band `number` for tokens t .. t+T-1.
template <int Bits, int T>
inline void tile(const AffineMatrix& w, const Activations& x, int64_t number, int64_t t, float* y, int64_t stride) {
  constexpr int V = Shape<T>::kVectors;
  for (int first = 0; first < kBand; first += V * kLanes)
    rows<Bits, V, T, Shape<T>::kChains>(w, x, number, first, t, y, stride);
}

}  // namespace
