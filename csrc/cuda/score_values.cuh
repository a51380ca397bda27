// The scores of a tile: loads of any stored type, the formula, and integers that have the scores' order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "score_table.cuh"

namespace sparseprune::cuda {

// Values are computed and compared as float or double, and ordered as integers of the same size.
template <class Value>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};
template <class Value>
using Key = typename KeyOf<Value>::type;

// The consecutive slots that a lane takes at a time: 32 bytes of values. A word's bits belong to kLanes
// lanes, and a lane takes as many groups of a tile, so its share of a tile's bits fits 32 bits as well.
template <class Value>
constexpr int kGroup = 32 / sizeof(Value);
template <class Value>
constexpr int kLanes = 32 / kGroup<Value>;

template <class Value>
using Group = Value[kGroup<Value>];

__device__ inline uint32_t bits_of(float value) { return __float_as_uint(value); }
__device__ inline uint64_t bits_of(double value) {
  return static_cast<uint64_t>(__double_as_longlong(value));
}
__device__ inline float value_of(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline double value_of(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

template <class Value>
constexpr Key<Value> kSignBit = Key<Value>{1} << (8 * sizeof(Value) - 1);

// Larger for values that are to be kept first; -0.0 and +0.0 are one key.
template <class Value>
__device__ Key<Value> key_of(Value value, bool largest) {
  const Key<Value> bits = bits_of(value == Value(0) ? Value(0) : value);
  const Key<Value> key = bits & kSignBit<Value> ? ~bits : bits | kSignBit<Value>;
  return largest ? key : ~key;
}

template <class Value>
__device__ Value value_of_key(Key<Value> key, bool largest) {
  if (!largest) key = ~key;
  return value_of(key & kSignBit<Value> ? key ^ kSignBit<Value> : ~key);
}

// Reads the first `count` of a group's elements, 16 bytes at a time if they are all there and aligned.
template <class T, class Value>
__device__ void load_group(const T* from, int count, Group<Value>& values) {
  constexpr int kElements = sizeof(uint4) / sizeof(T);
  if (kGroup<Value> % kElements == 0 && count == kGroup<Value> &&
      reinterpret_cast<uintptr_t>(from) % sizeof(uint4) == 0) {
#pragma unroll
    for (int first = 0; first < kGroup<Value>; first += kElements) {
      const uint4 vector = __ldg(reinterpret_cast<const uint4*>(from + first));
      T elements[kElements];
      std::memcpy(static_cast<void*>(elements), &vector, sizeof(vector));
#pragma unroll
      for (int i = 0; i < kElements && first + i < kGroup<Value>; ++i) values[first + i] = widen(elements[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup<Value>; ++i) values[i] = i < count ? Value(widen(from[i])) : Value(0);
  }
}

template <class Value>
__device__ void load_group(const void* data, Dtype dtype, int64_t at, int count, Group<Value>& values) {
  switch (dtype) {
    case Dtype::kFloat16:
      return load_group<__half, Value>(static_cast<const __half*>(data) + at, count, values);
    case Dtype::kBFloat16:
      return load_group<__nv_bfloat16, Value>(static_cast<const __nv_bfloat16*>(data) + at, count, values);
    case Dtype::kFloat32:
      return load_group<float, Value>(static_cast<const float*>(data) + at, count, values);
    case Dtype::kFloat64:
      if constexpr (sizeof(Value) == sizeof(double)) {
        load_group<double, Value>(static_cast<const double*>(data) + at, count, values);
      }
  }
}

template <class Value>
__device__ void load_scores(const ScoreEntry& entry, int64_t at, int count, Group<Value>& scores) {
  load_group<Value>(entry.scores, entry.dtype, at, count, scores);
  const Formula formula = entry.formula;
  if (formula == Formula::kAbsW || formula == Formula::kAbsWTimesG) {
#pragma unroll
    for (Value& score : scores) score = std::fabs(score);
  }
  if (entry.gradients == nullptr) return;
  Group<Value> gradients;
  load_group<Value>(entry.gradients, entry.dtype, at, count, gradients);
#pragma unroll
  for (int i = 0; i < kGroup<Value>; ++i) {
    scores[i] *= gradients[i];
    if (formula == Formula::kAbsWG) scores[i] = std::fabs(scores[i]);
  }
}

// Where the lane's group of a step starts.
template <class Value>
__device__ int64_t group_position(int64_t tile, int step) {
  return tile * kTileSlots + (step * kWarp + static_cast<int>(threadIdx.x) % kWarp) * kGroup<Value>;
}

// Calls body(step, competes, scores) for a lane's groups of a tile: bit i of `competes` says whether the slot
// does, and only then scores[i] means something. Whole warps call it and make the same steps.
template <class Value, class Body>
__device__ void for_each_group(const ScoreEntry& entry, int64_t tile, const Body& body) {
  constexpr int kSize = kGroup<Value>, kStepWords = kTileWords / kLanes<Value>;
  const int lane = threadIdx.x % kWarp, in_word = lane % kLanes<Value> * kSize;
  const int64_t row_words = entry.row_words;
  int64_t word = (tile - entry.first_tile) * kTileWords + lane / kLanes<Value>;
  auto [row, row_word] = divide(word, row_words);
#pragma unroll 1
  for (int step = 0; step < kLanes<Value>; ++step) {
    const int64_t column = row_word * 32 + in_word;
    const int64_t left = word < entry.words ? entry.columns - column : 0;
    const int count = static_cast<int>(left < kSize ? left : kSize);
    unsigned competes = count > 0 ? (1u << count) - 1u : 0u;
    if (competes != 0 && entry.candidates != nullptr) competes &= entry.candidates[word] >> in_word;
    Group<Value> scores = {};
    if (competes != 0) load_scores<Value>(entry, row * entry.columns + column, count, scores);
    body(step, competes, scores);
    word += kStepWords;
    for (row_word += kStepWords; row_word >= row_words; row_word -= row_words) ++row;
  }
}

// The word of a tile that a lane is to store after for_each_group, and its bits from those that every lane
// has of each step: kGroup bits a step.
template <class Value>
__device__ int tile_word() {
  const int lane = threadIdx.x % kWarp;
  return lane % kLanes<Value> * (kTileWords / kLanes<Value>)+lane / kLanes<Value>;
}
template <class Value>
__device__ uint32_t gather_word(uint32_t bits) {
  constexpr int kSize = kGroup<Value>;
  const int lane = threadIdx.x % kWarp, step = lane % kLanes<Value>;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kLanes<Value>; ++i) {
    const uint32_t theirs = __shfl_sync(kFullWarp, bits, lane - step + i);
    word |= (theirs >> (kSize * step) & ((1u << kSize) - 1u)) << (kSize * i);
  }
  return word;
}

}  // namespace sparseprune::cuda
