// What detectors and converters make of the samples of weight banks: noise is added, the ADC rounds and clips, and the
// codes that a kernel's banks give are added up.
//
// Noise is counter-based: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns
// a counter (lane, bank, panel, call) into four words, and Box and Muller's transform these into four normal deviates. So
// noise depends on the key and on where a sample is, never on threads.
//
// Every operation is an IEEE one in a fixed order: readout.py has the same formulas in torch and gives the same bits.
// Loops are plain and of fixed length, for the compiler to vectorise on any processor. Compiled at run time with
// -fopenmp but linked without an OpenMP runtime: torch's own, already in the process, serves both.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 64;               // Philox counters worked on side by side
constexpr int kBlock = 4 * kLanes;       // samples that share them: word j of lane i is for sample 64 j + i
constexpr int64_t kLeastWork = 1 << 13;  // samples below which starting threads costs more than it saves

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Natural logarithm of a normal float in (0, 1]: exponent plus 2 artanh s, s = (m - 1)/(m + 1), m in [0.7, 1.4).
inline float logarithm(float value) {
  const uint32_t shifted = bits_of(value) - 0x3f3504f3u;  // the bits of sqrt(1/2)
  const float exponent = float(int32_t(shifted) >> 23);
  const float mantissa = float_of((shifted & 0x007fffffu) + 0x3f3504f3u);
  const float s = (mantissa - 1.0f) / (mantissa + 1.0f), z = s * s;
  const float series = z * (1.0f / 3 + z * (1.0f / 5 + z * (1.0f / 7 + z * (1.0f / 9))));
  return exponent * 0.693147181f + 2.0f * (s + s * series);
}

// Two normal deviates from two words, the first for the radius and the second for the angle.
inline void box_muller(uint32_t radius, uint32_t angle, float& first, float& second) {
  // Half a step above 0, so that the logarithm is finite.
  const float uniform = float(int32_t(radius >> 1)) * 0x1p-31f + 0x1p-32f;
  const float length = std::sqrt(-2.0f * logarithm(uniform));
  // Two bits choose the quadrant, the other 30 an angle within an eighth of a turn of its middle: Taylor's series do.
  const float x = (float(int32_t(angle & 0x3fffffffu)) * 0x1p-30f - 0.5f) * 1.57079633f, z = x * x;
  const float sine = x + x * (z * (-1.0f / 6 + z * (1.0f / 120 + z * (-1.0f / 5040 + z * (1.0f / 362880)))));
  const float cosine = 1.0f + z * (-0.5f + z * (1.0f / 24 + z * (-1.0f / 720 + z * (1.0f / 40320))));
  const float along = length * cosine, across = length * sine;
  const uint32_t odd = (angle >> 30) & 1u, half = angle & 0x80000000u;
  const uint32_t left = odd ? bits_of(across) ^ 0x80000000u : bits_of(along);
  const uint32_t right = odd ? bits_of(along) : bits_of(across);
  first = float_of(left ^ half);
  second = float_of(right ^ half);
}

struct Place {
  uint64_t key;
  uint32_t call, panel, bank;
};

// The 256 deviates of one block of one bank.
void normals(const Place& place, uint32_t block, float* __restrict to) {
  alignas(64) uint32_t words[4][kLanes];
  for (int i = 0; i < kLanes; ++i) {
    uint32_t c0 = block * kLanes + uint32_t(i), c1 = place.bank, c2 = place.panel, c3 = place.call;
    uint32_t k0 = uint32_t(place.key), k1 = uint32_t(place.key >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = uint64_t(0xD2511F53u) * c0, b = uint64_t(0xCD9E8D57u) * c2;
      c0 = uint32_t(b >> 32) ^ c1 ^ k0;
      c1 = uint32_t(b);
      c2 = uint32_t(a >> 32) ^ c3 ^ k1;
      c3 = uint32_t(a);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    words[0][i] = c0;
    words[1][i] = c1;
    words[2][i] = c2;
    words[3][i] = c3;
  }
  for (int i = 0; i < kLanes; ++i) box_muller(words[0][i], words[1][i], to[i], to[kLanes + i]);
  for (int i = 0; i < kLanes; ++i) {
    box_muller(words[2][i], words[3][i], to[2 * kLanes + i], to[3 * kLanes + i]);
  }
}

void add_noise(const float* __restrict samples, const float* __restrict variance, const float* __restrict deviates,
               float intensity, float* __restrict to) {
  for (int i = 0; i < kBlock; ++i) {
    const float value = samples[i];
    to[i] = value + std::sqrt(variance[i] + intensity * (value * value)) * deviates[i];
  }
}

void add_codes(const float* __restrict samples, float steps, float limit, float* __restrict sum) {
  for (int i = 0; i < kBlock; ++i) {
    const float code = std::rint(samples[i] * steps);
    const float low = code < -limit ? -limit : code;
    sum[i] += low > limit ? limit : low;
  }
}

void add(const float* __restrict samples, float* __restrict sum) {
  for (int i = 0; i < kBlock; ++i) sum[i] += samples[i];
}

// Call visit(filled, column, run) for each stretch of `count` places of a rectangle that lies in one row.
template <class Visit>
inline void by_row(int64_t columns, int64_t start, int count, Visit visit) {
  int64_t row = start / columns, column = start % columns;
  for (int filled = 0; filled < count; column = 0, ++row) {
    const int run = int(std::min<int64_t>(count - filled, columns - column));
    visit(filled, row, column, run);
    filled += run;
  }
}

}  // namespace

extern "C" {

// Write to `to` the deviates of the first `samples` samples of a bank.
void lumoe_normals(float* to, int64_t samples, uint64_t key, uint32_t call, uint32_t panel, uint32_t bank) {
  alignas(64) float block[kBlock];
  for (int64_t start = 0; start < samples; start += kBlock) {
    normals({key, call, panel, bank}, uint32_t(start / kBlock), block);
    std::copy_n(block, std::min<int64_t>(kBlock, samples - start), to + start);
  }
}

// Add to total [groups, rows, columns] what samples [groups, banks, rows, columns] are read as.
//   total      rows are `row_stride` floats apart, groups `group_stride`
//   quiet      [groups, banks, columns], banks `bank_stride` floats apart: what of the noise's variance does not depend
//              on the sample; null for no noise
//   intensity  what of it grows with the squared sample
//   steps      [groups]: the ADC's steps in a sample of 1; with an ADC, what is added is its codes
//   limit      the ADC's highest code; 0 for no ADC
//   key, call, panel, bank: where the noise of the first bank is; the others follow it, over all groups
void lumoe_read_out(const float* samples, int64_t groups, int64_t banks, int64_t rows, int64_t columns, float* total,
                    int64_t group_stride, int64_t row_stride, const float* quiet, int64_t bank_stride, float intensity,
                    const float* steps, float limit, uint64_t key, uint32_t call, uint32_t panel, uint32_t bank) {
  const int64_t size = rows * columns, blocks = (size + kBlock - 1) / kBlock;
#pragma omp parallel for collapse(2) schedule(static) if (groups * banks * size >= kLeastWork)
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t start = block * kBlock;
      const int count = int(std::min<int64_t>(kBlock, size - start));
      alignas(64) float sum[kBlock] = {}, last[kBlock] = {}, variance[kBlock] = {}, deviates[kBlock], noisy[kBlock];
      for (int64_t slab = group * banks; slab < (group + 1) * banks; ++slab) {
        const float* sample = samples + slab * size + start;
        if (count < kBlock) sample = std::copy_n(sample, count, last) - count;
        if (quiet != nullptr) {
          normals({key, call, panel, bank + uint32_t(slab)}, uint32_t(block), deviates);
          const float* from = quiet + slab * bank_stride;
          by_row(columns, start, count, [&](int filled, int64_t, int64_t column, int run) {
            std::copy_n(from + column, run, variance + filled);
          });
          add_noise(sample, variance, deviates, intensity, noisy);
          sample = noisy;
        }
        if (limit > 0) {
          add_codes(sample, steps[group], limit, sum);
        } else {
          add(sample, sum);
        }
      }
      by_row(columns, start, count, [&](int filled, int64_t row, int64_t column, int run) {
        float* to = total + group * group_stride + row * row_stride + column;
        for (int i = 0; i < run; ++i) to[i] += sum[filled + i];
      });
    }
  }
}

}  // extern "C"
