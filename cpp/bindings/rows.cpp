// Results of operations on rows: where they are written, and how they get to an out with gaps.
#include "rows.h"

namespace fastmha::python {
namespace {

bool same_elements(const py::array& a, const py::array& b) {
  if (a.data() != b.data() || a.ndim() != b.ndim()) return false;
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    if (a.shape(i) != b.shape(i) || (a.shape(i) > 1 && a.strides(i) != b.strides(i))) return false;
  }
  return true;
}

}  // namespace

RowsOutput::RowsOutput(const char* op, py::handle out, const std::vector<py::ssize_t>& shape)
    : op_(op), given_(!out.is_none()), result_(float_output(op, out, shape, {}).array), written_(result_) {
  if (given_ && !fold_rows(result_).even) written_ = result_array(shape);
}

void RowsOutput::allow_in_place(const char* name, const py::array& input) const {
  if (!given_ || same_elements(result_, input)) return;
  FASTMHA_CHECK(!shares_memory(result_, input), op_, ": out must be ", name,
                " itself or must not share memory with ", name, "; pass an array of its own");
}

void RowsOutput::refuse(const char* name, const py::array& input) const {
  FASTMHA_CHECK(!given_ || !shares_memory(result_, input), op_, ": out must not share memory with ", name,
                "; pass an array of its own");
}

MutableView RowsOutput::view() const {
  return rows_view<float>(written_, static_cast<float*>(const_cast<void*>(written_.data())));
}

py::array RowsOutput::finish() {
  if (!written_.is(result_)) py::module_::import("numpy").attr("copyto")(result_, written_);
  return result_;
}

std::vector<py::ssize_t> shape_of(const py::array& array, py::ssize_t last) {
  std::vector<py::ssize_t> shape(array.shape(), array.shape() + array.ndim());
  shape.back() = last;
  return shape;
}

void require_shape(const char* op, const char* name, const py::array& array,
                   const std::vector<py::ssize_t>& shape) {
  bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; same && i < shape.size(); ++i)
    same = array.shape(static_cast<py::ssize_t>(i)) == shape[i];
  FASTMHA_CHECK(same, op, ": ", name, " must have shape ", shape_text(shape), ", got ", shape_text(array));
}

}  // namespace fastmha::python
