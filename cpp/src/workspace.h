// Workspace: the scratch memory of one operation, one slice per thread, kept for the next call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmha {

// Leases `threads` slices of at least `bytes_per_thread` from a buffer that belongs to the calling thread and
// only grows, so that repeated calls neither allocate nor page-fault. Taken before a parallel region; slices
// are written first by the thread that uses them, which places their pages on its NUMA node. A second lease
// while one is alive gets memory of its own.
class Workspace {
 public:
  Workspace(int threads, size_t bytes_per_thread);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // 64-byte aligned.
  template <class T = float>
  T* slice(int thread) const {
    return reinterpret_cast<T*>(base_ + static_cast<size_t>(thread) * stride_);
  }

 private:
  char* base_ = nullptr;
  size_t stride_ = 0;
  bool own_ = false;
};

}  // namespace fastmha
