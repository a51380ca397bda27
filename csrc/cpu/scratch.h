// Memory for one call of a kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparseprune {

// 64-byte aligned, uninitialised, in huge pages where it is large; throws std::bad_alloc.
void* allocate_scratch(size_t bytes);
void free_scratch(void* block);

namespace {

template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t count) { allocate(count); }
  ~Scratch() { free_scratch(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void allocate(int64_t count) {
    free_scratch(data_);
    data_ = nullptr;
    data_ = static_cast<T*>(allocate_scratch(static_cast<size_t>(count) * sizeof(T)));
  }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
};

}  // namespace
}  // namespace sparseprune
