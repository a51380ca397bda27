// What the compiler's instrumentation calls, in the place of the sanitizers' own libraries (see simt.h).
#include <cstdint>
#include <string>

#include "memory.h"
#include "simt.h"

static void touch_aligned(void* address, size_t size, simt::Access access) {
  if (simt::in_kernel() && reinterpret_cast<uintptr_t>(address) % size != 0)
    simt::fail("a misaligned access");
  simt::touch(address, size, access);
}

// For -fsanitize=thread.
#define SIMT_ACCESS(size)                                                                              \
  extern "C" void __tsan_read##size(void* a) { touch_aligned(a, size, simt::Access::kRead); }          \
  extern "C" void __tsan_write##size(void* a) { touch_aligned(a, size, simt::Access::kWrite); }        \
  extern "C" void __tsan_unaligned_read##size(void* a) { simt::touch(a, size, simt::Access::kRead); }  \
  extern "C" void __tsan_unaligned_write##size(void* a) { simt::touch(a, size, simt::Access::kWrite); }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)
extern "C" void __tsan_read_range(void* a, size_t size) { simt::touch(a, size, simt::Access::kRead); }
extern "C" void __tsan_write_range(void* a, size_t size) { simt::touch(a, size, simt::Access::kWrite); }
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_init() {}

// For -fsanitize=alignment,bounds,...: the data of every one starts with the place in the source.
struct SourcePlace {
  const char* file;
  uint32_t line, column;
};

static void stop_at(const SourcePlace* at, const char* what) {
  const std::string file = at->file;
  const std::string message =
      what + (" at " + file.substr(file.rfind('/') + 1)) + ":" + std::to_string(at->line);
  if (simt::in_kernel()) simt::fail(message.c_str());
  simt::fail_later("host: " + message);  // not thrown here: callers believe that this does not throw
}

#define SIMT_UNDEFINED(name, what) \
  extern "C" void __ubsan_handle_##name(const SourcePlace* at) { stop_at(at, what); }
SIMT_UNDEFINED(type_mismatch_v1, "a misaligned access")
SIMT_UNDEFINED(out_of_bounds, "an index outside of its array")
SIMT_UNDEFINED(shift_out_of_bounds, "a shift by more bits than there are")
SIMT_UNDEFINED(add_overflow, "an integer overflow")
SIMT_UNDEFINED(sub_overflow, "an integer overflow")
SIMT_UNDEFINED(mul_overflow, "an integer overflow")
SIMT_UNDEFINED(negate_overflow, "an integer overflow")
SIMT_UNDEFINED(divrem_overflow, "a division by zero or that overflows")
