// Where the threshold lies, almost certainly: from a sample of the scores.
#pragma once

#include "topk_job.h"

namespace sparseprune {
namespace {

constexpr int64_t kSmall = 1 << 14;         // so few are all put aside
constexpr int64_t kSampledWords = 1 << 10;  // 64 scores each: some 0.8 % of all are put aside
constexpr double kDeviations = 3.3;         // the sample misleads in one of a thousand calls

// Evenly spread over the words, at a pseudo-random place in each stride.
inline int64_t sampled_word(int64_t group, int64_t stride) {
  const uint64_t mixed = (static_cast<uint64_t>(group) + 1) * 0x9e3779b97f4a7c15u;
  return group * stride + static_cast<int64_t>((mixed >> 32) % static_cast<uint64_t>(stride));
}

template <class T>
class Sample {
 public:
  Sample(Job<T>& job, int64_t need) : job_(job), need_(need) {}

  // Bounds between which the need-th largest lies, with as few as possible in between.
  Bracket<T> guess() {
    Bracket<T> bracket;
    if (job_.competing <= kSmall) return bracket;
    const int64_t all_words = job_.chunks.words();
    const double total = static_cast<double>(job_.competing), room = static_cast<double>(job_.pool.room());
    const double share = static_cast<double>(need_) / total;
    T center = 0;
    int64_t words = min_of(kSampledWords, all_words);
    for (bool first = true;; first = false) {
      const int64_t stride = ceil_div(all_words, words);
      job_.pool.clear();
      Tally seen = take(bracket, center, share, stride);
      if (job_.pool.overflowed() || seen.inside == 0) return bracket;
      const Open<T> open = inside_of(bracket, 0, seen.inside);
      const double rank = share * static_cast<double>(seen.competing) - static_cast<double>(seen.above + seen.at_high);
      if (first) {
        center = score_of<T>(ranked(open, rank).low);
        seen = take(no_bracket<T>(), center, share, stride);
      }
      const double margin = kDeviations * __builtin_sqrt(seen.variance) + 2;
      bracket = around(bracket, open, rank - margin, rank + margin);
      // A larger sample, where what is to be put aside would not fit.
      const double inside = 2 * margin / static_cast<double>(seen.competing) * total;
      if (!first || inside < 0.8 * room) return bracket;
      const double wanted = static_cast<double>(words) * (inside / room) * (inside / room) * 4;
      const double most = 0.8 * room / inside * static_cast<double>(all_words);
      words = max_of(words, min_of(all_words / 8, static_cast<int64_t>(wanted < most ? wanted : most)));
    }
  }

 private:
  // Counts one word in each stride against the bracket, and puts aside what is inside. The variance is that of words, not
  // of scores, as neighbours are alike; and of words against the ones before them, as the sample is spread evenly over
  // tensors that are not.
  Tally take(const Bracket<T>& bracket, T center, double share, int64_t stride) {
    return job_.sum_tasks([&](int64_t task) {
      Tally tally;
      typename Pool<T>::Writer writer(job_.pool, task);
      double excess_before = 0;
      int64_t before = 0;  // words in earlier chunks
      for (int64_t c = 0; c < job_.chunks.first(task); ++c) before += job_.chunks[c].end - job_.chunks[c].begin;
      job_.for_chunks(task, [&](const Chunk& chunk) {
        const ScoredTensor& tensor = job_.tensors[chunk.tensor];
        const int64_t words = chunk.end - chunk.begin;
        for (int64_t group = before / stride;; ++group) {
          const int64_t word = sampled_word(group, stride) - before;
          if (word >= words) break;
          if (word < 0) continue;
          const int64_t begin = chunk.begin + word;
          for_words<T>(tensor, job_.largest, begin, begin + 1, [&](const T* scores, uint64_t slots, int64_t) {
            const Places places =
                bracket.ties ? places_of<true>(scores, slots, bracket) : places_of<false>(scores, slots, bracket);
            const int64_t over = __builtin_popcountll(slots_that<Is::above>(scores, center) & slots);
            const int64_t size = __builtin_popcountll(slots);
            const double excess = static_cast<double>(over) - share * static_cast<double>(size);
            tally.above += __builtin_popcountll(places.above);
            tally.at_high += __builtin_popcountll(places.at_high);
            tally.inside += __builtin_popcountll(places.inside);
            tally.competing += size;
            tally.variance += (excess - excess_before) * (excess - excess_before) / 2;
            excess_before = excess;
            put_aside(writer, scores, places.inside, 0);
          });
        }
        before += words;
      });
      return tally;
    });
  }

  // The key of that rank, from the largest, of those in the pool, and how many are equal to it.
  Open<T> ranked(Open<T> open, double rank) {
    open.need = max_of(1, min_of(open.count, static_cast<int64_t>(rank)));
    return job_.settled(open);
  }

  // A bound: the key of that rank, or the old one where the rank lies beyond the pool. It holds ties where many are equal
  // to it.
  struct Bound {
    Key<T> key;
    bool ties;
  };
  Bound bound(const Bracket<T>& bracket, T old, const Open<T>& open, double rank) {
    if (rank < 1 || rank > static_cast<double>(open.count)) return {key_of(old), bracket.ties};
    const Open<T> found = ranked(open, rank);
    return {found.low, found.count > max_of(8, open.count / 1024)};
  }

  // The bracket of the keys of these ranks.
  Bracket<T> around(const Bracket<T>& bracket, const Open<T>& open, double upper, double lower) {
    // Beyond the pool's other end even the bound on this side is the last key.
    const double count = static_cast<double>(open.count);
    const Bound high = bound(bracket, bracket.high, open, upper > count ? count : upper);
    const Bound low = bound(bracket, bracket.low, open, lower < 1 ? 1 : lower);
    if (!high.ties && !low.ties) return {score_of<T>(high.key), score_of<T>(low.key), false};
    // What is not tied lies inside: its bounds are the keys beside it.
    const Key<T> above = high.ties || high.key == kInfinity<T> ? high.key : high.key + 1;
    const Key<T> below = low.ties || low.key == -kInfinity<T> ? low.key : low.key - 1;
    return {score_of<T>(above), score_of<T>(below), true};
  }

  Job<T>& job_;
  int64_t need_;
};

}  // namespace
}  // namespace sparseprune
