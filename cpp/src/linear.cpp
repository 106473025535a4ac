// Linear layers: checks, the plan (how rows and panels are shared out), the tasks. The arithmetic is in
// kernels/gemm.cpp.
#include "fastmha/linear.h"

#include <algorithm>
#include <cstring>

#include "isa.h"
#include "linear_plan.h"
#include "packed_weight.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"
#include "workspace.h"

namespace fastmha {

struct PackedLinear::State {
  PackedWeight weight;
  Activation activation;
  bool has_bias;
};

namespace {

// Larger weights find no room in L3 among everything else that a model reads.
constexpr size_t kCachedBytes = static_cast<size_t>(kL3Bytes / 4 * 3);

void check_weight(const ConstView& weight, const ConstView& bias) {
  const char* op = "PackedLinear";
  FASTMHA_CHECK(weight.rank == 2, op, ": weight must have 2 axes (out_features, in_features), got shape ",
                shape_text(weight));
  FASTMHA_CHECK(weight.shape[0] >= 0 && weight.shape[1] >= 0, op,
                ": weight must not have a negative extent, got shape ", shape_text(weight));
  // Beyond any layer; sizes in bytes below cannot overflow.
  constexpr int64_t kMaxFeatures = int64_t{1} << 30;
  FASTMHA_CHECK(weight.shape[0] <= kMaxFeatures && weight.shape[1] <= kMaxFeatures, op,
                ": weight must have at most 2^30 features on each side, got shape ", shape_text(weight));
  FASTMHA_CHECK(weight.data != nullptr || weight.size() == 0, op,
                ": weight must point to its elements, got null");
  FASTMHA_CHECK(weight.dtype == DType::kFloat32, op, ": weight must be float32");
  if (bias.empty()) return;
  FASTMHA_CHECK(bias.rank == 1 && bias.shape[0] == weight.shape[0], op,
                ": bias must have shape (out_features,) = (", weight.shape[0], ",), got shape ",
                shape_text(bias));
  FASTMHA_CHECK(bias.data != nullptr || bias.shape[0] == 0, op,
                ": bias must point to its elements, got null");
  FASTMHA_CHECK(bias.dtype == DType::kFloat32, op, ": bias must be float32");
}

void check_linear(const PackedWeight& weight, const ConstView& x, const MutableView& out,
                  const ConstView& residual) {
  const char* op = "linear";
  check_rows(op, "x", x);
  FASTMHA_CHECK(x.shape[1] == weight.in_features(), op, ": x must have ", weight.in_features(),
                " features (in_features) on its last axis, got shape ", shape_text(x));
  check_rows(op, "out", out);
  FASTMHA_CHECK(out.shape[0] == x.shape[0] && out.shape[1] == weight.out_features(), op,
                ": out must have shape (", x.shape[0], ", ", weight.out_features(),
                ") (rows of x, out_features), got ", shape_text(out));
  check_out(op, out);
  FASTMHA_CHECK(!overlap(x, out), op, ": out must not overlap x");
  if (residual.empty()) return;
  check_same_shape(op, "residual", residual, "out", out);
  check_in_place(op, out, "residual", residual);
}

}  // namespace

GemmBlock gemm_block(const PackedWeight& weight, Activation activation, const ConstView& x,
                     const MutableView& out, const ConstView& residual, const LinearTask& part) {
  GemmBlock block;
  block.x = x.data + part.row * x.strides[0];
  block.x_stride = x.strides[0];
  block.rows = part.rows;
  block.depth = weight.in_features();
  block.far_weight = weight.nbytes() > kCachedBytes;
  block.weight = weight.panel(part.column / weight.kernels().nr);
  block.weight_end = weight.panel(weight.panels());
  block.bias = weight.bias() + part.column;
  if (!residual.empty()) {
    block.residual = residual.data + part.row * residual.strides[0] + part.column;
    block.residual_stride = residual.strides[0];
  }
  block.out = out.data + part.row * out.strides[0] + part.column;
  block.out_stride = out.strides[0];
  block.columns = part.columns;
  block.activation = activation;
  return block;
}

void run_linear(const PackedWeight& weight, Activation activation, const ConstView& x, const MutableView& out,
                const ConstView& residual) {
  const GemmKernels& kernels = weight.kernels();
  const LinearPlan plan =
      plan_linear(kernels, x.shape[0], x.strides[0], weight.in_features(), weight.out_features());
  if (plan.tasks() == 0) return;
  const Workspace scratch(plan.threads, plan.scratch_bytes());
  // The same threads come to the same weights and rows in every call.
  parallel_for(plan.tasks(), plan.threads, [&](int64_t task, int thread) {
    const LinearTask part = plan.task(task);
    GemmBlock block = gemm_block(weight, activation, x, out, residual, part);
    // Further blocks of rows find the panels in a cache. (4096 x 768 -> 3072 loses 2% by asking for them.)
    if (plan.row_blocks > 1) block.weight_end = nullptr;
    block.fresh_rows = plan.column_blocks == 1 && plan.copied_stride == 0;
    if (plan.copied_stride != 0) {
      float* copy = scratch.slice(thread);
      for (int64_t row = 0; row < part.rows; ++row) {
        std::memcpy(copy + row * plan.copied_stride, block.x + row * block.x_stride,
                    static_cast<size_t>(block.depth) * sizeof(float));
      }
      block.x = copy;
      block.x_stride = plan.copied_stride;
    }
    kernels.block(block);
  });
}

PackedLinear::PackedLinear(const ConstView& weight, const ConstView& bias, Activation activation) {
  check_weight(weight, bias);
  state_.reset(new State{PackedWeight(*active_isa().gemm, weight, bias), activation, !bias.empty()});
}

PackedLinear::PackedLinear(PackedLinear&&) noexcept = default;
PackedLinear& PackedLinear::operator=(PackedLinear&&) noexcept = default;
PackedLinear::~PackedLinear() = default;

const PackedLinear::State& PackedLinear::held() const {
  FASTMHA_CHECK(state_ != nullptr, "PackedLinear: the layer was moved from and holds no weight");
  return *state_;
}

LinearLayer held_by(const PackedLinear& layer) {
  const PackedLinear::State& state = layer.held();
  return {state.weight, state.activation};
}

int64_t PackedLinear::in_features() const { return held().weight.in_features(); }
int64_t PackedLinear::out_features() const { return held().weight.out_features(); }
Activation PackedLinear::activation() const { return held().activation; }
bool PackedLinear::has_bias() const { return held().has_bias; }
DType PackedLinear::weight_dtype() const { return held().weight.dtype(); }
size_t PackedLinear::nbytes() const { return held().weight.nbytes(); }

void PackedLinear::unpack(const MutableView& weight) const {
  FASTMHA_CHECK(weight.data != nullptr || weight.size() == 0,
                "PackedLinear::unpack: weight must point to its elements, got null");
  FASTMHA_CHECK(weight.rank == 2 && weight.shape[0] == out_features() && weight.shape[1] == in_features(),
                "PackedLinear::unpack: weight must have shape (", out_features(), ", ", in_features(),
                "), got ", shape_text(weight));
  held().weight.unpack(weight);
}

void linear(const PackedLinear& layer, const ConstView& x, const MutableView& out,
            const LinearParams& params) {
  const LinearLayer held = held_by(layer);
  check_linear(held.weight, x, out, params.residual);
  run_linear(held.weight, held.activation, x, out, params.residual);
}

}  // namespace fastmha
