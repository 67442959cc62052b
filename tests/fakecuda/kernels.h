// What a library of kernels tells the fake driver: the parameters of each kernel, and how to run all of its threads.
#pragma once

#include <stddef.h>

struct Size3 {
  unsigned x, y, z;
};

struct KernelEntry {
  const char *name;
  size_t argument_bytes;  // as cuLaunchKernel gets them, each at a multiple of its own alignment
  int parameters;
  const size_t *offsets;
  const bool *is_pointer;
  void (*run)(const char *arguments, Size3 grid, Size3 block);  // every thread of every block, one after the other
};

// The library's symbol: entries, ended by one without a name.
#define KERNEL_TABLE "fakecuda_kernels"
