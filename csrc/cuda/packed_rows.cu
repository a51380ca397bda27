// Where the rows of a packed weight, and their parts in every strip of 256 columns, start in its values.
//
// A first launch counts the survivors of every tile of 32 rows, a second one sums the counts of the tiles, rows and words
// before each part. For 4096 x 4096 they read the 2.1 MB of bits once and twice, which the L2 cache then holds, and write
// 0.5 MB.
//
// Budget: 64 registers, 512 bytes of shared memory, no spills.
#include "packed_rows.cuh"

namespace sparseprune::cuda {
namespace {

__global__ void __launch_bounds__(kRowThreads) count_tiles_kernel(Packed packed, int64_t* tile_counts) {
  const int64_t rows = packed.shape.out_features, tiles = tiles_of_rows(packed.shape);
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile * kTileRows, last = first + kTileRows < rows ? first + kTileRows : rows;
    int64_t mine = 0;
    for (int64_t word = first * packed.row_words + threadIdx.x; word < last * packed.row_words; word += kRowThreads) {
      mine += __popc(packed.words[word]);
    }
    const BlockSum sum = block_sum<kRowThreads>(mine);
    if (threadIdx.x == 0) tile_counts[tile] = sum.total;
    __syncthreads();
  }
}

// One block a multiprocessor is enough: for two ptxas spills on sm_100.
__global__ void __launch_bounds__(kRowThreads, 1) find_strips_kernel(Packed packed, Strips strips) {
  const int64_t tiles = tiles_of_rows(packed.shape), row_strips = strips_of(packed.shape);
  const int lane = threadIdx.x % kWarp;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t row = tile * kTileRows + threadIdx.x / kWarp;
    int64_t next = row_start(packed, strips.tile_counts, tile, row);
    for (int64_t word0 = 0; word0 < packed.row_words; word0 += kWarp) {
      const int count = __popc(word_of(packed, row, word0)), up_to = warp_inclusive_sum(count);
      const int64_t strip = (word0 + lane) / kStripWords;
      if (lane % kStripWords == 0 && row < packed.shape.out_features && strip < row_strips) {
        strips.starts[row * row_strips + strip] = next + up_to - count;
      }
      next += __shfl_sync(kFullWarp, up_to, kWarp - 1);
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t count_tiles(const Packed& packed, int64_t* tile_counts, cudaStream_t stream) {
  const dim3 grid = grid_for(tiles_of_rows(packed.shape));
  return launch(count_tiles_kernel, grid, kRowThreads, stream, packed, tile_counts);
}

cudaError_t find_strips(const Packed& packed, const Strips& strips, cudaStream_t stream) {
  const cudaError_t error = count_tiles(packed, strips.tile_counts, stream);
  if (error != cudaSuccess) return error;
  return launch(find_strips_kernel, grid_for(tiles_of_rows(packed.shape)), kRowThreads, stream, packed, strips);
}

}  // namespace sparseprune::cuda
