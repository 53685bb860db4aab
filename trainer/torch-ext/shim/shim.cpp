// What tch does not offer, behind a C ABI. Every call returns null or an error text that the caller
// frees; no exception crosses.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include "guard.h"

namespace {

using torch::autograd::Variable;
using torch::autograd::variable_list;

} // namespace

extern "C" {

// Computes the gradients of a node's inputs from `gradient`, that of its output: writes one owned
// tensor (or null for none) for each input to `out`. Returns null, or why it failed, to be freed.
typedef char *(*ext_backward)(void *context, const Variable *gradient, Variable **out);
typedef void (*ext_drop)(void *context);

// Makes `output`, computed without a graph, a function of `inputs` whose backward pass is `backward`.
// Takes `context` over and drops it when the graph goes, also on failure.
char *ext_attach(Variable *output, Variable *const *inputs, size_t count, void *context,
                ext_backward backward, ext_drop drop);

// Writes the gradients of `inputs` to `out`, one owned tensor (or null for none) each, given `gradient`, that
// of `output`. The graph is gone afterwards.
char *ext_grad(const Variable *output, const Variable *gradient, Variable *const *inputs, size_t count,
              Variable **out);

// Is given the gradient of a tensor. Returns 0, or 1 if it failed.
typedef int (*ext_arrived)(void *context, const Variable *gradient);

// Has every backward pass that comes by `leaf` call `arrived`. Takes `context` over and drops it when the
// tensor goes, also on failure.
char *ext_watch(const Variable *leaf, void *context, ext_arrived arrived, ext_drop drop);

// Counts the bytes of CPU tensors that this thread allocates and frees from now on. Gives a handle.
char *ext_memory_start(void **meter);
// Ends that count and gives its peak.
char *ext_memory_stop(void *meter, int64_t *peak);

// A single-precision tensor that has a shape and no memory.
char *ext_meta(const int64_t *shape, size_t dims, Variable **out);

// One layer of a spectral norm: weight (out, ...), singular vectors u (out) and v (rest), sigma (), and
// the weight over sigma.
struct ext_layer {
  Variable *weight, *u, *v, *sigma, *scaled;
};
// `iterations` times v <- W'u / |W'u|, u <- Wv / |Wv|; then sigma <- |Wv| and scaled <- W / sigma, for all
// layers together. Norms are kept above `eps`.
char *ext_spectral_advance(const ext_layer *layers, size_t count, int64_t iterations, double eps);
// Makes gradients of the scaled weights those of the weights: (g - <g, W/sigma> u v') / sigma. In place.
char *ext_spectral_pull_back(const ext_layer *layers, size_t count, const Variable *const *gradients);

// Backward through a batch norm whose statistics count as constants. Writes three owned tensors to `out`:
// the gradients of x, of the gain and of the shift. `gain` may be null.
char *ext_norm_backward(const Variable *gradient, const Variable *x, const Variable *gain,
                       const Variable *mean, const Variable *var, double eps, Variable **out);
}

namespace {

struct Custom : torch::autograd::Node {
  std::unique_ptr<void, ext_drop> context;
  ext_backward backward;
  size_t count;

  Custom(void *context, ext_backward backward, ext_drop drop, size_t count)
      : context(context, drop), backward(backward), count(count) {}

  variable_list apply(variable_list &&gradients) override {
    if (!context)
      throw std::runtime_error("a recomputed block was run backward a second time");
    std::vector<Variable *> raw(count, nullptr);
    const std::unique_ptr<char, decltype(&std::free)> why(
        backward(context.get(), &gradients.at(0), raw.data()), std::free);
    variable_list out(count);
    for (size_t i = 0; i < count; ++i) {
      std::unique_ptr<Variable> owned(raw[i]);
      if (owned)
        out[i] = *owned;
    }
    if (why)
      throw std::runtime_error(std::string("the backward pass of a recomputed block failed: ") +
                               why.get());
    return out;
  }

  void release_variables() override { context.reset(); }
};

struct Meter : c10::MemoryReportingInfoBase {
  int64_t live = 0, peak = 0;

  void reportMemoryUsage(void *, int64_t bytes, size_t, size_t, c10::Device device) override {
    if (device.is_cpu())
      peak = std::max(peak, live += bytes);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

struct Metering {
  std::shared_ptr<Meter> meter = std::make_shared<Meter>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, meter};
};

} // namespace

char *ext_spectral_advance(const ext_layer *layers, size_t count, int64_t iterations, double eps) {
  return guarded([&] {
    if (count == 0)
      return;
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> weights, matrices, us, vs, sigmas, scaled, norms;
    for (const ext_layer *l = layers; l != layers + count; ++l) {
      weights.push_back(l->weight->detach());
      matrices.push_back(weights.back().flatten(1));
      us.push_back(*l->u);
      vs.push_back(*l->v);
      sigmas.push_back(*l->sigma);
      scaled.push_back(*l->scaled);
    }
    // Products of all layers and their norms.
    const auto products = [&](bool transposed) {
      std::vector<at::Tensor> out;
      for (size_t i = 0; i < count; ++i)
        out.push_back(transposed ? matrices[i].t().mv(us[i]) : matrices[i].mv(vs[i]));
      norms = at::_foreach_norm(out);
      at::_foreach_clamp_min_(norms, eps);
      return out;
    };
    for (int64_t i = 0; i < iterations; ++i) {
      auto units = products(true);
      at::_foreach_div_(units, norms);
      at::_foreach_copy_(vs, units);
      units = products(false);
      at::_foreach_div_(units, norms);
      at::_foreach_copy_(us, units);
    }
    if (iterations == 0)
      products(false);
    at::_foreach_copy_(sigmas, norms);
    for (size_t i = 0; i < count; ++i)
      at::div_out(scaled[i], weights[i], sigmas[i]); // in one pass over each
  });
}

char *ext_spectral_pull_back(const ext_layer *layers, size_t count, const Variable *const *gradients) {
  return guarded([&] {
    if (count == 0)
      return;
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> along, us, sigmas, out;
    for (size_t i = 0; i < count; ++i) {
      along.push_back(gradients[i]->view(-1).dot(layers[i].scaled->view(-1)));
      us.push_back(*layers[i].u);
      sigmas.push_back(*layers[i].sigma);
    }
    const auto columns = at::_foreach_mul(us, along);
    for (size_t i = 0; i < count; ++i)
      out.push_back(gradients[i]->flatten(1).addr_(columns[i], *layers[i].v, 1, -1));
    at::_foreach_div_(out, sigmas);
  });
}

char *ext_grad(const Variable *output, const Variable *gradient, Variable *const *inputs, size_t count,
              Variable **out) {
  return guarded([&] {
    variable_list wanted;
    for (size_t i = 0; i < count; ++i)
      wanted.push_back(*inputs[i]);
    auto gradients = torch::autograd::grad({*output}, wanted, {*gradient}, /*retain_graph=*/false,
                                           /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < count; ++i)
      out[i] = gradients[i].defined() ? new Variable(std::move(gradients[i])) : nullptr;
  });
}

char *ext_watch(const Variable *leaf, void *context, ext_arrived arrived, ext_drop drop) {
  return guarded([&] {
    const std::shared_ptr<void> owned(context, drop);
    leaf->register_hook([owned, arrived](const at::TensorBase &base) {
      const Variable gradient(base);
      if (gradient.defined() && arrived(owned.get(), &gradient))
        throw std::runtime_error("a gradient could not be given to the other ranks");
    });
  });
}

char *ext_norm_backward(const Variable *gradient, const Variable *x, const Variable *gain,
                       const Variable *mean, const Variable *var, double eps, Variable **out) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    // CUDA's kernels give the two sums only where there is a weight.
    const at::Tensor weight = gain ? *gain : at::ones_like(*mean);
    auto [of_x, of_gain, of_shift] = at::native_batch_norm_backward(
        *gradient, *x, weight, *mean, *var, *mean, (*var + eps).rsqrt(), false, eps,
        {true, true, true});
    out[0] = new Variable(std::move(of_x));
    out[1] = new Variable(std::move(of_gain));
    out[2] = new Variable(std::move(of_shift));
  });
}

char *ext_meta(const int64_t *shape, size_t dims, Variable **out) {
  return guarded([&] {
    const auto options = at::TensorOptions().device(at::kMeta).dtype(at::kFloat);
    *out = new Variable(at::empty(at::IntArrayRef(shape, dims), options));
  });
}

char *ext_memory_start(void **meter) {
  return guarded([&] { *meter = new Metering; });
}

char *ext_memory_stop(void *meter, int64_t *peak) {
  return guarded([&] {
    std::unique_ptr<Metering> owned(static_cast<Metering *>(meter));
    *peak = owned->meter->peak;
  });
}

char *ext_attach(Variable *output, Variable *const *inputs, size_t count, void *context,
                ext_backward backward, ext_drop drop) {
  return guarded([&] {
    auto node = std::make_shared<Custom>(context, backward, drop, count);
    torch::autograd::edge_list edges;
    for (size_t i = 0; i < count; ++i)
      edges.push_back(torch::autograd::impl::gradient_edge(*inputs[i]));
    node->set_next_edges(std::move(edges));
    torch::autograd::set_history(*output, node);
  });
}
