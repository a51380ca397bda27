// Arrays in a workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "launch.cuh"

namespace sparseprune::cuda {

// Places arrays one behind the other in a workspace; of null it only adds up their bytes. Elements of 8 bytes come
// first, or in even numbers, so that all are aligned.
class Layout {
 public:
  explicit Layout(void* workspace) : workspace_(static_cast<char*>(workspace)) {}

  template <class T>
  void array(T*& pointer, int64_t count) {
    if (size_ > 0) {
      if (workspace_ != nullptr) SPARSEPRUNE_FORBID(workspace_ + size_);
      size_ += SPARSEPRUNE_GAP;
    }
    if (workspace_ != nullptr) pointer = reinterpret_cast<T*>(workspace_ + size_);
    size_ += static_cast<size_t>(count) * sizeof(T);
  }

  size_t size() const { return size_; }

 private:
  char* workspace_;
  size_t size_ = 0;
};

}  // namespace sparseprune::cuda
