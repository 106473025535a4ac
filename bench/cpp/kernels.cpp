// Single kernels on one thread with their data in L1 or L2: how much of the peak of the multiply-add units a
// tile reaches when nothing else is in its way. What a workload loses against this is memory, threads and
// calls.
//
//   bench_kernels                                   every kernel of every instruction set that this CPU runs
//   bench_kernels --benchmark_filter=gemm.*avx2
//
// Counters: GFLOPs and of_peak (arithmetic), GBs (bytes read and written), slots (row-wise functions: how
// many multiply-adds would take as long, per element). The peak is measured right after each kernel: clocks
// change.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "fastmha/attention.h"
#include "fastmha/linear.h"
#include "fastmha/runtime.h"
#include "src/isa.h"
#include "src/packed_weight.h"
#include "tests/test.h"

using namespace fastmha;

namespace {

// ---- the peak ---------------------------------------------------------------------------------------------

constexpr int kChains = 12;  // in flight: more than latency 4 x 2 units, and 16 registers hold them
constexpr int64_t kSteps = 1 << 20;

volatile float sink;

// acc <- acc * x + y converges: no overflow, no denormals. Every chain starts different and is used, or the
// compiler would compute one of them.
#define FASTMHA_DEFINE_PEAK(name, bytes, ...)                                             \
  __VA_ARGS__ void name() {                                                               \
    typedef float Vec __attribute__((vector_size(bytes)));                                \
    Vec acc[kChains], x = Vec{} + 0.75f, y = Vec{} + 0.5f, total = Vec{};                 \
    for (int c = 0; c < kChains; ++c) acc[c] = Vec{} + static_cast<float>(c);             \
    for (int64_t s = 0; s < kSteps; ++s) {                                                \
      _Pragma("GCC unroll 12") for (int c = 0; c < kChains; ++c) acc[c] = acc[c] * x + y; \
    }                                                                                     \
    for (int c = 0; c < kChains; ++c) total += acc[c];                                    \
    sink = total[0];                                                                      \
  }

FASTMHA_DEFINE_PEAK(peak_generic, 16)
#if defined(__x86_64__)
FASTMHA_DEFINE_PEAK(peak_avx2, 32, __attribute__((target("avx2,fma"))))
FASTMHA_DEFINE_PEAK(peak_avx512, 64, __attribute__((target("avx512f,prefer-vector-width=512"))))
#endif

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// FLOP/s of one core.
double measure_peak(const std::string& isa) {
  struct Loop {
    const char* isa;
    void (*run)();
    int lanes;
  };
  constexpr Loop kLoops[] = {
#if defined(__x86_64__)
      {"avx512", peak_avx512, 16},
      {"avx2", peak_avx2, 8},
#endif
      {"generic", peak_generic, 4},
  };
  const Loop& loop =
      *std::find_if(std::begin(kLoops), std::end(kLoops), [&](const Loop& l) { return isa == l.isa; });
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const auto start = Clock::now();
    loop.run();
    best = std::max(best, 2.0 * kSteps * kChains * loop.lanes / since(start));
  }
  return best;
}

// ---- counters ---------------------------------------------------------------------------------------------

struct Work {
  double flops = 0;
  double bytes = 0;
  double elements = 0;  // of a row-wise function
};

void count(benchmark::State& state, const Work& work, double peak, double seconds) {
  if (work.flops > 0) {
    state.counters["GFLOPs"] = work.flops / seconds * 1e-9;
    state.counters["of_peak"] = work.flops / seconds / peak;
  }
  if (work.bytes > 0) state.counters["GBs"] = work.bytes / seconds * 1e-9;
  if (work.elements > 0) state.counters["slots"] = seconds * peak / 2 / work.elements;
}

template <class Run>
void loop(benchmark::State& state, const Work& work, const Isa& isa, Run run) {
  run();
  const auto start = Clock::now();
  for (auto _ : state) {
    run();
    benchmark::ClobberMemory();
  }
  const double seconds = since(start) / static_cast<double>(state.iterations());
  count(state, work, measure_peak(isa.name), seconds);
}

// ---- kernels ----------------------------------------------------------------------------------------------

// Floats on a cache line's boundary, as the library's own buffers are.
struct Floats {
  explicit Floats(int64_t count, bool random = true) : memory(static_cast<size_t>(count) + 16) {
    void* p = memory.data();
    size_t space = memory.size() * sizeof(float);
    data = static_cast<float*>(std::align(64, static_cast<size_t>(count) * sizeof(float), p, space));
    if (!random) return;
    test::Random numbers(1);
    for (int64_t i = 0; i < count; ++i) data[i] = numbers.normal();
  }
  std::vector<float> memory;
  float* data;
};

void gemm(benchmark::State& state, const Isa& isa, int64_t rows, int64_t depth, int64_t columns) {
  const Floats x(rows * depth), weight(columns * depth), bias(columns), out(rows * columns, false);
  const PackedWeight packed(*isa.gemm, ConstView(weight.data, {columns, depth}),
                            ConstView(bias.data, {columns}));
  GemmBlock block;
  block.x = x.data;
  block.x_stride = block.depth = depth;
  block.rows = rows;
  block.weight = packed.panel(0);
  block.bias = packed.bias();
  block.out = out.data;
  block.out_stride = block.columns = columns;
  const Work work{2.0 * rows * depth * columns, 4.0 * columns * depth};
  loop(state, work, isa, [&] { isa.gemm->block(block); });
}

// One head whose keys and values lie in L2.
struct Head {
  Head(int64_t q_len, int64_t kv_len, int64_t dim)
      : query(q_len * dim), key(kv_len * dim), value(kv_len * dim), out(q_len * dim, false) {
    head.query = query.data;
    head.key = key.data;
    head.value = value.data;
    head.out = out.data;
    head.query_stride = head.key_stride = head.value_stride = head.out_stride = dim;
    head.q_len = q_len;
    head.kv_len = kv_len;
    head.head_dim = head.value_dim = dim;
    head.scale = 0.125f * 1.44269504f;
  }
  Floats query, key, value, out;
  AttentionHead head;
};

void panel(benchmark::State& state, const Isa& isa, int64_t kv_len, int64_t dim) {
  const Head one(isa.panel->bq, kv_len, dim);
  const Floats scratch(static_cast<int64_t>(isa.panel->scratch(dim, dim)), false);
  const Work work{4.0 * isa.panel->bq * static_cast<double>(kv_len * dim), 0, 0};
  loop(state, work, isa, [&] { isa.panel->run(one.head, 0, scratch.data); });
}

// As many heads of short sequences as fill the lanes, all of one length.
void short_heads(benchmark::State& state, const Isa& isa, int64_t length, int64_t dim) {
  const ShortKernels& kernels = *isa.short_sequences;
  const Head all(kernels.group * length, kernels.group * length, dim);
  const Floats scratch(static_cast<int64_t>(kernels.scratch), false);
  HeadGroup group;
  group.shared = all.head;
  group.shared.q_len = group.shared.kv_len = length;
  group.count = kernels.group;
  for (int h = 0; h < group.count; ++h) {
    const int64_t at = h * length * dim;
    group.query[h] = all.query.data + at;
    group.key[h] = all.key.data + at;
    group.value[h] = all.value.data + at;
    group.out[h] = all.out.data + at;
    group.weights[h] = group.lse[h] = nullptr;
  }
  const Work work{4.0 * kernels.group * static_cast<double>(length * length * dim), 0, 0};
  loop(state, work, isa, [&] { kernels.run(group, nullptr, scratch.data); });
}

void decode(benchmark::State& state, const Isa& isa, int64_t heads, int64_t dim) {
  const int64_t keys = isa.decode->split;
  const Head one(heads, keys, dim);
  std::vector<AttentionHead> group(static_cast<size_t>(heads), one.head);
  for (int64_t h = 0; h < heads; ++h) {
    group[h].query += h * dim;
    group[h].q_len = 1;
  }
  const Floats states(heads * (2 + dim), false);
  const Floats scratch(static_cast<int64_t>(isa.decode->scratch(heads, dim)), false);
  const Work work{4.0 * static_cast<double>(heads * keys * dim), 8.0 * static_cast<double>(keys * dim), 0};
  loop(state, work, isa, [&] { isa.decode->piece({group.data(), heads}, 0, states.data, scratch.data); });
}

constexpr int64_t kRows = 5, kFeatures = 768;  // in and out 30 KB: L1

template <class Run>
void rows(benchmark::State& state, const Isa& isa, Run run) {
  const Floats x(kRows * kFeatures), out(kRows * kFeatures, false);
  MapRows map;
  map.x = x.data;
  map.out = out.data;
  map.x_stride = map.out_stride = map.features = kFeatures;
  map.rows = kRows;
  const double elements = kRows * kFeatures;
  loop(state, {0, 8 * elements, elements}, isa, [&] { run(map); });
}

void layer_norm(benchmark::State& state, const Isa& isa) {
  const Floats weight(kFeatures), bias(kFeatures);
  rows(state, isa, [&](const MapRows& map) {
    NormRows norm;
    norm.map = map;
    norm.weight = weight.data;
    norm.bias = bias.data;
    norm.eps = 1e-5f;
    isa.rowwise->layer_norm(norm);
  });
}

// The whole call from C++, checks and plan included, on one thread: what a small one costs.
void whole_call(benchmark::State& state, int64_t batch, int64_t heads, int64_t length, int64_t dim) {
  const int64_t count = batch * heads * length * dim;
  const Floats query(count), key(count), value(count), out(count, false);
  const auto view = [&](float* data) { return MutableView(data, {batch, heads, length, dim}); };
  const MutableView q = view(query.data), k = view(key.data), v = view(value.data), o = view(out.data);
  const Work work{4.0 * static_cast<double>(count * length)};
  loop(state, work, active_isa(), [&] { scaled_dot_product_attention(q, k, v, o); });
}

// ---- registration -----------------------------------------------------------------------------------------

template <class Run>
void add(const std::string& name, Run run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMicrosecond);
}

void add_gemm(const Isa& isa) {
  const int mr = isa.gemm->mr, nr = isa.gemm->nr;
  constexpr int64_t kDepth = 256;  // a panel of weights and the rows stay in L1
  for (int rows = 1; rows <= mr; ++rows) {
    const int64_t columns = static_cast<int64_t>(nr) * isa.gemm->panels(rows);
    add(concat(isa.gemm->name, "/rows:", rows, "/L1"),
        [=, &isa](benchmark::State& state) { gemm(state, isa, rows, kDepth, columns); });
  }
  add(concat(isa.gemm->name, "/rows:", 8 * mr, "/depth:512/columns:", 8 * nr, "/L2"),
      [=, &isa](benchmark::State& state) { gemm(state, isa, 8 * mr, 512, 8 * nr); });
}

void add_attention(const Isa& isa) {
  for (int64_t dim : {64, 128}) {
    for (int64_t kv_len : {16, 128, 512}) {
      add(concat(isa.panel->name, "/keys:", kv_len, "/dim:", dim),
          [=, &isa](benchmark::State& state) { panel(state, isa, kv_len, dim); });
    }
    for (int64_t length : {2, 5, 12}) {
      add(concat(isa.short_sequences->name, "/length:", length, "/dim:", dim),
          [=, &isa](benchmark::State& state) { short_heads(state, isa, length, dim); });
    }
    for (int64_t heads : {1, 4}) {
      add(concat(isa.decode->name, "/heads:", heads, "/keys:", isa.decode->split, "/dim:", dim),
          [=, &isa](benchmark::State& state) { decode(state, isa, heads, dim); });
    }
  }
}

void add_rowwise(const Isa& isa) {
  const RowwiseKernels& kernels = *isa.rowwise;
  const std::string name = kernels.name;
  add(name + "/layer_norm", [=, &isa](benchmark::State& state) { layer_norm(state, isa); });
  add(name + "/softmax", [=, &isa](benchmark::State& state) { rows(state, isa, kernels.softmax); });
  add(name + "/exp", [=, &isa](benchmark::State& state) { rows(state, isa, kernels.exp); });
  add(name + "/tanh", [=, &isa](benchmark::State& state) { rows(state, isa, kernels.tanh); });
  add(name + "/gelu", [=, &isa](benchmark::State& state) {
    rows(state, isa, [&](const MapRows& map) { kernels.activation(Activation::kGelu, map); });
  });
}

}  // namespace

int main(int argc, char** argv) {
  set_num_threads(1);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (const Isa* each : runnable_isas()) {
    add_gemm(*each);
    add_attention(*each);
    add_rowwise(*each);
  }
  add(concat("call_", isa(), "/attention:1x8x5x64"),
      [](benchmark::State& state) { whole_call(state, 1, 8, 5, 64); });
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
