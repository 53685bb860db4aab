// What the operators of a piece of work amount to, through libtorch's observer.

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include "guard.h"

extern "C" {

// What a piece of work amounts to.
struct ext_work {
  double flop;    // of convolutions and matrix products, a multiply-add counting as two
  double written; // bytes of the results of the operators that are called by us or by autograd
  int64_t operators; // number of these
};

// One line of an audit; which words it has depends on `kind`.
enum ext_kind {
  ext_kernel, // an operator that calls no other, forward (0) or within a backward pass (1)
  ext_layout, // an input of a convolution that is not channels_last, and where
  ext_cast,   // an operator that CUDA's autocast gives inputs of other kinds: "operator kinds-here kinds-there"
};
struct ext_line {
  ext_kind kind;
  const char *words;
  int backward;
  int64_t calls;
  double read, written; // bytes
};

// Counts from now on what this thread calls, and what backward passes that it starts call on whatever
// thread. Gives a handle.
char *ext_observe_start(void **observer);
// Ends that count, and hands its lines to `take` (null for none).
char *ext_observe_stop(void *observer, ext_work *work, void (*take)(void *, const ext_line *), void *context);
}

namespace {

using Names = std::unordered_set<std::string>;

// Operators that compute nothing.
const Names views{"aten::view",      "aten::_unsafe_view", "aten::reshape",    "aten::expand",
                  "aten::transpose", "aten::t",            "aten::permute",    "aten::narrow",
                  "aten::slice",     "aten::select",       "aten::unsqueeze",  "aten::squeeze",
                  "aten::detach",    "aten::alias",        "aten::as_strided", "aten::split",
                  "aten::chunk",     "aten::flatten",      "aten::view_as",    "aten::expand_as",
                  "aten::result_type"};

// More of these, and memory that is not written: they move no bytes.
const Names still{"aten::empty",          "aten::empty_like",     "aten::empty_strided",
                  "aten::new_empty",      "aten::resize_",        "aten::_reshape_alias",
                  "aten::new_empty_strided", "aten::unbind",      "aten::split_with_sizes",
                  "aten::unflatten",      "aten::diagonal",       "aten::numpy_T",
                  "aten::set_data",       "aten::unsafe_split",   "aten::unsafe_chunk",
                  "aten::requires_grad_", "aten::is_nonzero",     "aten::item",
                  "aten::_local_scalar_dense", "aten::set_",      "aten::record_stream",
                  "aten::lift_fresh",     "aten::resolve_conj",   "aten::resolve_neg",
                  "aten::resize_as_", "aten::as_strided_",    "detach",                "aten::detach_",      "aten::_has_compatible_shallow_copy_type",
                  "aten::_nnpack_available", "aten::is_same_size"};

// Copies and fills are what these come down to.
const Names wrappers{"aten::to",         "aten::_to_copy",  "aten::clone",      "aten::contiguous",
                     "aten::zeros",      "aten::zeros_like", "aten::ones",      "aten::ones_like",
                     "aten::full",       "aten::full_like", "aten::zero_",      "aten::new_zeros",
                     "aten::scalar_tensor", "aten::_efficientzerotensor", "aten::set_requires_grad"};

const Names fills{"aten::copy_", "aten::fill_"};

// Counts as one kernel whatever it calls: that depends on the machine and its number of threads.
bool is_sealed(const std::string &name) {
  static const Names all{"aten::convolution", "aten::convolution_backward", "aten::native_batch_norm",
                         "aten::native_batch_norm_backward"};
  const bool attention = name.rfind("aten::_scaled_dot_product_", 0) == 0;
  return all.count(name) || (attention && name != "aten::_scaled_dot_product_attention_math");
}

enum class Policy { keep, lower, single, widest };

// What CUDA's autocast makes of the inputs (or the result) of an operator: the lists that libtorch registers.
Policy on_cuda(const std::string &name) {
  static const std::map<std::string, Policy> all = [] {
    std::map<std::string, Policy> all;
#define LOWER(OP, ...) all["aten::" #OP] = Policy::lower;
#define SINGLE(OP, ...) all["aten::" #OP] = Policy::single;
#define WIDEST(OP, ...) all["aten::" #OP] = Policy::widest;
    AT_FORALL_LOWER_PRECISION_FP(LOWER)
    AT_FORALL_FP32(SINGLE)
    AT_FORALL_FP32_SET_OPT_DTYPE(SINGLE)
    AT_FORALL_PROMOTE(WIDEST)
#undef LOWER
#undef SINGLE
#undef WIDEST
    all["aten::norm"] = Policy::single; // AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE
    return all;
  }();
  const auto found = all.find(name);
  return found == all.end() ? Policy::keep : found->second;
}

using Kinds = std::vector<at::ScalarType>;

// Kinds of tensors after autocast, which leaves double precision as it is.
Kinds under(Policy policy, Kinds kinds) {
  const auto wide = std::count(kinds.begin(), kinds.end(), at::kFloat);
  for (at::ScalarType &kind : kinds)
    if (kind == at::kFloat || kind == at::kBFloat16) {
      if (policy == Policy::lower)
        kind = at::kBFloat16;
      else if (policy == Policy::single || (policy == Policy::widest && wide))
        kind = at::kFloat;
    }
  return kinds;
}

std::string text_of(const Kinds &kinds) {
  std::string words;
  for (const at::ScalarType kind : kinds)
    words += (words.empty() ? "" : ",") + std::string(at::toString(kind));
  return words;
}

struct Frame;
thread_local Frame *innermost = nullptr;

// A record under way on this thread.
struct Frame : at::ObserverContext {
  Frame *outer = innermost;
  bool wraps;            // autograd's own record of a backward node
  bool backward = false; // within one
  bool sealed = false;   // within an operator that counts as one kernel
  bool moves = false;       // its name is none of those that move no bytes
  bool has_kernels = false; // an operator within it moves bytes, copies aside
  double read = 0, changed = 0; // bytes of its inputs, and of those that it writes to
  std::string name;
  bool autocast = false; // may change the inputs of it
  bool into = false;     // it writes to tensors that it is given: autocast has no policy for such
  Kinds kinds, cast; // of its floating inputs, and after autocast

  Frame(std::string name, bool wraps) : wraps(wraps), name(std::move(name)) {
    backward = wraps || (outer && outer->backward);
    sealed = !wraps && outer && (outer->sealed || is_sealed(outer->name));
    innermost = this;
  }
  ~Frame() override { innermost = outer; }
};

struct Moved {
  int64_t calls = 0;
  double read = 0, written = 0;
};

// Bytes that a tensor's elements take, those that share a place counted once.
double bytes(const at::Tensor &t) {
  if (!t.defined())
    return 0;
  double all = static_cast<double>(t.element_size());
  for (int64_t i = 0; i < t.dim(); ++i)
    if (t.stride(i) != 0 || t.size(i) == 0)
      all *= static_cast<double>(t.size(i));
  return all;
}

template <typename F> void tensors_of(const c10::IValue &value, F &&each) {
  if (value.isTensor())
    each(value.toTensor());
  else if (value.isTensorList())
    for (const at::Tensor &t : value.toTensorVector())
      each(t);
  else if (value.isList())
    for (const c10::IValue &part : value.toListRef())
      tensors_of(part, each);
}

double bytes(const c10::IValue &value) {
  double all = 0;
  tensors_of(value, [&](const at::Tensor &t) { all += bytes(t); });
  return all;
}

// The state of a count. Backward passes carry it to their threads, as libtorch's own profiler's.
struct Observer : c10::DebugInfoBase {
  std::mutex mutex;
  ext_work sum{};
  std::map<std::pair<std::string, bool>, Moved> kernels;
  std::map<std::string, int64_t> layouts;
  std::map<std::string, int64_t> casts;

  static Observer *current() {
    return static_cast<Observer *>(c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::TEST_INFO));
  }

  static double matmul(const at::Tensor &a, const at::Tensor &b) {
    return 2.0 * static_cast<double>(a.numel()) * static_cast<double>(b.size(-1));
  }

  void add_flop(const Frame &frame, const at::RecordFunction &f) {
    const std::string &name = frame.name;
    if (frame.outer && frame.outer->name == name)
      return; // autocast called it again
    const auto in = f.inputs();
    if (name == "aten::addmm")
      sum.flop += matmul(in[1].toTensor(), in[2].toTensor());
    else if (name == "aten::mm" || name == "aten::bmm" || name == "aten::mv")
      sum.flop += 2.0 * static_cast<double>(in[0].toTensor().numel()) *
                  (name == "aten::mv" ? 1.0 : static_cast<double>(in[1].toTensor().size(-1)));
    else if (name.rfind("aten::_scaled_dot_product_", 0) == 0 &&
             name != "aten::_scaled_dot_product_attention_math" &&
             name.find("backward") == std::string::npos) {
      // Queries by keys, then by values, at the widths that the kernel is given.
      const at::Tensor q = in[0].toTensor(), k = in[1].toTensor(), v = in[2].toTensor();
      const double pairs = static_cast<double>(q.numel() / q.size(-1)) * static_cast<double>(k.size(-2));
      sum.flop += 2.0 * pairs * static_cast<double>(q.size(-1) + v.size(-1));
    } else if (name == "aten::convolution") {
      const at::Tensor x = in[0].toTensor(), w = in[1].toTensor();
      const auto stride = in[3].toIntVector(), padding = in[4].toIntVector();
      double positions = 1;
      for (size_t i = 0; i < stride.size(); ++i)
        positions *= static_cast<double>(
            (x.size(2 + i) + 2 * padding[i] - w.size(2 + i)) / stride[i] + 1);
      sum.flop += 2.0 * static_cast<double>(x.size(0)) * positions * static_cast<double>(w.numel());
    }
  }

  void check_layout(const Frame &frame, const at::RecordFunction &f) {
    const bool backward = frame.name == "aten::convolution_backward";
    if (!backward && frame.name != "aten::convolution")
      return;
    const char *roles[] = {backward ? "gradient" : "input", "input"};
    for (size_t i = 0; i < (backward ? 2 : 1); ++i) {
      const at::Tensor x = f.inputs()[i].toTensor();
      if (x.dim() == 4 && x.size(1) >= 8 && !x.is_contiguous(at::MemoryFormat::ChannelsLast)) {
        std::string words = frame.name + " " + roles[i] + " (";
        for (int64_t d = 0; d < 4; ++d)
          words += (d ? ", " : "") + std::to_string(x.size(d));
        words += ") strides (";
        for (int64_t d = 0; d < 4; ++d)
          words += (d ? ", " : "") + std::to_string(x.stride(d));
        ++layouts[words + ")"];
      }
    }
  }

  // What autocast did here, and would do on CUDA.
  void compare_casts(const Frame &frame) {
    if (frame.outer && frame.outer->name == frame.name) {
      if (frame.outer->kinds.size() == frame.kinds.size()) // not a number that was made a tensor
        frame.outer->cast = frame.kinds;                   // autocast called the operator again
      return;
    }
    if (!frame.autocast || frame.into)
      return;
    const Kinds &here = frame.cast.empty() ? frame.kinds : frame.cast;
    const Kinds there = under(on_cuda(frame.name), frame.kinds);
    if (here != there)
      ++casts[frame.name.substr(6) + " " + text_of(here) + " " + text_of(there)];
  }

  // What a kernel reads, and changes in place: its inputs are there at its start alone.
  static void measure(Frame &frame, const at::RecordFunction &f) {
    const auto schema = f.operator_schema();
    const auto in = f.inputs();
    const bool overwrites = fills.count(frame.name) != 0;
    for (size_t i = 0; i < in.size(); ++i) {
      const double size = bytes(in[i]);
      const auto *alias =
          schema && i < schema->arguments().size() ? schema->arguments()[i].alias_info() : nullptr;
      const bool changes = alias && alias->isWrite();
      const bool out = changes && schema->arguments()[i].is_out();
      frame.changed += changes ? size : 0;
      frame.read += out || (overwrites && i == 0) ? 0 : size;
    }
  }

  void add_kernel(const Frame &frame, const at::RecordFunction &f) {
    double returned = 0;
    for (const auto &value : f.outputs())
      returned += bytes(value);
    Moved &all = kernels[{frame.name, frame.backward}];
    ++all.calls;
    all.read += frame.read;
    // What is changed in place is returned too, but by operators on lists.
    all.written += std::max(frame.changed, returned);
  }

  static std::unique_ptr<at::ObserverContext> start(const at::RecordFunction &f) {
    Observer *observer = current();
    if (!observer)
      return nullptr;
    std::string name = f.name();
    const bool wraps = name.rfind("autograd::", 0) == 0;
    auto frame = std::make_unique<Frame>(std::move(name), wraps);
    if (!wraps) {
      frame->moves = !frame->sealed && !views.count(frame->name) && !still.count(frame->name) && !wrappers.count(frame->name);
      if (frame->moves)
        measure(*frame, f);
      for (const auto &value : f.inputs())
        tensors_of(value, [&](const at::Tensor &t) {
          if (t.defined() && t.is_floating_point())
            frame->kinds.push_back(t.scalar_type());
        });
      frame->into = std::string(f.overload_name()).find("out") != std::string::npos;
      frame->autocast = at::autocast::is_autocast_enabled(at::kCPU) ||
                        at::autocast::is_autocast_enabled(at::kCUDA);
      const std::lock_guard<std::mutex> lock(observer->mutex);
      observer->add_flop(*frame, f);
      observer->check_layout(*frame, f);
    }
    return frame;
  }

  static void end(const at::RecordFunction &f, at::ObserverContext *context) {
    auto *frame = static_cast<Frame *>(context);
    Observer *observer = current();
    if (!frame || !observer || frame->wraps)
      return;
    const std::lock_guard<std::mutex> lock(observer->mutex);
    observer->compare_casts(*frame);
    const bool view = views.count(frame->name) != 0;
    if (!view && (!frame->outer || frame->outer->wraps)) {
      ++observer->sum.operators;
      for (const auto &out : f.outputs())
        if (out.isTensor() && out.toTensor().defined())
          observer->sum.written += static_cast<double>(out.toTensor().nbytes());
    }
    const bool fill = fills.count(frame->name) != 0;
    if (frame->moves && !frame->has_kernels)
      observer->add_kernel(*frame, f);
    if (frame->outer && ((frame->moves && !fill) || frame->has_kernels))
      frame->outer->has_kernels = true;
  }
};

struct Observing {
  std::shared_ptr<Observer> observer = std::make_shared<Observer>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::TEST_INFO, observer};
  // Backward passes carry this thread's callbacks to their threads too.
  at::CallbackHandle handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback(Observer::start, Observer::end)
          .needsInputs(true)
          .needsOutputs(true)
          .scopes({at::RecordScope::FUNCTION}));

  ~Observing() { at::removeCallback(handle); }
};

} // namespace

char *ext_observe_start(void **observer) {
  return guarded([&] {
    if (Observer::current())
      throw std::runtime_error("this thread's operators are being counted already");
    *observer = new Observing;
  });
}

char *ext_observe_stop(void *observer, ext_work *work, void (*take)(void *, const ext_line *), void *context) {
  return guarded([&] {
    const std::unique_ptr<Observing> owned(static_cast<Observing *>(observer));
    const std::shared_ptr<Observer> seen = owned->observer;
    const std::lock_guard<std::mutex> lock(seen->mutex);
    *work = seen->sum;
    if (!take)
      return;
    for (const auto &[key, m] : seen->kernels) {
      const ext_line line{ext_kernel, key.first.c_str(), key.second, m.calls, m.read, m.written};
      take(context, &line);
    }
    const auto give = [&](ext_kind kind, const std::map<std::string, int64_t> &lines) {
      for (const auto &[words, calls] : lines) {
        const ext_line line{kind, words.c_str(), 0, calls, 0, 0};
        take(context, &line);
      }
    };
    give(ext_layout, seen->layouts);
    give(ext_cast, seen->casts);
  });
}
