// Affine codes expanded to bfloat16, for processors that multiply such matrices in hardware.
#pragma once
#include "tile.h"

namespace {

constexpr int kAtOnce = 32;  // inputs; groups are a multiple of them

// Four vectors beside each other in memory, a word of each row in each: rows 0, 4, 8, 12 with their four words come first,
// then 1, 5, 9, 13, ...
inline void transposed(__m512i words[4]) {
  const __m512i low = _mm512_unpacklo_epi32(words[0], words[1]), high = _mm512_unpackhi_epi32(words[0], words[1]);
  const __m512i low2 = _mm512_unpacklo_epi32(words[2], words[3]), high2 = _mm512_unpackhi_epi32(words[2], words[3]);
  words[0] = _mm512_unpacklo_epi64(low, low2);
  words[1] = _mm512_unpackhi_epi64(low, low2);
  words[2] = _mm512_unpacklo_epi64(high, high2);
  words[3] = _mm512_unpackhi_epi64(high, high2);
}

// The codes of `kAtOnce` inputs in words of eight, as 4-bit codes have them.
template <int Bits>
inline void nibbles(const uint8_t* codes, __m512i to[4]) {
  using Code = Codes<Bits>;
  constexpr int kSteps = kAtOnce / Code::kInputs, kEach = 4 / kSteps;
  for (int step = 0; step < kSteps; ++step) {
    __m512i words[Code::kWords];
    for (int word = 0; word < Code::kWords; ++word) words[word] = load(codes + 64 * (step * Code::kWords + word));
    for (int i = 0; i < kEach; ++i) to[step * kEach + i] = everywhere(int32_t(0));
    unrolled<Code::kInputs / 2>([&](auto p) {
      constexpr int P = decltype(p)::value;
      __m512i& into = to[step * kEach + P / 4];
      into = either(into, shifted<-4 * (P % 4)>(Code::template pair<P>(words)));
    });
  }
}

// A group of a row has at most sixteen values: they are computed once and looked up.
template <int Bits>
inline void expand_group(const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros, int group, int count,
                         int64_t inputs, uint16_t* to) {
  const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i shifts = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 4, 8, 12));
  const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  __m512i table[kBand];
  for (int r = 0; r < count; ++r) {
    const __m512 scale = _mm512_set1_ps(from_bfloat16(scales[r])), zero = _mm512_set1_ps(from_bfloat16(zeros[r]));
    // Twice, so that the fifth bit of an index does not count.
    table[r] = _mm512_broadcast_i64x4((__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(values, scale, zero)));
  }
  for (int k = 0; k < group; k += kAtOnce, codes += kBand * kAtOnce * Bits / 8) {
    __m512i words[4];
    nibbles<Bits>(codes, words);
    transposed(words);
    for (int r = 0; r < count; ++r) {
      const __m512i index = _mm512_add_epi32(each, _mm512_set1_epi32(r / 4 * 4));
      const __m512i pairs = _mm512_srlv_epi32(_mm512_permutexvar_epi32(index, words[r % 4]), shifts);
      _mm512_storeu_si512(to + int64_t(r) * inputs + k, _mm512_permutexvar_epi16(pairs, table[r]));
    }
  }
}

template <>
inline void expand_group<8>(const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros, int group, int count,
                            int64_t inputs, uint16_t* to) {
  // Of a word's bytes, the second and third change places: it has inputs 0, 2, 1, 3.
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
  for (int k = 0; k < group; k += 16, codes += kBand * 16) {
    __m512i words[4];
    for (int i = 0; i < 4; ++i) words[i] = load(codes + 64 * i);
    transposed(words);
    alignas(64) uint8_t near[4][64];
    for (int i = 0; i < 4; ++i) _mm512_store_si512(near[i], _mm512_shuffle_epi8(words[i], order));
    for (int r = 0; r < count; ++r) {
      const __m512i code = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i*)(near[r % 4] + r / 4 * 16)));
      const __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(code, _mm512_set1_epi32(Codes<8>::kCentre)));
      const __m512 scale = _mm512_set1_ps(from_bfloat16(scales[r])), zero = _mm512_set1_ps(from_bfloat16(zeros[r]));
      _mm256_storeu_si256((__m256i*)(to + int64_t(r) * inputs + k),
                          (__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(value, scale, zero)));
    }
  }
}

// The first `count` rows of band `number` as bfloat16 [count, inputs].
template <int Bits>
inline void expand_band(const AffineMatrix& w, int64_t number, int count, uint16_t* to) {
  const int64_t groups = w.inputs / w.group, first = number * kBand;
  const uint8_t* codes = w.codes + first * (int64_t(w.inputs) * Bits / 8);
  for (int64_t g = 0; g < groups; ++g, codes += int64_t(kBand) * w.group * Bits / 8)
    expand_group<Bits>(codes, w.scales + (first * groups + g * kBand), w.zeros + (first * groups + g * kBand), w.group,
                       count, w.inputs, to + g * w.group);
}

inline void expand_band(const AffineMatrix& w, int64_t number, int count, uint16_t* to) {
  switch (w.bits) {
    case 2: return expand_band<2>(w, number, count, to);
    case 3: return expand_band<3>(w, number, count, to);
    case 8: return expand_band<8>(w, number, count, to);
    default: return expand_band<4>(w, number, count, to);
  }
}

}  // namespace
