// How the selection cuts its tensors into pieces, and the walks over them.
#pragma once

#include "scratch.h"
#include "topk_compare.h"
#include "topk_values.h"

namespace sparseprune {
namespace {

constexpr int kChunkShift = 9;  // 512 words, at least
constexpr int64_t kMostChunks = 1 << 13;  // about; each takes 40 bytes, whatever the size of the model

// A piece of the work: consecutive 64-bit words of one tensor, and what the last scan counted there.
struct Chunk {
  int64_t tensor;
  int64_t begin;
  int64_t end;
  int32_t at_high;
  int32_t at_low;
  int32_t kept;
};

constexpr int64_t kRunWords = 32;  // 8 KB of floats: what a loop does with them may be cut in two

// body(scores, slots, word, count) over the words [begin, end) of a tensor, up to kRunWords at a time: bit j of slots[i]
// says that scores[64 i + j] competes. Where none of a word does, nothing is read and its scores are undefined.
template <class T, class Body>
inline void for_runs(const ScoredTensor& tensor, bool largest, int64_t begin, int64_t end, const Body& body) {
  const int64_t row_words = ceil_div(tensor.cols, 64);
  const bool plain = is_plain<T>(tensor, largest);
  int64_t row = begin / row_words, column = begin % row_words * 64;
  T values[kRunWords * 64];
  uint64_t slots[kRunWords];
  const auto slots_of = [&](int64_t word, int64_t valid) {
    return tensor.candidates == nullptr ? low_bits(valid) : load_bits(tensor.candidates, word);
  };
  for (int64_t word = begin; word < end;) {
    int64_t count = min_of(kRunWords, end - word);
    const int64_t full = (tensor.cols - column) / 64;
    if (plain && full > 0) {
      count = min_of(count, full);
      for (int64_t i = 0; i < count; ++i) slots[i] = slots_of(word + i, 64);
      const T* scores = static_cast<const T*>(tensor.weights.data) + row * tensor.cols + column;
      body(scores, static_cast<const uint64_t*>(slots), word, count);
      column += 64 * count;
      row += column >= tensor.cols;
      column = column >= tensor.cols ? 0 : column;
    } else {
      if (plain && row_words > 1) count = 1;  // the end of a long row
      for (int64_t i = 0; i < count; ++i) {
        const int64_t valid = min_of(64, tensor.cols - column);
        slots[i] = slots_of(word + i, valid);
        if (slots[i] != 0) values_of(tensor, largest, row * tensor.cols + column, valid, values + 64 * i);
        column += 64;
        row += column >= tensor.cols;
        column = column >= tensor.cols ? 0 : column;
      }
      body(static_cast<const T*>(values), static_cast<const uint64_t*>(slots), word, count);
    }
    word += count;
  }
}

// body(scores of 64 slots, which of them compete, word) over the words in which any competes.
template <class T, class Body>
inline void for_words(const ScoredTensor& tensor, bool largest, int64_t begin, int64_t end, const Body& body) {
  for_runs<T>(tensor, largest, begin, end, [&](const T* scores, const uint64_t* slots, int64_t word, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (slots[i] != 0) body(scores + 64 * i, slots[i], word + i);
    }
  });
}

// The chunks of a list of tensors, shared out among tasks in order.
class Chunks {
 public:
  Chunks(const ScoredTensor* tensors, int64_t count, const Parallel& parallel)
      : words_(count_words(tensors, count)),
        chunk_shift_(shift_for(words_)),
        count_(count_chunks(tensors, count)),
        tasks_(count_tasks(parallel)),
        chunks_(count_) {
    int64_t next = 0;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t words = words_of(tensors[t]);
      for (int64_t begin = 0; begin < words; begin += chunk_words()) {
        chunks_[next++] = {t, begin, min_of(begin + chunk_words(), words), 0, 0, 0};
      }
    }
  }
  int64_t words() const { return words_; }
  // Every chunk but a tensor's last has two to this power words.
  int chunk_shift() const { return chunk_shift_; }
  int64_t chunk_words() const { return int64_t{1} << chunk_shift_; }
  int64_t count() const { return count_; }
  int64_t tasks() const { return tasks_; }
  // Task t owns the chunks [first(t), first(t + 1)).
  int64_t first(int64_t task) const { return count_ * task / tasks_; }
  Chunk& operator[](int64_t i) const { return chunks_[i]; }

 private:
  static int64_t words_of(const ScoredTensor& tensor) { return tensor.rows * ceil_div(tensor.cols, 64); }
  static int64_t count_words(const ScoredTensor* tensors, int64_t count) {
    int64_t words = 0;
    for (int64_t t = 0; t < count; ++t) words += words_of(tensors[t]);
    return words;
  }
  static int shift_for(int64_t words) {
    int shift = kChunkShift;
    while (words >> shift > kMostChunks) ++shift;
    return shift;
  }
  int64_t count_chunks(const ScoredTensor* tensors, int64_t count) const {
    int64_t chunks = 0;
    for (int64_t t = 0; t < count; ++t) chunks += ceil_div(words_of(tensors[t]), chunk_words());
    return chunks;
  }
  // One a thread, and so many that 32 bits number the slots of each.
  int64_t count_tasks(const Parallel& parallel) const {
    const int64_t slots = count_ * chunk_words() * 64;
    return max_of(1, max_of(min_of(parallel.threads, count_ / 4), ceil_div(slots, int64_t{1} << 31)));
  }

  int64_t words_;
  int chunk_shift_;
  int64_t count_;
  int64_t tasks_;
  Scratch<Chunk> chunks_;
};

}  // namespace
}  // namespace sparseprune
