// The scores of 64 slots, whatever the type and the layout they are stored in and the formula that makes them.
#pragma once

#include <sparseprune/topk_mask.h>

#include "common.h"

namespace sparseprune {
namespace {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return as_float(static_cast<uint32_t>(value.bits) << 16); }
// No step takes or makes a denormal float, which a thread may be set to flush.
inline float widen(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu, sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  constexpr uint32_t bias = (127 - 15) << 23;
  uint32_t bits = (magnitude << 13) + bias;
  if (magnitude >= 0x7c00) bits += bias;  // inf and NaN
  const float tiny = as_float((magnitude << 13) + bias + (1u << 23)) - as_float(bias + (1u << 23));
  uint32_t tiny_bits;
  std::memcpy(&tiny_bits, &tiny, sizeof(tiny_bits));
  return as_float((magnitude < 0x400 ? tiny_bits : bits) | sign);
}

// out[i] = element index + i for i < valid.
template <class Stored, class T>
inline void gather(const Elements& from, int64_t index, int64_t valid, T* out) {
  const Stored* data = static_cast<const Stored*>(from.data);
  if (from.dims == 0) {
    data += index;
    if (valid == 64) {
      for (int i = 0; i < 64; ++i) out[i] = static_cast<T>(widen(data[i]));
    } else {
      for (int64_t i = 0; i < valid; ++i) out[i] = static_cast<T>(widen(data[i]));
    }
    return;
  }
  int64_t at[kScoreDims], rest = index;
  for (int d = from.dims - 1; d >= 0; --d) {
    at[d] = rest % from.sizes[d];
    rest /= from.sizes[d];
    data += at[d] * from.strides[d];
  }
  const int last = from.dims - 1;
  const int64_t stride = from.strides[last];
  for (int64_t i = 0; i < valid;) {
    const int64_t run = min_of(valid - i, from.sizes[last] - at[last]);
    for (int64_t j = 0; j < run; ++j) out[i + j] = static_cast<T>(widen(data[j * stride]));
    i += run;
    at[last] += run;
    data += run * stride;
    for (int d = last; d > 0 && at[d] == from.sizes[d]; --d) {
      data += from.strides[d - 1] - from.sizes[d] * from.strides[d];
      at[d] = 0;
      ++at[d - 1];
    }
  }
}

template <class T>
inline void gather(ScoreType type, const Elements& from, int64_t index, int64_t valid, T* out) {
  switch (type) {
    case ScoreType::float16:
      return gather<Float16>(from, index, valid, out);
    case ScoreType::bfloat16:
      return gather<BFloat16>(from, index, valid, out);
    case ScoreType::float32:
      return gather<float>(from, index, valid, out);
    case ScoreType::float64:
      return gather<double>(from, index, valid, out);
  }
}

// Bits, not a comparison: a thread may take denormals for zero.
inline float magnitude(float value) { return __builtin_fabsf(value); }
inline double magnitude(double value) { return __builtin_fabs(value); }

// Whether the scores lie in memory as they are compared.
template <class T>
inline bool is_plain(const ScoredTensor& tensor, bool largest) {
  const ScoreType own = sizeof(T) == 4 ? ScoreType::float32 : ScoreType::float64;
  return tensor.type == own && tensor.formula == Formula::w && largest && tensor.weights.dims == 0;
}

// Of the slots index + i for i < valid, at most 64: what the larger is of better; 0 in the rest of out.
template <class T>
inline void values_of(const ScoredTensor& tensor, bool largest, int64_t index, int64_t valid, T* out) {
  T gradients[64];
  if (valid < 64) std::memset(out, 0, 64 * sizeof(T));
  gather(tensor.type, tensor.weights, index, valid, out);
  if (tensor.formula >= Formula::w_g) {
    if (valid < 64) std::memset(gradients, 0, sizeof(gradients));
    gather(tensor.type, tensor.gradients, index, valid, gradients);
  }
  switch (tensor.formula) {
    case Formula::w:
      break;
    case Formula::abs_w:
      for (int i = 0; i < 64; ++i) out[i] = magnitude(out[i]);
      break;
    case Formula::w_g:
      for (int i = 0; i < 64; ++i) out[i] *= gradients[i];
      break;
    case Formula::abs_w_g:
      for (int i = 0; i < 64; ++i) out[i] = magnitude(out[i] * gradients[i]);
      break;
    case Formula::abs_w_times_g:
      for (int i = 0; i < 64; ++i) out[i] = magnitude(out[i]) * gradients[i];
      break;
  }
  if (!largest) {
    for (int i = 0; i < 64; ++i) out[i] = -out[i];
  }
}

}  // namespace
}  // namespace sparseprune
