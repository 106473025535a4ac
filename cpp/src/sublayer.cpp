// Steps, slices, scratch strides and checks that the sub-layers share.
#include "sublayer.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "fastmha/norm.h"
#include "isa.h"
#include "packed_weight.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"

namespace fastmha {
namespace {

// What a slice's intermediate results may take of the L2 cache (1 to 2 MiB on current servers), beside the
// panels of weights that pass through.
constexpr int64_t kSliceBytes = 768 << 10;
// All weights of a sub-layer stream from L3 once per slice. At R rows, one core at 275 GFLOP/s reads 2 / R
// bytes per flop: 10 GB/s for 56 rows. Between 28 and 224 rows, at widths 512/2048 and 768/3072, the speed
// was the same within 2%: the bounds are for caches slower than those.
constexpr int64_t kLeastTiles = 2;
constexpr int64_t kMostTiles = 8;

void run_norm(const SublayerNorm& norm, const ConstView& x, const MutableView& out) {
  NormRows rows;
  rows.map = {x.data, x.strides[0], out.data, out.strides[0], x.shape[0], x.shape[1]};
  rows.weight = norm.weight.data;
  rows.bias = norm.bias.data;
  rows.eps = norm.eps;
  const RowwiseKernels& kernels = *active_isa().rowwise;
  (norm.kind == NormKind::kRmsNorm ? kernels.rms_norm : kernels.layer_norm)(rows);
}

// out *= x
void multiply_rows(const ConstView& x, const MutableView& out) {
  active_isa().rowwise->multiply(
      {x.data, x.strides[0], out.data, out.strides[0], out.shape[0], out.shape[1]});
}

void copy_rows(const ConstView& x, const MutableView& out) {
  for (int64_t row = 0; row < x.shape[0]; ++row) {
    std::memcpy(out.data + row * out.strides[0], x.data + row * x.strides[0],
                static_cast<size_t>(x.shape[1]) * sizeof(float));
  }
}

void share_norm(const SublayerNorm& norm, const ConstView& x, const MutableView& out) {
  if (norm.kind == NormKind::kRmsNorm) {
    RmsNormParams params;
    params.eps = norm.eps;
    return rms_norm(x, norm.weight, out, params);
  }
  LayerNormParams params;
  params.bias = norm.bias;
  params.eps = norm.eps;
  layer_norm(x, norm.weight, out, params);
}

}  // namespace

// ---- steps -------------------------------------------------------------------------------------------------

ConstView Here::normalised(const SublayerNorm& norm, const ConstView& x, const MutableView& staged) {
  if (!norm.weight.empty()) {
    run_norm(norm, x, staged);
  } else if (rows_alias(x.strides[0], std::min<int64_t>(x.shape[0], active_isa().gemm->mr))) {
    copy_rows(x, staged);
  } else {
    return x;
  }
  return staged;
}

void Here::linear(const LinearLayer& layer, const ConstView& x, const MutableView& out,
                  const ConstView& residual) {
  const LinearTask all{0, x.shape[0], 0, layer.weight.out_features()};
  layer.weight.kernels().block(gemm_block(layer.weight, layer.activation, x, out, residual, all));
}

void Here::multiply(const LinearLayer& layer, const ConstView& x, const MutableView& rows,
                    const MutableView& gate) {
  const int64_t columns = layer.weight.out_features();
  for (int64_t first = 0; first < columns; first += gate.shape[1]) {
    MutableView part = gate;
    part.shape[1] = std::min(gate.shape[1], columns - first);
    const LinearTask task{0, x.shape[0], first, part.shape[1]};
    GemmBlock block = gemm_block(layer.weight, layer.activation, x, part, {}, task);
    block.out = part.data;
    layer.weight.kernels().block(block);
    multiply_rows(part, {rows.data + first, {part.shape[0], part.shape[1]}, {rows.strides[0], 1}});
  }
}

void Here::attention(const AttentionPlan& plan, float* scratch) { attend_here(plan, scratch); }

void Here::normalise(const SublayerNorm& norm, const MutableView& rows) {
  if (!norm.weight.empty()) run_norm(norm, rows, rows);
}

ConstView Shared::normalised(const SublayerNorm& norm, const ConstView& x, const MutableView& staged) {
  if (norm.weight.empty()) return x;
  share_norm(norm, x, staged);
  return staged;
}

void Shared::linear(const LinearLayer& layer, const ConstView& x, const MutableView& out,
                    const ConstView& residual) {
  run_linear(layer.weight, layer.activation, x, out, residual);
}

void Shared::multiply(const LinearLayer& layer, const ConstView& x, const MutableView& rows,
                      const MutableView& gate) {
  run_linear(layer.weight, layer.activation, x, gate, {});
  constexpr double kFloatsPerNanosecond = 8;  // from L2
  const int64_t count = rows.shape[0];
  const int threads = threads_for(count, static_cast<double>(rows.size()) / kFloatsPerNanosecond);
  parallel_for(count, threads,
               [&](int64_t row, int) { multiply_rows(rows_of(gate, row, 1), rows_of(rows, row, 1)); });
}

void Shared::attention(const AttentionPlan& plan, float*) { run_attention(plan); }

void Shared::normalise(const SublayerNorm& norm, const MutableView& rows) {
  if (!norm.weight.empty()) share_norm(norm, rows, rows);
}

// ---- slices and scratch ------------------------------------------------------------------------------------

int64_t least_slice_rows(const GemmKernels& kernels) { return kLeastTiles * kernels.mr; }

int64_t slice_rows(const GemmKernels& kernels, int64_t row_bytes) {
  const int64_t fitting = kSliceBytes / std::max<int64_t>(row_bytes, 1) / kernels.mr;
  return std::min(kMostTiles, std::max(kLeastTiles, fitting)) * kernels.mr;
}

int64_t scratch_stride(int64_t features) {
  if (features == 0) return 0;
  constexpr int64_t kAliasing = 512;  // floats: 2 KiB
  const int64_t lines = line_floats(features);
  return lines % kAliasing == 0 ? lines + kLineFloats : lines;
}

// ---- checks ------------------------------------------------------------------------------------------------

void check_norm(const char* op, const char* name, const SublayerNorm& norm, int64_t features,
                const MutableView& out) {
  if (norm.weight.empty()) return;
  const auto check = [&](const char* part, const ConstView& vector) {
    // Not by concat, a stream: the names of a decoder block took 0.8 us of every call so.
    check_parameter(op, (std::string(name) + "." + part).c_str(), vector, features, out);
  };
  check("weight", norm.weight);
  FASTMHA_CHECK(norm.bias.empty() || norm.kind == NormKind::kLayerNorm, op, ": ", name,
                " is an RMS norm, which has no bias");
  if (!norm.bias.empty()) check("bias", norm.bias);
  FASTMHA_CHECK(norm.eps >= 0.0f, op, ": ", name, ".eps must be 0 or more, got ", norm.eps);
}

void check_sublayer_input(const char* op, const char* name, const ConstView& x, const LinearLayer& layer,
                          const char* layer_name) {
  check_rows(op, name, x);
  FASTMHA_CHECK(x.shape[1] == layer.weight.in_features(), op, ": ", name, " must have ",
                layer.weight.in_features(), " features (in_features of ", layer_name,
                ") on its last axis, got shape ", shape_text(x));
}

void check_sublayer(const char* op, const ConstView& x, const MutableView& out, const LinearLayer& last,
                    const char* layer_name, const SublayerNorm& before, const SublayerNorm& after,
                    const ConstView& residual) {
  check_rows(op, "out", out);
  FASTMHA_CHECK(out.shape[0] == x.shape[0] && out.shape[1] == last.weight.out_features(), op,
                ": out must have shape (", x.shape[0], ", ", last.weight.out_features(),
                ") (rows of x, out_features of ", layer_name, "), got ", shape_text(out));
  check_out(op, out);
  check_in_place(op, out, "x", x);
  check_norm(op, "norm_before", before, x.shape[1], out);
  check_norm(op, "norm_after", after, out.shape[1], out);
  if (residual.empty()) return;
  check_same_shape(op, "residual", residual, "out", out);
  check_in_place(op, out, "residual", residual);
}

}  // namespace fastmha
