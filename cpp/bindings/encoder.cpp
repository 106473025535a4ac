// Encoder blocks over few rows for Python.
#include "fastmha/encoder.h"

#include <optional>
#include <vector>

#include "arrays.h"
#include "block_input.h"
#include "module.h"
#include "norm_input.h"
#include "rows.h"

namespace fastmha::python {
namespace {

struct EncoderBlockInput : BlockInput<EncoderBlock> {
  EncoderBlockInput(const char* op, py::handle object)
      : BlockInput(op, object,
                   {&EncoderBlock::in_proj, &EncoderBlock::out_proj, &EncoderBlock::linear1,
                    &EncoderBlock::linear2, &EncoderBlock::gate}) {}
};

py::object encoder_blocks_py(PyObject* const* arguments) {
  const char* op = "encoder_blocks";
  const py::handle blocks = arguments[0], norm = arguments[1], x = arguments[2], cu_seqlens = arguments[3],
                   relative_bias = arguments[4];
  const Input input = rows_input(op, "x", x);
  const BlockList<EncoderBlockInput> given(op, blocks);
  const NormInput last(op, "norm", norm);

  EncoderBlocksParams params;
  params.norm = last.norm;
  std::vector<int64_t> bounds;
  params.sequences = sequences_input(op, "x", input.array, "cu_seqlens", cu_seqlens, bounds);
  if (!cu_seqlens.is_none()) params.cu_seqlens = bounds.data();
  const std::optional<Input> bias = relative_bias_input(op, relative_bias, params);
  const Output out = float_output(op, py::none(), shape_of(input.array, input.view.shape[1]), {});
  {
    // Bounds are copies and everything else is held by this frame: other Python threads may run.
    py::gil_scoped_release release;
    encoder_blocks(given.data(), given.size(), input.view,
                   rows_view<float>(out.array, static_cast<float*>(const_cast<void*>(out.array.data()))),
                   params);
  }
  return out.array;
}

}  // namespace

void bind_encoder(py::module_& module) { bind_fast<5, encoder_blocks_py>(module, "encoder_blocks"); }

}  // namespace fastmha::python
