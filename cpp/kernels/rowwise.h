// What the row-wise kernels take and what an instruction set has of them.
#pragma once

#include <cstdint>

#include "fastmha/activation.h"

namespace fastmha {

// Rows of `features` contiguous floats; strides are from row to row. out may be x (or residual) itself.
struct MapRows {
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t rows = 0;
  int64_t features = 0;
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
};

extern "C" {
extern const RowwiseKernels fastmha_rowwise_generic;
extern const RowwiseKernels fastmha_rowwise_avx2;
extern const RowwiseKernels fastmha_rowwise_avx512;
}

}  // namespace fastmha
