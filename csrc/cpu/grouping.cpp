#include "grouping.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace fastft::cpu {
namespace {

constexpr int kMostBits = 11;  // of a digit: its counts stay in L1

// By the digit of so many bits at `shift`, stably.
void sort_digit(const uint64_t* from, uint64_t* to, int64_t n, int shift, int bits) {
  const uint64_t last = (uint64_t{1} << bits) - 1;
  uint64_t starts[(uint64_t{1} << kMostBits) + 1];
  std::fill_n(starts, last + 2, 0);
  for (int64_t i = 0; i < n; ++i) ++starts[(from[i] >> shift & last) + 1];
  for (uint64_t digit = 1; digit <= last; ++digit) starts[digit] += starts[digit - 1];
  for (int64_t i = 0; i < n; ++i) to[starts[from[i] >> shift & last]++] = from[i];
}

}  // namespace

int64_t first_outside(const int64_t* ids, int64_t n, int64_t rows) {
  const auto outside = [rows](int64_t id) { return id < 0 || id >= rows; };
  return std::find_if(ids, ids + n, outside) - ids;
}

int64_t group(const Grouping& a) {
  const std::unique_ptr<uint64_t[]> room(new uint64_t[2 * static_cast<size_t>(a.n)]);
  uint64_t *pairs = room.get(), *other = pairs + a.n;  // id and position; the positions ascend from the start
  uint64_t all = 0;
  for (int64_t i = 0; i < a.n; ++i) {
    const uint64_t id = static_cast<uint64_t>(a.ids[i]);
    all |= id;
    pairs[i] = id << 32 | static_cast<uint64_t>(i);
  }
  int bits = 0;
  while (bits < 32 && all >> bits) ++bits;
  const int digits = (bits + kMostBits - 1) / kMostBits, digit = digits ? (bits + digits - 1) / digits : 0;
  for (int i = 0; i < digits; ++i) {
    sort_digit(pairs, other, a.n, 32 + i * digit, digit);
    std::swap(pairs, other);
  }
  const auto id = [pairs](int64_t i) { return static_cast<int64_t>(pairs[i] >> 32); };
  int64_t different = a.n > 0;
  for (int64_t i = 1; i < a.n; ++i) different += id(i) != id(i - 1);
  int64_t *touched = a.out, *ends = touched + different, *order = ends + different;
  for (int64_t i = 0; i < a.n; ++i) {
    order[i] = static_cast<int64_t>(pairs[i] & 0xffffffff);
    if (i + 1 < a.n && id(i + 1) == id(i)) continue;
    *touched++ = id(i);
    *ends++ = i + 1;
  }
  return different;
}

}  // namespace fastft::cpu
