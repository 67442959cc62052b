// Modules and kernels of the fake driver: code is looked up in the library FAKECUDA_KERNELS, but a fatbin must be one that
// this GPU could run.
#include "fakecuda.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

// ---------------------------------------------------------------------------------------------------------------------
// Fatbins. Layout: a 16-byte header (magic, version, header size, size of the rest), then entries, each with a header
// (kind 1 PTX or 2 machine code at 0, header size at 4, size at 8, compute capability at 28), as nvcc 13.0 writes them.

template <class T>
static T read_at(const char *data, size_t offset) {
  T value;
  memcpy(&value, data + offset, sizeof value);
  return value;
}

static bool runs(unsigned kind, unsigned capability) {
  const unsigned major = gpu().major, minor = gpu().minor;
  if (kind == 1) return capability <= major * 10 + minor;  // PTX: compiled by the driver for any later GPU
  return capability / 10 == major && capability % 10 <= minor;
}

// PTX as text: `.version 6.3` and `.target sm_75`. A driver of CUDA 11, 12, 13 reads the language up to 7, 8, 9.
static CUresult check_text(const char *text) {
  const char *version = strstr(text, "\n.version "), *target = strstr(text, "\n.target sm_");
  REQUIRE(version && target, CUDA_ERROR_INVALID_PTX);
  REQUIRE(atoi(version + 10) + 4 <= gpu().served / 1000, CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
  return runs(1, atoi(target + 12)) ? CUDA_SUCCESS : CUDA_ERROR_NO_BINARY_FOR_GPU;
}

static CUresult check_image(const char *image) {
  if (image[0] == '/' || image[0] == '.') return check_text(image);
  if (read_at<uint32_t>(image, 0) != 0xBA55ED50) return CUDA_ERROR_INVALID_IMAGE;
  const size_t end = read_at<uint16_t>(image, 6) + read_at<uint64_t>(image, 8);
  for (size_t at = read_at<uint16_t>(image, 6); at < end;) {
    if (runs(read_at<uint16_t>(image, at), read_at<uint32_t>(image, at + 28))) return CUDA_SUCCESS;
    at += read_at<uint32_t>(image, at + 4) + read_at<uint64_t>(image, at + 8);
  }
  return CUDA_ERROR_NO_BINARY_FOR_GPU;
}

static const KernelEntry *kernel(const char *name) {
  static void *library = dlopen(getenv("FAKECUDA_KERNELS"), RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "fakecuda: FAKECUDA_KERNELS: %s\n", dlerror()), nullptr;
  for (auto *entry = static_cast<const KernelEntry *>(dlsym(library, KERNEL_TABLE)); entry->name; ++entry)
    if (!strcmp(entry->name, name)) return entry;
  return nullptr;
}

FAKE(cuModuleLoadDataEx, (CUmodule * module, const void *image, unsigned, CUjit_option *, void **), {
  CHECKED(need_context());
  CHECKED(unsafe());
  CHECKED(check_image(static_cast<const char *>(image)));
  auto made = std::make_unique<CUmod_st>(CUmod_st{current()});
  *module = made.get();
  gpu().modules[*module] = std::move(made);
  return CUDA_SUCCESS;
})
extern "C" CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr);
}
FAKE(cuModuleUnload, (CUmodule module), {
  CHECKED(need_context());
  REQUIRE(gpu().modules.count(module), CUDA_ERROR_INVALID_HANDLE);
  REQUIRE(module->context == current(), CUDA_ERROR_INVALID_CONTEXT);
  run_all(current());
  return gpu().modules.erase(module), CUDA_SUCCESS;
})
FAKE(cuModuleGetFunction, (CUfunction * function, CUmodule module, const char *name), {
  CHECKED(need_context());
  REQUIRE(gpu().modules.count(module), CUDA_ERROR_INVALID_HANDLE);
  const KernelEntry *entry = kernel(name);
  REQUIRE(entry, CUDA_ERROR_NOT_FOUND);
  static std::deque<CUfunc_st> made;  // kept, so that one of an unloaded module is an error and no crash
  return *function = &made.emplace_back(CUfunc_st{module, entry}), CUDA_SUCCESS;
})

// ---------------------------------------------------------------------------------------------------------------------
// Kernels

static thread_local sigjmp_buf way_back;
static thread_local volatile bool in_kernel = false;

static void on_fault(int, siginfo_t *, void *) {
  if (in_kernel) siglongjmp(way_back, 1);
  signal(SIGSEGV, SIG_DFL);  // not ours: the faulting instruction runs again and ends the process
}

// A kernel that reads or writes where nothing is gives CUDA_ERROR_ILLEGAL_ADDRESS, as on a GPU.
static CUresult guarded(const std::function<void()> &call) {
  struct sigaction ours = {}, before;
  ours.sa_sigaction = on_fault, ours.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &ours, &before);
  CUresult result = CUDA_SUCCESS;
  if (sigsetjmp(way_back, 1)) {
    result = CUDA_ERROR_ILLEGAL_ADDRESS;
  } else {
    in_kernel = true;
    call();
  }
  in_kernel = false;
  sigaction(SIGSEGV, &before, nullptr);
  return result;
}

static CUresult run_kernel(const KernelEntry *entry, const std::string &arguments, Size3 grid, Size3 block, CUcontext context) {
  for (int i = 0; i < entry->parameters; ++i)
    if (entry->is_pointer[i] && !reachable(read_at<uintptr_t>(arguments.data(), entry->offsets[i]), 1, context))
      return CUDA_ERROR_ILLEGAL_ADDRESS;
  return guarded([&] { entry->run(arguments.data(), grid, block); });
}

// The argument buffer of `extra` (CU_LAUNCH_PARAM_...), or nothing.
static std::string buffer_of(void **extra) {
  const char *buffer = nullptr;
  size_t bytes = 0;
  for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = static_cast<const char *>(extra[1]);
    if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<size_t *>(extra[1]);
  }
  return buffer ? std::string(buffer, bytes) : std::string();
}

FAKE(cuLaunchKernel, (CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared_bytes, CUstream handle, void **parameters, void **extra), {
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  REQUIRE(gpu().modules.count(function->module) && function->module->context == current(), CUDA_ERROR_INVALID_HANDLE);
  REQUIRE(gx && gy && gz && bx && by && bz && gy <= 65535 && gz <= 65535, CUDA_ERROR_INVALID_VALUE);
  REQUIRE(bx * by * bz <= 1024 && !shared_bytes, CUDA_ERROR_INVALID_VALUE);
  REQUIRE(!parameters, CUDA_ERROR_NOT_SUPPORTED);  // PyCUDA packs a buffer
  const KernelEntry *entry = function->entry;
  const std::string arguments = buffer_of(extra);
  REQUIRE(arguments.size() == entry->argument_bytes, CUDA_ERROR_INVALID_VALUE);  // CUDA reads on beyond the end
  const Size3 grid{gx, gy, gz}, block{bx, by, bz};
  const CUcontext context = current();
  return put(stream, {[=] { return run_kernel(entry, arguments, grid, block, context); }, nullptr, entry->name});
})

// PyCUDA calls it before every launch; cuLaunchKernel has its own block.
FAKE(cuFuncSetBlockShape, (CUfunction, int x, int y, int z), {
  CHECKED(need_context());
  return x > 0 && y > 0 && z > 0 && x * y * z <= 1024 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
})

// What PyCUDA links and the fake does not serve (a file of stubs calls it).
extern "C" int fakecuda_absent(const char *name) {
  fprintf(stderr, "fakecuda: %s is not served\n", name);
  gpu().errors[std::string(name) + " absent"]++;
  return CUDA_ERROR_NOT_SUPPORTED;
}
