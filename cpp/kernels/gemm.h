// What the linear-layer kernels take and what an instruction set has of them.
#pragma once

#include <cstdint>

#include "fastmha/activation.h"

namespace fastmha {

// Length of one summation chain. Along in_features (the depth of the product) every element of the result is
//   total = s_0 + s_1 + ...   (left to right),   s_b = ((x_0 w_0 + x_1 w_1) + ...) over depth block b, by FMA
//   from 0
// whatever path computes it. Blocks start at depth 0; this constant and the ISA's fma are all that a bit
// pattern depends on. The largest error against float64, for standard normal data and depths from 64 to 4096,
// is 0.6 to 1.0 times that of PyTorch 2.13 (MKL, AVX-512). One chain over the whole depth would save 1 to 2
// points of peak and have several times the error.
constexpr int64_t kDepthBlock = 256;

// A block of the result, rows x columns, whose weights are consecutive panels (see src/packed_weight.h).
struct GemmBlock {
  const float* x = nullptr;  // (rows, depth)
  int64_t x_stride = 0;      // from row to row, as the other strides
  int64_t rows = 0;
  int64_t depth = 0;
  bool fresh_rows = false;        // a hint: x is read for the first time and from far away
  const float* weight = nullptr;  // the panel of the first column
  bool far_weight = false;        // a hint: it comes from memory
  // A hint: the weights up to here are read for the first time, by this block and those after it. Null: they
  // are in a cache already.
  const float* weight_end = nullptr;
  const float* bias = nullptr;      // for whole panels: zeros in the padding and where the layer has none
  const float* residual = nullptr;  // or null
  int64_t residual_stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t columns = 0;  // only the last panel may be incomplete
  Activation activation = Activation::kNone;
};

struct GemmKernels {
  const char* name;
  int mr;               // rows of the register tile
  int nr;               // columns of it, and of a panel
  double flops_per_ns;  // of one core at a few GHz, for estimates of time
  // Panels that run side by side when a block has this many rows (1 to mr): few rows alone leave too few
  // independent sums to hide the latency of the FMA.
  int (*panels)(int64_t rows);
  void (*block)(const GemmBlock& block);
};

extern "C" {
extern const GemmKernels fastmha_gemm_generic;
extern const GemmKernels fastmha_gemm_avx2;
extern const GemmKernels fastmha_gemm_avx512;
}

}  // namespace fastmha
