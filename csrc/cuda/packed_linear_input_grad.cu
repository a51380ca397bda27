// Input gradient of a packed linear layer: dx = g S(v), by survivors alone.
//
// After two launches that find where every row's part in a strip of 256 columns starts, a block owns a strip, some
// samples and a slice of the rows. It takes 32 rows at once (16 of float64): their words, the values of the strip and
// the samples' gradients go to shared memory, and each warp transposes the 32 x 32 bits of its word's columns. A lane
// then owns a column: its survivors are the bits of one word, and their sums for all samples never leave registers.
// Where strips and samples alone give few blocks the rows are split into slices, whose sums a last launch adds in order.
//
// What a call reads for 16 samples and 4096 x 4096 in bfloat16 at density 0.1: 3.4 MB of values, 2.1 MB of bits (three
// times, to count and to use), 0.5 MB of starts and 4.2 MB of slices' sums, of which bits, starts and sums stay in the
// L2 cache; dense reads 33.6 MB. Every further 16 samples read values and bits again.
//
// Budget: 64 registers, 36480 bytes of shared memory, no spills.
#include <algorithm>
#include <type_traits>

#include "packed_rows.cuh"
#include "scalar.cuh"

namespace sparseprune::cuda {
namespace {

constexpr int kThreads = kStrip;
constexpr int kBlocks = 256;  // two for each of 132 multiprocessors; not asked for, so that sums do not depend on it

// A word of the mask and how many survivors its row has before it in the strip.
struct Part {
  uint32_t bits;
  int before;
};

template <class T>
constexpr int kRows = sizeof(T) == 8 ? 16 : 32;
// One more than needed: equal columns of different rows lie in different banks.
constexpr int kValueStride = kStrip + 1, kPartStride = kStripWords + 1;

// The rows of dx = g W in `count` slices of `rows` each, and of the last the rest.
struct Slices {
  int64_t count, rows;
};

template <class T, int kSamples>
Slices slices_of(const LinearShape& shape) {
  const int64_t steps = std::max<int64_t>(1, (shape.out_features + kRows<T> - 1) / kRows<T>);
  const int64_t tasks = strips_of(shape) * ((shape.batch + kSamples - 1) / kSamples);
  const int64_t wanted = std::max<int64_t>(1, std::min(steps, kBlocks / tasks)), each = (steps + wanted - 1) / wanted;
  return {(steps + each - 1) / each, each * kRows<T>};
}

// Bit r of lane c becomes bit c of lane r: blocks off the diagonal change places, from 16 x 16 to 1 x 1.
__device__ uint32_t transposed(uint32_t bits) {
#pragma unroll
  for (int size = kWarp / 2; size > 0; size /= 2) {
    const uint32_t low = ~0u / ((1u << size) + 1u), other = __shfl_xor_sync(kFullWarp, bits, size);
    const bool upper = threadIdx.x & static_cast<unsigned>(size);
    bits = upper ? (bits & ~low) | ((other >> size) & low) : (bits & low) | ((other & low) << size);
  }
  return bits;
}

// Copies the parts and the values of a strip of kRows rows; eight threads a row. What is missing has no bits.
template <class T>
__device__ void stage_rows(const Packed& packed, const int64_t* starts, const T* values, int64_t strip, int64_t row0,
                           int64_t end, Part* parts, T* staged) {
  const int lane = threadIdx.x % kWarp, local = threadIdx.x / kStripWords, part = threadIdx.x % kStripWords;
  const int64_t row = row0 + local, word = strip * kStripWords + part;
  const bool inside = local < kRows<T> && row < end;
  const uint32_t bits = inside && word < packed.row_words ? packed.words[row * packed.row_words + word] : 0;
  const int count = __popc(bits), up_to = warp_inclusive_sum(count);
  const int first = __shfl_sync(kFullWarp, up_to - count, lane - part);
  const int in_strip = __shfl_sync(kFullWarp, up_to, lane - part + kStripWords - 1) - first;
  if (local >= kRows<T>) return;
  parts[local * kPartStride + part] = {bits, up_to - count - first};
  if (!inside) return;
  const int64_t start = starts[row * strips_of(packed.shape) + strip];
#pragma unroll 4
  for (int i = part; i < in_strip; i += kStripWords) {
    staged[local * kValueStride + i] = start + i < packed.kept ? values[start + i] : narrow<T>(0);
  }
}

template <class T, int kSamples>
__global__ void __launch_bounds__(kThreads)
    input_grad_kernel(const T* grad, const T* values, Packed packed, const int64_t* starts, Slices slices,
                      T* input_grad, Acc<T>* partial) {
  constexpr int kStride = kSampleStride<T, kSamples>;
  __shared__ Part parts[kRows<T> * kPartStride];
  __shared__ T staged[kRows<T> * kValueStride];
  alignas(8) __shared__ T staged_grad[kRows<T> * kStride];
  const int64_t batch = packed.shape.batch, in = packed.shape.in_features, out = packed.shape.out_features;
  const int64_t strips = strips_of(packed.shape), parcels = strips * slices.count;
  const int64_t tasks = parcels * ((batch + kSamples - 1) / kSamples);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t sample0 = task / parcels * kSamples, strip = task % strips, slice = task % parcels / strips;
    const int64_t end = (slice + 1) * slices.rows < out ? (slice + 1) * slices.rows : out;
    Acc<T> sums[kSamples] = {};
    for (int64_t row0 = slice * slices.rows; row0 < end; row0 += kRows<T>) {
      stage_rows(packed, starts, values, strip, row0, end, parts, staged);
      for (int i = threadIdx.x; i < kRows<T> * kSamples; i += kThreads) {
        const int row = i % kRows<T>, s = i / kRows<T>;
        const bool inside = row0 + row < end && sample0 + s < batch;
        staged_grad[row * kStride + s] = inside ? grad[(sample0 + s) * out + row0 + row] : narrow<T>(0);
      }
      __syncthreads();
      uint32_t rows = transposed(lane < kRows<T> ? parts[lane * kPartStride + warp].bits : 0);
      for (; rows != 0; rows &= rows - 1) {
        const int row = __ffs(static_cast<int>(rows)) - 1;
        const Part part = parts[row * kPartStride + warp];
        const int at = part.before + __popc(part.bits & ((1u << lane) - 1u));
        const Acc<T> weight = widen(staged[row * kValueStride + at]);
#pragma unroll
        for (int s = 0; s < kSamples; ++s) sums[s] += weight * widen(staged_grad[row * kStride + s]);
      }
      __syncthreads();
    }
    const int64_t column = strip * kStrip + threadIdx.x;
    if (column >= in) continue;
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
      const int64_t at = (sample0 + s) * in + column;
      if (sample0 + s >= batch) continue;
      if (slices.count == 1) {
        input_grad[at] = narrow<T>(sums[s]);
      } else {
        partial[slice * batch * in + at] = sums[s];
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_slices_kernel(const Acc<T>* partial, int64_t slices, int64_t size, T* sums) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += stride) {
    Acc<T> sum = 0;
    for (int64_t slice = 0; slice < slices; ++slice) sum += partial[slice * size + i];
    sums[i] = narrow<T>(sum);
  }
}

// Calls body(Type<T>{}, samples), the second as a compile-time constant.
template <class Body>
auto for_product(const LinearShape& shape, Dtype dtype, const Body& body) {
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (shape.batch == 1) return body(type, std::integral_constant<int, 1>{});
    return body(type, std::integral_constant<int, kMostSamples<T>>{});
  });
}

template <class A>
size_t lay_out(void* workspace, const LinearShape& shape, int64_t slices, Strips& strips, A*& partial) {
  Layout layout(workspace);
  strips.lay_out(layout, shape);
  if (slices > 1) layout.array(partial, slices * shape.batch * shape.in_features);
  return layout.size();
}

}  // namespace

size_t packed_linear_input_grad_workspace_size(LinearShape shape, Dtype dtype) {
  if (shape.batch == 0 || shape.in_features == 0) return 0;
  return for_product(shape, dtype, [&](auto type, auto samples) {
    using T = typename decltype(type)::type;
    Strips strips{};
    Acc<T>* partial = nullptr;
    return lay_out(nullptr, shape, slices_of<T, samples.value>(shape).count, strips, partial);
  });
}

cudaError_t packed_linear_input_grad(const void* grad, const void* values, const uint32_t* words, void* input_grad,
                                     LinearShape shape, int64_t kept, Dtype dtype, void* workspace,
                                     cudaStream_t stream) {
  const int64_t size = shape.batch * shape.in_features;
  if (size == 0) return cudaSuccess;
  const Packed packed = packed_weight(words, shape, kept);
  return for_product(shape, dtype, [&](auto type, auto samples) {
    using T = typename decltype(type)::type;
    constexpr int kSamples = samples.value;
    const Slices slices = slices_of<T, kSamples>(shape);
    Strips strips{};
    Acc<T>* partial = nullptr;
    lay_out(workspace, shape, slices.count, strips, partial);
    if (shape.out_features > 0) {
      const cudaError_t error = find_strips(packed, strips, stream);
      if (error != cudaSuccess) return error;
    }
    const int64_t tasks = strips_of(shape) * slices.count * ((shape.batch + kSamples - 1) / kSamples);
    const cudaError_t error =
        launch(input_grad_kernel<T, kSamples>, grid_for(tasks), kThreads, stream, static_cast<const T*>(grad),
               static_cast<const T*>(values), packed, strips.starts, slices, static_cast<T*>(input_grad), partial);
    if (error != cudaSuccess || slices.count == 1) return error;
    return launch(add_slices_kernel<T>, grid_for(size, kThreads), kThreads, stream, partial, slices.count, size,
                  static_cast<T*>(input_grad));
  });
}

}  // namespace sparseprune::cuda
