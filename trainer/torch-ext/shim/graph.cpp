// CUDA graphs: what one call starts on a device, kept and started again as a whole. Part of the shared
// object that names libtorch's CUDA half (src/cuda.rs).

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>

#include <memory>

#include "guard.h"

extern "C" {

// Keeps what `body` starts on CUDA device `index`, which runs nothing of it. `beside` (null for none) is a
// graph whose working memory this one uses too: its results are read before the other is started again.
char *ext_graph_record(int index, at::cuda::CUDAGraph *beside, void (*body)(void *), void *context,
                      at::cuda::CUDAGraph **graph);
// Starts it on the current stream.
char *ext_graph_replay(at::cuda::CUDAGraph *graph);
void ext_graph_drop(at::cuda::CUDAGraph *graph);
}

char *ext_graph_record(int index, at::cuda::CUDAGraph *beside, void (*body)(void *), void *context,
                      at::cuda::CUDAGraph **graph) {
  return guarded([&] {
    const auto device = static_cast<c10::DeviceIndex>(index);
    const c10::cuda::CUDAGuard on(device);
    c10::cuda::device_synchronize();
    c10::cuda::CUDACachingAllocator::emptyCache(); // what the plain updates took, the graph takes anew
    auto made = std::make_unique<at::cuda::CUDAGraph>();
    {
      // The default stream cannot be recorded.
      const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool(false, device));
      const auto pool = beside ? beside->pool() : c10::MempoolId_t{0, 0};
      // Other threads may allocate and copy meanwhile.
      made->capture_begin(pool, cudaStreamCaptureModeThreadLocal);
      body(context);
      made->capture_end();
    }
    *graph = made.release();
  });
}

char *ext_graph_replay(at::cuda::CUDAGraph *graph) {
  return guarded([&] { graph->replay(); });
}

void ext_graph_drop(at::cuda::CUDAGraph *graph) { delete graph; }
