// Vec: a register of floats and about twenty operations, one header per instruction set.
//
// Everything here has internal linkage on purpose. Kernel objects are compiled with flags that not every CPU
// understands; a shared inline function would let the linker keep, say, its AVX-512 copy for everybody.
#pragma once

#define FASTMHA_INLINE inline __attribute__((always_inline))
// After a lambda's parameters: GCC calls one that is used twice, and its vectors go through memory.
#define FASTMHA_INLINE_LAMBDA __attribute__((always_inline))

// Loops over a register tile must disappear, or GCC keeps the accumulators in memory at -O2.
#if defined(__clang__)
#define FASTMHA_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FASTMHA_UNROLL _Pragma("GCC unroll 32")
#endif

// The build sets FASTMHA_KERNEL_ISA_<NAME> and FASTMHA_KERNEL_ISA=<name> for each kernel object.
#if defined(FASTMHA_KERNEL_ISA_AVX512)
#include "vec_avx512.h"
#elif defined(FASTMHA_KERNEL_ISA_AVX2)
#include "vec_avx2.h"
#elif defined(FASTMHA_KERNEL_ISA_GENERIC)
#include "vec_generic.h"
#else
#error "compile kernel sources through add_kernels() in CMakeLists.txt: it names the ISA"
#endif

#define FASTMHA_CONCAT_(a, b) a##_##b
#define FASTMHA_CONCAT(a, b) FASTMHA_CONCAT_(a, b)
// The one symbol that a kernel object exports: fastmha_gemm_avx2, fastmha_panel_generic, ...
#define FASTMHA_KERNEL_SYMBOL(family) FASTMHA_CONCAT(fastmha_##family, FASTMHA_KERNEL_ISA)
#define FASTMHA_STRINGIZE_(x) #x
#define FASTMHA_STRINGIZE(x) FASTMHA_STRINGIZE_(x)
