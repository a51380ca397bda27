// The bound is one read of the scores. A sample says between which two scores the threshold lies; then one scan writes
// the bits of all that is above, and puts aside the few in between, which decide the rest. What is put aside is bounded,
// and where it does not fit, or the sample misled, histograms narrow the range down, a read for every 11 bits.
#include <sparseprune/topk_mask.h>

#include "topk_chunks.h"
#include "topk_pool.h"

namespace sparseprune {
namespace {

constexpr int64_t kSmall = 1 << 14;         // so few are all put aside
constexpr int64_t kSampledWords = 1 << 10;  // 64 scores each: some 0.8 % of all are put aside
constexpr double kDeviations = 3.3;         // the sample misleads in one of a thousand calls

// What a task saw.
struct Tally {
  int64_t above = 0, at_high = 0, inside = 0, at_low = 0;
  int64_t competing = 0;
  int64_t nan_tensor = -1;  // the first
  double variance = 0;  // of how many sampled scores are above the center
  char apart[128] = {};  // tasks share no cache line

  void add(const Tally& other) {
    above += other.above, at_high += other.at_high, inside += other.inside, at_low += other.at_low;
    competing += other.competing;
    if (nan_tensor < 0) nan_tensor = other.nan_tensor;
    variance += other.variance;
  }
};

// Evenly spread over the words, at a pseudo-random place in each stride.
inline int64_t sampled_word(int64_t group, int64_t stride) {
  const uint64_t mixed = (static_cast<uint64_t>(group) + 1) * 0x9e3779b97f4a7c15u;
  return group * stride + static_cast<int64_t>((mixed >> 32) % static_cast<uint64_t>(stride));
}

template <class T>
class Selection {
 public:
  Selection(const ScoredTensor* tensors, int64_t count, bool largest, const Parallel& parallel)
      : tensors_(tensors),
        count_(count),
        largest_(largest),
        parallel_(parallel),
        chunks_(tensors, count, parallel),
        tallies_(chunks_.tasks()),
        competing_(count_competing()),
        pool_(competing_, chunks_.tasks()),
        histograms_(chunks_.tasks()) {}

  TopkStatus run(int64_t k, int64_t* kept) {
    for (int64_t t = 0; t < count_; ++t) kept[t] = 0;
    const int64_t need = max_of(0, min_of(k, competing_));
    TopkStatus status{-1, competing_, __builtin_nan("")};
    Bracket<T> bracket = need > 0 ? guess(need) : none();
    while (true) {
      const Tally tally = scan(bracket);
      status.nan_tensor = tally.nan_tensor;
      if (tally.nan_tensor >= 0) return status;
      if (need == 0 || finish(bracket, tally, need, status)) break;
      bracket = narrow(missed(bracket, tally, need));
    }
    for (int64_t c = 0; c < chunks_.count(); ++c) kept[chunks_[c].tensor] += chunks_[c].kept;
    return status;
  }

 private:
  // body(task) for all tasks.
  template <class Body>
  void for_tasks(const Body& body) {
    for_ranges(parallel_, chunks_.tasks(), 1, [&](int64_t begin, int64_t end) {
      const ExactDenormals exact;
      for (int64_t task = begin; task < end; ++task) body(task);
    });
  }
  // body(chunk) for the chunks of a task.
  template <class Body>
  void for_chunks(int64_t task, const Body& body) {
    for (int64_t c = chunks_.first(task); c < chunks_.first(task + 1); ++c) body(chunks_[c]);
  }
  template <class Body>
  void for_chunk_words(const Chunk& chunk, const Body& body) {
    for_words<T>(tensors_[chunk.tensor], largest_, chunk.begin, chunk.end, body);
  }
  template <class Body>
  Tally sum_tasks(const Body& body) {
    for_tasks([&](int64_t task) { tallies_[task] = body(task); });
    Tally sum;
    for (int64_t task = 0; task < chunks_.tasks(); ++task) sum.add(tallies_[task]);
    return sum;
  }

  int64_t count_competing() {
    return sum_tasks([&](int64_t task) {
             Tally tally;
             for_chunks(task, [&](const Chunk& chunk) {
               const ScoredTensor& tensor = tensors_[chunk.tensor];
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

  // Puts the word's slots inside the bracket aside; `first` numbers its first slot among the task's.
  static void put_aside(typename Pool<T>::Writer& writer, const T* scores, uint64_t inside, int64_t first) {
    for (; inside != 0; inside &= inside - 1) {
      const int slot = __builtin_ctzll(inside);
      writer.append(key_of(scores[slot]), static_cast<uint32_t>(first + slot));
    }
  }

  // Writes the bits of what is above the bracket, puts aside what is inside, counts the rest.
  Tally scan(const Bracket<T>& bracket) {
    pool_.clear();
    return sum_tasks([&](int64_t task) {
      Tally tally;
      typename Pool<T>::Writer writer(pool_, task);
      for (int64_t c = chunks_.first(task); c < chunks_.first(task + 1); ++c) {
        const int64_t first = (c - chunks_.first(task)) * chunks_.chunk_words() * 64;
        const Tally chunk = bracket.ties ? scan_chunk<true>(chunks_[c], bracket, writer, first)
                                         : scan_chunk<false>(chunks_[c], bracket, writer, first);
        chunks_[c].at_high = static_cast<int32_t>(chunk.at_high);
        chunks_[c].at_low = static_cast<int32_t>(chunk.at_low);
        chunks_[c].kept = static_cast<int32_t>(chunk.above);
        tally.add(chunk);
      }
      return tally;
    });
  }

  template <bool ties>
  Tally scan_chunk(const Chunk& chunk, const Bracket<T>& bracket, typename Pool<T>::Writer& writer, int64_t first) {
    const ScoredTensor& tensor = tensors_[chunk.tensor];
    Tally tally;
    for_runs<T>(tensor, largest_, chunk.begin, chunk.end,
                [&](const T* scores, const uint64_t* slots, int64_t word, int64_t count) {
                  uint64_t inside[kRunWords];
                  uint32_t pending = 0;
                  bool nan = false;
                  // No branch on what the scores are: a wrong guess would hold up the loads of those that follow.
                  for (int64_t i = 0; i < count; ++i) {
                    const T* own = scores + 64 * i;
                    const Places places = slots[i] == 0 ? Places{} : places_of<ties>(own, slots[i], bracket);
                    nan |= slots[i] != 0 && any_nan(own);
                    store_bits(tensor.words, word + i, places.above);
                    tally.above += __builtin_popcountll(places.above);
                    tally.at_high += ties ? __builtin_popcountll(places.at_high) : 0;
                    tally.at_low += ties ? __builtin_popcountll(places.at_low) : 0;
                    inside[i] = places.inside;
                    pending |= static_cast<uint32_t>(places.inside != 0) << i;
                  }
                  for (; pending != 0; pending &= pending - 1) {
                    const int i = __builtin_ctz(pending);
                    tally.inside += __builtin_popcountll(inside[i]);
                    put_aside(writer, scores + 64 * i, inside[i], first + (word - chunk.begin + i) * 64);
                  }
                  for (int64_t i = 0; nan && i < count; ++i) {  // a NaN that does not compete is nobody's business
                    if (slots[i] != 0 && (slots_nan(scores + 64 * i) & slots[i]) != 0) tally.nan_tensor = chunk.tensor;
                  }
                });
    return tally;
  }

  // The same of one word in each stride, without writing any. The variance is that of words, not of scores, as neighbours
  // are alike; and of words against the ones before them, as the sample is spread evenly over tensors that are not.
  Tally sample(const Bracket<T>& bracket, T center, double share, int64_t stride) {
    return sum_tasks([&](int64_t task) {
      Tally tally;
      typename Pool<T>::Writer writer(pool_, task);
      double excess_before = 0;
      int64_t before = 0;  // words in earlier chunks
      for (int64_t c = 0; c < chunks_.first(task); ++c) before += chunks_[c].end - chunks_[c].begin;
      for_chunks(task, [&](const Chunk& chunk) {
        const int64_t words = chunk.end - chunk.begin;
        for (int64_t group = before / stride;; ++group) {
          const int64_t word = sampled_word(group, stride) - before;
          if (word >= words) break;
          if (word < 0) continue;
          const int64_t begin = chunk.begin + word;
          for_words<T>(tensors_[chunk.tensor], largest_, begin, begin + 1, [&](const T* scores, uint64_t slots, int64_t) {
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

  // Bounds between which the need-th largest lies, almost certainly, with as few as possible in between.
  Bracket<T> guess(int64_t need) {
    Bracket<T> bracket;
    if (competing_ <= kSmall) return bracket;
    const double total = static_cast<double>(competing_), room = static_cast<double>(pool_.room());
    const double share = static_cast<double>(need) / total;
    T center = 0;
    int64_t words = min_of(kSampledWords, chunks_.words());
    for (bool first = true;; first = false) {
      const int64_t stride = ceil_div(chunks_.words(), words);
      pool_.clear();
      Tally seen = sample(bracket, center, share, stride);
      if (pool_.overflowed() || seen.inside == 0) return bracket;
      const Open<T> open = inside_of(bracket, 0, seen.inside);
      const double rank = share * static_cast<double>(seen.competing) - static_cast<double>(seen.above + seen.at_high);
      if (first) {
        center = score_of<T>(in_pool(open, rank).low);
        seen = sample(none(), center, share, stride);
      }
      const double margin = kDeviations * __builtin_sqrt(seen.variance) + 2;
      bracket = around(bracket, open, rank - margin, rank + margin);
      // A larger sample, where what is to be put aside would not fit.
      const double inside = 2 * margin / static_cast<double>(seen.competing) * total;
      if (!first || inside < 0.8 * room) return bracket;
      const double wanted = static_cast<double>(words) * (inside / room) * (inside / room) * 4;
      const double most = 0.8 * room / inside * static_cast<double>(chunks_.words());
      words = max_of(words, min_of(chunks_.words() / 8, static_cast<int64_t>(wanted < most ? wanted : most)));
    }
  }

  // The key of that rank, from the largest, of those in the pool, and how many are equal to it.
  Open<T> in_pool(Open<T> open, double rank) {
    open.need = max_of(1, min_of(open.count, static_cast<int64_t>(rank)));
    return settled(open);
  }
  // The bracket of the keys of these ranks; where a rank lies beyond the pool, its old bound.
  Bracket<T> around(const Bracket<T>& bracket, const Open<T>& open, double upper, double lower) {
    const bool has_high = upper >= 1, has_low = lower <= static_cast<double>(open.count);
    const Open<T> high = has_high ? in_pool(open, upper) : at(bracket.high), low = has_low ? in_pool(open, lower) : at(bracket.low);
    const int64_t many = max_of(8, open.count / 1024);
    const bool ties_high = has_high ? high.count > many : bracket.ties, ties_low = has_low ? low.count > many : bracket.ties;
    if (!ties_high && !ties_low) return {score_of<T>(high.low), score_of<T>(low.low), false};
    const Key<T> above = ties_high || high.low == kInfinity<T> ? high.low : high.low + 1;
    const Key<T> below = ties_low || low.low == -kInfinity<T> ? low.low : low.low - 1;
    return {score_of<T>(above), score_of<T>(below), true};
  }

  // The need-th largest key of those in the pool: need of the count that are equal to it are to be kept.
  Open<T> settled(Open<T> open) {
    while (open.span() != 0) {
      for_tasks([&](int64_t task) {
        Histogram<T> histogram = histograms_.of(task);
        histogram.clear();
        pool_.for_blocks(task, [&](const Key<T>* keys, const uint32_t*, int64_t count) {
          histogram.add(keys, count, open);
        });
      });
      open = histograms_.narrowed(open);
    }
    return open;
  }

  // Completes the masks, if what the scan counted and put aside suffices.
  bool finish(const Bracket<T>& bracket, const Tally& tally, int64_t need, TopkStatus& status) {
    const int64_t from_high = tally.above + tally.at_high, over_low = from_high + tally.inside;
    if (need <= tally.above || need > over_low + tally.at_low) return false;
    if (need > from_high && pool_.overflowed()) return false;
    T threshold = bracket.high;
    add_ties(bracket.high, &Chunk::at_high, min_of(need - tally.above, tally.at_high));
    if (need > from_high) {
      const int64_t wanted = min_of(need - from_high, tally.inside);
      threshold = add_inside(inside_of(bracket, wanted, tally.inside));
    }
    if (need > over_low) {
      add_ties(bracket.low, &Chunk::at_low, need - over_low);
      threshold = bracket.low;
    }
    status.threshold = static_cast<double>(largest_ || threshold == 0 ? threshold : -threshold);
    return true;
  }

  // Keeps the `wanted` first slots with this score.
  void add_ties(T score, int32_t Chunk::* ties, int64_t wanted) {
    if (wanted == 0) return;
    for (int64_t c = 0; c < chunks_.count(); ++c) {
      chunks_[c].*ties = static_cast<int32_t>(min_of(chunks_[c].*ties, wanted));
      wanted -= chunks_[c].*ties;
    }
    for_tasks([&](int64_t task) {
      for_chunks(task, [&](Chunk& chunk) {
        int64_t left = chunk.*ties;
        if (left == 0) return;
        chunk.kept += chunk.*ties;
        for_chunk_words(chunk, [&](const T* scores, uint64_t slots, int64_t word) {
          if (left == 0) return;
          const uint64_t equal = slots_that<Is::equal>(scores, score) & slots;
          uint64_t over = equal;  // what is left of it once `left` are taken from below
          for (int64_t take = min_of(left, __builtin_popcountll(equal)); take > 0; --take, --left) over &= over - 1;
          int32_t* words = tensors_[chunk.tensor].words;
          store_bits(words, word, load_bits(words, word) | (equal ^ over));
        });
      });
    });
  }

  // Keeps the need best of what was put aside and returns the last one's score.
  T add_inside(Open<T> open) {
    open = settled(open);
    const Key<T> threshold = open.low;
    for_tasks([&](int64_t task) {
      tallies_[task] = Tally();
      pool_.for_blocks(task, [&](const Key<T>* keys, const uint32_t*, int64_t count) {
        for (int64_t i = 0; i < count; ++i) tallies_[task].inside += keys[i] == threshold;
      });
    });
    for (int64_t task = 0, left = open.need; task < chunks_.tasks(); ++task) {
      tallies_[task].inside = min_of(tallies_[task].inside, left);
      left -= tallies_[task].inside;
    }
    for_tasks([&](int64_t task) {
      int64_t left = tallies_[task].inside;
      Chunk* chunk = nullptr;  // the one at hand; its slots end at `end`, and its words are numbered from -before
      int64_t end = 0, before = 0;
      int32_t* words = nullptr;
      pool_.for_blocks(task, [&](const Key<T>* keys, const uint32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t slot = slots[i];
          if (slot >= end) {
            const int64_t index = slot / 64 >> chunks_.chunk_shift();
            chunk = &chunks_[chunks_.first(task) + index];
            words = tensors_[chunk->tensor].words;
            before = (index << chunks_.chunk_shift()) - chunk->begin;
            end = (index + 1) * chunks_.chunk_words() * 64;
          }
          const uint64_t takes = keys[i] > threshold || (keys[i] == threshold && left-- > 0);
          const int64_t word = slot / 64 - before;
          store_bits(words, word, load_bits(words, word) | takes << slot % 64);
          chunk->kept += static_cast<int32_t>(takes);
        }
      });
    });
    return score_of<T>(threshold);
  }

  static Bracket<T> none() { return {static_cast<T>(__builtin_inf()), static_cast<T>(__builtin_inf()), true}; }
  static Open<T> at(T score) { return {key_of(score), key_of(score), 0, 0}; }
  static Open<T> inside_of(const Bracket<T>& bracket, int64_t need, int64_t count) {
    const Key<T> beside = bracket.ties ? 1 : 0;
    return {key_of(bracket.low) + beside, key_of(bracket.high) - beside, need, count};
  }

  // Where the need-th largest lies, by what a scan has counted.
  Open<T> missed(const Bracket<T>& bracket, const Tally& tally, int64_t need) const {
    const Key<T> high = key_of(bracket.high), low = key_of(bracket.low);
    if (need <= tally.above) return {high + 1, kInfinity<T>, need, tally.above};
    need -= tally.above + tally.at_high;
    if (need <= tally.inside) return inside_of(bracket, need, tally.inside);
    need -= tally.inside;
    if (need <= tally.at_low) return {low, low, need, tally.at_low};
    const int64_t not_below = tally.above + tally.at_high + tally.inside + tally.at_low;
    return {-kInfinity<T>, low - 1, need - tally.at_low, competing_ - not_below};
  }

  // Bounds that hold for certain, so near to each other that what lies between them fits into the pool.
  Bracket<T> narrow(Open<T> open) {
    while (open.count > pool_.room() && open.span() != 0) {
      for_tasks([&](int64_t task) {
        Histogram<T> histogram = histograms_.of(task);
        histogram.clear();
        Key<T> keys[kBlock];
        int64_t held = 0;
        for_chunks(task, [&](const Chunk& chunk) {
          for_chunk_words(chunk, [&](const T* scores, uint64_t slots, int64_t) {
            for (int i = 0; i < 64; i += kLanes<T>) {
              held += append_lanes<T>(keys + held, keys_of(scores + i), slots >> i & low_bits(kLanes<T>));
            }
            if (held <= kBlock - 2 * 64) return;
            histogram.add(keys, held, open);
            held = 0;
          });
        });
        histogram.add(keys, held, open);
      });
      open = histograms_.narrowed(open);
    }
    return {score_of<T>(open.high), score_of<T>(open.low), open.span() == 0};
  }

  const ScoredTensor* tensors_;
  int64_t count_;
  bool largest_;
  const Parallel& parallel_;
  Chunks chunks_;
  Scratch<Tally> tallies_;
  int64_t competing_;
  Pool<T> pool_;
  Histograms<T> histograms_;
};

}  // namespace

template <Isa isa, class T>
TopkStatus topk_mask(const ScoredTensor* tensors, int64_t count, int64_t k, bool largest, int64_t* kept,
                     const Parallel& parallel) {
  return Selection<T>(tensors, count, largest, parallel).run(k, kept);
}

template TopkStatus topk_mask<Isa::SPARSEPRUNE_ISA, float>(const ScoredTensor*, int64_t, int64_t, bool, int64_t*,
                                                           const Parallel&);
template TopkStatus topk_mask<Isa::SPARSEPRUNE_ISA, double>(const ScoredTensor*, int64_t, int64_t, bool, int64_t*,
                                                            const Parallel&);

}  // namespace sparseprune
