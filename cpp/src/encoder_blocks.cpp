// Encoder blocks over few rows: checks, and the steps that all threads take together.
#include "fastmha/encoder.h"

#include <algorithm>
#include <vector>

#include "attention_plan.h"
#include "isa.h"
#include "packed_weight.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"
#include "sublayer.h"
#include "team_rows.h"
#include "workspace.h"

namespace fastmha {
namespace {

const char* const kOp = "encoder_blocks";

struct Layers {
  LinearLayer in_proj, out_proj, linear1, linear2;
  LinearLayer gate;  // linear1 where there is none

  explicit Layers(const EncoderBlock& block)
      : in_proj(held_by(*block.in_proj)),
        out_proj(held_by(*block.out_proj)),
        linear1(held_by(*block.linear1)),
        linear2(held_by(*block.linear2)),
        gate(held_by(block.gate == nullptr ? *block.linear1 : *block.gate)) {}

  template <class Body>
  void each(const EncoderBlock& block, Body&& body) const {
    for (const LinearLayer* layer : {&in_proj, &out_proj, &linear1, &linear2}) body(*layer);
    if (block.gate != nullptr) body(gate);
  }
};

struct Call {
  const EncoderBlock* blocks;
  int64_t count;
  ConstView x;
  MutableView out;
  const EncoderBlocksParams& params;
  std::vector<int64_t> bounds;  // of the sequences
  AttentionPlan biased;         // without sequences; its relative bias is checked for all those of the call

  int64_t rows() const { return x.shape[0]; }
  int64_t features() const { return x.shape[1]; }
  int64_t length(int64_t n) const { return bounds[n + 1] - bounds[n]; }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t n = 0; n < params.sequences; ++n) most = std::max(most, length(n));
    return most;
  }
};

// Floats from row to row, and what a thread needs for itself.
struct Scratch {
  TeamRows::Strides strides;
  int64_t projected = 0, attended = 0;
  int64_t attend = 0;    // of a thread, for a panel of queries
  int64_t relative = 0;  // rows of a relative bias for panels of queries

  explicit Scratch(const Call& call) {
    const PanelKernels& panel = *active_isa().panel;
    strides.stream = scratch_stride(call.features());
    for (int64_t i = 0; i < call.count; ++i) {
      const EncoderBlock& block = call.blocks[i];
      const int64_t width = block.out_proj->in_features(),
                    hidden = scratch_stride(block.linear1->out_features());
      projected = std::max(projected, scratch_stride(block.in_proj->out_features()));
      attended = std::max(attended, scratch_stride(width));
      strides.hidden = std::max(strides.hidden, hidden);
      if (block.gate != nullptr) strides.gate = std::max(strides.gate, hidden);
      const int64_t dim = width / block.heads;
      attend = std::max(attend, static_cast<int64_t>(panel.scratch(dim, dim)));
    }
    attend = line_floats(attend);
    if (const ConstView& bias = call.params.relative_bias; !bias.empty()) {
      relative = static_cast<int64_t>(relative_rows(bias.shape[0], bias.shape[1] / 2, panel.bq));
    }
  }
  size_t thread_bytes() const { return static_cast<size_t>(attend + strides.own_floats()) * sizeof(float); }
  size_t shared_bytes(int64_t rows) const {
    return static_cast<size_t>(rows * (strides.row_floats() + projected + attended) + relative) *
           sizeof(float);
  }
};

// ---- steps -------------------------------------------------------------------------------------------------

class Run {
 public:
  Run(const Call& call, const Scratch& sizes, const Workspace& scratch, int threads);
  void steps(Team& team) const;

 private:
  // A block, and how its steps are shared out.
  struct Block {
    const EncoderBlock& given;
    Layers layers;
    LinearPlan in_proj, out_proj, linear1, linear2;
    AttentionPlan attention;
  };
  // Queries of a sequence that one task attends for, a head of them.
  struct Panel {
    int64_t sequence, first;
  };

  Block plan(const EncoderBlock& given, int threads) const;
  void attend(Team& team, const Block& block) const;

  const Call& call_;
  const Workspace& scratch_;
  int64_t projected_stride_, attended_stride_;
  float* at_;  // where free scratch begins
  TeamRows rows_;
  float *projected_, *attended_;
  std::vector<Panel> panels_;
  std::vector<Block> blocks_;
};

Run::Run(const Call& call, const Scratch& sizes, const Workspace& scratch, int threads)
    : call_(call),
      scratch_(scratch),
      projected_stride_(sizes.projected),
      attended_stride_(sizes.attended),
      at_(scratch.shared()),
      rows_(call.rows(), call.features(), sizes.strides, scratch, sizes.attend, at_) {
  projected_ = at_;
  attended_ = projected_ + call.rows() * projected_stride_;
  const int bq = active_isa().panel->bq;
  for (int64_t n = 0; n < call.params.sequences; ++n) {
    for (int64_t first = 0; first < call.length(n); first += bq) panels_.push_back({n, first});
  }
  size_t bytes = 0;
  blocks_.reserve(static_cast<size_t>(call.count));
  for (int64_t i = 0; i < call.count; ++i) {
    blocks_.push_back(plan(call.blocks[i], threads));
    Block& block = blocks_.back();
    block.layers.each(block.given, [&](const LinearLayer& layer) { bytes += layer.weight.nbytes(); });
    share_relative_bias(i == 0 ? call.biased : blocks_[0].attention, block.attention);
    if (i == 0 && sizes.relative != 0) {
      set_relative_rows(block.attention, bq, attended_ + call.rows() * attended_stride_);
    }
  }
  rows_.pass_weights(bytes);
}

Run::Block Run::plan(const EncoderBlock& given, int threads) const {
  const Layers layers(given);
  const int64_t rows = rows_.rows(), dim = layers.out_proj.weight.in_features() / given.heads;
  const auto heads_of = [&](auto* data, int64_t heads, int64_t stride) {
    return View(data, {rows, heads, dim}, {stride, dim, 1});
  };
  const float* key = projected_ + given.heads * dim;
  const float* value = key + given.kv_heads * dim;
  AttentionParams params;
  params.scale = given.scale;
  return {given,
          layers,
          rows_.plan(layers.in_proj, threads),
          rows_.plan(layers.out_proj, threads),
          rows_.plan(layers.linear1, threads),
          rows_.plan(layers.linear2, threads),
          plan_varlen_attention(
              kOp, heads_of(const_cast<const float*>(projected_), given.heads, projected_stride_),
              heads_of(key, given.kv_heads, projected_stride_),
              heads_of(value, given.kv_heads, projected_stride_), call_.bounds.data(), call_.bounds.data(),
              call_.params.sequences, heads_of(attended_, given.heads, attended_stride_), params)};
}

void Run::attend(Team& team, const Block& block) const {
  const PanelKernels& kernels = *active_isa().panel;
  float* scratch = scratch_.slice(team.thread());
  const int64_t heads = block.given.heads;
  // Panels of a head beside each other: a thread's run of tasks reads few heads' keys.
  const auto panels = static_cast<int64_t>(panels_.size());
  team.each(heads * panels, [&](int64_t task) {
    const Panel& panel = panels_[static_cast<size_t>(task % panels)];
    kernels.run(block.attention.head(panel.sequence, task / panels), panel.first, scratch);
  });
}

void Run::steps(Team& team) const {
  ConstView x = call_.x;
  for (const Block& block : blocks_) {
    const EncoderBlock& given = block.given;
    const Layers& layers = block.layers;
    x = rows_.around(
        team, given.norms[0], given.norm_first, x, [&](const ConstView& input, const ConstView& residual) {
          const MutableView projected(projected_, {rows_.rows(), layers.in_proj.weight.out_features()},
                                      {projected_stride_, 1});
          const ConstView attended(attended_, {rows_.rows(), layers.out_proj.weight.in_features()},
                                   {attended_stride_, 1});
          rows_.linear(team, layers.in_proj, block.in_proj, input, projected, {});
          attend(team, block);
          rows_.linear(team, layers.out_proj, block.out_proj, attended, rows_.stream(), residual);
        });
    const TeamRows::FeedForward feed_forward{layers.linear1, layers.linear2,
                                             given.gate == nullptr ? nullptr : &layers.gate, block.linear1,
                                             block.linear2};
    x = rows_.around(team, given.norms[1], given.norm_first, x,
                     [&](const ConstView& input, const ConstView& residual) {
                       rows_.feed_forward(team, feed_forward, input, residual);
                     });
  }
  team.each(rows_.rows(), [&](int64_t row) { TeamRows::finish(call_.params.norm, x, call_.out, row); });
}

// ---- plan --------------------------------------------------------------------------------------------------

// On one thread.
double nanoseconds(const Call& call) {
  double pairs = 0, total = 0;
  for (int64_t n = 0; n < call.params.sequences; ++n) {
    pairs += static_cast<double>(call.length(n)) * static_cast<double>(call.length(n));
  }
  for (int64_t i = 0; i < call.count; ++i) {
    const EncoderBlock& block = call.blocks[i];
    Layers(block).each(block,
                       [&](const LinearLayer& layer) { total += TeamRows::nanoseconds(layer, call.rows()); });
    total += 4 * pairs * static_cast<double>(block.out_proj->in_features()) / kFlopsPerNanosecond;
  }
  return total;
}

void run(const Call& call) {
  const Scratch sizes(call);
  constexpr int64_t kSteps = 7;  // of a block
  const int threads = TeamRows::threads(nanoseconds(call), kSteps * call.count);
  const Workspace scratch(threads, sizes.thread_bytes(), sizes.shared_bytes(call.rows()));
  const Run all(call, sizes, scratch, threads);
  parallel_team(threads, [&](Team& team) { all.steps(team); });
}

// ---- checks ------------------------------------------------------------------------------------------------

void check_map(const char* name, const PackedLinear* map, int64_t in, int64_t out) {
  FASTMHA_CHECK(map->in_features() == in && map->out_features() == out, kOp, ": ", name, " must be ", in,
                " -> ", out, ", got ", map->in_features(), " -> ", map->out_features());
}

void check_block(const Call& call, const EncoderBlock& block) {
  for (const PackedLinear* map : {block.in_proj, block.out_proj, block.linear1, block.linear2}) {
    FASTMHA_CHECK(map != nullptr, kOp, ": a block needs all its maps (only gate may be null)");
  }
  const int64_t features = call.features(), heads = block.heads, kv_heads = block.kv_heads;
  FASTMHA_CHECK(heads >= 1 && kv_heads >= 1 && heads % kv_heads == 0, kOp, ": heads (", heads,
                ") must be a multiple of kv_heads (", kv_heads, "), both at least 1");
  const int64_t dim = block.out_proj->in_features() / heads, hidden = block.linear1->out_features();
  FASTMHA_CHECK(dim >= 1, kOp, ": in_features of out_proj must be a multiple of heads");
  check_map("in_proj", block.in_proj, features, (heads + 2 * kv_heads) * dim);
  check_map("out_proj", block.out_proj, heads * dim, features);
  check_map("linear1", block.linear1, features, hidden);
  check_map("linear2", block.linear2, hidden, features);
  if (block.gate != nullptr) check_map("gate", block.gate, features, hidden);
  check_norm(kOp, "norms[0]", block.norms[0], features, call.out);
  check_norm(kOp, "norms[1]", block.norms[1], features, call.out);
  FASTMHA_CHECK(call.params.relative_bias.empty() || heads == call.blocks[0].heads, kOp,
                ": blocks that share a relative_bias must have as many heads, got ", call.blocks[0].heads,
                " and ", heads);
}

// What is left of attention's parameters: what is planned later must not throw.
AttentionPlan check_scores(const Call& call) {
  const int64_t longest = call.longest();
  AttentionPlan first;
  for (int64_t i = call.count - 1; i >= 0; --i) {
    const MutableView none(nullptr, {0, call.blocks[i].heads, 0, 1});
    AttentionParams scores;
    scores.scale = call.blocks[i].scale;
    first = plan_dense_attention(kOp, none, none, none, none, scores);
  }
  set_relative_bias(kOp, call.params.relative_bias, 1 - longest, longest - 1, first);
  return first;
}

void check(Call& call) {
  const EncoderBlocksParams& params = call.params;
  check_rows(kOp, "x", call.x);
  check_same_shape(kOp, "out", call.out, "x", call.x);
  check_out(kOp, call.out);
  check_in_place(kOp, call.out, "x", call.x);
  FASTMHA_CHECK(call.count >= 1, kOp, ": at least one block is needed");
  FASTMHA_CHECK(params.sequences >= 1, kOp, ": sequences must be at least 1, got ", params.sequences);
  if (params.cu_seqlens != nullptr) {
    check_cu_seqlens(kOp, "cu_seqlens", params.cu_seqlens, params.sequences, call.rows());
    call.bounds.assign(params.cu_seqlens, params.cu_seqlens + params.sequences + 1);
  } else {
    FASTMHA_CHECK(call.rows() % params.sequences == 0, kOp, ": ", call.rows(), " rows are not `sequences` (",
                  params.sequences, ") sequences of equal length; set cu_seqlens");
    for (int64_t n = 0; n <= params.sequences; ++n)
      call.bounds.push_back(n * (call.rows() / params.sequences));
  }
  FASTMHA_CHECK(call.longest() >= 2, kOp, ": one sequence must have two rows or more, the longest has ",
                call.longest());
  for (int64_t i = 0; i < call.count; ++i) check_block(call, call.blocks[i]);
  check_norm(kOp, "norm", params.norm, call.features(), call.out);
  FASTMHA_CHECK(params.relative_bias.empty() || !overlap(params.relative_bias, call.out), kOp,
                ": out must not overlap relative_bias");
}

}  // namespace

void encoder_blocks(const EncoderBlock* blocks, int64_t count, const ConstView& x, const MutableView& out,
                    const EncoderBlocksParams& params) {
  Call call{blocks, count, x, out, params, {}, {}};
  check(call);
  call.biased = check_scores(call);
  run(call);
}

}  // namespace fastmha
