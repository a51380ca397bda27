// The keys that a scan could not decide about, and where they came from. Of fixed size: what does not fit is dropped and
// the scan is told so.
#pragma once

#include <type_traits>

#include "scratch.h"
#include "topk_keys.h"

namespace sparseprune {
namespace {

constexpr int64_t kPoolBytes = int64_t{3} << 20;
constexpr int64_t kBlock = 512;  // entries that a task claims at once

// Counts by digits of keys within a range, as differences from its lower end. Neighbours count in different copies, so
// that equal digits need not wait for each other.
constexpr int kDigitBits = 11;
constexpr int64_t kBins = int64_t{1} << kDigitBits;
constexpr int kWays = 4;

// The range that the wanted key is known to lie in: `need` of its `count` keys are to be kept.
template <class T>
struct Open {
  Key<T> low = -kInfinity<T>;
  Key<T> high = kInfinity<T>;
  int64_t need = 0;
  int64_t count = 0;

  uint64_t span() const { return static_cast<uint64_t>(high) - static_cast<uint64_t>(low); }
  // Digits are the differences from low, shifted by this.
  int shift() const {
    const int bits = span() == 0 ? 0 : 64 - __builtin_clzll(span());
    return bits > kDigitBits ? bits - kDigitBits : 0;
  }
};

// One task's counts.
template <class T>
class Histogram {
 public:
  static constexpr int64_t kSize = (kBins + 1) * kWays;
  explicit Histogram(uint32_t* counts) : counts_(counts) {}

  void clear() { std::memset(counts_, 0, kSize * sizeof(uint32_t)); }

  // Of up to kBlock keys, those in the open range.
  void add(const Key<T>* keys, int64_t count, const Open<T>& open) {
    using Unsigned = std::make_unsigned_t<Key<T>>;
    uint32_t digits[kBlock];
    const int shift = open.shift();
    for (int64_t i = 0; i < count; ++i) {
      const Unsigned digit = (static_cast<Unsigned>(keys[i]) - static_cast<Unsigned>(open.low)) >> shift;
      // One below the range is far above it as a difference; others count in a bin that nobody reads.
      digits[i] = static_cast<uint32_t>(keys[i] > open.high || digit > kBins ? Unsigned{kBins} : digit) * kWays;
    }
    uint32_t differ = 0;
    for (int64_t i = 1; i < count; ++i) differ |= digits[i] ^ digits[0];
    if (count > 0 && differ == 0) {  // equal keys, one store instead of a chain of them
      counts_[digits[0]] += static_cast<uint32_t>(count);
      return;
    }
    int64_t i = 0;
    for (; i + kWays <= count; i += kWays) {
      for (int way = 0; way < kWays; ++way) ++counts_[digits[i + way] + static_cast<uint32_t>(way)];
    }
    for (; i < count; ++i) ++counts_[digits[i]];
  }

  int64_t operator[](int64_t digit) const {
    int64_t sum = 0;
    for (int way = 0; way < kWays; ++way) sum += counts_[digit * kWays + way];
    return sum;
  }

 private:
  uint32_t* counts_;
};

// The histograms of all tasks, and what they say together.
template <class T>
class Histograms {
 public:
  explicit Histograms(int64_t tasks) : tasks_(tasks), counts_(tasks * Histogram<T>::kSize) {}
  Histogram<T> of(int64_t task) const { return Histogram<T>(counts_.get() + task * Histogram<T>::kSize); }

  // The digit of `open` that holds its need-th largest key, which all tasks have counted.
  Open<T> narrowed(const Open<T>& open) const {
    const int shift = open.shift();
    int64_t above = 0;
    for (int64_t digit = static_cast<int64_t>(open.span() >> shift); digit >= 0; --digit) {
      int64_t count = 0;
      for (int64_t task = 0; task < tasks_; ++task) count += of(task)[digit];
      if (above + count >= open.need || digit == 0) {
        const uint64_t low = static_cast<uint64_t>(open.low) + (static_cast<uint64_t>(digit) << shift);
        const uint64_t high = low + ((uint64_t{1} << shift) - 1);
        return {static_cast<Key<T>>(low),
                static_cast<Key<T>>(digit == static_cast<int64_t>(open.span() >> shift) ? open.high : high),
                open.need - above, count};
      }
      above += count;
    }
    return open;
  }

 private:
  int64_t tasks_;
  Scratch<uint32_t> counts_;
};

template <class T>
class Pool {
 public:
  Pool(int64_t wanted, int64_t tasks)
      : room_(min_of(wanted, kPoolBytes / (sizeof(Key<T>) + sizeof(uint32_t)))),
        blocks_(ceil_div(room_, kBlock) + tasks),
        keys_(blocks_ * kBlock),
        slots_(blocks_ * kBlock),
        owners_(blocks_),
        used_(blocks_) {}

  // This many fit, whichever tasks they come from.
  int64_t room() const { return room_; }
  bool overflowed() const { return claimed_ > blocks_; }
  void clear() { claimed_ = 0; }

  // Appends for one task. Its entries are in the order of its blocks.
  class Writer {
   public:
    Writer(Pool& pool, int64_t task) : pool_(pool), task_(task) {}
    ~Writer() { close(); }
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;
    void append(Key<T> key, uint32_t slot) {
      if (used_ == kBlock && !next()) return;
      pool_.keys_[block_ * kBlock + used_] = key;
      pool_.slots_[block_ * kBlock + used_] = slot;
      ++used_;
    }

   private:
    bool next() {
      if (full_) return false;
      close();
      block_ = __atomic_fetch_add(&pool_.claimed_, 1, __ATOMIC_RELAXED);
      full_ = block_ >= pool_.blocks_;
      if (full_) {
        block_ = -1;
        return false;
      }
      pool_.owners_[block_] = task_;
      used_ = 0;
      return true;
    }
    void close() {
      if (block_ >= 0) pool_.used_[block_] = used_;
    }
    Pool& pool_;
    int64_t task_;
    int64_t block_ = -1;
    int64_t used_ = kBlock;
    bool full_ = false;
  };

  // body(keys, slots, count) over the blocks of one task, in order.
  template <class Body>
  void for_blocks(int64_t task, const Body& body) const {
    for (int64_t b = 0; b < min_of(claimed_, blocks_); ++b) {
      if (owners_[b] == task) body(keys_.get() + b * kBlock, slots_.get() + b * kBlock, used_[b]);
    }
  }

 private:
  int64_t room_;
  int64_t blocks_;
  int64_t claimed_ = 0;
  Scratch<Key<T>> keys_;
  Scratch<uint32_t> slots_;
  Scratch<int64_t> owners_;
  Scratch<int64_t> used_;
};

}  // namespace
}  // namespace sparseprune
