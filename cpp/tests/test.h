// A small test harness: TEST(name) { ... CHECK(condition, details...) ... }, one program per file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "src/check.h"

namespace fastmha::test {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registered {
  Registered(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

// Random numbers that are the same on every machine.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float normal() {
    // Sum of uniforms: std::normal_distribution differs between standard libraries.
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += engine_() * (1.0 / 4294967296.0);
    return static_cast<float>(sum - 6);
  }
  std::vector<float> normals(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal();
    return values;
  }

 private:
  std::mt19937 engine_;
};

inline bool same_bits(float a, float b) {
  return a == b ? std::signbit(a) == std::signbit(b) : std::isnan(a) && std::isnan(b);
}

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace fastmha::test

#define TEST(name)                                                              \
  static void test_##name();                                                    \
  static const fastmha::test::Registered registered_##name(#name, test_##name); \
  static void test_##name()

// Counts a failure and leaves the test.
#define CHECK(condition, ...)                                                                            \
  do {                                                                                                   \
    if (!(condition)) {                                                                                  \
      fastmha::test::fail(__FILE__, __LINE__, fastmha::concat("CHECK(" #condition ") ", ##__VA_ARGS__)); \
      return;                                                                                            \
    }                                                                                                    \
  } while (false)

// The call must throw std::invalid_argument with this text in its message.
#define CHECK_THROWS(call, text)                                                                      \
  do {                                                                                                \
    std::string message_ = "nothing was thrown";                                                      \
    try {                                                                                             \
      call;                                                                                           \
    } catch (const std::invalid_argument& error) {                                                    \
      message_ = error.what();                                                                        \
    }                                                                                                 \
    CHECK(message_.find(text) != std::string::npos, "expected \"", text, "\" in \"", message_, "\""); \
  } while (false)

#define TEST_MAIN()                                                                             \
  int main() {                                                                                  \
    for (const fastmha::test::Case& test : fastmha::test::cases()) {                            \
      const int before = fastmha::test::failures();                                             \
      test.run();                                                                               \
      std::printf("%s %s\n", fastmha::test::failures() == before ? "ok  " : "FAIL", test.name); \
    }                                                                                           \
    return fastmha::test::failures() == 0 ? 0 : 1;                                              \
  }
