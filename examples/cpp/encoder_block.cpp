// A post-norm Transformer encoder block from fastmha's public C++ operations, as in "Attention Is All You
// Need":
//
//   y   = layer_norm(x + attention(x))
//   out = layer_norm(y + feed_forward(y))
//
// Five calls per block do it: the residual is added by the linear layer that ends each half, the activation
// by the one that opens the feed-forward; and attention reads queries, keys and values where the one
// projection left them, as strided views of its output. No tensor is copied or transposed.
//
// Usage: encoder_block [threads]. Runs a batch of padded sequences, checks that a sequence alone gives the
// same bits as in its batch, and prints the time per call.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <vector>

#include "fastmha/fastmha.h"

namespace {

using fastmha::Activation;
using fastmha::ConstView;
using fastmha::MutableView;
using fastmha::PackedLinear;

struct Config {
  int64_t d_model = 512;
  int64_t heads = 8;
  int64_t d_ff = 2048;
};

// In a real program this comes from a checkpoint. PyTorch's names: self_attn.in_proj_weight, linear1.weight,
// ...
class RandomWeights {
 public:
  // Uniform in +-1 / sqrt(in_features), as torch.nn.Linear starts.
  std::vector<float> linear(int64_t out_features, int64_t in_features) {
    return values(out_features * in_features, 1.0f / std::sqrt(static_cast<float>(in_features)));
  }
  std::vector<float> values(int64_t count, float limit) {
    std::uniform_real_distribution<float> uniform(-limit, limit);
    std::vector<float> result(static_cast<size_t>(count));
    for (float& value : result) value = uniform(engine_);
    return result;
  }

 private:
  std::mt19937 engine_{2017};
};

PackedLinear make_linear(RandomWeights& weights, int64_t in_features, int64_t out_features,
                         Activation activation = Activation::kNone) {
  const std::vector<float> weight = weights.linear(out_features, in_features);
  const std::vector<float> bias = weights.values(out_features, 0.1f);
  // Packs a copy: weight and bias may go.
  return PackedLinear({weight.data(), {out_features, in_features}}, {bias.data(), {out_features}},
                      activation);
}

class EncoderBlock {
 public:
  EncoderBlock(const Config& config, RandomWeights& weights)
      : config_(config),
        in_proj_(make_linear(weights, config.d_model, 3 * config.d_model)),
        out_proj_(make_linear(weights, config.d_model, config.d_model)),
        linear1_(make_linear(weights, config.d_model, config.d_ff, Activation::kGelu)),
        linear2_(make_linear(weights, config.d_ff, config.d_model)),
        norm_weight_(static_cast<size_t>(config.d_model), 1.0f),
        norm_bias_(static_cast<size_t>(config.d_model), 0.0f) {}

  // x and out (batch, length, d_model), row-major; of sequence n the first lengths[n] tokens exist.
  void run(const float* x, float* out, int64_t batch, int64_t length, const int64_t* lengths) {
    const int64_t rows = batch * length;
    const int64_t d = config_.d_model;
    qkv_.resize(static_cast<size_t>(rows * 3 * d));
    attended_.resize(static_cast<size_t>(rows * d));
    hidden_.resize(static_cast<size_t>(rows * config_.d_ff));
    const ConstView input(x, {rows, d});
    const MutableView output(out, {rows, d});
    const MutableView attended(attended_.data(), {rows, d});
    const MutableView hidden(hidden_.data(), {rows, config_.d_ff});

    fastmha::linear(in_proj_, input, {qkv_.data(), {rows, 3 * d}});  // (rows, 3 d_model)
    attend(batch, length, lengths);                                  // (rows, d_model)
    fastmha::linear(out_proj_, attended, output, residual(input));   // x + attention
    normalise(output);                                               // y
    fastmha::linear(linear1_, output, hidden);                       // (rows, d_ff)
    fastmha::linear(linear2_, hidden, output, residual(output));     // y + feed-forward, in place
    normalise(output);
  }

 private:
  // Queries, keys and values of head h are columns [h * head_dim, ...) of the three thirds of a projected
  // row.
  void attend(int64_t batch, int64_t length, const int64_t* lengths) {
    const int64_t d = config_.d_model, head_dim = d / config_.heads;
    const auto heads_of = [&](const float* first) {
      return ConstView(first, {batch, config_.heads, length, head_dim}, {length * 3 * d, head_dim, 3 * d, 1});
    };
    const MutableView out(attended_.data(), {batch, config_.heads, length, head_dim},
                          {length * d, head_dim, d, 1});
    fastmha::AttentionParams params;
    params.key_lengths = lengths;
    const float* projected = qkv_.data();
    fastmha::scaled_dot_product_attention(heads_of(projected), heads_of(projected + d),
                                          heads_of(projected + 2 * d), out, params);
  }

  static fastmha::LinearParams residual(const ConstView& view) {
    fastmha::LinearParams params;
    params.residual = view;
    return params;
  }

  void normalise(const MutableView& rows) const {
    fastmha::LayerNormParams params;
    params.bias = ConstView(norm_bias_.data(), {config_.d_model});
    fastmha::layer_norm(rows, {norm_weight_.data(), {config_.d_model}}, rows, params);
  }

  Config config_;
  PackedLinear in_proj_, out_proj_, linear1_, linear2_;
  std::vector<float> norm_weight_, norm_bias_;
  std::vector<float> qkv_, attended_, hidden_;  // kept from call to call
};

int run() {
  const Config config;
  const int64_t batch = 4, length = 128;
  const std::vector<int64_t> lengths{128, 5, 77, 31};
  RandomWeights weights;
  EncoderBlock block(config, weights);
  const std::vector<float> x = weights.values(batch * length * config.d_model, 1.0f);
  std::vector<float> out(x.size());
  block.run(x.data(), out.data(), batch, length, lengths.data());

  // A sequence does not notice its company: alone and without padding it gives the same bits.
  for (int64_t n = 0; n < batch; ++n) {
    const int64_t first = n * length * config.d_model, count = lengths[n] * config.d_model;
    std::vector<float> alone(static_cast<size_t>(count));
    block.run(x.data() + first, alone.data(), 1, lengths[n], &lengths[n]);
    if (!std::equal(alone.begin(), alone.end(), out.begin() + first)) {
      std::fprintf(stderr, "sequence %d differs when it runs alone\n", static_cast<int>(n));
      return 1;
    }
  }
  std::printf("%d sequences, alone and in the batch: equal bit for bit\n", static_cast<int>(batch));

  double best = 1e9;
  for (int i = 0; i < 20; ++i) {
    const auto start = std::chrono::steady_clock::now();
    block.run(x.data(), out.data(), batch, length, lengths.data());
    best = std::min(
        best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::printf("encoder block %dx%d, d_model 512, 8 heads, d_ff 2048: %.2f ms on %d threads (%s)\n",
              static_cast<int>(batch), static_cast<int>(length), best, fastmha::get_num_threads(),
              fastmha::isa());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc > 1) fastmha::set_num_threads(std::atoi(argv[1]));
    return run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "encoder_block: %s\n", error.what());
    return 1;
  }
}
