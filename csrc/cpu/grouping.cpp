#include "grouping.h"

#include <vector>

namespace fastft::cpu {
namespace {

constexpr int kDigit = 11;  // bits
constexpr uint64_t kBuckets = uint64_t{1} << kDigit;

// By the digit at `shift`, stably.
void sort_digit(const std::vector<uint64_t>& from, std::vector<uint64_t>& to, int shift) {
  uint64_t starts[kBuckets + 1] = {};
  for (const uint64_t x : from) ++starts[(x >> shift & (kBuckets - 1)) + 1];
  for (uint64_t b = 1; b < kBuckets; ++b) starts[b] += starts[b - 1];
  for (const uint64_t x : from) to[starts[x >> shift & (kBuckets - 1)]++] = x;
}

}  // namespace

int64_t group(const Grouping& a) {
  std::vector<uint64_t> pairs(a.n), other(a.n);  // id and position; the positions ascend from the start
  uint64_t all = 0;
  for (int64_t i = 0; i < a.n; ++i) {
    const uint64_t id = static_cast<uint64_t>(a.ids[i]);
    all |= id;
    pairs[i] = id << 32 | static_cast<uint64_t>(i);
  }
  for (int bit = 0; all >> bit; bit += kDigit) {
    sort_digit(pairs, other, 32 + bit);
    pairs.swap(other);
  }
  int64_t different = 0;
  for (int64_t i = 0; i < a.n; ++i) {
    const int64_t id = static_cast<int64_t>(pairs[i] >> 32);
    if (!i || id != a.touched[different - 1]) a.touched[different++] = id;
    a.order[i] = static_cast<int64_t>(pairs[i] & 0xffffffff);
    a.ends[different - 1] = i + 1;
  }
  return different;
}

}  // namespace fastft::cpu
