// Gradient of a packed linear layer's values: dv[i] = sum_n g[n, row_i] x[n, column_i], at the survivors alone.
//
// After two launches that find where every row's part in a strip of 256 columns starts, a block owns 64 rows of a
// strip. It lists the survivors of its tile in shared memory, in the order of the values, and hands them to its threads
// in turn, so that all have as many, however they lie. x and g of some samples at a time go to shared memory, those of
// one column or row side by side; a thread multiplies the pairs of its survivors and keeps up to eight sums. A tile
// with more than 2048 survivors reads its samples again for the next 2048.
//
// What a call moves for 16 samples and 4096 x 4096 in bfloat16 at density 0.1: 3.4 MB of results, 2.1 MB of bits (four
// times, to count and to use) and 0.5 MB of starts, where dense writes 33.6 MB; x once for every 64 rows and g once for
// every strip, 10.5 MB, from the L2 cache.
//
// Budget: 80 registers, 46144 bytes of shared memory, no spills.
#include "packed_rows.cuh"
#include "scalar.cuh"

namespace sparseprune::cuda {
namespace {

constexpr int kThreads = kStrip;  // a thread stages a column
constexpr int kRows = 64;
constexpr int kSums = 8;  // survivors of a thread at a time

// Lists the survivors of the tile as 256 row + column and returns how many there are; places[r] is where the survivor
// at position 0 of the list would be in the values, if it were of row r.
__device__ int list_survivors(const Packed& packed, const int64_t* starts, int64_t row0, int64_t strip, uint16_t* list,
                              int64_t* places) {
  int listed = 0;
  for (int i = threadIdx.x; i < kRows * kStripWords; i += kThreads) {
    const int64_t row = row0 + i / kStripWords, word = strip * kStripWords + i % kStripWords;
    const bool inside = row < packed.shape.out_features;
    uint32_t bits = inside && word < packed.row_words ? packed.words[row * packed.row_words + word] : 0;
    const BlockSum sum = block_sum<kThreads>(__popc(bits));
    int at = listed + static_cast<int>(sum.before);
    if (inside && i % kStripWords == 0) {
      places[i / kStripWords] = starts[row * strips_of(packed.shape) + strip] - at;
    }
    for (; bits != 0; bits &= bits - 1) list[at++] = static_cast<uint16_t>(32 * i + __ffs(static_cast<int>(bits)) - 1);
    listed += static_cast<int>(sum.total);
    __syncthreads();
  }
  return listed;
}

template <class T, int kSamples>
__global__ void __launch_bounds__(kThreads)
    values_grad_kernel(const T* grad, const T* x, Packed packed, const int64_t* starts, T* values_grad) {
  constexpr int kStride = kSampleStride<T, kSamples>;
  __shared__ uint16_t list[kRows * kStrip];
  __shared__ int64_t places[kRows];
  alignas(8) __shared__ T staged_x[kStrip * kStride];
  alignas(8) __shared__ T staged_grad[kRows * kStride];
  const int64_t batch = packed.shape.batch, in = packed.shape.in_features, out = packed.shape.out_features;
  const int64_t strips = strips_of(packed.shape), tasks = strips * ((out + kRows - 1) / kRows);
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t strip = task % strips, row0 = task / strips * kRows, column = strip * kStrip + threadIdx.x;
    const int survivors = list_survivors(packed, starts, row0, strip, list, places);
    for (int first = threadIdx.x; first - static_cast<int>(threadIdx.x) < survivors; first += kThreads * kSums) {
      Acc<T> sums[kSums] = {};
      for (int64_t sample0 = 0; sample0 < batch; sample0 += kSamples) {
#pragma unroll
        for (int s = 0; s < kSamples; ++s) {
          const bool inside = column < in && sample0 + s < batch;
          staged_x[threadIdx.x * kStride + s] = inside ? x[(sample0 + s) * in + column] : narrow<T>(0);
        }
        for (int i = threadIdx.x; i < kRows * kSamples; i += kThreads) {
          const int row = i % kRows, s = i / kRows;
          const bool inside = row0 + row < out && sample0 + s < batch;
          staged_grad[row * kStride + s] = inside ? grad[(sample0 + s) * out + row0 + row] : narrow<T>(0);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kSums; ++i) {
          if (first + i * kThreads >= survivors) continue;
          const int slot = list[first + i * kThreads];
          const T *at_grad = staged_grad + slot / kStrip * kStride, *at_x = staged_x + slot % kStrip * kStride;
          Acc<T> sum = 0;
#pragma unroll
          for (int s = 0; s < kSamples; ++s) sum += widen(at_grad[s]) * widen(at_x[s]);
          sums[i] += sum;
        }
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int at = first + i * kThreads;
        if (at >= survivors) continue;
        const int64_t place = places[list[at] / kStrip] + at;
        if (place < packed.kept) values_grad[place] = narrow<T>(sums[i]);
      }
    }
    __syncthreads();
  }
}

template <class T, int kSamples>
cudaError_t multiply(const void* grad, const void* x, const Packed& packed, const int64_t* starts, void* values_grad,
                     cudaStream_t stream) {
  const int64_t tasks = strips_of(packed.shape) * ((packed.shape.out_features + kRows - 1) / kRows);
  return launch(values_grad_kernel<T, kSamples>, grid_for(tasks), kThreads, stream, static_cast<const T*>(grad),
                static_cast<const T*>(x), packed, starts, static_cast<T*>(values_grad));
}

}  // namespace

size_t packed_linear_values_grad_workspace_size(LinearShape shape) {
  Layout layout(nullptr);
  Strips strips{};
  strips.lay_out(layout, shape);
  return layout.size();
}

cudaError_t packed_linear_values_grad(const void* grad, const void* x, const uint32_t* words, void* values_grad,
                                      LinearShape shape, int64_t kept, Dtype dtype, void* workspace,
                                      cudaStream_t stream) {
  if (kept == 0 || shape.out_features == 0 || shape.in_features == 0) return cudaSuccess;
  const Packed packed = packed_weight(words, shape, kept);
  Layout layout(workspace);
  Strips strips{};
  strips.lay_out(layout, shape);
  const cudaError_t error = find_strips(packed, strips, stream);
  if (error != cudaSuccess) return error;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (shape.batch == 1) return multiply<T, 1>(grad, x, packed, strips.starts, values_grad, stream);
    return multiply<T, kMostSamples<T>>(grad, x, packed, strips.starts, values_grad, stream);
  });
}

}  // namespace sparseprune::cuda
