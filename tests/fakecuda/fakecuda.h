// A CUDA driver without a GPU, for tests: what its three sources share. Rules are cuda.h's; where CUDA is lenient and a GPU
// would then give wrong pictures, the fake is strict.
//
// Work waits in its stream until somebody synchronizes, and then runs in the thread that waits. "Device" memory is host
// memory with a guard page behind it; a freed address is never used again. A piece of work takes 1 ms of the driver's clock.
#pragma once

#include <cuda.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

struct CUctx_st {  // a device's primary context; there are no others
  int device = 0, retained = 0;
  CUresult dead = CUDA_SUCCESS;  // set by a failed kernel: every later call of the context gives it
};

struct CUevent_st {
  CUcontext context;
  CUstream stream = nullptr;
  int records = 0, completed = 0;  // a wait is for the records so far, not for later ones
  bool captured = false;
  double ms = 0;
};

struct Work {
  std::function<CUresult()> run;
  std::shared_ptr<CUevent_st> records = nullptr;
  std::string kind = "";  // cuGraphExecUpdate wants the same kinds in the same order
};

struct CUgraph_st {
  std::vector<Work> work;
};

struct CUgraphExec_st {
  CUcontext context;
  std::vector<Work> work;
};

struct Capture {
  CUstreamCaptureMode mode;
  std::thread::id thread;
  bool broken = false;
  std::vector<Work> work;
};

struct CUstream_st {
  CUcontext context;
  unsigned flags;
  std::deque<Work> queue;
  std::unique_ptr<Capture> capture;
};

struct KernelEntry;
struct CUmod_st {
  CUcontext context;
};
struct CUfunc_st {
  CUmodule module;
  const KernelEntry *entry;
};

enum class Where { device, pinned, mapped };  // mapped: pinned memory whose address the GPU may use

struct Allocation {
  CUcontext context;
  Where where;
  size_t bytes, pages_bytes;
  char *pages;
};

struct Driver {
  std::recursive_mutex lock;  // one GPU, whichever thread waits for it
  bool initialised = false, integrated = false;
  int devices = 1, installed = 1;
  std::vector<int> visible;  // of those installed, in this process's order
  int major = 8, minor = 9, served = 13000;
  size_t total_bytes = size_t(8) << 30;
  double clock_ms = 0;
  std::vector<CUctx_st> primary;
  std::map<int, int> retains;  // since the start, by device: who touched which GPU
  std::map<uintptr_t, Allocation> memory;
  std::map<CUevent, std::shared_ptr<CUevent_st>> events;
  std::map<CUstream, std::unique_ptr<CUstream_st>> streams;
  std::map<CUgraph, std::unique_ptr<CUgraph_st>> graphs;
  std::map<CUgraphExec, std::unique_ptr<CUgraphExec_st>> executables;
  std::map<CUmodule, std::unique_ptr<CUmod_st>> modules;
  std::map<std::string, int> errors;  // "cuFunction CODE" -> times
  int launches = 0, captures = 0;
  Driver();
  ~Driver();
};

Driver &gpu();

// Every function of the driver: FAKE(cuThing, (parameters), { body }). `need_context` and the like return from the body.
#define FAKE(name, parameters, ...)                                    \
  extern "C" CUresult name parameters {                                \
    std::lock_guard<std::recursive_mutex> guard(gpu().lock);           \
    const CUresult result = [&]() -> CUresult __VA_ARGS__();           \
    if (result != CUDA_SUCCESS) gpu().errors[#name " " + std::to_string(result)]++; \
    return result;                                                     \
  }
#define REQUIRE(condition, code) \
  if (!(condition)) return code
#define CHECKED(call) \
  if (CUresult code = (call)) return code

CUresult need_context();               // one is current in this thread, and alive
CUcontext current();
CUresult unsafe();                     // a call that no capture of this thread allows; the capture is broken by it
CUresult find(CUstream handle, CUstream_st **stream);  // of the current context; 0 is the default stream
CUresult put(CUstream_st *stream, Work work);
CUresult run(CUstream_st *stream);     // to its end
CUresult run_until(CUstream_st *stream, const std::function<bool()> &done);
CUresult run_all(CUcontext context, bool blocking_only = false);
const Allocation *holding(uintptr_t address, size_t bytes);
bool reachable(uintptr_t address, size_t bytes, CUcontext context);  // from the GPU
