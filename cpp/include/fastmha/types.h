// Views: a pointer, a shape and strides. fastmha owns no tensor of its caller's and copies none.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <type_traits>

namespace fastmha {

enum class DType : uint8_t { kFloat32, kBool };

inline constexpr int kMaxRank = 4;

// Shape and strides (in elements, may be 0 or negative) of up to kMaxRank axes over memory that somebody else
// owns. T is `float`, `const float` or `const void` (a mask, whose dtype says what it holds).
template <class T>
struct View {
  T* data = nullptr;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> strides{};
  DType dtype = DType::kFloat32;

  View() = default;

  // Row-major, without gaps.
  View(T* data_, std::initializer_list<int64_t> shape_) : data(data_), rank(check_rank(shape_.size())) {
    int axis = 0;
    for (int64_t extent : shape_) shape[axis++] = extent;
    int64_t stride = 1;
    for (int i = rank - 1; i >= 0; --i) {
      strides[i] = stride;
      stride *= shape[i];
    }
  }

  View(T* data_, std::initializer_list<int64_t> shape_, std::initializer_list<int64_t> strides_)
      : data(data_), rank(check_rank(shape_.size())) {
    if (shape_.size() != strides_.size()) {
      throw std::invalid_argument("View: shape and strides must have the same number of axes");
    }
    int axis = 0;
    for (int64_t extent : shape_) shape[axis++] = extent;
    axis = 0;
    for (int64_t stride : strides_) strides[axis++] = stride;
  }

  // A view to write through is a view to read from.
  template <class U, class = std::enable_if_t<std::is_convertible_v<U*, T*> && !std::is_same_v<U, T>>>
  View(const View<U>& other)  // NOLINT: implicit on purpose
      : data(other.data), rank(other.rank), shape(other.shape), strides(other.strides), dtype(other.dtype) {}

  bool empty() const { return data == nullptr && rank == 0; }
  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }

 private:
  static int check_rank(size_t rank) {
    if (rank > kMaxRank) throw std::invalid_argument("View: at most 4 axes");
    return static_cast<int>(rank);
  }
};

using ConstView = View<const float>;
using MutableView = View<float>;
using MaskView = View<const void>;

}  // namespace fastmha
