// What the steps of one selection share: the scores and how tasks walk them, what was put aside, and the search in it.
#pragma once

#include "topk_chunks.h"
#include "topk_pool.h"

namespace sparseprune {
namespace {

// What a task saw.
struct Tally {
  int64_t above = 0, at_high = 0, inside = 0, at_low = 0;
  int64_t competing = 0;
  int64_t nan_tensor = -1;  // the first
  double variance = 0;      // of how many sampled scores are above the center
  char apart[128] = {};     // tasks share no cache line

  void add(const Tally& other) {
    above += other.above, at_high += other.at_high, inside += other.inside, at_low += other.at_low;
    competing += other.competing;
    if (nan_tensor < 0) nan_tensor = other.nan_tensor;
    variance += other.variance;
  }
};

template <class T>
struct Job {
  const ScoredTensor* tensors;
  bool largest;
  const Parallel& parallel;
  Chunks chunks;
  Scratch<Tally> tallies;
  int64_t competing;
  Pool<T> pool;
  Histograms<T> histograms;

  Job(const ScoredTensor* tensors_, int64_t count, bool largest_, const Parallel& parallel_)
      : tensors(tensors_),
        largest(largest_),
        parallel(parallel_),
        chunks(tensors_, count, parallel_),
        tallies(chunks.tasks()),
        competing(count_competing()),
        pool(competing, chunks.tasks()),
        histograms(chunks.tasks()) {}

  // body(task) for all tasks.
  template <class Body>
  void for_tasks(const Body& body) {
    for_ranges(parallel, chunks.tasks(), 1, [&](int64_t begin, int64_t end) {
      const ExactDenormals exact;
      for (int64_t task = begin; task < end; ++task) body(task);
    });
  }
  // body(task) -> Tally for all tasks, summed.
  template <class Body>
  Tally sum_tasks(const Body& body) {
    for_tasks([&](int64_t task) { tallies[task] = body(task); });
    Tally sum;
    for (int64_t task = 0; task < chunks.tasks(); ++task) sum.add(tallies[task]);
    return sum;
  }
  // body(chunk) for the chunks of a task.
  template <class Body>
  void for_chunks(int64_t task, const Body& body) {
    for (int64_t c = chunks.first(task); c < chunks.first(task + 1); ++c) body(chunks[c]);
  }
  // body(scores, slots, word) for the words of a chunk in which any competes.
  template <class Body>
  void for_chunk_words(const Chunk& chunk, const Body& body) {
    for_words<T>(tensors[chunk.tensor], largest, chunk.begin, chunk.end, body);
  }

  // The need-th largest key of those in the pool: need of the count that are equal to it are to be kept.
  Open<T> settled(Open<T> open) {
    while (open.span() != 0) {
      for_tasks([&](int64_t task) {
        Histogram<T> histogram = histograms.of(task);
        histogram.clear();
        pool.for_blocks(task, [&](const Key<T>* keys, const uint32_t*, int64_t count) {
          histogram.add(keys, count, open);
        });
      });
      open = histograms.narrowed(open);
    }
    return open;
  }

 private:
  int64_t count_competing() {
    return sum_tasks([&](int64_t task) {
             Tally tally;
             for_chunks(task, [&](const Chunk& chunk) {
               const ScoredTensor& tensor = tensors[chunk.tensor];
               const int64_t row_words = ceil_div(tensor.cols, 64);
               for (int64_t word = chunk.begin; word < chunk.end; ++word) {
                 const int64_t valid = min_of(64, tensor.cols - word % row_words * 64);
                 tally.competing += tensor.candidates == nullptr
                                        ? valid
                                        : __builtin_popcountll(load_bits(tensor.candidates, word));
               }
             });
             return tally;
           })
        .competing;
  }
};

// Puts the word's slots inside the bracket aside; `first` numbers its first slot among the task's.
template <class T>
inline void put_aside(typename Pool<T>::Writer& writer, const T* scores, uint64_t inside, int64_t first) {
  for (; inside != 0; inside &= inside - 1) {
    const int slot = __builtin_ctzll(inside);
    writer.append(key_of(scores[slot]), static_cast<uint32_t>(first + slot));
  }
}

// A bracket that everything lies outside of, but inf.
template <class T>
inline Bracket<T> no_bracket() {
  return {static_cast<T>(__builtin_inf()), static_cast<T>(__builtin_inf()), true};
}

// The keys that a bracket has inside, of which there are `count`, one at least.
template <class T>
inline Open<T> inside_of(const Bracket<T>& bracket, int64_t need, int64_t count) {
  const Key<T> beside = bracket.ties ? 1 : 0;
  return {key_of(bracket.low) + beside, key_of(bracket.high) - beside, need, count};
}

}  // namespace
}  // namespace sparseprune
