// Decoding steps for Python.
#include "fastmha/decoder.h"

#include <algorithm>
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

// Keys or values that the core writes to: an array of ours, of that many axes.
MutableView buffer(const char* op, const char* name, py::handle object, int rank) {
  const py::array array = checked_array(op, name, object);
  require_float32(op, name, array);
  FASTMHA_CHECK(array.ndim() == rank && viewable(array) && array.writeable(), op, ": ", name, " must have ",
                rank, " axes, a contiguous last one, and be writeable, got shape ", shape_text(array));
  return view_of<float>(array, static_cast<float*>(const_cast<void*>(array.data())));
}

// A block's tuple, which keeps the weights and arrays alive; the list that it is from may change meanwhile.
struct BlockInput {
  static constexpr size_t kParts = 18;
  py::tuple parts;
  DecoderBlock block;
  std::optional<NormInput> norms[3];

  BlockInput(const char* op, py::handle object) : parts(block_input(op, object, kParts)) {
    const PackedLinear** maps[] = {
        &block.in_proj, &block.out_proj, &block.memory_q_proj, &block.memory_out_proj,
        &block.linear1, &block.linear2,  &block.gate};
    size_t at = 0;
    for (const PackedLinear** map : maps) *map = map_input(op, parts[at++]);
    for (int i = 0; i < 3; ++i) {
      norms[i].emplace(op, "norm", parts[at++]);
      block.norms[i] = norms[i]->norm;
    }
    block.norm_first = flag(op, "norm_first", parts[at++]);
    block.heads = integer(op, "heads", parts[at++]);
    block.kv_heads = integer(op, "kv_heads", parts[at++]);
    if (const py::handle scale = parts[at++]; !scale.is_none()) {
      block.scale = static_cast<float>(number(op, "scale", scale));
    }
    block.key = buffer(op, "key", parts[at++], 4);
    block.value = buffer(op, "value", parts[at++], 4);
    block.memory_key = buffer(op, "memory_key", parts[at++], 3);
    block.memory_value = buffer(op, "memory_value", parts[at++], 3);
  }
};

std::vector<int64_t> numbers_of(const char* op, const char* name, py::handle object, size_t count) {
  std::vector<int64_t> numbers = index_input(op, name, object);
  FASTMHA_CHECK(numbers.size() == count, op, ": ", name, " must have ", count, " entries, got ",
                numbers.size());
  return numbers;
}

// (hypotheses, positions) integers, with a column for each position that a hypothesis holds.
struct Indices {
  std::vector<int64_t> numbers;
  int64_t stride;

  Indices(const char* op, const char* name, py::handle object, size_t hypotheses,
          const std::vector<int64_t>& lengths) {
    const py::array array = checked_array(op, name, object);
    const int64_t longest = lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
    FASTMHA_CHECK(array.ndim() == 2 && array.shape(0) == static_cast<py::ssize_t>(hypotheses) &&
                      array.shape(1) >= longest,
                  op, ": ", name, " must be (", hypotheses, ", ", longest, " or more), got ",
                  shape_text(array));
    stride = array.shape(1);
    numbers = index_input(op, name, array.attr("reshape")(-1));
  }
};

py::object decoder_step_py(PyObject* const* arguments) {
  const char* op = "decoder_step";
  const py::handle blocks = arguments[0], norm = arguments[1], x = arguments[2], beam_size = arguments[3],
                   slots = arguments[4], lengths = arguments[5], new_lengths = arguments[6],
                   position_slots = arguments[7], memory_starts = arguments[8], memory_lengths = arguments[9],
                   relative_bias = arguments[10];
  const Input input = rows_input(op, "x", x);
  std::vector<std::unique_ptr<BlockInput>> inputs;
  std::vector<DecoderBlock> given;
  for (const py::handle block : list_input(op, "blocks", blocks)) {
    inputs.push_back(std::make_unique<BlockInput>(op, block));
    given.push_back(inputs.back()->block);
  }
  const NormInput last(op, "norm", norm);

  DecoderStepParams params;
  params.norm = last.norm;
  params.beam_size = integer(op, "beam_size", beam_size);
  const std::vector<int64_t> starts = index_input(op, "memory_starts", memory_starts);
  params.sources = static_cast<int64_t>(starts.size());
  FASTMHA_CHECK(params.beam_size >= 1 && params.sources <= INT64_MAX / params.beam_size, op,
                ": beam_size must be at least 1 and that of ", params.sources, " sources countable, got ",
                params.beam_size);
  const size_t hypotheses = starts.size() * static_cast<size_t>(params.beam_size);
  const auto source_lengths = numbers_of(op, "memory_lengths", memory_lengths, starts.size());
  const auto slot_numbers = numbers_of(op, "slots", slots, hypotheses);
  const auto held = numbers_of(op, "lengths", lengths, hypotheses);
  std::vector<int64_t> added;
  if (!new_lengths.is_none()) added = numbers_of(op, "new_lengths", new_lengths, hypotheses);
  std::optional<Indices> earlier;
  if (!position_slots.is_none()) {
    earlier.emplace(op, "position_slots", position_slots, hypotheses, held);
    params.position_slots = earlier->numbers.data();
    params.position_slots_stride = earlier->stride;
  }
  params.slots = slot_numbers.data();
  params.lengths = held.data();
  params.new_lengths = new_lengths.is_none() ? nullptr : added.data();
  params.memory_starts = starts.data();
  params.memory_lengths = source_lengths.data();
  std::optional<Input> bias;
  if (!relative_bias.is_none()) {
    bias = float_input(op, "relative_bias", relative_bias, 2);
    params.relative_bias = bias->view;
  }
  const Output out = float_output(op, py::none(), shape_of(input.array, input.view.shape[1]), {});
  {
    // Numbers are copies and everything else is held by this frame: other Python threads may run.
    py::gil_scoped_release release;
    decoder_step(given.data(), static_cast<int64_t>(given.size()), input.view,
                 rows_view<float>(out.array, static_cast<float*>(const_cast<void*>(out.array.data()))),
                 params);
  }
  return out.array;
}

}  // namespace

void bind_decoder(py::module_& module) { bind_fast<11, decoder_step_py>(module, "decoder_step"); }

}  // namespace fastmha::python
