// Twin of the CUDA runtime's header: host calls and device functions.
#pragma once

#include "cuda_runtime_api.h"
#include "simt_intrinsics.h"
