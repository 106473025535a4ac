// The KV cache: rows copied behind those a sequence holds, and from slot to slot.
#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"
#include "fastmha/attention.h"
#include "fastmha/decoder.h"
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
  FASTMHA_CHECK(cache.lengths != nullptr, op, ": the cache has no lengths (null pointer)");
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

void copy_slots(const MutableView* keys, const MutableView* values, int64_t count, const int64_t* from,
                const int64_t* to, const int64_t* lengths, int64_t copies) {
  const char* op = "copy_slots";
  std::vector<int64_t> ends(from, from + copies);  // slots that are read or written
  ends.insert(ends.end(), to, to + copies);
  std::sort(ends.begin(), ends.begin() + copies);
  std::sort(ends.begin() + copies, ends.end());
  for (int64_t i = 0; i < copies; ++i) {
    const int64_t slot = ends[copies + i];
    FASTMHA_CHECK(i == 0 || slot != ends[copies + i - 1], op, ": slot ", slot, " is copied to twice");
    FASTMHA_CHECK(!std::binary_search(ends.begin(), ends.begin() + copies, slot), op, ": slot ", slot,
                  " is copied to and from");
  }
  double bytes = 0;
  for (int64_t b = 0; b < count; ++b) {
    for (const MutableView& half : {keys[b], values[b]}) {
      FASTMHA_CHECK(half.rank == 4 && half.data != nullptr && half.strides[3] == 1, op,
                    ": keys and values must have 4 axes, the last one contiguous, got ", shape_text(half));
      for (int64_t i = 0; i < copies; ++i) {
        FASTMHA_CHECK(from[i] >= 0 && from[i] < half.shape[0] && to[i] >= 0 && to[i] < half.shape[0] &&
                          lengths[i] >= 0 && lengths[i] <= half.shape[2],
                      op, ": slots must lie in 0 .. ", half.shape[0] - 1, " and lengths in 0 .. ",
                      half.shape[2], ", got ", from[i], " to ", to[i], ", length ", lengths[i]);
        bytes += 4.0 * static_cast<double>(lengths[i] * half.shape[1] * half.shape[3]);
      }
    }
  }
  const int64_t tasks = copies * count * 2;
  parallel_for(tasks, threads_for(tasks, bytes / kCopyBytesPerNanosecond), [&](int64_t task, int) {
    const int64_t i = task / (count * 2), b = task / 2 % count;
    const MutableView& half = task % 2 == 0 ? keys[b] : values[b];
    for (int64_t h = 0; h < half.shape[1]; ++h) {
      const float* source = half.data + from[i] * half.strides[0] + h * half.strides[1];
      float* target = half.data + to[i] * half.strides[0] + h * half.strides[1];
      for (int64_t row = 0; row < lengths[i]; ++row) {
        std::memcpy(target + row * half.strides[2], source + row * half.strides[2],
                    static_cast<size_t>(half.shape[3]) * sizeof(float));
      }
    }
  });
}

}  // namespace fastmha
