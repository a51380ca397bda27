// How the selection cuts its tensors into pieces, and how it counts digits.
#pragma once

#include <sparseprune/topk_mask.h>

#include "topk_keys.h"

namespace sparseprune {
namespace {

// 13 bits hold the sign, the exponent and 4 bits of the mantissa of a float: the bin of the threshold has a
// few per cent of the scores, and four interleaved histograms (128 KB) stay in the L2 cache.
constexpr int kDigitBits = 13;
constexpr int64_t kBins = int64_t{1} << kDigitBits;
constexpr int kWays =
    4;  // neighbours count in different copies, so that equal digits need not wait for each other
constexpr int64_t kChunkWords = 512;
constexpr int64_t kBuffer = 512;

// A piece of the work: consecutive 64-bit words of one tensor.
struct Chunk {
  int64_t tensor;
  int64_t begin;
  int64_t end;
};

// body(scores of 64 slots, which of them compete, word index) over a chunk.
template <class T, class Body>
inline void for_chunk(const ScoredTensor<T>& tensor, const Chunk& chunk, const Body& body) {
  const int64_t row_words = ceil_div(tensor.cols, 64);
  int64_t row = chunk.begin / row_words, column = chunk.begin % row_words * 64;
  T padded[64];
  for (int64_t word = chunk.begin; word < chunk.end; ++word) {
    const int64_t valid = min_of(64, tensor.cols - column);
    const T* scores = tensor.scores + row * tensor.cols + column;
    const uint64_t slots =
        tensor.candidates == nullptr ? low_bits(valid) : load_bits(tensor.candidates, word);
    if (valid < 64) {
      std::memset(padded, 0, sizeof(padded));
      std::memcpy(padded, scores, static_cast<size_t>(valid) * sizeof(T));
      scores = padded;
    }
    body(scores, slots, word);
    column += 64;
    if (column >= tensor.cols) {
      column = 0;
      ++row;
    }
  }
}

// Counts the digit [shift, shift + bits) of up to kBuffer keys.
template <class T>
inline void count_digits(uint32_t* histogram, const Key<T>* keys, int64_t count, int shift, int bits) {
  uint32_t bins[kBuffer];
  const Key<T> mask = static_cast<Key<T>>((uint64_t{1} << bits) - 1);
  // The sign bit is turned, so that digits order as unsigned numbers.
  const Key<T> turn = shift + bits == kKeyBits<T> ? Key<T>{1} << (bits - 1) : 0;
  for (int64_t i = 0; i < count; ++i) {
    bins[i] = static_cast<uint32_t>((((keys[i] >> shift) & mask) ^ turn) * kWays);
  }
  uint32_t differ = 0;
  for (int64_t i = 1; i < count; ++i) differ |= bins[i] ^ bins[0];
  if (count > 0 && differ == 0) {  // constant scores, one store instead of a chain of them
    histogram[bins[0]] += static_cast<uint32_t>(count);
    return;
  }
  int64_t i = 0;
  for (; i + kWays <= count; i += kWays) {
    for (int way = 0; way < kWays; ++way) ++histogram[bins[i + way] + static_cast<uint32_t>(way)];
  }
  for (; i < count; ++i) ++histogram[bins[i]];
}

}  // namespace
}  // namespace sparseprune
