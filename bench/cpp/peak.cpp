// What this machine can do: the limits against which the benchmarks are read.
//
//   peak flops THREADS            fp32 fused multiply-adds per second, times two, in GFLOP/s
//   peak read  THREADS MEGABYTES  plain reads of a buffer of that size, over and over, in GB/s
//
// Compiled at bench time for the CPU at hand (-march=native). Every accumulator starts different and every
// result is consumed: otherwise the compiler computes one and claims the others, and the figures become
// impossible.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / 4;
typedef float Vec __attribute__((vector_size(kBytes)));

// FMA latency 4 x 2 units is 8 in flight; 12 leave a margin and fit 16 registers with two operands.
constexpr int kChains = 12;
constexpr int64_t kSteps = 1 << 20;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

volatile float sink;

float sum(const Vec& v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// acc <- acc * x + y converges to y / (1 - x): no overflow, no denormals, however long it runs.
float multiply_add(int64_t steps, float start) {
  Vec acc[kChains], x, y;
  for (int i = 0; i < kLanes; ++i) {
    x[i] = 0.75f + 0.001f * static_cast<float>(i);
    y[i] = 0.5f + start;
  }
  for (int c = 0; c < kChains; ++c) {
    for (int i = 0; i < kLanes; ++i) acc[c][i] = start + static_cast<float>(c) + 0.1f * static_cast<float>(i);
  }
  for (int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = acc[c] * x + y;
  }
  float total = 0;
  for (int c = 0; c < kChains; ++c) total += sum(acc[c]);
  return total;
}

double flops(int threads) {
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    const double start = seconds();
    float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    total += multiply_add(kSteps, static_cast<float>(omp_get_thread_num()));
    const double elapsed = seconds() - start;
    sink = total;
    best = std::max(best, 2.0 * kSteps * kChains * kLanes * threads / elapsed * 1e-9);
  }
  return best;
}

float read_all(const float* data, int64_t count) {
  constexpr int kStreams = 8;
  Vec acc[kStreams];
  std::memset(acc, 0, sizeof acc);
  for (int64_t i = 0; i + kStreams * kLanes <= count; i += kStreams * kLanes) {
#pragma GCC unroll 8
    for (int s = 0; s < kStreams; ++s) acc[s] += *reinterpret_cast<const Vec*>(data + i + s * kLanes);
  }
  float total = 0;
  for (int s = 0; s < kStreams; ++s) total += sum(acc[s]);
  return total;
}

double read(int threads, int64_t megabytes) {
  const int64_t step = 4096 / sizeof(float);
  const int64_t per_thread = std::max<int64_t>(step, megabytes * 1000000 / 4 / threads / step * step);
  const auto bytes = static_cast<size_t>(per_thread * threads) * sizeof(float);
  auto* data = static_cast<float*>(std::aligned_alloc(4096, bytes));
  if (data == nullptr) throw std::bad_alloc();
#pragma omp parallel num_threads(threads)  // each page is first touched by the thread that will read it
  for (int64_t i = 0; i < per_thread; ++i)
    data[omp_get_thread_num() * per_thread + i] = static_cast<float>(i % 7);
  const int64_t passes = std::max<int64_t>(1, int64_t{1} << 28 >> 2) / (per_thread * threads) + 1;
  double best = 0;
  for (int run = 0; run < 7; ++run) {
    const double start = seconds();
    float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
    for (int64_t pass = 0; pass < passes; ++pass) {
      total += read_all(data + omp_get_thread_num() * per_thread, per_thread);
      __asm__ volatile("" ::: "memory");  // the next pass reads again
    }
    const double elapsed = seconds() - start;
    sink = total;
    best = std::max(best, static_cast<double>(bytes) * static_cast<double>(passes) / elapsed * 1e-9);
  }
  std::free(data);
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 2 ? std::atoi(argv[2]) : 0;
  if (threads >= 1 && argc == 3 && std::strcmp(argv[1], "flops") == 0) {
    std::printf("%.2f\n", flops(threads));
    return 0;
  }
  if (threads >= 1 && argc == 4 && std::strcmp(argv[1], "read") == 0 && std::atoll(argv[3]) >= 1) {
    std::printf("%.2f\n", read(threads, std::atoll(argv[3])));
    return 0;
  }
  std::fprintf(stderr, "usage: peak flops THREADS | peak read THREADS MEGABYTES\n");
  return 2;
}
