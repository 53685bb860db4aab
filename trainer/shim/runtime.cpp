// The optimiser's kernel, and libtorch's switches.

#include "guard.h"

#include <optional>

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/_fused_adam.h>

extern "C" {

// One fused Adam update of `parameters`, all tensors flat and of one kind. `steps` (float, scalar) counts
// the updates done. Where `fault` (float, scalar; null for never) is not 0, nothing changes.
char *bb_adam(const at::Tensor *parameters, const at::Tensor *gradient, const at::Tensor *m,
              const at::Tensor *v, const at::Tensor *steps, double rate, double beta1, double beta2, double eps,
              const at::Tensor *fault);

// Whether this thread's operators on CPU and CUDA tensors compute in bfloat16 where that is safe.
char *bb_autocast(int enabled);

// Whether matrix products and convolutions on CUDA may round their inputs to TF32.
char *bb_tf32(int enabled);
}

char *bb_adam(const at::Tensor *parameters, const at::Tensor *gradient, const at::Tensor *m,
              const at::Tensor *v, const at::Tensor *steps, double rate, double beta1, double beta2, double eps,
              const at::Tensor *fault) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    const auto found = fault ? std::optional<at::Tensor>(*fault) : std::nullopt;
    steps->add_(1);
    at::_fused_adam_({*parameters}, {*gradient}, {*m}, {*v}, {}, {*steps}, rate, beta1, beta2,
                     /*weight_decay=*/0, eps, /*amsgrad=*/false, /*maximize=*/false,
                     /*grad_scale=*/std::nullopt, found);
    if (found)
      steps->sub_(*found);
  });
}

char *bb_autocast(int enabled) {
  return guarded([&] {
    for (const auto device : {at::kCPU, at::kCUDA}) {
      at::autocast::set_autocast_dtype(device, at::kBFloat16);
      at::autocast::set_autocast_enabled(device, enabled != 0);
    }
    if (!enabled)
      at::autocast::clear_cache(); // the weights it holds in bfloat16 are about to change
  });
}

char *bb_tf32(int enabled) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuBLAS(enabled != 0);
    at::globalContext().setAllowTF32CuDNN(enabled != 0);
  });
}
