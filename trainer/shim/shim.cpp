// What tch does not offer, behind a C ABI. Every call returns null or an error text that the caller
// frees; no exception crosses.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

namespace {

using torch::autograd::Variable;
using torch::autograd::variable_list;

char *text(const char *message) {
  char *copy = static_cast<char *>(std::malloc(std::strlen(message) + 1));
  return copy ? std::strcpy(copy, message) : nullptr;
}

template <typename F> char *guarded(F &&body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception &e) {
    return text(e.what());
  } catch (...) {
    return text("unknown C++ exception");
  }
}

} // namespace

extern "C" {

// Computes the gradients of a node's inputs from `gradient`, that of its output: writes one owned
// tensor (or null for none) for each input to `out`. Returns 0, or 1 if it failed.
typedef int (*bb_backward)(void *context, const Variable *gradient, Variable **out);
typedef void (*bb_drop)(void *context);

// Makes `output`, computed without a graph, a function of `inputs` whose backward pass is `backward`.
// Takes `context` over and drops it when the graph goes, also on failure.
char *bb_attach(Variable *output, Variable *const *inputs, size_t count, void *context,
                bb_backward backward, bb_drop drop);

// Counts the bytes of CPU tensors that this thread allocates and frees from now on. Gives a handle.
char *bb_memory_start(void **meter);
// Ends that count and gives its peak.
char *bb_memory_stop(void *meter, int64_t *peak);
}

namespace {

struct Custom : torch::autograd::Node {
  std::unique_ptr<void, bb_drop> context;
  bb_backward backward;
  size_t count;

  Custom(void *context, bb_backward backward, bb_drop drop, size_t count)
      : context(context, drop), backward(backward), count(count) {}

  variable_list apply(variable_list &&gradients) override {
    if (!context)
      throw std::runtime_error("a recomputed block was run backward a second time");
    std::vector<Variable *> raw(count, nullptr);
    const int failed = backward(context.get(), &gradients.at(0), raw.data());
    variable_list out(count);
    for (size_t i = 0; i < count; ++i) {
      std::unique_ptr<Variable> owned(raw[i]);
      if (owned)
        out[i] = *owned;
    }
    if (failed)
      throw std::runtime_error("the backward pass of a recomputed block failed");
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

char *bb_memory_start(void **meter) {
  return guarded([&] { *meter = new Metering; });
}

char *bb_memory_stop(void *meter, int64_t *peak) {
  return guarded([&] {
    std::unique_ptr<Metering> owned(static_cast<Metering *>(meter));
    *peak = owned->meter->peak;
  });
}

char *bb_attach(Variable *output, Variable *const *inputs, size_t count, void *context,
                bb_backward backward, bb_drop drop) {
  return guarded([&] {
    auto node = std::make_shared<Custom>(context, backward, drop, count);
    torch::autograd::edge_list edges;
    for (size_t i = 0; i < count; ++i)
      edges.push_back(torch::autograd::impl::gradient_edge(*inputs[i]));
    node->set_next_edges(std::move(edges));
    torch::autograd::set_history(*output, node);
  });
}
