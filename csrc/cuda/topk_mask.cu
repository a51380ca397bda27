// Exact top k of many arrays at once by radix select: scores become integers of the same order; passes over
// the data histogram 11 bits each, from the top, and one block narrows the k-th largest down to a digit per
// pass, on the device. Then the keys equal to it are counted per chunk, the counts are prefix-summed in
// order, and the bits are written, so that ties go to the lowest index whatever the order in which blocks
// run.
//
// Budget: 64 registers, 8192 bytes of shared memory, no spills.
#include "sparseprune/cuda/topk_mask.h"

#include <climits>

#include "block.cuh"
#include "launch.cuh"
#include "score_table.cuh"

namespace sparseprune::cuda {
namespace {

constexpr int kThreads = kScoreThreads;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers a thread, which no kernel here reaches
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsPerThread = kBins / kThreads;
constexpr int kMaxScanBlocks = 1024;  // 8 on each of 128 multiprocessors; more only flush more histograms

struct State {
  uint64_t prefix;    // the digits found so far of the k-th largest key; in the end that key
  int64_t remaining;  // how many of the keys that start with prefix are to be kept
  int first_nan;      // lowest tensor index with a competing NaN, or INT_MAX
};

using Count = unsigned long long;

struct Workspace {
  State* state;
  Count* bins;    // [kBins], zero between passes
  int64_t* ties;  // [chunks], keys equal to the k-th: per chunk, then in all chunks before
  ScoreEntry* table;

  Workspace(void* memory, int64_t chunks)
      : state(static_cast<State*>(memory)),
        bins(behind<Count>(state, 1)),
        ties(behind<int64_t>(bins, kBins)),
        table(behind<ScoreEntry>(ties, chunks)) {}

  static size_t size(int64_t count, int64_t chunks) {
    return sizeof(State) + kBins * sizeof(Count) + static_cast<size_t>(chunks) * sizeof(int64_t) +
           static_cast<size_t>(count) * sizeof(ScoreEntry) + 3 * SPARSEPRUNE_GAP;
  }

 private:
  // Where the array behind an array of `count` elements starts.
  template <class Next, class T>
  static Next* behind(T* array, int64_t count) {
    char* end = reinterpret_cast<char*>(array + count);
    SPARSEPRUNE_FORBID(end);
    return reinterpret_cast<Next*>(end + SPARSEPRUNE_GAP);
  }
};

__global__ void start_kernel(State* state, Count* bins, int64_t k) {
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) bins[bin] = 0;
  if (threadIdx.x == 0) *state = {0, k, INT_MAX};
}

// Adds the keys that start with the prefix to the bin of their next `width` bits, those from `shift` up.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    histogram_kernel(const ScoreEntry* table, int64_t count, int64_t chunks, State* state, Count* bins,
                     int shift, int width, bool first) {
  __shared__ uint32_t histogram[kBins];
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) histogram[bin] = 0;
  __syncthreads();
  const int lane = threadIdx.x % kWarp;
  const uint64_t prefix = state->prefix;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t tensor = tensor_of(table, count, chunk);
    for_each_word<T>(table[tensor], chunk, [&](int, bool competes, T score) {
      if (first && __ballot_sync(kFullWarp, score != score) != 0 && lane == 0) {
        atomicMin(&state->first_nan, static_cast<int>(tensor));
      }
      const auto key = key_of(score);
      const bool counts = competes && (first || key >> (shift + width) == prefix);
      if (__ballot_sync(kFullWarp, counts) == 0) return;
      // Scores of a pruned model are mostly equal (zero): one addition per distinct digit, not per key.
      const unsigned digit = static_cast<unsigned>(key >> shift) & ((1u << width) - 1u);
      const unsigned equals = __match_any_sync(kFullWarp, counts ? digit : unsigned{kBins});
      if (counts && lane == __ffs(equals) - 1) atomicAdd(&histogram[digit], __popc(equals));
    });
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
    if (histogram[bin] != 0) atomicAdd(&bins[bin], Count{histogram[bin]});
  }
}

// One block: finds the bin of the remaining-th largest key, extends the prefix by it and clears the bins.
__global__ void __launch_bounds__(kThreads, kBlocks)
    narrow_kernel(State* state, Count* bins, int64_t* status, int width, bool first) {
  int64_t counts[kBinsPerThread], sum = 0;
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    counts[i] = static_cast<int64_t>(bins[top - i]);
    bins[top - i] = 0;
    sum += counts[i];
  }
  const int64_t remaining = state->remaining;
  const BlockSum above = block_sum<kThreads>(sum);
  if (first && threadIdx.x == 0) {
    status[0] = state->first_nan == INT_MAX ? -1 : state->first_nan;
    status[1] = above.total;
  }
  // Nothing to keep: the topmost bin, hence in the end the largest of all keys, which no number has. If the
  // keys are fewer than k: no bin, so the prefix remains 0, which is below the key of every number.
  const bool found =
      remaining == 0 ? threadIdx.x == 0 : above.before < remaining && remaining <= above.before + sum;
  if (!found) return;
  int64_t before = above.before;
  int digit = top;
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    if (before + counts[i] < remaining) {
      before += counts[i];
      digit = top - i - 1;
    } else {
      break;
    }
  }
  state->prefix = (state->prefix << width) | static_cast<unsigned>(digit);
  state->remaining = remaining - before;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    count_ties_kernel(const ScoreEntry* table, int64_t count, int64_t chunks, const State* state,
                      int64_t* ties) {
  const uint64_t threshold = state->prefix;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    int64_t own = 0;
    for_each_word<T>(table[tensor_of(table, count, chunk)], chunk,
                     [&](int, bool competes, T score) { own += competes && key_of(score) == threshold; });
    const int64_t total = block_sum<kThreads>(own).total;
    if (threadIdx.x == 0) ties[chunk] = total;
  }
}

// One block: counts per chunk -> counts in all chunks before.
__global__ void __launch_bounds__(kThreads, kBlocks) prefix_kernel(int64_t* ties, int64_t chunks) {
  int64_t carry = 0;
  for (int64_t base = 0; base < chunks; base += kThreads) {
    const int64_t chunk = base + threadIdx.x;
    const BlockSum sum = block_sum<kThreads>(chunk < chunks ? ties[chunk] : 0);
    if (chunk < chunks) ties[chunk] = carry + sum.before;
    carry += sum.total;
  }
}

// The lowest `count` bits set in `word`, or all of them.
__device__ uint32_t lowest_bits(uint32_t word, int64_t count) {
  if (count >= __popc(word)) return word;
  uint32_t rest = word;
  for (; count > 0; --count) rest &= rest - 1u;
  return word & ~rest;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    select_kernel(const ScoreEntry* table, int64_t count, int64_t chunks, const State* state,
                  const int64_t* ties) {
  const int lane = threadIdx.x % kWarp;
  const uint64_t threshold = state->prefix;
  const int64_t remaining = state->remaining;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const ScoreEntry entry = table[tensor_of(table, count, chunk)];
    uint32_t larger = 0, equal = 0;
    for_each_word<T>(entry, chunk, [&](int i, bool competes, T score) {
      const auto key = key_of(score);
      const uint32_t larger_bits = __ballot_sync(kFullWarp, competes && key > threshold);
      const uint32_t equal_bits = __ballot_sync(kFullWarp, competes && key == threshold);
      larger = lane == i ? larger_bits : larger;
      equal = lane == i ? equal_bits : equal;
    });
    const int64_t before = ties[chunk] + block_sum<kThreads>(__popc(equal)).before;
    const int64_t word = (chunk - entry.first_chunk) * kChunkWords + threadIdx.x;
    if (word < entry.words) entry.kept[word] = larger | lowest_bits(equal, remaining - before);
  }
}

template <class T>
cudaError_t select(const Workspace& space, int64_t count, int64_t chunks, int64_t* status,
                   cudaStream_t stream) {
  constexpr int kKeyBits = 8 * sizeof(T);
  const dim3 grid = grid_for(chunks, 1, kMaxScanBlocks);
  cudaError_t error = cudaSuccess;
  for (int above = kKeyBits; above > 0 && error == cudaSuccess; above -= kDigitBits) {
    const int width = std::min(above, kDigitBits);
    const bool first = above == kKeyBits;
    if (chunks > 0) {
      error = launch(histogram_kernel<T>, grid, kThreads, stream, space.table, count, chunks, space.state,
                     space.bins, above - width, width, first);
    }
    if (error == cudaSuccess) {
      error = launch(narrow_kernel, dim3(1), kThreads, stream, space.state, space.bins, status, width, first);
    }
  }
  if (chunks == 0 || error != cudaSuccess) return error;
  error = launch(count_ties_kernel<T>, grid, kThreads, stream, space.table, count, chunks, space.state,
                 space.ties);
  if (error != cudaSuccess) return error;
  error = launch(prefix_kernel, dim3(1), kThreads, stream, space.ties, chunks);
  if (error != cudaSuccess) return error;
  return launch(select_kernel<T>, grid, kThreads, stream, space.table, count, chunks, space.state,
                space.ties);
}

}  // namespace

size_t topk_mask_workspace_size(const TopkTensor* tensors, int64_t count) {
  return Workspace::size(count, all_chunks(tensors, count));
}

cudaError_t topk_mask(const TopkTensor* tensors, int64_t count, Dtype dtype, int64_t k, int64_t* status,
                      void* workspace, cudaStream_t stream) {
  if (dtype != Dtype::kFloat32 && dtype != Dtype::kFloat64) return cudaErrorInvalidValue;
  const int64_t chunks = all_chunks(tensors, count);
  const Workspace space(workspace, chunks);
  cudaError_t error = launch(start_kernel, dim3(1), kThreads, stream, space.state, space.bins, k);
  if (error == cudaSuccess) error = store_table(tensors, count, space.table, stream);
  if (error != cudaSuccess) return error;
  return dtype == Dtype::kFloat32 ? select<float>(space, count, chunks, status, stream)
                                  : select<double>(space, count, chunks, status, stream);
}

}  // namespace sparseprune::cuda
