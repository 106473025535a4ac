// Workspace: the scratch memory of one operation, one slice per thread, kept for the next call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastmha {

// Leases `threads` slices of at least `bytes_per_thread`, and one of `shared_bytes` for all, from a buffer
// that belongs to the calling thread and only grows (to 16 MiB a slice; more is given back), so that repeated
// calls neither allocate nor page-fault; release_scratch frees it. None grows with q_len x kv_len; per
// thread:
//
//   attention panels      50 KB at 64 + 64 features, AVX-512; grows with head_dim + value_dim; shared by all
//                         threads: a relative bias, per head a float for each distance that occurs
//   short sequences       22 KB
//   decoding              a piece's scores, some KB; shared by all threads: (2 + value_dim) floats per head
//                         and 256 keys
//   linear                a copy of up to 512 KiB of rows, where their stride shares cache sets
//   top_k                 16 bytes per 1024 columns; shared: 16 for 8192 columns of a row, and 8 k for each
//                         part of a row
//   sub-layers            768 KiB in slices of rows, up to 8 MiB where a slice is one sequence; a sequence
//                         that needs more has its projected rows in one lease of their own
//
// Taken before a parallel region; slices are written first by the thread that uses them, which places their
// pages on its NUMA node for as long as the buffer does not grow (the same thread numbers stay on the same
// nodes only if the user pins them: OMP_PROC_BIND). A second lease while one is alive (a sub-layer's step
// within the sub-layer) has a buffer of its own that is kept as well; a third gets new memory.
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
  bool* leased_ = nullptr;  // of the buffer that it is from; null: memory of its own
};

}  // namespace fastmha
