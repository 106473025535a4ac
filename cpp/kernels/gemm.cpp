// out = activation(x W^T + bias) + residual for one block of rows and columns, W in panels.
//
// The register tile is `Rows` rows by `Panels` panels of two vectors. x is read in place, one broadcast per
// row and depth step; the weights stream through in the order in which they lie:
//
//                      panel: nr columns, depth-major
//      k ->            w[k][0 .. nr)
//   x [row][k] *  ->   tile[row][0 .. nr)        FMA, Rows x 2 Panels accumulators
//
// A block is covered by tiles of at most mr rows whose heights differ by at most one, so that there is no
// ragged rest; each height is a kernel of its own (a template), and all of them add in the same order.
#include "gemm.h"

#include "activation.h"
#include "vec.h"

namespace fastmha {
namespace {

constexpr int kPanelVecs = 2;
constexpr int kNr = kPanelVecs * Vec::kLanes;
constexpr int kLine = 16;  // floats per cache line
constexpr int kPanelLines = (kNr + kLine - 1) / kLine;
// 32 registers: 28 sums + 2 weights + 1 broadcast. 16 registers: 12 + 2 + 1. Two vectors wide and as high as
// fits loads least per FMA: (mr + 2) loads for 2 mr FMAs.
constexpr int kMr = Vec::kRegisters == 32 ? 14 : 6;
// FMA latency 4 x 2 per cycle: eight sums keep the units busy, but few rows wait for their weights, and the
// fewer streams the better the hardware prefetcher follows. With 32 registers 2 panels come from L3 at 97 to
// 100% of the read bandwidth (1 and 2 rows; 4 panels: 86 to 92%). Narrower vectors need more FMAs per byte: 2
// rows reach 82% with 3 panels, 76% with 2.
constexpr int kMaxPanels = Vec::kRegisters == 32 ? 2 : 3;
// Depth steps by which the weights are asked for ahead of use, one cache line per vector at most. Near: 2 KiB
// of a panel, some 200 cycles in a full tile; without it a weight that comes from L3 costs 5 points of peak,
// 20 in tiles of 12 rows, and one row reads L3 at 97% of its speed, with 24 steps at 94, with 64 at 90. Far:
// for weights that come from memory; 4 rows on AVX2 read it at 93%, near at 80%.
constexpr int64_t kNear = 16;
constexpr int64_t kFar = 96;

constexpr int panels_for(int rows) {
  const int fit = Vec::kRegisters * 3 / 4 / (kPanelVecs * rows);
  return fit < 1 ? 1 : fit > kMaxPanels ? kMaxPanels : fit;
}

// Rows whose running totals wait while others use the same weights; a block of more is cut.
constexpr int kMostTiles = 112 / kMr;
constexpr int kTileFloats = kMr * kNr;
static_assert(Vec::kRegisters * 3 / 4 / kPanelVecs <= kMr,
              "panels side by side are no larger than the highest tile");

// One register tile's operands and where its result goes.
struct Tile {
  const float* x;       // (rows, depth)
  const float* weight;  // the first of its panels
  bool fresh;           // the weights have not been used before in this block: they come from L3 or memory
  const float* bias;
  float floor;  // what a result is at least: 0 is relu, -infinity nothing
  const float* residual;
  int64_t residual_stride;
  float* out;
  int64_t out_stride;
  float* totals;  // room for a tile
  // Depth steps to take; the totals wait where these are not the last.
  int64_t from, to;
  // Weights of a later unit to ask for meanwhile, so many floats with every step.
  const float* later;
  int64_t later_step;
  // What to ask for meanwhile, of every depth block of the rows below (null: nothing): floats [from, to).
  const float* next_x;
  int64_t next_from;
  int64_t next_to;
};

// Weights to ask for while others are used.
struct Ahead {
  int64_t near;        // floats by which fresh weights are asked for before their turn
  const float* later;  // see Tile
  int64_t later_step;
};

// Sums over one depth block, from zero. Two or four steps in one gain nothing with 32 registers and cost 3 to
// 18% with 16.
template <int Rows, int Panels, bool Fresh, bool Later>
FASTMHA_INLINE void multiply(const float* x, int64_t x_stride, const float* w, int64_t panel_stride,
                             int64_t depth, Ahead ahead, Vec (&sum)[Rows][Panels * kPanelVecs]) {
  FASTMHA_UNROLL
  for (int row = 0; row < Rows; ++row) {
    FASTMHA_UNROLL
    for (int v = 0; v < Panels * kPanelVecs; ++v) sum[row][v] = Vec::zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec weight[Panels * kPanelVecs];
    FASTMHA_UNROLL
    for (int v = 0; v < Panels * kPanelVecs; ++v) {
      weight[v] = Vec::load(w + v / kPanelVecs * panel_stride + v % kPanelVecs * Vec::kLanes);
    }
    FASTMHA_UNROLL
    for (int row = 0; row < Rows; ++row) {
      const Vec value = Vec::set1(x[row * x_stride]);
      FASTMHA_UNROLL
      for (int v = 0; v < Panels * kPanelVecs; ++v) sum[row][v] = fma(value, weight[v], sum[row][v]);
    }
    if constexpr (Fresh) {
      FASTMHA_UNROLL
      for (int line = 0; line < Panels * kPanelLines; ++line) {
        __builtin_prefetch(w + line / kPanelLines * panel_stride + ahead.near + line % kPanelLines * kLine);
      }
    }
    if constexpr (Later) {
      __builtin_prefetch(ahead.later, 0, 2);  // into L2
      ahead.later += ahead.later_step;
    }
    w += kNr;
    ++x;
  }
}

// What a tile's sums become on their way out. Loops over registers are written out, or GCC keeps them in
// memory.
template <int Rows, int kVecs>
FASTMHA_INLINE void add_totals(const float* totals, Vec (&sum)[Rows][kVecs]) {
  FASTMHA_UNROLL
  for (int row = 0; row < Rows; ++row) {
    FASTMHA_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      sum[row][v] = Vec::load(totals + (row * kVecs + v) * Vec::kLanes) + sum[row][v];
    }
  }
}

template <int Rows, int kVecs>
FASTMHA_INLINE void add_rows(const float* from, int64_t stride, Vec (&sum)[Rows][kVecs]) {
  FASTMHA_UNROLL
  for (int row = 0; row < Rows; ++row) {
    FASTMHA_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      sum[row][v] = sum[row][v] + Vec::load(from + row * stride + v * Vec::kLanes);
    }
  }
}

template <int Rows, int kVecs>
FASTMHA_INLINE void store_rows(const Vec (&sum)[Rows][kVecs], float* to, int64_t stride) {
  FASTMHA_UNROLL
  for (int row = 0; row < Rows; ++row) {
    FASTMHA_UNROLL
    for (int v = 0; v < kVecs; ++v) sum[row][v].store(to + row * stride + v * Vec::kLanes);
  }
}

// Asks for what comes after this depth block: the rows of the next tile, which come from memory or L3 in as
// many streams as there are rows, more than the hardware prefetcher follows, and the lines of out and
// residual, some with every depth block: all of them at once would keep the weights waiting (5120 x 512 ->
// 512 with a residual, 31 MB in all: 8% slower; without any of it 14%). Rows that are in L2 already lose 2
// points of peak by asking for them (128 x 768 -> 768).
template <int Rows, int kVecs>
FASTMHA_INLINE void prefetch_ahead(const GemmBlock& block, const Tile& tile, int64_t done, bool last) {
  if (tile.next_x != nullptr) {
    const float* x = tile.next_x + done;
    for (int row = 0; row < Rows; ++row) {
      for (int64_t k = tile.next_from; k < tile.next_to; k += kLine) __builtin_prefetch(x + k);
      x += block.x_stride;
    }
  }
  const int64_t first_row = done == 0 ? 0 : Rows * done / block.depth;
  const int64_t last_row = last ? Rows : Rows * (done + kDepthBlock) / block.depth;
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int column = 0; column < kVecs * Vec::kLanes; column += kLine) {
      __builtin_prefetch(tile.out + row * tile.out_stride + column, 1);
      if (tile.residual != nullptr) __builtin_prefetch(tile.residual + row * tile.residual_stride + column);
    }
  }
}

// out <- max(x W^T + bias, floor) + residual, once the last depth step is taken. The running totals wait in
// L1 while a block is summed: an addition per kDepthBlock FMAs.
template <int Rows, int Panels>
void run_tile(const GemmBlock& block, const Tile& tile) {
  constexpr int kVecs = Panels * kPanelVecs;
  const int64_t panel_stride = block.depth * kNr;
  Ahead ahead{(block.far_weight ? kFar : kNear) * kNr, tile.later, tile.later_step};
  for (int64_t done = tile.from;;) {
    const int64_t depth = block.depth - done < kDepthBlock ? block.depth - done : kDepthBlock;
    const float* x = tile.x + done;
    const float* w = tile.weight + done * kNr;
    const bool last = done + depth >= block.depth;
    prefetch_ahead<Rows, kVecs>(block, tile, done, last);
    Vec sum[Rows][kVecs];
    if constexpr (Panels > 1) {
      multiply<Rows, Panels, true, false>(x, block.x_stride, w, panel_stride, depth, ahead, sum);
    } else if (tile.fresh) {
      multiply<Rows, Panels, true, true>(x, block.x_stride, w, panel_stride, depth, ahead, sum);
    } else {
      multiply<Rows, Panels, false, true>(x, block.x_stride, w, panel_stride, depth, ahead, sum);
    }
    ahead.later += depth * tile.later_step;
    if (done > 0) add_totals(tile.totals, sum);
    if (!last) {
      store_rows(sum, tile.totals, kVecs * Vec::kLanes);
      done += depth;
      if (done < tile.to) continue;
      return;
    }
    const Vec floor = Vec::set1(tile.floor);
    FASTMHA_UNROLL
    for (int row = 0; row < Rows; ++row) {
      FASTMHA_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        sum[row][v] = max(floor, sum[row][v] + Vec::load(tile.bias + v * Vec::kLanes));
      }
    }
    if (tile.residual != nullptr) add_rows(tile.residual, tile.residual_stride, sum);
    store_rows(sum, tile.out, tile.out_stride);
    return;
  }
}

// out <- activation(sum) + residual for `rows` rows of `columns` columns, sum with the bias in it.
template <Activation F>
void finish(const GemmBlock& block, const float* sums, int64_t sums_stride, int64_t rows, int64_t first_row,
            int64_t first_column, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    float* out = block.out + (first_row + row) * block.out_stride + first_column;
    const float* residual = block.residual == nullptr
                                ? nullptr
                                : block.residual + (first_row + row) * block.residual_stride + first_column;
    const float* sum = sums + row * sums_stride;
    for (int64_t column = 0; column < columns; column += Vec::kLanes) {
      const int64_t rest = columns - column;
      Vec result = activate<F>(Vec::load(sum + column));
      if (rest >= Vec::kLanes) {
        if (residual != nullptr) result = result + Vec::load(residual + column);
        result.store(out + column);
      } else {
        const int lanes = static_cast<int>(rest);
        if (residual != nullptr) result = result + Vec::load_n(residual + column, lanes);
        result.store_n(out + column, lanes);
      }
    }
  }
}

using Finish = void (*)(const GemmBlock&, const float*, int64_t, int64_t, int64_t, int64_t, int64_t);

// For the activations that a tile does not do by itself.
Finish finish_for(Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return finish<Activation::kGelu>;
    case Activation::kGeluTanh:
      return finish<Activation::kGeluTanh>;
    case Activation::kSilu:
      return finish<Activation::kSilu>;
    case Activation::kRelu:
    case Activation::kNone:
      break;
  }
  return finish<Activation::kNone>;
}

using RunTile = void (*)(const GemmBlock&, const Tile&);

// Kernels by height, [height - 1]: for one panel, and for as many as fit side by side.
struct Kernels {
  RunTile narrow[kMr];
  RunTile wide[kMr];
};

template <int Rows>
constexpr void fill(Kernels& kernels) {
  kernels.narrow[Rows - 1] = run_tile<Rows, 1>;
  kernels.wide[Rows - 1] = run_tile<Rows, panels_for(Rows)>;
  if constexpr (Rows > 1) fill<Rows - 1>(kernels);
}

constexpr Kernels make_kernels() {
  Kernels kernels{};
  fill<kMr>(kernels);
  return kernels;
}

constexpr Kernels kKernels = make_kernels();

int panels(int64_t rows) { return panels_for(static_cast<int>(rows < kMr ? rows : kMr)); }

// Weights are used in units that stay in L2 (1 to 2 MiB on current servers) while all row tiles of a block
// pass over them: several panels, or of deep ones a part. Several panels rather than one, so that a tile
// writes a longer piece of each output row before it moves on: 1 to 3 points of peak, most with many columns.
constexpr int64_t kUnitFloats = 128 << 10;
// Where weights come in for the first time, the next unit is asked for meanwhile, so that memory works all
// the time and not only while the first tile passes. Two threads, AVX-512, weights from memory: 16 rows of
// 512 -> 2048 372 -> 436 GFLOP/s (69 -> 81% of plain reads), 4096 -> 4096 333 -> 424 (71 -> 90%), 64 rows 490
// -> 508 and 468 -> 504; from L3 16 rows lose 1 to 2%, 64 nothing. Units of half this size: 16 rows within
// 4%; of twice this size 388 of 445. Not to ask for fresh weights near their turn as well, since they should
// be in L2: 16 rows 436 -> 395.
constexpr int64_t kAskedUnitFloats = 32 << 10;

// Depth steps [from, to) of the panels of columns [first, last).
struct Unit {
  int64_t first, last;
  int64_t from, to;
};

// A row of tiles that uses a unit: rows [row, row + height).
struct TileRow {
  int64_t row, height;
  int64_t wide;  // panels side by side
  bool fresh;    // see Tile
  bool next;     // the rows below are used next, and for the first time
  const float* later;
  int64_t later_step;
  float* totals;
};

void run_row(const GemmBlock& block, Finish finish, const Unit& unit, const TileRow& part) {
  const bool simple = block.activation == Activation::kNone || block.activation == Activation::kRelu;
  Tile tile;
  tile.x = block.x + part.row * block.x_stride;
  tile.fresh = part.fresh;
  tile.floor = block.activation == Activation::kRelu ? 0.0f : -__builtin_inff();
  tile.residual_stride = block.residual_stride;
  tile.totals = part.totals;
  tile.from = unit.from;
  tile.to = unit.to;
  tile.later = part.later;
  tile.later_step = part.later_step;
  tile.next_x = part.next ? tile.x + part.height * block.x_stride : nullptr;
  for (int64_t column = unit.first; column < unit.last;) {
    const int64_t rest = unit.last - column;
    const int64_t width = rest > (part.wide - 1) * kNr ? part.wide : 1;
    const int64_t columns = rest < width * kNr ? rest : width * kNr;
    const RunTile kernel = width == 1 ? kKernels.narrow[part.height - 1] : kKernels.wide[part.height - 1];
    tile.weight = block.weight + column * block.depth;
    tile.bias = block.bias + column;
    // Every tile of the row asks for its share.
    tile.next_from = (column - unit.first) * kDepthBlock / (unit.last - unit.first) / kLine * kLine;
    tile.next_to = (column + columns - unit.first) * kDepthBlock / (unit.last - unit.first) / kLine * kLine;
    if (simple && columns == width * kNr) {
      tile.out = block.out + part.row * block.out_stride + column;
      tile.out_stride = block.out_stride;
      tile.residual =
          block.residual == nullptr ? nullptr : block.residual + part.row * block.residual_stride + column;
      kernel(block, tile);
    } else {
      tile.out = part.totals;
      tile.out_stride = width * kNr;
      tile.residual = nullptr;
      kernel(block, tile);
      if (unit.to == block.depth) {
        finish(block, part.totals, width * kNr, part.height, part.row, column, columns);
      }
    }
    tile.later += (unit.to - unit.from) * part.later_step;
    column += columns;
  }
}

// All rows of a block, few enough for their totals to wait, use one unit of its weights.
void run_unit(const GemmBlock& block, Finish finish, const Unit& unit, int64_t tiles, float* totals) {
  // Panels run side by side only where every weight is used once.
  const int64_t wide = tiles == 1 ? panels(block.rows) : 1;
  const float* weight = block.weight + unit.first * block.depth + unit.from * kNr;
  const int64_t whole_panels = (unit.last - unit.first + kNr - 1) / kNr;
  const int64_t floats = whole_panels * (unit.to - unit.from) * kNr;
  const bool first_columns = unit.first == 0;
  for (int64_t i = 0; i < tiles; ++i) {
    TileRow part;
    part.row = i * block.rows / tiles;
    part.height = (i + 1) * block.rows / tiles - part.row;
    part.wide = wide;
    part.fresh = i == 0;
    part.next = block.fresh_rows && first_columns && i + 1 < tiles;
    part.later = weight + kAskedUnitFloats + i * floats / tiles;
    part.later_step = (kNr + tiles - 1) / tiles;
    if (part.later >= block.weight_end) {
      part.later = weight;
      part.later_step = 0;
    }
    part.totals = totals + i * kTileFloats;
    run_row(block, finish, unit, part);
  }
}

void run_rows(const GemmBlock& block, Finish finish) {
  alignas(64) float totals[kMostTiles * kTileFloats];
  const int64_t tiles = (block.rows + kMr - 1) / kMr;
  const int64_t panel = block.depth * kNr;
  const int64_t unit = block.weight_end == nullptr ? kUnitFloats : kAskedUnitFloats;
  int64_t columns = block.columns, depth = block.depth;
  if (tiles > 1 && panel <= unit) {
    columns = unit / (panel + 1) * kNr;
  } else if (tiles > 1) {
    columns = kNr;
    depth = unit / kNr / kDepthBlock * kDepthBlock;
  }
  if (columns < kNr) columns = kNr;
  for (int64_t first = 0; first < block.columns; first += columns) {
    const int64_t last = block.columns - first < columns ? block.columns : first + columns;
    for (int64_t from = 0;;) {
      const int64_t to = block.depth - from < depth ? block.depth : from + depth;
      run_unit(block, finish, {first, last, from, to}, tiles, totals);
      from = to;
      if (from >= block.depth) break;
    }
  }
}

void run_block(const GemmBlock& block) {
  const Finish finish = finish_for(block.activation);
  constexpr int64_t kMostRows = int64_t{kMostTiles} * kMr;
  const int64_t parts = (block.rows + kMostRows - 1) / kMostRows;
  GemmBlock part = block;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t row = i * block.rows / parts;
    part.rows = (i + 1) * block.rows / parts - row;
    part.x = block.x + row * block.x_stride;
    part.out = block.out + row * block.out_stride;
    if (block.residual != nullptr) part.residual = block.residual + row * block.residual_stride;
    run_rows(part, finish);
  }
}

}  // namespace

extern "C" const GemmKernels FASTMHA_KERNEL_SYMBOL(gemm) = {
#if defined(FASTMHA_KERNEL_ISA_AVX512)
    "gemm_f32_14x32_avx512", kMr, kNr, 120.0, panels, run_block
#elif defined(FASTMHA_KERNEL_ISA_AVX2)
    "gemm_f32_6x16_avx2", kMr, kNr, 60.0, panels, run_block
#else
    "gemm_f32_6x8_generic", kMr, kNr, 12.0, panels, run_block
#endif
};

}  // namespace fastmha
