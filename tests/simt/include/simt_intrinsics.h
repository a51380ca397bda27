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
__attribute__((no_sanitize_thread)) T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  const uint64_t* values = meet(Meeting::kShuffle, mask, bits_as<uint64_t>(value));
  if (!(mask >> source & 1u)) fail("a shuffle reads a lane that its mask does not name");
  const uint64_t theirs = values[source];
  return bits_as<T>(theirs);
}

template <class T, class Update>
__attribute__((no_sanitize_thread)) T atomic(T* address, Update update) {
  touch(address, sizeof(T), Access::kAtomic);
  maybe_yield();
  const T old = *address;
  *address = update(old);
  return old;
}

}  // namespace simt

inline void __syncthreads() { simt::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::sync_warp(mask); }

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

namespace simt {

// Folds the values that the lanes of `mask` brought.
template <class T, class Fold>
__attribute__((no_sanitize_thread)) T fold_lanes(Meeting kind, unsigned mask, T value, T start, Fold fold) {
  const uint64_t* values = meet(kind, mask, bits_as<uint64_t>(value));
  for (unsigned i = 0; i < 32; ++i) {
    const uint64_t theirs = values[i];
    if ((mask >> i & 1u) != 0) start = fold(start, bits_as<T>(theirs), i);
  }
  return start;
}

}  // namespace simt

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return simt::fold_lanes(simt::Meeting::kVote, mask, unsigned{predicate != 0}, 0u,
                          [](unsigned all, unsigned one, unsigned i) { return all | one << i; });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  return simt::fold_lanes(simt::Meeting::kMatch, mask, simt::bits_as<uint64_t>(value), uint64_t{0},
                          [own = simt::bits_as<uint64_t>(value)](uint64_t all, uint64_t one, unsigned i) {
                            return all | uint64_t{one == own} << i;
                          });
}

// CUDA has them for int and unsigned.
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return simt::fold_lanes(simt::Meeting::kReduceAdd, mask, value, 0u,
                          [](unsigned all, unsigned one, unsigned) { return all + one; });
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return static_cast<int>(__reduce_add_sync(mask, static_cast<unsigned>(value)));
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return simt::fold_lanes(simt::Meeting::kReduceMin, mask, value, value,
                          [](T all, T one, unsigned) { return one < all ? one : all; });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return simt::fold_lanes(simt::Meeting::kReduceMax, mask, value, value,
                          [](T all, T one, unsigned) { return all < one ? one : all; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return simt::fold_lanes(simt::Meeting::kReduceAnd, mask, value, ~0u,
                          [](unsigned all, unsigned one, unsigned) { return all & one; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return simt::fold_lanes(simt::Meeting::kReduceOr, mask, value, 0u,
                          [](unsigned all, unsigned one, unsigned) { return all | one; });
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
  return simt::fold_lanes(simt::Meeting::kReduceXor, mask, value, 0u,
                          [](unsigned all, unsigned one, unsigned) { return all ^ one; });
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

template <class T>
T atomicOr(T* address, std::common_type_t<T> value) {
  return simt::atomic(address, [&](T old) { return old | value; });
}

// A load that the kernel promises nobody writes meanwhile.
template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __float_as_uint(float value) { return simt::bits_as<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return simt::bits_as<float>(value); }
inline long long __double_as_longlong(double value) { return simt::bits_as<long long>(value); }
inline double __longlong_as_double(long long value) { return simt::bits_as<double>(value); }
