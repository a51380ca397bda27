// Twin of the CUDA runtime's header: host calls, device functions, vector types.
#pragma once

#include "cuda_runtime_api.h"
#include "simt_intrinsics.h"

// Aligned as CUDA's are, so that an access to a misaligned one is found.
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
