// All kernels as one module, built into one fatbin by fatbin.py.
#include "overlay.cu"
#include "overlay_yuv.cu"
#include "preprocess.cu"
#include "preprocess_yuv.cu"
#include "upsample_argmax.cu"
