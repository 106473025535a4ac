// The sub-layers of a Transformer block for Python.
#include "fastmha/sublayer.h"

#include <optional>

#include "arrays.h"
#include "module.h"
#include "norm_input.h"
#include "rows.h"

namespace fastmha::python {
namespace {

// Rows for that layer.
Input input(const char* op, const char* name, py::handle object, const PackedLinear& layer) {
  Input rows = rows_input(op, name, object);
  FASTMHA_CHECK(rows.view.shape[1] == layer.in_features(), op, ": ", name, " must have ", layer.in_features(),
                " features on its last axis, got shape ", shape_text(rows.array));
  return rows;
}

// What both sub-layers take around their own: x, residual, norms, and the result, which may be in place.
struct Around {
  Input x;
  RowsOutput out;
  NormInput before, after;
  std::optional<Input> residual;

  Around(const char* op, const PackedLinear& first, const PackedLinear& last, py::handle x_,
         py::handle residual_, py::handle norm_before, py::handle norm_after, py::handle out_)
      : x(input(op, "x", x_, first)),
        out(op, out_, shape_of(x.array, last.out_features())),
        before(op, "norm_before", norm_before),
        after(op, "norm_after", norm_after) {
    out.allow_in_place("x", py::reinterpret_borrow<py::array>(x_));
    before.refuse_as(out, "norm_before");
    after.refuse_as(out, "norm_after");
    if (residual_.is_none()) return;
    residual = rows_input(op, "residual", residual_);
    require_shape(op, "residual", residual->array, shape_of(x.array, last.out_features()));
    out.allow_in_place("residual", py::reinterpret_borrow<py::array>(residual_));
  }

  template <class Params>
  void set(Params& params) const {
    params.norm_before = before.norm;
    params.norm_after = after.norm;
    if (residual) params.residual = residual->view;
  }
};

py::array feed_forward_py(const PackedLinear& linear1, const PackedLinear& linear2, const PackedLinear* gate,
                          py::handle x, py::handle residual, py::handle norm_before, py::handle norm_after,
                          py::handle out) {
  Around around("feed_forward", linear1, linear2, x, residual, norm_before, norm_after, out);
  FeedForwardParams params;
  around.set(params);
  params.gate = gate;
  {
    // The arrays are held by this frame and every check on them is done: other Python threads may run.
    py::gil_scoped_release release;
    feed_forward(linear1, linear2, around.x.view, around.out.view(), params);
  }
  return around.out.finish();
}

// How many sequences an array (batch, length, width), or one (length, width), holds.
int64_t sequences_in(const py::array& array) { return array.ndim() == 2 ? 1 : array.shape(0); }

py::array multi_head_attention_py(const PackedLinear& in_proj, const PackedLinear* kv_proj,
                                  const PackedLinear& out_proj, int64_t heads, int64_t kv_heads,
                                  py::handle scale, py::handle relative_bias, py::handle x, py::handle memory,
                                  py::handle is_causal, py::handle key_lengths, py::handle cu_seqlens,
                                  py::handle cu_seqlens_memory, py::handle residual, py::handle norm_before,
                                  py::handle norm_after, py::handle out) {
  const char* op = "multi_head_attention";
  Around around(op, in_proj, out_proj, x, residual, norm_before, norm_after, out);
  MultiHeadAttentionParams params;
  around.set(params);
  params.heads = heads;
  params.kv_heads = kv_heads;
  params.is_causal = flag(op, "is_causal", is_causal);
  std::optional<Input> relative;
  if (!relative_bias.is_none()) {
    relative = float_input(op, "relative_bias", relative_bias, 2);
    params.relative_bias = relative->view;
    around.out.refuse("relative_bias", relative->array);
  }
  if (!scale.is_none()) params.scale = static_cast<float>(number(op, "scale", scale));

  std::optional<Input> source;
  if (kv_proj != nullptr) {
    source = input(op, "memory", memory, *kv_proj);
    around.out.refuse("memory", source->array);
  }
  std::vector<int64_t> bounds, memory_bounds, lengths;
  if (cu_seqlens.is_none()) {
    const py::array& array = around.x.array;
    FASTMHA_CHECK(array.ndim() == 2 || array.ndim() == 3, op,
                  ": x must be (batch, length, width) or (length, width), got shape ", shape_text(array));
    params.sequences = sequences_in(array);
    FASTMHA_CHECK(
        !source || (source->array.ndim() == array.ndim() && sequences_in(source->array) == params.sequences),
        op, ": x and memory must have the same batch (axis 0), got ", shape_text(array), " and ",
        source ? shape_text(source->array) : "");
  } else {
    bounds = index_input(op, "cu_seqlens", cu_seqlens);
    FASTMHA_CHECK(!bounds.empty(), op, ": cu_seqlens must have at least 1 entry");
    params.sequences = static_cast<int64_t>(bounds.size()) - 1;
    params.cu_seqlens = bounds.data();
    if (source) {
      if (cu_seqlens_memory.is_none()) {
        memory_bounds = bounds;
      } else {
        memory_bounds = index_input(op, "cu_seqlens_memory", cu_seqlens_memory);
      }
      FASTMHA_CHECK(memory_bounds.size() == bounds.size(), op,
                    ": cu_seqlens and cu_seqlens_memory must have the same number of entries, got ",
                    bounds.size(), " and ", memory_bounds.size());
      params.cu_seqlens_memory = memory_bounds.data();
    }
  }
  if (!key_lengths.is_none()) {
    lengths = index_input(op, "key_lengths", key_lengths);
    FASTMHA_CHECK(static_cast<int64_t>(lengths.size()) == params.sequences, op,
                  ": key_lengths must have one entry per sequence (", params.sequences, "), got ",
                  lengths.size());
    params.key_lengths = lengths.data();
  }
  {
    // Offsets and lengths are copies, the arrays are held by this frame: other Python threads may run.
    py::gil_scoped_release release;
    if (source) {
      multi_head_attention(in_proj, *kv_proj, out_proj, around.x.view, source->view, around.out.view(),
                           params);
    } else {
      multi_head_attention(in_proj, out_proj, around.x.view, around.out.view(), params);
    }
  }
  return around.out.finish();
}

}  // namespace

void bind_sublayer(py::module_& module) {
  module.def("feed_forward", &feed_forward_py);
  module.def("multi_head_attention", &multi_head_attention_py);
}

}  // namespace fastmha::python
