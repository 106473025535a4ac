// What this machine can do: the limits against which the benchmarks are read.
//
//   peak flops THREADS            fp32 fused multiply-adds per second, times two, in GFLOP/s
//   peak read  THREADS MEGABYTES  plain reads of a buffer of that size, over and over, in GB/s
//   peak turns THREADS MEGABYTES  a figure for each line that comes in, not the best of several
//   peak copy  THREADS MEGABYTES  one array read, one written, of that size together: GB/s read plus written
//   peak add   THREADS MEGABYTES  the same for two arrays read and one written
//
// Writing commands print the better of plain and non-temporal stores. What a plain store reads first (the
// line that it then overwrites) is not counted: a caller has no use for it.
//
// Compiled at bench time for the CPU at hand (-march=native). Every accumulator starts different and every
// result is consumed: otherwise the compiler computes one and claims the others, and the figures become
// impossible.
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#if defined(__SSE__)
#include <immintrin.h>
#endif

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
constexpr int64_t kSteps = 1 << 23;

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

// One array for each thread's use, first touched by that thread.
class Array {
 public:
  Array(int threads, int64_t per_thread) : per_thread_(per_thread) {
    // Huge pages, as fastmha asks for those of its weights: with small ones it read faster than the "limit".
    const size_t huge = size_t{2} << 20, size = (bytes(threads) + huge - 1) / huge * huge;
    data_ = static_cast<float*>(std::aligned_alloc(huge, size));
    if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(data_, size, MADV_HUGEPAGE);  // a wish
#endif
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < per_thread; ++i) mine()[i] = static_cast<float>(i % 7);
  }
  ~Array() { std::free(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  float* mine() const { return data_ + omp_get_thread_num() * per_thread_; }
  size_t bytes(int threads) const { return static_cast<size_t>(per_thread_ * threads) * sizeof(float); }

 private:
  float* data_ = nullptr;
  int64_t per_thread_;
};

// Floats per thread of each of `arrays` arrays that are `megabytes` together: whole pages.
int64_t floats_per_thread(int threads, int64_t megabytes, int arrays) {
  const int64_t page = 4096 / sizeof(float);
  return std::max<int64_t>(page, megabytes * 1000000 / 4 / threads / arrays / page * page);
}

// GB/s of moving at least a gigabyte. pass() is one thread's part of one pass over `bytes` in all.
template <class Pass>
double bandwidth(int threads, double bytes, Pass pass) {
  const auto passes = static_cast<int64_t>(1e9 / bytes) + 1;
  const double start = seconds();
  float total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  for (int64_t i = 0; i < passes; ++i) {
    total += pass();
    __asm__ volatile("" ::: "memory");  // the next pass moves it all again
  }
  const double elapsed = seconds() - start;
  sink = total;
  return bytes * static_cast<double>(passes) / elapsed * 1e-9;
}

// The best of seven.
template <class Pass>
double best_bandwidth(int threads, double bytes, Pass pass) {
  double best = 0;
  for (int run = 0; run < 7; ++run) best = std::max(best, bandwidth(threads, bytes, pass));
  return best;
}

// A GB/s for each line of input: the plain reads take turns with what they are the limit of. Each turn reads
// as much before the clock starts, which brings back what fits a cache and what others drove out of it. One
// region holds all passes: threads that sleep between turns take longer to wake up than 4 MB to be read.
void turns(int threads, int64_t megabytes) {
  const int64_t count = floats_per_thread(threads, megabytes, 1);
  const Array data(threads, count);
  const auto bytes = static_cast<double>(data.bytes(threads));
  for (int c = std::getchar(); c != EOF; c = std::getchar()) {
    if (c != '\n') continue;
    const auto pass = [&] { return read_all(data.mine(), count); };
    bandwidth(threads, bytes, pass);
    std::printf("%.2f\n", bandwidth(threads, bytes, pass));
    std::fflush(stdout);
  }
}

double read(int threads, int64_t megabytes) {
  const int64_t count = floats_per_thread(threads, megabytes, 1);
  const Array data(threads, count);
  return best_bandwidth(threads, static_cast<double>(data.bytes(threads)),
                        [&] { return read_all(data.mine(), count); });
}

template <bool kNonTemporal>
void store(Vec value, float* to) {
#if defined(__AVX512F__)
  if (kNonTemporal) return _mm512_stream_ps(to, reinterpret_cast<__m512>(value));
#elif defined(__AVX__)
  if (kNonTemporal) return _mm256_stream_ps(to, reinterpret_cast<__m256>(value));
#elif defined(__SSE__)
  if (kNonTemporal) return _mm_stream_ps(to, reinterpret_cast<__m128>(value));
#endif
  *reinterpret_cast<Vec*>(to) = value;
}

// to <- a, or a + b.
template <bool kNonTemporal, bool kAdd>
float write_all(const float* a, const float* b, float* to, int64_t count) {
  constexpr int kStreams = 4;  // a page is a whole number of these
  for (int64_t i = 0; i < count; i += kStreams * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      Vec value = *reinterpret_cast<const Vec*>(a + i + s * kLanes);
      if (kAdd) value += *reinterpret_cast<const Vec*>(b + i + s * kLanes);
      store<kNonTemporal>(value, to + i + s * kLanes);
    }
  }
#if defined(__SSE__)
  if (kNonTemporal) _mm_sfence();
#endif
  return to[0];
}

template <bool kAdd>
double write(int threads, int64_t megabytes) {
  const int arrays = kAdd ? 3 : 2;
  const int64_t count = floats_per_thread(threads, megabytes, arrays);
  const Array a(threads, count), b(threads, kAdd ? count : 1024), to(threads, count);
  const double bytes = static_cast<double>(to.bytes(threads)) * arrays;
  return std::max(
      best_bandwidth(threads, bytes,
                     [&] { return write_all<false, kAdd>(a.mine(), b.mine(), to.mine(), count); }),
      best_bandwidth(threads, bytes,
                     [&] { return write_all<true, kAdd>(a.mine(), b.mine(), to.mine(), count); }));
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 2 ? std::atoi(argv[2]) : 0;
  if (threads >= 1 && argc == 3 && std::strcmp(argv[1], "flops") == 0) {
    std::printf("%.2f\n", flops(threads));
    return 0;
  }
  const int64_t megabytes = argc == 4 ? std::atoll(argv[3]) : 0;
  if (threads >= 1 && megabytes >= 1) {
    const std::string command = argv[1];
    if (command == "turns") {
      turns(threads, megabytes);
      return 0;
    }
    if (command == "read" || command == "copy" || command == "add") {
      std::printf("%.2f\n", command == "read"   ? read(threads, megabytes)
                            : command == "copy" ? write<false>(threads, megabytes)
                                                : write<true>(threads, megabytes));
      return 0;
    }
  }
  std::fprintf(stderr, "usage: peak flops THREADS | peak read|turns|copy|add THREADS MEGABYTES\n");
  return 2;
}
