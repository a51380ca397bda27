#include <sparseprune/topk_mask.h>

#include "scratch.h"
#include "topk_chunks.h"

namespace sparseprune {
namespace {

// What is still open: all keys above `high` are kept, and `need` of the `count` keys in [low, high].
template <class T>
struct Open {
  Key<T> low;
  Key<T> high;
  int shift;  // low and high agree in all bits from here on
  int64_t need;
  int64_t count;
};

// What a task saw; as wide as two cache lines, so that tasks do not share one.
struct Tally {
  int64_t zeros;      // keys that are 0 and in the open range, which the histogram leaves out
  int64_t inside;     // keys in the digit that was chosen last
  int64_t competing;  // of the first pass
  int64_t nan;        // the first tensor with a NaN, or -1
  char apart[96];
};

template <class T>
class Selection {
 public:
  Selection(const ScoredTensor<T>* tensors, int64_t count, const Parallel& parallel)
      : tensors_(tensors),
        parallel_(parallel),
        chunks_count_(count_chunks(tensors, count)),
        tasks_(count_tasks(chunks_count_, parallel)),
        chunks_(chunks_count_),
        tallies_(tasks_),
        histograms_(tasks_ * kBins * kWays) {
    int64_t next = 0;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t words = tensors[t].rows * ceil_div(tensors[t].cols, 64);
      for (int64_t begin = 0; begin < words; begin += kChunkWords) {
        chunks_[next++] = {t, begin, min_of(begin + kChunkWords, words)};
      }
    }
  }

  TopkStatus run(int64_t k) {
    const TopkStatus status = count_first_digit();
    if (status.nan_tensor >= 0) return status;
    if (k <= 0 || k >= status.competing) {
      write_all(k > 0);
      return status;
    }
    constexpr auto lowest = uint64_t{1} << (kKeyBits<T> - 1);
    Open<T> open{static_cast<Key<T>>(lowest), static_cast<Key<T>>(~lowest), kKeyBits<T>, k, status.competing};
    narrow(open);
    while (open.shift > 0 && open.need < open.count && open.count > status.competing / 8) {
      count_next_digit(open);
      narrow(open);
    }
    if (open.shift > 0 && open.need < open.count) finish_on_copy(open);
    write(open);
    return status;
  }

 private:
  static int64_t count_chunks(const ScoredTensor<T>* tensors, int64_t count) {
    int64_t chunks = 0;
    for (int64_t t = 0; t < count; ++t) {
      chunks += ceil_div(tensors[t].rows * ceil_div(tensors[t].cols, 64), kChunkWords);
    }
    return chunks;
  }
  // One a thread, and so many that none can count to 2^32.
  static int64_t count_tasks(int64_t chunks, const Parallel& parallel) {
    return max_of(1, max_of(min_of(parallel.threads, chunks / 4),
                            ceil_div(chunks * kChunkWords * 64, int64_t{1} << 31)));
  }

  // body(task); task t owns the chunks [first_chunk(t), first_chunk(t + 1)).
  template <class Body>
  void for_tasks(const Body& body) {
    for_ranges(parallel_, tasks_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(task);
    });
  }
  int64_t first_chunk(int64_t task) const { return chunks_count_ * task / tasks_; }

  // body(chunk index, scores, slots, word) over the task's words in which anything competes.
  template <class Body>
  void for_task_words(int64_t task, const Body& body) {
    for (int64_t c = first_chunk(task); c < first_chunk(task + 1); ++c) {
      const Chunk chunk = chunks_[c];
      for_chunk(tensors_[chunk.tensor], chunk, [&](const T* scores, uint64_t slots, int64_t) {
        if (slots != 0) body(chunk.tensor, scores, slots);
      });
    }
  }

  uint32_t* cleared_histogram(int64_t task) {
    uint32_t* histogram = &histograms_[task * kBins * kWays];
    std::memset(histogram, 0, kBins * kWays * sizeof(uint32_t));
    return histogram;
  }

  static int next_bits(const Open<T>& open) { return static_cast<int>(min_of(kDigitBits, open.shift)); }

  // Narrows `open` by the digit that every task has just counted.
  void narrow(Open<T>& open) {
    const int bits = next_bits(open), shift = open.shift - bits;
    int64_t above = 0;
    for (int64_t digit = (int64_t{1} << bits) - 1; digit >= 0; --digit) {
      const uint64_t low = static_cast<uint64_t>(open.low) + (static_cast<uint64_t>(digit) << shift);
      const Open<T> bin{static_cast<Key<T>>(low), static_cast<Key<T>>(low + ((uint64_t{1} << shift) - 1)),
                        shift, 0, 0};
      int64_t count = 0;
      for (int64_t task = 0; task < tasks_; ++task) {
        const uint32_t* ways = &histograms_[(task * kBins + digit) * kWays];
        int64_t inside = bin.low <= 0 && 0 <= bin.high ? tallies_[task].zeros : 0;
        for (int way = 0; way < kWays; ++way) inside += ways[way];
        tallies_[task].inside = inside;
        count += inside;
      }
      if (above + count >= open.need) {
        open = {bin.low, bin.high, shift, open.need - above, count};
        return;
      }
      above += count;
    }
  }

  TopkStatus count_first_digit() {
    for_tasks([&](int64_t task) {
      uint32_t* histogram = cleared_histogram(task);
      Tally tally{0, 0, 0, -1, {}};
      Key<T> keys[kBuffer];
      int64_t held = 0;
      for_task_words(task, [&](int64_t tensor, const T* scores, uint64_t slots) {
        if (tally.nan < 0 && (nan_bits(scores) & slots) != 0) tally.nan = tensor;
        tally.competing += __builtin_popcountll(slots);
        held += append_nonzero(keys + held, scores, slots, tally.zeros);
        if (held > kBuffer - 2 * 64) {
          count_digits<T>(histogram, keys, held, kKeyBits<T> - kDigitBits, kDigitBits);
          held = 0;
        }
      });
      count_digits<T>(histogram, keys, held, kKeyBits<T> - kDigitBits, kDigitBits);
      tallies_[task] = tally;
    });
    TopkStatus status{-1, 0};
    for (int64_t task = 0; task < tasks_; ++task) {
      status.competing += tallies_[task].competing;
      if (status.nan_tensor < 0) status.nan_tensor = tallies_[task].nan;
    }
    return status;
  }

  // From the scores themselves: the open range is too large to copy.
  void count_next_digit(const Open<T>& open) {
    const int bits = next_bits(open);
    const bool zero_open = open.low <= 0 && 0 <= open.high;
    for_tasks([&](int64_t task) {
      uint32_t* histogram = cleared_histogram(task);
      Key<T> keys[2 * 64];
      int64_t zeros = 0;
      for_task_words(task, [&](int64_t, const T* scores, uint64_t slots) {
        int64_t count = 0;
        for (int i = 0; i < 64; i += kLanes<T>) {
          const Vec<Key<T>> lanes = keys_of(scores + i);
          const uint64_t zero = zero_open ? lane_bits<T>(lanes == Vec<Key<T>>{}) : 0;
          const uint64_t competing = slots >> i & low_bits(kLanes<T>);
          zeros += __builtin_popcountll(zero & competing);
          count += append_between<T>(keys + count, lanes, competing & ~zero, open.low, open.high);
        }
        count_digits<T>(histogram, keys, count, open.shift - bits, bits);
      });
      tallies_[task].zeros = zeros;
    });
  }

  // The open keys, copied once, decide the digits that are left.
  void finish_on_copy(Open<T>& open) {
    Scratch<Key<T>> copy(open.count + kLanes<T>);
    Scratch<int64_t> starts(tasks_ + 1);
    starts[0] = 0;
    for (int64_t task = 0; task < tasks_; ++task) starts[task + 1] = starts[task] + tallies_[task].inside;
    for_tasks([&](int64_t task) {
      Key<T>* out = copy.get() + starts[task];
      Key<T> keys[2 * 64];
      for_task_words(task, [&](int64_t, const T* scores, uint64_t slots) {
        int64_t count = 0;
        for (int i = 0; i < 64; i += kLanes<T>) {
          count += append_between<T>(keys + count, keys_of(scores + i), slots >> i & low_bits(kLanes<T>),
                                     open.low, open.high);
        }
        std::memcpy(out, keys, static_cast<size_t>(count) * sizeof(Key<T>));
        out += count;
      });
    });
    while (open.shift > 0 && open.need < open.count) {
      const int bits = next_bits(open);
      for_tasks([&](int64_t task) {
        uint32_t* histogram = cleared_histogram(task);
        Key<T> keys[kBuffer];
        for (int64_t begin = starts[task]; begin < starts[task + 1]; begin += kBuffer / 2) {
          const int64_t end = min_of(begin + kBuffer / 2, starts[task + 1]);
          int64_t count = 0;
          for (int64_t i = begin; i < end; i += kLanes<T>) {
            count += append_between<T>(keys + count, load(copy.get() + i),
                                       low_bits(min_of(kLanes<T>, end - i)), open.low, open.high);
          }
          count_digits<T>(histogram, keys, count, open.shift - bits, bits);
        }
        tallies_[task].zeros = 0;
      });
      narrow(open);
    }
  }

  void write_all(bool kept) {
    for_tasks([&](int64_t task) {
      for (int64_t c = first_chunk(task); c < first_chunk(task + 1); ++c) {
        const ScoredTensor<T>& tensor = tensors_[chunks_[c].tensor];
        for_chunk(tensor, chunks_[c], [&](const T*, uint64_t slots, int64_t word) {
          store_bits(tensor.words, word, kept ? slots : 0);
        });
      }
    });
  }

  // Keeps what is above the open range, and of the range itself all or, where it is one key, the first
  // `need`.
  void write(const Open<T>& open) {
    const bool all = open.need == open.count;
    Scratch<int64_t> ties(chunks_count_);
    for_tasks([&](int64_t task) {
      for (int64_t c = first_chunk(task); c < first_chunk(task + 1); ++c) {
        const ScoredTensor<T>& tensor = tensors_[chunks_[c].tensor];
        int64_t equal = 0;
        for_chunk(tensor, chunks_[c], [&](const T* scores, uint64_t slots, int64_t word) {
          const Comparison found = compare_keys(scores, open.low);
          equal += __builtin_popcountll(found.equal & slots);
          store_bits(tensor.words, word, (all ? found.greater | found.equal : found.greater) & slots);
        });
        ties[c] = equal;
      }
    });
    if (all) return;
    int64_t before = 0;
    for (int64_t c = 0; c < chunks_count_; ++c) {
      const int64_t equal = ties[c];
      ties[c] = min_of(equal, open.need - before);
      before += ties[c];
    }
    for_tasks([&](int64_t task) {
      for (int64_t c = first_chunk(task); c < first_chunk(task + 1); ++c) {
        if (ties[c] > 0) add_ties(chunks_[c], open.low, ties[c]);
      }
    });
  }

  void add_ties(const Chunk& chunk, Key<T> threshold, int64_t quota) {
    const ScoredTensor<T>& tensor = tensors_[chunk.tensor];
    for_chunk(tensor, chunk, [&](const T* scores, uint64_t slots, int64_t word) {
      if (quota == 0) return;
      uint64_t equal = compare_keys(scores, threshold).equal & slots;
      uint64_t over = equal;  // what is left of it once the quota is taken from below
      for (int64_t taken = min_of(quota, __builtin_popcountll(equal)); taken > 0; --taken, --quota)
        over &= over - 1;
      store_bits(tensor.words, word, load_bits(tensor.words, word) | (equal ^ over));
    });
  }

  const ScoredTensor<T>* tensors_;
  const Parallel& parallel_;
  int64_t chunks_count_;
  int64_t tasks_;
  Scratch<Chunk> chunks_;
  Scratch<Tally> tallies_;
  Scratch<uint32_t> histograms_;
};

}  // namespace

template <Isa isa, class T>
TopkStatus topk_mask(const ScoredTensor<T>* tensors, int64_t count, int64_t k, const Parallel& parallel) {
  return Selection<T>(tensors, count, parallel).run(k);
}

template TopkStatus topk_mask<Isa::SPARSEPRUNE_ISA>(const ScoredTensor<float>*, int64_t, int64_t,
                                                    const Parallel&);
template TopkStatus topk_mask<Isa::SPARSEPRUNE_ISA>(const ScoredTensor<double>*, int64_t, int64_t,
                                                    const Parallel&);

}  // namespace sparseprune
