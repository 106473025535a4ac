// Memory of large results: mapped once, given out again when an array dies.
#include "output_pool.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <mutex>

namespace fastmha::python {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Sizes that share buffers: eight per doubling. At most an eighth of a mapping is unused, and as nobody
// touches that part it takes no memory.
size_t size_class(size_t bytes) {
  size_t step = kPooledBytes / 8;
  while (bytes > step * 16) step *= 2;
  return (bytes + step - 1) / step * step;
}

void* map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

// From the size of a huge page on, a mapping starts on one: with 4 KiB pages, misses of the TLB slow the
// kernels down. The mapping's last part may be smaller than a huge page; rounding it up would double the
// memory of a small result.
void* map_aligned(size_t bytes) {
  if (bytes < kHugePage) return map(bytes);
  char* memory = static_cast<char*>(map(bytes + kHugePage));
  if (memory == nullptr) return nullptr;
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(memory) % kHugePage) % kHugePage;
  if (before > 0) munmap(memory, before);
  munmap(memory + before + bytes, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(memory + before, bytes, MADV_HUGEPAGE);  // advice: a system without them gives 4 KiB pages
#endif
  return memory + before;
}

struct Buffer {
  void* memory;
  size_t bytes;
};

class Pool {
 public:
  // Null when the system has no such memory.
  void* take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (size_t i = idle_.size(); i-- > 0;) {  // the newest first: its end may still be in a cache
        if (idle_[i].bytes == bytes) return remove(i).memory;
      }
    }
    void* memory = map_aligned(bytes);
    if (memory == nullptr && release_down_to(0) > 0) memory = map_aligned(bytes);
    return memory;
  }

  void give_back(Buffer buffer) noexcept {
    bool kept = false;
    if (buffer.bytes <= kIdleBytes) {
      release_down_to(kIdleBytes - buffer.bytes);
      const std::lock_guard<std::mutex> lock(mutex_);
      // Another thread may have been faster: then this one goes.
      if (idle_bytes_ + buffer.bytes <= kIdleBytes && idle_.size() < idle_.capacity()) {
        idle_.push_back(buffer);
        idle_bytes_ += buffer.bytes;
        kept = true;
      }
    }
    if (!kept) munmap(buffer.memory, buffer.bytes);
  }

  // Unmaps the least recently used until no more than that is idle; returns how many bytes went.
  size_t release_down_to(size_t bytes) noexcept {
    size_t released = 0;
    for (;;) {
      Buffer oldest;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_bytes_ <= bytes) return released;
        oldest = remove(0);
      }
      munmap(oldest.memory, oldest.bytes);  // a millisecond for 50 MB, outside the lock
      released += oldest.bytes;
    }
  }

  size_t idle_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return idle_bytes_;
  }

  std::mutex& mutex() { return mutex_; }

  Pool() { idle_.reserve(kIdleBytes / kPooledBytes); }  // give_back never allocates

 private:
  Buffer remove(size_t i) {
    const Buffer buffer = idle_[i];
    idle_.erase(idle_.begin() + static_cast<std::ptrdiff_t>(i));
    idle_bytes_ -= buffer.bytes;
    return buffer;
  }

  std::mutex mutex_;
  std::vector<Buffer> idle_;  // in the order in which they became idle
  size_t idle_bytes_ = 0;
};

// Never destroyed: arrays outlive this module when the interpreter shuts down. A fork waits until no thread
// is inside, so the child finds the pool whole (its idle buffers are copies of the parent's, as all memory
// is).
Pool& pool() {
  static Pool* const instance = [] {
    auto* made = new Pool;
    pthread_atfork([] { pool().mutex().lock(); }, [] { pool().mutex().unlock(); },
                   [] { pool().mutex().unlock(); });
    return made;
  }();
  return *instance;
}

// Capsules refuse the null pointer and know no size: the size is their context.
void give_back(PyObject* capsule) {
  void* memory = PyCapsule_GetPointer(capsule, nullptr);
  pool().give_back({memory, reinterpret_cast<size_t>(PyCapsule_GetContext(capsule))});
}

}  // namespace

py::array pooled_array(const std::vector<py::ssize_t>& shape, size_t bytes) {
  bytes = size_class(bytes);
  void* memory = pool().take(bytes);
  if (memory == nullptr) return py::array_t<float>(shape);  // NumPy's error names the shape
  PyObject* capsule = PyCapsule_New(memory, nullptr, give_back);
  if (capsule == nullptr) {
    pool().give_back({memory, bytes});
    throw py::error_already_set();
  }
  const auto owner = py::reinterpret_steal<py::object>(capsule);
  PyCapsule_SetContext(capsule, reinterpret_cast<void*>(bytes));
  return py::array_t<float>(shape, static_cast<const float*>(memory), owner);
}

size_t release_idle_memory() { return pool().release_down_to(0); }
size_t idle_memory() { return pool().idle_bytes(); }

}  // namespace fastmha::python
