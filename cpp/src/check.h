// The one macro behind every error message: checked once, at the public boundary.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fastmha {

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// "(2, 8, 5, 64)", as NumPy prints a shape.
template <class ViewT>
std::string shape_text(const ViewT& view) {
  std::ostringstream text;
  text << '(';
  for (int i = 0; i < view.rank; ++i) text << (i ? ", " : "") << view.shape[i];
  text << (view.rank == 1 ? ",)" : ")");
  return text.str();
}

}  // namespace fastmha

// FASTMHA_CHECK(heads % kv_heads == 0, "attention: heads (", heads, ") must be a multiple of kv_heads (",
// kv_heads, ")")
#define FASTMHA_CHECK(condition, ...)                              \
  do {                                                             \
    if (__builtin_expect(!(condition), 0)) {                       \
      throw std::invalid_argument(::fastmha::concat(__VA_ARGS__)); \
    }                                                              \
  } while (false)
