// One source for the GPU and for the host: nvcc makes kernels of it, g++ (-x c++) plain loops, which the tests run.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define FORMULA __host__ __device__ inline
// Grid-stride loops: any grid covers any size. Along x neighbouring threads take neighbouring elements.
#define EACH_X(i, size) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (size); i += gridDim.x * blockDim.x)
#define EACH_Y(i, size) for (int i = blockIdx.y * blockDim.y + threadIdx.y; i < (size); i += gridDim.y * blockDim.y)
#else
#define KERNEL extern "C" void
#define FORMULA inline
#define EACH_X(i, size) for (int i = 0; i < (size); ++i)
#define EACH_Y(i, size) for (int i = 0; i < (size); ++i)
#endif
