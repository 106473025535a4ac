// Attention of one query per sequence.
//
// Lanes are features: K and V rows stream through once, for all heads of a group, at the speed of memory.
// Pieces of kSplit keys, counted from key 0, are computed apart (so that all cores can work on one sequence)
// and merged in order.
#include "attention.h"

#include "attention_common.h"

namespace fastmha {
namespace {

// 256 keys of 128 floats are 128 KiB of K: a few microseconds of streaming, enough to hide handing out a
// piece.
constexpr int kSplit = 256;
constexpr int kStateHeader = 2;  // max, sum, then the value_dim outputs

// Scores of each head, and which keys are visible.
size_t decode_scratch(int64_t heads) { return static_cast<size_t>(heads) * kSplit + kSplit; }

FASTMHA_INLINE Vec dot_step(const float* a, const float* b, int64_t width, Vec acc) {
  return width >= kLanes
             ? fma(Vec::load(a), Vec::load(b), acc)
             : fma(Vec::load_n(a, static_cast<int>(width)), Vec::load_n(b, static_cast<int>(width)), acc);
}

FASTMHA_INLINE float dot(const float* a, const float* b, int64_t size) {
  // Two chains: a head of 128 features is 8 steps, and other rows overlap with the rest of the latency.
  Vec even = Vec::zero(), odd = Vec::zero();
  int64_t d = 0;
  for (; d + 2 * kLanes <= size; d += 2 * kLanes) {
    even = fma(Vec::load(a + d), Vec::load(b + d), even);
    odd = fma(Vec::load(a + d + kLanes), Vec::load(b + d + kLanes), odd);
  }
  if (d < size) even = dot_step(a + d, b + d, size - d, even);
  d += kLanes;
  if (d < size) odd = dot_step(a + d, b + d, size - d, odd);
  return reduce_add(even + odd);
}

// Whether the query sees key j; the caller has applied the bounds by position.
FASTMHA_INLINE bool key_visible(const AttentionHead& head, int64_t j) {
  if (head.mask_kind == MaskKind::kBool) {
    return static_cast<const uint8_t*>(head.mask)[j * head.mask_key_stride] != 0;
  }
  return head.mask_kind != MaskKind::kFloat ||
         static_cast<const float*>(head.mask)[j * head.mask_key_stride] != -kInfinity;
}

// Final log2 scores of keys [key, key + keys) of one head, hidden ones -infinity.
void decode_scores(const AttentionHead& head, int64_t key, int64_t keys, float* score) {
  for (int64_t j = 0; j < keys; ++j) {
    score[j] = head.scale * dot(head.query, head.key + (key + j) * head.key_stride, head.head_dim);
  }
  if (head.softcap != 0) {
    const Vec cap = Vec::set1(head.softcap), inverse_cap = Vec::set1(1.0f / head.softcap);
    for (int64_t j = 0; j < keys; j += kLanes) {  // score has room for whole registers
      (cap * tanh(Vec::load(score + j) * inverse_cap)).store(score + j);
    }
  }
  if (head.slope != 0) {
    for (int64_t j = 0; j < keys; ++j) {
      const int64_t distance = head.offset - (key + j);
      score[j] -= head.slope * static_cast<float>(distance < 0 ? -distance : distance);
    }
  }
  if (head.mask_kind == MaskKind::kNone) return;
  for (int64_t j = 0; j < keys; ++j) {
    if (!key_visible(head, key + j)) {
      score[j] = -kInfinity;
    } else if (head.mask_kind == MaskKind::kFloat) {
      const float mask = static_cast<const float*>(head.mask)[(key + j) * head.mask_key_stride];
      const float bias = mask * kLog2e;
      score[j] += bias == -kInfinity ? -__FLT_MAX__ : bias;  // as mask_to_log2 in attention_panel.cpp
    }
  }
}

// Scores -> weights in place; returns their sum. Lanes past `keys` are set to -infinity first.
void decode_softmax(float* score, int64_t keys, float* max_out, float* sum_out) {
  const int64_t padded = (keys + kLanes - 1) / kLanes * kLanes;
  for (int64_t j = keys; j < padded; ++j) score[j] = -kInfinity;
  Vec top = Vec::set1(-kInfinity);
  for (int64_t j = 0; j < padded; j += kLanes) top = max(Vec::load(score + j), top);
  *max_out = reduce_max(top);
  const Vec pivot = Vec::set1(*max_out == -kInfinity ? 0.0f : *max_out);
  Vec sum = Vec::zero();
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec weight = exp2_small(Vec::load(score + j) - pivot);
    sum = sum + weight;
    weight.store(score + j);
  }
  *sum_out = reduce_add(sum);
}

// out[d] += sum over keys of weights[key] * V[key][d], Vecs registers of d at a time. Hidden keys are stepped
// over.
template <int Vecs, bool Masked>
void decode_values(const AttentionHead& head, const float* values, const float* weights,
                   const uint8_t* visible, int64_t keys, int last_width, float* out) {
  Vec acc[Vecs];
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) acc[v] = Vec::zero();
  for (int64_t j = 0; j < keys; ++j) {
    if (Masked && !visible[j]) continue;
    const float* row = values + j * head.value_stride;
    const Vec weight = Vec::set1(weights[j]);
    FASTMHA_UNROLL
    for (int v = 0; v < Vecs; ++v) {
      const Vec value = v + 1 < Vecs || last_width == kLanes ? Vec::load(row + v * kLanes)
                                                             : Vec::load_n(row + v * kLanes, last_width);
      acc[v] = fma(weight, value, acc[v]);
    }
  }
  FASTMHA_UNROLL
  for (int v = 0; v < Vecs; ++v) {
    if (v + 1 < Vecs || last_width == kLanes) {
      acc[v].store(out + v * kLanes);
    } else {
      acc[v].store_n(out + v * kLanes, last_width);
    }
  }
}

template <bool Masked>
void decode_output(const AttentionHead& head, int64_t key, int64_t keys, const float* weights,
                   const uint8_t* visible, float* out) {
  const float* values = head.value + key * head.value_stride;
  int64_t d = 0;
  for (; d + 8 * kLanes <= head.value_dim; d += 8 * kLanes) {
    decode_values<8, Masked>(head, values + d, weights, visible, keys, kLanes, out + d);
  }
  for (; d + 4 * kLanes <= head.value_dim; d += 4 * kLanes) {
    decode_values<4, Masked>(head, values + d, weights, visible, keys, kLanes, out + d);
  }
  for (; d < head.value_dim; d += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, head.value_dim - d));
    decode_values<1, Masked>(head, values + d, weights, visible, keys, width, out + d);
  }
}

void decode(const DecodeGroup& group, int64_t index, float* state, float* scratch) {
  for (int64_t h = 0; h < group.count; ++h) {
    const AttentionHead& head = group.heads[h];
    float* header = state + h * (kStateHeader + head.value_dim);
    float* out = header + kStateHeader;
    float* score = scratch + h * kSplit;
    auto* visible = reinterpret_cast<uint8_t*>(scratch + group.count * kSplit);

    const int64_t low = larger(index * kSplit, larger(0, head.offset - head.left));
    const int64_t high = smaller((index + 1) * kSplit, smaller(head.kv_len, head.offset + head.right + 1));
    const int64_t keys = high - low;
    header[0] = -kInfinity;
    header[1] = 0.0f;
    __builtin_memset(out, 0, static_cast<size_t>(head.value_dim) * sizeof(float));
    if (keys <= 0) continue;

    decode_scores(head, low, keys, score);
    if (head.weights != nullptr)
      __builtin_memcpy(head.weights + low, score, static_cast<size_t>(keys) * sizeof(float));
    decode_softmax(score, keys, &header[0], &header[1]);
    if (head.mask_kind == MaskKind::kNone) {
      decode_output<false>(head, low, keys, score, nullptr, out);
    } else {
      for (int64_t j = 0; j < keys; ++j) visible[j] = key_visible(head, low + j);
      decode_output<true>(head, low, keys, score, visible, out);
    }
  }
}

// m <- max(m1, m2);  o <- o1 * exp2(m1 - m) + o2 * exp2(m2 - m);  l likewise
void decode_merge(float* left, const float* right, int64_t value_dim) {
  const float top = left[0] > right[0] ? left[0] : right[0];
  const float pivot = top == -kInfinity ? 0.0f : top;
  const Vec left_scale = exp2_small(Vec::set1(left[0] - pivot));
  const Vec right_scale = exp2_small(Vec::set1(right[0] - pivot));
  left[0] = top;
  float scales[2][kLanes];
  left_scale.store(scales[0]);
  right_scale.store(scales[1]);
  left[1] = left[1] * scales[0][0] + right[1] * scales[1][0];
  for (int64_t d = 0; d < value_dim; d += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, value_dim - d));
    const Vec merged = fma(Vec::load_n(right + kStateHeader + d, width), right_scale,
                           Vec::load_n(left + kStateHeader + d, width) * left_scale);
    merged.store_n(left + kStateHeader + d, width);
  }
}

void decode_finish(const AttentionHead& head, const float* state) {
  const float top = state[0], sum = state[1];
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  const Vec scale = Vec::set1(inverse);
  for (int64_t d = 0; d < head.value_dim; d += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, head.value_dim - d));
    // + 0 as in write_output.
    (Vec::load_n(state + kStateHeader + d, width) * scale + Vec::zero()).store_n(head.out + d, width);
  }
  if (head.lse != nullptr) *head.lse = sum == 0.0f ? -kInfinity : top * kLn2 + __builtin_logf(sum);
  if (head.weights == nullptr) return;
  const int64_t low = larger(0, head.offset - head.left);
  const int64_t high = smaller(head.kv_len, head.offset + head.right + 1);
  const Vec pivot = Vec::set1(top == -kInfinity ? 0.0f : top);
  for (int64_t j = 0; j < head.kv_len; j += kLanes) {
    const int width = static_cast<int>(smaller(kLanes, head.kv_len - j));
    (exp2_small(Vec::load_n(head.weights + j, width) - pivot) * scale).store_n(head.weights + j, width);
  }
  for (int64_t j = 0; j < head.kv_len; ++j) {
    if (j < low || j >= high || !key_visible(head, j)) head.weights[j] = 0.0f;
  }
}

}  // namespace

extern "C" const DecodeKernels FASTMHA_KERNEL_SYMBOL(decode) = {
    "attention_decode_f32_" FASTMHA_STRINGIZE(FASTMHA_KERNEL_ISA),
    kSplit,
    decode_scratch,
    decode,
    decode_merge,
    decode_finish,
};

}  // namespace fastmha
