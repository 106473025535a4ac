// Workspace: the scratch memory of one operation, one slice per thread, kept for the next call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmha {

// Leases `threads` slices of at least `bytes_per_thread`, and one of `shared_bytes` for all, from a buffer that
// belongs to the calling thread and only grows, so that repeated calls neither allocate nor page-fault (up to 256 MiB; more is given back). What it
// keeps is the most that any call so far needed: a slice is some 10 KiB (the tables of kernels say how much each
// needs; it depends on head_dim and block sizes, never on q_len x kv_len) times the threads, the shared part of a
// decode call grows with kv_len / 256. Taken before a parallel region; slices are written first by the thread that
// uses them, which places their pages on its NUMA node for as long as the buffer does not grow (the same thread
// numbers stay on the same nodes only if the user pins them: OMP_PROC_BIND). A second lease while one is alive gets
// memory of its own, which large ones page-fault anew in every call.
class Workspace {
 public:
  Workspace(int threads, size_t bytes_per_thread, size_t shared_bytes = 0);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // 64-byte aligned.
  template <class T = float>
  T* slice(int thread) const {
    return reinterpret_cast<T*>(base_ + static_cast<size_t>(thread) * stride_);
  }
  template <class T = float>
  T* shared() const {
    return reinterpret_cast<T*>(base_ + static_cast<size_t>(threads_) * stride_);
  }

 private:
  char* base_ = nullptr;
  size_t stride_ = 0;
  int threads_ = 0;
  bool own_ = false;
};

}  // namespace fastmha
