// All kernels as one module, built into one fatbin by fatbin.py.
#include "overlay.cu"
#include "preprocess.cu"
#include "upsample_argmax.cu"
