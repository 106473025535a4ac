// Lists of the tuples that say a block each, and the bias by distance that their attentions share.
#pragma once

#include <initializer_list>
#include <optional>
#include <type_traits>
#include <vector>

#include "arrays.h"
#include "fastmha/linear.h"
#include "norm_input.h"

namespace fastmha::python {

// Or null for None.
inline const PackedLinear* map_input(const char* op, py::handle object) {
  if (object.is_none()) return nullptr;
  if (!py::isinstance<PackedLinear>(object)) {
    throw py::type_error(
        concat(op, ": a block's maps must be packed linear layers, got ", type_name(object)));
  }
  return py::cast<const PackedLinear*>(object);
}

// A block's tuple: its maps, its norms, norm_first, heads, kv_heads, scale (None: not set), and as many parts behind
// them as the block has more. It keeps the weights and arrays alive; the list that it is from may change meanwhile.
template <class Block>
class BlockInput {
 public:
  using Map = const PackedLinear* Block::*;
  Block block;

  BlockInput(const char* op, py::handle object, std::initializer_list<Map> maps, size_t more = 0) {
    constexpr size_t kNorms = std::extent_v<decltype(Block::norms)>, kSettings = 4;
    const size_t count = maps.size() + kNorms + kSettings + more;
    if (!py::isinstance<py::tuple>(object) || py::len(object) != count) {
      throw py::type_error(
          concat(op, ": a block must be a tuple of ", count, " parts, got ", type_name(object)));
    }
    parts_ = py::reinterpret_borrow<py::tuple>(object);
    for (const Map map : maps) block.*map = map_input(op, next());
    for (SublayerNorm& norm : block.norms) norm = norms_.emplace_back(op, "norm", next()).norm;
    block.norm_first = flag(op, "norm_first", next());
    block.heads = integer(op, "heads", next());
    block.kv_heads = integer(op, "kv_heads", next());
    if (const py::handle scale = next(); !scale.is_none()) {
      block.scale = static_cast<float>(number(op, "scale", scale));
    }
  }

 protected:
  py::handle next() { return parts_[at_++]; }

 private:
  py::tuple parts_;
  size_t at_ = 0;
  std::vector<NormInput> norms_;  // hold copies of what in the tuple could not be viewed
};

// A list, which another Python thread may change meanwhile: what is taken from it must be held.
inline py::list list_input(const char* op, const char* name, py::handle object) {
  if (!py::isinstance<py::list>(object)) {
    throw py::type_error(concat(op, ": ", name, " must be a list, got ", type_name(object)));
  }
  return py::reinterpret_borrow<py::list>(object);
}

// Blocks one after another as the core takes them, each read from its tuple by a `Reader`, a BlockInput.
template <class Reader>
class BlockList {
 public:
  BlockList(const char* op, py::handle object) {
    // A copy: numbers in the tuples may run Python, which may change the list that is gone through.
    for (const py::handle block : py::tuple(list_input(op, "blocks", object))) {
      blocks_.push_back(read_.emplace_back(op, block).block);
    }
  }
  const auto* data() const { return blocks_.data(); }
  int64_t size() const { return static_cast<int64_t>(blocks_.size()); }
  const std::vector<Reader>& read() const { return read_; }

 private:
  std::vector<Reader> read_;
  std::vector<decltype(Reader::block)> blocks_;
};

// How many sequences an array of rows holds: those of cu_seqlens, which go to `bounds`, or without them the first axis
// of three.
inline int64_t sequences_input(const char* op, const char* name, const py::array& array,
                               const char* bounds_name, py::handle cu_seqlens, std::vector<int64_t>& bounds) {
  if (!cu_seqlens.is_none()) {
    bounds = index_input(op, bounds_name, cu_seqlens);
    return static_cast<int64_t>(bounds.size()) - 1;
  }
  FASTMHA_CHECK(array.ndim() == 3, op, ": ", name, " must be (batch, length, width) without ", bounds_name,
                ", got shape ", shape_text(array));
  return array.shape(0);
}

// A bias by distance as `params` has it, or None; what is returned must live as long as they do.
template <class Params>
std::optional<Input> relative_bias_input(const char* op, py::handle object, Params& params) {
  if (object.is_none()) return std::nullopt;
  std::optional<Input> bias = float_input(op, "relative_bias", object, 2);
  params.relative_bias = bias->view;
  return bias;
}

}  // namespace fastmha::python
