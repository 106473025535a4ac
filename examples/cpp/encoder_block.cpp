// Runs the encoder block of encoder_block.h over a batch of padded sequences, checks that a sequence alone
// gives the same bits as in its batch, and prints the time per call.
//
// Usage: encoder_block [threads]
#include "encoder_block.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <vector>

namespace {

std::vector<float> uniform(std::mt19937& engine, int64_t count, float limit) {
  std::uniform_real_distribution<float> distribution(-limit, limit);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = distribution(engine);
  return values;
}

// In a real program these come from a checkpoint.
EncoderBlockWeights random_weights(const EncoderBlockSizes& sizes, std::mt19937& engine) {
  const auto matrix = [&](int64_t out_features, int64_t in_features) {
    const float limit = 1.0f / std::sqrt(static_cast<float>(in_features));  // as torch.nn.Linear starts
    return uniform(engine, out_features * in_features, limit);
  };
  const int64_t d = sizes.d_model;
  EncoderBlockWeights weights;
  weights.in_proj_weight = matrix(3 * d, d);
  weights.in_proj_bias = uniform(engine, 3 * d, 0.1f);
  weights.out_proj_weight = matrix(d, d);
  weights.out_proj_bias = uniform(engine, d, 0.1f);
  weights.linear1_weight = matrix(sizes.d_ff, d);
  weights.linear1_bias = uniform(engine, sizes.d_ff, 0.1f);
  weights.linear2_weight = matrix(d, sizes.d_ff);
  weights.linear2_bias = uniform(engine, d, 0.1f);
  weights.norm1_weight = weights.norm2_weight = std::vector<float>(static_cast<size_t>(d), 1.0f);
  weights.norm1_bias = weights.norm2_bias = std::vector<float>(static_cast<size_t>(d), 0.0f);
  return weights;
}

int run() {
  const EncoderBlockSizes sizes;
  const int64_t batch = 4, length = 128;
  const std::vector<int64_t> lengths{128, 5, 77, 31};
  std::mt19937 engine(2017);
  EncoderBlock block(sizes, random_weights(sizes, engine));
  const std::vector<float> x = uniform(engine, batch * length * sizes.d_model, 1.0f);
  std::vector<float> out(x.size());
  block.run(x.data(), out.data(), batch, length, lengths.data());

  // A sequence does not notice its company: alone and without padding it gives the same bits.
  for (int64_t n = 0; n < batch; ++n) {
    const int64_t first = n * length * sizes.d_model, count = lengths[n] * sizes.d_model;
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
  std::printf("encoder block %dx%d, d_model %d, %d heads, d_ff %d: %.2f ms on %d threads (%s)\n",
              static_cast<int>(batch), static_cast<int>(length), static_cast<int>(sizes.d_model),
              static_cast<int>(sizes.heads), static_cast<int>(sizes.d_ff), best, fastmha::get_num_threads(),
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
