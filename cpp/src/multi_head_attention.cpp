// The attention sub-layer: checks, slices of whole sequences.
#include <algorithm>
#include <vector>

#include "attention_plan.h"
#include "isa.h"
#include "packed_weight.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"
#include "sublayer.h"
#include "workspace.h"

namespace fastmha {
namespace {

const char* const kOp = "multi_head_attention";

// Which rows of a matrix belong to which sequence.
struct Sequences {
  int64_t rows = 0, count = 0;
  const int64_t* bounds = nullptr;  // null: all of one length

  int64_t length() const { return count == 0 ? 0 : rows / count; }  // when it is one
  int64_t start(int64_t n) const { return bounds != nullptr ? bounds[n] : n * length(); }
  int64_t rows_of(int64_t first, int64_t last) const { return start(last) - start(first); }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t n = 0; n < count; ++n) most = std::max(most, rows_of(n, n + 1));
    return most;
  }
};

// A call after its checks.
struct Call {
  LinearLayer in_proj;         // of x: queries, and without a memory keys and values behind them
  const LinearLayer* kv_proj;  // of the memory: keys and values; or null
  LinearLayer out_proj;
  ConstView x, memory;
  MutableView out;
  const MultiHeadAttentionParams& params;
  int64_t heads, kv_heads, head_dim;
  Sequences queries, keys;
  AttentionPlan biased;  // without sequences; its relative bias is checked for all those of the call

  int64_t longest() const { return queries.longest(); }  // in queries
  bool over_memory() const { return kv_proj != nullptr; }
  int64_t query_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  double flops() const;
  AttentionParams scores() const {
    AttentionParams scores;
    scores.is_causal = params.is_causal;
    scores.scale = params.scale;
    return scores;
  }
};

// ---- scratch -----------------------------------------------------------------------------------------------

// The intermediate results of some rows, one matrix after the other. What goes into a projection is not needed
// any more when attention writes its result: the two share a place.
//
//   staged, attended   x or the memory, later the heads' results
//   projected          rows of q, or of q k v
//   kv                 rows of k v, from a memory
struct Scratch {
  int64_t staged_stride, attended_stride, projected_stride, kv_stride;
  int64_t projected_at, kv_at, floats;

  Scratch(const Call& call, int64_t query_rows, int64_t key_rows)
      : staged_stride(scratch_stride(std::max(call.x.shape[1], call.memory.shape[1]))),
        attended_stride(scratch_stride(call.query_width())),
        projected_stride(scratch_stride(call.in_proj.weight.out_features())),
        kv_stride(scratch_stride(2 * call.kv_width())) {
    const int64_t kv_rows = call.over_memory() ? key_rows : 0;
    projected_at = std::max(std::max(query_rows, kv_rows) * staged_stride, query_rows * attended_stride);
    kv_at = projected_at + query_rows * projected_stride;
    floats = kv_at + kv_rows * kv_stride;
  }
};

// ---- one slice ---------------------------------------------------------------------------------------------

// Sequences first .. last, counted from 0; bounds has room for theirs.
Sequences part_of(const Sequences& all, int64_t first, int64_t last, int64_t* bounds) {
  Sequences part{all.rows_of(first, last), last - first, nullptr};
  if (all.bounds == nullptr) return part;
  for (int64_t n = first; n <= last; ++n) bounds[n - first] = all.bounds[n] - all.bounds[first];
  part.bounds = bounds;
  return part;
}

// Attention between projected rows: where the heads lie in them.
AttentionPlan plan_heads(const Call& call, const MutableView& projected, const MutableView& kv,
                         const MutableView& attended, const Sequences& queries, const Sequences& keys,
                         const int64_t* key_lengths) {
  const int64_t dim = call.head_dim, kv_stride = kv.strides[0];
  AttentionParams params = call.scores();
  params.key_lengths = key_lengths;
  const float *key = kv.data, *value = kv.data + call.kv_width();
  if (queries.bounds != nullptr) {
    const ConstView q(projected.data, {queries.rows, call.heads, dim}, {projected.strides[0], dim, 1});
    const ConstView k(key, {keys.rows, call.kv_heads, dim}, {kv_stride, dim, 1});
    const ConstView v(value, {keys.rows, call.kv_heads, dim}, {kv_stride, dim, 1});
    const MutableView o(attended.data, {queries.rows, call.heads, dim}, {attended.strides[0], dim, 1});
    return plan_varlen_attention(kOp, q, k, v, queries.bounds, keys.bounds, queries.count, o, params);
  }
  const auto heads_of = [&](auto* data, const Sequences& rows, int64_t heads, int64_t stride) {
    return View(data, {rows.count, heads, rows.length(), dim}, {rows.length() * stride, dim, stride, 1});
  };
  return plan_dense_attention(kOp, heads_of(projected.data, queries, call.heads, projected.strides[0]),
                              heads_of(key, keys, call.kv_heads, kv_stride),
                              heads_of(value, keys, call.kv_heads, kv_stride),
                              heads_of(attended.data, queries, call.heads, attended.strides[0]), params);
}

// Sequences [first, last) from x to out. scratch is Scratch::floats and what attention needs; bounds has room
// for 2 (last - first + 1) entries. longest: of all sequences of the call, whose single queries round differently
// when there is nothing else.
template <class Steps>
void run_sequences(const Call& call, int64_t longest, int64_t first, int64_t last, float* scratch,
                   int64_t* bounds) {
  const Sequences queries = part_of(call.queries, first, last, bounds);
  const Sequences keys =
      call.over_memory() ? part_of(call.keys, first, last, bounds + (last - first + 1)) : queries;
  const Scratch at(call, queries.rows, keys.rows);
  const int64_t first_row = call.queries.start(first);
  const MutableView staged(scratch, {queries.rows, call.x.shape[1]}, {at.staged_stride, 1});
  const MutableView attended(scratch, {queries.rows, call.query_width()}, {at.attended_stride, 1});
  const MutableView projected(scratch + at.projected_at, {queries.rows, call.in_proj.weight.out_features()},
                              {at.projected_stride, 1});
  const MutableView out = rows_of(call.out, first_row, queries.rows);
  MutableView kv(projected.data + call.query_width(), {keys.rows, 2 * call.kv_width()},
                 {at.projected_stride, 1});

  const ConstView x =
      Steps::normalised(call.params.norm_before, rows_of(call.x, first_row, queries.rows), staged);
  Steps::linear(call.in_proj, x, projected, {});
  if (call.over_memory()) {
    kv = MutableView(scratch + at.kv_at, {keys.rows, 2 * call.kv_width()}, {at.kv_stride, 1});
    const MutableView staged_memory(scratch, {keys.rows, call.memory.shape[1]}, {at.staged_stride, 1});
    const ConstView memory = rows_of(call.memory, call.keys.start(first), keys.rows);
    Steps::linear(*call.kv_proj, Steps::normalised({}, memory, staged_memory), kv, {});
  }
  const int64_t* lengths = call.params.key_lengths == nullptr ? nullptr : call.params.key_lengths + first;
  AttentionPlan plan = plan_heads(call, projected, kv, attended, queries, keys, lengths);
  share_relative_bias(call.biased, plan);
  plan.among_longer = longest > 1;
  Steps::attention(plan, scratch + at.floats);
  Steps::linear(call.out_proj, attended, out, rows_of(call.params.residual, first_row, queries.rows));
  Steps::normalise(call.params.norm_after, out);
}

// ---- plan --------------------------------------------------------------------------------------------------

double Call::flops() const {
  double pairs = 0;
  for (int64_t n = 0; n < queries.count; ++n) {
    pairs += static_cast<double>(queries.rows_of(n, n + 1)) * static_cast<double>(keys.rows_of(n, n + 1));
  }
  const double width = static_cast<double>(x.shape[1]) * static_cast<double>(in_proj.weight.out_features()) +
                       static_cast<double>(query_width()) * static_cast<double>(out.shape[1]);
  const double kv = static_cast<double>(memory.shape[1]) * 2.0 * static_cast<double>(kv_width());
  return 2.0 * (static_cast<double>(queries.rows) * width + static_cast<double>(keys.rows) * kv +
                2.0 * pairs * static_cast<double>(query_width()));
}

// Runs of whole sequences, and what the largest of them holds.
struct Slices {
  std::vector<int64_t> starts{0};  // the sequence at which each begins; behind the last the number of all
  int64_t query_rows = 0, key_rows = 0, sequences = 0;

  // Slices of about `target` rows, of queries and of the memory together.
  Slices(const Call& call, int64_t target) {
    const auto rows_before = [&](int64_t n) { return rows_of(call, 0, n); };
    const int64_t count = call.queries.count, wanted = ceil_div(rows_before(count), target);
    for (int64_t n = 0; n < count;) {
      const int64_t first = n++;
      // The end of the sequence nearest to the next even share.
      const int64_t share = static_cast<int64_t>(starts.size()) * rows_before(count) / wanted;
      while (n < count && rows_before(n) + rows_before(n + 1) <= 2 * share) ++n;
      query_rows = std::max(query_rows, call.queries.rows_of(first, n));
      key_rows = std::max(key_rows, call.keys.rows_of(first, n));
      sequences = std::max(sequences, n - first);
      starts.push_back(n);
    }
  }

  // Of queries and of the memory.
  static int64_t rows_of(const Call& call, int64_t first, int64_t last) {
    return call.queries.rows_of(first, last) + (call.over_memory() ? call.keys.rows_of(first, last) : 0);
  }

  int64_t count() const { return static_cast<int64_t>(starts.size()) - 1; }
  size_t bounds_bytes() const { return 2 * static_cast<size_t>(sequences + 1) * sizeof(int64_t); }

  // Whether the threads finish at about the same time when those that are done help the others.
  bool even(const Call& call, int threads) const {
    if (count() >= int64_t{8} * threads) return true;
    std::vector<int64_t> busy(static_cast<size_t>(threads));
    for (int64_t slice = 0; slice < count(); ++slice) {
      *std::min_element(busy.begin(), busy.end()) += rows_of(call, starts[slice], starts[slice + 1]);
    }
    const int64_t longest = *std::max_element(busy.begin(), busy.end());
    return 10 * rows_of(call, 0, call.queries.count) >= 9 * longest * threads;
  }
};

size_t line_bytes(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Each thread takes slices of the batch through all steps.
void run_slices(const Call& call, int64_t longest, const Slices& slices, int threads) {
  const Scratch largest(call, slices.query_rows, slices.key_rows);
  const size_t floats = static_cast<size_t>(largest.floats) +
                        attend_scratch(call.head_dim, call.head_dim, call.params.relative_bias);
  const size_t bytes = line_bytes(floats * sizeof(float));
  const Workspace scratch(threads, bytes + slices.bounds_bytes());
  parallel_for(slices.count(), threads, [&](int64_t slice, int thread) {
    char* mine = scratch.slice<char>(thread);
    run_sequences<Here>(call, longest, slices.starts[slice], slices.starts[slice + 1],
                        reinterpret_cast<float*>(mine), reinterpret_cast<int64_t*>(mine + bytes));
  });
}

// All threads share every step, of as many sequences at a time as the scratch memory is meant for.
void run_shared(const Call& call, int64_t longest, const Slices& rounds) {
  const Scratch largest(call, rounds.query_rows, rounds.key_rows);
  const size_t bytes = line_bytes(static_cast<size_t>(largest.floats) * sizeof(float));
  const Workspace scratch(1, bytes + rounds.bounds_bytes());
  char* mine = scratch.slice<char>(0);
  for (int64_t round = 0; round < rounds.count(); ++round) {
    run_sequences<Shared>(call, longest, rounds.starts[round], rounds.starts[round + 1],
                          reinterpret_cast<float*>(mine), reinterpret_cast<int64_t*>(mine + bytes));
  }
}

void run(const Call& call) {
  const int64_t rows = call.queries.rows + (call.over_memory() ? call.keys.rows : 0);
  const int64_t longest = call.longest();
  if (longest == 0) return;

  const GemmKernels& kernels = call.in_proj.weight.kernels();
  const int threads = threads_for(ceil_div(rows, kernels.mr) * call.in_proj.weight.panels(),
                                  call.flops() / kernels.flops_per_ns);
  // Projected, staged and resulting floats of a row.
  const int64_t row_bytes =
      (Scratch(call, call.queries.rows, call.keys.rows).floats / rows + call.out.shape[1]) *
      static_cast<int64_t>(sizeof(float));
  // Every thread as many slices, if the sequences allow it.
  const int64_t wanted = ceil_div(ceil_div(rows, slice_rows(kernels, row_bytes)), threads) * threads;
  const Slices slices(call, ceil_div(rows, wanted));
  // A call with single queries alone takes the decode kernels, whose sums differ: run_attention has them.
  const int64_t largest = Scratch(call, slices.query_rows, slices.key_rows).floats;
  const bool fits = largest * static_cast<int64_t>(sizeof(float)) <= kMostBytes;
  if (longest > 1 && (threads == 1 || slices.even(call, threads)) && (fits || slices.count() == 1)) {
    return run_slices(call, longest, slices, threads);
  }
  run_shared(call, longest, Slices(call, std::max<int64_t>(1, kMostBytes * threads / row_bytes)));
}

// ---- checks ------------------------------------------------------------------------------------------------

void check_bounds(const char* name, const Sequences& sequences) {
  if (sequences.bounds != nullptr) {
    check_cu_seqlens(kOp, name, sequences.bounds, sequences.count, sequences.rows);
    return;
  }
  FASTMHA_CHECK(sequences.count == 0 ? sequences.rows == 0 : sequences.rows % sequences.count == 0, kOp, ": ",
                sequences.rows, " rows are not `sequences` (", sequences.count,
                ") sequences of equal length; set ", name);
}

// What attention asks of its parameters. Once here: what is planned in a parallel region must not throw.
AttentionPlan check_scores(const Call& call) {
  const MultiHeadAttentionParams& params = call.params;
  const MutableView none(nullptr, {0, call.heads, 0, call.head_dim});
  AttentionPlan plan = plan_dense_attention(kOp, none, none, none, none, call.scores());
  const int64_t keys = params.key_lengths == nullptr || params.sequences == 0
                           ? call.keys.longest()
                           : *std::max_element(params.key_lengths, params.key_lengths + params.sequences);
  set_relative_bias(kOp, params.relative_bias, 1 - keys, call.longest() - 1, plan);
  FASTMHA_CHECK(params.relative_bias.empty() || !overlap(params.relative_bias, call.out), kOp,
                ": out must not overlap relative_bias");
  return plan;
}

void check_call(const Call& call) {
  const MultiHeadAttentionParams& params = call.params;
  const int64_t width = call.out_proj.weight.in_features();
  const int64_t projected = call.query_width() + (call.over_memory() ? 0 : 2 * call.kv_width());
  FASTMHA_CHECK(call.head_dim >= 1 && call.query_width() == width, kOp, ": in_features of out_proj (", width,
                ") must be a multiple of heads (", call.heads, ")");
  FASTMHA_CHECK(call.in_proj.weight.out_features() == projected, kOp, ": ",
                call.over_memory() ? "q_proj" : "in_proj", " must give ", projected, " features for ",
                call.heads, " heads and ", call.kv_heads, " kv_heads of ", call.head_dim, ", but gives ",
                call.in_proj.weight.out_features());
  check_sublayer_input(kOp, "x", call.x, call.in_proj, call.over_memory() ? "q_proj" : "in_proj");
  check_sublayer(kOp, call.x, call.out, call.out_proj, "out_proj", params.norm_before, params.norm_after,
                 params.residual);
  FASTMHA_CHECK(params.sequences >= 0, kOp, ": sequences must be 0 or more, got ", params.sequences);
  check_bounds("cu_seqlens", call.queries);
  if (call.over_memory()) {
    FASTMHA_CHECK(call.kv_proj->weight.out_features() == 2 * call.kv_width(), kOp, ": kv_proj must give ",
                  2 * call.kv_width(), " features for ", call.kv_heads, " kv_heads of ", call.head_dim,
                  ", but gives ", call.kv_proj->weight.out_features());
    check_sublayer_input(kOp, "memory", call.memory, *call.kv_proj, "kv_proj");
    FASTMHA_CHECK(!overlap(call.memory, call.out), kOp, ": out must not overlap memory");
    FASTMHA_CHECK((params.cu_seqlens == nullptr) == (params.cu_seqlens_memory == nullptr), kOp,
                  ": set both of cu_seqlens and cu_seqlens_memory, or neither");
    check_bounds("cu_seqlens_memory", call.keys);
  }
  if (params.key_lengths == nullptr) return;
  FASTMHA_CHECK(params.cu_seqlens == nullptr, kOp, ": key_lengths does not go with cu_seqlens");
  for (int64_t n = 0; n < params.sequences; ++n) {
    FASTMHA_CHECK(params.key_lengths[n] >= 0 && params.key_lengths[n] <= call.keys.length(), kOp,
                  ": key_lengths must be from 0 to ", call.keys.length(), ", got ", params.key_lengths[n],
                  " for sequence ", n);
  }
}

void check_and_run(const LinearLayer& in_proj, const LinearLayer* kv_proj, const LinearLayer& out_proj,
                   const ConstView& x, const ConstView& memory, const MutableView& out,
                   const MultiHeadAttentionParams& params) {
  const int64_t heads = params.heads, kv_heads = params.kv_heads == 0 ? heads : params.kv_heads;
  FASTMHA_CHECK(heads >= 1 && kv_heads >= 1 && heads % kv_heads == 0, kOp, ": heads (", heads,
                ") must be a multiple of kv_heads (", kv_heads, "), both at least 1");
  const Sequences queries{x.shape[0], params.sequences, params.cu_seqlens};
  const Sequences keys{memory.shape[0], params.sequences, params.cu_seqlens_memory};
  Call call{in_proj,  kv_proj,
            out_proj, x,
            memory,   out,
            params,   heads,
            kv_heads, out_proj.weight.in_features() / heads,
            queries,  kv_proj == nullptr ? queries : keys,
            {}};
  check_call(call);
  call.biased = check_scores(call);
  run(call);
}

}  // namespace

void multi_head_attention(const PackedLinear& in_proj, const PackedLinear& out_proj, const ConstView& x,
                          const MutableView& out, const MultiHeadAttentionParams& params) {
  check_and_run(held_by(in_proj), nullptr, held_by(out_proj), x, {}, out, params);
}

void multi_head_attention(const PackedLinear& q_proj, const PackedLinear& kv_proj,
                          const PackedLinear& out_proj, const ConstView& x, const ConstView& memory,
                          const MutableView& out, const MultiHeadAttentionParams& params) {
  const LinearLayer kv = held_by(kv_proj);
  check_and_run(held_by(q_proj), &kv, held_by(out_proj), x, memory, out, params);
}

}  // namespace fastmha
