// c10d over NCCL. Part of the shared object that names libtorch's CUDA half (src/cuda.rs).

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "group.h"
#include "guard.h"

extern "C" {

// A process group on tensors of CUDA device `device`, closed as any other. Every rank opens it with the
// same prefix. A collective that takes longer than `timeout` ms ends the process.
char *ext_nccl_open(ext_store *store, const char *prefix, int rank, int size, int device,
                   int64_t timeout, ext_group **out);
}

char *ext_nccl_open(ext_store *store, const char *prefix, int rank, int size, int device,
                   int64_t timeout, ext_group **out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout);
    auto own = c10::make_intrusive<c10d::PrefixStore>(prefix, store->store);
    auto backend =
        c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(own), rank, size, options);
    backend->setBoundDeviceId(at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device)));
    *out = new ext_group{std::move(backend)};
  });
}
