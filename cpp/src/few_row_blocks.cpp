// Encoder and decoder blocks over few rows: checks, and the steps that all threads take together.
#include <algorithm>
#include <vector>

#include "attention_plan.h"
#include "block_maps.h"
#include "fastmha/decoder.h"
#include "fastmha/encoder.h"
#include "isa.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"
#include "sublayer.h"
#include "team_rows.h"
#include "workspace.h"

namespace fastmha {
namespace {

// Where sequences begin in rows that lie end to end.
using Bounds = std::vector<int64_t>;

int64_t length(const Bounds& bounds, int64_t n) { return bounds[n + 1] - bounds[n]; }

int64_t longest(const Bounds& bounds) {
  int64_t most = 0;
  for (size_t n = 0; n + 1 < bounds.size(); ++n) most = std::max(most, bounds[n + 1] - bounds[n]);
  return most;
}

// The norms of a decoder's block. An encoder's block is one without the attention over a memory in the middle.
enum NormName { kSelfNorm, kMemoryNorm, kFeedForwardNorm };

DecoderBlock without_memory(const EncoderBlock& given) {
  DecoderBlock block;
  block.in_proj = given.in_proj;
  block.out_proj = given.out_proj;
  block.linear1 = given.linear1;
  block.linear2 = given.linear2;
  block.gate = given.gate;
  block.heads = given.heads;
  block.kv_heads = given.kv_heads;
  block.scale = given.scale;
  block.norms[kSelfNorm] = given.norms[0];
  block.norms[kFeedForwardNorm] = given.norms[1];
  block.norm_first = given.norm_first;
  return block;
}

struct Call {
  const char* op;
  const DecoderBlock* blocks;
  int64_t count;
  ConstView x;
  const ConstView* memory;  // or null: blocks of an encoder
  MutableView out;
  int64_t sequences;
  const ConstView& relative_bias;
  const SublayerNorm& norm;  // behind the last block
  Bounds bounds{}, memory_bounds{};
  AttentionPlan biased{};  // without sequences; its relative bias is checked for all those of the call

  int64_t rows() const { return x.shape[0]; }
  int64_t features() const { return x.shape[1]; }
  bool over_memory() const { return memory != nullptr; }
  int64_t memory_rows() const { return over_memory() ? memory->shape[0] : 0; }
};

// Floats from row to row, and what a thread needs for itself.
struct Scratch {
  TeamRows::Strides strides;
  int64_t projected = 0, attended = 0;
  int64_t memory_kv = 0;  // of a row of the memory
  int64_t attend = 0;     // of a thread, for a panel of queries or a group of heads
  int64_t relative = 0;   // rows of a relative bias for panels of queries

  explicit Scratch(const Call& call) {
    strides.stream = call.features();
    for (int64_t i = 0; i < call.count; ++i) {
      const DecoderBlock& block = call.blocks[i];
      const BlockMaps maps(block);
      projected = std::max(projected, maps.out(kIn));
      add_attention(maps.in(kOut), block.heads);
      if (call.over_memory()) {
        projected = std::max(projected, maps.out(kMemoryQ));
        memory_kv = std::max(memory_kv, maps.memory_kv.weight.out_features());
        add_attention(maps.in(kMemoryOut), block.heads);
      }
      strides.hidden = std::max(strides.hidden, maps.out(kLinear1));
      if (block.gate != nullptr) strides.gate = std::max(strides.gate, maps.out(kLinear1));
    }
    for (int64_t* stride :
         {&strides.stream, &strides.hidden, &strides.gate, &projected, &attended, &memory_kv}) {
      *stride = scratch_stride(*stride);
    }
    attend = line_floats(attend);
    if (const ConstView& bias = call.relative_bias; !bias.empty()) {
      relative =
          static_cast<int64_t>(relative_rows(bias.shape[0], bias.shape[1] / 2, active_isa().panel->bq));
    }
  }
  void add_attention(int64_t width, int64_t heads) {
    const int64_t dim = width / heads;
    attended = std::max(attended, width);
    attend = std::max(attend, static_cast<int64_t>(attend_scratch(dim, dim)));
  }
  size_t thread_bytes() const { return static_cast<size_t>(attend + strides.own_floats()) * sizeof(float); }
  size_t shared_bytes(int64_t rows, int64_t memory_rows) const {
    const int64_t row_floats = strides.row_floats() + projected + attended;
    return static_cast<size_t>(rows * row_floats + memory_rows * memory_kv + relative) * sizeof(float);
  }
};

// ---- steps -------------------------------------------------------------------------------------------------

class Run {
 public:
  Run(const Call& call, const Scratch& sizes, const Workspace& scratch, int threads);
  void steps(Team& team) const;

 private:
  // How an attention is shared out: the heads of short sequences in groups, the others by panels of queries, a head of
  // them.
  struct Attention {
    struct Panel {
      int64_t sequence, first;
    };
    AttentionPlan plan;
    int64_t short_tasks = 0;
    std::vector<Panel> panels{};

    int64_t tasks() const { return short_tasks + plan.heads * static_cast<int64_t>(panels.size()); }
  };
  // A block, and how its steps are shared out.
  struct Block {
    const DecoderBlock& given;
    BlockMaps maps;
    LinearPlan plans[kMaps], memory_kv;
    Attention self, memory;
  };
  void plan(Block& block, int threads) const;
  Attention plan_attention(const DecoderBlock& block, int64_t dim, const float* key, int64_t kv_stride,
                           const Bounds& key_bounds, bool is_causal) const;

  void self_attention(Team& team, const Block& block, const ConstView& x, const ConstView& residual) const;
  void memory_attention(Team& team, const Block& block, const ConstView& x, const ConstView& residual) const;
  void attend(Team& team, const Attention& attention) const;
  ConstView attended(const BlockMaps& maps, MapName name) const {
    return {attended_, {rows_.rows(), maps.in(name)}, {sizes_.attended, 1}};
  }
  MutableView projected(const BlockMaps& maps, MapName name) const {
    return {projected_, {rows_.rows(), maps.out(name)}, {sizes_.projected, 1}};
  }

  const Call& call_;
  const Scratch& sizes_;
  const Workspace& scratch_;
  float* at_;  // where free scratch begins
  TeamRows rows_;
  float *projected_, *attended_, *memory_kv_;
  std::vector<Block> blocks_;
};

Run::Run(const Call& call, const Scratch& sizes, const Workspace& scratch, int threads)
    : call_(call),
      sizes_(sizes),
      scratch_(scratch),
      at_(scratch.shared()),
      rows_(call.rows(), call.features(), sizes.strides, scratch, sizes.attend, at_) {
  projected_ = at_;
  attended_ = projected_ + call.rows() * sizes.projected;
  memory_kv_ = attended_ + call.rows() * sizes.attended;
  at_ = memory_kv_ + call.memory_rows() * sizes.memory_kv;
  size_t bytes = 0;
  blocks_.reserve(static_cast<size_t>(call.count));
  for (int64_t i = 0; i < call.count; ++i) {
    blocks_.push_back({call.blocks[i], BlockMaps(call.blocks[i]), {}, {}, {}, {}});
    Block& block = blocks_.back();
    plan(block, threads);
    block.maps.each(block.given, [&](const LinearLayer& layer) { bytes += layer.weight.nbytes(); });
    if (call.over_memory()) bytes += block.maps.memory_kv.weight.nbytes();
    share_relative_bias(i == 0 ? call.biased : blocks_[0].self.plan, block.self.plan);
    if (i == 0 && sizes.relative != 0) set_relative_rows(block.self.plan, active_isa().panel->bq, at_);
  }
  rows_.pass_weights(bytes);
}

void Run::plan(Block& block, int threads) const {
  const DecoderBlock& given = block.given;
  const BlockMaps& maps = block.maps;
  for (int name = 0; name < kMaps; ++name) block.plans[name] = rows_.plan(maps.at[name], threads);
  const int64_t dim = maps.in(kOut) / given.heads;
  block.self = plan_attention(given, dim, projected_ + given.heads * dim, sizes_.projected, call_.bounds,
                              call_.over_memory());
  if (!call_.over_memory()) return;
  block.memory_kv = rows_.plan(maps.memory_kv, call_.memory_rows(), threads);
  block.memory = plan_attention(given, maps.in(kMemoryOut) / given.heads, memory_kv_, sizes_.memory_kv,
                                call_.memory_bounds, false);
}

// Where the heads lie in projected rows: those of the queries in front, those of the values behind the keys.
Run::Attention Run::plan_attention(const DecoderBlock& block, int64_t dim, const float* key,
                                   int64_t kv_stride, const Bounds& key_bounds, bool is_causal) const {
  const auto heads_of = [&](auto* data, int64_t rows, int64_t heads, int64_t stride) {
    return View(data, {rows, heads, dim}, {stride, dim, 1});
  };
  const float *query = projected_, *value = key + block.kv_heads * dim;
  const int64_t rows = rows_.rows(), keys = key_bounds.back();
  AttentionParams params;
  params.is_causal = is_causal;
  params.scale = block.scale;
  Attention attention{plan_varlen_attention(call_.op, heads_of(query, rows, block.heads, sizes_.projected),
                                            heads_of(key, keys, block.kv_heads, kv_stride),
                                            heads_of(value, keys, block.kv_heads, kv_stride),
                                            call_.bounds.data(), key_bounds.data(), call_.sequences,
                                            heads_of(attended_, rows, block.heads, sizes_.attended), params)};
  const Isa& isa = active_isa();
  for (int64_t n = 0; n < call_.sequences; ++n) {
    if (takes_short(attention.plan, *isa.short_sequences, n)) {
      attention.short_tasks = ceil_div(call_.sequences * block.heads, isa.short_sequences->group);
      continue;
    }
    const int64_t queries = length(call_.bounds, n);
    for (int64_t first = 0; first < queries; first += isa.panel->bq) attention.panels.push_back({n, first});
  }
  return attention;
}

void Run::attend(Team& team, const Attention& attention) const {
  const PanelKernels& kernels = *active_isa().panel;
  const ShortKernels& group_kernels = *active_isa().short_sequences;
  const AttentionPlan& plan = attention.plan;
  float* scratch = scratch_.slice(team.thread());
  // Panels of a head beside each other: a thread's run of tasks reads few heads' keys.
  const auto panels = static_cast<int64_t>(attention.panels.size());
  team.each(attention.tasks(), [&](int64_t task) {
    if (task < attention.short_tasks) {
      const int64_t first = task * group_kernels.group;
      const int64_t last = std::min(first + group_kernels.group, plan.batch * plan.heads);
      run_short_here(plan, group_kernels, first, last, false, scratch);
      return;
    }
    task -= attention.short_tasks;
    const Attention::Panel& panel = attention.panels[static_cast<size_t>(task % panels)];
    kernels.run(plan.head(panel.sequence, task / panels), panel.first, scratch);
  });
}

void Run::self_attention(Team& team, const Block& block, const ConstView& x,
                         const ConstView& residual) const {
  const BlockMaps& maps = block.maps;
  rows_.linear(team, maps.at[kIn], block.plans[kIn], x, projected(maps, kIn), {});
  attend(team, block.self);
  rows_.linear(team, maps.at[kOut], block.plans[kOut], attended(maps, kOut), rows_.stream(), residual);
}

void Run::memory_attention(Team& team, const Block& block, const ConstView& x,
                           const ConstView& residual) const {
  const BlockMaps& maps = block.maps;
  const MutableView kv(memory_kv_, {call_.memory_rows(), maps.memory_kv.weight.out_features()},
                       {sizes_.memory_kv, 1});
  const MutableView queries = projected(maps, kMemoryQ);
  rows_.linear(team, {maps.at[kMemoryQ], block.plans[kMemoryQ], x, queries, {}},
               {maps.memory_kv, block.memory_kv, *call_.memory, kv, {}});
  attend(team, block.memory);
  rows_.linear(team, maps.at[kMemoryOut], block.plans[kMemoryOut], attended(maps, kMemoryOut), rows_.stream(),
               residual);
}

void Run::steps(Team& team) const {
  ConstView x = call_.x;
  for (const Block& block : blocks_) {
    const DecoderBlock& given = block.given;
    const BlockMaps& maps = block.maps;
    x = rows_.around(team, given.norms[kSelfNorm], given.norm_first, x,
                     [&](const ConstView& input, const ConstView& residual) {
                       self_attention(team, block, input, residual);
                     });
    if (call_.over_memory()) {
      x = rows_.around(team, given.norms[kMemoryNorm], given.norm_first, x,
                       [&](const ConstView& input, const ConstView& residual) {
                         memory_attention(team, block, input, residual);
                       });
    }
    const TeamRows::FeedForward feed_forward{maps.at[kLinear1], maps.at[kLinear2],
                                             given.gate == nullptr ? nullptr : &maps.gate,
                                             block.plans[kLinear1], block.plans[kLinear2]};
    x = rows_.around(team, given.norms[kFeedForwardNorm], given.norm_first, x,
                     [&](const ConstView& input, const ConstView& residual) {
                       rows_.feed_forward(team, feed_forward, input, residual);
                     });
  }
  team.each(rows_.rows(), [&](int64_t row) { TeamRows::finish(call_.norm, x, call_.out, row); });
}

// ---- plan --------------------------------------------------------------------------------------------------

// On one thread.
double nanoseconds(const Call& call) {
  double own = 0, over_memory = 0, total = 0;  // pairs of a query and a key
  for (int64_t n = 0; n < call.sequences; ++n) {
    const auto queries = static_cast<double>(length(call.bounds, n));
    own += queries * queries;
    if (call.over_memory()) over_memory += queries * static_cast<double>(length(call.memory_bounds, n));
  }
  for (int64_t i = 0; i < call.count; ++i) {
    const DecoderBlock& block = call.blocks[i];
    const BlockMaps maps(block);
    maps.each(block, [&](const LinearLayer& layer) { total += TeamRows::nanoseconds(layer, call.rows()); });
    double features = own * static_cast<double>(maps.in(kOut));
    if (call.over_memory()) {
      total += TeamRows::nanoseconds(maps.memory_kv, call.memory_rows());
      features += over_memory * static_cast<double>(maps.in(kMemoryOut));
    }
    total += 4 * features / kFlopsPerNanosecond;
  }
  return total;
}

void run(const Call& call) {
  const Scratch sizes(call);
  const int64_t steps = call.over_memory() ? 11 : 7;  // of a block
  const int threads = TeamRows::threads(nanoseconds(call), steps * call.count);
  const Workspace scratch(threads, sizes.thread_bytes(), sizes.shared_bytes(call.rows(), call.memory_rows()));
  const Run all(call, sizes, scratch, threads);
  parallel_team(threads, [&](Team& team) { all.steps(team); });
}

// ---- checks ------------------------------------------------------------------------------------------------

void check_block(const Call& call, const DecoderBlock& block) {
  const int64_t features = call.features();
  check_block_maps(call.op, block, features, call.over_memory());
  if (call.over_memory()) {
    FASTMHA_CHECK(block.memory_kv_proj != nullptr, call.op, ": a block needs its memory_kv_proj");
    const int64_t wanted = block.memory_out_proj->in_features() / block.heads * block.kv_heads * 2;
    const PackedLinear& map = *block.memory_kv_proj;
    FASTMHA_CHECK(map.in_features() == call.memory->shape[1] && map.out_features() == wanted, call.op,
                  ": memory_kv_proj must be ", call.memory->shape[1], " -> ", wanted, ", got ",
                  map.in_features(), " -> ", map.out_features());
    check_norm(call.op, "norms[0]", block.norms[kSelfNorm], features, call.out);
    check_norm(call.op, "norms[1]", block.norms[kMemoryNorm], features, call.out);
    check_norm(call.op, "norms[2]", block.norms[kFeedForwardNorm], features, call.out);
  } else {
    check_norm(call.op, "norms[0]", block.norms[kSelfNorm], features, call.out);
    check_norm(call.op, "norms[1]", block.norms[kFeedForwardNorm], features, call.out);
  }
  FASTMHA_CHECK(call.relative_bias.empty() || block.heads == call.blocks[0].heads, call.op,
                ": blocks that share a relative_bias must have as many heads, got ", call.blocks[0].heads,
                " and ", block.heads);
}

// What is left of attention's parameters: what is planned later must not throw.
AttentionPlan check_scores(const Call& call) {
  const int64_t most = longest(call.bounds);
  AttentionPlan first;
  for (int64_t i = call.count - 1; i >= 0; --i) {
    const MutableView none(nullptr, {0, call.blocks[i].heads, 0, 1});
    AttentionParams scores;
    scores.scale = call.blocks[i].scale;
    first = plan_dense_attention(call.op, none, none, none, none, scores);
  }
  set_relative_bias(call.op, call.relative_bias, 1 - most, most - 1, first);
  return first;
}

// Of `rows` rows, as cu_seqlens says or of equal length.
Bounds check_bounds(const Call& call, const char* name, const int64_t* cu_seqlens, int64_t rows) {
  if (cu_seqlens != nullptr) {
    check_cu_seqlens(call.op, name, cu_seqlens, call.sequences, rows);
    return {cu_seqlens, cu_seqlens + call.sequences + 1};
  }
  FASTMHA_CHECK(rows % call.sequences == 0, call.op, ": ", rows, " rows are not `sequences` (",
                call.sequences, ") sequences of equal length; set ", name);
  Bounds bounds;
  for (int64_t n = 0; n <= call.sequences; ++n) bounds.push_back(n * (rows / call.sequences));
  return bounds;
}

void check_x(const Call& call) {
  check_rows(call.op, "x", call.x);
  check_same_shape(call.op, "out", call.out, "x", call.x);
  check_out(call.op, call.out);
  check_in_place(call.op, call.out, "x", call.x);
  FASTMHA_CHECK(call.count >= 1, call.op, ": at least one block is needed");
  FASTMHA_CHECK(call.sequences >= 1, call.op, ": sequences must be at least 1, got ", call.sequences);
}

void check_blocks(const Call& call) {
  const int64_t most = longest(call.bounds);
  FASTMHA_CHECK(most >= 2, call.op, ": one sequence must have two rows or more, the longest has ", most);
  for (int64_t i = 0; i < call.count; ++i) check_block(call, call.blocks[i]);
  check_norm(call.op, "norm", call.norm, call.features(), call.out);
  FASTMHA_CHECK(call.relative_bias.empty() || !overlap(call.relative_bias, call.out), call.op,
                ": out must not overlap relative_bias");
}

void check_memory(const Call& call) {
  check_rows(call.op, "memory", *call.memory);
  FASTMHA_CHECK(!overlap(*call.memory, call.out), call.op, ": out must not overlap memory");
}

}  // namespace

void encoder_blocks(const EncoderBlock* blocks, int64_t count, const ConstView& x, const MutableView& out,
                    const EncoderBlocksParams& params) {
  std::vector<DecoderBlock> given;
  for (int64_t i = 0; i < count; ++i) given.push_back(without_memory(blocks[i]));
  Call call{"encoder_blocks", given.data(),         count,      x, nullptr, out,
            params.sequences, params.relative_bias, params.norm};
  check_x(call);
  call.bounds = check_bounds(call, "cu_seqlens", params.cu_seqlens, call.rows());
  check_blocks(call);
  call.biased = check_scores(call);
  run(call);
}

void decoder_blocks(const DecoderBlock* blocks, int64_t count, const ConstView& x, const ConstView& memory,
                    const MutableView& out, const DecoderBlocksParams& params) {
  Call call{"decoder_blocks",     blocks,     count, x, &memory, out, params.sequences,
            params.relative_bias, params.norm};
  check_x(call);
  check_memory(call);
  FASTMHA_CHECK((params.cu_seqlens == nullptr) == (params.cu_seqlens_memory == nullptr), call.op,
                ": set both of cu_seqlens and cu_seqlens_memory, or neither");
  call.bounds = check_bounds(call, "cu_seqlens", params.cu_seqlens, call.rows());
  call.memory_bounds = check_bounds(call, "cu_seqlens_memory", params.cu_seqlens_memory, call.memory_rows());
  check_blocks(call);
  call.biased = check_scores(call);
  run(call);
}

}  // namespace fastmha
