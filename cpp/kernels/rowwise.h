// What the row-wise kernels take and what an instruction set has of them.
#pragma once

#include <cstdint>

#include "fastmha/activation.h"

namespace fastmha {

// Where the rows of a whole call are, which decides what is prefetched and how results are stored. The bits
// of results never depend on it.
enum class Rows {
  kCache,   // L1 and L2: a prefetch would only take time
  kL3,      // to be prefetched
  kMemory,  // the same, and results go past the caches; only where out is not an input
};

// Rows of `features` contiguous floats; strides are from row to row. out may be x (or residual) itself.
struct MapRows {
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t rows = 0;
  int64_t features = 0;
  Rows where = Rows::kCache;
};

struct NormRows {
  MapRows map;
  const float* residual = nullptr;  // or null
  int64_t residual_stride = 0;
  const float* weight = nullptr;
  const float* bias = nullptr;  // or null
  float eps = 0.0f;
};

struct RowwiseKernels {
  const char* name;
  double floats_per_ns;  // of one core for the cheap ones, from cache, for estimates of time
  void (*layer_norm)(const NormRows& rows);
  void (*rms_norm)(const NormRows& rows);
  void (*softmax)(const MapRows& rows);
  void (*activation)(Activation function, const MapRows& rows);
  void (*exp)(const MapRows& rows);
  void (*tanh)(const MapRows& rows);
  void (*multiply)(const MapRows& rows);  // out <- out * x, from cache
};

extern "C" {
extern const RowwiseKernels fastmha_rowwise_generic;
extern const RowwiseKernels fastmha_rowwise_avx2;
extern const RowwiseKernels fastmha_rowwise_avx512;
}

}  // namespace fastmha
