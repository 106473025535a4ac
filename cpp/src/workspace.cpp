// Scratch memory that stays with the thread that calls.
#include "workspace.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "fastmha/runtime.h"

namespace fastmha {
namespace {

constexpr size_t kPage = 4096;
// What a calling thread keeps from call to call at most, by threads that work for it: a slice of a sub-layer,
// and as much again. Larger leases are those of single long sequences, whose attention takes far longer than
// getting the memory anew.
constexpr size_t kMostKept = size_t{16} << 20;

char* allocate(size_t bytes) {
  void* memory = std::aligned_alloc(kPage, (bytes + kPage - 1) / kPage * kPage);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<char*>(memory);
}

struct Buffer {
  char* data = nullptr;
  size_t bytes = 0;
  bool leased = false;
  ~Buffer() { std::free(data); }
};

// One for an operation, and one for the step of a sub-layer that it leads all threads through.
constexpr int kBuffers = 2;
thread_local Buffer kept[kBuffers];

}  // namespace

size_t kept_scratch() {
  size_t bytes = 0;
  for (const Buffer& buffer : kept) bytes += buffer.leased ? 0 : buffer.bytes;
  return bytes;
}

size_t release_scratch() {
  const size_t bytes = kept_scratch();
  for (Buffer& buffer : kept) {
    if (buffer.leased) continue;
    std::free(buffer.data);
    buffer = Buffer{};
  }
  return bytes;
}

Workspace::Workspace(int threads, size_t bytes_per_thread, size_t shared_bytes) : threads_(threads) {
  // Whole pages, so that slices share none, plus one cache line: slices a multiple of 4 KiB apart would
  // compete for the same cache sets.
  stride_ = (bytes_per_thread + kPage - 1) / kPage * kPage + 64;
  const size_t bytes = stride_ * static_cast<size_t>(threads) + shared_bytes;
  Buffer* const buffer = std::find_if(kept, kept + kBuffers, [](const Buffer& one) { return !one.leased; });
  if (buffer == kept + kBuffers || bytes > kMostKept * static_cast<size_t>(threads)) {
    base_ = allocate(bytes);
    return;
  }
  if (bytes > buffer->bytes) {
    char* grown = allocate(bytes);
    std::free(buffer->data);
    buffer->data = grown;
    buffer->bytes = bytes;
  }
  buffer->leased = true;
  leased_ = &buffer->leased;
  base_ = buffer->data;
}

Workspace::~Workspace() {
  if (leased_ != nullptr) {
    *leased_ = false;
  } else {
    std::free(base_);
  }
}

}  // namespace fastmha
