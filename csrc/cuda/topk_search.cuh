// The search for the last slot that is kept (topk_mask.cu): its state and memory, and how slots stand to it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "launch.cuh"
#include "score_table.cuh"
#include "score_values.cuh"
#include "sparseprune/cuda/topk_mask.h"
#include "workspace.cuh"

// Bounds the slots in the buffer; tests lower it, so that small inputs overflow.
#ifndef SPARSEPRUNE_MAX_COLLECTED
#define SPARSEPRUNE_MAX_COLLECTED INT64_MAX
#endif

namespace sparseprune::cuda {

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int64_t kBufferBytes = 3 << 20;

using Count = unsigned long long;

// What the next pass does: histogram the data, write words and collect, histogram the buffer, nothing.
enum class Phase : int { kSearch, kCollect, kRefine, kDone };

struct State {
  uint64_t key, place;       // the digits known of the last slot that is kept
  int key_bits, place_bits;  // how many bits of either are not known yet
  int64_t wanted, inside;    // of the slots that agree with them: how many to keep, how many there are
  Count collected;
  int first_nan;  // lowest tensor index with a competing NaN, or INT_MAX
  Phase phase;

  // Whether all slots that agree are kept and their score is known.
  __device__ bool settled() const { return key_bits == 0 && inside == wanted; }
};

// What every kernel gets.
template <class Value>
struct Search {
  ScoreTable table;
  TopkRequest request;
  TopkResult result;
  State* state;
  Count* bins;      // [kBins], zero before a pass
  int64_t* places;  // of the slots in the buffer
  Key<Value>* keys;
  int64_t capacity;  // of the buffer

  __host__ __device__ int64_t last_place() const { return table.tiles * kTileSlots - 1; }
};

// Lays the arrays out in the workspace and returns its size; null asks for the size only.
template <class Value>
size_t lay_out(Search<Value>& search, void* workspace) {
  Layout layout(workspace);
  layout.array(search.state, 1);
  layout.array(search.bins, kBins);
  layout.array(search.places, search.capacity);
  layout.array(search.keys, search.capacity);  // an even number of them, so that the table is aligned
  layout.array(search.table.entries, search.table.count);
  return layout.size();
}

template <class Value>
Search<Value> make_search(const TopkTensor* tensors, int64_t count) {
  Search<Value> search{};
  search.table = {nullptr, all_tiles(tensors, count), static_cast<int>(count)};
  constexpr int64_t kFits = kBufferBytes / (sizeof(int64_t) + sizeof(Key<Value>));
  const int64_t most = std::min({search.table.tiles * kTileSlots, kFits, int64_t{SPARSEPRUNE_MAX_COLLECTED}});
  // The slots that share all digits but the last always fit, so that the last pass finds them collected.
  search.capacity = std::max<int64_t>(most, kBins);
  return search;
}

__device__ inline int width_of_digit(int bits) { return bits < kDigitBits ? bits : kDigitBits; }

// The digit that comes after those known.
__device__ inline unsigned next_digit(const State& state, uint64_t key, int64_t place) {
  const bool in_key = state.key_bits > 0;
  const int bits = in_key ? state.key_bits : state.place_bits, width = width_of_digit(bits);
  const uint64_t digits = in_key ? key : static_cast<uint64_t>(place);
  return static_cast<unsigned>(digits >> (bits - width)) & ((1u << width) - 1u);
}

enum class Standing { kOut, kInside, kAbove };

// By the digits known, a slot is out or above the last one kept, or that is not known yet.
template <class Bits>
__device__ Standing standing(const State& state, Bits key, int64_t place) {
  const Bits digits = key >> state.key_bits, last = static_cast<Bits>(state.key);
  if (digits != last) return digits > last ? Standing::kAbove : Standing::kOut;
  const uint64_t place_digits = static_cast<uint64_t>(place) >> state.place_bits;
  if (place_digits != state.place) return place_digits > state.place ? Standing::kAbove : Standing::kOut;
  return Standing::kInside;
}

}  // namespace sparseprune::cuda
