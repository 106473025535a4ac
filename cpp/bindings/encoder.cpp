// Encoder blocks over few rows for Python.
#include "fastmha/encoder.h"

#include <memory>
#include <optional>
#include <vector>

#include "arrays.h"
#include "block_input.h"
#include "module.h"
#include "norm_input.h"
#include "rows.h"

namespace fastmha::python {
namespace {

// A block's tuple, which keeps the weights alive; the list that it is from may change meanwhile.
struct BlockInput {
  static constexpr size_t kParts = 11;
  py::tuple parts;
  EncoderBlock block;
  std::optional<NormInput> norms[2];

  BlockInput(const char* op, py::handle object) : parts(block_input(op, object, kParts)) {
    const PackedLinear** maps[] = {&block.in_proj, &block.out_proj, &block.linear1, &block.linear2,
                                   &block.gate};
    size_t at = 0;
    for (const PackedLinear** map : maps) *map = map_input(op, parts[at++]);
    for (int i = 0; i < 2; ++i) {
      norms[i].emplace(op, "norm", parts[at++]);
      block.norms[i] = norms[i]->norm;
    }
    block.norm_first = flag(op, "norm_first", parts[at++]);
    block.heads = integer(op, "heads", parts[at++]);
    block.kv_heads = integer(op, "kv_heads", parts[at++]);
    if (const py::handle scale = parts[at++]; !scale.is_none()) {
      block.scale = static_cast<float>(number(op, "scale", scale));
    }
  }
};

py::object encoder_blocks_py(PyObject* const* arguments) {
  const char* op = "encoder_blocks";
  const py::handle blocks = arguments[0], norm = arguments[1], x = arguments[2], cu_seqlens = arguments[3],
                   relative_bias = arguments[4];
  const Input input = rows_input(op, "x", x);
  std::vector<std::unique_ptr<BlockInput>> inputs;
  std::vector<EncoderBlock> given;
  for (const py::handle block : list_input(op, "blocks", blocks)) {
    inputs.push_back(std::make_unique<BlockInput>(op, block));
    given.push_back(inputs.back()->block);
  }
  const NormInput last(op, "norm", norm);

  EncoderBlocksParams params;
  params.norm = last.norm;
  std::vector<int64_t> bounds;
  if (cu_seqlens.is_none()) {
    FASTMHA_CHECK(input.array.ndim() == 3, op,
                  ": x must be (batch, length, width) without cu_seqlens, got shape ",
                  shape_text(input.array));
    params.sequences = input.array.shape(0);
  } else {
    bounds = index_input(op, "cu_seqlens", cu_seqlens);
    params.sequences = static_cast<int64_t>(bounds.size()) - 1;
    params.cu_seqlens = bounds.data();
  }
  std::optional<Input> bias;
  if (!relative_bias.is_none()) {
    bias = float_input(op, "relative_bias", relative_bias, 2);
    params.relative_bias = bias->view;
  }
  const Output out = float_output(op, py::none(), shape_of(input.array, input.view.shape[1]), {});
  {
    // Bounds are copies and everything else is held by this frame: other Python threads may run.
    py::gil_scoped_release release;
    encoder_blocks(given.data(), static_cast<int64_t>(given.size()), input.view,
                   rows_view<float>(out.array, static_cast<float*>(const_cast<void*>(out.array.data()))),
                   params);
  }
  return out.array;
}

}  // namespace

void bind_encoder(py::module_& module) { bind_fast<5, encoder_blocks_py>(module, "encoder_blocks"); }

}  // namespace fastmha::python
