#include <pybind11/pybind11.h>

#include "../cuda/cross_entropy.h"
#include "../cuda/grouping.h"
#include "../cuda/launch.h"
#include "../cuda/row_update.h"
#include "../cuda/rows.h"
#include "../cuda/segment_sum.h"
#include "../math/half.h"

namespace py = pybind11;
using namespace fastft::cuda;  // NOLINT: the module is nothing else

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
void cross_entropy_of(int64_t rows, int vocab, uintptr_t logits, int64_t logits_stride, uintptr_t grad,
                      int64_t grad_stride, uintptr_t target, uintptr_t coefficients, uintptr_t q, float scale,
                      float softcap, uintptr_t stats, int cluster, int threads, int cached,
                      uintptr_t stream) {
  const CrossEntropyRows a{rows,
                           vocab,
                           pointer<void>(logits),
                           logits_stride,
                           pointer<void>(grad),
                           grad_stride,
                           pointer<int64_t>(target),
                           pointer<float>(coefficients),
                           pointer<float>(q),
                           scale,
                           softcap,
                           pointer<float>(stats)};
  check("cross_entropy", cross_entropy<T>(a, {cluster, threads, cached}, pointer<void>(stream)));
}

template <int (*move)(const RowMove&, void*)>
void move_rows(int64_t rows, int64_t width, uintptr_t from, int64_t from_rows, int64_t from_stride,
               uintptr_t to, uintptr_t index, uintptr_t stream) {
  const RowMove a{
      rows, width, pointer<void>(from), from_rows, from_stride, pointer<void>(to), pointer<int64_t>(index)};
  check(move == &gather_rows ? "gather_rows" : "scatter_rows", move(a, pointer<void>(stream)));
}

void compact_positions(int64_t n, uintptr_t target, int64_t ignore_index, uintptr_t counts, int64_t capacity,
                       uintptr_t valid, uintptr_t count, uintptr_t stream) {
  const Compaction a{n,        pointer<int64_t>(target), ignore_index,           pointer<int64_t>(counts),
                     capacity, pointer<int64_t>(valid),  pointer<int64_t>(count)};
  check("compact", compact(a, pointer<void>(stream)));
}

int64_t grouping_scratch_of(int64_t n, int bits) {
  int64_t bytes = 0;
  check("grouping_scratch", grouping_scratch(n, bits, &bytes));
  return bytes;
}

void group_ids(int64_t n, uintptr_t ids, int bits, uintptr_t scratch, int64_t scratch_bytes,
               uintptr_t touched, uintptr_t order, uintptr_t ends, uintptr_t count, uintptr_t stream) {
  const Grouping a{n,
                   pointer<int64_t>(ids),
                   bits,
                   pointer<void>(scratch),
                   scratch_bytes,
                   pointer<int64_t>(touched),
                   pointer<int64_t>(order),
                   pointer<int64_t>(ends),
                   pointer<int64_t>(count)};
  check("group", group(a, pointer<void>(stream)));
}

template <class T>
void segment_sum_of(int64_t n, int64_t segments, int64_t width, uintptr_t values, int64_t stride,
                    uintptr_t order, uintptr_t ends, uintptr_t partials, uintptr_t out, uintptr_t stream) {
  const SegmentSum a{n,
                     segments,
                     width,
                     pointer<void>(values),
                     stride,
                     pointer<int64_t>(order),
                     pointer<int64_t>(ends),
                     pointer<float>(partials),
                     pointer<float>(out)};
  check("segment_sum", segment_sum<T>(a, pointer<void>(stream)));
}

template <class T>
void adamw_rows_of(int64_t rows, int64_t width, uintptr_t ids, uintptr_t table, int64_t stride,
                   uintptr_t last, uintptr_t slot, uintptr_t m, uintptr_t v, uintptr_t master,
                   uintptr_t steps, int64_t until, uintptr_t leap, uintptr_t grad, uintptr_t out,
                   uintptr_t scale, uintptr_t found_inf, double beta1, double beta2, double eps,
                   uintptr_t stream) {
  const AdamWRows a{rows,
                    width,
                    pointer<int64_t>(ids),
                    pointer<void>(table),
                    stride,
                    pointer<int32_t>(last),
                    pointer<int32_t>(slot),
                    pointer<float>(m),
                    pointer<float>(v),
                    pointer<float>(master),
                    pointer<fastft::math::AdamWStep>(steps),
                    until,
                    pointer<fastft::math::AdamWLeap>(leap),
                    pointer<void>(grad),
                    pointer<void>(out),
                    pointer<float>(scale),
                    pointer<float>(found_inf),
                    {static_cast<float>(1 - beta1), static_cast<float>(beta2), static_cast<float>(1 - beta2),
                     static_cast<float>(eps)}};
  check("adamw_rows", adamw_rows<T>(a, pointer<void>(stream)));
}

}  // namespace

// Raw pointers as integers and, last, the stream: fastft/kernels/cuda checks every tensor, this module
// trusts it. cudart is linked statically, so the module imports where there is no driver.
PYBIND11_MODULE(_cuda, m) {
  m.attr("architectures") = FASTFT_CUDA_ARCHITECTURES;
  m.attr("compact_tile") = kCompactTile;
  m.attr("segment_chunk") = kSegmentChunk;
  m.def("runtime_version", &runtime_version);
  m.def("why_no_device", &why_no_device);
  m.def("device_limits", [](int device) {
    const DeviceLimits l = device_limits(device);
    return py::make_tuple(l.capability, l.multiprocessors, l.shared_per_block, l.shared_per_multiprocessor,
                          l.shared_reserved, l.l2);
  });
  m.def("cross_entropy_float32", &cross_entropy_of<float>);
  m.def("cross_entropy_bfloat16", &cross_entropy_of<fastft::math::bf16>);
  m.def("cross_entropy_float16", &cross_entropy_of<fastft::math::fp16>);
  m.def("compact", &compact_positions);
  m.def("gather_rows", &move_rows<gather_rows>);
  m.def("scatter_rows", &move_rows<scatter_rows>);
  m.def("grouping_scratch", &grouping_scratch_of);
  m.def("group", &group_ids);
  m.def("segment_sum_float32", &segment_sum_of<float>);
  m.def("segment_sum_bfloat16", &segment_sum_of<fastft::math::bf16>);
  m.def("segment_sum_float16", &segment_sum_of<fastft::math::fp16>);
  m.def("adamw_rows_float32", &adamw_rows_of<float>);
  m.def("adamw_rows_bfloat16", &adamw_rows_of<fastft::math::bf16>);
  m.def("adamw_rows_float16", &adamw_rows_of<fastft::math::fp16>);
}
