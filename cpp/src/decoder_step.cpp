// Decoder blocks while they generate: checks, and the steps that all threads take together.
//
// Few rows leave no slice for a thread of its own: every product is shared out by columns, every attention by heads.
// All of them are steps of one parallel region: a block of Transformer-base has eleven, and takes 0.2 ms when its weights
// come from memory.
#include "fastmha/decoder.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "attention_plan.h"
#include "block_maps.h"
#include "isa.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"
#include "sublayer.h"
#include "team_rows.h"
#include "workspace.h"

namespace fastmha {
namespace {

const char* const kOp = "decoder_step";
// What so many heads later will read is fetched while one is computed.
constexpr int64_t kTasksAhead = 2;
const char* const kNormNames[] = {"norms[0]", "norms[1]", "norms[2]"};

// ---- a call ------------------------------------------------------------------------------------------------

struct Call {
  const DecoderBlock* blocks;
  int64_t count;
  ConstView x;
  MutableView out;
  const DecoderStepParams& params;
  AttentionPlan biased;  // without hypotheses; its relative bias is checked for all those of the call

  int64_t hypotheses() const { return params.sources * params.beam_size; }
  int64_t length() const { return hypotheses() == 0 ? 0 : x.shape[0] / hypotheses(); }
  int64_t features() const { return x.shape[1]; }
  // Positions of a hypothesis that count.
  int64_t new_length(int64_t hypothesis) const {
    return params.new_lengths == nullptr ? length() : params.new_lengths[hypothesis];
  }
  // Positions that the hypotheses have after the call, the most of all.
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t i = 0; i < hypotheses(); ++i) most = std::max(most, params.lengths[i] + new_length(i));
    return most;
  }
};

// ---- scratch -----------------------------------------------------------------------------------------------

// Floats from row to row of the matrices between the steps, the widest of all blocks, and what a thread needs for
// itself.
struct Scratch {
  TeamRows::Strides strides;
  int64_t projected = 0, attended = 0;
  int64_t attend = 0;    // of a thread, for a head or a group
  int64_t gathered = 0;  // of a thread, keys (or values) of a head in one piece, for several positions of x
  int64_t relative = 0;  // rows of a relative bias for panels of queries

  explicit Scratch(const Call& call) {
    const Isa& isa = active_isa();
    strides.stream = call.features();
    for (int64_t i = 0; i < call.count; ++i) {
      const DecoderBlock& block = call.blocks[i];
      const BlockMaps maps(block);
      projected = std::max({projected, maps.out(kIn), maps.out(kMemoryQ)});
      attended = std::max({attended, maps.in(kOut), maps.in(kMemoryOut)});
      strides.hidden = std::max(strides.hidden, maps.out(kLinear1));
      if (block.gate != nullptr) strides.gate = std::max(strides.gate, maps.out(kLinear1));
      const int64_t group = block.heads / block.kv_heads * call.params.beam_size;
      if (call.params.position_slots != nullptr && call.length() > 1) {
        gathered = std::max(gathered, line_floats(call.longest() * (maps.in(kOut) / block.heads)));
      }
      for (const int64_t dim : {maps.in(kOut) / block.heads, maps.in(kMemoryOut) / block.heads}) {
        attend = std::max(attend, call.length() == 1 ? decode_floats(group, dim)
                                                     : static_cast<int64_t>(isa.panel->scratch(dim, dim)));
      }
    }
    if (const ConstView& bias = call.params.relative_bias; !bias.empty() && call.length() > 1) {
      relative = static_cast<int64_t>(relative_rows(bias.shape[0], bias.shape[1] / 2, isa.panel->bq));
    }
    for (int64_t* stride : {&projected, &attended, &strides.stream, &strides.hidden, &strides.gate}) {
      *stride = scratch_stride(*stride);
    }
    attend = line_floats(attend);
  }

  int64_t own_floats() const { return attend + 2 * gathered; }

  static int64_t head_floats(int64_t heads) {
    return line_floats(heads * static_cast<int64_t>(sizeof(AttentionHead) / sizeof(float) + 1));
  }
  // The heads of a group, two states of theirs, and what the kernel wants.
  static int64_t decode_floats(int64_t heads, int64_t dim) {
    return head_floats(heads) + 2 * line_floats(heads * (2 + dim)) +
           static_cast<int64_t>(active_isa().decode->scratch(heads, dim));
  }
  int64_t row_floats() const { return strides.row_floats() + projected + attended; }
  size_t thread_bytes() const {
    return static_cast<size_t>(own_floats() + strides.own_floats()) * sizeof(float);
  }
  size_t shared_bytes(int64_t rows) const {
    return static_cast<size_t>(rows * row_floats() + relative) * sizeof(float);
  }
};

// ---- some of the sources -----------------------------------------------------------------------------------

// A block, and how its steps are shared out.
struct Block {
  const DecoderBlock& given;
  BlockMaps maps;
  LinearPlan plans[kMaps];
  AttentionPlan self, memory;
};

// Sources [first, first + sources) on their way through all blocks.
class Run {
 public:
  Run(const Call& call, const Scratch& sizes, const Workspace& scratch, int threads, int64_t first,
      int64_t sources);
  void steps(Team& team) const;

 private:
  AttentionPlan plan_self(const Block& block) const;
  AttentionPlan plan_memory(const Block& block) const;

  void linear(Team& team, const Block& block, MapName name, const ConstView& x, const MutableView& out,
              const ConstView& residual) const {
    at_.linear(team, block.maps.at[name], block.plans[name], x, out, residual);
  }
  // A head of a hypothesis's keys and values: where they begin, and the slots of its positions, or null.
  struct Keys {
    const float *key, *value;
    int64_t key_stride, value_stride;  // from row to row
    const int64_t* slots;
  };
  // The hypotheses of a source come one after the other to the same head: they share most of its rows.
  int64_t hypothesis_of(int64_t task, int64_t kv_heads) const {
    const int64_t beams = call_.params.beam_size;
    return task / (beams * kv_heads) * beams + task % beams;
  }
  int64_t kv_head_of(int64_t task, int64_t kv_heads) const {
    return task / call_.params.beam_size % kv_heads;
  }

  void find_slots(int64_t behind);
  Keys keys_of(const Block& block, int64_t hypothesis, int64_t kv_head) const;
  void append(const Block& block, int64_t hypothesis, int64_t kv_head, int64_t count) const;
  void expect_append(const Block& block, int64_t hypothesis, int64_t kv_head) const;
  void gather(const Block& block, int64_t hypothesis, float* to, Keys& keys) const;
  void attend_self(const Block& block, int64_t task, float* scratch) const;
  void attend_memory(const Block& block, int64_t task, float* scratch) const;
  void finish(Team& team, const ConstView& x) const;

  MutableView projected(MapName name, const BlockMaps& maps) const {
    return {projected_, {rows_, maps.out(name)}, {sizes_.projected, 1}};
  }
  MutableView attended(MapName name, const BlockMaps& maps) const {
    return {attended_, {rows_, maps.in(name)}, {sizes_.attended, 1}};
  }

  const Call& call_;
  const Scratch& sizes_;
  const Workspace& scratch_;
  int64_t first_hypothesis_, hypotheses_, length_, rows_;
  float* free_;  // where scratch begins that nothing has taken
  TeamRows at_;
  const int64_t *slots_, *lengths_, *memory_starts_, *memory_lengths_;
  std::vector<int64_t> key_lengths_;
  std::vector<int64_t> key_slots_;  // of all positions, where they may lie in several slots
  int64_t key_slots_stride_ = 0;
  float *projected_, *attended_;
  std::vector<Block> blocks_;
};

Run::Run(const Call& call, const Scratch& sizes, const Workspace& scratch, int threads, int64_t first,
         int64_t sources)
    : call_(call),
      sizes_(sizes),
      scratch_(scratch),
      first_hypothesis_(first * call.params.beam_size),
      hypotheses_(sources * call.params.beam_size),
      length_(call.length()),
      rows_(hypotheses_ * length_),
      free_(scratch.shared()),
      at_(rows_, call.features(), sizes.strides, scratch, sizes.own_floats(), free_),
      slots_(call.params.slots + first_hypothesis_),
      lengths_(call.params.lengths + first_hypothesis_),
      memory_starts_(call.params.memory_starts + first),
      memory_lengths_(call.params.memory_lengths + first),
      key_lengths_(static_cast<size_t>(hypotheses_)) {
  for (int64_t i = 0; i < hypotheses_; ++i) {
    key_lengths_[i] = lengths_[i] + call.new_length(first_hypothesis_ + i);
  }
  if (call.params.position_slots != nullptr) find_slots(DecodeGroup::kSlotsBehind);
  projected_ = free_;
  attended_ = projected_ + rows_ * sizes.projected;
  free_ = attended_ + rows_ * sizes.attended;

  size_t bytes = 0;
  blocks_.reserve(static_cast<size_t>(call.count));
  for (int64_t i = 0; i < call.count; ++i) {
    blocks_.push_back({call.blocks[i], BlockMaps(call.blocks[i]), {}, {}, {}});
    Block& block = blocks_.back();
    for (int name = 0; name < kMaps; ++name) {
      const auto map = static_cast<MapName>(name);
      const bool alike = i > 0 && blocks_[i - 1].maps.in(map) == block.maps.in(map) &&
                         blocks_[i - 1].maps.out(map) == block.maps.out(map);
      block.plans[name] = alike ? blocks_[i - 1].plans[name] : at_.plan(block.maps.at[map], threads);
    }
    block.maps.each(block.given, [&](const LinearLayer& map) { bytes += map.weight.nbytes(); });
    block.self = plan_self(block);
    block.memory = plan_memory(block);
    share_relative_bias(i == 0 ? call.biased : blocks_[0].self, block.self);
    if (i == 0 && sizes.relative != 0) set_relative_rows(block.self, active_isa().panel->bq, free_);
  }
  at_.pass_weights(bytes);
}

// The slots of all positions, the new ones included, and of as many that are not there `behind` them.
void Run::find_slots(int64_t behind) {
  const DecoderStepParams& params = call_.params;
  key_slots_stride_ = behind + *std::max_element(key_lengths_.begin(), key_lengths_.end());
  key_slots_.resize(static_cast<size_t>(hypotheses_ * key_slots_stride_));
  for (int64_t i = 0; i < hypotheses_; ++i) {
    const int64_t* held = params.position_slots + (first_hypothesis_ + i) * params.position_slots_stride;
    const auto row = key_slots_.begin() + i * key_slots_stride_;
    std::copy_n(held, lengths_[i], row);
    std::fill(row + lengths_[i], row + key_slots_stride_, slots_[i]);
  }
}

// Where the heads lie in projected rows. Keys and values begin at those of slot 0; attend_self goes on from there.
AttentionPlan Run::plan_self(const Block& block) const {
  const DecoderBlock& given = block.given;
  const int64_t dim = block.maps.in(kOut) / given.heads;
  const auto rows = [&](float* data, int64_t stride) {
    return MutableView(data, {hypotheses_, given.heads, length_, dim}, {length_ * stride, dim, stride, 1});
  };
  const auto slots = [&](const MutableView& half) {
    return ConstView(half.data, {hypotheses_, given.kv_heads, half.shape[2], dim},
                     {0, half.strides[1], half.strides[2], 1});
  };
  AttentionParams params;
  params.is_causal = true;
  params.scale = given.scale;
  params.query_offsets = lengths_;
  params.key_lengths = key_lengths_.data();
  return plan_dense_attention(kOp, rows(projected_, sizes_.projected), slots(given.key), slots(given.value),
                              rows(attended_, sizes_.attended), params);
}

// A source's hypotheses are its queries. Keys and values begin at row 0; attend_memory goes on from there.
AttentionPlan Run::plan_memory(const Block& block) const {
  const DecoderBlock& given = block.given;
  const int64_t dim = block.maps.in(kMemoryOut) / given.heads;
  const int64_t queries = call_.params.beam_size * length_, sources = hypotheses_ / call_.params.beam_size;
  const auto rows = [&](float* data, int64_t stride) {
    return MutableView(data, {sources, given.heads, queries, dim}, {queries * stride, dim, stride, 1});
  };
  const auto all = [&](const ConstView& half) {
    return ConstView(half.data, {sources, given.kv_heads, half.shape[1], dim},
                     {0, half.strides[0], half.strides[1], 1});
  };
  AttentionParams params;
  params.scale = given.scale;
  params.key_lengths = memory_lengths_;
  return plan_dense_attention(kOp, rows(projected_, sizes_.projected), all(given.memory_key),
                              all(given.memory_value), rows(attended_, sizes_.attended), params);
}

// ---- steps -------------------------------------------------------------------------------------------------

void Run::steps(Team& team) const {
  float* scratch = scratch_.slice(team.thread());
  ConstView x = rows_of(call_.x, first_hypothesis_ * length_, rows_);
  for (const Block& block : blocks_) {
    const int64_t kv_heads = block.given.kv_heads, sources = hypotheses_ / call_.params.beam_size;
    const DecoderBlock& given = block.given;
    x = at_.around(
        team, given.norms[0], given.norm_first, x, [&](const ConstView& input, const ConstView& residual) {
          linear(team, block, kIn, input, projected(kIn, block.maps), {});
          team.each(hypotheses_ * kv_heads, [&](int64_t task) { attend_self(block, task, scratch); });
          linear(team, block, kOut, attended(kOut, block.maps), at_.stream(), residual);
        });
    x = at_.around(
        team, given.norms[1], given.norm_first, x, [&](const ConstView& input, const ConstView& residual) {
          linear(team, block, kMemoryQ, input, projected(kMemoryQ, block.maps), {});
          team.each(sources * kv_heads, [&](int64_t task) { attend_memory(block, task, scratch); });
          linear(team, block, kMemoryOut, attended(kMemoryOut, block.maps), at_.stream(), residual);
        });
    x = at_.around(team, given.norms[2], given.norm_first, x,
                   [&](const ConstView& input, const ConstView& residual) {
                     at_.feed_forward(team,
                                      {block.maps.at[kLinear1], block.maps.at[kLinear2],
                                       given.gate == nullptr ? nullptr : &block.maps.gate,
                                       block.plans[kLinear1], block.plans[kLinear2]},
                                      input, residual);
                   });
  }
  finish(team, x);
}

// The first `count` new keys and values of a head to the slot of its hypothesis.
void Run::append(const Block& block, int64_t hypothesis, int64_t kv_head, int64_t count) const {
  const int64_t dim = block.self.shared.head_dim;
  const float* key =
      projected_ + hypothesis * length_ * sizes_.projected + (block.given.heads + kv_head) * dim;
  const float* value = key + block.given.kv_heads * dim;
  const auto copy = [&](const MutableView& half, const float* from) {
    float* to = half.data + slots_[hypothesis] * half.strides[0] + kv_head * half.strides[1] +
                lengths_[hypothesis] * half.strides[2];
    for (int64_t row = 0; row < count; ++row) {
      std::memcpy(to + row * half.strides[2], from + row * sizes_.projected,
                  static_cast<size_t>(dim) * sizeof(float));
    }
  };
  copy(block.given.key, key);
  copy(block.given.value, value);
}

// Asks for the memory that `append` will write to: it was written to last when the step before that passed.
void Run::expect_append(const Block& block, int64_t hypothesis, int64_t kv_head) const {
  for (const MutableView* half : {&block.given.key, &block.given.value}) {
    const float* to = half->data + slots_[hypothesis] * half->strides[0] + kv_head * half->strides[1] +
                      lengths_[hypothesis] * half->strides[2];
    for (int64_t d = 0; d < block.self.shared.head_dim; d += kLineFloats) __builtin_prefetch(to + d, 1);
  }
}

// All keys of a group with one query each, piece after piece as run_decode merges them.
void decode(const DecodeGroup& group, float* scratch) {
  const DecodeKernels& kernels = *active_isa().decode;
  const int64_t dim = group.heads[0].value_dim, stride = 2 + dim;
  float* const total = scratch;
  float* const piece = total + line_floats(group.count * stride);
  float* const rest = piece + line_floats(group.count * stride);
  const int64_t pieces = ceil_div(group.heads[0].kv_len, kernels.split);
  kernels.piece(group, 0, total, rest);
  for (int64_t index = 1; index < pieces; ++index) {
    kernels.piece(group, index, piece, rest);
    for (int64_t h = 0; h < group.count; ++h) kernels.merge(total + h * stride, piece + h * stride, dim);
  }
  for (int64_t h = 0; h < group.count; ++h) kernels.finish(group.heads[h], total + h * stride);
}

void attend_panels(const AttentionHead& head, float* scratch) {
  const PanelKernels& kernels = *active_isa().panel;
  for (int64_t first = 0; first < head.q_len; first += kernels.bq) kernels.run(head, first, scratch);
}

Run::Keys Run::keys_of(const Block& block, int64_t hypothesis, int64_t kv_head) const {
  const MutableView &key = block.given.key, &value = block.given.value;
  if (!key_slots_.empty()) {
    return {key.data + kv_head * key.strides[1], value.data + kv_head * value.strides[1], key.strides[2],
            value.strides[2], key_slots_.data() + hypothesis * key_slots_stride_};
  }
  const int64_t slot = slots_[hypothesis];
  return {key.data + slot * key.strides[0] + kv_head * key.strides[1],
          value.data + slot * value.strides[0] + kv_head * value.strides[1], key.strides[2], value.strides[2],
          nullptr};
}

// The panels want a head's keys and values in one piece.
void Run::gather(const Block& block, int64_t hypothesis, float* to, Keys& keys) const {
  const int64_t dim = block.self.shared.head_dim;
  const auto rows = [&](const float* half, const MutableView& view) {
    for (int64_t j = 0; j < key_lengths_[hypothesis]; ++j) {
      std::memcpy(to + j * dim, half + keys.slots[j] * view.strides[0] + j * view.strides[2],
                  static_cast<size_t>(dim) * sizeof(float));
    }
    return std::exchange(to, to + sizes_.gathered);
  };
  keys.key = rows(keys.key, block.given.key);
  keys.value = rows(keys.value, block.given.value);
  keys.key_stride = keys.value_stride = dim;
}

// The heads that share a head of keys, over all positions of a hypothesis; its new ones are appended first.
void Run::attend_self(const Block& block, int64_t task, float* scratch) const {
  const AttentionPlan& plan = block.self;
  const int64_t group = plan.group(), kv_heads = block.given.kv_heads;
  const int64_t hypothesis = hypothesis_of(task, kv_heads), kv_head = kv_head_of(task, kv_heads);
  const int64_t count = call_.new_length(first_hypothesis_ + hypothesis);
  append(block, hypothesis, kv_head, count);
  Keys keys = keys_of(block, hypothesis, kv_head);
  if (length_ > 1 && count > 0 && keys.slots != nullptr) {
    gather(block, hypothesis, scratch + sizes_.attend, keys);
  }
  auto* heads = reinterpret_cast<AttentionHead*>(scratch);
  for (int64_t g = 0; g < group; ++g) {
    AttentionHead head = plan.head(hypothesis, kv_head * group + g);
    head.key = keys.key;
    head.value = keys.value;
    head.key_stride = keys.key_stride;
    head.value_stride = keys.value_stride;
    head.q_len = count;
    for (int64_t row = count; row < length_; ++row) {  // rows that nothing computes go through the maps, too
      std::fill_n(head.out + row * head.out_stride, head.value_dim, 0.0f);
    }
    if (length_ > 1) {
      attend_panels(head, scratch);
    } else {
      heads[g] = head;
    }
  }
  if (length_ > 1 || count == 0) return;
  DecodeGroup work{heads, group, keys.slots, block.given.key.strides[0], block.given.value.strides[0]};
  const int64_t later = task + kTasksAhead * call_.params.beam_size;
  if (later < hypotheses_ * kv_heads) {
    const int64_t later_hypothesis = hypothesis_of(later, kv_heads), later_head = kv_head_of(later, kv_heads);
    const Keys then = keys_of(block, later_hypothesis, later_head);
    work.later_key = then.key;
    work.later_value = then.value;
    work.later_slots = then.slots;
    expect_append(block, later_hypothesis, later_head);
  }
  decode(work, scratch + Scratch::head_floats(group));
}

// The heads that share a head of keys, of all hypotheses of a source.
void Run::attend_memory(const Block& block, int64_t task, float* scratch) const {
  const AttentionPlan& plan = block.memory;
  const int64_t group = plan.group(), kv_heads = block.given.kv_heads, beams = call_.params.beam_size;
  const int64_t source = task / kv_heads, kv_head = task % kv_heads, row = memory_starts_[source];
  auto* heads = reinterpret_cast<AttentionHead*>(scratch);
  for (int64_t g = 0; g < group; ++g) {
    AttentionHead head = plan.head(source, kv_head * group + g);
    head.key += row * plan.key.row;
    head.value += row * plan.value.row;
    if (length_ > 1) {
      attend_panels(head, scratch);
      continue;
    }
    head.q_len = 1;
    for (int64_t beam = 0; beam < beams; ++beam) {
      heads[g * beams + beam] = head;
      head.query += head.query_stride;
      head.out += head.out_stride;
    }
  }
  if (length_ > 1) return;
  DecodeGroup work{heads, group * beams};
  if (const int64_t later = task + kTasksAhead; later < hypotheses_ / beams * kv_heads) {
    const int64_t later_row = memory_starts_[later / kv_heads], later_head = later % kv_heads;
    work.later_key = plan.shared.key + later_row * plan.key.row + later_head * plan.key.head;
    work.later_value = plan.shared.value + later_row * plan.value.row + later_head * plan.value.head;
  }
  decode(work, scratch + Scratch::head_floats(group * beams));
}

// The last norm, to where the result goes.
void Run::finish(Team& team, const ConstView& x) const {
  const MutableView out = rows_of(call_.out, first_hypothesis_ * length_, rows_);
  team.each(rows_, [&](int64_t row) {
    float* to = out.data + row * out.strides[0];
    if (row % length_ >= call_.new_length(first_hypothesis_ + row / length_)) {
      std::fill_n(to, out.shape[1], 0.0f);
    } else {
      TeamRows::finish(call_.params.norm, x, out, row);
    }
  });
}

// ---- plan --------------------------------------------------------------------------------------------------

// Time on one thread.
double nanoseconds(const Call& call) {
  double total = 0;
  for (int64_t i = 0; i < call.count; ++i) {
    BlockMaps(call.blocks[i]).each(call.blocks[i], [&](const LinearLayer& map) {
      total += TeamRows::nanoseconds(map, call.x.shape[0]);
    });
  }
  return total;
}

void run(const Call& call) {
  const Scratch sizes(call);
  // Of as many sources at a time as the scratch memory is meant for.
  const int64_t source_rows = call.params.beam_size * call.length();
  constexpr int64_t kSteps = 11;  // of a block
  const int most_threads = TeamRows::threads(nanoseconds(call), kSteps * call.count);
  const int64_t source_bytes = source_rows * sizes.row_floats() * static_cast<int64_t>(sizeof(float));
  const int64_t at_once =
      std::min(call.params.sources, std::max<int64_t>(1, kMostBytes * most_threads / source_bytes));
  const Workspace scratch(most_threads, sizes.thread_bytes(), sizes.shared_bytes(at_once * source_rows));
  for (int64_t first = 0; first < call.params.sources; first += at_once) {
    const int64_t sources = std::min(at_once, call.params.sources - first);
    const Run part(call, sizes, scratch, most_threads, first, sources);
    parallel_team(most_threads, [&](Team& team) { part.steps(team); });
  }
}

// ---- checks ------------------------------------------------------------------------------------------------

template <class T>
void check_keys(const char* name, const View<T>& keys, int rank, int64_t kv_heads, int64_t dim) {
  FASTMHA_CHECK(keys.rank == rank && keys.shape[rank - 3] == kv_heads && keys.shape[rank - 1] == dim, kOp,
                ": ", name, " must be ", rank == 4 ? "(slots, " : "(", kv_heads, ", any, ", dim, "), got ",
                shape_text(keys));
  FASTMHA_CHECK(keys.dtype == DType::kFloat32 && (keys.data != nullptr || keys.size() == 0), kOp, ": ", name,
                " must point to float32 elements");
  FASTMHA_CHECK(keys.strides[rank - 1] == 1 || keys.shape[rank - 1] <= 1 || keys.size() == 0, kOp, ": ", name,
                " must have a contiguous last axis");
}

void check_block(const DecoderBlock& block, int64_t features) {
  check_block_maps(kOp, block, features, true);
  const int64_t heads = block.heads, kv_heads = block.kv_heads;
  const int64_t dim = block.out_proj->in_features() / heads;
  const int64_t memory_dim = block.memory_out_proj->in_features() / heads;
  check_keys("key", block.key, 4, kv_heads, dim);
  check_keys("value", block.value, 4, kv_heads, dim);
  check_keys("memory_key", block.memory_key, 3, kv_heads, memory_dim);
  check_keys("memory_value", block.memory_value, 3, kv_heads, memory_dim);
}

// What is left of attention's parameters. Those of the memory are among them.
AttentionPlan check_scores(const DecoderBlock& block) {
  const MutableView none(nullptr, {0, block.heads, 0, 1});
  AttentionParams scores;
  scores.scale = block.scale;
  return plan_dense_attention(kOp, none, none, none, none, scores);
}

// What other steps wrote is read, and nothing that this one writes.
void check_position_slots(const Call& call, int64_t slots) {
  const DecoderStepParams& params = call.params;
  std::vector<int64_t> written(static_cast<size_t>(slots), INT64_MAX);  // the first such position of a slot
  for (int64_t i = 0; i < call.hypotheses(); ++i) written[params.slots[i]] = params.lengths[i];
  for (int64_t i = 0; i < call.hypotheses(); ++i) {
    const int64_t* held = params.position_slots + i * params.position_slots_stride;
    for (int64_t j = 0; j < params.lengths[i]; ++j) {
      FASTMHA_CHECK(held[j] >= 0 && held[j] < slots, kOp, ": position_slots must lie in 0 .. ", slots - 1,
                    ", got ", held[j], " for position ", j, " of hypothesis ", i);
      FASTMHA_CHECK(j < written[held[j]], kOp, ": position ", j, " of hypothesis ", i, " lies in slot ",
                    held[j], ", which the call writes to from position ", written[held[j]], " on");
    }
  }
}

// Slots, lengths and rows of the memory against what every block has room for.
void check_places(const Call& call) {
  const DecoderStepParams& params = call.params;
  int64_t slots = INT64_MAX, capacity = INT64_MAX, rows = INT64_MAX;
  for (int64_t i = 0; i < call.count; ++i) {
    const DecoderBlock& block = call.blocks[i];
    slots = std::min({slots, block.key.shape[0], block.value.shape[0]});
    capacity = std::min({capacity, block.key.shape[2], block.value.shape[2]});
    rows = std::min({rows, block.memory_key.shape[1], block.memory_value.shape[1]});
  }
  FASTMHA_CHECK(call.hypotheses() <= slots, kOp, ": ", call.hypotheses(),
                " hypotheses need as many slots, got ", slots);
  std::vector<bool> used(static_cast<size_t>(slots));
  for (int64_t i = 0; i < call.hypotheses(); ++i) {
    const int64_t slot = params.slots[i], held = params.lengths[i], added = call.new_length(i);
    FASTMHA_CHECK(slot >= 0 && slot < slots && !used[slot], kOp, ": slots must differ and lie in 0 .. ",
                  slots - 1, ", got ", slot, " for hypothesis ", i);
    used[slot] = true;
    FASTMHA_CHECK(added >= 0 && added <= call.length(), kOp, ": new_lengths must be from 0 to ",
                  call.length(), ", got ", added, " for hypothesis ", i);
    FASTMHA_CHECK(held >= 0 && held <= capacity && added <= capacity - held, kOp,
                  ": the cache is full: hypothesis ", i, " holds ", held, " of ", capacity, " positions and ",
                  added, " more were to be appended; make it with a larger capacity");
  }
  if (params.position_slots != nullptr) check_position_slots(call, slots);
  for (int64_t n = 0; n < params.sources; ++n) {
    const int64_t start = params.memory_starts[n], length = params.memory_lengths[n];
    FASTMHA_CHECK(start >= 0 && length >= 0 && start <= rows && length <= rows - start, kOp, ": source ", n,
                  " has ", length, " rows from ", start, " on, of a memory of ", rows);
  }
}

void check(const Call& call) {
  const DecoderStepParams& params = call.params;
  check_rows(kOp, "x", call.x);
  FASTMHA_CHECK(params.sources >= 0 && params.beam_size >= 1, kOp,
                ": sources must be 0 or more and beam_size at least 1, got ", params.sources, " and ",
                params.beam_size);
  FASTMHA_CHECK(params.sources <= INT64_MAX / params.beam_size, kOp, ": ", params.sources, " sources of ",
                params.beam_size, " hypotheses are more than can be counted");
  FASTMHA_CHECK(call.count >= 1, kOp, ": at least one block is needed");
  const int64_t hypotheses = call.hypotheses();
  FASTMHA_CHECK(hypotheses == 0 ? call.x.shape[0] == 0 : call.x.shape[0] % hypotheses == 0, kOp, ": ",
                call.x.shape[0], " rows of x are not as many for each of ", hypotheses, " hypotheses");
  for (int64_t i = 0; i < call.count; ++i) {
    const DecoderBlock& block = call.blocks[i];
    check_block(block, call.features());
    const LinearLayer last = held_by(*block.linear2);
    check_sublayer(kOp, call.x, call.out, last, "linear2", {}, {}, {});
    for (int place = 0; place < 3; ++place) {
      check_norm(kOp, kNormNames[place], block.norms[place], call.features(), call.out);
    }
    check_scores(block);
    FASTMHA_CHECK(params.relative_bias.empty() || block.heads == call.blocks[0].heads, kOp,
                  ": blocks that share a relative_bias must have as many heads, got ", call.blocks[0].heads,
                  " and ", block.heads);
  }
  check_norm(kOp, "norm", params.norm, call.features(), call.out);
  check_places(call);
}

// Here for the whole call: the sources of a later part must not be refused when those before are computed.
AttentionPlan check_relative_bias(const Call& call) {
  AttentionPlan plan = check_scores(call.blocks[0]);
  int64_t held = 0, added = 0;
  for (int64_t i = 0; i < call.hypotheses(); ++i) {
    held = std::max(held, call.params.lengths[i]);
    added = std::max(added, call.new_length(i));
  }
  set_relative_bias(kOp, call.params.relative_bias, 1 - added, held + call.length() - 1, plan);
  return plan;
}

}  // namespace

void decoder_step(const DecoderBlock* blocks, int64_t count, const ConstView& x, const MutableView& out,
                  const DecoderStepParams& params) {
  Call call{blocks, count, x, out, params, {}};
  check(call);
  call.biased = check_relative_bias(call);
  if (x.shape[0] != 0) run(call);
}

}  // namespace fastmha
