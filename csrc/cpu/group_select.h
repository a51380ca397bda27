// The k-th largest of many keys, by narrowing: a sample says between which two keys it lies, and only those in between are
// kept for the next round.
#pragma once

#include <type_traits>

#include "group_ranks.h"

namespace sparseprune {
namespace {

constexpr int64_t kMargin = 4;  // ranks of a sample of 32 on either side: holds in nine of ten rounds

// Below the key of every score, infinities included.
template <class T>
constexpr Key<T> kPadding = -kInfinity<T> - 1;

// The number of keys above the bound. A vector beyond the keys is read and must hold kPadding.
template <class T>
inline int64_t count_above(const Key<T>* keys, int64_t count, Key<T> bound) {
  int64_t above = 0;
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    above += __builtin_popcountll(lane_bits<T>(load(keys + i) > splat(bound)));
  }
  return above;
}

// Moves the keys within [low, high] to `to`, which may be where they are, pads them, and returns their number.
template <class T>
inline int64_t keep_between(const Key<T>* keys, int64_t count, Key<T> low, Key<T> high, Key<T>* to) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<Key<T>> own = load(keys + i);
    const uint64_t inside = lane_bits<T>((own >= splat(low)) & (own <= splat(high)));
    if (inside != 0) kept += append_lanes<T>(to + kept, own, inside);
  }
  store(to + kept, splat(kPadding<T>));
  return kept;
}

// The need-th largest of `count` keys, 1 <= need <= count. `keys` are padded by a vector of kPadding; `spare` has room for
// as many keys and two vectors.
template <class T>
inline Key<T> nth_largest(const Key<T>* keys, int64_t count, int64_t need, Key<T>* spare) {
  using Unsigned = std::make_unsigned_t<Key<T>>;
  Key<T> low = -kInfinity<T>, high = kInfinity<T>;
  bool halve = false;  // the last sample misled
  while (low < high) {
    Key<T> sample[kSmallGroup + kLanes<T>], sorted[kSmallGroup];
    const int64_t sampled = min_of(kSmallGroup, count);
    for (int64_t i = 0; i < sampled; ++i) sample[i] = keys[i * count / sampled];
    sort_group<T>(sample, sampled, sorted);
    if (count <= kSmallGroup) return sorted[need - 1];
    const int64_t rank = (need - 1) * sampled / count;
    Key<T> upper = sorted[max_of(rank - kMargin, 0)], lower = sorted[min_of(rank + kMargin, sampled - 1)];
    if (halve) {
      const Unsigned half = (static_cast<Unsigned>(high) - static_cast<Unsigned>(low)) / 2;
      upper = lower = static_cast<Key<T>>(static_cast<Unsigned>(low) + half + 1);
    }
    upper += upper == lower;  // so that a key which many share is told apart from all others
    const int64_t from_upper = count_above<T>(keys, count, upper - 1);
    const int64_t from_lower = count_above<T>(keys, count, lower - 1);
    if (need <= from_upper) {
      low = upper;
    } else if (need <= from_lower) {
      low = lower, high = upper - 1, need -= from_upper;
    } else {
      high = lower - 1, need -= from_lower;
    }
    const int64_t kept = keep_between<T>(keys, count, low, high, spare);
    halve = kept > count - count / 8;
    keys = spare, count = kept;
  }
  return low;
}

}  // namespace
}  // namespace sparseprune
