// The kernels' own CUDA branch, built by g++ as a function a thread, and a loop over every thread of every block.
// Built with -DSOURCE="kernels.cu" -DKERNELS="ENTRY(overlay) ENTRY(preprocess) ...". Threads run one after the other: a
// kernel with __syncthreads or __shared__ does not build here.
#include <utility>

#include "kernels.h"

#define __CUDACC__
#define __global__
#define __host__
#define __device__

// One GPU and one lock in the driver, so plain variables are enough.
static Size3 blockIdx, threadIdx, blockDim, gridDim;

#include SOURCE

namespace {

template <class Call>
void every_thread(Size3 grid, Size3 block, Call call) {
  gridDim = grid, blockDim = block;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x)
        for (threadIdx.z = 0; threadIdx.z < block.z; ++threadIdx.z)
          for (threadIdx.y = 0; threadIdx.y < block.y; ++threadIdx.y)
            for (threadIdx.x = 0; threadIdx.x < block.x; ++threadIdx.x) call();
}

template <class T>
constexpr bool is_pointer = false;
template <class T>
constexpr bool is_pointer<T *> = true;

template <class F>
struct Signature;

template <class... A>
struct Signature<void(A...)> {
  struct Layout {
    size_t offsets[sizeof...(A)] = {}, bytes = 0;
    bool pointers[sizeof...(A)] = {is_pointer<A>...};
    constexpr Layout() {
      const size_t sizes[] = {sizeof(A)...}, alignments[] = {alignof(A)...};
      for (size_t i = 0; i < sizeof...(A); ++i) {
        offsets[i] = (bytes + alignments[i] - 1) / alignments[i] * alignments[i];
        bytes = offsets[i] + sizes[i];
      }
    }
  };
  static constexpr Layout layout{};

  template <void (*kernel)(A...)>
  static void run(const char *arguments, Size3 grid, Size3 block) {
    call<kernel>(arguments, grid, block, std::index_sequence_for<A...>());
  }

  template <void (*kernel)(A...), size_t... I>
  static void call(const char *arguments, Size3 grid, Size3 block, std::index_sequence<I...>) {
    every_thread(grid, block, [=] { kernel(*reinterpret_cast<const A *>(arguments + layout.offsets[I])...); });
  }
};

template <auto kernel>
KernelEntry entry(const char *name) {
  using S = Signature<std::remove_pointer_t<decltype(kernel)>>;
  return {name, S::layout.bytes, sizeof(S::layout.pointers), S::layout.offsets, S::layout.pointers, S::template run<kernel>};
}

}  // namespace

#define ENTRY(kernel) entry<&kernel>(#kernel),
extern "C" const KernelEntry fakecuda_kernels[] = {KERNELS{}};
