// The k largest numbers of each row, and the logarithm of its sum of exponentials: what decoding needs of its
// logits.
//
//   fastmha::top_k({logits, {rows, vocabulary}}, {values, {rows, k}}, ids, lse);
#pragma once

#include <cstdint>

#include "fastmha/types.h"

namespace fastmha {

// values (rows, k) <- the k largest of each row of x (rows, columns), in descending order, and ids (rows, k,
// one after another) <- their columns; of equal numbers (0 and -0 are equal) the smaller column comes first.
// -infinity is a number like others; NaN comes last. lse (rows, or null) <- log(sum(exp(x))) of each row:
// values - lse are logarithms of softmax. Its error is at most 2e-7 (1 + |lse|); -infinity for a row of
// -infinity alone, NaN with a NaN in the row, otherwise infinity with an infinity in it. 1 <= k <= columns <
// 2^31.
//
// Results depend on the row alone: not on the number of rows, strides or threads. Throws
// std::invalid_argument with nothing written.
void top_k(const ConstView& x, const MutableView& values, int64_t* ids, float* lse = nullptr);

}  // namespace fastmha
