#include <sparseprune/topk_shards.h>

#include <type_traits>

#include "scratch.h"
#include "topk_keys.h"

namespace sparseprune {
namespace {

constexpr int64_t kChunkWords = 512;
// Copies of a histogram: neighbours count in different ones, and need not wait for each other.
constexpr int kMostCopies = 4;

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return as_float(static_cast<uint32_t>(value.bits) << 16); }
// No step takes or makes a denormal float, which a thread may be set to flush; no branch, so that it is vectorised.
inline float widen(Float16 value) {
  constexpr uint32_t kBias = (127 - 15) << 23, kOne = 1 << 23;
  const uint32_t magnitude = value.bits & 0x7fffu, sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t normal = (magnitude << 13) + kBias + (magnitude >= 0x7c00 ? kBias : 0);  // the latter: inf and NaN
  const float small = as_float((magnitude << 13) + kBias + kOne) - as_float(kBias + kOne);
  uint32_t denormal;
  std::memcpy(&denormal, &small, sizeof(denormal));
  return as_float((magnitude < 0x400 ? denormal : normal) | sign);
}

// `valid` <= 64 scores as T: where they are if they can be read as 64 of them there, else in `values`.
template <class T>
inline const T* widened(const T* scores, int64_t valid, T* values) {
  if (valid == 64) return scores;
  std::memcpy(values, scores, static_cast<size_t>(valid) * sizeof(T));
  return values;
}
template <class T, class Stored>
inline const T* widened(const Stored* scores, int64_t valid, T* values) {
  if (valid == 64) {
    for (int i = 0; i < 64; ++i) values[i] = static_cast<T>(widen(scores[i]));
  } else {
    for (int64_t i = 0; i < valid; ++i) values[i] = static_cast<T>(widen(scores[i]));
  }
  return values;
}

// body(scores of 64 slots as T, which of them compete, word) over the 64-bit words [begin, end) of a shard. Where
// none competes nothing is read.
template <class T, class Stored, class Body>
inline void for_words(const ShardScores<Stored>& shard, int64_t begin, int64_t end, const Body& body) {
  if (begin == end) return;
  const int64_t row_words = ceil_div(shard.cols, 64);
  int64_t row = begin / row_words, column = begin % row_words * 64;
  T values[64] = {};
  for (int64_t word = begin; word < end; ++word) {
    const int64_t valid = min_of(64, shard.cols - column);
    const uint64_t slots = shard.candidates == nullptr ? low_bits(valid) : load_bits(shard.candidates, word);
    const Stored* scores = shard.scores + row * shard.cols + column;
    body(slots == 0 ? values : widened(scores, valid, values), slots, word);
    column += 64;
    if (column >= shard.cols) {
      column = 0;
      ++row;
    }
  }
}

// Turns scores into the keys of what is compared.
template <class T>
struct Order {
  Key<T> absolute;  // -1 where negative keys are negated
  Key<T> smallest;  // -1 where all are, after that

  template <class Stored>
  explicit Order(const ShardScores<Stored>& shard)
      : absolute(shard.absolute ? -1 : 0), smallest(shard.largest ? 0 : -1) {}

  Vec<Key<T>> keys(const T* scores) const {
    const Vec<Key<T>> keys = keys_of(scores), negated = ((keys >> (kKeyBits<T> - 1)) & absolute) ^ smallest;
    return (keys ^ negated) - negated;
  }
};

template <class T>
inline uint64_t nan_lanes(const T* scores) {
  constexpr Key<T> magnitude = static_cast<Key<T>>(~(uint64_t{1} << (kKeyBits<T> - 1)));
  constexpr Key<T> infinity =
      sizeof(T) == 4 ? static_cast<Key<T>>(0x7f800000) : static_cast<Key<T>>(0x7ffll << 52);
  return lane_bits<T>(((Vec<Key<T>>)load(scores) & magnitude) > infinity);
}

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

  void add(const Order<T>& order, const T* scores, uint64_t slots) {
    Key<T> inside[2 * 64];
    int64_t held = 0;
    for (int i = 0; i < 64; i += kLanes<T>) {
      const uint64_t competing = slots >> i & low_bits(kLanes<T>), nan = nan_lanes(scores + i) & competing;
      const uint64_t lanes = competing & ~nan;
      nan_ += __builtin_popcountll(nan);
      const Vec<Key<T>> keys = order.keys(scores + i);
      // Pruned scores are zeros by the million: they are counted apart, without a store for each.
      const uint64_t zero = lane_bits<T>(keys == Vec<Key<T>>{}) & lanes;
      zeros_ += __builtin_popcountll(zero);
      // In [0, bins_) for the keys of the range and, as unsigned numbers, above for all others.
      const Vec<Unsigned> digits = (Vec<Unsigned>)(keys >> shift_) - first_;
      const uint64_t in_range = lane_bits<T>((digits & (Unsigned{0} - bins_)) == Vec<Unsigned>{});
      const uint64_t chosen = in_range & lanes & ~zero;
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

// Bits of 64 slots, or how many of a chunk.
struct Found {
  uint64_t above;
  uint64_t equal;
};

template <class T>
inline Found compare(const Order<T>& order, const T* scores, uint64_t slots, Key<T> threshold) {
  Found bits{0, 0};
  if (slots == 0) return bits;
  for (int i = 0; i < 64; i += kLanes<T>) {
    const Vec<Key<T>> keys = order.keys(scores + i);
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

template <class Stored>
int64_t count_words(const ShardScores<Stored>& shard) {
  return shard.rows * ceil_div(shard.cols, 64);
}

}  // namespace

template <Isa isa, class T, class Stored>
void digit_histogram(const ShardScores<Stored>& shard, int64_t low, int shift, int width, int64_t* counts,
                     const Parallel& parallel) {
  const int64_t words = count_words(shard);
  // One task a thread, and so many that 32 bits count the slots of each.
  const int64_t tasks = max_of(max_of(1, min_of(parallel.threads, words / kChunkWords)), words >> 25);
  const unsigned copies = words < kChunkWords ? 1 : kMostCopies;
  const int64_t size = int64_t{copies} << width;
  Scratch<uint32_t> histograms(tasks * size);
  Scratch<Digits<T>> digits(tasks);
  const Order<T> order(shard);
  for_ranges(parallel, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      Digits<T> found(histograms.get() + task * size, copies, low, shift, width);
      for_words<T>(shard, words * task / tasks, words * (task + 1) / tasks,
                   [&](const T* scores, uint64_t slots, int64_t) {
                     if (slots != 0) found.add(order, scores, slots);
                   });
      digits[task] = found;
    }
  });
  std::memset(counts, 0, ((size_t{1} << width) + 1) * sizeof(int64_t));
  for (int64_t task = 0; task < tasks; ++task) digits[task].add_to(counts);
}

template <Isa isa, class T, class Stored>
void threshold_mask(const ShardScores<Stored>& shard, int64_t threshold, int64_t quota, int32_t* words,
                    int64_t* counts, const Parallel& parallel) {
  const int64_t total = count_words(shard), chunks = ceil_div(total, kChunkWords);
  const bool all = quota >= total * 64;
  const Key<T> key = static_cast<Key<T>>(threshold);
  const Order<T> order(shard);
  Scratch<Found> found(chunks);
  // body(chunk)
  const auto for_chunks = [&](const auto& body) {
    for_ranges(parallel, chunks, kGrainBytes / (kChunkWords * 64), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) body(c);
    });
  };
  for_chunks([&](int64_t c) {
    Found sum{0, 0};
    for_words<T>(shard, c * kChunkWords, min_of(total, (c + 1) * kChunkWords),
                 [&](const T* scores, uint64_t slots, int64_t word) {
                   const Found bits = compare(order, scores, slots, key);
                   sum.above += __builtin_popcountll(bits.above);
                   sum.equal += __builtin_popcountll(bits.equal);
                   store_bits(words, word, all ? bits.above | bits.equal : bits.above);
                 });
    found[c] = sum;
  });
  counts[0] = counts[1] = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    counts[0] += static_cast<int64_t>(found[c].above);
    const int64_t equal = static_cast<int64_t>(found[c].equal);
    found[c].equal = static_cast<uint64_t>(max_of(0, min_of(equal, quota - counts[1])));  // to be kept here
    counts[1] += equal;
  }
  if (all || quota <= 0) return;
  for_chunks([&](int64_t c) {
    int64_t left = static_cast<int64_t>(found[c].equal);
    if (left == 0) return;
    for_words<T>(shard, c * kChunkWords, min_of(total, (c + 1) * kChunkWords),
                 [&](const T* scores, uint64_t slots, int64_t word) {
                   if (left == 0) return;
                   const uint64_t ties = lowest_set(compare(order, scores, slots, key).equal, left);
                   left -= __builtin_popcountll(ties);
                   store_bits(words, word, load_bits(words, word) | ties);
                 });
  });
}

#define SPARSEPRUNE_SHARDS(T, Stored)                                                                    \
  template void digit_histogram<Isa::SPARSEPRUNE_ISA, T, Stored>(const ShardScores<Stored>&, int64_t, int, \
                                                                 int, int64_t*, const Parallel&);          \
  template void threshold_mask<Isa::SPARSEPRUNE_ISA, T, Stored>(                                           \
      const ShardScores<Stored>&, int64_t, int64_t, int32_t*, int64_t*, const Parallel&);
SPARSEPRUNE_SHARDS(float, Float16)
SPARSEPRUNE_SHARDS(float, BFloat16)
SPARSEPRUNE_SHARDS(float, float)
SPARSEPRUNE_SHARDS(double, Float16)
SPARSEPRUNE_SHARDS(double, BFloat16)
SPARSEPRUNE_SHARDS(double, float)
SPARSEPRUNE_SHARDS(double, double)
#undef SPARSEPRUNE_SHARDS

}  // namespace sparseprune
