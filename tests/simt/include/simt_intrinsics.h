// The device functions that csrc/cuda uses, in terms of the SIMT machine.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt.h"

namespace simt {

template <class To, class From>
To bits_as(const From& value) {
  To result{};
  std::memcpy(&result, &value, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
  return result;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  const uint64_t* values = meet(Meeting::kShuffle, mask, bits_as<uint64_t>(value));
  if (!(mask >> source & 1u)) fail("a shuffle reads a lane that its mask does not name");
  return bits_as<T>(values[source]);
}

template <class T, class Update>
T atomic(T* address, Update update) {
  maybe_yield();
  const T old = *address;
  *address = update(old);
  return old;
}

}  // namespace simt

inline void __syncthreads() { simt::sync_block(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return simt::shuffle(mask, value, static_cast<unsigned>(source) % 32);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  const unsigned lane = simt::lane();
  return simt::shuffle(mask, value, lane < distance ? lane : lane - distance);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
  const unsigned lane = simt::lane();
  return simt::shuffle(mask, value, lane + distance > 31 ? lane : lane + distance);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return simt::shuffle(mask, value, simt::lane() ^ static_cast<unsigned>(distance));
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* values = simt::meet(simt::Meeting::kBallot, mask, predicate != 0);
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) result |= (mask >> i & 1u) != 0 && values[i] != 0 ? 1u << i : 0u;
  return result;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const uint64_t own = simt::bits_as<uint64_t>(value);
  const uint64_t* values = simt::meet(simt::Meeting::kMatch, mask, own);
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) result |= (mask >> i & 1u) != 0 && values[i] == own ? 1u << i : 0u;
  return result;
}

// The second operand's type follows the first's, as CUDA's overloads make it.
template <class T>
T atomicAdd(T* address, std::common_type_t<T> value) {
  return simt::atomic(address, [&](T old) { return old + value; });
}
template <class T>
T atomicMin(T* address, std::common_type_t<T> value) {
  return simt::atomic(address, [&](T old) { return value < old ? value : old; });
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __float_as_uint(float value) { return simt::bits_as<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return simt::bits_as<float>(value); }
inline long long __double_as_longlong(double value) { return simt::bits_as<long long>(value); }
