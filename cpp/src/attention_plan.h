// An attention call after its checks: where every head of every sequence lies, and how its work is shared out.
#pragma once

#include <cstdint>

#include "../kernels/attention.h"
#include "fastmha/attention.h"

namespace fastmha {

// What the kernels need for every head of every sequence.
struct AttentionPlan {
  // Axes of query, key, value and out: where a sequence, a head and a row begin.
  struct Layout {
    int64_t sequence = 0, head = 0, row = 0;
  };
  AttentionHead shared;  // what all heads have in common
  Layout query, key, value, out;
  int64_t batch = 0, heads = 0, kv_heads = 0;

  const int64_t* cu_seqlens_q = nullptr;  // ragged: sequences by row, not by batch stride
  const int64_t* cu_seqlens_k = nullptr;
  const int64_t* key_lengths = nullptr;
  const int64_t* query_offsets = nullptr;
  const float* slopes = nullptr;
  int64_t slope_sequence_stride = 0, slope_head_stride = 0;
  // The distances i + offset - j that occur, as far as the relative bias tells them apart.
  int64_t least_distance = 0, largest_distance = 0;
  int64_t relative_head_stride = 0;  // of shared.relative.by_key
  int64_t relative_row_floats = 0;   // of shared.relative.by_query
  int64_t mask_sequence_stride = 0, mask_head_stride = 0;
  int64_t weights_sequence_stride = 0, weights_head_stride = 0;
  int64_t lse_sequence_stride = 0, lse_head_stride = 0;
  float* const* varlen_weights = nullptr;
  bool among_longer = false;  // part of a call that has longer sequences: single queries are no decoding here
  const ShortKernels* left_to_short = nullptr;  // run_panels leaves out the sequences that these take

  int64_t group() const { return heads / kv_heads; }
  int64_t q_len_of(int64_t n) const {
    return cu_seqlens_q ? cu_seqlens_q[n + 1] - cu_seqlens_q[n] : shared.q_len;
  }
  int64_t kv_len_of(int64_t n) const {
    if (cu_seqlens_k) return cu_seqlens_k[n + 1] - cu_seqlens_k[n];
    return key_lengths ? key_lengths[n] : shared.kv_len;
  }
  AttentionHead head(int64_t n, int64_t h) const;
};

// Checks a relative bias for distances i + offset - j from `least` to `largest` and sets it in the plan. Empty: none.
void set_relative_bias(const char* op, const ConstView& bias, int64_t least, int64_t largest,
                       AttentionPlan& plan);
// The relative bias of a plan for as many distances or more. It is not read: a parallel region, where nothing may
// throw, plans its part of a call with the one that was checked for all of it.
void share_relative_bias(const AttentionPlan& from, AttentionPlan& plan);
// Floats that RelativeBias::by_query of all heads takes at most, for panels of bq queries.
size_t relative_rows(int64_t heads, int64_t reach, int bq);
size_t relative_rows(const AttentionPlan& plan, int bq);
// Writes them to `rows` (which must outlive the plan), in `plan`. Nothing without a relative bias.
void set_relative_rows(AttentionPlan& plan, int bq, float* rows);

// Checked plans; errors name `op`. What they point to (arrays of lengths, offsets) must outlive them.
AttentionPlan plan_dense_attention(const char* op, const ConstView& query, const ConstView& key,
                                   const ConstView& value, const MutableView& out,
                                   const AttentionParams& params);
AttentionPlan plan_varlen_attention(const char* op, const ConstView& query, const ConstView& key,
                                    const ConstView& value, const int64_t* cu_seqlens_q,
                                    const int64_t* cu_seqlens_k, int64_t sequences, const MutableView& out,
                                    const AttentionParams& params);

// cu_seqlens must rise from 0 to `total`.
void check_cu_seqlens(const char* op, const char* name, const int64_t* cu_seqlens, int64_t sequences,
                      int64_t total);

// ---- running -----------------------------------------------------------------------------------------------

// A guess of one core's speed, good enough to decide between one thread and several.
inline constexpr double kFlopsPerNanosecond = 30.0;
inline constexpr double kBytesPerNanosecond = 15.0;
inline constexpr double kPanelOverheadNanoseconds = 200.0;

// The kernels that fit the plan.
void run_attention(const AttentionPlan& plan);
// The same (but for decoding) on the calling thread alone, with attend_scratch floats.
void attend_here(const AttentionPlan& plan, float* scratch);
size_t attend_scratch(int64_t head_dim, int64_t value_dim, const ConstView& relative_bias = {});
// Panels of queries, for any plan.
void run_panels(const AttentionPlan& plan, const PanelKernels& kernels);
// Groups of heads, for the sequences that are short enough.
void run_short(const AttentionPlan& plan, const ShortKernels& kernels);
// The same for heads [first, last) of all sequences on the calling thread alone, with ShortKernels::scratch floats.
// stream: the results go past the caches, what comes next is fetched.
void run_short_here(const AttentionPlan& plan, const ShortKernels& kernels, int64_t first, int64_t last,
                    bool stream, float* scratch);
// Whether sequence n is one of them.
bool takes_short(const AttentionPlan& plan, const ShortKernels& kernels, int64_t n);
// For plans in which no sequence has more than one query.
void run_decode(const AttentionPlan& plan, const DecodeKernels& kernels);

}  // namespace fastmha
