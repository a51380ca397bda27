// What CUB offers to somebody who selects by hand: sort, top-k and compaction of float32 scores. Plain C for
// ctypes; built beside the package's own libraries, for machines without a compiler.
//
// Each function is called twice, as CUB's own are: with `temporary` null it sets `bytes` and computes nothing.
// Returns a cudaError_t.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_select.cuh>
#if __has_include(<cub/device/device_topk.cuh>)
#include <cub/device/device_topk.cuh>
#include <cuda/stream_ref>
#define HAS_TOP_K
#endif

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

struct AtLeast {
  float bound;
  __host__ __device__ bool operator()(float value) const { return value >= bound; }
};

EXPORT const char* error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// out: [count], from the largest to the smallest.
EXPORT int sort_descending(void* temporary, size_t* bytes, const float* scores, float* out, int64_t count,
                           cudaStream_t stream) {
  return cub::DeviceRadixSort::SortKeysDescending(temporary, *bytes, scores, out, count, 0, 32, stream);
}

// out: the scores that are at least `bound`, in order; selected: how many.
EXPORT int select_at_least(void* temporary, size_t* bytes, const float* scores, float bound, float* out,
                           int64_t* selected, int64_t count, cudaStream_t stream) {
  return cub::DeviceSelect::If(temporary, *bytes, scores, out, selected, count, AtLeast{bound}, stream);
}

#ifdef HAS_TOP_K
// out: [k], the k largest scores in any order.
EXPORT int top_k(void* temporary, size_t* bytes, const float* scores, float* out, int64_t count, int64_t k,
                 cudaStream_t stream) {
  namespace execution = cuda::execution;
  const auto any_order = execution::require(execution::determinism::not_guaranteed,
                                            execution::output_ordering::unsorted);
  const auto environment = cuda::std::execution::env{cuda::stream_ref{stream}, any_order};
  return cub::DeviceTopK::MaxKeys(temporary, *bytes, scores, out, count, k, environment);
}
#endif
