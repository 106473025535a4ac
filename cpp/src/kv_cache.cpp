// The KV cache: rows copied behind those a sequence holds.
#include <algorithm>
#include <cstring>

#include "check.h"
#include "fastmha/attention.h"
#include "parallel.h"

namespace fastmha {
namespace {

constexpr double kCopyBytesPerNanosecond = 8.0;

// One of key and value against its half of the cache: (batch, kv_heads, length, dim) both.
void check_half(const char* name, const MutableView& cache, const ConstView& rows) {
  const char* op = "kv_cache_append";
  FASTMHA_CHECK(cache.rank == 4 && rows.rank == 4, op, ": ", name,
                " and its cache must have 4 axes (batch, kv_heads, length, dim), got ", shape_text(rows),
                " and ", shape_text(cache));
  for (const ConstView& view : {ConstView(cache), rows}) {
    for (int axis = 0; axis < 4; ++axis) {
      FASTMHA_CHECK(view.shape[axis] >= 0, op, ": ", name, " has a negative extent: ", shape_text(view));
    }
    FASTMHA_CHECK(view.dtype == DType::kFloat32, op, ": ", name, " and its cache must be float32");
    FASTMHA_CHECK(view.data != nullptr || view.size() == 0, op, ": ", name,
                  " or its cache has no data (null pointer)");
    FASTMHA_CHECK(view.strides[3] == 1 || view.shape[3] <= 1 || view.size() == 0, op, ": ", name,
                  " and its cache must have a contiguous last axis");
  }
  FASTMHA_CHECK(
      rows.shape[0] == cache.shape[0] && rows.shape[1] == cache.shape[1] && rows.shape[3] == cache.shape[3],
      op, ": ", name, " must be (", cache.shape[0], ", ", cache.shape[1], ", any, ", cache.shape[3],
      ") as the cache is, got ", shape_text(rows));
}

void copy_rows(const MutableView& cache, const ConstView& rows, int64_t n, int64_t h, int64_t at,
               int64_t count) {
  float* to = cache.data + n * cache.strides[0] + h * cache.strides[1] + at * cache.strides[2];
  const float* from = rows.data + n * rows.strides[0] + h * rows.strides[1];
  const size_t bytes = static_cast<size_t>(rows.shape[3]) * sizeof(float);
  for (int64_t row = 0; row < count && bytes > 0; ++row) {
    std::memcpy(to + row * cache.strides[2], from + row * rows.strides[2], bytes);
  }
}

}  // namespace

void kv_cache_append(const KVCacheView& cache, const ConstView& key, const ConstView& value,
                     const int64_t* new_lengths) {
  const char* op = "kv_cache_append";
  check_half("key", cache.key, key);
  check_half("value", cache.value, value);
  FASTMHA_CHECK(cache.lengths != nullptr || key.shape[0] == 0, op,
                ": the cache has no lengths (null pointer)");
  for (int axis = 0; axis < 3; ++axis) {
    FASTMHA_CHECK(key.shape[axis] == value.shape[axis], op,
                  ": key and value must agree on all axes but the last, got ", shape_text(key), " and ",
                  shape_text(value));
  }
  const int64_t batch = key.shape[0], heads = key.shape[1], count = key.shape[2];
  const int64_t capacity = std::min(cache.key.shape[2], cache.value.shape[2]);
  const auto count_of = [&](int64_t n) { return new_lengths ? new_lengths[n] : count; };
  for (int64_t n = 0; n < batch; ++n) {
    FASTMHA_CHECK(count_of(n) >= 0 && count_of(n) <= count, op, ": lengths must be from 0 to the ", count,
                  " rows that were passed, got ", count_of(n), " for sequence ", n);
    FASTMHA_CHECK(cache.lengths[n] >= 0 && cache.lengths[n] + count_of(n) <= capacity, op,
                  ": the cache is full: sequence ", n, " holds ", cache.lengths[n], " of ", capacity, " and ",
                  count_of(n), " more were to be appended; make it with a larger capacity");
  }
  const double bytes = 4.0 * static_cast<double>(batch * heads * count * (key.shape[3] + value.shape[3]));
  const int threads = threads_for(batch * heads, bytes / kCopyBytesPerNanosecond);
  parallel_for(batch * heads, threads, [&](int64_t task, int) {
    const int64_t n = task / heads, h = task % heads;
    copy_rows(cache.key, key, n, h, cache.lengths[n], count_of(n));
    copy_rows(cache.value, value, n, h, cache.lengths[n], count_of(n));
  });
  for (int64_t n = 0; n < batch; ++n) cache.lengths[n] += count_of(n);
}

}  // namespace fastmha
