// A post-norm Transformer encoder block from fastmha's public C++ operations, as in "Attention Is All You
// Need":
//
//   y   = layer_norm(x + attention(x))
//   out = layer_norm(y + feed_forward(y))
//
// Two calls per block do it, one per sub-layer with its addition and its norm, the second in place. Nothing
// is allocated: what lies between is in the library's scratch memory, a slice of the batch at a time.
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
  void run(const float* x, float* out, int64_t batch, int64_t length, const int64_t* lengths) const {
    const ConstView input(x, {batch * length, sizes_.d_model});
    const MutableView output(out, {batch * length, sizes_.d_model});

    fastmha::MultiHeadAttentionParams attention;
    attention.heads = sizes_.heads;
    attention.sequences = batch;
    attention.key_lengths = lengths;
    attention.residual = input;
    attention.norm_after = norm1_.view();
    fastmha::multi_head_attention(in_proj_, out_proj_, input, output, attention);

    fastmha::FeedForwardParams feed_forward;
    feed_forward.residual = output;
    feed_forward.norm_after = norm2_.view();
    fastmha::feed_forward(linear1_, linear2_, output, output, feed_forward);
  }

 private:
  using ConstView = fastmha::ConstView;
  using MutableView = fastmha::MutableView;

  struct Norm {
    std::vector<float> weight, bias;

    fastmha::SublayerNorm view() const {
      const auto features = static_cast<int64_t>(weight.size());
      return {{weight.data(), {features}}, {bias.data(), {features}}};
    }
  };

  static fastmha::PackedLinear pack(const std::vector<float>& weight, const std::vector<float>& bias,
                                    fastmha::Activation activation = fastmha::Activation::kNone) {
    const auto out_features = static_cast<int64_t>(bias.size());
    const auto in_features = static_cast<int64_t>(weight.size()) / out_features;
    return fastmha::PackedLinear({weight.data(), {out_features, in_features}}, {bias.data(), {out_features}},
                                 activation);
  }

  EncoderBlockSizes sizes_;
  fastmha::PackedLinear in_proj_, out_proj_, linear1_, linear2_;
  Norm norm1_, norm2_;
};
