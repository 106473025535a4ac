// A post-norm Transformer encoder block from fastmha's public C++ operations, as in "Attention Is All You
// Need":
//
//   y   = layer_norm(x + attention(x))
//   out = layer_norm(y + feed_forward(y))
//
// Seven calls per block do it: the residual is added by the linear layer that ends each half, the activation
// by the one that opens the feed-forward; and attention reads queries, keys and values where the one
// projection left them, as strided views of its output. No tensor is copied or transposed.
//
// With the same weights it gives what fastmha.EncoderBlock gives in Python, bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "fastmha/fastmha.h"

struct EncoderBlockSizes {
  int64_t d_model = 512;
  int64_t heads = 8;
  int64_t d_ff = 2048;
};

// Row-major, with the shapes of torch.nn.TransformerEncoderLayer's parameters and nearly their names.
struct EncoderBlockWeights {
  std::vector<float> in_proj_weight, in_proj_bias;    // (3 d_model, d_model): queries, keys, values
  std::vector<float> out_proj_weight, out_proj_bias;  // (d_model, d_model)
  std::vector<float> linear1_weight, linear1_bias;    // (d_ff, d_model)
  std::vector<float> linear2_weight, linear2_bias;    // (d_model, d_ff)
  std::vector<float> norm1_weight, norm1_bias;        // (d_model)
  std::vector<float> norm2_weight, norm2_bias;        // (d_model)
};

class EncoderBlock {
 public:
  // The linear layers pack copies of their weights; the block keeps the norms' weights alone.
  EncoderBlock(const EncoderBlockSizes& sizes, const EncoderBlockWeights& weights)
      : sizes_(sizes),
        in_proj_(pack(weights.in_proj_weight, weights.in_proj_bias)),
        out_proj_(pack(weights.out_proj_weight, weights.out_proj_bias)),
        linear1_(pack(weights.linear1_weight, weights.linear1_bias, fastmha::Activation::kRelu)),
        linear2_(pack(weights.linear2_weight, weights.linear2_bias)),
        norm1_{weights.norm1_weight, weights.norm1_bias},
        norm2_{weights.norm2_weight, weights.norm2_bias} {}

  // x and out (batch, length, d_model), row-major; of sequence n the first lengths[n] tokens exist.
  void run(const float* x, float* out, int64_t batch, int64_t length, const int64_t* lengths) {
    const int64_t rows = batch * length, d = sizes_.d_model;
    qkv_.resize(static_cast<size_t>(rows * 3 * d));
    attended_.resize(static_cast<size_t>(rows * d));
    hidden_.resize(static_cast<size_t>(rows * sizes_.d_ff));
    const ConstView input(x, {rows, d});
    const MutableView output(out, {rows, d});
    const MutableView qkv(qkv_.data(), {rows, 3 * d});
    const MutableView attended(attended_.data(), {rows, d});
    const MutableView hidden(hidden_.data(), {rows, sizes_.d_ff});

    fastmha::linear(in_proj_, input, qkv);
    attend(batch, length, lengths);                                 // qkv -> attended
    fastmha::linear(out_proj_, attended, output, residual(input));  // x + attention
    norm1_.apply(output);                                           // y
    fastmha::linear(linear1_, output, hidden);
    fastmha::linear(linear2_, hidden, output, residual(output));  // y + feed-forward, in place
    norm2_.apply(output);
  }

 private:
  using ConstView = fastmha::ConstView;
  using MutableView = fastmha::MutableView;

  struct Norm {
    std::vector<float> weight, bias;

    void apply(const MutableView& rows) const {
      const auto features = static_cast<int64_t>(weight.size());
      fastmha::LayerNormParams params;
      params.bias = ConstView(bias.data(), {features});
      fastmha::layer_norm(rows, {weight.data(), {features}}, rows, params);
    }
  };

  static fastmha::PackedLinear pack(const std::vector<float>& weight, const std::vector<float>& bias,
                                    fastmha::Activation activation = fastmha::Activation::kNone) {
    const auto out_features = static_cast<int64_t>(bias.size());
    const auto in_features = static_cast<int64_t>(weight.size()) / out_features;
    return fastmha::PackedLinear({weight.data(), {out_features, in_features}}, {bias.data(), {out_features}},
                                 activation);
  }

  static fastmha::LinearParams residual(const ConstView& view) {
    fastmha::LinearParams params;
    params.residual = view;
    return params;
  }

  // Queries, keys and values of head h are columns [h * head_dim, ...) of the three thirds of a projected
  // row.
  void attend(int64_t batch, int64_t length, const int64_t* lengths) {
    const int64_t d = sizes_.d_model, head_dim = d / sizes_.heads;
    const auto heads_of = [&](const float* first) {
      return ConstView(first, {batch, sizes_.heads, length, head_dim}, {length * 3 * d, head_dim, 3 * d, 1});
    };
    const MutableView out(attended_.data(), {batch, sizes_.heads, length, head_dim},
                          {length * d, head_dim, d, 1});
    fastmha::AttentionParams params;
    params.key_lengths = lengths;
    const float* projected = qkv_.data();
    fastmha::scaled_dot_product_attention(heads_of(projected), heads_of(projected + d),
                                          heads_of(projected + 2 * d), out, params);
  }

  EncoderBlockSizes sizes_;
  fastmha::PackedLinear in_proj_, out_proj_, linear1_, linear2_;
  Norm norm1_, norm2_;
  std::vector<float> qkv_, attended_, hidden_;  // kept from call to call
};
