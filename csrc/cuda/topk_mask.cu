// Exact top k of many arrays at once by radix select. The key of a slot is its score as an integer of the
// same order, and behind that its place, the higher the earlier it comes: no two slots are equal, so ties
// need no further rule, and the result is the same in whatever order blocks run. A pass over the data
// histograms the next 11 bits of the keys that agree with the digits known; one block moves on to the bin of
// the last slot that is kept. As soon as the slots that agree fit a buffer, a pass writes the bits of all
// others and collects these; what remains happens in the buffer. What a pass has to do is decided on the
// device, and one that is not needed returns at once.
//
// Reads of the data: 2 where at most 262,144 scores (196,608 of float64) share the leading 11 bits of the
// last one kept; 3 where they share 22, which is the rule; whatever the scores, 5 below 2^28 slots (8 in
// float64), and one more below 2^39. Memory besides the masks: 3 MB for the buffer, 17 KB, and 72 bytes a
// tensor.
//
// Budget: 64 registers, 8192 bytes of shared memory, no spills.
#include "sparseprune/cuda/topk_mask.h"

#include <algorithm>
#include <climits>

#include "block.cuh"
#include "launch.cuh"
#include "score_table.cuh"
#include "score_values.cuh"
#include "topk_search.cuh"

namespace sparseprune::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers a thread
constexpr int kBinsPerThread = kBins / kThreads;
constexpr int kMaxScanBlocks = 1024;  // 8 on each of 128 multiprocessors; more only flush more histograms

template <class Value>
__global__ void __launch_bounds__(kThreads, kBlocks) start_kernel(Search<Value> search, int place_bits) {
  const auto [status, threshold] = search.result;
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) search.bins[bin] = 0;
  for (int i = threadIdx.x; i < search.table.count; i += kThreads) status[2 + i] = 0;
  if (threadIdx.x != 0) return;
  const int64_t k = search.request.device_k != nullptr ? *search.request.device_k : search.request.k;
  *search.state = {0, 0, 8 * sizeof(Value), place_bits, k, 0, 0, INT_MAX, Phase::kSearch};
  status[0] = -1;
  status[1] = 0;
  *threshold = value_of(~uint64_t{0});
}

__device__ void clear(uint32_t* histogram) {
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) histogram[bin] = 0;
  __syncthreads();
}

__device__ void flush(const uint32_t* histogram, Count* bins) {
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
    if (histogram[bin] != 0) atomicAdd(&bins[bin], Count{histogram[bin]});
  }
}

// Histograms the first digit of all slots. Zeros, which may be most of a pruned model, are counted in a
// register; equal others meet in one increment of the hardware's, which adds the lanes up.
template <class Value>
__global__ void __launch_bounds__(kThreads, kBlocks) first_pass_kernel(Search<Value> search) {
  constexpr int kShift = 8 * sizeof(Value) - kDigitBits;
  __shared__ uint32_t histogram[kBins];
  clear(histogram);
  const bool largest = search.request.largest;
  uint32_t zeros = 0;
  for_each_tile<kThreads>(search.table, [&](int tensor, int64_t tile) {
    bool nan = false;
    const auto body = [&](int, unsigned competes, const Group<Value>& scores) {
#pragma unroll
      for (int i = 0; i < kGroup<Value>; ++i) {
        if ((competes >> i & 1u) == 0) continue;
        nan |= scores[i] != scores[i];
        if (scores[i] == Value(0)) {
          ++zeros;
        } else {
          atomicAdd(&histogram[key_of(scores[i], largest) >> kShift], 1u);
        }
      }
    };
    for_each_group<Value>(search.table.entries[tensor], tile, body);
    if (nan) atomicMin(&search.state->first_nan, tensor);
  });
  if (zeros != 0) atomicAdd(&histogram[key_of(Value(0), largest) >> kShift], zeros);
  flush(histogram, search.bins);
}

// Appends slots of a warp's groups to the buffer; whole warps call. place is that of the first of the group.
template <class Value>
__device__ void collect(const Search<Value>& search, unsigned slots, const Group<Value>& scores,
                        int64_t place) {
  if (__ballot_sync(kFullWarp, slots != 0) == 0) return;
  const int count = __popc(slots), inclusive = warp_inclusive_sum(count);
  const int total = __shfl_sync(kFullWarp, inclusive, kWarp - 1);
  Count at = threadIdx.x % kWarp == 0 ? atomicAdd(&search.state->collected, static_cast<Count>(total)) : 0;
  at = __shfl_sync(kFullWarp, at, 0) + static_cast<Count>(inclusive - count);
#pragma unroll
  for (int i = 0; i < kGroup<Value>; ++i) {
    if ((slots >> i & 1u) == 0) continue;
    search.keys[at] = key_of(scores[i], search.request.largest);
    search.places[at] = place - i;
    ++at;
  }
}

__device__ Count* kept_of(const TopkResult& result, int tensor) {
  return reinterpret_cast<Count*>(&result.status[2 + tensor]);
}

// Adds the number of bits that the lanes set in this tensor's words; whole warps call.
__device__ void add_kept(const TopkResult& result, int tensor, unsigned own) {
  const unsigned kept = __reduce_add_sync(kFullWarp, own);
  if (threadIdx.x % kWarp == 0 && kept != 0) atomicAdd(kept_of(result, tensor), Count{kept});
}

// kSearch and kCollect: one walk over the data.
template <class Value>
__device__ void walk(const Search<Value>& search, uint32_t* histogram) {
  const State& state = *search.state;
  const bool writing = state.phase == Phase::kCollect, settled = state.settled();
  const bool largest = search.request.largest;
  const auto last = static_cast<Key<Value>>(state.key);
  const int key_bits = state.key_bits;
  int counted = 0;  // the tensor of own_kept
  unsigned own_kept = 0;
  for_each_tile<kThreads>(search.table, [&](int tensor, int64_t tile) {
    const ScoreEntry& entry = search.table.entries[tensor];
    uint32_t kept = 0;  // a group's bits a step
    const auto body = [&](int step, unsigned competes, const Group<Value>& scores) {
      unsigned above = 0, inside = 0;
#pragma unroll
      for (int i = 0; i < kGroup<Value>; ++i) {
        const auto digits = key_of(scores[i], largest) >> key_bits;
        above |= unsigned{digits > last} << i;
        inside |= unsigned{digits == last} << i;
      }
      above &= competes;
      inside &= competes;
      const int64_t place = search.last_place() - group_position<Value>(tile, step);
      if (inside != 0) {
#pragma unroll
        for (int i = 0; i < kGroup<Value>; ++i) {
          if ((inside >> i & 1u) == 0) continue;
          const auto key = key_of(scores[i], largest);
          const Standing stands = standing(state, key, place - i);
          if (stands == Standing::kInside) {
            if (!settled) atomicAdd(&histogram[next_digit(state, key, place - i)], 1u);
          } else {
            inside ^= 1u << i;
            above |= unsigned{stands == Standing::kAbove} << i;
          }
        }
      }
      kept |= (settled ? above | inside : above) << (kGroup<Value> * step);
      if (writing && !settled) collect(search, inside, scores, place);
    };
    for_each_group<Value>(entry, tile, body);
    if (!writing) return;
    const uint32_t word = gather_word<Value>(kept);
    const int64_t at = (tile - entry.first_tile) * kTileWords + tile_word<Value>();
    if (at < entry.words) entry.kept[at] = word;
    if (tensor != counted) {
      add_kept(search.result, counted, own_kept);
      own_kept = 0;
      counted = tensor;
    }
    own_kept += static_cast<unsigned>(__popc(kept));
  });
  if (writing) add_kept(search.result, counted, own_kept);
}

template <class Value>
__global__ void __launch_bounds__(kThreads, kBlocks) pass_kernel(Search<Value> search) {
  const State& state = *search.state;
  const bool refining = state.phase == Phase::kRefine;
  const Count first = Count{blockIdx.x} * kThreads, stride = Count{gridDim.x} * kThreads;
  if (state.phase == Phase::kDone || (refining && first >= state.collected)) return;
  __shared__ uint32_t histogram[kBins];
  clear(histogram);
  if (refining) {
    for (Count i = first + threadIdx.x; i < state.collected; i += stride) {
      const auto key = search.keys[i];
      const int64_t place = search.places[i];
      if (standing(state, key, place) == Standing::kInside) {
        atomicAdd(&histogram[next_digit(state, key, place)], 1u);
      }
    }
  } else {
    walk(search, histogram);
  }
  flush(histogram, search.bins);
}

// One block: the digit of the last slot that is kept is that of the bin in which the wanted-th slot from the
// top lies. Clears the bins and decides what the next pass does.
template <class Value>
__global__ void __launch_bounds__(kThreads, kBlocks) narrow_kernel(Search<Value> search) {
  const State state = *search.state;
  if (state.phase == Phase::kDone) return;
  int64_t counts[kBinsPerThread], sum = 0;
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    counts[i] = static_cast<int64_t>(search.bins[top - i]);
    search.bins[top - i] = 0;
    sum += counts[i];
  }
  const BlockSum above = block_sum<kThreads>(sum);
  State next = state;
  if (state.key_bits == 8 * sizeof(Value)) {
    next.wanted = state.wanted < above.total ? state.wanted : above.total;
    if (threadIdx.x == 0) {
      search.result.status[0] = state.first_nan == INT_MAX ? -1 : state.first_nan;
      search.result.status[1] = above.total;
    }
  }
  if (state.first_nan != INT_MAX || state.settled()) {
    if (threadIdx.x == 0) search.state->phase = Phase::kDone;
    return;
  }
  if (next.wanted <= 0) {  // the last slot kept is above all: no number has this key
    next = {~uint64_t{0}, 0, 0, 0, 0, 0, 0, INT_MAX, Phase::kCollect};
    if (threadIdx.x == 0) *search.state = next;
    return;
  }
  if (next.wanted <= above.before || next.wanted > above.before + sum) return;
  next.wanted -= above.before;
  int digit = top;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    next.inside = counts[i];
    if (next.wanted <= counts[i]) break;
    next.wanted -= counts[i];
    --digit;
  }
  if (state.key_bits > 0) {
    const int width = width_of_digit(state.key_bits);
    next.key = state.key << width | static_cast<unsigned>(digit);
    next.key_bits -= width;
    const auto key = static_cast<Key<Value>>(next.key);
    if (next.key_bits == 0) *search.result.threshold = value_of_key<Value>(key, search.request.largest);
  } else {
    const int width = width_of_digit(state.place_bits);
    next.place = state.place << width | static_cast<unsigned>(digit);
    next.place_bits -= width;
  }
  if (state.phase == Phase::kSearch) {
    next.phase = next.settled() || next.inside <= search.capacity ? Phase::kCollect : Phase::kSearch;
  } else {
    next.phase = next.settled() ? Phase::kDone : Phase::kRefine;
  }
  *search.state = next;
}

// Sets the bits of the slots in the buffer that are kept.
template <class Value>
__global__ void __launch_bounds__(kThreads, kBlocks) patch_kernel(Search<Value> search) {
  const State state = *search.state;
  const Count lane = threadIdx.x % kWarp, stride = Count{gridDim.x} * kThreads;
  for (Count base = Count{blockIdx.x} * kThreads + threadIdx.x - lane; base < state.collected;
       base += stride) {
    const Count i = base + lane;
    int tensor = -1;
    if (i < state.collected && standing(state, search.keys[i], search.places[i]) != Standing::kOut) {
      const int64_t position = search.last_place() - search.places[i], tile = position / kTileSlots;
      tensor = tensor_of(search.table, tile);
      const ScoreEntry& entry = search.table.entries[tensor];
      const int64_t slot = position - entry.first_tile * kTileSlots;
      atomicOr(&entry.kept[slot / 32], 1u << (slot % 32));
    }
    const unsigned same = __match_any_sync(kFullWarp, tensor);
    if (tensor >= 0 && static_cast<int>(lane) == __ffs(static_cast<int>(same)) - 1) {
      atomicAdd(kept_of(search.result, tensor), static_cast<Count>(__popc(same)));
    }
  }
}

template <class Value>
cudaError_t select(const TopkTensor* tensors, int64_t count, TopkRequest request, TopkResult result,
                   void* workspace, cudaStream_t stream) {
  auto search = make_search<Value>(tensors, count);
  search.request = request;
  search.result = result;
  lay_out(search, workspace);
  int place_bits = 0;
  while (search.last_place() >> place_bits > 0) ++place_bits;

  cudaError_t error = launch(start_kernel<Value>, dim3(1), kThreads, stream, search, place_bits);
  if (error == cudaSuccess) error = store_table(tensors, search.table, stream);
  if (search.table.tiles == 0) return error;
  const auto run = [&](void (*kernel)(Search<Value>), dim3 grid) {
    if (error == cudaSuccess) error = launch(kernel, grid, kThreads, stream, search);
  };
  const dim3 grid = grid_for(search.table.tiles, kThreads / kWarp, kMaxScanBlocks);
  const auto digits_of = [](int bits) { return (bits + kDigitBits - 1) / kDigitBits; };
  const int digits = digits_of(8 * sizeof(Value)) + digits_of(place_bits);
  for (int digit = 0; digit < digits; ++digit) {
    run(digit == 0 ? first_pass_kernel<Value> : pass_kernel<Value>, grid);
    run(narrow_kernel<Value>, dim3(1));
  }
  run(patch_kernel<Value>, grid_for(search.capacity, kThreads, kMaxScanBlocks));
  return error;
}

bool in_double(const TopkTensor* tensors, int64_t count) {
  return std::any_of(tensors, tensors + count,
                     [](const TopkTensor& t) { return t.dtype == Dtype::kFloat64; });
}

}  // namespace

size_t topk_mask_workspace_size(const TopkTensor* tensors, int64_t count) {
  const auto size = [](auto search) { return lay_out(search, nullptr); };
  return in_double(tensors, count) ? size(make_search<double>(tensors, count))
                                   : size(make_search<float>(tensors, count));
}

cudaError_t topk_mask(const TopkTensor* tensors, int64_t count, TopkRequest request, TopkResult result,
                      void* workspace, cudaStream_t stream) {
  const auto run = in_double(tensors, count) ? select<double> : select<float>;
  return run(tensors, count, request, result, workspace, stream);
}

}  // namespace sparseprune::cuda
