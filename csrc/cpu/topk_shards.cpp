#include <sparseprune/topk_shards.h>

#include <type_traits>

#include "topk_chunks.h"
#include "topk_keys.h"

namespace sparseprune {
namespace {

constexpr int64_t kPieceWords = int64_t{1} << kChunkShift;
// Copies of a histogram: neighbours count in different ones, and need not wait for each other.
constexpr int kMostCopies = 4;

int64_t count_words(const ScoredTensor& shard) { return shard.rows * ceil_div(shard.cols, 64); }

// One task's part of a histogram.
template <class T>
class Digits {
 public:
  Digits() = default;
  Digits(uint32_t* counts, unsigned copies, int64_t low, int shift, int width)
      : counts_(counts),
        copies_(copies),
        shift_(shift),
        first_(static_cast<Unsigned>(low >> shift)),
        bins_(Unsigned{1} << width),
        zero_(Unsigned{0} - first_) {
    std::memset(counts, 0, static_cast<size_t>(copies_ * bins_) * sizeof(uint32_t));
  }

  void add(const T* scores, uint64_t slots) {
    Key<T> inside[2 * 64];
    int64_t held = 0;
    for (int i = 0; i < 64; i += kLanes<T>) {
      const Vec<Key<T>> magnitude = (Vec<Key<T>>)load(scores + i) & kMagnitude<T>;
      const uint64_t competing = slots >> i & low_bits(kLanes<T>);
      const uint64_t nan = lane_bits<T>(magnitude > kInfinity<T>) & competing;
      // Pruned scores are zeros by the million: they are counted apart, without a store for each.
      const uint64_t zero = lane_bits<T>(magnitude == Vec<Key<T>>{}) & competing;
      nan_ += __builtin_popcountll(nan);
      zeros_ += __builtin_popcountll(zero);
      // In [0, bins_) for the keys of the range and, as unsigned numbers, above for all others.
      const Vec<Unsigned> digits = (Vec<Unsigned>)(keys_of(scores + i) >> shift_) - first_;
      const uint64_t in_range = lane_bits<T>((digits & (Unsigned{0} - bins_)) == Vec<Unsigned>{});
      const uint64_t chosen = in_range & competing & ~nan & ~zero;
      if (chosen == low_bits(kLanes<T>)) {
        store(inside + held, (Vec<Key<T>>)digits);
        held += kLanes<T>;
      } else if (chosen != 0) {
        held += append_lanes<T>(inside + held, (Vec<Key<T>>)digits, chosen);
      }
    }
    for (int64_t i = 0; i < held; ++i) ++counts_[inside[i] * copies_ + (i & (copies_ - 1))];
  }

  void add_to(int64_t* counts) const {
    for (uint64_t i = 0; i < copies_ * bins_; ++i) counts[i / copies_] += counts_[i];
    if (zero_ < bins_) counts[zero_] += zeros_;
    counts[bins_] += nan_;
  }

 private:
  using Unsigned = std::make_unsigned_t<Key<T>>;

  uint32_t* counts_ = nullptr;
  unsigned copies_ = 0;
  int shift_ = 0;
  Unsigned first_ = 0;
  Unsigned bins_ = 0;
  Unsigned zero_ = 0;  // the digit of key 0
  int64_t zeros_ = 0;
  int64_t nan_ = 0;
};

// Bits of 64 slots, or how many of a piece.
struct Found {
  uint64_t above;
  uint64_t equal;
};

template <class T>
inline Found compare(const T* scores, uint64_t slots, Key<T> threshold) {
  Found bits{0, 0};
  for (int i = 0; i < 64; i += kLanes<T>) {
    const Vec<Key<T>> keys = keys_of(scores + i);
    bits.above |= lane_bits<T>(keys > threshold) << i;
    bits.equal |= lane_bits<T>(keys == threshold) << i;
  }
  return {bits.above & slots, bits.equal & slots};
}

// The lowest `count` set bits.
inline uint64_t lowest_set(uint64_t bits, int64_t count) {
  uint64_t rest = bits;
  for (; count > 0 && rest != 0; --count) rest &= rest - 1;
  return bits ^ rest;
}

}  // namespace

template <Isa isa, class T>
void digit_histogram(const ScoredTensor& shard, bool largest, int64_t low, int shift, int width, int64_t* counts,
                     const Parallel& parallel) {
  std::memset(counts, 0, ((size_t{1} << width) + 1) * sizeof(int64_t));
  const int64_t words = count_words(shard);
  if (words == 0) return;
  // One task a thread, and so many that 32 bits count the slots of each.
  const int64_t tasks = max_of(max_of(1, min_of(parallel.threads, words / kPieceWords)), words >> 25);
  const unsigned copies = words < kPieceWords ? 1 : kMostCopies;
  const int64_t size = int64_t{copies} << width;
  Scratch<uint32_t> histograms(tasks * size);
  Scratch<Digits<T>> digits(tasks);
  for_ranges(parallel, tasks, 1, [&](int64_t begin, int64_t end) {
    const ExactDenormals exact;
    for (int64_t task = begin; task < end; ++task) {
      Digits<T> found(histograms.get() + task * size, copies, low, shift, width);
      for_words<T>(shard, largest, words * task / tasks, words * (task + 1) / tasks,
                   [&](const T* scores, uint64_t slots, int64_t) { found.add(scores, slots); });
      digits[task] = found;
    }
  });
  for (int64_t task = 0; task < tasks; ++task) digits[task].add_to(counts);
}

template <Isa isa, class T>
void threshold_mask(const ScoredTensor& shard, bool largest, int64_t threshold, int64_t quota, int64_t* counts,
                    const Parallel& parallel) {
  const int64_t words = count_words(shard), pieces = ceil_div(words, kPieceWords);
  const bool all = quota >= words * 64;
  const Key<T> key = static_cast<Key<T>>(threshold);
  Scratch<Found> found(pieces);
  // body(piece, its first word, its end)
  const auto for_pieces = [&](const auto& body) {
    for_ranges(parallel, pieces, 4, [&](int64_t begin, int64_t end) {
      const ExactDenormals exact;
      for (int64_t p = begin; p < end; ++p) body(p, p * kPieceWords, min_of(words, (p + 1) * kPieceWords));
    });
  };
  for_pieces([&](int64_t piece, int64_t begin, int64_t end) {
    Found sum{0, 0};
    std::memset(shard.words + 2 * begin, 0, static_cast<size_t>(end - begin) * sizeof(uint64_t));
    for_words<T>(shard, largest, begin, end, [&](const T* scores, uint64_t slots, int64_t word) {
      const Found bits = compare(scores, slots, key);
      sum.above += __builtin_popcountll(bits.above);
      sum.equal += __builtin_popcountll(bits.equal);
      store_bits(shard.words, word, all ? bits.above | bits.equal : bits.above);
    });
    found[piece] = sum;
  });
  counts[0] = counts[1] = 0;
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t equal = static_cast<int64_t>(found[p].equal);
    found[p].equal = static_cast<uint64_t>(max_of(0, min_of(equal, quota - counts[1])));  // to be kept here
    counts[0] += static_cast<int64_t>(found[p].above);
    counts[1] += equal;
  }
  if (all || quota <= 0) return;
  for_pieces([&](int64_t piece, int64_t begin, int64_t end) {
    int64_t left = static_cast<int64_t>(found[piece].equal);
    if (left == 0) return;
    for_words<T>(shard, largest, begin, end, [&](const T* scores, uint64_t slots, int64_t word) {
      if (left == 0) return;
      const uint64_t ties = lowest_set(compare(scores, slots, key).equal, left);
      left -= __builtin_popcountll(ties);
      store_bits(shard.words, word, load_bits(shard.words, word) | ties);
    });
  });
}

template void digit_histogram<Isa::SPARSEPRUNE_ISA, float>(const ScoredTensor&, bool, int64_t, int, int, int64_t*,
                                                           const Parallel&);
template void digit_histogram<Isa::SPARSEPRUNE_ISA, double>(const ScoredTensor&, bool, int64_t, int, int, int64_t*,
                                                            const Parallel&);
template void threshold_mask<Isa::SPARSEPRUNE_ISA, float>(const ScoredTensor&, bool, int64_t, int64_t, int64_t*,
                                                          const Parallel&);
template void threshold_mask<Isa::SPARSEPRUNE_ISA, double>(const ScoredTensor&, bool, int64_t, int64_t, int64_t*,
                                                           const Parallel&);

}  // namespace sparseprune
