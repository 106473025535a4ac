// Packing a weight into panels and back, and where its pages lie.
#include "packed_weight.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "parallel.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastmha {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

// A weight that is streamed from memory touches a new 4 KiB page every 4 KiB: with 2 MiB pages the walk needs
// 512 times fewer address translations. Weights that fill few such pages share them: those of all-MiniLM-L6-v2, 0.6
// to 2.4 MB each and 42 MB together, took a text of 8 tokens from 0.87 to 0.70 ms.
//
//   chunk   | in_proj | out_proj | linear1 | linear2 | in_proj | ... | free
//           2 MiB     4 MiB      ...
//
// What is not used of a chunk is never touched, so at most one page of each is there for nothing. A chunk goes when
// the last weight in it does.
constexpr size_t kChunk = size_t{32} << 20;
// Smaller ones need few translations, larger ones waste little on their own.
constexpr size_t kSmallestShared = size_t{256} << 10, kSmallestAlone = size_t{8} << 20;

using Memory = std::shared_ptr<char>;

Memory aligned(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  // aligned_alloc wants a multiple of the alignment; posix_memalign does not, which saves up to 2 MiB.
  if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // a wish: without it all works, slower
#endif
  return Memory(static_cast<char*>(memory), std::free);
}

// The next bytes of the chunk that was begun last.
Memory shared(size_t bytes) {
  static std::mutex mutex;
  static std::weak_ptr<char> chunk;  // its weights own it: when they are gone, a new one begins
  static size_t used;
  const std::lock_guard<std::mutex> lock(mutex);
  Memory owner = chunk.lock();
  if (owner == nullptr || used + bytes > kChunk) {
    owner = aligned(kChunk, kHugePage);
    chunk = owner;
    used = 0;
  }
  char* memory = owner.get() + used;
  used += bytes;
  return Memory(std::move(owner), memory);
}

double copy_nanoseconds(int64_t floats) {
  return static_cast<double>(floats) * sizeof(float) / 2;
}  // about 2 GB/s

// Depth steps packed at a time: one cache line of every row of the panel is read whole before the next.
constexpr int64_t kLine = static_cast<int64_t>(kCacheLine / sizeof(float));

void pack_panel(const ConstView& weight, int64_t first, int nr, float* panel) {
  const int64_t depth = weight.shape[1];
  const int64_t features = std::min<int64_t>(nr, weight.shape[0] - first);
  if (features < nr) std::memset(panel, 0, static_cast<size_t>(depth) * nr * sizeof(float));
  for (int64_t k0 = 0; k0 < depth; k0 += kLine) {
    const int64_t k1 = std::min(depth, k0 + kLine);
    for (int64_t feature = 0; feature < features; ++feature) {
      const float* row = weight.data + (first + feature) * weight.strides[0];
      for (int64_t k = k0; k < k1; ++k) panel[k * nr + feature] = row[k * weight.strides[1]];
    }
  }
}

void unpack_panel(const float* panel, int64_t first, int nr, const MutableView& weight) {
  const int64_t depth = weight.shape[1];
  const int64_t features = std::min<int64_t>(nr, weight.shape[0] - first);
  for (int64_t k0 = 0; k0 < depth; k0 += kLine) {
    const int64_t k1 = std::min(depth, k0 + kLine);
    for (int64_t feature = 0; feature < features; ++feature) {
      float* row = weight.data + (first + feature) * weight.strides[0];
      for (int64_t k = k0; k < k1; ++k) row[k * weight.strides[1]] = panel[k * nr + feature];
    }
  }
}

}  // namespace

PackedWeight::Buffer PackedWeight::allocate(int64_t floats) {
  const size_t bytes = std::max<size_t>(static_cast<size_t>(floats) * sizeof(float), 1);
  const size_t whole = (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
  Memory memory;
  if (whole >= kSmallestAlone) {
    memory = aligned(whole, kHugePage);
  } else {
    memory = whole >= kSmallestShared ? shared(whole) : aligned(whole, kCacheLine);
  }
  float* data = reinterpret_cast<float*>(memory.get());
  return Buffer(std::move(memory), data);
}

PackedWeight::PackedWeight(const GemmKernels& kernels, const ConstView& weight, const ConstView& bias)
    : kernels_(kernels),
      in_features_(weight.shape[1]),
      out_features_(weight.shape[0]),
      panels_(allocate(panels() * kernels.nr * in_features_)),
      bias_(allocate(panels() * kernels.nr)) {
  float* data = panels_.get();
  const int64_t panel_floats = kernels.nr * in_features_;
  const int threads = threads_for(panels(), copy_nanoseconds(panels() * panel_floats));
  // Pages (of 2 MiB where the system grants them) come to lie on the NUMA node of the thread that writes them
  // first. A product's tasks go columns outermost, in runs: with as many threads as here each starts with the
  // panels that it wrote, and its neighbours help at the end. That holds while thread numbers stay on their
  // nodes, which only the user can see to (OMP_PROC_BIND). Sub-layers in slices of the batch read all panels
  // from every thread.
  parallel_for(panels(), threads, [&](int64_t panel, int) {
    pack_panel(weight, panel * kernels.nr, kernels.nr, data + panel * panel_floats);
  });
  for (int64_t i = 0; i < panels() * kernels.nr; ++i) {
    bias_.get()[i] = bias.empty() || i >= out_features_ ? 0.0f : bias.data[i * bias.strides[0]];
  }
}

size_t PackedWeight::nbytes() const {
  return static_cast<size_t>(panels() * kernels_.nr * (in_features_ + 1)) * sizeof(float);
}

void PackedWeight::unpack(const MutableView& weight) const {
  const int threads = threads_for(panels(), copy_nanoseconds(weight.size()));
  parallel_for(panels(), threads, [&](int64_t index, int) {
    unpack_panel(panel(index), index * kernels_.nr, kernels_.nr, weight);
  });
}

}  // namespace fastmha
