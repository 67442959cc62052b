// Devices, contexts and memory of the fake driver, and the report at its end.
#include "fakecuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static thread_local std::vector<CUcontext> contexts;  // the calling thread's, the last is current

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

Driver::Driver() {
  devices = number("FAKECUDA_DEVICES", 1), integrated = number("FAKECUDA_INTEGRATED", 0);
  const int capability = number("FAKECUDA_CAPABILITY", integrated ? 87 : 89);
  major = capability / 10, minor = capability % 10, served = number("FAKECUDA_SERVES", 13000);
  total_bytes = size_t(number("FAKECUDA_MIB", 8192)) << 20;
  // CUDA_VISIBLE_DEVICES: "2" or "0,2". A process sees those, counted from 0; the report counts all of them.
  const char *list = getenv("CUDA_VISIBLE_DEVICES");
  for (int i = 0; !list && i < devices; ++i) visible.push_back(i);
  for (const char *at = list; at; at = strchr(at, ','), at = at ? at + 1 : nullptr)
    if (*at >= '0' && *at <= '9' && atoi(at) < devices) visible.push_back(atoi(at));
  installed = devices, devices = visible.size();
  primary.resize(devices);
  for (int i = 0; i < devices; ++i) primary[i].device = i;
}

// One line of JSON for FAKECUDA_REPORT: what is still there when the process ends, and what went wrong.
Driver::~Driver() {
  const char *path = getenv("FAKECUDA_REPORT");
  FILE *file = path && initialised ? fopen(path, "a") : nullptr;
  if (!file) return;
  size_t device = 0, pinned = 0, retained = 0;
  for (auto &[address, piece] : memory) (piece.where == Where::device ? device : pinned)++;
  for (auto &context : primary) retained += context.retained;
  fprintf(file, "{\"device_memory\": %zu, \"pinned_memory\": %zu, \"streams\": %zu, \"events\": %zu, \"graphs\": %zu, ",
          device, pinned, streams.size(), events.size(), graphs.size() + executables.size());
  fprintf(file, "\"modules\": %zu, \"contexts\": %zu, \"launches\": %d, \"captures\": %d, \"retains\": [", modules.size(),
          retained, launches, captures);
  for (int i = 0; i < installed; ++i) fprintf(file, "%s%d", i ? ", " : "", retains[i]);
  fprintf(file, "], \"errors\": {");
  const char *comma = "";
  for (auto &[what, times] : errors) fprintf(file, "%s\"%s\": %d", comma, what.c_str(), times), comma = ", ";
  fprintf(file, "}}\n");
  fclose(file);
}

Driver &gpu() {
  static Driver driver;
  return driver;
}

CUcontext current() { return contexts.empty() ? nullptr : contexts.back(); }

CUresult need_context() {
  REQUIRE(gpu().initialised, CUDA_ERROR_NOT_INITIALIZED);
  REQUIRE(current() && current()->retained, CUDA_ERROR_INVALID_CONTEXT);
  return current()->dead;
}

static bool known(CUdevice device) { return device >= 0 && device < gpu().devices; }

// ---------------------------------------------------------------------------------------------------------------------
// The driver and its devices

FAKE(cuInit, (unsigned flags), {
  REQUIRE(flags == 0, CUDA_ERROR_INVALID_VALUE);
  REQUIRE(gpu().devices, CUDA_ERROR_NO_DEVICE);
  gpu().initialised = true;
  return CUDA_SUCCESS;
})
FAKE(cuDriverGetVersion, (int *version), { return *version = gpu().served, CUDA_SUCCESS; })
FAKE(cuDeviceGetCount, (int *count), {
  REQUIRE(gpu().initialised, CUDA_ERROR_NOT_INITIALIZED);
  return *count = gpu().devices, CUDA_SUCCESS;
})
FAKE(cuDeviceGet, (CUdevice *device, int ordinal), {
  REQUIRE(gpu().initialised, CUDA_ERROR_NOT_INITIALIZED);
  REQUIRE(known(ordinal), CUDA_ERROR_INVALID_DEVICE);
  return *device = ordinal, CUDA_SUCCESS;
})
FAKE(cuDeviceGetName, (char *name, int length, CUdevice device), {
  REQUIRE(known(device), CUDA_ERROR_INVALID_DEVICE);
  return snprintf(name, length, "Fake GPU %d", device), CUDA_SUCCESS;
})
FAKE(cuDeviceTotalMem_v2, (size_t * bytes, CUdevice device), {
  REQUIRE(known(device), CUDA_ERROR_INVALID_DEVICE);
  return *bytes = gpu().total_bytes, CUDA_SUCCESS;
})
FAKE(cuDeviceComputeCapability, (int *major, int *minor, CUdevice device), {
  REQUIRE(known(device), CUDA_ERROR_INVALID_DEVICE);
  return *major = gpu().major, *minor = gpu().minor, CUDA_SUCCESS;
})
FAKE(cuDeviceGetAttribute, (int *value, CUdevice_attribute attribute, CUdevice device), {
  REQUIRE(known(device), CUDA_ERROR_INVALID_DEVICE);
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_INTEGRATED: return *value = gpu().integrated, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return *value = gpu().major, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return *value = gpu().minor, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return *value = 1024, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return *value = 1, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: return *value = 1, CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
})
FAKE(cuGetErrorString, (CUresult code, const char **text), {
  static std::map<CUresult, std::string> texts;
  std::string &kept = texts[code];
  kept = "the fake driver's error " + std::to_string(code);
  return *text = kept.c_str(), CUDA_SUCCESS;
})

// ---------------------------------------------------------------------------------------------------------------------
// Contexts

FAKE(cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device), {
  REQUIRE(gpu().initialised, CUDA_ERROR_NOT_INITIALIZED);
  REQUIRE(known(device), CUDA_ERROR_INVALID_DEVICE);
  gpu().primary[device].retained++, gpu().retains[gpu().visible[device]]++;
  return *context = &gpu().primary[device], CUDA_SUCCESS;
})
FAKE(cuDevicePrimaryCtxRelease_v2, (CUdevice device), {
  REQUIRE(known(device) && gpu().primary[device].retained, CUDA_ERROR_INVALID_CONTEXT);
  if (gpu().primary[device].retained == 1) run_all(&gpu().primary[device]);
  gpu().primary[device].retained--;
  return CUDA_SUCCESS;
})
FAKE(cuDevicePrimaryCtxGetState, (CUdevice device, unsigned *flags, int *active), {
  REQUIRE(known(device), CUDA_ERROR_INVALID_DEVICE);
  return *flags = 0, *active = gpu().primary[device].retained > 0, CUDA_SUCCESS;
})
FAKE(cuCtxPushCurrent_v2, (CUcontext context), {
  REQUIRE(context && context->retained, CUDA_ERROR_INVALID_CONTEXT);
  return contexts.push_back(context), CUDA_SUCCESS;
})
FAKE(cuCtxPopCurrent_v2, (CUcontext * context), {
  REQUIRE(current(), CUDA_ERROR_INVALID_CONTEXT);
  if (context) *context = current();
  return contexts.pop_back(), CUDA_SUCCESS;
})
FAKE(cuCtxSetCurrent, (CUcontext context), {
  REQUIRE(!context || context->retained, CUDA_ERROR_INVALID_CONTEXT);
  if (!contexts.empty()) contexts.pop_back();
  if (context) contexts.push_back(context);
  return CUDA_SUCCESS;
})
FAKE(cuCtxGetCurrent, (CUcontext * context), { return *context = current(), CUDA_SUCCESS; })
FAKE(cuCtxGetDevice, (CUdevice * device), {
  CHECKED(need_context());
  return *device = current()->device, CUDA_SUCCESS;
})
FAKE(cuCtxSynchronize, (), {
  CHECKED(need_context());
  CHECKED(unsafe());
  return run_all(current());
})

// ---------------------------------------------------------------------------------------------------------------------
// Memory

static CUresult allocate(size_t bytes, Where where, uintptr_t *address) {
  CHECKED(need_context());
  CHECKED(unsafe());
  REQUIRE(bytes, CUDA_ERROR_INVALID_VALUE);
  size_t taken = bytes;
  for (auto &[other, piece] : gpu().memory) taken += piece.where == Where::device ? piece.bytes : 0;
  REQUIRE(where != Where::device || taken <= gpu().total_bytes, CUDA_ERROR_OUT_OF_MEMORY);
  const size_t page = sysconf(_SC_PAGESIZE), rounded = (bytes + page - 1) / page * page;
  char *pages = static_cast<char *>(
      mmap(nullptr, rounded + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  REQUIRE(pages != MAP_FAILED, CUDA_ERROR_OUT_OF_MEMORY);
  mprotect(pages + rounded, page, PROT_NONE);
  memset(pages, 0xA5, rounded);  // not zero: nobody may rely on it
  *address = reinterpret_cast<uintptr_t>(pages) + (rounded - bytes) / 256 * 256;  // aligned, and near the guard page
  gpu().memory[*address] = {current(), where, bytes, rounded + page, pages};
  return CUDA_SUCCESS;
}

static CUresult release(uintptr_t address, bool device) {
  CHECKED(need_context());
  CHECKED(unsafe());
  auto found = gpu().memory.find(address);
  REQUIRE(found != gpu().memory.end() && (found->second.where == Where::device) == device, CUDA_ERROR_INVALID_VALUE);
  REQUIRE(found->second.context == current(), CUDA_ERROR_INVALID_CONTEXT);
  run_all(found->second.context);  // CUDA waits too
  mmap(found->second.pages, found->second.pages_bytes, PROT_NONE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);  // the address stays taken, the memory does not
  gpu().memory.erase(found);
  return CUDA_SUCCESS;
}

const Allocation *holding(uintptr_t address, size_t bytes) {
  auto after = gpu().memory.upper_bound(address);
  if (after == gpu().memory.begin()) return nullptr;
  auto &[start, piece] = *--after;
  return address + bytes <= start + piece.bytes ? &piece : nullptr;
}

bool reachable(uintptr_t address, size_t bytes, CUcontext context) {
  const Allocation *piece = holding(address, bytes);
  return piece && piece->where != Where::pinned && piece->context == context;
}

FAKE(cuMemAlloc_v2, (CUdeviceptr * address, size_t bytes), {
  uintptr_t where;
  CHECKED(allocate(bytes, Where::device, &where));
  return *address = where, CUDA_SUCCESS;
})
FAKE(cuMemFree_v2, (CUdeviceptr address), { return release(address, true); })
FAKE(cuMemHostAlloc, (void **pointer, size_t bytes, unsigned flags), {
  const Where where = flags & CU_MEMHOSTALLOC_DEVICEMAP ? Where::mapped : Where::pinned;
  return allocate(bytes, where, reinterpret_cast<uintptr_t *>(pointer));
})
FAKE(cuMemAllocHost_v2, (void **pointer, size_t bytes), {
  return allocate(bytes, Where::pinned, reinterpret_cast<uintptr_t *>(pointer));
})
FAKE(cuMemFreeHost, (void *pointer), { return release(reinterpret_cast<uintptr_t>(pointer), false); })
FAKE(cuMemHostGetDevicePointer_v2, (CUdeviceptr * address, void *pointer, unsigned flags), {
  CHECKED(need_context());
  const Allocation *piece = holding(reinterpret_cast<uintptr_t>(pointer), 1);
  REQUIRE(flags == 0 && piece && piece->where == Where::mapped, CUDA_ERROR_INVALID_VALUE);
  return *address = reinterpret_cast<uintptr_t>(pointer), CUDA_SUCCESS;
})
FAKE(cuMemGetInfo_v2, (size_t * free_bytes, size_t *total), {
  CHECKED(need_context());
  *free_bytes = *total = gpu().total_bytes;
  for (auto &[address, piece] : gpu().memory) *free_bytes -= piece.where == Where::device ? piece.bytes : 0;
  return CUDA_SUCCESS;
})

// Copies. Asynchronous ones need pinned memory: CUDA takes other memory too, but then waits, and nothing overlaps.

static CUresult copy(CUdeviceptr device, const void *host, size_t bytes, CUstream handle, bool in) {
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  const uintptr_t near = reinterpret_cast<uintptr_t>(host);
  const CUcontext context = current();
  auto allowed = [=] {
    const Allocation *piece = holding(near, bytes);
    return piece && piece->where != Where::device && reachable(device, bytes, context);
  };
  REQUIRE(allowed(), CUDA_ERROR_INVALID_VALUE);
  return put(stream, {[=] {
    REQUIRE(allowed(), CUDA_ERROR_ILLEGAL_ADDRESS);  // freed since, or a graph that outlived its memory
    void *far = reinterpret_cast<void *>(device), *here = reinterpret_cast<void *>(near);
    return memcpy(in ? far : here, in ? here : far, bytes), CUDA_SUCCESS;
  }, nullptr, in ? "copy in" : "copy out"});
}

FAKE(cuMemcpyHtoDAsync_v2, (CUdeviceptr device, const void *host, size_t bytes, CUstream stream), {
  return copy(device, host, bytes, stream, true);
})
FAKE(cuMemcpyDtoHAsync_v2, (void *host, CUdeviceptr device, size_t bytes, CUstream stream), {
  return copy(device, host, bytes, stream, false);
})

static CUresult copy_now(CUdeviceptr device, void *host, size_t bytes, bool in) {
  CHECKED(need_context());
  CHECKED(unsafe());
  CHECKED(run_all(current(), true));  // only streams that wait for the default stream
  REQUIRE(reachable(device, bytes, current()), CUDA_ERROR_INVALID_VALUE);
  void *far = reinterpret_cast<void *>(device);
  return memcpy(in ? far : host, in ? host : far, bytes), CUDA_SUCCESS;
}

FAKE(cuMemcpyHtoD_v2, (CUdeviceptr device, const void *host, size_t bytes), {
  return copy_now(device, const_cast<void *>(host), bytes, true);
})
FAKE(cuMemcpyDtoH_v2, (void *host, CUdeviceptr device, size_t bytes), { return copy_now(device, host, bytes, false); })

// For tests: how many there are of "device_memory", "pinned_memory", "streams", "events", "graphs", "modules".
extern "C" int fakecuda_count(const char *kind) {
  std::lock_guard<std::recursive_mutex> guard(gpu().lock);
  const std::string name = kind;
  size_t device = 0;
  for (auto &[address, piece] : gpu().memory) device += piece.where == Where::device;
  if (name == "device_memory") return device;
  if (name == "pinned_memory") return gpu().memory.size() - device;
  if (name == "streams") return gpu().streams.size();
  if (name == "events") return gpu().events.size();
  if (name == "graphs") return gpu().graphs.size() + gpu().executables.size();
  if (name == "modules") return gpu().modules.size();
  if (name == "launches") return gpu().launches;
  if (name == "captures") return gpu().captures;
  return -1;
}

// For tests that break a context on purpose: alive again, which on a GPU only a new process is.
extern "C" CUresult fakecuda_revive() {
  for (auto &context : gpu().primary) context.dead = CUDA_SUCCESS;
  return CUDA_SUCCESS;
}
