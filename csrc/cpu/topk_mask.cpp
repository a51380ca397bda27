// The bound is one read of the scores. A sample says between which two scores the threshold lies; then one scan writes
// the bits of all that is above, and puts aside the few in between, which decide the rest. What is put aside is bounded,
// and where it does not fit, or the sample misled, histograms narrow the range down, a read for every 11 bits.
#include <sparseprune/topk_mask.h>

#include "topk_job.h"
#include "topk_sample.h"

namespace sparseprune {
namespace {

template <class T>
class Selection {
 public:
  Selection(const ScoredTensor* tensors, int64_t count, bool largest, const Parallel& parallel)
      : count_(count), job_(tensors, count, largest, parallel) {}

  TopkStatus run(int64_t k, int64_t* kept) {
    for (int64_t t = 0; t < count_; ++t) kept[t] = 0;
    const int64_t need = max_of(0, min_of(k, job_.competing));
    TopkStatus status{-1, job_.competing, __builtin_nan("")};
    Bracket<T> bracket = need > 0 ? Sample<T>(job_, need).guess() : no_bracket<T>();
    while (true) {
      const Tally tally = scan(bracket);
      status.nan_tensor = tally.nan_tensor;
      if (tally.nan_tensor >= 0) return status;
      if (need == 0 || finish(bracket, tally, need, status)) break;
      bracket = narrow(missed(bracket, tally, need));
    }
    for (int64_t c = 0; c < job_.chunks.count(); ++c) kept[job_.chunks[c].tensor] += job_.chunks[c].kept;
    return status;
  }

 private:
  // Writes the bits of what is above the bracket, puts aside what is inside, counts the rest.
  Tally scan(const Bracket<T>& bracket) {
    job_.pool.clear();
    return job_.sum_tasks([&](int64_t task) {
      Tally tally;
      typename Pool<T>::Writer writer(job_.pool, task);
      for (int64_t c = job_.chunks.first(task); c < job_.chunks.first(task + 1); ++c) {
        const int64_t first = (c - job_.chunks.first(task)) * job_.chunks.chunk_words() * 64;
        const Tally chunk = bracket.ties ? scan_chunk<true>(job_.chunks[c], bracket, writer, first)
                                         : scan_chunk<false>(job_.chunks[c], bracket, writer, first);
        job_.chunks[c].at_high = static_cast<int32_t>(chunk.at_high);
        job_.chunks[c].at_low = static_cast<int32_t>(chunk.at_low);
        job_.chunks[c].kept = static_cast<int32_t>(chunk.above);
        tally.add(chunk);
      }
      return tally;
    });
  }

  template <bool ties>
  Tally scan_chunk(const Chunk& chunk, const Bracket<T>& bracket, typename Pool<T>::Writer& writer, int64_t first) {
    const ScoredTensor& tensor = job_.tensors[chunk.tensor];
    Tally tally;
    for_runs<T>(tensor, job_.largest, chunk.begin, chunk.end,
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

  // Completes the masks, if what the scan counted and put aside suffices.
  bool finish(const Bracket<T>& bracket, const Tally& tally, int64_t need, TopkStatus& status) {
    const int64_t from_high = tally.above + tally.at_high, over_low = from_high + tally.inside;
    if (need <= tally.above || need > over_low + tally.at_low) return false;
    if (need > from_high && job_.pool.overflowed()) return false;
    T threshold = bracket.high;
    add_ties(bracket.high, &Chunk::at_high, min_of(need - tally.above, tally.at_high));
    if (need > from_high && tally.inside > 0) {
      const int64_t wanted = min_of(need - from_high, tally.inside);
      threshold = add_inside(inside_of(bracket, wanted, tally.inside));
    }
    if (need > over_low) {
      add_ties(bracket.low, &Chunk::at_low, need - over_low);
      threshold = bracket.low;
    }
    status.threshold = static_cast<double>(job_.largest || threshold == 0 ? threshold : -threshold);
    return true;
  }

  // Keeps the `wanted` first slots with this score.
  void add_ties(T score, int32_t Chunk::* ties, int64_t wanted) {
    if (wanted == 0) return;
    for (int64_t c = 0; c < job_.chunks.count(); ++c) {
      job_.chunks[c].*ties = static_cast<int32_t>(min_of(job_.chunks[c].*ties, wanted));
      wanted -= job_.chunks[c].*ties;
    }
    job_.for_tasks([&](int64_t task) {
      job_.for_chunks(task, [&](Chunk& chunk) {
        int64_t left = chunk.*ties;
        if (left == 0) return;
        chunk.kept += chunk.*ties;
        job_.for_chunk_words(chunk, [&](const T* scores, uint64_t slots, int64_t word) {
          if (left == 0) return;
          const uint64_t equal = slots_that<Is::equal>(scores, score) & slots;
          uint64_t over = equal;  // what is left of it once `left` are taken from below
          for (int64_t take = min_of(left, __builtin_popcountll(equal)); take > 0; --take, --left) over &= over - 1;
          int32_t* words = job_.tensors[chunk.tensor].words;
          store_bits(words, word, load_bits(words, word) | (equal ^ over));
        });
      });
    });
  }

  // Keeps the need best of what was put aside and returns the last one's score.
  T add_inside(Open<T> open) {
    open = job_.settled(open);
    const Key<T> threshold = open.low;
    job_.for_tasks([&](int64_t task) {
      job_.tallies[task] = Tally();
      job_.pool.for_blocks(task, [&](const Key<T>* keys, const uint32_t*, int64_t count) {
        for (int64_t i = 0; i < count; ++i) job_.tallies[task].inside += keys[i] == threshold;
      });
    });
    for (int64_t task = 0, left = open.need; task < job_.chunks.tasks(); ++task) {
      job_.tallies[task].inside = min_of(job_.tallies[task].inside, left);
      left -= job_.tallies[task].inside;
    }
    job_.for_tasks([&](int64_t task) {
      int64_t left = job_.tallies[task].inside;
      Chunk* chunk = nullptr;  // the one at hand; its slots end at `end`, and its words are numbered from -before
      int64_t end = 0, before = 0;
      int32_t* words = nullptr;
      job_.pool.for_blocks(task, [&](const Key<T>* keys, const uint32_t* slots, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t slot = slots[i];
          if (slot >= end) {
            const int64_t index = slot / 64 >> job_.chunks.chunk_shift();
            chunk = &job_.chunks[job_.chunks.first(task) + index];
            words = job_.tensors[chunk->tensor].words;
            before = (index << job_.chunks.chunk_shift()) - chunk->begin;
            end = (index + 1) * job_.chunks.chunk_words() * 64;
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

  // Where the need-th largest lies, by what a scan has counted.
  Open<T> missed(const Bracket<T>& bracket, const Tally& tally, int64_t need) const {
    const Key<T> high = key_of(bracket.high), low = key_of(bracket.low);
    if (need <= tally.above) return {high + 1, kInfinity<T>, need, tally.above};
    need -= tally.above + tally.at_high;
    if (need <= tally.inside) return inside_of(bracket, need, tally.inside);
    need -= tally.inside;
    if (need <= tally.at_low) return {low, low, need, tally.at_low};
    const int64_t not_below = tally.above + tally.at_high + tally.inside + tally.at_low;
    return {-kInfinity<T>, low - 1, need - tally.at_low, job_.competing - not_below};
  }

  // Bounds that hold for certain, so near to each other that what lies between them fits into the pool.
  Bracket<T> narrow(Open<T> open) {
    while (open.count > job_.pool.room() && open.span() != 0) {
      job_.for_tasks([&](int64_t task) {
        Histogram<T> histogram = job_.histograms.of(task);
        histogram.clear();
        Key<T> keys[kBlock];
        int64_t held = 0;
        job_.for_chunks(task, [&](const Chunk& chunk) {
          job_.for_chunk_words(chunk, [&](const T* scores, uint64_t slots, int64_t) {
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
      open = job_.histograms.narrowed(open);
    }
    return {score_of<T>(open.high), score_of<T>(open.low), open.span() == 0};
  }

  int64_t count_;
  Job<T> job_;
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
