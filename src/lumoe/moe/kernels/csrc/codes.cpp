// Products with weights in the formats of llama.cpp's files (ggml), as the files hold them, and a whole expert.
//
// A row is blocks of 32 or 256 codes with their scales. In every format here 16 neighbouring weights share a scale and an
// offset, w = scale * code + offset, with codes that fit signed bytes. Activations are rounded to 16-bit integers in
// groups of 32, finer than the bfloat16 they come in, so that sums over 16 weights are exact integer sums:
// sum_k w x = scale * step * sum_k code * integer + offset * sum_k x.
//
// Layouts: the formats' definition in ggml; the tests hold each against the package `gguf`.
#include "activations.h"
#include "gate.h"
#include "layout.h"
#include "together.h"

namespace {

constexpr int kGroup = 32;               // codes that are handled together
constexpr int kTokens = 4;               // tokens that share one reading of the weights
constexpr int kPrefetch = 2048;          // bytes read ahead of use: the processor's own prefetching stops short
constexpr int kRowsInCache = 16;         // rows that stay in cache while all tokens pass by
constexpr int64_t kLeastWork = 1 << 18;  // multiply-adds below which starting threads costs more than it saves

inline float half(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return _cvtsh_ss(bits);
}

inline __m128i load16(const uint8_t* at) { return _mm_loadu_si128((const __m128i*)at); }
inline __m256i load32(const uint8_t* at) { return _mm256_loadu_si256((const __m256i*)at); }

// 16 bytes as 32 codes: the low nibbles, then the high ones.
inline __m256i nibbles(const uint8_t* at) {
  const __m128i bytes = load16(at), mask = _mm_set1_epi8(15);
  return _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), _mm_and_si128(bytes, mask));
}

// The nibbles of 32 bytes, low or high ones.
inline __m256i nibbles_of(__m256i bytes, bool high) {
  return _mm256_and_si256(high ? _mm256_srli_epi16(bytes, 4) : bytes, _mm256_set1_epi8(15));
}

// Bit `bit` of each of 32 bytes, as `value` or 0.
inline __m256i bit_of(__m256i bytes, int bit, int value) {
  const __m256i mask = _mm256_set1_epi8(char(1 << bit));
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask), _mm256_set1_epi8(char(value)));
}

// 32 bits as 32 bytes: `value` where a bit is set, 0 elsewhere.
inline __m256i spread_bits(const uint8_t* at, int value) {
  uint32_t bits;
  std::memcpy(&bits, at, 4);
  const __m256i which = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i mask = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int32_t(bits)), which);
  return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(bytes, mask), mask), _mm256_set1_epi8(char(value)));
}

inline __m128i iq4_values() {
  return _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
}

// 32 codes as two vectors of 16-bit numbers.
struct Words {
  __m256i low, high;
};

inline Words widened(__m256i codes) {
  return {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(codes)), _mm256_cvtepi8_epi16(_mm256_extracti128_si256(codes, 1))};
}

// The nibbles of 16 bytes, low ones first, without a detour over bytes.
inline Words nibble_words(const uint8_t* at) {
  const __m256i bytes = _mm256_cvtepu8_epi16(load16(at));
  return {_mm256_and_si256(bytes, _mm256_set1_epi16(15)), _mm256_srli_epi16(bytes, 4)};
}

// The nibbles of 32 bytes, low or high ones.
inline Words nibble_words_of(const uint8_t* at, bool high) {
  const __m256i first = _mm256_cvtepu8_epi16(load16(at)), second = _mm256_cvtepu8_epi16(load16(at + 16));
  const __m256i mask = _mm256_set1_epi16(15);
  if (high) return {_mm256_srli_epi16(first, 4), _mm256_srli_epi16(second, 4)};
  return {_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)};
}

inline Words less(Words words, int16_t offset) {
  const __m256i all = _mm256_set1_epi16(offset);
  return {_mm256_sub_epi16(words.low, all), _mm256_sub_epi16(words.high, all)};
}

// What a table says of the nibbles of 16 bytes.
inline Words looked_up_words(__m128i table, const uint8_t* at) {
  const __m128i bytes = load16(at), mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(bytes, mask), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
  return {_mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, low)), _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, high))};
}

// Every format: `weights` codes in `bytes` bytes, whether the two halves of 32 codes have scales of their own, whether
// there are offsets; and of a block that was begun, the codes, scales and offsets of its 32-code group j.
struct Base {
  const uint8_t* at;
  static constexpr bool halves = false, offsets = false;
  float offset(int, int) const { return 0; }
};

struct Q4_0 : Base {
  static constexpr int weights = 32, bytes = 18;
  float d;
  explicit Q4_0(const uint8_t* block) : Base{block}, d(half(block)) {}
  Words words(int) const { return less(nibble_words(at + 2), 8); }
  float scale(int, int) const { return d; }
};

struct Q4_1 : Base {
  static constexpr int weights = 32, bytes = 20;
  static constexpr bool offsets = true;
  float d, m;
  explicit Q4_1(const uint8_t* block) : Base{block}, d(half(block)), m(half(block + 2)) {}
  Words words(int) const { return nibble_words(at + 4); }
  float scale(int, int) const { return d; }
  float offset(int, int) const { return m; }
};

struct Q5_0 : Base {
  static constexpr int weights = 32, bytes = 22;
  float d;
  explicit Q5_0(const uint8_t* block) : Base{block}, d(half(block)) {}
  Words words(int) const {
    return widened(_mm256_sub_epi8(_mm256_or_si256(nibbles(at + 6), spread_bits(at + 2, 16)), _mm256_set1_epi8(16)));
  }
  float scale(int, int) const { return d; }
};

struct Q5_1 : Base {
  static constexpr int weights = 32, bytes = 24;
  static constexpr bool offsets = true;
  float d, m;
  explicit Q5_1(const uint8_t* block) : Base{block}, d(half(block)), m(half(block + 2)) {}
  Words words(int) const { return widened(_mm256_or_si256(nibbles(at + 8), spread_bits(at + 4, 16))); }
  float scale(int, int) const { return d; }
  float offset(int, int) const { return m; }
};

struct Q8_0 : Base {
  static constexpr int weights = 32, bytes = 34;
  float d;
  explicit Q8_0(const uint8_t* block) : Base{block}, d(half(block)) {}
  Words words(int) const { return {_mm256_cvtepi8_epi16(load16(at + 2)), _mm256_cvtepi8_epi16(load16(at + 18))}; }
  float scale(int, int) const { return d; }
};

struct IQ4_NL : Base {
  static constexpr int weights = 32, bytes = 18;
  float d;
  explicit IQ4_NL(const uint8_t* block) : Base{block}, d(half(block)) {}
  Words words(int) const { return looked_up_words(iq4_values(), at + 2); }
  float scale(int, int) const { return d; }
};

struct MXFP4 : Base {  // OCP Microscaling Formats: codes are twice the values, so the scale is half
  static constexpr int weights = 32, bytes = 17;
  float d;
  explicit MXFP4(const uint8_t* block) : Base{block} {
    // 2^(e - 128); the two smallest are below the normal numbers.
    const uint32_t bits = *block < 2 ? 0x00200000u << *block : uint32_t(*block - 1) << 23;
    std::memcpy(&d, &bits, 4);
  }
  static __m128i values() { return _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12); }
  Words words(int) const { return looked_up_words(values(), at + 1); }
  float scale(int, int) const { return d; }
};

struct Q2_K : Base {
  static constexpr int weights = 256, bytes = 84;
  static constexpr bool halves = true, offsets = true;
  float d, least;
  explicit Q2_K(const uint8_t* block) : Base{block}, d(half(block + 80)), least(half(block + 82)) {}
  Words words(int j) const {
    const __m256i bytes = load32(at + 16 + 32 * (j / 4));
    return widened(_mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(2 * (j & 3))), _mm256_set1_epi8(3)));
  }
  float scale(int j, int h) const { return d * float(at[2 * j + h] & 15); }
  float offset(int j, int h) const { return -least * float(at[2 * j + h] >> 4); }
};

struct Q3_K : Base {
  static constexpr int weights = 256, bytes = 110;
  static constexpr bool halves = true;
  float d;
  explicit Q3_K(const uint8_t* block) : Base{block}, d(half(block + 108)) {}
  Words words(int j) const {
    const __m256i bytes = load32(at + 32 + 32 * (j / 4));
    const __m256i low = _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(2 * (j & 3))), _mm256_set1_epi8(3));
    return widened(_mm256_sub_epi8(_mm256_or_si256(low, bit_of(load32(at), j, 4)), _mm256_set1_epi8(4)));
  }
  float scale(int j, int h) const {
    const int i = 2 * j + h, low = i < 8 ? at[96 + i] & 15 : at[96 + i - 8] >> 4;
    return d * float((low | ((at[104 + i % 4] >> (2 * (i / 4))) & 3) << 4) - 32);
  }
};

// Eight 6-bit scales and offsets in 12 bytes, as Q4_K and Q5_K have them.
struct Sixes : Base {
  static constexpr bool offsets = true;
  alignas(32) float scales[8], leasts[8];
  explicit Sixes(const uint8_t* block) : Base{block} {
    uint32_t a, b, c;
    std::memcpy(&a, block + 4, 4), std::memcpy(&b, block + 8, 4), std::memcpy(&c, block + 12, 4);
    const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x03030303;
    const uint64_t s = (a & six) | uint64_t((c & four) | ((a >> 6) & two) << 4) << 32;
    const uint64_t m = (b & six) | uint64_t(((c >> 4) & four) | ((b >> 6) & two) << 4) << 32;
    store(s, half(block), scales), store(m, -half(block + 2), leasts);
  }
  static void store(uint64_t bytes, float times, float* to) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(bytes)));
    _mm256_store_ps(to, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(times)));
  }
  float scale(int j, int) const { return scales[j]; }
  float offset(int j, int) const { return leasts[j]; }
};

struct Q4_K : Sixes {
  static constexpr int weights = 256, bytes = 144;
  using Sixes::Sixes;
  Words words(int j) const { return nibble_words_of(at + 16 + 32 * (j / 2), j & 1); }
};

struct Q5_K : Sixes {
  static constexpr int weights = 256, bytes = 176;
  using Sixes::Sixes;
  Words words(int j) const {
    return widened(_mm256_or_si256(nibbles_of(load32(at + 48 + 32 * (j / 2)), j & 1), bit_of(load32(at + 16), j, 16)));
  }
};

struct Q6_K : Base {
  static constexpr int weights = 256, bytes = 210;
  static constexpr bool halves = true;
  float d;
  explicit Q6_K(const uint8_t* block) : Base{block}, d(half(block + 208)) {}
  Words words(int j) const {
    const int part = j / 4, quarter = j & 3;
    const __m256i low = nibbles_of(load32(at + 64 * part + 32 * (quarter & 1)), quarter >> 1);
    const __m256i high = _mm256_srl_epi16(load32(at + 128 + 32 * part), _mm_cvtsi32_si128(2 * quarter));
    const __m256i two = _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(3)), 4);
    return widened(_mm256_sub_epi8(_mm256_or_si256(low, two), _mm256_set1_epi8(32)));
  }
  float scale(int j, int h) const { return d * float(int8_t(at[192 + 2 * j + h])); }
};

struct IQ4_XS : Base {
  static constexpr int weights = 256, bytes = 136;
  float d;
  explicit IQ4_XS(const uint8_t* block) : Base{block}, d(half(block)) {}
  Words words(int j) const { return looked_up_words(iq4_values(), at + 8 + 16 * j); }
  float scale(int j, int) const {
    const int low = (at[4 + j / 2] >> (4 * (j & 1))) & 15, high = ((at[2] | at[3] << 8) >> (2 * j)) & 3;
    return d * float((low | high << 4) - 32);
  }
};

// Activations in integers; of each group of 32 its step, of each 16 the sum of what is kept.
struct Rounded {
  int16_t* integers;
  float *steps, *sums;
  int inputs;

  Rounded(uint8_t* memory, int64_t tokens, int64_t width)
      : integers((int16_t*)memory),
        steps((float*)(integers + tokens * width)),
        sums(steps + tokens * (width / kGroup)),
        inputs(int(width)) {}

  static int64_t bytes(int64_t tokens, int64_t width) {
    return in_lines(tokens * (width * 2 + width / kGroup * 12));
  }

  void take(const uint16_t* from, int64_t t) {
    for (int64_t g = 0; g < inputs / kGroup; ++g) {
      float values[kGroup];
      for (int k = 0; k < kGroup; k += 8) _mm256_storeu_ps(values + k, widen(from + t * inputs + g * kGroup + k));
      round_group(t, g, values);
    }
  }

  void round_group(int64_t t, int64_t g, const float* values) {
    const int64_t group = t * (inputs / kGroup) + g;
    const float top = largest(values, kGroup), step = top / kLargest;
    const __m256 inverse = _mm256_set1_ps(top > 0 ? kLargest / top : 0.0f);
    steps[group] = step;
    for (int h = 0; h < 2; ++h) {
      int16_t* to = integers + t * inputs + g * kGroup + 16 * h;
      sums[2 * group + h] = step * float(sum_of(round16(values + 16 * h, inverse, to)));
    }
  }
};

// One row for tokens t .. t+T-1. Sums run in two chains, which do not wait for each other; their order is the same
// however many tokens there are, so a token's result is.
template <class F, int T>
struct Row {
  static constexpr int kChains = 2;
  const Rounded& x;
  const int16_t* integers;
  const float *steps, *sums;
  __m256 total[kChains][T];
  float rest[T] = {};

  Row(const Rounded& rounded, int64_t t)
      : x(rounded),
        integers(x.integers + t * x.inputs),
        steps(x.steps + t * (x.inputs / kGroup)),
        sums(x.sums + t * (x.inputs / kGroup) * 2) {
    for (auto& chain : total)
      for (__m256& each : chain) each = _mm256_setzero_ps();
  }

  // Group j of a block, which is group g of the row. The chain is known when this is compiled: sums stay in registers.
  template <int kChain>
  inline void add(const F& block, int j, int g) {
    const int groups = x.inputs / kGroup;
    const Words codes = block.words(j);
    const float first = block.scale(j, 0), second = F::halves ? block.scale(j, 1) : first;
    for (int i = 0; i < T; ++i) {
      const int16_t* values = integers + int64_t(i) * x.inputs + g * kGroup;
      const __m256i p = _mm256_madd_epi16(codes.low, _mm256_loadu_si256((const __m256i*)values));
      const __m256i q = _mm256_madd_epi16(codes.high, _mm256_loadu_si256((const __m256i*)(values + 16)));
      const float step = steps[i * groups + g];
      __m256& into = total[kChain][i];
      if (F::halves) {
        into = _mm256_fmadd_ps(_mm256_cvtepi32_ps(p), _mm256_set1_ps(first * step), into);
        into = _mm256_fmadd_ps(_mm256_cvtepi32_ps(q), _mm256_set1_ps(second * step), into);
      } else {
        into = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(p, q)), _mm256_set1_ps(first * step), into);
      }
      if (F::offsets) {
        const float* s = sums + (i * groups + g) * 2;
        rest[i] += F::halves ? block.offset(j, 0) * s[0] + block.offset(j, 1) * s[1] : block.offset(j, 0) * (s[0] + s[1]);
      }
    }
  }

  void store(float* y, int64_t stride) const {
    for (int i = 0; i < T; ++i) y[i * stride] = sum(_mm256_add_ps(total[0][i], total[1][i])) + rest[i];
  }
};

inline void prefetch(const uint8_t* at, int bytes) {
  for (int p = 0; p < bytes; p += 64) _mm_prefetch((const char*)at + kPrefetch + p, _MM_HINT_T0);
}

template <class F, int T>
inline void dot_row(const uint8_t* row, const Rounded& x, int64_t t, float* y, int64_t stride) {
  Row<F, T> sums(x, t);
  const int blocks = x.inputs / F::weights;
  if constexpr (F::weights == kGroup) {
    int b = 0;
    for (; b + 2 <= blocks; b += 2) {
      const uint8_t* at = row + int64_t(b) * F::bytes;
      prefetch(at, 2 * F::bytes);
      sums.template add<0>(F(at), 0, b);
      sums.template add<1>(F(at + F::bytes), 0, b + 1);
    }
    if (b < blocks) sums.template add<0>(F(row + int64_t(b) * F::bytes), 0, b);
  } else {
    for (int b = 0; b < blocks; ++b) {
      const uint8_t* at = row + int64_t(b) * F::bytes;
      prefetch(at, F::bytes);
      const F block(at);
#pragma GCC unroll 4
      for (int j = 0; j < F::weights / kGroup; j += 2) {
        sums.template add<0>(block, j, b * (F::weights / kGroup) + j);
        sums.template add<1>(block, j + 1, b * (F::weights / kGroup) + j + 1);
      }
    }
  }
  sums.store(y, stride);
}

// Rows begin .. end-1 of the outputs, for all tokens: y [tokens, stride] float.
template <class F>
void rows_as(const uint8_t* codes, int64_t begin, int64_t end, const Rounded& x, int64_t tokens, float* y, int64_t stride) {
  const int64_t bytes = x.inputs / F::weights * F::bytes;
  int64_t t = 0;
  for (; t + kTokens <= tokens; t += kTokens)
    for (int64_t n = begin; n < end; ++n) dot_row<F, kTokens>(codes + n * bytes, x, t, y + t * stride + n, stride);
  for (; t < tokens; ++t)
    for (int64_t n = begin; n < end; ++n) dot_row<F, 1>(codes + n * bytes, x, t, y + t * stride + n, stride);
}

template <class F>
void expand_as(const uint8_t* codes, int64_t rows, int64_t inputs, uint16_t* to) {
  const int64_t bytes = inputs / F::weights * F::bytes;
#pragma omp parallel for schedule(static) if (rows * inputs > kLeastWork)
  for (int64_t n = 0; n < rows; ++n) {
    uint16_t* out = to + n * inputs;
    for (int64_t b = 0; b < inputs / F::weights; ++b) {
      const F block(codes + n * bytes + b * F::bytes);
      for (int j = 0; j < F::weights / kGroup; ++j) {
        alignas(32) int16_t found[kGroup];
        const Words codes = block.words(j);
        _mm256_store_si256((__m256i*)found, codes.low);
        _mm256_store_si256((__m256i*)(found + 16), codes.high);
        for (int h = 0; h < 2; ++h) {
          const float scale = block.scale(j, F::halves ? h : 0), offset = block.offset(j, F::halves ? h : 0);
          for (int k = 16 * h; k < 16 * h + 16; ++k) *out++ = to_bfloat16(scale * float(found[k]) + offset);
        }
      }
    }
  }
}

// Numbers of the formats, which the caller knows them by.
#define EACH_FORMAT(DO) \
  DO(0, Q4_0) DO(1, Q4_1) DO(2, Q5_0) DO(3, Q5_1) DO(4, Q8_0) DO(5, IQ4_NL) DO(6, MXFP4) \
  DO(7, Q2_K) DO(8, Q3_K) DO(9, Q4_K) DO(10, Q5_K) DO(11, Q6_K) DO(12, IQ4_XS)

struct Coded {
  const uint8_t* codes;
  int64_t format, outputs;
};

inline int64_t pieces(const Coded& w) { return (w.outputs + kRowsInCache - 1) / kRowsInCache; }

// Piece `piece` of the outputs, for all tokens.
void multiply(const Coded& w, int64_t piece, const Rounded& x, int64_t tokens, float* y, int64_t stride) {
  const int64_t begin = piece * kRowsInCache, end = begin + kRowsInCache < w.outputs ? begin + kRowsInCache : w.outputs;
  switch (w.format) {
#define DO(number, F) case number: return rows_as<F>(w.codes, begin, end, x, tokens, y, stride);
    EACH_FORMAT(DO)
#undef DO
  }
}

// The same in bfloat16.
void multiply(const Coded& w, int64_t piece, const Rounded& x, int64_t tokens, float* y, uint16_t* to) {
  multiply(w, piece, x, tokens, y, w.outputs);
  const int64_t begin = piece * kRowsInCache, end = begin + kRowsInCache < w.outputs ? begin + kRowsInCache : w.outputs;
  store_bfloat16(y, w.outputs, to, w.outputs, begin, end, tokens);
}

// What callers hand over of each expert, in this order.
enum Field { kFormat1, kCodes1, kFormat2, kCodes2, kFormat3, kCodes3, kGateBias, kUpBias, kFrom, kTo, kCount, kFields };

// One expert's weights, tokens and scratch; see `run_together`.
struct Call {
  Coded w1, w2, w3;
  Gate gate;
  const uint16_t* from;
  uint16_t* to;
  int64_t tokens, wide;
  float *both, *out;  // [tokens, 2 wide]; [tokens, hidden or wide, whichever is more]
  Rounded in, middle;

  Call(const int64_t* given, int64_t hidden, int64_t width, Gate shared, uint8_t* scratch)
      : w1{(const uint8_t*)given[kCodes1], given[kFormat1], width},
        w2{(const uint8_t*)given[kCodes2], given[kFormat2], hidden},
        w3{(const uint8_t*)given[kCodes3], given[kFormat3], width},
        gate(shared.with(given[kGateBias], given[kUpBias])),
        from((const uint16_t*)given[kFrom]),
        to((uint16_t*)given[kTo]),
        tokens(given[kCount]),
        wide(width),
        both((float*)scratch),
        out(both + tokens * 2 * wide),
        in(scratch + floats(tokens, hidden, wide), tokens, hidden),
        middle(scratch + floats(tokens, hidden, wide) + Rounded::bytes(tokens, hidden), tokens, wide) {}

  static int64_t floats(int64_t tokens, int64_t hidden, int64_t wide) {
    return in_lines(tokens * (2 * wide + (hidden > wide ? hidden : wide)) * 4);
  }
  static int64_t bytes(int64_t tokens, int64_t hidden, int64_t wide) {
    return floats(tokens, hidden, wide) + Rounded::bytes(tokens, hidden) + Rounded::bytes(tokens, wide);
  }

  void take(int64_t t) { in.take(from, t); }
  int64_t first_pieces() const { return 2 * pieces(w1); }
  void first(int64_t piece) {
    const int64_t third = piece % 2;
    multiply(third ? w3 : w1, piece / 2, in, tokens, both + third * wide, 2 * wide);
  }
  void between(int64_t t) {
    const float* products = both + t * 2 * wide;
    float* product = out + t * wide;
    gate.apply(products, products + wide, wide, product);
    for (int64_t g = 0; g < wide / kGroup; ++g) middle.round_group(t, g, product + g * kGroup);
  }
  int64_t second_pieces() const { return pieces(w2); }
  void second(int64_t piece) { multiply(w2, piece, middle, tokens, out, to); }
};

}  // namespace

extern "C" {

// Bytes of scratch that `lumoe_coded_linear` needs.
int64_t lumoe_coded_linear_scratch(int64_t tokens, int64_t outputs, int64_t inputs) {
  return in_lines(tokens * outputs * 4) + Rounded::bytes(tokens, inputs);
}

// y [tokens, outputs] = x [tokens, inputs] times the transposed weights, bfloat16 in and out.
void lumoe_coded_linear(const uint16_t* x, uint16_t* y, int64_t tokens, int64_t outputs, int64_t inputs, int64_t format,
                        const uint8_t* codes, uint8_t* scratch) {
  float* out = (float*)scratch;
  Rounded in(scratch + in_lines(tokens * outputs * 4), tokens, inputs);
  const Coded w{codes, format, outputs};
#pragma omp parallel if (outputs * inputs * tokens > kLeastWork)
  {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) in.take(x, t);
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < pieces(w); ++piece) multiply(w, piece, in, tokens, out, y);
  }
}

// Bytes of scratch that one expert of `lumoe_coded_experts` needs.
int64_t lumoe_coded_expert_scratch(int64_t tokens, int64_t hidden, int64_t wide) { return Call::bytes(tokens, hidden, wide); }

// Several experts of the same widths, each with tokens of its own: bfloat16 [tokens, hidden] in and out. Of each `given`
// has the numbers of `Field`; w1, w3: [wide, hidden]; w2: [hidden, wide].
void lumoe_coded_experts(int64_t count, const int64_t* given, int64_t hidden, int64_t wide, float limit, float alpha,
                         float offset, uint8_t* scratch) {
  run_experts<Call>(count, given, kFields, hidden, wide, {limit, alpha, offset}, scratch, kLeastWork);
}

// Rows of coded weights as bfloat16 [rows, inputs].
void lumoe_coded_expand(uint16_t* to, int64_t rows, int64_t inputs, int64_t format, const uint8_t* codes) {
  switch (format) {
#define DO(number, F) case number: return expand_as<F>(codes, rows, inputs, to);
    EACH_FORMAT(DO)
#undef DO
  }
}
}
