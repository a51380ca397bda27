// Exact top k of many arrays at once by radix select: scores become integers of the same order; passes over the data
// histogram 11 bits each, from the top, and one block narrows the k-th largest down to a digit per pass, on the
// device. Then the keys equal to it are counted per chunk, the counts are prefix-summed in order, and the bits are
// written, so that ties go to the lowest index whatever the order in which blocks run.
#include "sparseprune/cuda/topk_mask.h"

#include <climits>

#include "block.cuh"
#include "launch.cuh"
#include "scalar.cuh"
#include "sparseprune/cuda/mask_bits.h"

namespace sparseprune::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // per multiprocessor: 64 registers a thread, which no kernel here reaches
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kBinsPerThread = kBins / kThreads;
constexpr int kChunkWords = kThreads;  // 8192 scores; the select pass gives every thread one word
constexpr int kMaxScanBlocks = 1024;   // about 8 blocks on each of 132 SMs; more would only flush more histograms
constexpr int kTableEntries = 64;      // 64 entries are 3.5 KB, and kernel arguments hold 4 KB

// One tensor in the device's table. Chunks are numbered through all tensors and never straddle two.
struct Entry {
  const void* scores;
  const uint32_t* candidates;
  uint32_t* kept;
  int64_t columns, row_words, words, first_chunk;
};

struct TableSlice {
  Entry entries[kTableEntries];
};

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
  Entry* table;

  Workspace(void* memory, int64_t chunks)
      : state(static_cast<State*>(memory)),
        bins(reinterpret_cast<Count*>(state + 1)),
        ties(reinterpret_cast<int64_t*>(bins + kBins)),
        table(reinterpret_cast<Entry*>(ties + chunks)) {}
};

int64_t words_of(const TopkTensor& tensor) { return tensor.rows * words_per_row(tensor.columns); }
int64_t chunks_of(const TopkTensor& tensor) { return (words_of(tensor) + kChunkWords - 1) / kChunkWords; }

// Unsigned keys in the order of the scores, -0.0 and +0.0 being one key.
__device__ uint32_t key_of(float score) {
  const uint32_t bits = score == 0.0f ? 0u : __float_as_uint(score);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ uint64_t key_of(double score) {
  const uint64_t bits = score == 0.0 ? 0u : static_cast<uint64_t>(__double_as_longlong(score));
  return bits >> 63 ? ~bits : bits | (uint64_t{1} << 63);
}

// Index of the tensor a chunk belongs to: the last one that starts at or before it (empty ones own no chunk).
__device__ int64_t tensor_of(const Entry* table, int64_t count, int64_t chunk) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (table[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

// Calls body(i, competes, score) for the 32 words i of this warp's share of a chunk, a lane being a bit of the word.
// Whole warps call it; scores of slots that do not compete are not loaded.
template <class T, class Body>
__device__ void for_each_word(const Entry& entry, int64_t chunk, const Body& body) {
  const int lane = threadIdx.x % kWarp;
  const int64_t base = (chunk - entry.first_chunk) * kChunkWords + threadIdx.x / kWarp * kWarp;
  if (base >= entry.words) return;
  uint32_t own = ~0u;
  if (entry.candidates != nullptr) own = base + lane < entry.words ? entry.candidates[base + lane] : 0u;
  const T* scores = static_cast<const T*>(entry.scores);
  auto [row, word] = divide(base, entry.row_words);
  for (int i = 0; i < kWarp && base + i < entry.words; ++i) {
    const uint32_t candidates = __shfl_sync(kFullWarp, own, i);
    const int64_t column = word * 32 + lane;
    const bool competes = column < entry.columns && ((candidates >> lane) & 1u);
    body(i, competes, competes ? scores[row * entry.columns + column] : T(0));
    if (++word == entry.row_words) {
      word = 0;
      ++row;
    }
  }
}

__global__ void store_table_kernel(TableSlice slice, Entry* table, int count) {
  if (static_cast<int>(threadIdx.x) < count) table[threadIdx.x] = slice.entries[threadIdx.x];
}

__global__ void start_kernel(State* state, Count* bins, int64_t k) {
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) bins[bin] = 0;
  if (threadIdx.x == 0) *state = {0, k, INT_MAX};
}

// Adds the keys that start with the prefix to the bin of their next `width` bits, those from `shift` up.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) histogram_kernel(const Entry* table, int64_t count, int64_t chunks,
                                                             State* state, Count* bins, int shift, int width,
                                                             bool first) {
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
  int64_t remaining = state->remaining;
  const BlockSum above = block_sum<kThreads>(sum);
  if (first) {
    remaining = remaining < above.total ? remaining : above.total;
    if (threadIdx.x == 0) {
      status[0] = state->first_nan == INT_MAX ? -1 : state->first_nan;
      status[1] = above.total;
    }
  }
  // Nothing to keep: the topmost bin, hence in the end the largest of all keys, which no number has.
  const bool found = remaining == 0 ? threadIdx.x == 0 : above.before < remaining && remaining <= above.before + sum;
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
    count_ties_kernel(const Entry* table, int64_t count, int64_t chunks, const State* state, int64_t* ties) {
  const uint64_t threshold = state->prefix;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    int64_t own = 0;
    for_each_word<T>(table[tensor_of(table, count, chunk)], chunk, [&](int, bool competes, T score) {
      own += competes && key_of(score) == threshold;
    });
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
    select_kernel(const Entry* table, int64_t count, int64_t chunks, const State* state, const int64_t* ties) {
  const int lane = threadIdx.x % kWarp;
  const uint64_t threshold = state->prefix;
  const int64_t remaining = state->remaining;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const Entry entry = table[tensor_of(table, count, chunk)];
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

cudaError_t store_table(const TopkTensor* tensors, int64_t count, Entry* table, cudaStream_t stream) {
  int64_t first_chunk = 0;
  for (int64_t first = 0; first < count; first += kTableEntries) {
    const int size = static_cast<int>(std::min<int64_t>(kTableEntries, count - first));
    TableSlice slice{};
    for (int i = 0; i < size; ++i) {
      const TopkTensor& tensor = tensors[first + i];
      slice.entries[i] = {tensor.scores,         tensor.candidates, tensor.kept, tensor.columns,
                          words_per_row(tensor.columns), words_of(tensor),  first_chunk};
      first_chunk += chunks_of(tensor);
    }
    const cudaError_t error = launch(store_table_kernel, dim3(1), kTableEntries, stream, slice, table + first, size);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <class T>
cudaError_t select(const Workspace& space, int64_t count, int64_t chunks, int64_t* status, cudaStream_t stream) {
  constexpr int kKeyBits = 8 * sizeof(T);
  const dim3 grid = grid_for(chunks, 1, kMaxScanBlocks);
  cudaError_t error = cudaSuccess;
  for (int above = kKeyBits; above > 0 && error == cudaSuccess; above -= kDigitBits) {
    const int width = std::min(above, kDigitBits);
    const bool first = above == kKeyBits;
    if (chunks > 0) {
      error = launch(histogram_kernel<T>, grid, kThreads, stream, space.table, count, chunks, space.state, space.bins,
                     above - width, width, first);
    }
    if (error == cudaSuccess) {
      error = launch(narrow_kernel, dim3(1), kThreads, stream, space.state, space.bins, status, width, first);
    }
  }
  if (chunks == 0 || error != cudaSuccess) return error;
  error = launch(count_ties_kernel<T>, grid, kThreads, stream, space.table, count, chunks, space.state, space.ties);
  if (error != cudaSuccess) return error;
  error = launch(prefix_kernel, dim3(1), kThreads, stream, space.ties, chunks);
  if (error != cudaSuccess) return error;
  return launch(select_kernel<T>, grid, kThreads, stream, space.table, count, chunks, space.state, space.ties);
}

int64_t all_chunks(const TopkTensor* tensors, int64_t count) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) chunks += chunks_of(tensors[i]);
  return chunks;
}

}  // namespace

size_t topk_mask_workspace_size(const TopkTensor* tensors, int64_t count) {
  return sizeof(State) + kBins * sizeof(Count) + static_cast<size_t>(all_chunks(tensors, count)) * sizeof(int64_t) +
         static_cast<size_t>(count) * sizeof(Entry);
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
