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
constexpr int64_t kDotSurvivors = 2 * kListSurvivors;  // where they are summed by whole vectors
// Panel rows that all lists of a block share: these bytes stay in the L1 cache.
constexpr int64_t kBlockBytes = 1 << 15;

// Lists of `count` rows, or of as many columns, each cut into blocks of the other side.
template <class T>
class BlockLists {
 public:
  int64_t count() const { return count_; }
  int64_t blocks() const { return blocks_; }
  int64_t kept() const { return start_[count_ * blocks_]; }
  // What row or column i keeps in block b.
  int64_t list(int64_t i, int64_t b) const { return i * list_step_ + b * block_step_; }
  // Memory for a value of each survivor.
  T* values() const { return value_.get(); }
  Lists<T> lists(const T* values) const { return {count_ * blocks_, start_.get(), index_.get(), values}; }

  // Rows [first, last) of a mask with `cols` columns, in blocks of `block` of them (a multiple of 64), with room for
  // `kept` survivors, row by row as they lie in memory.
  void take_rows(const int32_t* words, int64_t cols, int64_t first, int64_t last, int64_t block, int64_t kept) {
    const int64_t row_words = ceil_div(cols, 64), block_words = block / 64;
    resize(last - first, ceil_div(cols, block));
    list_step_ = blocks_;
    block_step_ = 1;
    reserve(kept);
    int64_t list = 0;
    for (int64_t row = first; row < last; ++row) {
      for (int64_t word = 0; word < row_words; word += block_words, ++list) {
        int32_t* index = index_.get() + start_[list];
        const int64_t end = min_of(word + block_words, row_words);
        start_[list + 1] = start_[list] + append_indices(words + 2 * row * row_words, word, end, index);
      }
    }
  }

  // The values of those rows, of a dense weight.
  const T* take_values(const T* rows, int64_t cols) {
    const auto row_end = [&](int64_t row) { return start_[(row + 1) * blocks_]; };
    for (int64_t row = 0, at = 0; row < count_; ++row, rows += cols) {
      if (row + 1 < count_) {
        for (int64_t p = row_end(row); p < row_end(row + 1); ++p) __builtin_prefetch(rows + cols + index_[p]);
      }
      for (; at < row_end(row); ++at) value_[at] = rows[index_[at]];
    }
    return value_.get();
  }

  // The columns of words [first, last) of every row, in blocks of `block` rows; from[row]: where a packed weight's
  // values of these words start.
  void take_columns(const Weight<const T>& weight, const int64_t* from, int64_t rows, int64_t cols, int64_t first,
                    int64_t last, int64_t block) {
    const int64_t row_words = ceil_div(cols, 64), width = 64 * (last - first);
    resize(width, ceil_div(rows, block));
    list_step_ = 1;
    block_step_ = width;
    const auto words_of = [&](int64_t row) { return weight.words + 2 * (row * row_words + first); };
    // Counted one place up, so that after the sums that place is where a list is filled next.
    int64_t* counts = start_.get() + 1;
    count_columns(weight.words + 2 * first, rows, row_words, last - first, block, counts);
    int64_t total = 0;
    for (int64_t list = 0; list < count_ * blocks_; ++list) {
      const int64_t length = counts[list];
      counts[list] = total;
      total += length;
    }
    reserve(total);
    Scratch<int32_t> columns(width + kSpare);
    const auto fill = [&](const auto& values_of) {
      for (int64_t row = 0; row < rows; ++row) {
        if (row + kAhead < rows) {
          __builtin_prefetch(words_of(row + kAhead));
          if (!weight.packed()) prefetch_run(weight.values + (row + kAhead) * cols + 64 * first, width);
        }
        const int64_t kept = append_indices(words_of(row), 0, last - first, columns.get());
        int64_t* next = counts + row / block * width;
        const auto value = values_of(row);
        for (int64_t i = 0; i < kept; ++i) {
          const int64_t at = next[columns[i]]++;
          index_[at] = static_cast<int32_t>(row);
          value_[at] = value(i, columns[i]);
        }
      }
    };
    if (weight.packed()) {
      fill([&](int64_t row) {
        return [values = weight.values + from[row]](int64_t i, int32_t) { return values[i]; };
      });
    } else {
      fill([&](int64_t row) {
        return [values = weight.values + row * cols + 64 * first](int64_t, int32_t column) { return values[column]; };
      });
    }
  }

 private:
  // How many of each block of rows every column of `words_a_row` words keeps.
  static void count_columns(const int32_t* words, int64_t rows, int64_t row_words, int64_t words_a_row, int64_t block,
                            int64_t* counts) {
    constexpr int64_t lanes = kLanes<float>;
    for (int64_t begin = 0; begin < rows; begin += block, counts += 64 * words_a_row) {
      for (int64_t word = 0; word < words_a_row; ++word) {
        Vec<int32_t> kept[64 / lanes] = {};
        for (int64_t row = begin; row < min_of(begin + block, rows); ++row) {
          const uint64_t bits = load_bits(words, row * row_words + word);
          for (int64_t i = 0; i < 64 / lanes; ++i) kept[i] -= expand_bits<float>(bits >> (i * lanes));
        }
        for (int64_t i = 0; i < 64; ++i) counts[64 * word + i] = kept[i / lanes][i % lanes];
      }
    }
  }
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
    index_.allocate(kept + kSpare);
    value_.allocate(kept);
  }

  int64_t count_ = 0, blocks_ = 0, list_step_ = 0, block_step_ = 0, starts_ = 0, capacity_ = -1;
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
inline int64_t block_length(int64_t kept, int64_t slots, int64_t panels, int64_t list = kListSurvivors) {
  constexpr int64_t row_bytes = 4 * kVectorBytes, longest = kPanelBytes / row_bytes;
  if (panels <= 1) return longest;
  const int64_t long_enough = ceil_div(list * slots, max_of(kept, 1));
  return min_of(longest, ceil_div(max_of(kBlockBytes / row_bytes, long_enough), 64) * 64);
}

// Parts of the panels that are tasks of their own, where there are fewer tasks than threads otherwise.
inline int64_t panel_groups(int64_t tasks, int64_t panels, const Parallel& parallel) {
  return min_of(panels, ceil_div(parallel.threads, max_of(tasks, 1)));
}

}  // namespace
}  // namespace sparseprune
