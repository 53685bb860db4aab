// The optimiser's kernel, and libtorch's switches.

#include "guard.h"

#include <dlfcn.h>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_fused_adam.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/VirtualGuardImpl.h>

extern "C" {

// One fused Adam update of `parameters`, all tensors flat and of one kind. `steps` (float, scalar) counts
// the updates done. The rate is `factor` (scalar; double on the CPU, float on CUDA) times `rate`. Where
// `fault` (float, scalar; null for never) is not 0, nothing changes.
char *ext_adam(const at::Tensor *parameters, const at::Tensor *gradient, const at::Tensor *m,
              const at::Tensor *v, const at::Tensor *steps, const at::Tensor *factor, double rate,
              double beta1, double beta2, double eps, const at::Tensor *fault);

// Whether this thread's operators on CPU and CUDA tensors compute in bfloat16 where that is safe.
char *ext_autocast(int enabled);

// Nearest upsampling of (N, C, H, W) to twice the side in the kind that `x` has. (CUDA's autocast would do
// it in single precision: values are only repeated.)
char *ext_upsample(const at::Tensor *x, at::Tensor **out);

// Whether matrix products and convolutions on CUDA may round their inputs to TF32.
char *ext_tf32(int enabled);

// Whether cuDNN tries all its algorithms for a convolution the first time it sees the shapes of one.
char *ext_trials(int enabled);

// Whether operators give the same bits again on the same machine, or an error where they cannot. On CUDA
// CUBLAS_WORKSPACE_CONFIG must have been set before.
char *ext_deterministic(int enabled);

// A copy in page-locked memory, of the accelerator that there is. (tch names the device, which libtorch
// answers with a warning each time.)
char *ext_pinned(const at::Tensor *tensor, at::Tensor **copy);

// A stream of CUDA device `index` beside the current one. (Through c10's device-independent interface:
// nothing of CUDA is linked.)
char *ext_copy_later(const at::Tensor *to, const at::Tensor *from) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    to->copy_(*from, /*non_blocking=*/true);
  });
}

char *ext_stream_new(int index, void **lane);
void ext_stream_drop(void *lane);
// Runs `body` with the lane as the current stream, then marks the point in it that was reached.
char *ext_stream_run(void *lane, void (*body)(void *), void *context, void **event);
// The current stream waits for the mark before it reads the tensors.
char *ext_event_wait(const void *event, const at::Tensor *const *tensors, size_t count);
// Marks the point that the current stream of CUDA device `index` has been given work to.
char *ext_event_now(int index, void **event);
// Waits here for the mark. Takes the event over.
char *ext_event_finish(void *event);
// As `ext_event_now`, and the device's clock is kept with the mark.
char *ext_event_timed(int index, void **event);
// Waits here for two of these and gives the seconds from one to the other.
char *ext_event_between(const void *first, const void *second, double *seconds);

// The most bytes of CUDA device `index` that tensors took since the process began.
char *ext_device_peak(int index, int64_t *bytes);

// The name of CUDA device `index`, zero-terminated, in at most `room` bytes. (Asked of the driver's own
// library, which is there where a device is: nothing of CUDA is linked.)
char *ext_device_name(int index, char *name, int room);
}

char *ext_adam(const at::Tensor *parameters, const at::Tensor *gradient, const at::Tensor *m,
              const at::Tensor *v, const at::Tensor *steps, const at::Tensor *factor, double rate,
              double beta1, double beta2, double eps, const at::Tensor *fault) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    const auto found = fault ? std::optional<at::Tensor>(*fault) : std::nullopt;
    steps->add_(1);
    at::_fused_adam_({*parameters}, {*gradient}, {*m}, {*v}, {}, {*steps}, *factor * rate, beta1, beta2,
                     /*weight_decay=*/0, eps, /*amsgrad=*/false, /*maximize=*/false,
                     /*grad_scale=*/std::nullopt, found);
    if (found)
      steps->sub_(*found);
  });
}

char *ext_autocast(int enabled) {
  return guarded([&] {
    for (const auto device : {at::kCPU, at::kCUDA}) {
      at::autocast::set_autocast_dtype(device, at::kBFloat16);
      at::autocast::set_autocast_enabled(device, enabled != 0);
    }
    if (!enabled)
      at::autocast::clear_cache(); // the weights it holds in bfloat16 are about to change
  });
}

char *ext_upsample(const at::Tensor *x, at::Tensor **out) {
  return guarded([&] {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const int64_t h = 2 * x->size(2), w = 2 * x->size(3);
    *out = new at::Tensor(at::upsample_nearest2d(*x, {h, w}));
  });
}

char *ext_tf32(int enabled) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(enabled != 0);
    at::globalContext().setAllowTF32CuDNN(enabled != 0);
  });
}

char *ext_trials(int enabled) {
  return guarded([&] { at::globalContext().setBenchmarkCuDNN(enabled != 0); });
}

char *ext_deterministic(int enabled) {
  return guarded([&] {
    at::globalContext().setDeterministicAlgorithms(enabled != 0, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false); // nothing reads it
    at::globalContext().setDeterministicCuDNN(enabled != 0);
  });
}

char *ext_pinned(const at::Tensor *tensor, at::Tensor **copy) {
  return guarded([&] { *copy = new at::Tensor(tensor->pin_memory()); });
}

char *ext_stream_new(int index, void **lane) {
  return guarded([&] {
    const c10::impl::VirtualGuardImpl cuda(at::kCUDA);
    const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(index));
    *lane = new c10::Stream(cuda.getStreamFromGlobalPool(device));
  });
}

void ext_stream_drop(void *lane) { delete static_cast<c10::Stream *>(lane); }

char *ext_stream_run(void *lane, void (*body)(void *), void *context, void **event) {
  return guarded([&] {
    const c10::Stream stream = *static_cast<c10::Stream *>(lane);
    auto mark = std::make_unique<c10::Event>(at::kCUDA);
    {
      const c10::StreamGuard guard(stream);
      body(context);
    }
    mark->record(stream);
    *event = mark.release();
  });
}

char *ext_event_wait(const void *event, const at::Tensor *const *tensors, size_t count) {
  return guarded([&] {
    for (size_t i = 0; i < count; ++i) {
      const c10::impl::VirtualGuardImpl cuda(at::kCUDA);
      const c10::Stream current = cuda.getStream(tensors[i]->device());
      static_cast<const c10::Event *>(event)->block(current);
      // Its memory is not given to another tensor before the current stream is done with it.
      tensors[i]->record_stream(current);
    }
  });
}

namespace {

void *mark_of_now(int index, c10::EventFlag flag) {
  const c10::impl::VirtualGuardImpl cuda(at::kCUDA);
  const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(index));
  auto mark = std::make_unique<c10::Event>(at::kCUDA, flag);
  mark->record(cuda.getStream(device));
  return mark.release();
}

} // namespace

char *ext_event_now(int index, void **event) {
  return guarded([&] { *event = mark_of_now(index, c10::EventFlag::PYTORCH_DEFAULT); });
}

char *ext_event_timed(int index, void **event) {
  return guarded([&] { *event = mark_of_now(index, c10::EventFlag::BACKEND_DEFAULT); });
}

char *ext_event_between(const void *first, const void *second, double *seconds) {
  return guarded([&] {
    const auto *from = static_cast<const c10::Event *>(first), *to = static_cast<const c10::Event *>(second);
    from->synchronize();
    to->synchronize();
    *seconds = from->elapsedTime(*to) / 1e3;
  });
}

char *ext_event_finish(void *event) {
  return guarded([&] {
    const std::unique_ptr<c10::Event> owned(static_cast<c10::Event *>(event));
    owned->synchronize();
  });
}

char *ext_device_peak(int index, int64_t *bytes) {
  return guarded([&] {
    const auto stats = at::getDeviceAllocator(at::kCUDA)->getDeviceStats(
        static_cast<at::DeviceIndex>(index));
    *bytes = stats.allocated_bytes[0].peak; // of all pools together
  });
}

char *ext_device_name(int index, char *name, int room) {
  return guarded([&] {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    const auto entry = [&](const char *function) {
      void *address = driver ? dlsym(driver, function) : nullptr;
      if (!address)
        throw std::runtime_error(std::string("the CUDA driver has no ") + function);
      return address;
    };
    // As cuda.h declares them; a device is its number, 0 means success.
    const auto init = reinterpret_cast<int (*)(unsigned)>(entry("cuInit"));
    const auto get = reinterpret_cast<int (*)(int *, int)>(entry("cuDeviceGet"));
    const auto get_name = reinterpret_cast<int (*)(char *, int, int)>(entry("cuDeviceGetName"));
    int device = 0;
    if (init(0) != 0 || get(&device, index) != 0 || get_name(name, room, device) != 0)
      throw std::runtime_error("the CUDA driver gives device " + std::to_string(index) + " no name");
  });
}
