// scaled_dot_product_attention, varlen_attention and the KV cache for Python.
#include "fastmha/attention.h"

#include <cstring>
#include <optional>
#include <string_view>

#include "arrays.h"
#include "module.h"

namespace fastmha::python {
namespace {

// Axes of extent 1 in front, up to (batch, heads, length, dim).
template <class T>
View<T> with_four_axes(const View<T>& view) {
  View<T> wide;
  wide.data = view.data;
  wide.rank = 4;
  wide.dtype = view.dtype;
  for (int i = 0; i < 4; ++i) {
    const int from = i - (4 - view.rank);
    wide.shape[i] = from < 0 ? 1 : view.shape[from];
    wide.strides[i] = from < 0 ? 0 : view.strides[from];
  }
  return wide;
}

std::vector<py::ssize_t> shape_of(const py::array& array) {
  return std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim());
}

std::vector<py::ssize_t> with_last(const py::array& array, py::ssize_t last) {
  std::vector<py::ssize_t> shape = shape_of(array);
  shape.back() = last;
  return shape;
}

// The arguments that all forms of attention share, alive as long as the call.
struct Scores {
  AttentionParams params;
  std::vector<int64_t> offsets, lengths;
  std::optional<Input> slopes, relative;
  py::object mask;

  void set_basic(const char* op, py::handle is_causal, py::handle scale, py::handle window,
                 py::handle alibi_slopes, py::handle relative_bias, py::handle softcap) {
    params.is_causal = flag(op, "is_causal", is_causal);
    if (!scale.is_none()) params.scale = static_cast<float>(number(op, "scale", scale));
    const double cap = number(op, "softcap", softcap);
    params.softcap = static_cast<float>(cap);
    FASTMHA_CHECK(cap == 0 || params.softcap != 0, op, ": softcap is too small for float32, got ", cap);
    if (!alibi_slopes.is_none()) {
      slopes = float_input(op, "alibi_slopes", alibi_slopes, 1, 2);
      params.alibi_slopes = slopes->view;
    }
    if (!relative_bias.is_none()) {
      relative = float_input(op, "relative_bias", relative_bias, 2);
      params.relative_bias = relative->view;
    }
    if (window.is_none()) return;
    if (!py::isinstance<py::tuple>(window) && !py::isinstance<py::list>(window)) {
      throw py::type_error(
          concat(op, ": window must be None or a pair of ints (left, right), got ", type_name(window)));
    }
    FASTMHA_CHECK(py::len(window) == 2, op, ": window must be a pair (left, right), got ",
                  py::cast<std::string>(py::repr(window)));
    const auto side = [&](int i) {
      const py::object value = window[py::int_(i)];
      return value.is_none() ? int64_t{-1} : integer(op, i == 0 ? "window left" : "window right", value);
    };
    params.window_left = side(0);
    params.window_right = side(1);
  }

  void set_offset(const char* op, py::handle query_offset, int64_t batch) {
    if (is_integer(query_offset)) {
      params.query_offset = integer(op, "query_offset", query_offset);
      return;
    }
    offsets = index_input(op, "query_offset", query_offset);
    require_one_per_sequence(op, "query_offset", offsets, batch);
    params.query_offsets = offsets.data();
  }

  void set_lengths(const char* op, py::handle key_lengths, int64_t batch) {
    if (key_lengths.is_none()) return;
    lengths = index_input(op, "key_lengths", key_lengths);
    require_one_per_sequence(op, "key_lengths", lengths, batch);
    params.key_lengths = lengths.data();
  }

  void set_mask(const char* op, py::handle attn_mask) {
    if (attn_mask.is_none()) return;
    py::array array = checked_array(op, "attn_mask", attn_mask);
    if (!is_bool(array) && !is_float32(array)) {
      throw py::type_error(concat(op, ": attn_mask must be bool (True = may attend) or float32 (added), got ",
                                  py::cast<std::string>(py::str(array.dtype())),
                                  "; cast it: attn_mask.astype(bool) or attn_mask.astype(np.float32)"));
    }
    FASTMHA_CHECK(array.ndim() <= 4, op, ": attn_mask must have at most 4 axes, got shape ",
                  shape_text(array));
    if (array.ndim() == 0) array = contiguous_copy(array);  // one axis
    bool aligned = reinterpret_cast<uintptr_t>(array.data()) % array.itemsize() == 0;
    for (py::ssize_t i = 0; i < array.ndim(); ++i)
      aligned = aligned && array.strides(i) % array.itemsize() == 0;
    if (!aligned) array = contiguous_copy(array);
    params.attn_mask = view_of<const void>(array, array.data());
    params.attn_mask.dtype = is_bool(array) ? DType::kBool : DType::kFloat32;
    mask = std::move(array);
  }

  // Kernels read both while they write: a result must not share memory with them.
  void add_biases(std::vector<const py::array*>& inputs) const {
    if (slopes) inputs.push_back(&slopes->array);
    if (relative) inputs.push_back(&relative->array);
  }

 private:
  static void require_one_per_sequence(const char* op, const char* name, const std::vector<int64_t>& values,
                                       int64_t batch) {
    FASTMHA_CHECK(static_cast<int64_t>(values.size()) == batch, op, ": ", name,
                  " must have one entry per sequence (", batch, "), got ", values.size());
  }
};

py::object results(py::object out, py::object weights, py::object lse) {
  if (weights.is_none() && lse.is_none()) return out;
  if (lse.is_none()) return py::make_tuple(out, weights);
  if (weights.is_none()) return py::make_tuple(out, lse);
  return py::make_tuple(out, weights, lse);
}

// Below this much work (about 5 us) a call keeps the GIL: giving it up and taking it back costs 0.1 us, and more
// when another thread is waiting for it, which then has to be woken.
constexpr double kBriefCall = 200e3;  // multiply-adds
// What a row of queries costs beside its products, most of it for the panel that it is in.
constexpr double kRowWork = 2000;

// Releases the GIL, unless the call is brief.
class Release {
 public:
  explicit Release(double work) {
    if (work > kBriefCall) release_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> release_;
};

double work_of(const ConstView& query, const ConstView& key, const ConstView& value) {
  const int last = query.rank - 1;
  const double rows =
      static_cast<double>(query.size()) / static_cast<double>(std::max<int64_t>(1, query.shape[last]));
  return rows * (kRowWork + static_cast<double>(key.shape[last - 1]) *
                                static_cast<double>(query.shape[last] + value.shape[last]));
}

py::object scaled_dot_product_attention(PyObject* const* arguments) {
  const py::handle query = arguments[0], key = arguments[1], value = arguments[2], attn_mask = arguments[3],
                   is_causal = arguments[4], scale = arguments[5], key_lengths = arguments[6],
                   query_offset = arguments[7], window = arguments[8], alibi_slopes = arguments[9],
                   relative_bias = arguments[10], softcap = arguments[11], return_weights = arguments[12],
                   return_lse = arguments[13], out = arguments[14];
  const char* op = "scaled_dot_product_attention";
  const Input q = float_input(op, "query", query, 2, 4);
  const int rank = q.view.rank;
  const Input k = float_input(op, "key", key, rank);
  const Input v = float_input(op, "value", value, rank);
  const int64_t batch = rank == 4 ? q.view.shape[0] : 1;

  Scores scores;
  scores.set_basic(op, is_causal, scale, window, alibi_slopes, relative_bias, softcap);
  scores.set_offset(op, query_offset, batch);
  scores.set_lengths(op, key_lengths, batch);
  scores.set_mask(op, attn_mask);

  std::vector<const py::array*> inputs = {&q.array, &k.array, &v.array};
  scores.add_biases(inputs);
  py::array mask_array;
  if (scores.mask) {
    mask_array = py::reinterpret_borrow<py::array>(scores.mask);
    inputs.push_back(&mask_array);
  }
  const Output o = float_output(op, out, with_last(q.array, v.view.shape[rank - 1]), inputs);
  py::object weights = py::none(), lse = py::none();
  AttentionParams& params = scores.params;
  if (flag(op, "return_weights", return_weights)) {
    const Output w = float_output(op, py::none(), with_last(q.array, k.view.shape[rank - 2]), {});
    params.weights = with_four_axes(w.view);
    weights = w.array;
  }
  if (flag(op, "return_lse", return_lse)) {
    std::vector<py::ssize_t> shape = shape_of(q.array);
    shape.pop_back();
    const Output l = float_output(op, py::none(), shape, {});
    MutableView wide =
        with_four_axes(l.view);  // (1, [batch], [heads], q_len): the last three are what is wanted
    params.lse = MutableView(l.view.data, {wide.shape[1], wide.shape[2], wide.shape[3]});
    lse = l.array;
  }
  {
    // Every shape, length and offset is checked or copied; the arrays are kept alive by the caller's
    // references.
    const Release release(work_of(q.view, k.view, v.view));
    fastmha::scaled_dot_product_attention(with_four_axes(q.view), with_four_axes(k.view),
                                          with_four_axes(v.view), with_four_axes(o.view), params);
  }
  return results(o.array, weights, lse);
}

py::object varlen_attention(PyObject* const* arguments) {
  const py::handle query = arguments[0], key = arguments[1], value = arguments[2],
                   cu_seqlens_q = arguments[3], cu_seqlens_k = arguments[4], is_causal = arguments[5],
                   scale = arguments[6], query_offset = arguments[7], window = arguments[8],
                   alibi_slopes = arguments[9], relative_bias = arguments[10], softcap = arguments[11],
                   return_weights = arguments[12], return_lse = arguments[13], out = arguments[14];
  const char* op = "varlen_attention";
  const Input q = float_input(op, "query", query, 3);
  const Input k = float_input(op, "key", key, 3);
  const Input v = float_input(op, "value", value, 3);
  const std::vector<int64_t> cu_q = index_input(op, "cu_seqlens_q", cu_seqlens_q);
  const std::vector<int64_t> cu_k =
      cu_seqlens_k.is_none() ? cu_q : index_input(op, "cu_seqlens_k", cu_seqlens_k);
  FASTMHA_CHECK(!cu_q.empty() && cu_q.size() == cu_k.size(), op,
                ": cu_seqlens_q and cu_seqlens_k must have the same number of entries, sequences + 1, got ",
                cu_q.size(), " and ", cu_k.size());
  const auto sequences = static_cast<int64_t>(cu_q.size()) - 1;

  Scores scores;
  scores.set_basic(op, is_causal, scale, window, alibi_slopes, relative_bias, softcap);
  scores.set_offset(op, query_offset, sequences);
  AttentionParams& params = scores.params;
  std::vector<const py::array*> inputs = {&q.array, &k.array, &v.array};
  scores.add_biases(inputs);
  const Output o = float_output(op, out, with_last(q.array, v.view.shape[2]), inputs);
  py::object weights = py::none(), lse = py::none();
  std::vector<float*> weight_pointers;
  if (flag(op, "return_weights", return_weights)) {
    py::list matrices;
    for (int64_t n = 0; n < sequences; ++n) {
      const int64_t q_len = cu_q[n + 1] - cu_q[n], kv_len = cu_k[n + 1] - cu_k[n];
      // Wrong offsets are refused below, before anything is written.
      const bool sane = q_len >= 0 && kv_len >= 0 && q_len <= q.view.shape[0] && kv_len <= k.view.shape[0];
      py::array matrix = result_array({q.view.shape[1], sane ? q_len : 0, sane ? kv_len : 0});
      weight_pointers.push_back(static_cast<float*>(matrix.mutable_data()));
      matrices.append(std::move(matrix));
    }
    params.varlen_weights = weight_pointers.data();
    weights = matrices;
  }
  if (flag(op, "return_lse", return_lse)) {
    const Output l = float_output(op, py::none(), {q.view.shape[0], q.view.shape[1]}, {});
    params.lse = l.view;
    lse = l.array;
  }
  {
    // All offsets are copies; the arrays are kept alive by the caller's references.
    const py::gil_scoped_release release;
    fastmha::varlen_attention(q.view, k.view, v.view, cu_q.data(), cu_k.data(), sequences, o.view, params);
  }
  return results(o.array, weights, lse);
}

// ---- KV cache --------------------------------------------------------------------------------------------

struct Cache {
  Output key, value;
  py::array lengths_array;
  std::vector<int64_t> lengths;  // a copy: another thread may write to the array while we compute

  KVCacheView view() { return {key.view, value.view, lengths.data()}; }
  void store_lengths() {
    std::memcpy(lengths_array.mutable_data(), lengths.data(), lengths.size() * sizeof(int64_t));
  }
};

Output cache_buffer(const char* op, const char* name, py::handle object) {
  const py::array array = checked_array(op, name, object);
  FASTMHA_CHECK(array.ndim() == 4, op, ": ", name,
                " must have 4 axes (batch, kv_heads, capacity, dim), got shape ", shape_text(array));
  return float_output(op, object, shape_of(array), {}, name);
}

Cache make_cache(const char* op, py::handle key_cache, py::handle value_cache, py::handle lengths) {
  Cache cache{cache_buffer(op, "key_cache", key_cache),
              cache_buffer(op, "value_cache", value_cache),
              checked_array(op, "lengths", lengths),
              {}};
  const py::array& array = cache.lengths_array;
  if (!py::isinstance<py::array_t<int64_t>>(array)) {
    throw py::type_error(
        concat(op, ": lengths must be int64, got ", py::cast<std::string>(py::str(array.dtype()))));
  }
  FASTMHA_CHECK(array.ndim() == 1 && array.shape(0) == cache.key.view.shape[0] && array.writeable() &&
                    (array.shape(0) <= 1 || array.strides(0) == sizeof(int64_t)),
                op, ": lengths must be a writeable contiguous array with one entry per sequence (",
                cache.key.view.shape[0], "), got shape ", shape_text(array));
  const auto* data = static_cast<const int64_t*>(array.data());
  cache.lengths.assign(data, data + array.shape(0));
  return cache;
}

// What fastmha::kv_cache_append refuses, under the name of the call that the user made.
void append(const char* op, const KVCacheView& cache, const ConstView& key, const ConstView& value,
            const int64_t* new_lengths = nullptr) {
  try {
    fastmha::kv_cache_append(cache, key, value, new_lengths);
  } catch (const std::invalid_argument& error) {
    const std::string_view message = error.what();
    throw std::invalid_argument(concat(op, message.substr(message.find(':'))));
  }
}

void kv_cache_append(py::object key_cache, py::object value_cache, py::object lengths, py::object key,
                     py::object value, py::object new_lengths) {
  const char* op = "KVCache.append";
  Cache cache = make_cache(op, key_cache, value_cache, lengths);
  const Input k = float_input(op, "key", key, 4);
  const Input v = float_input(op, "value", value, 4);
  std::vector<int64_t> counts;
  if (!new_lengths.is_none()) {
    counts = index_input(op, "lengths", new_lengths);
    FASTMHA_CHECK(counts.size() == cache.lengths.size(), op, ": lengths must have one entry per sequence (",
                  cache.lengths.size(), "), got ", counts.size());
  }
  {
    // Rows are copied behind those in use; nobody reads them until the lengths are stored.
    const py::gil_scoped_release release;
    append(op, cache.view(), k.view, v.view, new_lengths.is_none() ? nullptr : counts.data());
  }
  cache.store_lengths();
}

py::object attention_with_kvcache(py::object query, py::object key_cache, py::object value_cache,
                                  py::object lengths, py::object key, py::object value, py::object is_causal,
                                  py::object scale, py::object window, py::object alibi_slopes,
                                  py::object relative_bias, py::object softcap, py::object out) {
  const char* op = "attention_with_kvcache";
  Cache cache = make_cache(op, key_cache, value_cache, lengths);
  const Input q = float_input(op, "query", query, 4);
  FASTMHA_CHECK(key.is_none() == value.is_none(), op, ": pass both key and value, or neither");
  std::optional<Input> k, v;
  if (!key.is_none()) {
    k = float_input(op, "key", key, 4);
    v = float_input(op, "value", value, 4);
  }
  Scores scores;
  scores.set_basic(op, is_causal, scale, window, alibi_slopes, relative_bias, softcap);
  std::vector<const py::array*> inputs = {&q.array, &cache.key.array, &cache.value.array};
  if (k) inputs.insert(inputs.end(), {&k->array, &v->array});
  scores.add_biases(inputs);
  const Output o = float_output(op, out, with_last(q.array, cache.value.view.shape[3]), inputs);
  {
    // Should attention refuse its arguments after the append, the lengths were not stored and the cache is as
    // before.
    const py::gil_scoped_release release;
    if (k) append(op, cache.view(), k->view, v->view);
    fastmha::attention_with_kvcache(q.view, cache.view(), o.view, scores.params);
  }
  cache.store_lengths();
  return o.array;
}

}  // namespace

void bind_attention(py::module_& module) {
  bind_fast<15, scaled_dot_product_attention>(module, "scaled_dot_product_attention");
  bind_fast<15, varlen_attention>(module, "varlen_attention");
  module.def("kv_cache_append", &kv_cache_append);
  module.def("attention_with_kvcache", &attention_with_kvcache);
}

}  // namespace fastmha::python
