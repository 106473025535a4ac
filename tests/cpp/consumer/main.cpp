// A C++ user of fastmha: attention and a packed linear layer on buffers of its own.
//
//   consumer attention FOLDER batch heads kv_heads q_len kv_len head_dim value_dim
//   consumer linear    FOLDER rows in_features out_features
//   consumer errors
//
// Buffers are raw float32 (or int64) files in FOLDER; results are written beside them.
// tests/test_cpp_consumer.py makes the inputs and compares the results with Python's bit for bit.
#include <fastmha/fastmha.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

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
    } else if (what == "linear") {
      run_linear(argv[2], numbers);
    } else if (what == "errors") {
      run_errors();
    } else {
      throw std::runtime_error("usage: consumer attention|linear|errors ...");
    }
    std::cout << fastmha::isa() << "\n";
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
