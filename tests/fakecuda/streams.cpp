// Streams, events, captures and graphs of the fake driver.
#include "fakecuda.h"

#undef cuEventElapsedTime
#undef cuStreamGetCaptureInfo

static CUstream_st *default_stream(CUcontext context) {
  static std::map<CUcontext, CUstream_st> made;
  return &made.try_emplace(context, CUstream_st{context, CU_STREAM_DEFAULT, {}, nullptr}).first->second;
}

CUresult find(CUstream handle, CUstream_st **stream) {
  if (!handle) return *stream = default_stream(current()), CUDA_SUCCESS;
  auto found = gpu().streams.find(handle);
  REQUIRE(found != gpu().streams.end() && handle->context == current(), CUDA_ERROR_INVALID_HANDLE);
  return *stream = handle, CUDA_SUCCESS;
}

static CUresult find(CUevent handle, std::shared_ptr<CUevent_st> *event) {
  auto found = gpu().events.find(handle);
  REQUIRE(found != gpu().events.end() && handle->context == current(), CUDA_ERROR_INVALID_HANDLE);
  return *event = found->second, CUDA_SUCCESS;
}

static bool done(const CUevent_st &event) { return event.completed >= event.records; }

static void pend(const Work &work, CUstream_st *stream) {
  if (work.records) work.records->records++, work.records->stream = stream;
}

CUresult put(CUstream_st *stream, Work work) {
  if (stream->capture) {
    REQUIRE(!stream->capture->broken, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    return stream->capture->work.push_back(std::move(work)), CUDA_SUCCESS;
  }
  pend(work, stream);
  return stream->queue.push_back(std::move(work)), CUDA_SUCCESS;
}

CUresult run_until(CUstream_st *stream, const std::function<bool()> &done) {
  while (!done() && !stream->queue.empty()) {
    const Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    gpu().clock_ms += 1;
    const CUresult code = stream->context->dead ? stream->context->dead : work.run();
    if (work.records) work.records->completed++, work.records->ms = gpu().clock_ms;
    if (code) stream->context->dead = code;
  }
  return stream->context->dead;
}

CUresult run(CUstream_st *stream) {
  return run_until(stream, [] { return false; });
}

CUresult run_all(CUcontext context, bool blocking_only) {
  run(default_stream(context));
  for (auto &[handle, stream] : gpu().streams)
    if (stream->context == context && !(blocking_only && stream->flags & CU_STREAM_NON_BLOCKING)) run(stream.get());
  return context->dead;
}

CUresult unsafe() {
  bool forbidden = false;
  for (auto &[handle, stream] : gpu().streams) {
    Capture *capture = stream->capture.get();
    if (!capture || capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    if (capture->mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL && capture->thread != std::this_thread::get_id()) continue;
    capture->broken = forbidden = true;
  }
  return forbidden ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

static CUresult no_capture(CUstream_st *stream) {  // a call that ends the capture of this stream, whoever makes it
  if (!stream->capture) return unsafe();
  stream->capture->broken = true;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

// ---------------------------------------------------------------------------------------------------------------------
// Streams

FAKE(cuStreamCreate, (CUstream * stream, unsigned flags), {
  CHECKED(need_context());
  REQUIRE(flags <= CU_STREAM_NON_BLOCKING, CUDA_ERROR_INVALID_VALUE);
  auto made = std::make_unique<CUstream_st>(CUstream_st{current(), flags, {}, nullptr});
  *stream = made.get();
  gpu().streams[*stream] = std::move(made);
  return CUDA_SUCCESS;
})
FAKE(cuStreamDestroy_v2, (CUstream handle), {
  CHECKED(need_context());
  REQUIRE(handle, CUDA_ERROR_INVALID_HANDLE);
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  run(stream);  // CUDA lets it finish by itself
  for (auto &[other, event] : gpu().events)
    if (event->stream == handle) event->stream = nullptr;
  gpu().streams.erase(handle);
  return CUDA_SUCCESS;
})
FAKE(cuStreamSynchronize, (CUstream handle), {
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  CHECKED(no_capture(stream));
  return run(stream);
})
FAKE(cuStreamQuery, (CUstream handle), {  // the GPU goes on by one piece a query
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  CHECKED(no_capture(stream));
  bool asked = false;
  CHECKED(run_until(stream, [&] { return std::exchange(asked, true); }));
  return stream->queue.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
})
FAKE(cuStreamWaitEvent, (CUstream handle, CUevent event, unsigned), {
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  std::shared_ptr<CUevent_st> found;
  CHECKED(find(event, &found));
  REQUIRE(!found->captured, CUDA_ERROR_NOT_SUPPORTED);  // fork and join within a capture are not served
  return put(stream, {[found, records = found->records] {
    if (found->stream) run_until(found->stream, [&] { return found->completed >= records; });
    return CUDA_SUCCESS;
  }, nullptr, "wait"});
})

// ---------------------------------------------------------------------------------------------------------------------
// Events

FAKE(cuEventCreate, (CUevent * event, unsigned), {
  CHECKED(need_context());
  auto made = std::make_shared<CUevent_st>(CUevent_st{current()});
  *event = made.get();
  gpu().events[*event] = made;
  return CUDA_SUCCESS;
})
FAKE(cuEventDestroy_v2, (CUevent event), {
  CHECKED(need_context());
  REQUIRE(gpu().events.erase(event), CUDA_ERROR_INVALID_HANDLE);
  return CUDA_SUCCESS;
})
FAKE(cuEventRecordWithFlags, (CUevent event, CUstream handle, unsigned flags), {
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  std::shared_ptr<CUevent_st> found;
  CHECKED(find(event, &found));
  const bool external = flags & CU_EVENT_RECORD_EXTERNAL;
  REQUIRE(!external || stream->capture, CUDA_ERROR_INVALID_VALUE);
  found->captured = stream->capture && !external;  // only an edge of the graph: it never has a time
  if (found->captured) return CUDA_SUCCESS;
  return put(stream, {[] { return CUDA_SUCCESS; }, found, "record"});
})
extern "C" CUresult cuEventRecord(CUevent event, CUstream stream) { return cuEventRecordWithFlags(event, stream, 0); }

FAKE(cuEventSynchronize, (CUevent event), {
  CHECKED(need_context());
  std::shared_ptr<CUevent_st> found;
  CHECKED(find(event, &found));
  REQUIRE(!found->captured, CUDA_ERROR_CAPTURED_EVENT);
  CHECKED(unsafe());
  if (found->stream) return run_until(found->stream, [&] { return done(*found); });
  return CUDA_SUCCESS;
})
FAKE(cuEventQuery, (CUevent event), {
  CHECKED(need_context());
  std::shared_ptr<CUevent_st> found;
  CHECKED(find(event, &found));
  REQUIRE(!found->captured, CUDA_ERROR_CAPTURED_EVENT);
  CHECKED(unsafe());
  bool asked = false;
  if (found->stream) CHECKED(run_until(found->stream, [&] { return done(*found) || std::exchange(asked, true); }));
  return done(*found) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
})
FAKE(cuEventElapsedTime, (float *ms, CUevent earlier, CUevent later), {
  CHECKED(need_context());
  std::shared_ptr<CUevent_st> before;
  std::shared_ptr<CUevent_st> after;
  CHECKED(find(earlier, &before));
  CHECKED(find(later, &after));
  REQUIRE(before->records && after->records, CUDA_ERROR_INVALID_HANDLE);
  REQUIRE(done(*before) && done(*after), CUDA_ERROR_NOT_READY);
  return *ms = after->ms - before->ms, CUDA_SUCCESS;
})
extern "C" CUresult cuEventElapsedTime_v2(float *ms, CUevent a, CUevent b) { return cuEventElapsedTime(ms, a, b); }

// ---------------------------------------------------------------------------------------------------------------------
// Graphs

FAKE(cuStreamBeginCapture_v2, (CUstream handle, CUstreamCaptureMode mode), {
  CHECKED(need_context());
  REQUIRE(handle, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  REQUIRE(!stream->capture, CUDA_ERROR_ILLEGAL_STATE);
  stream->capture = std::make_unique<Capture>(Capture{mode, std::this_thread::get_id(), false, {}});
  return CUDA_SUCCESS;
})
FAKE(cuStreamEndCapture, (CUstream handle, CUgraph *graph), {
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  REQUIRE(stream->capture, CUDA_ERROR_ILLEGAL_STATE);
  const bool same = stream->capture->thread == std::this_thread::get_id();
  REQUIRE(same || stream->capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  const std::unique_ptr<Capture> capture = std::move(stream->capture);
  *graph = nullptr;
  REQUIRE(!capture->broken, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  auto made = std::make_unique<CUgraph_st>(CUgraph_st{capture->work});
  *graph = made.get();
  gpu().graphs[*graph] = std::move(made);
  gpu().captures++;
  return CUDA_SUCCESS;
})
FAKE(cuStreamIsCapturing, (CUstream handle, CUstreamCaptureStatus *status), {
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  *status = !stream->capture          ? CU_STREAM_CAPTURE_STATUS_NONE
            : stream->capture->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                      : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
})
FAKE(cuGraphInstantiateWithFlags, (CUgraphExec * executable, CUgraph graph, unsigned long long), {
  CHECKED(need_context());
  REQUIRE(gpu().graphs.count(graph), CUDA_ERROR_INVALID_VALUE);
  auto made = std::make_unique<CUgraphExec_st>(CUgraphExec_st{current(), graph->work});
  *executable = made.get();
  gpu().executables[*executable] = std::move(made);
  return CUDA_SUCCESS;
})
FAKE(cuGraphExecUpdate_v2, (CUgraphExec executable, CUgraph graph, CUgraphExecUpdateResultInfo *info), {
  CHECKED(need_context());
  REQUIRE(gpu().executables.count(executable) && gpu().graphs.count(graph), CUDA_ERROR_INVALID_VALUE);
  bool same = executable->work.size() == graph->work.size();
  for (size_t i = 0; same && i < graph->work.size(); ++i) same = executable->work[i].kind == graph->work[i].kind;
  info->result = same ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
  REQUIRE(same, CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
  return executable->work = graph->work, CUDA_SUCCESS;
})
FAKE(cuGraphLaunch, (CUgraphExec executable, CUstream handle), {
  CHECKED(need_context());
  REQUIRE(gpu().executables.count(executable) && executable->context == current(), CUDA_ERROR_INVALID_VALUE);
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  REQUIRE(!stream->capture, CUDA_ERROR_NOT_SUPPORTED);  // a graph within a graph
  gpu().launches++;
  for (const Work &work : executable->work) CHECKED(put(stream, work));
  return CUDA_SUCCESS;
})
FAKE(cuGraphDestroy, (CUgraph graph), {
  REQUIRE(gpu().graphs.erase(graph), CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;
})
FAKE(cuGraphExecDestroy, (CUgraphExec executable), {
  REQUIRE(gpu().executables.erase(executable), CUDA_ERROR_INVALID_VALUE);
  return CUDA_SUCCESS;
})

// ---------------------------------------------------------------------------------------------------------------------
// A function of the host, in its turn: the stand-in for TensorRT computes with it.

FAKE(cuLaunchHostFunc, (CUstream handle, CUhostFn function, void *data), {
  CHECKED(need_context());
  CUstream_st *stream;
  CHECKED(find(handle, &stream));
  return put(stream, {[=] { return function(data), CUDA_SUCCESS; }, nullptr, "host function"});
})
