// The survivors of a few rows or columns of a weight, decoded where they are used: no list of the whole mask exists.
#pragma once

#include <sparseprune/weight.h>

#include "panels.h"

namespace sparseprune {
namespace {

// Survivors that a task decodes at once; with their values they fill half a megabyte.
constexpr int64_t kTaskSurvivors = 1 << 16;
// Words of a row that a task takes of all rows: one cache line of the mask, and 2 KB of float32 weights, without which
// the memory's pages cost more than what is read of them.
constexpr int64_t kSlabWords = 8;
// Survivors a list should hold, so that its end (a mispredicted branch, a read and a write of its sums) is cheap.
constexpr int64_t kListSurvivors = 24;
// Panel rows that all lists of a block share: these bytes stay in the L1 cache.
constexpr int64_t kBlockBytes = 1 << 15;

// Rows that are asked for before their turn: no hardware prefetcher follows one row's piece to the next row's.
constexpr int64_t kAhead = 2;

// Lists of rows [first, first + count), or of as many columns, cut into blocks of the other side: list b * count + i
// has what row or column first + i keeps in block b.
template <class T>
class BlockLists {
 public:
  int64_t count() const { return count_; }
  int64_t blocks() const { return blocks_; }
  int64_t kept() const { return start_[count_ * blocks_]; }
  T* values() const { return value_.get(); }
  Lists<T> lists() const { return {count_ * blocks_, start_.get(), index_.get(), value_.get()}; }

  // Rows [first, last) of a weight with `cols` columns, in blocks of `block` of them (a multiple of 64), with room for
  // `kept` survivors. The weight's values may be null: then none are written.
  void take_rows(const Weight<const T>& weight, int64_t cols, int64_t first, int64_t last, int64_t block,
                 int64_t kept) {
    const int64_t row_words = ceil_div(cols, 64), block_words = block / 64;
    resize(last - first, ceil_div(cols, block));
    reserve(kept);
    const int32_t* bits = weight.words + 2 * first * row_words;
    const auto in_block = [&](int64_t list, const auto& body) {
      const int64_t from = list / count_ * block_words, row = list % count_;
      for (int64_t word = from; word < min_of(from + block_words, row_words); ++word) {
        body(word, load_bits(bits, row * row_words + word));
      }
    };
    for (int64_t list = 0; list < count_ * blocks_; ++list) {
      int64_t length = 0;
      in_block(list, [&](int64_t, uint64_t set) { length += __builtin_popcountll(set); });
      start_[list + 1] = start_[list] + length;
    }
    // Row by row, as the weight lies in memory.
    const bool gather = weight.values != nullptr && !weight.packed();
    const bool copy = weight.values != nullptr && weight.packed();
    const T* packed = copy ? weight.values + weight.start[first] : nullptr;
    for (int64_t row = 0; row < count_; ++row) {
      for (int64_t list = row; list < count_ * blocks_; list += count_) {
        int64_t at = start_[list];
        in_block(list, [&](int64_t word, uint64_t set) {
          const T* from = gather ? weight.values + (first + row) * cols + 64 * word : nullptr;
          at += append_slots(set, static_cast<int32_t>(64 * word), from, index_.get() + at, value_.get() + at);
        });
        if (!copy) continue;
        const int64_t length = start_[list + 1] - start_[list];
        std::memcpy(value_.get() + start_[list], packed, static_cast<size_t>(length) * sizeof(T));
        packed += length;
      }
    }
  }

  // The columns of words [first, last) of every row, in blocks of `block` rows; from[row]: where a packed weight's
  // values of these words start.
  void take_columns(const Weight<const T>& weight, const int64_t* from, int64_t rows, int64_t cols, int64_t first,
                    int64_t last, int64_t block) {
    const int32_t* words = weight.words;
    const int64_t row_words = ceil_div(cols, 64), width = min_of(64 * last, cols) - 64 * first;
    resize(width, ceil_div(rows, block));
    const auto for_slots = [&](const auto& ahead, const auto& body) {
      int64_t* next = start_.get() + 1;
      for (int64_t row = 0, in_block = 0; row < rows; ++row, ++in_block) {
        if (in_block == block) {
          in_block = 0;
          next += width;
        }
        if (row + kAhead < rows) ahead(row + kAhead);
        for (int64_t word = first; word < last; ++word) {
          uint64_t bits = load_bits(words, row * row_words + word);
          for (; bits != 0; bits &= bits - 1) body(next, row, 64 * (word - first) + __builtin_ctzll(bits));
        }
      }
    };
    // Counted one place up, so that after the sums that place is where a list is filled next.
    int64_t* counts = start_.get() + 1;
    std::memset(counts, 0, static_cast<size_t>(count_ * blocks_) * sizeof(int64_t));
    for_slots([&](int64_t row) { __builtin_prefetch(words + 2 * (row * row_words + first)); },
              [](int64_t* next, int64_t, int64_t column) { ++next[column]; });
    int64_t total = 0;
    for (int64_t list = 0; list < count_ * blocks_; ++list) {
      const int64_t length = counts[list];
      counts[list] = total;
      total += length;
    }
    reserve(total);
    int64_t packed = 0, packed_row = -1;
    const auto value = [&](int64_t row, int64_t column) {
      if (!weight.packed()) return weight.values[row * cols + 64 * first + column];
      if (row != packed_row) {
        packed_row = row;
        packed = from[row];
      }
      return weight.values[packed++];
    };
    const auto prefetch_row = [&](int64_t row) {
      __builtin_prefetch(words + 2 * (row * row_words + first));
      if (weight.packed()) return;
      for (int64_t i = 0; i < width; i += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(weight.values + row * cols + 64 * first + i);
      }
    };
    for_slots(prefetch_row, [&](int64_t* next, int64_t row, int64_t column) {
      const int64_t at = next[column]++;
      index_[at] = static_cast<int32_t>(row);
      value_[at] = value(row, column);
    });
  }

 private:
  void resize(int64_t count, int64_t blocks) {
    if (count * blocks + 1 > starts_) {
      starts_ = count * blocks + 1;
      start_.allocate(starts_);
    }
    count_ = count;
    blocks_ = blocks;
    start_[0] = 0;
  }
  void reserve(int64_t kept) {
    if (kept <= capacity_) return;
    capacity_ = kept;
    index_.allocate(kept);
    value_.allocate(kept);
  }

  int64_t count_ = 0, blocks_ = 0, starts_ = 0, capacity_ = 0;
  Scratch<int64_t> start_;
  Scratch<int32_t> index_;
  Scratch<T> value_;
};

// The rows of a mask cut into tasks of about as many survivors each. Where it is cut depends on the number of threads;
// no result depends on where.
class RowTasks {
 public:
  RowTasks(const int32_t* words, int64_t rows, int64_t cols, const Parallel& parallel)
      : start_(rows + 1), first_(rows + 1) {
    const int64_t row_words = ceil_div(cols, 64);
    for_ranges(parallel, rows, grain_of(8 * row_words), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int64_t kept = 0;
        for (int64_t word = row * row_words; word < (row + 1) * row_words; ++word) {
          kept += __builtin_popcountll(load_bits(words, word));
        }
        start_[row + 1] = kept;
      }
    });
    start_[0] = 0;
    for (int64_t row = 0; row < rows; ++row) start_[row + 1] += start_[row];
    constexpr int64_t kRowCost = 8;  // of an empty row, in survivors
    const int64_t cost = start_[rows] + kRowCost * rows;
    const int64_t limit = min_of(kTaskSurvivors, ceil_div(cost, 4 * parallel.threads));
    for (int64_t row = 0, from = 0; row < rows; ++row) {
      if (row > from && start_[row + 1] - start_[from] + kRowCost * (row + 1 - from) > limit) from = row;
      if (row == from) first_[count_++] = row;
    }
    first_[count_] = rows;
  }
  int64_t count() const { return count_; }
  int64_t kept() const { return start_[first_[count_]]; }
  int64_t first(int64_t task) const { return first_[task]; }
  int64_t kept(int64_t task) const { return start_[first_[task + 1]] - start_[first_[task]]; }

 private:
  int64_t count_ = 0;
  Scratch<int64_t> start_, first_;
};

// Slots of one side of a mask in a block: few enough for the L1 cache, but not so few that lists become short. A single
// panel is passed over once, so L2 will do for it.
inline int64_t block_length(int64_t kept, int64_t slots, int64_t panels) {
  constexpr int64_t row_bytes = 4 * kVectorBytes, longest = kPanelBytes / row_bytes;
  if (panels <= 1) return longest;
  const int64_t long_enough = ceil_div(kListSurvivors * slots, max_of(kept, 1));
  return min_of(longest, ceil_div(max_of(kBlockBytes / row_bytes, long_enough), 64) * 64);
}

// Parts of the panels that are tasks of their own, where there are fewer tasks than threads otherwise.
inline int64_t panel_groups(int64_t tasks, int64_t panels, const Parallel& parallel) {
  return min_of(panels, ceil_div(parallel.threads, max_of(tasks, 1)));
}

}  // namespace
}  // namespace sparseprune
