#pragma once
#include <algorithm>
#include <cstdint>

// The only mention of threads. OpenMP, because torch's own pool is OpenMP: with one runtime in the
// process the two share threads instead of fighting for cores.
namespace fastft::cpu {

// How many rows of a table a thread takes at once: enough for the start to cost nothing, and as it fetches
// the next row while it is at one, few last ones; but some 16 times for each thread, as rows differ in work.
inline int64_t rows_at_once(int64_t rows, int64_t width, int threads) {
  return std::max({int64_t{1}, 4096 / std::max(int64_t{1}, width), rows / (16 * threads)});
}

template <class F>
void parallel_rows(int64_t rows, int64_t grain, int threads, const F& f) {
  (void)grain, (void)threads;
#pragma omp parallel for schedule(dynamic, grain) num_threads(threads) if (threads > 1 && rows > grain)
  for (int64_t row = 0; row < rows; ++row) f(row);
}

}  // namespace fastft::cpu
