#pragma once
#include <cstdint>

// The only mention of threads. OpenMP, because torch's own pool is OpenMP: with one runtime in the
// process the two share threads instead of fighting for cores.
namespace fastft::cpu {

template <class F>
void parallel_rows(int64_t rows, int64_t grain, int threads, const F& f) {
  (void)grain, (void)threads;
#pragma omp parallel for schedule(dynamic, grain) num_threads(threads) if (threads > 1 && rows > grain)
  for (int64_t row = 0; row < rows; ++row) f(row);
}

}  // namespace fastft::cpu
