// Which kernels run: one row per instruction set, best first.
#pragma once

#include <vector>

#include "../kernels/attention.h"
#include "../kernels/gemm.h"
#include "../kernels/rowwise.h"
#include "../kernels/top_k.h"

namespace fastmha {

struct Isa {
  const char* name;
  bool (*supported)();
  const GemmKernels* gemm;
  const PanelKernels* panel;
  const ShortKernels* short_sequences;
  const DecodeKernels* decode;
  const RowwiseKernels* rowwise;
  const TopKKernels* top_k;
};

// The first row that this CPU supports, or the one that FASTMHA_ISA names. Decided once.
const Isa& active_isa();
// Those that this CPU can run, best first (the tests run them all).
std::vector<const Isa*> runnable_isas();

}  // namespace fastmha
