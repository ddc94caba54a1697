#include <pybind11/pybind11.h>

#include "../cpu/cross_entropy.h"
#include "../cpu/isa.h"
#include "../cpu/memory.h"
#include "../math/half.h"

namespace py = pybind11;
using fastft::cpu::CrossEntropyRows;

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
}
