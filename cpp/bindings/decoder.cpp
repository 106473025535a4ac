// Decoder blocks for Python, over few rows and while they generate.
#include "fastmha/decoder.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "arrays.h"
#include "block_input.h"
#include "module.h"
#include "norm_input.h"
#include "rows.h"

namespace fastmha::python {
namespace {

// Keys or values of hypotheses, which the core writes to where they lie.
struct Store {
  py::array array;
  MutableView view;

  Store(const char* op, const char* name, py::handle object) : array(checked_array(op, name, object)) {
    require_float32(op, name, array);
    FASTMHA_CHECK(array.ndim() == 4 && viewable(array) && array.writeable(), op, ": ", name,
                  " must have 4 axes, a contiguous last one, and be writeable, got shape ",
                  shape_text(array));
    FASTMHA_CHECK(!overlaps_itself(array), op, ": ", name,
                  " must not be a view whose elements share memory (a broadcast)");
    view = view_of<float>(array, static_cast<float*>(const_cast<void*>(array.data())));
  }
};

// Arrays of a call, of which some are written to: those must share memory with no other.
class Apart {
 public:
  // Neither the array nor the name is copied.
  void written(const char* name, const py::array& array) { add(name, array, true); }
  void read(const char* name, const py::array& array) { add(name, array, false); }

  void check(const char* op) {
    std::sort(arrays_.begin(), arrays_.end(),
              [](const Named& a, const Named& b) { return a.extent.first < b.extent.first; });
    for (size_t i = 0; i < arrays_.size(); ++i) {
      const Named& a = arrays_[i];
      // Behind a's end no array begins that meets it: mostly the next one already.
      for (size_t j = i + 1; j < arrays_.size() && arrays_[j].extent.first < a.extent.last; ++j) {
        const Named& b = arrays_[j];
        FASTMHA_CHECK(!(a.is_written || b.is_written) || !shares_memory(*a.array, *b.array), op, ": ", a.name,
                      " and ", b.name, " must not share memory; pass arrays of their own");
      }
    }
  }

 private:
  struct Named {
    const char* name;
    const py::array* array;
    Extent extent;
    bool is_written;
  };
  void add(const char* name, const py::array& array, bool is_written) {
    arrays_.push_back({name, &array, extent_of(array), is_written});
  }
  std::vector<Named> arrays_;
};

struct DecoderBlockInput : BlockInput<DecoderBlock> {
  DecoderBlockInput(const char* op, py::handle object)
      : BlockInput(op, object,
                   {&DecoderBlock::in_proj, &DecoderBlock::out_proj, &DecoderBlock::memory_q_proj,
                    &DecoderBlock::memory_kv_proj, &DecoderBlock::memory_out_proj, &DecoderBlock::linear1,
                    &DecoderBlock::linear2, &DecoderBlock::gate}) {}
};

// With the arrays of its keys and values; those of the memory are only read.
struct CachedBlockInput : BlockInput<DecoderBlock> {
  std::optional<Store> key, value;
  std::optional<Input> memory_key, memory_value;

  CachedBlockInput(const char* op, py::handle object)
      : BlockInput(op, object,
                   {&DecoderBlock::in_proj, &DecoderBlock::out_proj, &DecoderBlock::memory_q_proj,
                    &DecoderBlock::memory_out_proj, &DecoderBlock::linear1, &DecoderBlock::linear2,
                    &DecoderBlock::gate},
                   4) {
    key.emplace(op, "key", next());
    value.emplace(op, "value", next());
    memory_key = float_input(op, "memory_key", next(), 3);
    memory_value = float_input(op, "memory_value", next(), 3);
    block.key = key->view;
    block.value = value->view;
    block.memory_key = memory_key->view;
    block.memory_value = memory_value->view;
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

py::object decoder_blocks_py(PyObject* const* arguments) {
  const char* op = "decoder_blocks";
  const py::handle blocks = arguments[0], norm = arguments[1], x = arguments[2], memory = arguments[3],
                   cu_seqlens = arguments[4], cu_seqlens_memory = arguments[5], relative_bias = arguments[6];
  const Input input = rows_input(op, "x", x), source = rows_input(op, "memory", memory);
  const BlockList<DecoderBlockInput> given(op, blocks);
  const NormInput last(op, "norm", norm);

  DecoderBlocksParams params;
  params.norm = last.norm;
  std::vector<int64_t> bounds, memory_bounds;
  params.sequences = sequences_input(op, "x", input.array, "cu_seqlens", cu_seqlens, bounds);
  const int64_t sources =
      sequences_input(op, "memory", source.array, "cu_seqlens_memory", cu_seqlens_memory, memory_bounds);
  FASTMHA_CHECK(sources == params.sequences, op, ": x holds ", params.sequences, " sequences, memory ",
                sources);
  if (!cu_seqlens.is_none()) params.cu_seqlens = bounds.data();
  if (!cu_seqlens_memory.is_none()) params.cu_seqlens_memory = memory_bounds.data();
  const std::optional<Input> bias = relative_bias_input(op, relative_bias, params);
  const Output out = float_output(op, py::none(), shape_of(input.array, input.view.shape[1]), {});
  {
    // Bounds are copies and everything else is held by this frame: other Python threads may run.
    py::gil_scoped_release release;
    decoder_blocks(given.data(), given.size(), input.view, source.view,
                   rows_view<float>(out.array, static_cast<float*>(const_cast<void*>(out.array.data()))),
                   params);
  }
  return out.array;
}

py::object decoder_step_py(PyObject* const* arguments) {
  const char* op = "decoder_step";
  const py::handle blocks = arguments[0], norm = arguments[1], x = arguments[2], beam_size = arguments[3],
                   slots = arguments[4], lengths = arguments[5], new_lengths = arguments[6],
                   position_slots = arguments[7], memory_starts = arguments[8], memory_lengths = arguments[9],
                   relative_bias = arguments[10];
  const Input input = rows_input(op, "x", x);
  const BlockList<CachedBlockInput> given(op, blocks);
  Apart arrays;
  arrays.read("x", input.array);
  for (const CachedBlockInput& block : given.read()) {
    arrays.written("key", block.key->array);
    arrays.written("value", block.value->array);
    arrays.read("memory_key", block.memory_key->array);
    arrays.read("memory_value", block.memory_value->array);
  }
  arrays.check(op);
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
  const std::optional<Input> bias = relative_bias_input(op, relative_bias, params);
  const Output out = float_output(op, py::none(), shape_of(input.array, input.view.shape[1]), {});
  {
    // Numbers are copies and everything else is held by this frame: other Python threads may run.
    py::gil_scoped_release release;
    decoder_step(given.data(), given.size(), input.view,
                 rows_view<float>(out.array, static_cast<float*>(const_cast<void*>(out.array.data()))),
                 params);
  }
  return out.array;
}

}  // namespace

void bind_decoder(py::module_& module) {
  bind_fast<7, decoder_blocks_py>(module, "decoder_blocks");
  bind_fast<11, decoder_step_py>(module, "decoder_step");
}

}  // namespace fastmha::python
