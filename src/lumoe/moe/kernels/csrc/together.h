// Work of several calls as one range, which threads share out among themselves.
#pragma once
#include <cstdint>
#include <vector>

namespace {

// Where the part of each call begins, if part i has `size(call)` of the whole; the whole's size comes last.
template <class Call, class Size>
std::vector<int64_t> begins(const std::vector<Call>& calls, Size size) {
  std::vector<int64_t> found{0};
  for (const Call& call : calls) found.push_back(found.back() + size(call));
  return found;
}

// The call that has `at`.
inline int64_t holder(const std::vector<int64_t>& begins, int64_t at) {
  int64_t call = 0;
  while (begins[call + 1] <= at) ++call;
  return call;
}

}  // namespace
