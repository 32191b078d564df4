// Codes of 8, 4, 3 and 2 bits as pairs of 16-bit integers, in the lanes of whatever vectors there are.
#pragma once
#include <cstdint>

#include "simd.h"

namespace {

// `kInputs` inputs of a row have `kWords` words of 32 bits, and a word of each of the band's rows stands beside the
// others'. `pair<P>` is what inputs 2 P and 2 P + 1 have: in a word's low half even inputs one after another from the
// lowest bits on, in its high half odd ones, so that a shift and a mask make the pair.
template <int Bits>
struct Codes {
  static constexpr int kInputs = 32 / Bits, kWords = 1, kCentre = Bits <= 4 ? 8 : 128;

  template <int P>
  static Ints pair(const Ints* words) {
    constexpr int32_t kMask = (1 << Bits) - 1;
    return both(shifted<Bits * P>(words[0]), everywhere(kMask << 16 | kMask));
  }
};

// Three bits: two words with the lower two bits of 16 inputs each, then one with the third bit of all 32.
template <>
struct Codes<3> {
  static constexpr int kInputs = 32, kWords = 3, kCentre = 8;

  template <int P>
  static Ints pair(const Ints* words) {
    const Ints low = both(shifted<2 * (P % 8)>(words[P / 8]), everywhere(0x00030003));
    return either(low, both(shifted<P - 2>(words[2]), everywhere(0x00040004)));
  }
};

template <int N>
struct Number {
  static constexpr int value = N;
};

// Call `work` with the numbers 0 ... N-1, each as the `value` of a type.
template <int N, class Work>
inline void unrolled(Work work) {
  if constexpr (N > 0) {
    unrolled<N - 1>(work);
    work(Number<N - 1>());
  }
}

}  // namespace
