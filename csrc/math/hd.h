#pragma once
// FT_HD marks maths that is inlined into CPU loops (once per instruction set) and into CUDA kernels.
#if defined(__CUDACC__)
#define FT_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define FT_HD inline __attribute__((always_inline))
#else
#define FT_HD inline
#endif
