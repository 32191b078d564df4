// One expert with affine int4 weights, y = W2 (silu(W1 x) * (W3 x)), for processors with AVX2 and FMA.
//
// Weights are w = (code - 8) * scale + zero with codes 0..15, one scale and zero for each group of inputs. Activations
// are rounded to 16-bit integers group by group, finer than the bfloat16 they come in, so that sums within a group are
// exact integer sums: sum_k w x = scale * step * sum_k code * integer + (zero - 8 * scale) * sum_k x.
//
// Layout of a row: blocks of 64 inputs in 16 words of 16 bits; word i holds inputs i, 16+i, 32+i and 48+i from its low
// to its high nibble, so that three shifts and masks make four vectors that meet 64 neighbouring activations.
//
// Compiled at run time with -fopenmp but linked without an OpenMP runtime: torch's own, already in the process, serves
// both, and its threads are shared.
#include <immintrin.h>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kBlock = 64;
constexpr int kTokens = 4;               // tokens that share one unpacking of the weights
constexpr int kRows = 2;                 // rows that share one load of the activations
constexpr int kRowsInCache = 16;         // rows that stay in cache while all tokens pass by
constexpr int64_t kLeastWork = 1 << 18;  // multiply-adds below which starting threads costs more than it saves

inline float from_bfloat16(uint16_t value) {
  uint32_t bits = uint32_t(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline uint16_t to_bfloat16(float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline __m256 load_bfloat16(const uint16_t* from) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16));
}

inline float sum(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// Round one token's activations, `inputs` floats: integers, and for each group its step and the sum of what is kept.
void round_activations(const float* from, int inputs, int group, int16_t* to, float* steps, float* sums) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int g = 0; g < inputs / group; ++g) {
    const float* values = from + g * group;
    __m256 largest = _mm256_setzero_ps();
    for (int k = 0; k < group; k += 8) largest = _mm256_max_ps(largest, _mm256_andnot_ps(sign, _mm256_loadu_ps(values + k)));
    float parts[8], top = 0;
    _mm256_storeu_ps(parts, largest);
    for (float part : parts) top = part > top ? part : top;
    const float step = top / 32767.0f;
    const __m256 inverse = _mm256_set1_ps(top > 0 ? 32767.0f / top : 0.0f);
    __m256i total = _mm256_setzero_si256();
    for (int k = 0; k < group; k += 16) {
      __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + k), inverse));
      __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + k + 8), inverse));
      total = _mm256_add_epi32(total, _mm256_add_epi32(low, high));
      __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
      _mm256_storeu_si256((__m256i*)(to + g * group + k), packed);
    }
    int32_t counts[8], count = 0;
    _mm256_storeu_si256((__m256i*)counts, total);
    for (int32_t part : counts) count += part;
    steps[g] = step;
    sums[g] = step * float(count);
  }
}

struct Matrix {
  const uint8_t* codes;
  const uint16_t *scales, *zeros;
  int64_t outputs;
  int inputs, group;
};

struct Activations {
  const int16_t* integers;
  const float *steps, *sums;
};

// Outputs of rows n .. n+R-1 for tokens t .. t+T-1.
template <int R, int T>
inline void tile(const Matrix& w, const Activations& x, int64_t n, int64_t t, float* y) {
  const int inputs = w.inputs, groups = w.inputs / w.group;
  const uint8_t* codes = w.codes + n * (inputs / 2);
  const uint16_t *scales = w.scales + n * groups, *zeros = w.zeros + n * groups;
  const int16_t* integers = x.integers + t * inputs;
  const float *steps = x.steps + t * groups, *sums = x.sums + t * groups;
  const __m256i mask = _mm256_set1_epi16(15);
  __m256 total[R][T];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < T; ++i) total[r][i] = _mm256_setzero_ps();
  for (int g = 0; g < groups; ++g) {
    __m256i part[R][T];
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < T; ++i) part[r][i] = _mm256_setzero_si256();
    for (int k = g * w.group; k < (g + 1) * w.group; k += kBlock) {
      __m256i word[R];
      for (int r = 0; r < R; ++r) word[r] = _mm256_loadu_si256((const __m256i*)(codes + r * (inputs / 2) + k / 2));
      for (int quarter = 0; quarter < 4; ++quarter) {
        __m256i nibbles[R];
        for (int r = 0; r < R; ++r) {
          nibbles[r] = _mm256_and_si256(word[r], mask);
          word[r] = _mm256_srli_epi16(word[r], 4);
        }
        for (int i = 0; i < T; ++i) {
          const __m256i v = _mm256_loadu_si256((const __m256i*)(integers + int64_t(i) * inputs + k + 16 * quarter));
          for (int r = 0; r < R; ++r) part[r][i] = _mm256_add_epi32(part[r][i], _mm256_madd_epi16(nibbles[r], v));
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const float scale = from_bfloat16(scales[r * groups + g]);
      for (int i = 0; i < T; ++i) {
        const __m256 factor = _mm256_set1_ps(scale * steps[i * groups + g]);
        total[r][i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[r][i]), factor, total[r][i]);
      }
    }
  }
  const __m256 centre = _mm256_set1_ps(-8.0f);
  for (int r = 0; r < R; ++r) {
    float rest[T] = {};
    int g = 0;
    for (; g + 8 <= groups; g += 8) {
      const __m256 offset = _mm256_fmadd_ps(centre, load_bfloat16(scales + r * groups + g), load_bfloat16(zeros + r * groups + g));
      for (int i = 0; i < T; ++i)
        total[r][i] = _mm256_fmadd_ps(offset, _mm256_loadu_ps(sums + i * groups + g), total[r][i]);
    }
    for (; g < groups; ++g) {
      const float offset = from_bfloat16(zeros[r * groups + g]) - 8.0f * from_bfloat16(scales[r * groups + g]);
      for (int i = 0; i < T; ++i) rest[i] += offset * sums[i * groups + g];
    }
    for (int i = 0; i < T; ++i) y[(t + i) * w.outputs + n + r] = sum(total[r][i]) + rest[i];
  }
}

// y [tokens, outputs] float = activations [tokens, inputs] times the transposed weights.
void multiply(const Matrix& w, const Activations& x, int64_t tokens, float* y) {
  const int64_t blocks = (w.outputs + kRowsInCache - 1) / kRowsInCache;
#pragma omp parallel for schedule(static) if (w.outputs * w.inputs * tokens > kLeastWork)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * kRowsInCache;
    const int64_t end = begin + kRowsInCache < w.outputs ? begin + kRowsInCache : w.outputs;
    int64_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens)
      for (int64_t n = begin; n < end; n += kRows) tile<kRows, kTokens>(w, x, n, t, y);
    for (; t < tokens; ++t)
      for (int64_t n = begin; n < end; n += kRows) tile<kRows, 1>(w, x, n, t, y);
  }
}

}  // namespace

extern "C" {

// Bytes of scratch that `lumoe_expert` needs.
int64_t lumoe_expert_scratch(int64_t tokens, int64_t hidden, int64_t wide, int64_t group) {
  const int64_t widest = hidden > wide ? hidden : wide;
  return tokens * (widest * 6 + widest / group * 8 + 2 * wide * 4) + 256;
}

// hidden_in, hidden_out: bfloat16 [tokens, hidden]; w13: rows of w1, then of w3, [2 wide, hidden]; w2: [hidden, wide].
void lumoe_expert(const uint16_t* hidden_in, uint16_t* hidden_out, int64_t tokens, int64_t hidden, int64_t wide,
                  int64_t group, const uint8_t* w13, const uint16_t* w13_scales, const uint16_t* w13_zeros,
                  const uint8_t* w2, const uint16_t* w2_scales, const uint16_t* w2_zeros, uint8_t* scratch) {
  const int64_t widest = hidden > wide ? hidden : wide;
  float* both = (float*)scratch;                    // [tokens, 2 wide], later the output [tokens, hidden]
  float* values = both + tokens * 2 * wide;         // [tokens, widest]
  float* steps = values + tokens * widest;          // [tokens, groups]
  float* sums = steps + tokens * (widest / group);  // [tokens, groups]
  int16_t* x = (int16_t*)(sums + tokens * (widest / group));
#pragma omp parallel for schedule(static) if (tokens > 8)
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < hidden; k += 8) _mm256_storeu_ps(values + t * hidden + k, load_bfloat16(hidden_in + t * hidden + k));
    const int64_t g = t * (hidden / group);
    round_activations(values + t * hidden, int(hidden), int(group), x + t * hidden, steps + g, sums + g);
  }
  const Activations activations{x, steps, sums};
  multiply({w13, w13_scales, w13_zeros, 2 * wide, int(hidden), int(group)}, activations, tokens, both);
#pragma omp parallel for schedule(static) if (tokens > 8)
  for (int64_t t = 0; t < tokens; ++t) {
    const float *gate = both + t * 2 * wide, *up = gate + wide;
    float* product = values + t * wide;
    for (int64_t k = 0; k < wide; ++k) product[k] = gate[k] / (1.0f + std::exp(-gate[k])) * up[k];
    const int64_t g = t * (wide / group);
    round_activations(product, int(wide), int(group), x + t * wide, steps + g, sums + g);
  }
  float* out = both;
  multiply({w2, w2_scales, w2_zeros, hidden, int(wide), int(group)}, activations, tokens, out);
  for (int64_t i = 0; i < tokens * hidden; ++i) hidden_out[i] = to_bfloat16(out[i]);
}
}
