// Chooses the instruction set and reports what runs.
#include "fastmha/runtime.h"

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "check.h"
#include "isa.h"

namespace fastmha {
namespace {

bool always() { return true; }

#if defined(FASTMHA_HAVE_X86_KERNELS)
// __builtin_cpu_supports asks the operating system too (XGETBV): registers that it does not save are not
// there.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Best first. A new instruction set is one add_kernels() line in CMakeLists.txt and one row here.
const Isa kIsas[] = {
#if defined(FASTMHA_HAVE_X86_KERNELS)
    {"avx512", has_avx512, &fastmha_gemm_avx512, &fastmha_panel_avx512, &fastmha_short_avx512,
     &fastmha_decode_avx512, &fastmha_rowwise_avx512, &fastmha_top_k_avx512},
    {"avx2", has_avx2, &fastmha_gemm_avx2, &fastmha_panel_avx2, &fastmha_short_avx2, &fastmha_decode_avx2,
     &fastmha_rowwise_avx2, &fastmha_top_k_avx2},
#endif
    {"generic", always, &fastmha_gemm_generic, &fastmha_panel_generic, &fastmha_short_generic,
     &fastmha_decode_generic, &fastmha_rowwise_generic, &fastmha_top_k_generic},
};

std::string names(bool runnable_only) {
  std::string text;
  for (const Isa& isa : kIsas) {
    if (!runnable_only || isa.supported()) text += (text.empty() ? "" : ", ") + std::string(isa.name);
  }
  return text;
}

const Isa& choose() {
  const char* wanted = std::getenv("FASTMHA_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    for (const Isa& isa : kIsas) {
      if (isa.supported()) return isa;
    }
  }
  for (const Isa& isa : kIsas) {
    if (std::strcmp(isa.name, wanted) != 0) continue;
    FASTMHA_CHECK(isa.supported(), "FASTMHA_ISA=", wanted, ": this CPU does not support it; it can run ",
                  names(true));
    return isa;
  }
  throw std::invalid_argument(concat("FASTMHA_ISA=", wanted, " is unknown; this build has ", names(false),
                                     " (unset it to take the best)"));
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

}  // namespace

const Isa& active_isa() {
  static const Isa& chosen = choose();
  return chosen;
}

const char* isa() { return active_isa().name; }

std::vector<const Isa*> runnable_isas() {
  std::vector<const Isa*> runnable;
  for (const Isa& isa : kIsas) {
    if (isa.supported()) runnable.push_back(&isa);
  }
  return runnable;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> available;
  for (const Isa* isa : runnable_isas()) available.emplace_back(isa->name);
  return available;
}

BuildInfo build_info() {
  BuildInfo info;
  info.version = FASTMHA_VERSION;
#if defined(__clang__)
  info.compiler = concat("Clang ", __clang_version__);
#else
  info.compiler = concat("GCC ", __VERSION__);
#endif
  info.cpu = cpu_name();
#if defined(_OPENMP)
  info.openmp = _OPENMP;
#endif
  return info;
}

}  // namespace fastmha
