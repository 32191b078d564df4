// A fingerprint of bytes, 64 bits wide, at the speed of memory: have the weights that rings were set to changed?
//
// Every block runs in lanes of 64 bits; each step of a lane (exclusive or, an odd factor, a rotation) is invertible, so a
// change of one word always shows, and any other is missed once in 2^64. Blocks are joined in order, whatever threads do.
#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 32;
constexpr int64_t kStep = kLanes * 8;    // bytes that all lanes take at once
constexpr int64_t kBlock = kStep << 10;  // bytes that one thread takes at a time
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u;

inline uint64_t step(uint64_t state, uint64_t word) {
  const uint64_t product = (state ^ word) * kOdd;
  return product << 29 | product >> 35;
}

uint64_t block(const char* bytes, int64_t size) {
  uint64_t lanes[kLanes], words[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = uint64_t(lane + 1) * kOdd;
  int64_t at = 0;
  for (; at + kStep <= size; at += kStep) {
    std::memcpy(words, bytes + at, kStep);
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = step(lanes[lane], words[lane]);
  }
  std::memset(words, 0, kStep);
  std::memcpy(words, bytes + at, size - at);
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = step(lanes[lane], words[lane]);
  uint64_t result = uint64_t(size);
  for (int lane = 0; lane < kLanes; ++lane) result = step(result, lanes[lane]);
  return result;
}

}  // namespace

// `scratch` has room for one word a block: ceil(size / lumoe_fingerprint_block()).
extern "C" int64_t lumoe_fingerprint_block() { return kBlock; }

extern "C" uint64_t lumoe_fingerprint(const char* bytes, int64_t size, uint64_t* scratch) {
  const int64_t blocks = (size + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (blocks > 1)
  for (int64_t index = 0; index < blocks; ++index) {
    const int64_t start = index * kBlock;
    scratch[index] = block(bytes + start, start + kBlock < size ? kBlock : size - start);
  }
  uint64_t result = uint64_t(size);
  for (int64_t index = 0; index < blocks; ++index) result = step(result, scratch[index]);
  return result;
}
