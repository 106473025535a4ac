// A C++ user of fastmha: every public operation on buffers of its own.
//
//   consumer attention FOLDER batch heads kv_heads q_len kv_len head_dim value_dim
//   consumer varlen    FOLDER sequences heads kv_heads head_dim value_dim
//   consumer kv_cache  FOLDER batch heads kv_heads capacity prefill steps head_dim value_dim
//   consumer linear    FOLDER rows in_features out_features
//   consumer rows      FOLDER rows features
//   consumer encoder   FOLDER batch length d_model heads d_ff
//   consumer errors
//
// Buffers are raw float32 (or int64) files in FOLDER; results are written beside them.
// tests/test_cpp_consumer.py makes the inputs and compares the results with Python's bit for bit.
#include <fastmha/fastmha.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "encoder_block.h"

namespace {

template <class T>
std::vector<T> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("cannot open " + path);
  std::vector<T> data(static_cast<size_t>(file.tellg()) / sizeof(T));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(data.size() * sizeof(T)));
  return data;
}

void write(const std::string& path, const std::vector<float>& data) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(data.data()),
             static_cast<std::streamsize>(data.size() * sizeof(float)));
  if (!file) throw std::runtime_error("cannot write " + path);
}

void run_attention(const std::string& folder, const std::vector<int64_t>& n) {
  const int64_t batch = n.at(0), heads = n.at(1), kv_heads = n.at(2), q_len = n.at(3), kv_len = n.at(4),
                head_dim = n.at(5), value_dim = n.at(6);
  const auto query = read<float>(folder + "/query"), key = read<float>(folder + "/key"),
             value = read<float>(folder + "/value"), slopes = read<float>(folder + "/alibi_slopes");
  const auto lengths = read<int64_t>(folder + "/key_lengths");
  std::vector<float> out(static_cast<size_t>(batch * heads * q_len * value_dim));
  std::vector<float> lse(static_cast<size_t>(batch * heads * q_len));

  // (batch, length, heads, dim) in memory, seen as (batch, heads, length, dim): strides instead of a copy.
  const fastmha::ConstView q(query.data(), {batch, heads, q_len, head_dim},
                             {q_len * heads * head_dim, head_dim, heads * head_dim, 1});
  const fastmha::ConstView k(key.data(), {batch, kv_heads, kv_len, head_dim});
  const fastmha::ConstView v(value.data(), {batch, kv_heads, kv_len, value_dim});
  const fastmha::MutableView o(out.data(), {batch, heads, q_len, value_dim});

  fastmha::scaled_dot_product_attention(q, k, v, o);
  write(folder + "/plain", out);

  fastmha::AttentionParams params;
  params.is_causal = true;
  params.query_offset = kv_len - q_len;
  params.window_left = 40;
  params.softcap = 5.0f;
  params.scale = 0.25f;
  params.key_lengths = lengths.data();
  params.alibi_slopes = fastmha::ConstView(slopes.data(), {heads});
  params.lse = fastmha::MutableView(lse.data(), {batch, heads, q_len});
  fastmha::scaled_dot_product_attention(q, k, v, o, params);
  write(folder + "/with_options", out);
  write(folder + "/lse", lse);
}

void run_varlen(const std::string& folder, const std::vector<int64_t>& n) {
  const int64_t sequences = n.at(0), heads = n.at(1), kv_heads = n.at(2), head_dim = n.at(3),
                value_dim = n.at(4);
  const auto query = read<float>(folder + "/query"), key = read<float>(folder + "/key"),
             value = read<float>(folder + "/value");
  const auto ends_q = read<int64_t>(folder + "/cu_seqlens_q"),
             ends_k = read<int64_t>(folder + "/cu_seqlens_k");
  const int64_t total_q = ends_q.back(), total_k = ends_k.back();
  std::vector<float> out(static_cast<size_t>(total_q * heads * value_dim));
  std::vector<float> lse(static_cast<size_t>(total_q * heads));

  fastmha::AttentionParams params;
  params.is_causal = true;
  params.query_offset = 3;
  params.lse = fastmha::MutableView(lse.data(), {total_q, heads});
  fastmha::varlen_attention({query.data(), {total_q, heads, head_dim}},
                            {key.data(), {total_k, kv_heads, head_dim}},
                            {value.data(), {total_k, kv_heads, value_dim}}, ends_q.data(), ends_k.data(),
                            sequences, {out.data(), {total_q, heads, value_dim}}, params);
  write(folder + "/out", out);
  write(folder + "/lse", lse);
}

// A prefill of different lengths, then `steps` tokens one at a time; outputs end to end.
void run_kv_cache(const std::string& folder, const std::vector<int64_t>& n) {
  const int64_t batch = n.at(0), heads = n.at(1), kv_heads = n.at(2), capacity = n.at(3), prefill = n.at(4),
                steps = n.at(5), head_dim = n.at(6), value_dim = n.at(7), total = prefill + steps;
  const auto query = read<float>(folder + "/query"), key = read<float>(folder + "/key"),
             value = read<float>(folder + "/value");
  const auto prefill_lengths = read<int64_t>(folder + "/lengths");
  std::vector<float> key_memory(static_cast<size_t>(batch * kv_heads * capacity * head_dim));
  std::vector<float> value_memory(static_cast<size_t>(batch * kv_heads * capacity * value_dim));
  std::vector<int64_t> lengths(static_cast<size_t>(batch), 0);
  const fastmha::KVCacheView cache{{key_memory.data(), {batch, kv_heads, capacity, head_dim}},
                                   {value_memory.data(), {batch, kv_heads, capacity, value_dim}},
                                   lengths.data()};
  // Positions [first, first + count) of (batch, some_heads, total, dim).
  const auto positions = [&](const std::vector<float>& data, int64_t some_heads, int64_t dim, int64_t first,
                             int64_t count) {
    return fastmha::ConstView(data.data() + first * dim, {batch, some_heads, count, dim},
                              {some_heads * total * dim, total * dim, dim, 1});
  };
  fastmha::kv_cache_append(cache, positions(key, kv_heads, head_dim, 0, prefill),
                           positions(value, kv_heads, value_dim, 0, prefill), prefill_lengths.data());

  std::vector<float> all(static_cast<size_t>(batch * heads * total * value_dim));
  const auto out = [&](int64_t first, int64_t count) {
    return fastmha::MutableView(all.data() + first * value_dim, {batch, heads, count, value_dim},
                                {heads * total * value_dim, total * value_dim, value_dim, 1});
  };
  fastmha::AttentionParams params;
  params.is_causal = true;
  fastmha::attention_with_kvcache(positions(query, heads, head_dim, 0, prefill), cache, out(0, prefill),
                                  params);
  params.window_left = 20;
  for (int64_t at = prefill; at < total; ++at) {
    fastmha::kv_cache_append(cache, positions(key, kv_heads, head_dim, at, 1),
                             positions(value, kv_heads, value_dim, at, 1));
    fastmha::attention_with_kvcache(positions(query, heads, head_dim, at, 1), cache, out(at, 1), params);
  }
  write(folder + "/out", all);
  write(folder + "/cached_key", key_memory);
  write(folder + "/cached_value", value_memory);
}

void run_linear(const std::string& folder, const std::vector<int64_t>& n) {
  const int64_t rows = n.at(0), in_features = n.at(1), out_features = n.at(2);
  const auto x = read<float>(folder + "/x"), bias = read<float>(folder + "/bias"),
             residual = read<float>(folder + "/residual");
  std::vector<float> out(static_cast<size_t>(rows * out_features));
  auto weight = read<float>(folder + "/weight");
  fastmha::PackedLinear layer(fastmha::ConstView(weight.data(), {out_features, in_features}),
                              fastmha::ConstView(bias.data(), {out_features}), fastmha::Activation::kGelu);
  weight.assign(weight.size(), 0.0f);  // packed: the layer no longer needs it
  const fastmha::PackedLinear moved = std::move(layer);

  fastmha::LinearParams params;
  params.residual = fastmha::ConstView(residual.data(), {rows, out_features});
  fastmha::linear(moved, fastmha::ConstView(x.data(), {rows, in_features}),
                  fastmha::MutableView(out.data(), {rows, out_features}), params);
  write(folder + "/y", out);
}

void run_rows(const std::string& folder, const std::vector<int64_t>& n) {
  const int64_t rows = n.at(0), features = n.at(1);
  const auto x_data = read<float>(folder + "/x"), weight_data = read<float>(folder + "/weight"),
             bias = read<float>(folder + "/bias"), residual = read<float>(folder + "/residual");
  std::vector<float> result(x_data.size());
  const fastmha::ConstView x(x_data.data(), {rows, features}), weight(weight_data.data(), {features});
  const fastmha::MutableView out(result.data(), {rows, features});
  // Each operation must write every element.
  const auto save = [&](const char* name) {
    write(folder + "/" + name, result);
    std::fill(result.begin(), result.end(), -7.0f);
  };

  fastmha::layer_norm(x, weight, out);
  save("layer_norm");
  fastmha::LayerNormParams layer_norm;
  layer_norm.bias = fastmha::ConstView(bias.data(), {features});
  layer_norm.residual = fastmha::ConstView(residual.data(), {rows, features});
  layer_norm.eps = 1e-3f;
  fastmha::layer_norm(x, weight, out, layer_norm);
  save("layer_norm_with_options");
  fastmha::rms_norm(x, weight, out);
  save("rms_norm");
  fastmha::RmsNormParams rms_norm;
  rms_norm.residual = layer_norm.residual;
  rms_norm.eps = 1e-3f;
  fastmha::rms_norm(x, weight, out, rms_norm);
  save("rms_norm_with_options");
  fastmha::softmax(x, out);
  save("softmax");
  fastmha::activation(fastmha::Activation::kRelu, x, out);
  save("relu");
  fastmha::activation(fastmha::Activation::kGelu, x, out);
  save("gelu");
  fastmha::activation(fastmha::Activation::kGeluTanh, x, out);
  save("gelu_tanh");
  fastmha::activation(fastmha::Activation::kSilu, x, out);
  save("silu");
}

void run_encoder(const std::string& folder, const std::vector<int64_t>& n) {
  const int64_t batch = n.at(0), length = n.at(1);
  const EncoderBlockSizes sizes{n.at(2), n.at(3), n.at(4)};
  const auto file = [&](const char* name) { return read<float>(folder + "/" + name); };
  EncoderBlockWeights weights;
  weights.in_proj_weight = file("self_attn.in_proj_weight");
  weights.in_proj_bias = file("self_attn.in_proj_bias");
  weights.out_proj_weight = file("self_attn.out_proj.weight");
  weights.out_proj_bias = file("self_attn.out_proj.bias");
  weights.linear1_weight = file("linear1.weight");
  weights.linear1_bias = file("linear1.bias");
  weights.linear2_weight = file("linear2.weight");
  weights.linear2_bias = file("linear2.bias");
  weights.norm1_weight = file("norm1.weight");
  weights.norm1_bias = file("norm1.bias");
  weights.norm2_weight = file("norm2.weight");
  weights.norm2_bias = file("norm2.bias");
  EncoderBlock block(sizes, weights);

  const auto x = file("x");
  const auto lengths = read<int64_t>(folder + "/lengths");
  std::vector<float> out(x.size());
  block.run(x.data(), out.data(), batch, length, lengths.data());
  write(folder + "/out", out);
}

// Each wrong call prints its message; one that is accepted, or throws something else, prints that.
template <class Call>
void expect_refusal(Call call) {
  try {
    call();
    std::cout << "accepted\n";
  } catch (const std::invalid_argument& error) {
    std::cout << error.what() << "\n";
  } catch (const std::exception& error) {
    std::cout << "another exception: " << error.what() << "\n";
  }
}

void run_errors() {
  std::vector<float> memory(1000);
  const fastmha::ConstView q(memory.data(), {1, 3, 5, 8}), k(memory.data(), {1, 2, 7, 8});
  std::vector<float> result(1000);
  const fastmha::MutableView out(result.data(), {1, 3, 5, 8});
  expect_refusal([&] { fastmha::scaled_dot_product_attention(q, k, k, out); });

  const fastmha::ConstView same(memory.data(), {1, 3, 7, 8});
  fastmha::AttentionParams params;
  const int64_t length = 8;
  params.key_lengths = &length;
  expect_refusal([&] { fastmha::scaled_dot_product_attention(q, same, same, out, params); });

  params = {};
  params.softcap = -1.0f;
  expect_refusal([&] { fastmha::scaled_dot_product_attention(q, same, same, out, params); });

  expect_refusal(
      [&] { fastmha::PackedLinear(fastmha::ConstView(memory.data(), {6, 8}), {memory.data(), {5}}); });
  expect_refusal([&] { fastmha::set_num_threads(0); });
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string what = argc > 1 ? argv[1] : "";
    std::vector<int64_t> numbers;
    for (int i = 3; i < argc; ++i) numbers.push_back(std::stoll(argv[i]));
    if (what == "attention") {
      run_attention(argv[2], numbers);
    } else if (what == "varlen") {
      run_varlen(argv[2], numbers);
    } else if (what == "kv_cache") {
      run_kv_cache(argv[2], numbers);
    } else if (what == "linear") {
      run_linear(argv[2], numbers);
    } else if (what == "rows") {
      run_rows(argv[2], numbers);
    } else if (what == "encoder") {
      run_encoder(argv[2], numbers);
    } else if (what == "errors") {
      run_errors();
    } else {
      throw std::runtime_error("usage: consumer attention|varlen|kv_cache|linear|rows|encoder|errors ...");
    }
    std::cout << fastmha::isa() << "\n";
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
