#include <sparseprune/sparse_columns.h>

#include "common.h"
#include "scratch.h"

namespace sparseprune {
namespace {

constexpr int64_t kPiece = 32;    // the columns of x that a task takes at most
constexpr int64_t kAhead = 8;     // columns that x is prefetched ahead
constexpr int64_t kTogether = 4;  // kept weights whose dot products share the loads of x

// Eight lanes whatever the instruction set, so that a sum has the same order on all; four for maps of 2x2.
template <class T, int N>
struct LanesOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Lanes = typename LanesOf<T, N>::type;

// By reference: how a vector wider than the instruction set's is returned is no fixed convention.
template <class V, class T>
inline void get(V& lanes, const T* from) {
  std::memcpy(&lanes, from, sizeof(lanes));
}
template <class V, class T>
inline void put(T* to, const V& lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}
template <class T>
inline T sum(const Lanes<T, 4>& lanes) {
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}
template <class T>
inline T sum(const Lanes<T, 8>& lanes) {
  Lanes<T, 4> low, high;
  std::memcpy(&low, &lanes, sizeof(low));
  std::memcpy(&high, reinterpret_cast<const char*>(&lanes) + sizeof(low), sizeof(high));
  const Lanes<T, 4> both = low + high;
  return sum<T>(both);
}

template <class Body>
void for_blocks(const Parallel& parallel, int64_t entries, const Body& body) {
  const int64_t grain = entries < (1 << 14) ? kColumnBlocks : 1;
  for_ranges(parallel, kColumnBlocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) body(b);
  });
}

// body(row, column) for the set bits of a row within the columns [begin, end) of all groups.
template <class Body>
inline void for_kept(const int32_t* words, int64_t row, int64_t row_cols, int64_t offset, int64_t begin, int64_t end,
                     const Body& body) {
  const int64_t first = max_of(begin - offset, 0), last = min_of(end - offset, row_cols);
  if (first >= last) return;
  const int32_t* line = words + row * 2 * ceil_div(row_cols, 64);
  for (int64_t word = first / 64; 64 * word < last; ++word) {
    uint64_t bits = load_bits(line, word) & low_bits(last - 64 * word);
    if (64 * word < first) bits &= ~low_bits(first - 64 * word);
    for (; bits != 0; bits &= bits - 1) body(64 * word + __builtin_ctzll(bits));
  }
}

// y (contiguous [rows of the band, W]) += w x for the columns [begin, end) of a band.
template <class T, int W>
void add_products(const SparseColumns<T>& w, int64_t band, const T* x, int64_t width, int64_t begin, int64_t end,
                  T* y) {
  constexpr int kLane = W == 4 ? 4 : 8, kCount = W / kLane;
  const int32_t* const starts = w.starts + band * w.cols;
  T* const base = y - band * kBandRows * W;
  for (int64_t k = begin; k < end; ++k) {
    Lanes<T, kLane> line[kCount];
    for (int v = 0; v < kCount; ++v) get(line[v], x + k * width + v * kLane);
    for (int v = 0; v < kCount; v += 64 / (kLane * static_cast<int>(sizeof(T))))  // a stride no prefetcher follows
      __builtin_prefetch(x + (k + kAhead) * width + v * kLane);
    for (int32_t p = starts[k]; p < starts[k + 1]; ++p) {
      T* const out = base + w.rows[p] * W;
      const T value = w.values[p];
      for (int v = 0; v < kCount; ++v) {
        Lanes<T, kLane> sums;
        get(sums, out + v * kLane);
        sums += value * line[v];
        put(out + v * kLane, sums);
      }
    }
  }
}

template <class T>
void add_products_one(const SparseColumns<T>& w, int64_t band, const T* x, int64_t begin, int64_t end, T* y) {
  const int32_t* const starts = w.starts + band * w.cols;
  T* const base = y - band * kBandRows;
  for (int64_t k = begin; k < end; ++k) {
    for (int32_t p = starts[k]; p < starts[k + 1]; ++p) base[w.rows[p]] += w.values[p] * x[k];
  }
}

template <class T>
void add_piece(const SparseColumns<T>& w, int64_t band, const T* x, int64_t width, int64_t piece, int64_t begin,
               int64_t end, T* y) {
  switch (piece) {
    case 32:
      return add_products<T, 32>(w, band, x, width, begin, end, y);
    case 24:
      return add_products<T, 24>(w, band, x, width, begin, end, y);
    case 16:
      return add_products<T, 16>(w, band, x, width, begin, end, y);
    case 8:
      return add_products<T, 8>(w, band, x, width, begin, end, y);
    case 4:
      return add_products<T, 4>(w, band, x, width, begin, end, y);
    default:
      return add_products_one(w, band, x, begin, end, y);
  }
}

// How a product is cut: bands of rows, pieces of x's columns, and where those are few, blocks of w's columns
// whose sums are added up in their order. By the sizes alone, so that no bit depends on the number of threads.
struct Cut {
  int64_t width, bands, pieces, splits;
  Cut(int64_t height, int64_t columns)
      : width(columns), bands(band_count(height)), pieces(ceil_div(columns, kPiece)),
        splits(bands * pieces < 4 ? 4 : 1) {}
  int64_t columns(int64_t piece) const { return min_of(kPiece, width - piece * kPiece); }
};

// s_i = <g_i, x> and d += w_i g_i for N rows g_i.
template <class T, int N, int kLane, bool kInput>
inline void dot_rows(const T* const* g, const T* w, const T* x, T* d, int64_t width, T* s) {
  using V = Lanes<T, kLane>;
  V sums[N];
  for (int i = 0; i < N; ++i) sums[i] = V{};
  for (int64_t u = 0; u < width; u += kLane) {
    V line, down{};
    get(line, x + u);
    if constexpr (kInput) get(down, d + u);
    for (int i = 0; i < N; ++i) {
      V up;
      get(up, g[i] + u);
      sums[i] += up * line;
      if constexpr (kInput) down += w[i] * up;
    }
    if constexpr (kInput) put(d + u, down);
  }
  for (int i = 0; i < N; ++i) s[i] = sum<T>(sums[i]);
}

template <class T, int N, int kLane, bool kInput>
inline void score_rows(const SparseColumns<T>& w, int32_t p, const T* grad, const T* x, T* d, int64_t width,
                       int32_t* cursor, T* scores) {
  const T* g[N];
  T s[N];
  for (int i = 0; i < N; ++i) g[i] = grad + w.rows[p + i] * width;
  dot_rows<T, N, kLane, kInput>(g, w.values + p, x, d, width, s);
  for (int i = 0; i < N; ++i) scores[cursor[w.rows[p + i]]++] = w.values[p + i] * s[i];
}

template <class T, int kLane, bool kInput>
void score_columns(const SparseColumns<T>& w, const T* grad, const T* x, T* x_grad, int64_t width, int64_t begin,
                   int64_t end, int32_t* cursor, T* scores) {
  if constexpr (kInput)
    std::memset(x_grad + begin * width, 0, static_cast<size_t>((end - begin) * width) * sizeof(T));
  for (int64_t band = 0; band < w.bands(); ++band) {
    const int32_t* const starts = w.starts + band * w.cols;
    for (int64_t k = begin; k < end; ++k) {
      const T* const line = x + k * width;
      T* const down = kInput ? x_grad + k * width : nullptr;
      int32_t p = starts[k];
      const int32_t last = starts[k + 1];
      for (; p + kTogether <= last; p += kTogether)
        score_rows<T, kTogether, kLane, kInput>(w, p, grad, line, down, width, cursor, scores);
      if (p + 2 <= last) {
        score_rows<T, 2, kLane, kInput>(w, p, grad, line, down, width, cursor, scores);
        p += 2;
      }
      if (p < last) score_rows<T, 1, kLane, kInput>(w, p, grad, line, down, width, cursor, scores);
    }
  }
}

template <class T>
void score_columns_one(const SparseColumns<T>& w, const T* grad, const T* x, T* x_grad, int64_t begin, int64_t end,
                       int32_t* cursor, T* scores) {
  for (int64_t band = 0; band < w.bands(); ++band) {
    const int32_t* const starts = w.starts + band * w.cols;
    for (int64_t k = begin; k < end; ++k) {
      T sum = 0;
      for (int32_t p = starts[k]; p < starts[k + 1]; ++p) {
        const T part = w.values[p] * grad[w.rows[p]];
        sum += part;
        scores[cursor[w.rows[p]]++] = part * x[k];
      }
      if (x_grad != nullptr) x_grad[k] = band == 0 ? sum : x_grad[k] + sum;
    }
  }
}

}  // namespace

template <Isa isa, class T>
void pack_columns(const T* weight, const int32_t* words, int64_t height, int64_t row_cols, int64_t groups,
                  const NewColumns<T>& out, const Parallel& parallel) {
  const int64_t cols = groups * row_cols, group_rows = height / max_of(groups, 1), bands = band_count(height);
  const int64_t entries = height * row_cols;
  std::memset(out.starts, 0, static_cast<size_t>(bands * cols + 1) * sizeof(int32_t));
  const auto visit = [&](int64_t b, const auto& body) {
    const int64_t begin = column_block(cols, b), end = column_block(cols, b + 1);
    for (int64_t row = 0; row < height; ++row) {
      const int64_t offset = row / group_rows * row_cols;
      const int64_t first = row / kBandRows * cols + offset;
      for_kept(words, row, row_cols, offset, begin, end, [&](int64_t k) { body(row, k, first + k); });
    }
  };
  for_blocks(parallel, entries, [&](int64_t b) {
    int32_t* const counts = out.cursors + b * height;
    std::memset(counts, 0, static_cast<size_t>(height) * sizeof(int32_t));
    visit(b, [&](int64_t row, int64_t, int64_t start) {
      ++counts[row];
      ++out.starts[start + 1];
    });
  });
  int32_t before = 0;
  for (int64_t part = 0; part < height * kColumnBlocks; ++part) {
    int32_t& cursor = out.cursors[part % kColumnBlocks * height + part / kColumnBlocks];
    const int32_t count = cursor;
    cursor = before;
    before += count;
  }
  for (int64_t i = 0; i < bands * cols; ++i) out.starts[i + 1] += out.starts[i];
  Scratch<int32_t> next(bands * cols);
  std::memcpy(next.get(), out.starts, static_cast<size_t>(bands * cols) * sizeof(int32_t));
  for_blocks(parallel, entries, [&](int64_t b) {
    visit(b, [&](int64_t row, int64_t k, int64_t start) {
      const int32_t p = next[start]++;
      out.rows[p] = static_cast<uint16_t>(row);
      out.values[p] = weight[row * row_cols + k];
    });
  });
}

template <Isa isa, class T>
void narrow_columns(const SparseColumns<T>& columns, const int32_t* kept, const NewColumns<T>& out,
                    const Parallel& parallel) {
  const int64_t height = columns.height, cols = columns.cols, entries = columns.entries(), bands = columns.bands();
  // The cursors ascend row by row, so one walk over the bits finds how many kept ones come before each, and so
  // where each band's part of each block of columns begins.
  Scratch<int32_t> firsts(bands * kColumnBlocks);
  std::memset(firsts.get(), 0, static_cast<size_t>(bands * kColumnBlocks) * sizeof(int32_t));
  int64_t word = 0, before = 0, last = 0;
  const auto kept_before = [&](int64_t i) {
    for (; 64 * (word + 1) <= i; ++word) before += __builtin_popcountll(load_bits(kept, word));
    return i % 64 == 0 ? before : before + __builtin_popcountll(load_bits(kept, word) & low_bits(i % 64));
  };
  for (int64_t part = 0; part <= height * kColumnBlocks; ++part) {
    const int64_t at = part % kColumnBlocks * height + part / kColumnBlocks;
    const bool end = part == height * kColumnBlocks;
    const int64_t cursor = kept_before(end ? entries : columns.cursors[at]);
    if (part > 0) {
      const int64_t row = (part - 1) / kColumnBlocks;
      firsts[row / kBandRows * kColumnBlocks + (part - 1) % kColumnBlocks] += static_cast<int32_t>(cursor - last);
    }
    if (!end) out.cursors[at] = static_cast<int32_t>(cursor);
    last = cursor;
  }
  int32_t sum = 0;
  for (int64_t i = 0; i < bands * kColumnBlocks; ++i) {
    const int32_t count = firsts[i];
    firsts[i] = sum;
    sum += count;
  }
  out.starts[0] = 0;
  for_blocks(parallel, entries, [&](int64_t b) {
    Scratch<int32_t> cursor(height);
    std::memcpy(cursor.get(), columns.cursors + b * height, static_cast<size_t>(height) * sizeof(int32_t));
    for (int64_t band = 0; band < bands; ++band) {
      const int32_t* const starts = columns.starts + band * cols;
      int32_t next = firsts[band * kColumnBlocks + b];
      for (int64_t k = column_block(cols, b); k < column_block(cols, b + 1); ++k) {
        for (int32_t p = starts[k]; p < starts[k + 1]; ++p) {
          const uint16_t row = columns.rows[p];
          const int32_t i = cursor[row]++;
          if ((static_cast<uint32_t>(kept[i >> 5]) >> (i & 31)) & 1) {
            out.rows[next] = row;
            out.values[next++] = columns.values[p];
          }
        }
        out.starts[band * cols + k + 1] = next;
      }
    }
  });
}

template <Isa isa, class T>
void columns_product(const SparseColumns<T>& columns, const T* x, int64_t width, const T* scale, T* y,
                     const Parallel& parallel) {
  const int64_t height = columns.height;
  const Cut cut(height, width);
  const int64_t size = kBandRows * kPiece;
  Scratch<T> sums(cut.bands * cut.pieces * cut.splits * size);
  const int64_t tasks = cut.bands * cut.pieces * cut.splits;
  const int64_t work = columns.entries() * width * static_cast<int64_t>(sizeof(T)) / max_of(tasks, 1);
  for_ranges(parallel, tasks, grain_of(work), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t split = task % cut.splits, piece = task / cut.splits % cut.pieces;
      const int64_t band = task / cut.splits / cut.pieces;
      T* const out = sums.get() + task * size;
      std::memset(out, 0, static_cast<size_t>(kBandRows * cut.columns(piece)) * sizeof(T));
      add_piece(columns, band, x + piece * kPiece, width, cut.columns(piece), columns.cols * split / cut.splits,
                columns.cols * (split + 1) / cut.splits, out);
    }
  });
  const int64_t row_bytes = cut.splits * width * static_cast<int64_t>(sizeof(T));
  for_ranges(parallel, height, grain_of(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T factor = scale == nullptr ? T{1} : scale[row];
      for (int64_t piece = 0; piece < cut.pieces; ++piece) {
        const int64_t count = cut.columns(piece), task = (row / kBandRows * cut.pieces + piece) * cut.splits;
        const T* const first = sums.get() + task * size + row % kBandRows * count;
        T* const out = y + row * width + piece * kPiece;
        for (int64_t u = 0; u < count; ++u) {
          T total = first[u];
          for (int64_t split = 1; split < cut.splits; ++split) total += first[split * size + u];
          out[u] = factor * total;
        }
      }
    }
  });
}

template <Isa isa, class T>
void columns_gradients(const SparseColumns<T>& columns, const T* grad, const T* x, int64_t width,
                       const T* scale, T* x_grad, T* scores, const Parallel& parallel) {
  const int64_t height = columns.height;
  Scratch<T> scaled(scale == nullptr ? 0 : height * width);
  if (scale != nullptr) {
    for (int64_t row = 0; row < height; ++row) {
      for (int64_t u = 0; u < width; ++u) scaled[row * width + u] = scale[row] * grad[row * width + u];
    }
    grad = scaled.get();
  }
  for_blocks(parallel, (columns.entries() + columns.cols) * max_of(width / 4, 1), [&](int64_t b) {
    Scratch<int32_t> cursor(height);
    std::memcpy(cursor.get(), columns.cursors + b * height, static_cast<size_t>(height) * sizeof(int32_t));
    const int64_t begin = column_block(columns.cols, b), end = column_block(columns.cols, b + 1);
    if (width == 1) {
      score_columns_one(columns, grad, x, x_grad, begin, end, cursor.get(), scores);
    } else {
      const auto score = width == 4         ? (x_grad ? score_columns<T, 4, true> : score_columns<T, 4, false>)
                         : x_grad == nullptr ? score_columns<T, 8, false>
                                             : score_columns<T, 8, true>;
      score(columns, grad, x, x_grad, width, begin, end, cursor.get(), scores);
    }
  });
}

#define SPARSEPRUNE_INSTANTIATE(T)                                                                            \
  template void pack_columns<Isa::SPARSEPRUNE_ISA>(const T*, const int32_t*, int64_t, int64_t, int64_t,       \
                                                   const NewColumns<T>&, const Parallel&);                    \
  template void narrow_columns<Isa::SPARSEPRUNE_ISA>(const SparseColumns<T>&, const int32_t*,                 \
                                                     const NewColumns<T>&, const Parallel&);                  \
  template void columns_product<Isa::SPARSEPRUNE_ISA>(const SparseColumns<T>&, const T*, int64_t, const T*,   \
                                                      T*, const Parallel&);                                   \
  template void columns_gradients<Isa::SPARSEPRUNE_ISA>(const SparseColumns<T>&, const T*, const T*, int64_t, \
                                                        const T*, T*, T*, const Parallel&)
SPARSEPRUNE_INSTANTIATE(float);
SPARSEPRUNE_INSTANTIATE(double);
#undef SPARSEPRUNE_INSTANTIATE

}  // namespace sparseprune
