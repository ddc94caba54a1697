#include <pybind11/pybind11.h>

#include "../cpu/cross_entropy.h"
#include "../cpu/grouping.h"
#include "../cpu/isa.h"
#include "../cpu/leap.h"
#include "../cpu/memory.h"
#include "../cpu/row_update.h"
#include "../cpu/segment_sum.h"
#include "../cpu/slots.h"
#include "../math/half.h"

namespace py = pybind11;
using fastft::cpu::CrossEntropyRows;
using fastft::math::AdamWStep;
using fastft::math::Departure;

namespace {

template <class T>
void cross_entropy(int64_t rows, int64_t vocab, uintptr_t logits, int64_t logits_stride, uintptr_t grad,
                   int64_t grad_stride, uintptr_t target, uintptr_t coefficients, uintptr_t q, float scale,
                   float softcap, uintptr_t stats, int threads) {
  const py::gil_scoped_release release;
  fastft::cpu::cross_entropy<T>(CrossEntropyRows{
      rows, vocab, reinterpret_cast<const void*>(logits), logits_stride, reinterpret_cast<void*>(grad),
      grad_stride, reinterpret_cast<const int64_t*>(target), reinterpret_cast<const float*>(coefficients),
      reinterpret_cast<const float*>(q), scale, softcap, reinterpret_cast<float*>(stats), threads});
}

int64_t first_outside(uintptr_t ids, int64_t n, int64_t rows) {
  return fastft::cpu::first_outside(reinterpret_cast<const int64_t*>(ids), n, rows);
}

int64_t group(int64_t n, uintptr_t ids, uintptr_t out) {
  const py::gil_scoped_release release;
  return fastft::cpu::group({n, reinterpret_cast<const int64_t*>(ids), reinterpret_cast<int64_t*>(out)});
}

int64_t assign_slots(uintptr_t slot, uintptr_t ids, int64_t n, int64_t used) {
  return fastft::cpu::assign_slots(reinterpret_cast<int32_t*>(slot), reinterpret_cast<const int64_t*>(ids), n,
                                   used);
}

void advance_leaps(double beta1, double beta2, int64_t before, int64_t count, int64_t reach,
                   uintptr_t moments, uintptr_t departures, double shrink, double lr) {
  fastft::cpu::advance({beta1, beta2, before, count, reach, reinterpret_cast<double (*)[4]>(moments),
                        reinterpret_cast<Departure*>(departures)},
                       shrink, lr);
}

template <class T>
void segment_sum(int64_t segments, int64_t width, uintptr_t values, int64_t stride, uintptr_t order,
                 uintptr_t ends, uintptr_t out, int threads) {
  const py::gil_scoped_release release;
  fastft::cpu::segment_sum<T>({segments, width, reinterpret_cast<const void*>(values), stride,
                               reinterpret_cast<const int64_t*>(order),
                               reinterpret_cast<const int64_t*>(ends), reinterpret_cast<float*>(out),
                               threads});
}

template <class T>
void adamw_rows(int64_t rows, int64_t width, uintptr_t ids, uintptr_t table, int64_t stride, uintptr_t last,
                uintptr_t slot, uintptr_t m, uintptr_t v, int64_t filled, uintptr_t master, uintptr_t steps,
                int64_t until, uintptr_t departures, uintptr_t grad, uintptr_t out, uintptr_t order,
                uintptr_t ends, uintptr_t scale, uintptr_t found_inf, double beta1, double beta2, double eps,
                int threads) {
  const py::gil_scoped_release release;
  fastft::cpu::adamw_rows<T>({rows,
                              width,
                              reinterpret_cast<const int64_t*>(ids),
                              reinterpret_cast<void*>(table),
                              stride,
                              reinterpret_cast<int32_t*>(last),
                              reinterpret_cast<const int32_t*>(slot),
                              reinterpret_cast<float*>(m),
                              reinterpret_cast<float*>(v),
                              filled,
                              reinterpret_cast<float*>(master),
                              reinterpret_cast<const AdamWStep*>(steps),
                              until,
                              reinterpret_cast<const Departure*>(departures),
                              reinterpret_cast<const void*>(grad),
                              reinterpret_cast<void*>(out),
                              reinterpret_cast<const int64_t*>(order),
                              reinterpret_cast<const int64_t*>(ends),
                              reinterpret_cast<const float*>(scale),
                              reinterpret_cast<const float*>(found_inf),
                              {static_cast<float>(1 - beta1), static_cast<float>(beta2),
                               static_cast<float>(1 - beta2), static_cast<float>(eps)},
                              threads});
}

}  // namespace

// Raw pointers as integers: fastft/kernels/cpu checks every tensor, this module trusts it.
PYBIND11_MODULE(_cpu, m) {
  m.def("instruction_set", &fastft::cpu::instruction_set);
  m.def("advise_huge_pages", [](uintptr_t data, size_t bytes) {
    return fastft::cpu::advise_huge_pages(reinterpret_cast<void*>(data), bytes);
  });
  m.def("cross_entropy_float32", &cross_entropy<float>);
  m.def("cross_entropy_bfloat16", &cross_entropy<fastft::math::bf16>);
  m.def("cross_entropy_float16", &cross_entropy<fastft::math::fp16>);
  m.def("first_outside", &first_outside);
  m.def("group", &group);
  m.def("assign_slots", &assign_slots);
  m.def("advance_leaps", &advance_leaps);
  m.def("segment_sum_float32", &segment_sum<float>);
  m.def("segment_sum_bfloat16", &segment_sum<fastft::math::bf16>);
  m.def("segment_sum_float16", &segment_sum<fastft::math::fp16>);
  m.def("adamw_rows_float32", &adamw_rows<float>);
  m.def("adamw_rows_bfloat16", &adamw_rows<fastft::math::bf16>);
  m.def("adamw_rows_float16", &adamw_rows<fastft::math::fp16>);
}
