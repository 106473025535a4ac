// Memory for results, kept warm: repeated calls write into pages that the system has already handed out.
//
// A new array of 50 MB is a new mapping: the system zeroes every page of it at first touch, which took longer
// than the operation itself (relu of 4096 x 3072 on two threads: 2.5 ms of which 1.0 were left with warm
// pages). Results from kPooledBytes on therefore own their memory through their base, a capsule that gives it
// back to the pool when the last view of it is gone, and the next result of that size takes it over.
//
// What callers can see of it: flags.owndata is False, base is not None, and resize() refuses. Contents are
// undefined until the operation has written them, as np.empty's.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <vector>

namespace fastmha::python {

namespace py = pybind11;

// Smaller results are NumPy's own: malloc recycles those by itself and within nanoseconds.
inline constexpr size_t kPooledBytes = size_t{1} << 20;

// Idle memory that the pool keeps, over all sizes; the least recently used is unmapped beyond it. The
// intermediates and the result of an encoder block on 4096 tokens of 768 (hidden layer 3072 wide) are 138 MB
// together.
inline constexpr size_t kIdleBytes = size_t{256} << 20;

// A float32 array in C order on pooled memory of at least that size.
py::array pooled_array(const std::vector<py::ssize_t>& shape, size_t bytes);

// Unmaps all idle memory and returns how much it was; what live arrays use stays theirs.
size_t release_idle_memory();
size_t idle_memory();

}  // namespace fastmha::python
