// Attention kernels one by one on every instruction set against a double oracle, then the public functions.
// Buffers are exactly as large as they must be, so that AddressSanitizer sees a read past an edge.
#include "fastmha/attention.h"

#include <algorithm>

#include "src/isa.h"
#include "tests/test.h"

using namespace fastmha;
using namespace fastmha::test;

namespace {

// One head and what it should give.
struct Problem {
  int64_t q_len, kv_len, head_dim, value_dim;
  std::vector<float> query, key, value, out, weights, lse;
  std::vector<float> biases, turned;  // the relative bias in both orders
  AttentionHead head;
  uint32_t seed;

  Problem(int64_t q_len_, int64_t kv_len_, int64_t head_dim_, int64_t value_dim_, uint32_t seed_ = 0)
      : q_len(q_len_), kv_len(kv_len_), head_dim(head_dim_), value_dim(value_dim_), seed(seed_) {
    Random random(seed);
    query = random.normals(q_len * head_dim);
    key = random.normals(kv_len * head_dim);
    value = random.normals(kv_len * value_dim);
    out.assign(static_cast<size_t>(q_len * value_dim), kNan);
    weights.assign(static_cast<size_t>(q_len * kv_len), kNan);
    lse.assign(static_cast<size_t>(q_len), kNan);
    head.query = query.data();
    head.key = key.data();
    head.value = value.data();
    head.out = out.data();
    head.query_stride = head.key_stride = head_dim;
    head.value_stride = head.out_stride = value_dim;
    head.q_len = q_len;
    head.kv_len = kv_len;
    head.head_dim = head_dim;
    head.value_dim = value_dim;
    head.scale = static_cast<float>(1.44269504088896341 / std::sqrt(static_cast<double>(head_dim)));
    head.weights = weights.data();
    head.weights_stride = kv_len;
    head.lse = lse.data();
    head.lse_stride = 1;
  }

  // Biases by distance up to `reach`, as AttentionPlan lays them out for panels of bq queries: exactly as long as the
  // distances that occur.
  void add_relative_bias(int64_t reach, int bq) {
    biases = Random(seed + static_cast<uint32_t>(reach)).normals(2 * reach + 1);
    RelativeBias& relative = head.relative;
    relative.by_key = biases.data() + reach;
    relative.reach = reach;
    relative.low = std::min(std::max(head.offset - kv_len + 1, -reach), reach) - bq;
    relative.high = std::min(std::max(head.offset + q_len - 1, -reach), reach);
    for (int64_t distance = relative.low; distance < relative.high + bq; ++distance) {
      turned.push_back(static_cast<float>(1.44269504088896341) * bias(-distance));
    }
    relative.by_query = turned.data();
  }
  float bias(int64_t distance) const {
    const int64_t reach = head.relative.reach;
    return reach == 0 && biases.empty() ? 0 : biases[reach + std::min(std::max(distance, -reach), reach)];
  }

  bool visible(int64_t i, int64_t j) const {
    if (j < i + head.offset - head.left || j > i + head.offset + head.right) return false;
    return head.mask_kind != MaskKind::kBool ||
           static_cast<const uint8_t*>(head.mask)[i * head.mask_query_stride + j * head.mask_key_stride] != 0;
  }

  // Largest difference to float64 of out, weights and lse; NaN counts as infinite.
  double error() const {
    double worst = 0;
    const auto compare = [&](double got, double expected) {
      const double difference = got == expected ? 0 : std::abs(got - expected);
      worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
    };
    for (int64_t i = 0; i < q_len; ++i) {
      std::vector<double> score(static_cast<size_t>(kv_len));
      double top = -INFINITY;
      for (int64_t j = 0; j < kv_len; ++j) {
        double dot = 0;
        for (int64_t d = 0; d < head_dim; ++d) dot += double{query[i * head_dim + d]} * key[j * head_dim + d];
        score[j] = visible(i, j)
                       ? dot / std::sqrt(static_cast<double>(head_dim)) + bias(j - (i + head.offset))
                       : -INFINITY;
        top = std::max(top, score[j]);
      }
      double sum = 0;
      for (double& s : score) {
        s = top == -INFINITY ? 0.0 : std::exp(s - top);
        sum += s;
      }
      for (int64_t j = 0; j < kv_len; ++j) compare(weights[i * kv_len + j], sum == 0 ? 0 : score[j] / sum);
      compare(lse[i], sum == 0 ? -INFINITY : top + std::log(sum));
      for (int64_t d = 0; d < value_dim; ++d) {
        double expected = 0;
        for (int64_t j = 0; j < kv_len; ++j) {
          if (visible(i, j)) expected += score[j] / (sum == 0 ? 1 : sum) * value[j * value_dim + d];
        }
        compare(out[i * value_dim + d], expected);
      }
    }
    return worst;
  }
};

// Scores are below about 6 in size here: head_dim products of rounding 2^-24 each, then exp, then averages of
// values below about 6. 1e-5 holds all of it with a margin of 3; a wrong key or lane is off by 0.01 and more.
constexpr double kTolerance = 1e-5;

void run_panels(const PanelKernels& kernels, const AttentionHead& head) {
  std::vector<float> scratch(kernels.scratch(head.head_dim, head.value_dim) + 16, kNan);
  for (int64_t first = 0; first < head.q_len; first += kernels.bq) kernels.run(head, first, scratch.data());
}

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), same_bits);
}

void run_decode(const DecodeKernels& kernels, const AttentionHead& head) {
  std::vector<float> scratch(kernels.scratch(1, head.head_dim), kNan);
  std::vector<float> total(static_cast<size_t>(2 + head.value_dim)), piece(total);
  kernels.piece({&head, 1}, 0, total.data(), scratch.data());
  for (int64_t index = 1; index * kernels.split < head.kv_len; ++index) {
    kernels.piece({&head, 1}, index, piece.data(), scratch.data());
    kernels.merge(total.data(), piece.data(), head.value_dim);
  }
  kernels.finish(head, total.data());
}

// Heads of the same sizes as a group.
void run_group(const ShortKernels& kernels, std::vector<Problem>& problems, bool stream = false) {
  HeadGroup group;
  group.shared = problems[0].head;
  group.stream = stream;
  group.count = static_cast<int>(problems.size());
  for (int h = 0; h < group.count; ++h) {
    const AttentionHead& head = problems[h].head;
    group.query[h] = head.query;
    group.key[h] = head.key;
    group.value[h] = head.value;
    group.relative[h] = head.relative.by_key;
    group.out[h] = head.out;
    group.weights[h] = head.weights;
    group.lse[h] = head.lse;
  }
  std::vector<float> scratch(kernels.scratch, kNan);
  kernels.run(group, &group, scratch.data());  // the next group may be any
}

std::vector<Problem> make_group(int count, int64_t q_len, int64_t kv_len, int64_t dim, int64_t value_dim) {
  std::vector<Problem> problems;
  for (int h = 0; h < count; ++h) problems.emplace_back(q_len, kv_len, dim, value_dim, h);
  return problems;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return fastmha::test::same_bits(x, y); });
}

// The group's results are right, and bit for bit what a panel gives for each head.
bool agrees_with_panels(const Isa* isa, std::vector<Problem>& problems) {
  run_group(*isa->short_sequences, problems);
  for (Problem& problem : problems) {
    if (!(problem.error() < kTolerance)) return false;
    const std::vector<float> out = problem.out, weights = problem.weights, lse = problem.lse;
    run_panels(*isa->panel, problem.head);
    if (!same_bits(out, problem.out) || !same_bits(weights, problem.weights) ||
        !same_bits(lse, problem.lse)) {
      return false;
    }
  }
  return true;
}

}  // namespace

TEST(short_sizes_agree_with_panels) {
  for (const Isa* isa : runnable_isas()) {
    const ShortKernels& kernels = *isa->short_sequences;
    for (int64_t q_len = 1; q_len <= kernels.max_queries; ++q_len) {
      for (int64_t kv_len : {1, 2, 3, 4, 5, 6, 7, 9, 11, 13, kernels.max_keys}) {
        for (int64_t dim : {1, 7, 8, 15, 16, 17, 64, 100}) {
          const int count = 1 + static_cast<int>((q_len + kv_len) % kernels.group);
          std::vector<Problem> problems = make_group(count, q_len, kv_len, dim, dim == 7 ? 65 : dim);
          CHECK(agrees_with_panels(isa, problems), kernels.name, " heads ", count, " q_len ", q_len,
                " kv_len ", kv_len, " dim ", dim);
        }
      }
    }
  }
}

TEST(short_windows_and_offsets) {
  for (const Isa* isa : runnable_isas()) {
    for (int64_t offset : {-20, -3, -1, 0, 2, 9, 30}) {
      for (int64_t left : {int64_t{0}, int64_t{3}, AttentionHead::kOpenSide}) {
        for (int64_t right : {int64_t{0}, int64_t{2}, AttentionHead::kOpenSide}) {
          std::vector<Problem> problems = make_group(isa->short_sequences->group, 7, 11, 20, 33);
          for (Problem& problem : problems) {
            problem.head.offset = offset;
            problem.head.left = left;
            problem.head.right = right;
          }
          CHECK(agrees_with_panels(isa, problems), isa->name, " offset ", offset, " left ", left, " right ",
                right);
        }
      }
    }
  }
}

TEST(short_relative_bias) {
  for (const Isa* isa : runnable_isas()) {
    for (int64_t q_len : {1, 2, 5, 13, 14}) {
      for (int64_t kv_len : {1, 4, 14}) {
        for (int64_t reach : {0, 1, 3, 40}) {
          for (int64_t offset : {-1000, -20, -3, 0, 2, 30, 1000}) {
            std::vector<Problem> problems =
                make_group(isa->short_sequences->group - 1, q_len, kv_len, 20, 33);
            for (Problem& problem : problems) {
              problem.head.offset = offset;
              if (reach == 3) problem.head.left = 2;
              problem.add_relative_bias(reach, isa->panel->bq);
            }
            CHECK(agrees_with_panels(isa, problems), isa->name, " q_len ", q_len, " kv_len ", kv_len,
                  " reach ", reach, " offset ", offset);
          }
        }
      }
    }
  }
}

TEST(short_without_keys_gives_zeros) {
  for (const Isa* isa : runnable_isas()) {
    std::vector<Problem> problems = make_group(2, 5, 0, 16, 16);
    run_group(*isa->short_sequences, problems);
    for (const Problem& problem : problems) CHECK(problem.error() == 0, isa->name);
  }
}

TEST(short_never_reads_masked_values) {
  for (const Isa* isa : runnable_isas()) {
    std::vector<Problem> problems = make_group(3, 6, 9, 16, 20);
    for (Problem& problem : problems) {
      problem.head.right = 0;
      for (int64_t j = 6; j < 9; ++j) {
        std::fill_n(&problem.key[j * 16], 16, kNan);
        std::fill_n(&problem.value[j * 20], 20, j == 7 ? kNan : kInf);
      }
    }
    CHECK(agrees_with_panels(isa, problems), isa->name);
  }
}

// Outputs of any alignment and stride past the caches: the same numbers, and nothing beside them.
TEST(short_streamed_outputs) {
  for (const Isa* isa : runnable_isas()) {
    for (int64_t value_dim : {1, 15, 16, 33, 64, 200}) {
      for (int64_t gap : {0, 3, 16}) {
        for (int64_t shift = 0; shift < 17; ++shift) {
          std::vector<Problem> problems = make_group(isa->short_sequences->group, 5, 5, 16, value_dim);
          run_group(*isa->short_sequences, problems);
          std::vector<std::vector<float>> expected;
          std::vector<std::vector<float>> memory;
          for (Problem& problem : problems) {
            expected.push_back(problem.out);
            memory.emplace_back(static_cast<size_t>(shift + 5 * (value_dim + gap)), kInf);
            problem.head.out = memory.back().data() + shift;
            problem.head.out_stride = value_dim + gap;
          }
          run_group(*isa->short_sequences, problems, true);
          for (size_t h = 0; h < problems.size(); ++h) {
            for (int64_t at = 0; at < static_cast<int64_t>(memory[h].size()); ++at) {
              const int64_t row = (at - shift) / (value_dim + gap), column = (at - shift) % (value_dim + gap);
              const bool beside = at < shift || column >= value_dim;
              CHECK(fastmha::test::same_bits(memory[h][at],
                                             beside ? kInf : expected[h][row * value_dim + column]),
                    isa->name, " value_dim ", value_dim, " gap ", gap, " shift ", shift, " element ", at);
            }
          }
        }
      }
    }
  }
}

TEST(panel_sizes_around_tile_edges) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    const int64_t bq = kernels.bq, bk = kernels.bk;
    for (int64_t q_len : {int64_t{1}, bq / 2 - 1, bq / 2, bq / 2 + 1, bq - 1, bq, bq + 1}) {
      for (int64_t kv_len : {int64_t{1}, int64_t{13}, int64_t{14}, int64_t{15}, bk - 1, bk, bk + 1}) {
        for (int64_t dim : {1, 3, 15, 16, 17, 64}) {
          Problem problem(q_len, kv_len, dim, dim == 3 ? 33 : dim);
          run_panels(kernels, problem.head);
          CHECK(problem.error() < kTolerance, kernels.name, " q_len ", q_len, " kv_len ", kv_len, " dim ",
                dim, " error ", problem.error());
        }
      }
    }
  }
}

TEST(panel_windows_and_offsets) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    for (int64_t offset : {-70, -1, 0, 3, 200, 400}) {
      for (int64_t left : {int64_t{0}, int64_t{5}, int64_t{150}, AttentionHead::kOpenSide}) {
        for (int64_t right : {int64_t{0}, int64_t{7}, AttentionHead::kOpenSide}) {
          Problem problem(67, 300, 16, 16);
          problem.head.offset = offset;
          problem.head.left = left;
          problem.head.right = right;
          run_panels(kernels, problem.head);
          CHECK(problem.error() < kTolerance, kernels.name, " offset ", offset, " left ", left, " right ",
                right, " error ", problem.error());
        }
      }
    }
  }
}

TEST(panel_relative_bias) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    for (int64_t q_len : {1, kernels.bq - 1, kernels.bq + 1, 67}) {
      for (int64_t reach : {0, 1, kernels.bq - 1, kernels.bq, 100, 1000}) {
        for (int64_t offset : {-1000, -70, 0, 3, 260, 1000}) {
          Problem problem(q_len, 300, 16, 16);
          problem.head.offset = offset;
          if (reach == 100) problem.head.left = 90;
          problem.add_relative_bias(reach, kernels.bq);
          run_panels(kernels, problem.head);
          CHECK(problem.error() < kTolerance, kernels.name, " q_len ", q_len, " reach ", reach, " offset ",
                offset, " error ", problem.error());
        }
      }
    }
  }
}

// 0 * NaN is NaN: what a masked key holds must be stepped over, pair by pair.
TEST(panel_never_reads_masked_values) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    Problem problem(40, 140, 16, 20);
    std::vector<uint8_t> mask(40 * 140);
    for (int64_t i = 0; i < 40; ++i) {
      for (int64_t j = 0; j < 140; ++j) mask[i * 140 + j] = (i * 7 + j * 3) % 5 != 0 && j % 11 != 4;
    }
    problem.head.mask = mask.data();
    problem.head.mask_kind = MaskKind::kBool;
    problem.head.mask_query_stride = 140;
    problem.head.mask_key_stride = 1;
    for (int64_t j = 4; j < 140; j += 11) {
      std::fill_n(&problem.key[j * 16], 16, kNan);
      std::fill_n(&problem.value[j * 20], 20, kInf);
    }
    run_panels(kernels, problem.head);
    CHECK(problem.error() < kTolerance, kernels.name, " error ", problem.error());
  }
}

TEST(panel_lanes_do_not_depend_on_each_other) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    Problem all(2 * kernels.bq, 300, 33, 17);
    all.head.right = 0;
    all.head.offset = 100;
    run_panels(kernels, all.head);
    const int64_t row = kernels.bq + 3;
    Problem alone(2 * kernels.bq, 300, 33, 17);
    alone.head.right = 0;
    alone.head.offset = 100 + row;
    alone.head.query += row * 33;
    alone.head.q_len = 1;
    run_panels(kernels, alone.head);
    for (int64_t d = 0; d < 17; ++d)
      CHECK(same_bits(alone.out[d], all.out[row * 17 + d]), kernels.name, " feature ", d);
  }
}

// Rows 2 and 4 KiB apart are walked through in other tiles and with other fetch distances.
TEST(panel_strides_change_no_bit) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    for (int64_t dim : {24, 64}) {
      Problem dense(70, 300, dim, dim);
      dense.head.right = 0;
      dense.head.offset = 200;
      run_panels(kernels, dense.head);
      CHECK(dense.error() < kTolerance, kernels.name, " error ", dense.error());
      for (int64_t stride : {512, 768, 1024, 2048}) {
        std::vector<float> key(static_cast<size_t>(299 * stride + dim)), value(key);
        for (int64_t j = 0; j < 300; ++j) {
          std::copy_n(&dense.key[j * dim], dim, &key[j * stride]);
          std::copy_n(&dense.value[j * dim], dim, &value[j * stride]);
        }
        std::vector<float> out(dense.out.size(), kNan);
        AttentionHead head = dense.head;
        head.key = key.data();
        head.value = value.data();
        head.key_stride = head.value_stride = stride;
        head.out = out.data();
        run_panels(kernels, head);
        for (size_t i = 0; i < out.size(); ++i)
          CHECK(same_bits(out[i], dense.out[i]), kernels.name, " stride ", stride, " element ", i);
      }
    }
  }
}

// Panels over a copy of K and V write what each writes alone: windows that leave panels without keys, a last panel of few
// queries, rows that are no multiple of a register, and hidden values that must be stepped over.
TEST(panels_in_a_group_change_no_bit) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    for (int count : {1, 2, kernels.group}) {
      for (int64_t offset : {-60, 0, 500}) {
        for (int64_t left : {int64_t{90}, AttentionHead::kOpenSide}) {
          for (int64_t right : {int64_t{0}, AttentionHead::kOpenSide}) {
            Problem alone((count + 1) * kernels.bq - 3, 530, 33, 17);
            for (int64_t j = 520; j < 530; ++j) alone.value[j * 17] = kInf;
            alone.head.offset = offset;
            alone.head.left = left;
            alone.head.right = right;
            Problem grouped = alone;
            AttentionHead head = alone.head;
            head.out = grouped.out.data();
            head.lse = grouped.lse.data();
            head.weights = grouped.weights.data();
            run_panels(kernels, alone.head);
            std::vector<float> scratch(kernels.group_scratch(33, 17), kNan);
            kernels.run(head, 0, scratch.data());
            kernels.run_group(head, kernels.bq, count, scratch.data());
            CHECK(same_bytes(grouped.out, alone.out) && same_bytes(grouped.lse, alone.lse) &&
                      same_bytes(grouped.weights, alone.weights),
                  kernels.name, " panels ", count, " offset ", offset, " left ", left, " right ", right);
          }
        }
      }
    }
  }
}

TEST(panel_fetching_ahead_changes_no_bit) {
  const std::vector<float> rows(1000);
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    Problem plain(67, 140, 20, 20), fetching(67, 140, 20, 20);
    run_panels(kernels, plain.head);
    fetching.head.upcoming[0] = {rows.data(), 7, 0, 5};
    fetching.head.upcoming[1] = {rows.data(), 100, 10, 33};
    fetching.head.upcoming[3] = {rows.data(), 100, 10, 0};
    run_panels(kernels, fetching.head);
    for (size_t i = 0; i < plain.out.size(); ++i)
      CHECK(same_bits(plain.out[i], fetching.out[i]), kernels.name, " element ", i);
  }
}

// Bytes are compared 32 at a time: every size around that, any byte but 0 is true; a float mask of 0 and -infinity
// means the same, whichever way it lies.
TEST(panel_masks_of_every_size) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    for (int64_t q_len : {1, 7, 16, 31, 33}) {
      for (int64_t kv_len : {1, 15, 31, 32, 33, 64, 127, 161}) {
        Problem problem(q_len, kv_len, 8, 11);
        std::vector<uint8_t> mask(static_cast<size_t>(q_len * kv_len));
        std::vector<float> added(mask.size()), turned(mask.size());
        for (int64_t i = 0; i < q_len; ++i) {
          for (int64_t j = 0; j < kv_len; ++j) {
            const bool visible = (i * 5 + j * 3) % 7 != 0 && j < kv_len - i % 3;
            mask[i * kv_len + j] = visible ? static_cast<uint8_t>(1 << (i + j) % 8) : uint8_t{0};
            added[i * kv_len + j] = turned[j * q_len + i] = visible ? 0.0f : -kInf;
          }
        }
        problem.head.mask = mask.data();
        problem.head.mask_kind = MaskKind::kBool;
        problem.head.mask_query_stride = kv_len;
        problem.head.mask_key_stride = 1;
        run_panels(kernels, problem.head);
        CHECK(problem.error() < kTolerance, kernels.name, " ", q_len, " x ", kv_len, " error ",
              problem.error());
        const std::vector<float> expected = problem.out;
        problem.head.mask_kind = MaskKind::kFloat;
        for (const bool across : {false, true}) {
          problem.head.mask = across ? turned.data() : added.data();
          problem.head.mask_query_stride = across ? 1 : kv_len;
          problem.head.mask_key_stride = across ? q_len : 1;
          run_panels(kernels, problem.head);
          for (size_t i = 0; i < expected.size(); ++i)
            CHECK(same_bits(problem.out[i], expected[i]), kernels.name, " ", q_len, " x ", kv_len,
                  " element ", i);
        }
      }
    }
  }
}

// Keys that a mask hides from all at the end of a block are dropped, as if they did not exist.
TEST(panel_padding_mask_equals_length) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    for (int64_t length : {1, 31, 100, 128, 129, 250}) {
      Problem masked(40, 260, 16, 20), shorter(40, 260, 16, 20);
      std::vector<uint8_t> mask(260, 0);
      std::fill_n(mask.begin(), length, uint8_t{1});
      masked.head.mask = mask.data();
      masked.head.mask_kind = MaskKind::kBool;
      masked.head.mask_key_stride = 1;
      std::fill(masked.value.begin() + length * 20, masked.value.end(), kNan);
      std::fill(masked.key.begin() + length * 16, masked.key.end(), kNan);
      run_panels(kernels, masked.head);
      shorter.head.kv_len = length;
      run_panels(kernels, shorter.head);
      for (size_t i = 0; i < masked.out.size(); ++i)
        CHECK(same_bits(masked.out[i], shorter.out[i]), kernels.name, " length ", length, " element ", i);
    }
  }
}

// A hidden value that is not a number is found in the output, and the panel computed once more with care: every
// other result keeps its bits, whichever feature the value is in.
TEST(panel_hidden_values_change_no_bit) {
  for (const Isa* isa : runnable_isas()) {
    const PanelKernels& kernels = *isa->panel;
    for (int64_t feature : {0, 5, 19, 39}) {
      for (const float bad : {kNan, kInf, -kInf}) {
        Problem plain(45, 170, 16, 40), broken(45, 170, 16, 40);
        for (Problem* problem : {&plain, &broken}) {
          problem->head.right = 0;
          problem->head.offset = 120;
          problem->head.left = 100;
        }
        broken.value[150 * 40 + feature] = bad;  // queries 30 and up see key 150, all others must not
        broken.key[5 * 16 + 3] = kNan;           // before every window
        run_panels(kernels, plain.head);
        run_panels(kernels, broken.head);
        for (int64_t i = 0; i < 45; ++i) {
          for (int64_t d = 0; d < 40; ++d) {
            const float got = broken.out[i * 40 + d];
            if (i >= 30 && d == feature) {
              CHECK(!std::isfinite(got), kernels.name, " row ", i, " got ", got);
            } else {
              CHECK(same_bits(got, plain.out[i * 40 + d]), kernels.name, " row ", i, " feature ", d);
            }
          }
        }
      }
    }
  }
}

TEST(decode_sizes_around_pieces) {
  for (const Isa* isa : runnable_isas()) {
    const DecodeKernels& kernels = *isa->decode;
    for (int64_t kv_len :
         {int64_t{1}, int64_t{15}, int64_t{17}, int64_t{kernels.split} - 1, int64_t{kernels.split},
          int64_t{kernels.split} + 1, int64_t{3} * kernels.split + 5}) {
      for (int64_t dim : {1, 15, 16, 17, 64, 80, 129}) {
        Problem problem(1, kv_len, dim, dim == 80 ? 200 : dim);
        run_decode(kernels, problem.head);
        CHECK(problem.error() < kTolerance, kernels.name, " kv_len ", kv_len, " dim ", dim, " error ",
              problem.error());
      }
    }
  }
}

TEST(decode_relative_bias) {
  for (const Isa* isa : runnable_isas()) {
    const DecodeKernels& kernels = *isa->decode;
    for (int64_t kv_len : {1, 15, 17, kernels.split, 2 * kernels.split + 5}) {
      for (int64_t reach : {0, 1, 15, 16, 17, 100, 1000}) {
        for (int64_t offset : {int64_t{-1000}, int64_t{-3}, kv_len - 1, kv_len / 2, int64_t{1000}}) {
          Problem problem(1, kv_len, 16, 16);
          problem.head.offset = offset;
          problem.add_relative_bias(reach, 0);
          run_decode(kernels, problem.head);
          CHECK(problem.error() < kTolerance, kernels.name, " kv_len ", kv_len, " reach ", reach, " offset ",
                offset, " error ", problem.error());
        }
      }
    }
  }
}

// A head's result is its own, whoever shares its keys: every way to share out a group's heads over tiles.
TEST(decode_heads_of_a_group_do_not_depend_on_each_other) {
  for (const Isa* isa : runnable_isas()) {
    const DecodeKernels& kernels = *isa->decode;
    for (int64_t dim : {1, 15, 16, 17, 33, 64, 100, 128, 200}) {
      for (int64_t kv_len : {int64_t{1}, int64_t{3}, int64_t{16}, int64_t{61}, int64_t{kernels.split}}) {
        constexpr int64_t kHeads = 11;
        Problem shared(kHeads, kv_len, dim, dim);
        const int64_t state = 2 + dim;
        std::vector<float> alone(static_cast<size_t>(kHeads * state));
        std::vector<AttentionHead> heads(kHeads, shared.head);
        std::vector<float> scratch(kernels.scratch(kHeads, dim), kNan);
        for (int64_t h = 0; h < kHeads; ++h) {
          heads[h].query += h * dim;
          heads[h].weights = nullptr;
          kernels.piece({&heads[h], 1}, 0, &alone[h * state], scratch.data());
        }
        for (int64_t count = 2; count <= kHeads; ++count) {
          std::vector<float> together(static_cast<size_t>(count * state), kNan);
          std::fill(scratch.begin(), scratch.end(), kNan);
          kernels.piece({heads.data(), count}, 0, together.data(), scratch.data());
          for (int64_t i = 0; i < count * state; ++i) {
            CHECK(same_bits(together[i], alone[i]), kernels.name, " dim ", dim, " kv_len ", kv_len, " count ",
                  count, " at ", i);
          }
        }
      }
    }
  }
}

TEST(decode_agrees_with_panel) {
  for (const Isa* isa : runnable_isas()) {
    Problem problem(1, 700, 64, 64);
    problem.head.offset = 650;
    problem.head.left = 600;
    problem.head.right = 0;
    run_decode(*isa->decode, problem.head);
    CHECK(problem.error() < kTolerance, isa->name, " decode error ", problem.error());
    run_panels(*isa->panel, problem.head);
    CHECK(problem.error() < kTolerance, isa->name, " panel error ", problem.error());
  }
}

TEST(ragged_equals_dense) {
  Random random(1);
  const int64_t lengths[] = {5, 40, 1, 0, 133};
  const int64_t cu_seqlens[] = {0, 5, 45, 46, 46, 179};
  const int64_t heads = 3, dim = 20, longest = 133;
  const std::vector<float> q = random.normals(179 * heads * dim), k = random.normals(179 * heads * dim),
                           v = random.normals(179 * heads * dim);
  std::vector<float> ragged(q.size(), kNan);
  const auto packed = [&](const std::vector<float>& data) {
    return ConstView(data.data(), {179, heads, dim});
  };
  AttentionParams params;
  params.is_causal = true;
  varlen_attention(packed(q), packed(k), packed(v), cu_seqlens, cu_seqlens, 5,
                   MutableView(ragged.data(), {179, heads, dim}), params);

  // The same, padded with NaN.
  std::vector<float> padded[3];
  for (int t = 0; t < 3; ++t) {
    const std::vector<float>& from = t == 0 ? q : t == 1 ? k : v;
    padded[t].assign(static_cast<size_t>(5 * longest * heads * dim), kNan);
    for (int64_t n = 0; n < 5; ++n) {
      std::copy_n(&from[cu_seqlens[n] * heads * dim], lengths[n] * heads * dim,
                  &padded[t][n * longest * heads * dim]);
    }
  }
  std::vector<float> out(padded[0].size());
  const auto view = [&](const std::vector<float>& data) {
    return ConstView(data.data(), {5, heads, longest, dim}, {longest * heads * dim, dim, heads * dim, 1});
  };
  params.key_lengths = lengths;
  scaled_dot_product_attention(
      view(padded[0]), view(padded[1]), view(padded[2]),
      MutableView(out.data(), {5, heads, longest, dim}, {longest * heads * dim, dim, heads * dim, 1}),
      params);
  for (int64_t n = 0; n < 5; ++n) {
    for (int64_t at = 0; at < lengths[n] * heads * dim; ++at) {
      CHECK(same_bits(out[n * longest * heads * dim + at], ragged[cu_seqlens[n] * heads * dim + at]),
            "sequence ", n, " element ", at);
    }
  }
}

TEST(cache_refuses_what_does_not_fit) {
  Random random(2);
  std::vector<float> key(2 * 2 * 8 * 4, 0.0f), value(key);
  int64_t lengths[] = {6, 3};
  const KVCacheView cache{MutableView(key.data(), {2, 2, 8, 4}), MutableView(value.data(), {2, 2, 8, 4}),
                          lengths};
  const std::vector<float> rows = random.normals(2 * 2 * 3 * 4);
  const ConstView three(rows.data(), {2, 2, 3, 4});
  CHECK_THROWS(kv_cache_append(cache, three, three), "the cache is full");
  CHECK(lengths[0] == 6 && lengths[1] == 3 && std::count(key.begin(), key.end(), 0.0f) == 128,
        "changed on failure");
  const int64_t counts[] = {2, 3};
  kv_cache_append(cache, three, three, counts);
  CHECK(lengths[0] == 8 && lengths[1] == 6, lengths[0], " ", lengths[1]);
  CHECK(key[6 * 4] == rows[0] && key[(2 * 8 + 3) * 4] == rows[2 * 3 * 4], "rows are elsewhere");
}

TEST(halves_of_a_cache_must_agree) {
  std::vector<float> data(512, 0.0f);
  int64_t length = 0;
  const KVCacheView cache{MutableView(data.data(), {1, 2, 8, 8}), MutableView(data.data(), {1, 4, 8, 8}),
                          &length};
  CHECK_THROWS(
      kv_cache_append(cache, ConstView(data.data(), {1, 2, 1, 8}), ConstView(data.data(), {1, 4, 1, 8})),
      "key and value must agree");
  const KVCacheView right{MutableView(data.data(), {1, 2, 8, 8}), MutableView(data.data(), {1, 2, 8, 8}),
                          &length};
  const ConstView none(nullptr, {1, 2, 1, 8});
  CHECK_THROWS(kv_cache_append(right, none, none), "null pointer");
  CHECK(length == 0, length);
}

TEST(null_results_and_masks_are_refused) {
  const std::vector<float> data(64, 1.0f);
  std::vector<float> result(64);
  const ConstView q(data.data(), {1, 2, 4, 8});
  const MutableView out(result.data(), {1, 2, 4, 8});
  AttentionParams params;
  params.lse = MutableView(nullptr, {1, 2, 4});
  CHECK_THROWS(scaled_dot_product_attention(q, q, q, out, params), "lse has no data");
  params = {};
  params.weights = MutableView(nullptr, {1, 2, 4, 4});
  CHECK_THROWS(scaled_dot_product_attention(q, q, q, out, params), "weights has no data");
  params = {};
  params.attn_mask = MaskView(nullptr, {4, 4});
  CHECK_THROWS(scaled_dot_product_attention(q, q, q, out, params), "attn_mask has no data");
}

TEST(errors_name_what_came) {
  std::vector<float> data(1000);
  const ConstView q(data.data(), {1, 3, 5, 8}), k(data.data(), {1, 2, 5, 8});
  const MutableView out(data.data() + 500, {1, 3, 5, 8});
  CHECK_THROWS(scaled_dot_product_attention(q, k, k, out), "heads (3) must be a multiple of kv_heads (2)");
  const int64_t long_length = 6;
  AttentionParams params;
  params.key_lengths = &long_length;
  CHECK_THROWS(scaled_dot_product_attention(q, q, q, out, params),
               "key_lengths must be from 0 to kv_len (5), got 6");
  params = {};
  params.window_left = -2;
  CHECK_THROWS(scaled_dot_product_attention(q, q, q, out, params), "window");
  params = {};
  params.relative_bias = ConstView(data.data(), {3, 4});
  CHECK_THROWS(scaled_dot_product_attention(q, q, q, out, params),
               "relative_bias must have shape (heads, 2 R + 1) = (3, an odd number)");
  params.relative_bias = ConstView(data.data(), {3, 3}, {6, 2});
  CHECK_THROWS(scaled_dot_product_attention(q, q, q, out, params), "relative_bias must have a contiguous");
  params.relative_bias = ConstView(nullptr, {3, 3});
  CHECK_THROWS(scaled_dot_product_attention(q, q, q, out, params), "relative_bias has no data");
}

TEST_MAIN()
