// Threads, instruction sets and build facts of the library as it runs.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace fastmha {

// Threads that an operation may use. At first: FASTMHA_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs that
// this process may use (affinity mask, cgroup quota). Results never depend on it.
void set_num_threads(int num_threads);
int get_num_threads();

// The instruction set in use ("avx512", "avx2", "generic"): the best that the CPU has, or what FASTMHA_ISA
// names. Throws std::invalid_argument when FASTMHA_ISA names one that is unknown or that this CPU lacks.
const char* isa();
// Those that this build has and this CPU can run, best first.
std::vector<std::string> available_isas();

// Scratch memory that operations keep for the calling thread's next call (at most 32 MiB for each thread that
// works for it): how many bytes it is, and returning it to the system, which gives the same number.
size_t kept_scratch();
size_t release_scratch();

struct BuildInfo {
  std::string version;
  std::string compiler;
  std::string cpu;
  int openmp = 0;  // the OpenMP version date (201511 is 4.5), 0 without
};
BuildInfo build_info();

}  // namespace fastmha
