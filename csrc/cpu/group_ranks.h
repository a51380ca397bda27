// Ranks within small groups: how many scores of its group beat a score, which are those that are larger and those that are
// equal and stand before it. Counts are negative, as comparisons give -1.
#pragma once

#include <utility>

#include "topk_keys.h"

namespace sparseprune {
namespace {

constexpr int64_t kSmallGroup = 32;

// others[lane] = keys[lane ^ flip].
template <int flip, class T, int... lane>
inline Vec<Key<T>> flipped(Vec<Key<T>> keys, std::integer_sequence<int, lane...>) {
  return __builtin_shuffle(keys, Vec<Key<T>>{(lane ^ flip)...});
}
// Every lane against its partner. Halves of 128 bits are swapped once for all partners in the other half: within them
// lanes move for less.
template <int flip, class T, int... lane>
inline Vec<Key<T>> beaten_by(Vec<Key<T>> keys, std::integer_sequence<int, lane...> lanes) {
  constexpr int within = 16 / static_cast<int>(sizeof(T)) - 1;
  const Vec<Key<T>> others = flipped<(flip & within), T>(flipped<(flip & ~within), T>(keys, lanes), lanes);
  const Vec<Key<T>> before = {((lane ^ flip) < lane)...};
  return others + before > keys;
}
// Of groups of 2, 4 or 8 lanes, as many as a vector holds.
template <class T, int... before>
inline Vec<Key<T>> beaten_in_vector(Vec<Key<T>> keys, std::integer_sequence<int, before...>) {
  return (beaten_by<before + 1, T>(keys, std::make_integer_sequence<int, kLanes<T>>{}) + ...);
}

// The slots of 64 scores that are among the k best of their groups of G lanes.
template <int G, class T>
inline uint64_t best_in_vectors(const T* scores, int64_t k) {
  const Vec<Key<T>> limit = splat(static_cast<Key<T>>(-k));
  uint64_t slots = 0;
  for (int i = 0; i < 64; i += kLanes<T>) {
    const auto beaten = beaten_in_vector<T>(keys_of(scores + i), std::make_integer_sequence<int, G - 1>{});
    slots |= lane_bits<T>(beaten > limit) << i;
  }
  return slots;
}

// The counts of the lanes from `first` on of a group of up to kSmallGroup keys; a vector beyond its end is read.
template <class T>
inline Vec<Key<T>> beaten_in_group(const Key<T>* keys, int64_t group, int64_t first) {
  Vec<Key<T>> index{}, beaten{};
  for (int lane = 0; lane < kLanes<T>; ++lane) index[lane] = static_cast<Key<T>>(first) + lane;
  const Vec<Key<T>> own = load(keys + first);
  for (int64_t i = 0; i < group; ++i) {
    const Vec<Key<T>> after = index > splat(static_cast<Key<T>>(i));
    beaten += splat(keys[i]) - after > own;
  }
  return beaten;
}

// The slots that are among the k best of a group.
template <class T>
inline uint64_t best_in_group(const Key<T>* keys, int64_t group, int64_t k) {
  const Vec<Key<T>> limit = splat(static_cast<Key<T>>(-k));
  uint64_t slots = 0;
  for (int64_t i = 0; i < group; i += kLanes<T>) slots |= lane_bits<T>(beaten_in_group<T>(keys, group, i) > limit) << i;
  return slots & low_bits(group);
}

// The keys of a group, the largest first.
template <class T>
inline void sort_group(const Key<T>* keys, int64_t group, Key<T>* sorted) {
  for (int64_t i = 0; i < group; i += kLanes<T>) {
    const Vec<Key<T>> beaten = beaten_in_group<T>(keys, group, i);
    for (int lane = 0; lane < min_of(kLanes<T>, group - i); ++lane) sorted[-beaten[lane]] = keys[i + lane];
  }
}

}  // namespace
}  // namespace sparseprune
