// The sub-layers against the operations that they are made of: bit for bit the same, whatever the shape, the
// number of threads and the way the work is shared out. On the instruction set in use.
#include "test.h"

#include <algorithm>
#include <numeric>

#include "fastmha/fastmha.h"
#include "src/isa.h"

namespace fastmha {
namespace {

using test::Random;

// Wide enough that the larger calls use several threads.
constexpr int64_t kWidth = 64, kHidden = 600;  // more than the columns of a gate that go together

struct Layer {
  std::vector<float> weight, bias;
  PackedLinear packed;

  Layer(Random& random, int64_t in, int64_t out, bool with_bias, Activation activation = Activation::kNone)
      : weight(random.normals(in * out)),
        bias(random.normals(out)),
        packed({weight.data(), {out, in}}, with_bias ? ConstView(bias.data(), {out}) : ConstView{},
               activation) {}
};

struct Norm {
  std::vector<float> weight, bias;

  Norm(Random& random, int64_t features) : weight(random.normals(features)), bias(random.normals(features)) {}
  SublayerNorm view(bool with_bias) const {
    const auto features = static_cast<int64_t>(weight.size());
    return {{weight.data(), {features}}, with_bias ? ConstView(bias.data(), {features}) : ConstView{}, 1e-3f};
  }
  SublayerNorm rms() const {
    SublayerNorm norm = view(false);
    norm.kind = NormKind::kRmsNorm;
    return norm;
  }
};

std::vector<float> normalised(const SublayerNorm& norm, const std::vector<float>& x, int64_t width) {
  if (norm.weight.empty()) return x;
  std::vector<float> out(x.size());
  const auto rows = static_cast<int64_t>(x.size()) / width;
  if (norm.kind == NormKind::kRmsNorm) {
    RmsNormParams params;
    params.eps = norm.eps;
    rms_norm({x.data(), {rows, width}}, norm.weight, {out.data(), {rows, width}}, params);
    return out;
  }
  LayerNormParams params;
  params.bias = norm.bias;
  params.eps = norm.eps;
  layer_norm({x.data(), {rows, width}}, norm.weight, {out.data(), {rows, width}}, params);
  return out;
}

std::vector<float> mapped(const PackedLinear& layer, const std::vector<float>& x,
                          const ConstView& residual = {}) {
  const auto rows = static_cast<int64_t>(x.size()) / layer.in_features();
  std::vector<float> out(static_cast<size_t>(rows * layer.out_features()));
  LinearParams params;
  params.residual = residual;
  linear(layer, {x.data(), {rows, layer.in_features()}}, {out.data(), {rows, layer.out_features()}}, params);
  return out;
}

// What surrounds a sub-layer, by the bits of `flags`.
struct Around {
  SublayerNorm before, after;
  bool residual;

  Around(int flags, const Norm& first, const Norm& second) : residual(flags & 4) {
    if (flags & 1) before = flags & 8 ? first.rms() : first.view(flags & 4);
    if (flags & 2) after = flags & 8 ? second.rms() : second.view(!(flags & 4));
  }
};

class Threads {
 public:
  explicit Threads(int count) : before_(get_num_threads()) { set_num_threads(count); }
  ~Threads() { set_num_threads(before_); }

 private:
  int before_;
};

// ---- attention ---------------------------------------------------------------------------------------------

struct Shape {
  int64_t heads, kv_heads;
  bool is_causal;
  std::vector<int64_t> lengths, memory_lengths;  // the latter empty: self-attention
  bool ragged;
};

std::vector<int64_t> bounds_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> bounds(lengths.size() + 1);
  std::partial_sum(lengths.begin(), lengths.end(), bounds.begin() + 1);
  return bounds;
}

// Heads [first, first + heads) of rows with `width` floats.
ConstView heads_in(const std::vector<float>& rows, int64_t width, int64_t first, int64_t heads, int64_t dim) {
  const auto count = static_cast<int64_t>(rows.size()) / width;
  return ConstView(rows.data() + first * dim, {count, heads, dim}, {width, dim, 1});
}

struct Attention {
  static constexpr int64_t kDim = 20;
  static constexpr float kScale = 0.3f;
  const Shape& shape;
  int64_t width, kv_width;
  bool over_memory;
  Layer in_proj, kv_proj, out_proj;
  Norm norm_before, norm_after;
  std::vector<int64_t> bounds, memory_bounds;
  std::vector<float> x, memory, residual;

  Attention(const Shape& shape_, Random& random, bool bias)
      : shape(shape_),
        width(shape.heads * kDim),
        kv_width(shape.kv_heads * kDim),
        over_memory(!shape.memory_lengths.empty()),
        in_proj(random, kWidth, over_memory ? width : width + 2 * kv_width, bias),
        kv_proj(random, kWidth + 1, 2 * kv_width, bias),
        out_proj(random, width, kWidth + 2, bias),
        norm_before(random, kWidth),
        norm_after(random, kWidth + 2),
        bounds(bounds_of(shape.lengths)),
        memory_bounds(bounds_of(over_memory ? shape.memory_lengths : shape.lengths)),
        x(random.normals(bounds.back() * kWidth)),
        memory(random.normals(memory_bounds.back() * (kWidth + 1))),
        residual(random.normals(bounds.back() * (kWidth + 2))) {}

  int64_t rows() const { return bounds.back(); }
  ConstView residual_view(const Around& around) const {
    return around.residual ? ConstView(residual.data(), {rows(), kWidth + 2}) : ConstView{};
  }

  std::vector<float> composed(const Around& around) const {
    const std::vector<float> projected = mapped(in_proj.packed, normalised(around.before, x, kWidth));
    const std::vector<float> kv = over_memory ? mapped(kv_proj.packed, memory) : std::vector<float>{};
    const std::vector<float>& keys = over_memory ? kv : projected;
    const int64_t projected_width = over_memory ? width : width + 2 * kv_width;
    const int64_t keys_width = over_memory ? 2 * kv_width : projected_width;
    const int64_t first = over_memory ? 0 : shape.heads;
    std::vector<float> attended(static_cast<size_t>(rows() * width));
    AttentionParams params;
    params.is_causal = shape.is_causal;
    params.scale = kScale;
    varlen_attention(heads_in(projected, projected_width, 0, shape.heads, kDim),
                     heads_in(keys, keys_width, first, shape.kv_heads, kDim),
                     heads_in(keys, keys_width, first + shape.kv_heads, shape.kv_heads, kDim), bounds.data(),
                     memory_bounds.data(), static_cast<int64_t>(shape.lengths.size()),
                     MutableView(attended.data(), {rows(), shape.heads, kDim}), params);
    return normalised(around.after, mapped(out_proj.packed, attended, residual_view(around)), kWidth + 2);
  }

  std::vector<float> fused(const Around& around) const {
    MultiHeadAttentionParams params;
    params.heads = shape.heads;
    params.kv_heads = shape.kv_heads;
    params.is_causal = shape.is_causal;
    params.scale = kScale;
    params.sequences = static_cast<int64_t>(shape.lengths.size());
    if (shape.ragged) {
      params.cu_seqlens = bounds.data();
      if (over_memory) params.cu_seqlens_memory = memory_bounds.data();
    }
    params.norm_before = around.before;
    params.norm_after = around.after;
    params.residual = residual_view(around);
    std::vector<float> out(static_cast<size_t>(rows() * (kWidth + 2)));
    const ConstView input(x.data(), {rows(), kWidth});
    const MutableView output(out.data(), {rows(), kWidth + 2});
    if (over_memory) {
      multi_head_attention(in_proj.packed, kv_proj.packed, out_proj.packed, input,
                           {memory.data(), {memory_bounds.back(), kWidth + 1}}, output, params);
    } else {
      multi_head_attention(in_proj.packed, out_proj.packed, input, output, params);
    }
    return out;
  }
};

const std::vector<Shape> kShapes = {
    {2, 2, false, std::vector<int64_t>(300, 5), {}, false},  // slices of many sequences
    {2, 1, true, std::vector<int64_t>(60, 17), {}, false},
    {4, 2, true, {150}, {}, false},                          // one sequence: its steps are shared
    {2, 2, false, std::vector<int64_t>(400, 1), {}, false},  // single queries: the decode kernels
    {2, 2, true, {5, 0, 130, 1, 1, 1, 40, 0, 0, 7, 33, 64, 1, 90, 2, 300}, {}, true},
    {2, 2, false, {1, 1, 1, 0, 1}, {}, true},
    {2, 2, false, std::vector<int64_t>(200, 5), std::vector<int64_t>(200, 9), false},
    {4, 1, false, std::vector<int64_t>(50, 1), std::vector<int64_t>(50, 21), false},
    {2, 2, false, {3, 0, 5, 120, 1, 60, 2}, {10, 7, 0, 4, 200, 0, 90}, true},
};

// ---- decoder step ------------------------------------------------------------------------------------------

// A decoder block with what it holds of its hypotheses and of the memory.
struct Decoding {
  static constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 12, kSlots = 7, kCapacity = 300, kRows = 60;
  static constexpr int64_t kQueries = kHeads * kDim, kKeys = kKvHeads * kDim;
  Layer in_proj, out_proj, q_proj, memory_out, linear1, linear2, gate;
  std::vector<Norm> norms;
  std::vector<float> key, value, memory_key, memory_value;

  explicit Decoding(Random& random)
      : in_proj(random, kWidth, kQueries + 2 * kKeys, true),
        out_proj(random, kQueries, kWidth, true),
        q_proj(random, kWidth, kQueries, true),
        memory_out(random, kQueries, kWidth, true),
        linear1(random, kWidth, kHidden, true, Activation::kGelu),
        linear2(random, kHidden, kWidth, true),
        gate(random, kWidth, kHidden, false),
        key(random.normals(kSlots * kCapacity * kKeys)),
        value(random.normals(kSlots * kCapacity * kKeys)),
        memory_key(random.normals(kRows * kKeys)),
        memory_value(random.normals(kRows * kKeys)) {
    for (int i = 0; i < 3; ++i) norms.emplace_back(random, kWidth);
  }

  DecoderBlock block(int flags) {
    DecoderBlock block;
    block.in_proj = &in_proj.packed;
    block.out_proj = &out_proj.packed;
    block.memory_q_proj = &q_proj.packed;
    block.memory_out_proj = &memory_out.packed;
    block.linear1 = &linear1.packed;
    block.linear2 = &linear2.packed;
    block.gate = flags & 2 ? &gate.packed : nullptr;
    block.heads = kHeads;
    block.kv_heads = kKvHeads;
    if (flags & 2) block.scale = 0.2f;
    block.norm_first = flags & 1;
    for (int i = 0; i < 3; ++i) block.norms[i] = flags & 2 ? norms[i].rms() : norms[i].view(true);
    block.key = {key.data(), {kSlots, kKvHeads, kCapacity, kDim}};
    block.value = {value.data(), {kSlots, kKvHeads, kCapacity, kDim}};
    block.memory_key = {memory_key.data(), {kKvHeads, kRows, kDim}};
    block.memory_value = {memory_value.data(), {kKvHeads, kRows, kDim}};
    return block;
  }
};

// One query of all heads, in rows of `width` floats, over `count` keys of one slot or source.
void attend_one(const float* query, const float* key, const float* value, int64_t head_stride, int64_t count,
                const AttentionParams& params, float* out) {
  using D = Decoding;
  const auto keys = [&](const float* half) {
    return ConstView(half, {1, D::kKvHeads, count, D::kDim}, {0, head_stride, D::kDim, 1});
  };
  scaled_dot_product_attention({query, {1, D::kHeads, 1, D::kDim}}, keys(key), keys(value),
                               {out, {1, D::kHeads, 1, D::kDim}}, params);
}

// One position of every hypothesis through a block, by the public operations; writes its keys and values.
std::vector<float> composed_step(Decoding& d, int flags, const DecoderStepParams& params,
                                 std::vector<float> x) {
  using D = Decoding;
  const DecoderBlock block = d.block(flags);
  const int64_t hypotheses = params.sources * params.beam_size;
  const auto around = [&](int place, auto&& sublayer) {
    const ConstView residual(x.data(), {hypotheses, kWidth});
    if (block.norm_first) return sublayer(normalised(block.norms[place], x, kWidth), residual);
    return normalised(block.norms[place], sublayer(x, residual), kWidth);
  };
  AttentionParams scores;
  scores.scale = block.scale;
  x = around(0, [&](const std::vector<float>& input, const ConstView& residual) {
    const std::vector<float> rows = mapped(d.in_proj.packed, input);
    std::vector<float> attended(static_cast<size_t>(hypotheses * D::kQueries));
    AttentionParams own = scores;
    own.relative_bias = params.relative_bias;
    for (int64_t i = 0; i < hypotheses; ++i) {
      const float* row = rows.data() + i * (D::kQueries + 2 * D::kKeys);
      const int64_t slot = params.slots[i] * D::kKvHeads * D::kCapacity * D::kDim, held = params.lengths[i];
      for (int64_t h = 0; h < D::kKvHeads; ++h) {
        const int64_t at = slot + (h * D::kCapacity + held) * D::kDim;
        std::copy_n(row + D::kQueries + h * D::kDim, D::kDim, d.key.begin() + at);
        std::copy_n(row + D::kQueries + D::kKeys + h * D::kDim, D::kDim, d.value.begin() + at);
      }
      own.query_offset = held;
      attend_one(row, d.key.data() + slot, d.value.data() + slot, D::kCapacity * D::kDim, held + 1, own,
                 attended.data() + i * D::kQueries);
    }
    return mapped(d.out_proj.packed, attended, residual);
  });
  x = around(1, [&](const std::vector<float>& input, const ConstView& residual) {
    const std::vector<float> rows = mapped(d.q_proj.packed, input);
    std::vector<float> attended(rows.size());
    for (int64_t i = 0; i < hypotheses; ++i) {
      const int64_t source = i / params.beam_size, first = params.memory_starts[source] * D::kDim;
      attend_one(rows.data() + i * D::kQueries, d.memory_key.data() + first, d.memory_value.data() + first,
                 D::kRows * D::kDim, params.memory_lengths[source], scores,
                 attended.data() + i * D::kQueries);
    }
    return mapped(d.memory_out.packed, attended, residual);
  });
  return around(2, [&](const std::vector<float>& input, const ConstView& residual) {
    std::vector<float> hidden = mapped(d.linear1.packed, input);
    if (block.gate != nullptr) {
      const std::vector<float> factors = mapped(d.gate.packed, input);
      for (size_t i = 0; i < hidden.size(); ++i) hidden[i] *= factors[i];
    }
    return mapped(d.linear2.packed, hidden, residual);
  });
}

}  // namespace

TEST(decoder_step_is_that_of_its_parts) {
  const int64_t slots[] = {5, 0, 3, 6, 1, 2}, lengths[] = {0, 1, 17, 255, 256, 290};
  const int64_t starts[] = {40, 3, 10}, memory_lengths[] = {20, 1, 0};
  for (const int64_t sources : {1, 2, 3}) {
    for (const int64_t beam_size : {1, 2}) {
      for (int flags = 0; flags < 4; ++flags) {
        for (const int threads : {1, 2, 5}) {
          const Threads set(threads);
          Random random(7);
          std::vector<Decoding> blocks;
          blocks.reserve(2);
          for (int i = 0; i < 2; ++i) blocks.emplace_back(random);
          const Norm last(random, kWidth);
          const std::vector<float> bias = random.normals(Decoding::kHeads * 9);
          const int64_t hypotheses = sources * beam_size;
          const std::vector<float> x = random.normals(hypotheses * kWidth);
          DecoderStepParams params;
          params.sources = sources;
          params.beam_size = beam_size;
          params.slots = slots;
          params.lengths = lengths;
          params.memory_starts = starts;
          params.memory_lengths = memory_lengths;
          if (flags & 2) params.relative_bias = {bias.data(), {Decoding::kHeads, 9}};
          if (flags & 1) params.norm = last.view(true);

          std::vector<DecoderBlock> given;
          for (Decoding& block : blocks) given.push_back(block.block(flags));
          std::vector<float> got(x.size());
          decoder_step(given.data(), 2, {x.data(), {hypotheses, kWidth}}, {got.data(), {hypotheses, kWidth}},
                       params);
          std::vector<std::vector<float>> keys, values;
          std::vector<float> expected = x;
          for (Decoding& block : blocks) {
            keys.push_back(block.key);
            values.push_back(block.value);
            for (int64_t i = 0; i < hypotheses; ++i) {  // the reference has to write it again
              for (int64_t h = 0; h < Decoding::kKvHeads; ++h) {
                const int64_t row = (slots[i] * Decoding::kKvHeads + h) * Decoding::kCapacity + lengths[i];
                std::fill_n(block.key.begin() + row * Decoding::kDim, Decoding::kDim, 0.0f);
                std::fill_n(block.value.begin() + row * Decoding::kDim, Decoding::kDim, 0.0f);
              }
            }
            expected = composed_step(block, flags, params, expected);
          }
          expected = normalised(params.norm, expected, kWidth);
          const auto what = [&] { return concat(sources, " sources, ", beam_size, " beams, flags ", flags); };
          CHECK(std::equal(got.begin(), got.end(), expected.begin(), test::same_bits), what());
          for (int i = 0; i < 2; ++i) CHECK(blocks[i].key == keys[i] && blocks[i].value == values[i], what());
        }
      }
    }
  }
}

TEST(positions_of_a_hypothesis_may_lie_in_many_slots) {
  using D = Decoding;
  const int64_t slots[] = {5, 0, 3, 6}, lengths[] = {30, 30, 290, 17};
  const int64_t starts[] = {40, 3}, memory_lengths[] = {20, 5};
  for (const int64_t length : {1, 3}) {
    for (const int threads : {1, 2, 5}) {
      const Threads set(threads);
      Random random(9), again(9);
      Decoding scattered(random), own(again);
      std::vector<int64_t> held(4 * 300);
      for (int64_t i = 0; i < 4; ++i) {
        for (int64_t j = 0; j < lengths[i]; ++j) {
          // Those that no hypothesis writes to in this call, and now and then its own.
          const int64_t others[] = {1, 2, 4, slots[i]};
          const int64_t slot = held[i * 300 + j] = others[(j * 7 + i) % 4];
          for (int64_t h = 0; h < D::kKvHeads; ++h) {
            const auto row = [&](int64_t s) { return ((s * D::kKvHeads + h) * D::kCapacity + j) * D::kDim; };
            std::copy_n(scattered.key.begin() + row(slot), D::kDim, own.key.begin() + row(slots[i]));
            std::copy_n(scattered.value.begin() + row(slot), D::kDim, own.value.begin() + row(slots[i]));
          }
        }
      }
      const std::vector<float> x = random.normals(4 * length * kWidth);
      DecoderStepParams params;
      params.sources = 2;
      params.beam_size = 2;
      params.slots = slots;
      params.lengths = lengths;
      params.memory_starts = starts;
      params.memory_lengths = memory_lengths;
      const auto step = [&](Decoding& decoding) {
        const DecoderBlock block = decoding.block(1);
        std::vector<float> out(x.size());
        decoder_step(&block, 1, {x.data(), {4 * length, kWidth}}, {out.data(), {4 * length, kWidth}}, params);
        return out;
      };
      const std::vector<float> expected = step(own);
      params.position_slots = held.data();
      params.position_slots_stride = 300;
      const std::vector<float> got = step(scattered);
      CHECK(std::equal(got.begin(), got.end(), expected.begin(), test::same_bits), length, " positions, ",
            threads, " threads");
    }
  }
}

TEST(decoder_step_errors) {
  Random random(8);
  Decoding decoding(random);
  std::vector<float> x = random.normals(2 * kWidth), out(x.size());
  const auto step = [&](auto change) {
    int64_t slots[] = {0, 1}, lengths[] = {0, 4}, added[] = {1, 1}, start = 0, memory_length = 5;
    DecoderBlock block = decoding.block(0);
    DecoderStepParams params;
    params.sources = 1;
    params.beam_size = 2;
    params.slots = slots;
    params.lengths = lengths;
    params.new_lengths = added;
    params.memory_starts = &start;
    params.memory_lengths = &memory_length;
    change(block, params, slots, lengths, added, start);
    decoder_step(&block, 1, {x.data(), {2, kWidth}}, {out.data(), {2, kWidth}}, params);
  };
  const auto fails = [&](auto change, const char* message) { CHECK_THROWS(step(change), message); };
  fails([](auto& b, auto&...) { b.linear2 = nullptr; }, "a block needs all its maps");
  fails([](auto& b, auto&...) { b.gate = b.out_proj; }, "gate must be 64 -> 600, got 48 -> 64");
  fails([](auto& b, auto&...) { b.kv_heads = 3; }, "heads (4) must be a multiple of kv_heads (3)");
  fails([](auto& b, auto&...) { b.key.shape[1] = 1; }, "key must be (slots, 2, any, 12)");
  fails([](auto&, auto& p, auto&...) { p.beam_size = 3; }, "2 rows of x are not as many for each of 3");
  fails([](auto&, auto&, auto& slots, auto&...) { slots[1] = 0; }, "slots must differ");
  fails([](auto&, auto&, auto& slots, auto&...) { slots[1] = 7; }, "slots must differ and lie in 0 .. 6");
  fails([](auto&, auto&, auto&, auto& lengths, auto&...) { lengths[1] = 300; },
        "the cache is full: hypothesis 1 holds 300 of 300 positions");
  fails([](auto&, auto&, auto&, auto&, auto& added, auto&...) { added[0] = 2; },
        "new_lengths must be from 0 to 1");
  fails([](auto&, auto&, auto&, auto&, auto&, auto& start) { start = 56; },
        "source 0 has 5 rows from 56 on, of a memory of 60");

  const int64_t own[] = {0, 0, 0, 0, 1, 1, 1, 1}, shared[] = {0, 0, 0, 0, 1, 1, 1, 0};
  const int64_t outside[] = {0, 0, 0, 0, 1, 1, 1, 7};
  const auto held = [&](const int64_t* slots, int64_t length) {
    return [=](auto&, auto& p, auto&, auto& lengths, auto&...) {
      p.position_slots = slots;
      p.position_slots_stride = 4;
      lengths[0] = length;
    };
  };
  step(held(own, 0));
  step(held(shared, 4));
  fails(held(outside, 0), "position_slots must lie in 0 .. 6, got 7 for position 3 of hypothesis 1");
  fails(held(shared, 3),
        "position 3 of hypothesis 1 lies in slot 0, which the call writes to from position 3 on");
}

TEST(attention_is_that_of_its_parts) {
  uint32_t seed = 1;
  for (const Shape& shape : kShapes) {
    for (const bool bias : {true, false}) {
      Random random(seed++);
      const Attention attention(shape, random, bias);
      for (int flags = 0; flags < 12; ++flags) {
        const Around around(flags, attention.norm_before, attention.norm_after);
        const std::vector<float> expected = attention.composed(around);
        for (const int threads : {1, 2, 5}) {
          const Threads set(threads);
          const std::vector<float> got = attention.fused(around);
          CHECK(std::equal(got.begin(), got.end(), expected.begin(), test::same_bits), "shape ",
                &shape - kShapes.data(), " flags ", flags, " threads ", threads);
        }
      }
    }
  }
}

TEST(feed_forward_is_that_of_its_parts) {
  const int64_t mr = active_isa().gemm->mr;
  uint32_t seed = 1;
  for (const int64_t rows : {int64_t{0}, int64_t{1}, mr - 1, 2 * mr, 4 * mr + 1, int64_t{700}}) {
    for (const bool bias : {true, false}) {
      Random random(seed++);
      const Layer linear1(random, kWidth, kHidden, bias, Activation::kGelu);
      const Layer linear2(random, kHidden, kWidth, bias), gate(random, kWidth, kHidden, bias);
      const Norm first(random, kWidth), second(random, kWidth);
      const std::vector<float> x = random.normals(rows * kWidth), added = random.normals(rows * kWidth);
      for (int flags = 0; flags < 12; ++flags) {
        const Around around(flags, first, second);
        const ConstView residual = around.residual ? ConstView(added.data(), {rows, kWidth}) : ConstView{};
        const bool gated = flags >= 8;
        const std::vector<float> input = normalised(around.before, x, kWidth);
        std::vector<float> hidden = mapped(linear1.packed, input);
        if (gated) {
          const std::vector<float> factors = mapped(gate.packed, input);
          for (size_t i = 0; i < hidden.size(); ++i) hidden[i] *= factors[i];
        }
        const std::vector<float> expected =
            normalised(around.after, mapped(linear2.packed, hidden, residual), kWidth);
        for (const int threads : {1, 2, 5}) {
          const Threads set(threads);
          const FeedForwardParams params{around.before, around.after, residual,
                                         gated ? &gate.packed : nullptr};
          std::vector<float> got(x.size());
          feed_forward(linear1.packed, linear2.packed, {x.data(), {rows, kWidth}},
                       {got.data(), {rows, kWidth}}, params);
          CHECK(std::equal(got.begin(), got.end(), expected.begin(), test::same_bits), rows, " rows, flags ",
                flags, ", ", threads, " threads");
        }
      }
    }
  }
}

TEST(in_place) {
  Random random(3);
  constexpr int64_t kRows = 500;
  const Layer linear1(random, kWidth, kHidden, true), linear2(random, kHidden, kWidth, true);
  const Layer in_proj(random, kWidth, 3 * kWidth, true), out_proj(random, kWidth, kWidth, true);
  const Norm norm(random, kWidth);
  std::vector<float> x = random.normals(kRows * kWidth), out(x.size());
  const MutableView in_place(x.data(), {kRows, kWidth}), elsewhere(out.data(), {kRows, kWidth});
  for (const int64_t sequences : {1, 100}) {
    MultiHeadAttentionParams params;
    params.heads = 4;
    params.sequences = sequences;
    params.residual = in_place;
    params.norm_after = norm.view(true);
    multi_head_attention(in_proj.packed, out_proj.packed, in_place, elsewhere, params);
    multi_head_attention(in_proj.packed, out_proj.packed, in_place, in_place, params);
    CHECK(x == out, sequences, " sequences");
  }
  const FeedForwardParams params{norm.view(true), norm.view(false), in_place};
  feed_forward(linear1.packed, linear2.packed, in_place, elsewhere, params);
  feed_forward(linear1.packed, linear2.packed, in_place, in_place, params);
  CHECK(x == out);
}

// The rows of a longer matrix, gaps between them.
TEST(strides) {
  Random random(4);
  constexpr int64_t kRows = 300, kGap = 5;
  const Layer linear1(random, kWidth, kHidden, true), linear2(random, kHidden, kWidth, true);
  const std::vector<float> x = random.normals(kRows * kWidth);
  std::vector<float> wide(kRows * (kWidth + kGap), test::kNan), got(wide.size(), 7.0f), expected(x.size());
  for (int64_t row = 0; row < kRows; ++row) {
    std::copy_n(&x[row * kWidth], kWidth, &wide[row * (kWidth + kGap)]);
  }
  const ConstView input(wide.data(), {kRows, kWidth}, {kWidth + kGap, 1});
  feed_forward(linear1.packed, linear2.packed, input, {got.data(), {kRows, kWidth}, {kWidth + kGap, 1}},
               {{}, {}, input});
  feed_forward(linear1.packed, linear2.packed, {x.data(), {kRows, kWidth}},
               {expected.data(), {kRows, kWidth}}, {{}, {}, {x.data(), {kRows, kWidth}}});
  for (int64_t row = 0; row < kRows; ++row) {
    const float* line = &got[row * (kWidth + kGap)];
    CHECK(std::equal(line, line + kWidth, &expected[row * kWidth]), "row ", row);
    CHECK(std::all_of(line + kWidth, line + kWidth + kGap, [](float v) { return v == 7.0f; }), "past row ",
          row);
  }
}

TEST(key_lengths) {
  Random random(5);
  constexpr int64_t kSequences = 90, kLength = 7;
  const Layer in_proj(random, kWidth, 3 * kWidth, true), out_proj(random, kWidth, kWidth, true);
  std::vector<float> x = random.normals(kSequences * kLength * kWidth), padded(x.size());
  std::vector<int64_t> lengths(kSequences);
  for (int64_t n = 0; n < kSequences; ++n) lengths[n] = n % (kLength + 1);
  MultiHeadAttentionParams params;
  params.heads = 2;
  params.sequences = kSequences;
  params.key_lengths = lengths.data();
  const int64_t rows = kSequences * kLength;
  multi_head_attention(in_proj.packed, out_proj.packed, {x.data(), {rows, kWidth}},
                       {padded.data(), {rows, kWidth}}, params);
  for (int64_t n = 0; n < kSequences; ++n) {
    const int64_t length = lengths[n], at = n * kLength * kWidth;
    if (length < 2) continue;  // a call of its own with a single query may round differently
    std::vector<float> alone(static_cast<size_t>(length * kWidth));
    MultiHeadAttentionParams one;
    one.heads = 2;
    multi_head_attention(in_proj.packed, out_proj.packed, {x.data() + at, {length, kWidth}},
                         {alone.data(), {length, kWidth}}, one);
    CHECK(std::equal(alone.begin(), alone.end(), padded.begin() + at, test::same_bits), "sequence ", n);
  }
}

// ---- encoder blocks ----------------------------------------------------------------------------------------

TEST(encoder_blocks_are_their_sublayers) {
  Random random(9);
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 12, kQueries = kHeads * kDim;
  const Layer in_proj(random, kWidth, kQueries + 2 * kKvHeads * kDim, true),
      out_proj(random, kQueries, kWidth, true), linear1(random, kWidth, kHidden, true, Activation::kGelu),
      linear2(random, kHidden, kWidth, true), gate(random, kWidth, kHidden, false);
  const Norm first(random, kWidth), second(random, kWidth), last(random, kWidth);
  const std::vector<float> bias = random.normals(kHeads * 19);
  for (const std::vector<int64_t>& lengths :
       {std::vector<int64_t>{2}, {5}, {14, 15}, {1, 0, 3, 70}, {130}, std::vector<int64_t>(20, 6)}) {
    const std::vector<int64_t> bounds = bounds_of(lengths);
    const int64_t rows = bounds.back();
    const std::vector<float> x = random.normals(rows * kWidth);
    for (int flags = 0; flags < 8; ++flags) {
      EncoderBlock block;
      block.in_proj = &in_proj.packed;
      block.out_proj = &out_proj.packed;
      block.linear1 = &linear1.packed;
      block.linear2 = &linear2.packed;
      block.gate = flags & 2 ? &gate.packed : nullptr;
      block.heads = kHeads;
      block.kv_heads = kKvHeads;
      block.norm_first = flags & 1;
      block.norms[0] = flags & 2 ? first.rms() : first.view(true);
      block.norms[1] = flags & 2 ? second.rms() : second.view(true);
      const ConstView relative = flags & 4 ? ConstView(bias.data(), {kHeads, 19}) : ConstView{};

      std::vector<float> expected = x;
      const auto view = [&](std::vector<float>& data) { return MutableView(data.data(), {rows, kWidth}); };
      for (int repeat = 0; repeat < 2; ++repeat) {
        const std::vector<float> input = expected;
        MultiHeadAttentionParams attention;
        attention.heads = kHeads;
        attention.kv_heads = kKvHeads;
        attention.sequences = static_cast<int64_t>(lengths.size());
        attention.cu_seqlens = bounds.data();
        attention.relative_bias = relative;
        attention.residual = {input.data(), {rows, kWidth}};
        (block.norm_first ? attention.norm_before : attention.norm_after) = block.norms[0];
        multi_head_attention(in_proj.packed, out_proj.packed, {input.data(), {rows, kWidth}}, view(expected),
                             attention);
        const std::vector<float> between = expected;
        FeedForwardParams feed;
        feed.gate = block.gate;
        feed.residual = {between.data(), {rows, kWidth}};
        (block.norm_first ? feed.norm_before : feed.norm_after) = block.norms[1];
        feed_forward(linear1.packed, linear2.packed, {between.data(), {rows, kWidth}}, view(expected), feed);
      }
      expected = normalised(last.view(true), expected, kWidth);

      const EncoderBlock both[] = {block, block};
      EncoderBlocksParams params;
      params.sequences = static_cast<int64_t>(lengths.size());
      params.cu_seqlens = bounds.data();
      params.relative_bias = relative;
      params.norm = last.view(true);
      for (int threads : {1, 2, 3}) {
        const Threads with(threads);
        std::vector<float> out = x;  // in place
        encoder_blocks(both, 2, {out.data(), {rows, kWidth}}, view(out), params);
        CHECK(out == expected);
        if (lengths.size() > 1 &&
            std::adjacent_find(lengths.begin(), lengths.end(), std::not_equal_to<>()) == lengths.end()) {
          EncoderBlocksParams equal = params;
          equal.cu_seqlens = nullptr;
          std::vector<float> again(x.size());
          encoder_blocks(both, 2, {x.data(), {rows, kWidth}}, view(again), equal);
          CHECK(again == expected);
        }
      }
    }
  }
}

// ---- decoder blocks ----------------------------------------------------------------------------------------

TEST(decoder_blocks_are_their_sublayers) {
  Random random(10);
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 12, kQueries = kHeads * kDim;
  constexpr int64_t kMemoryWidth = 40, kMemoryDim = 20, kMemoryQueries = kHeads * kMemoryDim;
  const Layer in_proj(random, kWidth, kQueries + 2 * kKvHeads * kDim, true),
      out_proj(random, kQueries, kWidth, true), q_proj(random, kWidth, kMemoryQueries, true),
      kv_proj(random, kMemoryWidth, 2 * kKvHeads * kMemoryDim, true),
      memory_out(random, kMemoryQueries, kWidth, false),
      linear1(random, kWidth, kHidden, true, Activation::kGelu), linear2(random, kHidden, kWidth, true),
      gate(random, kWidth, kHidden, false);
  const Norm norms[] = {{random, kWidth}, {random, kWidth}, {random, kWidth}}, last(random, kWidth);
  const std::vector<float> bias = random.normals(kHeads * 19);
  const struct {
    std::vector<int64_t> lengths, memory_lengths;
  } shapes[] = {{{2}, {1}},           {{5}, {130}},
                {{14, 15}, {15, 14}}, {{1, 0, 3, 70}, {0, 2, 1, 9}},
                {{130}, {5}},         {std::vector<int64_t>(20, 6), std::vector<int64_t>(20, 3)}};
  for (const auto& shape : shapes) {
    const std::vector<int64_t> bounds = bounds_of(shape.lengths),
                               memory_bounds = bounds_of(shape.memory_lengths);
    const int64_t rows = bounds.back(), memory_rows = memory_bounds.back();
    const std::vector<float> x = random.normals(rows * kWidth),
                             memory = random.normals(memory_rows * kMemoryWidth);
    const ConstView source(memory.data(), {memory_rows, kMemoryWidth});
    const auto view = [&](auto& data) { return View(data.data(), {rows, kWidth}); };
    for (int flags = 0; flags < 8; ++flags) {
      DecoderBlock block;
      block.in_proj = &in_proj.packed;
      block.out_proj = &out_proj.packed;
      block.memory_q_proj = &q_proj.packed;
      block.memory_kv_proj = &kv_proj.packed;
      block.memory_out_proj = &memory_out.packed;
      block.linear1 = &linear1.packed;
      block.linear2 = &linear2.packed;
      block.gate = flags & 2 ? &gate.packed : nullptr;
      block.heads = kHeads;
      block.kv_heads = kKvHeads;
      block.norm_first = flags & 1;
      for (int n = 0; n < 3; ++n) block.norms[n] = flags & 2 ? norms[n].rms() : norms[n].view(true);

      DecoderBlocksParams params;
      params.sequences = static_cast<int64_t>(shape.lengths.size());
      params.cu_seqlens = bounds.data();
      params.cu_seqlens_memory = memory_bounds.data();
      if (flags & 4) params.relative_bias = ConstView(bias.data(), {kHeads, 19});
      params.norm = last.view(true);

      std::vector<float> expected = x;
      for (int repeat = 0; repeat < 2; ++repeat) {
        const std::vector<float> input = expected;
        MultiHeadAttentionParams own;
        own.heads = kHeads;
        own.kv_heads = kKvHeads;
        own.sequences = params.sequences;
        own.cu_seqlens = bounds.data();
        own.residual = view(input);
        MultiHeadAttentionParams over = own;
        own.is_causal = true;
        own.relative_bias = params.relative_bias;
        (block.norm_first ? own.norm_before : own.norm_after) = block.norms[0];
        multi_head_attention(in_proj.packed, out_proj.packed, view(input), view(expected), own);
        const std::vector<float> between = expected;
        over.cu_seqlens_memory = memory_bounds.data();
        over.residual = view(between);
        (block.norm_first ? over.norm_before : over.norm_after) = block.norms[1];
        multi_head_attention(q_proj.packed, kv_proj.packed, memory_out.packed, view(between), source,
                             view(expected), over);
        const std::vector<float> attended = expected;
        FeedForwardParams feed;
        feed.gate = block.gate;
        feed.residual = view(attended);
        (block.norm_first ? feed.norm_before : feed.norm_after) = block.norms[2];
        feed_forward(linear1.packed, linear2.packed, view(attended), view(expected), feed);
      }
      expected = normalised(last.view(true), expected, kWidth);

      const DecoderBlock both[] = {block, block};
      for (int threads : {1, 2, 3}) {
        const Threads with(threads);
        std::vector<float> out = x;  // in place
        decoder_blocks(both, 2, view(out), source, view(out), params);
        CHECK(out == expected, rows, " rows, ", memory_rows, " of the memory, flags ", flags, ", ", threads,
              " threads");
        if (shape.lengths.size() == 20) {
          DecoderBlocksParams equal = params;
          equal.cu_seqlens = equal.cu_seqlens_memory = nullptr;
          std::vector<float> again(x.size());
          decoder_blocks(both, 2, view(x), source, view(again), equal);
          CHECK(again == expected);
        }
      }
    }
  }
}

TEST(errors) {
  Random random(6);
  const Layer linear1(random, 8, 12, true), linear2(random, 12, 8, true), in_proj(random, 8, 24, true),
      out_proj(random, 8, 8, true), kv_proj(random, 8, 16, true);
  std::vector<float> numbers(400, 1.0f);
  float* data = numbers.data();
  const ConstView x(data, {6, 8});
  const MutableView out(data + 100, {6, 8});
  const auto feed = [&](const PackedLinear& first, const ConstView& input, const MutableView& result,
                        const FeedForwardParams& params = {}) {
    feed_forward(first, linear2.packed, input, result, params);
  };
  CHECK_THROWS(feed(in_proj.packed, x, out), "linear2 must take the features that linear1 gives, 24");
  CHECK_THROWS(feed(linear1.packed, {data, {6, 7}}, out), "feed_forward: x must have 8 features");
  CHECK_THROWS(feed(linear1.packed, x, {data + 100, {5, 8}}), "out must have shape (6, 8)");
  CHECK_THROWS(feed(linear1.packed, x, {data + 8, {6, 8}}), "out must be x itself");
  CHECK_THROWS(feed(linear1.packed, x, out, {{{data, {7}}, {}}, {}, {}}),
               "norm_before.weight must have shape");
  CHECK_THROWS(feed(linear1.packed, x, out, {{}, {{data, {8}}, {data, {3}}}, {}}), "norm_after.bias");
  CHECK_THROWS(feed(linear1.packed, x, out, {{}, {{data, {8}}, {}, -1.0f}, {}}), "eps must be 0 or more");
  CHECK_THROWS(feed(linear1.packed, x, out, {{}, {}, {data, {2, 8}}}), "residual must have the shape of out");
  CHECK_THROWS(feed(linear1.packed, x, out, {{}, {}, {}, &linear2.packed}),
               "gate must have the shape of linear1, 8 -> 12, got 12 -> 8");
  CHECK_THROWS(feed(linear1.packed, x, out, {{{data, {8}}, {data, {8}}, 1e-6f, NormKind::kRmsNorm}, {}, {}}),
               "norm_before is an RMS norm, which has no bias");

  const auto attend = [&](auto change) {
    MultiHeadAttentionParams params;
    params.heads = 2;
    change(params);
    multi_head_attention(in_proj.packed, out_proj.packed, x, out, params);
  };
  const std::vector<int64_t> falling{0, 4, 3, 6}, lengths{3, 4};
  CHECK_THROWS(attend([](auto& p) { p.heads = 0; }), "heads (0) must be a multiple of kv_heads (0)");
  CHECK_THROWS(attend([](auto& p) { p.heads = 3; }),
               "in_features of out_proj (8) must be a multiple of heads");
  CHECK_THROWS(attend([](auto& p) { p.kv_heads = 1; }), "in_proj must give 16 features");
  CHECK_THROWS(attend([](auto& p) { p.sequences = 4; }), "6 rows are not `sequences` (4)");
  CHECK_THROWS(attend([](auto& p) { p.sequences = -1; }), "sequences must be 0 or more");
  CHECK_THROWS(attend([&](auto& p) { p.sequences = 3, p.cu_seqlens = falling.data(); }), "must not decrease");
  CHECK_THROWS(attend([&](auto& p) { p.sequences = 2, p.key_lengths = lengths.data(); }),
               "key_lengths must be from 0 to 3, got 4");
  MultiHeadAttentionParams params;
  params.heads = 2;
  CHECK_THROWS(multi_head_attention(out_proj.packed, in_proj.packed, out_proj.packed, x, x, out, params),
               "kv_proj must give 16 features");
  CHECK_THROWS(multi_head_attention(out_proj.packed, kv_proj.packed, out_proj.packed, x, out, out, params),
               "out must not overlap memory");

  DecoderBlock block;
  block.in_proj = &in_proj.packed;
  block.out_proj = block.memory_q_proj = block.memory_out_proj = &out_proj.packed;
  block.memory_kv_proj = &kv_proj.packed;
  block.linear1 = &linear1.packed;
  block.linear2 = &linear2.packed;
  const int64_t bounds[] = {0, 2, 6};
  const auto decode = [&](const ConstView& memory, auto change) {
    DecoderBlocksParams few;
    change(few);
    decoder_blocks(&block, 1, x, memory, out, few);
  };
  const auto nothing = [](auto&) {};
  CHECK_THROWS(decode(out, nothing), "decoder_blocks: out must not overlap memory");
  CHECK_THROWS(decode({data, {6, 7}}, nothing), "memory_kv_proj must be 7 -> 16, got 8 -> 16");
  CHECK_THROWS(decode(x, [&](auto& p) { p.sequences = 2, p.cu_seqlens = bounds; }), "set both");
  CHECK_THROWS(decode({data, {5, 8}}, [&](auto& p) { p.sequences = 2; }), "5 rows are not `sequences` (2)");
  CHECK_THROWS(decode(x, [&](auto& p) { p.sequences = 6; }), "two rows or more");
  block.memory_kv_proj = nullptr;
  CHECK_THROWS(decode(x, nothing), "a block needs its memory_kv_proj");
}

}  // namespace fastmha

TEST_MAIN()
