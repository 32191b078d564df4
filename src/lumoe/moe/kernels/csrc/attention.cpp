// Attention of one new token of each sequence over keys and values in blocks of 16 tokens (paged, as arXiv 2309.06180).
//
// A block holds its tokens for all layers; within a layer first all keys, then all values, each [groups, 16, width], so
// that what one head reads of a block is one piece. With 8 bits, codes are followed by the scales of keys and values,
// float32 [2, groups, 16]. Scores are computed for parts of a sequence, whose results are then joined (arXiv 2205.14135):
// parts do not depend on the number of threads, and so neither do sums.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "lanes.h"
#include "layout.h"
#include "linear16.h"
#include "rms.h"

namespace {

constexpr int kBlock = 16;   // of a block
constexpr int kPart = 512;    // tokens whose scores are held at once; a multiple of a block's
constexpr int kHeads = 4;     // heads that share one reading of keys and values
constexpr int64_t kLeastWork = 1 << 17;  // multiply-adds below which starting threads costs more than it saves

inline __m256 load(const float* from) { return _mm256_loadu_ps(from); }
inline __m256 load(const uint16_t* from) { return widen(from); }
inline __m256 load(const int8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
}
inline float widen(float value) { return value; }
inline float widen(uint16_t value) { return from_bfloat16(value); }
inline void put(float value, float* to) { *to = value; }
inline void put(float value, uint16_t* to) { *to = to_bfloat16(value); }

// One layer's blocks. S is what keys and values are stored as.
template <class S>
struct Blocks {
  uint8_t* memory;
  int64_t block_bytes, layer_at, groups, width;

  uint8_t* layer(int32_t block) const { return memory + block * block_bytes + layer_at; }
  S* row(int32_t block, int64_t which, int64_t group, int64_t token) const {
    return (S*)layer(block) + ((which * groups + group) * kBlock + token) * width;
  }
  float* scale(int32_t block, int64_t which, int64_t group, int64_t token) const {
    return (float*)(layer(block) + 2 * groups * kBlock * width) + (which * groups + group) * kBlock + token;
  }
};

template <class S>
constexpr bool kScaled = sizeof(S) == 1;

template <class A>
void store(const A* from, const Blocks<A>& to, int32_t block, int64_t which, int64_t group, int64_t token) {
  std::memcpy(to.row(block, which, group, token), from, to.width * sizeof(A));
}

template <class A>
void store(const A* from, const Blocks<int8_t>& to, int32_t block, int64_t which, int64_t group, int64_t token) {
  float largest = 0;
  for (int64_t k = 0; k < to.width; ++k) largest = std::max(largest, std::fabs(widen(from[k])));
  const float scale = largest / 127.0f;
  *to.scale(block, which, group, token) = scale;
  int8_t* codes = to.row(block, which, group, token);
  for (int64_t k = 0; k < to.width; ++k)
    codes[k] = scale > 0 ? int8_t(std::max(-127.0f, std::min(127.0f, std::nearbyint(widen(from[k]) / scale)))) : 0;
}

// H heads of one group over tokens begin .. end-1: out [H, width] is not yet divided by `total`.
template <class S, int H>
void attend(const Blocks<S>& blocks, const int32_t* table, int64_t group, int64_t begin, int64_t end, const float* query,
            float* scores, float* out, float* most, float* total) {
  const int64_t width = blocks.width;
  for (int64_t t = begin; t < end; ++t) {
    const S* key = blocks.row(table[t / kBlock], 0, group, t % kBlock);
    __m256 sums[H];
    for (int h = 0; h < H; ++h) sums[h] = _mm256_setzero_ps();
    for (int64_t k = 0; k < width; k += 8) {
      const __m256 value = load(key + k);
      for (int h = 0; h < H; ++h) sums[h] = _mm256_fmadd_ps(value, _mm256_loadu_ps(query + h * width + k), sums[h]);
    }
    const float scale = kScaled<S> ? *blocks.scale(table[t / kBlock], 0, group, t % kBlock) : 1.0f;
    for (int h = 0; h < H; ++h) scores[h * kPart + t - begin] = scale * sum(sums[h]);
  }
  const int64_t count = end - begin, filled = (count + 7) / 8 * 8;
  for (int h = 0; h < H; ++h) {
    float* row = scores + h * kPart;
    float top = row[0];
    for (int64_t i = 1; i < count; ++i) top = std::max(top, row[i]);
    for (int64_t i = count; i < filled; ++i) row[i] = -std::numeric_limits<float>::infinity();
    __m256 parts = _mm256_setzero_ps();
    for (int64_t i = 0; i < filled; i += 8) {
      const __m256 weight = exponential(_mm256_sub_ps(_mm256_loadu_ps(row + i), _mm256_set1_ps(top)));
      _mm256_storeu_ps(row + i, weight);
      parts = _mm256_add_ps(parts, weight);
    }
    most[h] = top;
    total[h] = sum(parts);
  }
  std::fill(out, out + H * width, 0.0f);
  for (int64_t first = begin; first < end;) {
    const int32_t block = table[first / kBlock];
    const int64_t last = std::min(end, (first / kBlock + 1) * kBlock);
    if (kScaled<S>)
      for (int64_t t = first; t < last; ++t)
        for (int h = 0; h < H; ++h) scores[h * kPart + t - begin] *= *blocks.scale(block, 1, group, t % kBlock);
    for (int64_t k = 0; k < width; k += 16) {
      __m256 sums[H][2];
      for (int h = 0; h < H; ++h)
        for (int i = 0; i < 2; ++i) sums[h][i] = _mm256_loadu_ps(out + h * width + k + 8 * i);
      for (int64_t t = first; t < last; ++t) {
        const S* value = blocks.row(block, 1, group, t % kBlock) + k;
        const __m256 low = load(value), high = load(value + 8);
        for (int h = 0; h < H; ++h) {
          const __m256 weight = _mm256_set1_ps(scores[h * kPart + t - begin]);
          sums[h][0] = _mm256_fmadd_ps(low, weight, sums[h][0]);
          sums[h][1] = _mm256_fmadd_ps(high, weight, sums[h][1]);
        }
      }
      for (int h = 0; h < H; ++h)
        for (int i = 0; i < 2; ++i) _mm256_storeu_ps(out + h * width + k + 8 * i, sums[h][i]);
    }
    first = last;
  }
}

struct Part {
  int64_t sequence, group, begin, end;
};

template <class A, class S>
void decode(const A* query, int64_t query_stride, const A* values, int64_t value_stride, A* out, const Blocks<S>& blocks,
            const int32_t* tables, int64_t columns, const int64_t* slots, const int64_t* lengths, int64_t count,
            int64_t heads, int64_t window) {
  const int64_t width = blocks.width, groups = blocks.groups, shared = heads / groups;
  static thread_local std::vector<float> memory;
  static thread_local std::vector<Part> parts;
  parts.clear();
  int64_t work = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int32_t* table = tables + slots[s] * columns;
    const int64_t at = lengths[s] - 1, begin = window > 0 ? std::max<int64_t>(0, lengths[s] - window) : 0;
    for (int64_t g = 0; g < groups; ++g) {
      store(query + s * query_stride + (heads + g) * width, blocks, table[at / kBlock], 0, g, at % kBlock);
      store(values + s * value_stride + g * width, blocks, table[at / kBlock], 1, g, at % kBlock);
      for (int64_t from = begin; from < lengths[s]; from += kPart)
        parts.push_back({s, g, from, std::min(lengths[s], from + kPart)});
    }
    work += (lengths[s] - begin) * heads * width * 2;
  }
  const int64_t turned = count * heads * width, partial = int64_t(parts.size()) * shared * (width + 2);
  memory.resize(turned + partial);
  float *const scaled = memory.data(), *const found = scaled + turned;
  const float scale = 1.0f / std::sqrt(float(width));
  for (int64_t s = 0; s < count; ++s)
    for (int64_t i = 0; i < heads * width; ++i) scaled[s * heads * width + i] = scale * widen(query[s * query_stride + i]);
  const std::vector<Part>& todo = parts;
#pragma omp parallel for schedule(dynamic) if (work > kLeastWork)
  for (int64_t p = 0; p < int64_t(todo.size()); ++p) {
    alignas(32) float scores[kHeads * kPart];
    const Part& part = todo[p];
    const int32_t* table = tables + slots[part.sequence] * columns;
    float *const sums = found + p * shared * (width + 2), *const most = sums + shared * width, *const total = most + shared;
    for (int64_t h = 0; h < shared;) {
      const float* mine = scaled + (part.sequence * heads + part.group * shared + h) * width;
      const auto run = [&](auto some) {
        constexpr int H = decltype(some)::value;
        attend<S, H>(blocks, table, part.group, part.begin, part.end, mine, scores, sums + h * width, most + h, total + h);
        h += H;
      };
      if (shared - h >= 4) run(std::integral_constant<int, 4>());
      else if (shared - h >= 2) run(std::integral_constant<int, 2>());
      else run(std::integral_constant<int, 1>());
    }
  }
  for (size_t p = 0; p < todo.size();) {
    size_t end = p + 1;
    while (end < todo.size() && todo[end].sequence == todo[p].sequence && todo[end].group == todo[p].group) ++end;
    A* to = out + (todo[p].sequence * heads + todo[p].group * shared) * width;
    for (int64_t h = 0; h < shared; ++h) {
      float top = -std::numeric_limits<float>::infinity(), all = 0;
      const auto of = [&](size_t q) { return found + q * shared * (width + 2); };
      for (size_t q = p; q < end; ++q) top = std::max(top, of(q)[shared * width + h]);
      float* joined = of(p) + h * width;
      for (size_t q = p; q < end; ++q) {
        const float factor = std::exp(of(q)[shared * width + h] - top);
        all += factor * of(q)[shared * width + shared + h];
        for (int64_t k = 0; k < width; ++k)
          joined[k] = (q == p ? 0.0f : joined[k]) + factor * of(q)[h * width + k];
      }
      for (int64_t k = 0; k < width; ++k) put(joined[k] / all, to + h * width + k);
    }
    p = end;
  }
}

// What callers hand over of a layer's attention, its norm before included; `AttentionLayer` of `kernels/steps.py` has
// the same fields. Weights are bfloat16, but for a norm's where it is wide; null: there are none.
struct AttentionLayer {
  const void* norm;
  const uint16_t *projection, *bias;  // [(heads + 2 groups) * width, hidden]: queries, keys, values
  const uint16_t* norms;              // of queries and keys, [heads + groups, width]
  const uint16_t *output, *output_bias;
  int64_t norm_wide, hidden, heads, groups, width, window, index;
  int64_t apart;  // whether each head is normalised by itself, or all queries together and all keys together
  float epsilon, query_scale, residual_scale;
};

// What all layers share: `Step` of `kernels/steps.py`.
struct Step {
  uint8_t* memory;
  const int32_t* tables;
  const int64_t *slots, *lengths;
  const uint16_t *cosine, *sine;  // [count, width]; the sine with the sign of a turn by half a head
  int64_t block_bytes, layer_bytes, columns, codes, count;
};

// One token's queries and keys [heads + groups, width], normalised and turned in place.
void turn(const AttentionLayer& layer, const uint16_t* cosine, const uint16_t* sine, uint16_t* mixed) {
  const int64_t width = layer.width, half = width / 2, turned = layer.heads + layer.groups;
  static thread_local std::vector<float> memory;
  memory.resize(width);
  float factor = 1;
  for (int64_t h = 0; h < turned; ++h) {
    uint16_t* const head = mixed + h * width;
    float* const plain = memory.data();
    if (layer.norms && (layer.apart || h == 0 || h == layer.heads)) {
      const int64_t together = layer.apart ? 1 : h ? layer.groups : layer.heads;
      factor = 1.0f / std::sqrt(mean_square(head, together * width) + layer.epsilon);
    }
    for (int64_t k = 0; k < width; ++k)
      plain[k] = layer.norms ? widen(head[k]) * factor * widen(layer.norms[h * width + k]) : widen(head[k]);
    const float scale = h < layer.heads ? layer.query_scale : 1.0f;
    for (int64_t k = 0; k < half; ++k) {
      head[k] = to_bfloat16(scale * (plain[k] * widen(cosine[k]) + plain[k + half] * widen(sine[k])));
      head[k + half] = to_bfloat16(scale * (plain[k + half] * widen(cosine[k + half]) + plain[k] * widen(sine[k + half])));
    }
  }
}

}  // namespace

extern "C" {

// Append one token of each sequence and attend to all up to it.
// query: [count, heads + groups, width], queries, then keys; values: [count, groups, width]; strides in values of A.
// out: [count, heads, width]; tables: [slots, columns]; lengths: tokens with the new one; window: 0 for all.
// kind: 0 for float32 activations, 1 for bfloat16; codes: whether keys and values are stored in 8 bits.
void lumoe_attend(const void* query, int64_t query_stride, const void* values, int64_t value_stride, void* out,
                  uint8_t* memory, int64_t block_bytes, int64_t layer_at, const int32_t* tables, int64_t columns,
                  const int64_t* slots, const int64_t* lengths, int64_t count, int64_t heads, int64_t groups,
                  int64_t width, int64_t window, int64_t kind, int64_t codes) {
  const auto with = [&](auto activation, auto stored) {
    using A = decltype(activation);
    using S = decltype(stored);
    decode<A, S>((const A*)query, query_stride, (const A*)values, value_stride, (A*)out,
                 Blocks<S>{memory, block_bytes, layer_at, groups, width}, tables, columns, slots, lengths, count, heads,
                 window);
  };
  if (kind == 0) codes ? with(float(), int8_t()) : with(float(), float());
  else codes ? with(uint16_t(), int8_t()) : with(uint16_t(), uint16_t());
}

// A whole layer of attention for one new token of each sequence: `hidden` [count, hidden] becomes its sum with
// W_o attention(norm(hidden)). Rounded to bfloat16 are the norm, the projections, turned queries and keys, what each
// head finds, and the sum.
void lumoe_attention_layer(const AttentionLayer* layer, const Step* step, uint16_t* hidden) {
  const int64_t count = step->count, size = layer->hidden, heads = layer->heads, groups = layer->groups;
  const int64_t width = layer->width, turned = (heads + groups) * width, all = turned + groups * width;
  static thread_local std::vector<uint16_t> memory;
  memory.resize(count * (size + all + heads * width));
  uint16_t *const normed = memory.data(), *const mixed = normed + count * size, *const found = mixed + count * all;
  const Norm norm{layer->norm, layer->norm_wide, size, layer->epsilon};
  for (int64_t s = 0; s < count; ++s) norm.row(hidden + s * size, normed + s * size);
  multiply16({layer->projection, all, size}, normed, count, [=](int64_t s, int64_t n, float value) {
    mixed[s * all + n] = to_bfloat16(layer->bias ? value + widen(layer->bias[n]) : value);
  });
  for (int64_t s = 0; s < count; ++s) turn(*layer, step->cosine + s * width, step->sine + s * width, mixed + s * all);
  lumoe_attend(mixed, all, mixed + turned, all, found, step->memory, step->block_bytes,
               layer->index * step->layer_bytes, step->tables, step->columns, step->slots, step->lengths, count, heads,
               groups, width, layer->window, 1, step->codes);
  multiply16({layer->output, size, heads * width}, found, count, [=](int64_t s, int64_t n, float value) {
    value = widen(to_bfloat16(layer->output_bias ? value + widen(layer->output_bias[n]) : value));
    uint16_t& sum = hidden[s * size + n];
    sum = to_bfloat16(widen(sum) + layer->residual_scale * value);
  });
}
}
