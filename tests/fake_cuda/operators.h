// Operators on CUDA tensors: the CPU's kernels, over the same memory. Part of fake_cuda.cpp.
#pragma once

#include "device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <unordered_map>
#include <unordered_set>

namespace fake {

// ---------------------------------------------------------------- what CUDA has kernels for

struct Known {
  const char *name;
  bool scalars; // takes a scalar of host memory beside the device's tensors (device_check: NoCheck)
};
// From native_functions.yaml, by build.rs.
constexpr Known KERNELS[] = {
#include "kernels.inc"
};

// Kernels that read values back before they return. (Indices of booleans do too.)
const std::unordered_set<std::string> WAITING{
    "nonzero", "nonzero.out", "masked_select", "masked_select.out", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "equal", "repeat_interleave.Tensor", "is_set_to", "multinomial", "histc", "histc.out"};

// Kernels that call alertNotDeterministic, of those that CPU kernels of the same name do not
// (torch.use_deterministic_algorithms lists them all).
const std::unordered_set<std::string> NOT_DETERMINISTIC{
    "cumsum", "cumsum_", "cumsum.out", "put_", "histc", "histc.out", "kthvalue", "kthvalue.values", "bincount",
    "median.dim", "median.dim_values", "upsample_bilinear2d_backward", "upsample_bilinear2d_backward.grad_input",
    "upsample_bicubic2d_backward", "upsample_bicubic2d_backward.grad_input", "_adaptive_avg_pool2d_backward",
    "_upsample_bilinear2d_aa_backward", "_upsample_bilinear2d_aa_backward.grad_input",
    "_upsample_bicubic2d_aa_backward", "_upsample_bicubic2d_aa_backward.grad_input", "reflection_pad2d_backward",
    "grid_sampler_2d_backward", "_cdist_backward", "scatter_reduce.two", "scatter_reduce.two_out"};

// Kernels over cuBLAS.
const std::unordered_set<std::string> CUBLAS{"mm", "mm.out", "mv", "addmv", "addmv.out", "addmm", "addmm.out", "bmm",
                                             "bmm.out", "baddbmm", "baddbmm.out", "dot", "vdot"};

std::string name_of(const c10::FunctionSchema &schema) { // without "aten::"
  const auto &overload = schema.overload_name();
  return schema.name().substr(6) + (overload.empty() ? "" : "." + overload);
}

// ---------------------------------------------------------------- twins

// CPU tensors over the memory of CUDA tensors, and the way back.
struct Twins {
  std::vector<std::pair<c10::Storage, c10::Storage>> storages; // the device's, the host's
  std::vector<std::pair<Tensor, Tensor>> tensors;
  Device device;
  explicit Twins(Device device) : device(device) {}

  static c10::DataPtr owned_by(const c10::Storage &storage, Device device) {
    auto *owner = new c10::Storage(storage);
    return {owner->mutable_data(), owner, [](void *p) { delete static_cast<c10::Storage *>(p); }, device};
  }
  static Tensor over(const c10::Storage &storage, const Tensor &like, c10::DispatchKey backend) {
    auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(backend), like.dtype());
    impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    if (like.unsafeGetTensorImpl()->is_wrapped_number())
      impl->set_wrapped_number(true);
    return Tensor(std::move(impl));
  }

  Tensor host(const Tensor &t) {
    if (!t.defined() || !t.is_cuda())
      return t;
    for (const auto &[real, twin] : tensors)
      if (real.is_same(t))
        return twin;
    c10::Storage storage;
    for (const auto &[real, twin] : storages)
      if (real.is_alias_of(t.storage()))
        storage = twin;
    if (!storage) {
      const auto &real = t.storage();
      c10::DataPtr data(const_cast<void *>(real.data()), Device(DeviceType::CPU));
      storage = c10::Storage(c10::Storage::use_byte_size_t(), real.nbytes(), std::move(data), &host_memory, true);
      storages.emplace_back(real, storage);
    }
    tensors.emplace_back(t, over(storage, t, c10::DispatchKey::CPU));
    return tensors.back().second;
  }

  Tensor back(const Tensor &t) {
    if (!t.defined() || !t.is_cpu())
      return t;
    for (const auto &[real, twin] : tensors)
      if (twin.is_same(t))
        return real;
    c10::Storage storage;
    for (const auto &[real, twin] : storages)
      if (twin.is_alias_of(t.storage()))
        storage = real;
    if (!storage) {
      storage = c10::Storage(c10::Storage::use_byte_size_t(), t.storage().nbytes(), owned_by(t.storage(), device),
                             &memory, true);
      storages.emplace_back(storage, t.storage());
    }
    return over(storage, t, c10::DispatchKey::CUDA);
  }

  // What a kernel did to the shapes and memory of its arguments.
  void settle() {
    for (auto &[real, twin] : storages)
      if (real.data() != twin.data()) {
        real.set_nbytes(twin.nbytes());
        real.set_data_ptr_noswap(owned_by(twin, device));
      }
    for (auto &[real, twin] : tensors)
      if (real.sizes() != twin.sizes() || real.strides() != twin.strides())
        real.unsafeGetTensorImpl()->set_sizes_and_strides(twin.sizes(), twin.strides(), twin.storage_offset());
  }
};

// A value with `f` of each of its tensors in its place.
template <typename F> c10::IValue mapped(const c10::IValue &value, F &&f) {
  if (value.isTensor())
    return f(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor &t : value.toTensorVector())
      list.push_back(f(t));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const auto &t : value.toOptionalTensorVector())
      list.push_back(t ? std::optional<Tensor>(f(*t)) : std::nullopt);
    return list;
  }
  return value;
}
template <typename F> void each(const c10::IValue &value, F &&f) {
  mapped(value, [&](const Tensor &t) {
    if (t.defined())
      f(t);
    return t;
  });
}

// ---------------------------------------------------------------- graphs

struct Graph {
  uint64_t number;
  DeviceIndex device;
  int stream;
  std::vector<std::function<void()>> work;
  std::map<uintptr_t, std::vector<char>> before; // memory of before that it writes, as it was

  // Memory of before is about to be written, which is to have its values again at the end.
  void keep(const void *data) {
    const auto *block = find(blocks, data);
    if (!block || block->second.graph == number)
      return;
    const char *bytes = reinterpret_cast<const char *>(block->first);
    before.emplace(block->first, std::vector<char>(bytes, bytes + block->second.bytes));
  }

  // `again` is done at each replay, to memory that these storages hold. As CUDA, it holds on to none of before.
  void add(const std::string &name, const std::vector<c10::Storage> &storages, std::function<void()> again) {
    std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> needed;
    std::vector<c10::Storage> own;
    for (const auto &storage : storages) {
      const auto *block = find(blocks, storage.data());
      if (block && block->second.graph == number)
        own.push_back(storage);
      else if (block)
        needed.emplace_back(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage.unsafeGetStorageImpl()));
    }
    work.emplace_back([name, needed, own, again] {
      for (const auto &storage : needed)
        if (storage.expired()) {
          log().fault("a graph is replayed whose memory is freed: " + name);
          TORCH_CHECK(false, "CUDA error: an illegal memory access was encountered (", name, ")");
        }
      again();
    });
  }
};

// ---------------------------------------------------------------- calls

struct OnDevice {
  bool before = std::exchange(on_device, true);
  ~OnDevice() { on_device = before; }
};

void call_cpu(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard plain(
      c10::DispatchKeySet({c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA}));
  const OnDevice here;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
}

void copy_bytes(const Tensor &to, const Tensor &from) {
  const at::AutoDispatchBelowADInplaceOrView below;
  const OnDevice here;
  at::native::copy_(const_cast<Tensor &>(to), from, false);
}

bool is_index(const std::string &name) {
  return name.rfind("index", 0) == 0 || name.rfind("_index_put", 0) == 0 || name.rfind("_unsafe_index", 0) == 0;
}

// The device that an operator's tensors are on, refused where CUDA refuses them.
Device common_device(const std::string &name, const std::vector<c10::Argument> &arguments, const c10::IValue *values) {
  static const auto *lenient = [] {
    auto *all = new std::unordered_set<std::string>;
    for (const auto &kernel : KERNELS)
      if (kernel.scalars)
        all->insert(kernel.name);
    return all;
  }();
  std::optional<Device> device;
  for (size_t i = 0; i < arguments.size(); ++i)
    each(values[i], [&](const Tensor &t) {
      if (t.is_cuda() && !device)
        device = t.device();
    });
  if (!device)
    return Device(DeviceType::CUDA, current);
  const bool index = is_index(name);
  int scalars = index || lenient->count(name) ? 1 : 0;
  for (size_t i = 0; i < arguments.size(); ++i)
    each(values[i], [&](const Tensor &t) {
      if (t.device() == *device || (t.is_cpu() && t.dim() == 0 && scalars-- > 0))
        return;
      if (t.is_cpu() && index && arguments[i].name() == "indices")
        return log().count("SYNC upload of indices");
      const std::string text =
          c10::str("Expected all tensors to be on the same device, but got ", arguments[i].name(), " is on ", t.device(),
                   ", different from other tensors on ", *device, " (when checking argument in method wrapper_CUDA_", name, ")");
      log().fault(text);
      TORCH_CHECK(false, text);
    });
  return *device;
}

// What CUDA's kernels ask for and the CPU's do not.
void check_as_cuda(const std::string &name, const c10::IValue *values) {
  if (at::globalContext().deterministicAlgorithms()) {
    if (NOT_DETERMINISTIC.count(name))
      at::globalContext().alertNotDeterministic(name + "_cuda");
    TORCH_CHECK(!CUBLAS.count(name) || std::getenv("CUBLAS_WORKSPACE_CONFIG"),
                "Deterministic behavior was enabled but CUBLAS_WORKSPACE_CONFIG is not set (", name, ")");
  }
  if (name != "_fused_adam_.tensor_lr")
    return;
  const auto is_float = [&](const Tensor &t, const char *what) {
    TORCH_CHECK(t.is_cuda() && t.scalar_type() == at::kFloat, "_fused_adam_: ", what, " is to be float, on the device");
  };
  for (const Tensor &steps : values[5].toTensorVector())
    is_float(steps, "state_steps");
  is_float(values[6].toTensor(), "lr");
  if (values[14].isTensor() && values[14].toTensor().defined())
    is_float(values[14].toTensor(), "found_inf");
}

// What batch norms write to, though their schemas do not say so.
bool is_statistic(const std::string &operator_name, const std::string &argument) {
  const bool running = argument == "running_mean" || argument == "running_var";
  return running && operator_name.find("backward") == std::string::npos;
}

void any_operator(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const auto &schema = op.schema();
  const auto &arguments = schema.arguments();
  const size_t first = stack->size() - arguments.size();
  const std::string name = name_of(schema);
  const Device device = common_device(name, arguments, stack->data() + first);
  const c10::DeviceGuard on(device);
  check_as_cuda(name, stack->data() + first);
  bool view = false;
  for (const auto &result : schema.returns())
    view |= result.alias_info() && !result.alias_info()->isWrite();

  Guard guard(lock);
  const int own = key(stream_of(device.index()));
  Graph *graph = streams[own].capture;
  if (!view) {
    ++streams[own].issued;
    log().count("operator " + name);
    log().count("device " + std::to_string(device.index()));
    bool waits = WAITING.count(name) > 0;
    for (size_t i = 0; i < arguments.size(); ++i) {
      const auto *alias = arguments[i].alias_info();
      const bool writes = (alias && alias->isWrite()) || is_statistic(name, arguments[i].name());
      const bool indices = is_index(name) && arguments[i].name() == "indices";
      each((*stack)[first + i], [&](const Tensor &t) {
        waits |= indices && (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte);
        if (!t.is_cuda())
          return;
        touch(t.storage().data(), writes, name);
        if (writes && graph)
          graph->keep(t.storage().data());
      });
    }
    if (waits) {
      refuse_in_capture(name);
      log().count("SYNC " + name);
      known(streams[own].now(own));
    }
  }

  Twins twins(device);
  for (size_t i = first; i < stack->size(); ++i) {
    auto &value = (*stack)[i];
    if (value.isDevice() && value.toDevice().is_cuda())
      value = Device(DeviceType::CPU);
    else
      value = mapped(value, [&](const Tensor &t) { return twins.host(t); });
  }
  const torch::jit::Stack taken(stack->begin() + first, stack->end());
  call_cpu(op, stack);
  std::vector<Tensor> made;
  for (size_t i = first; i < stack->size(); ++i)
    (*stack)[i] = mapped((*stack)[i], [&](const Tensor &t) {
      made.push_back(t);
      const Tensor result = twins.back(t);
      if (!view && result.defined() && result.is_cuda())
        touch(result.storage().data(), true, name);
      return result;
    });
  twins.settle();
  if (!graph || view)
    return;
  std::vector<c10::Storage> storages;
  for (const auto &[real, twin] : twins.storages)
    storages.push_back(real);
  graph->add(name, storages, [op, taken, made] {
    torch::jit::Stack again(taken);
    call_cpu(op, &again);
    size_t i = 0;
    for (const auto &value : again)
      mapped(value, [&](const Tensor &t) {
        const Tensor &to = made[i++];
        if (t.defined() && to.defined() && t.numel() && !to.is_same(t) && !to.is_alias_of(t))
          copy_bytes(to, t);
        return t;
      });
  });
}

// ---------------------------------------------------------------- kernels that the CPU's cannot stand in for

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::OptionalDeviceGuard on(device && device->has_index() ? device : std::nullopt);
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), dtype.value_or(at::kFloat),
                                   format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  const c10::OptionalDeviceGuard on(device && device->has_index() ? device : std::nullopt);
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           dtype.value_or(at::kFloat));
}

// What is not of one kind and shape, and dense, goes through pageable memory, as in copy_kernel_cuda.
bool is_page_locked(const Tensor &host, const Tensor &device) {
  return host.scalar_type() == device.scalar_type() && host.sizes() == device.sizes() &&
         host.strides() == device.strides() && host.is_non_overlapping_and_dense() &&
         find(page_locked, host.storage().data());
}

Tensor &copy_(Tensor &self, const Tensor &src, bool later) {
  if (self.numel() == 0)
    return self;
  const Device device = self.is_cuda() ? self.device() : src.device();
  const c10::DeviceGuard on(device);
  Twins twins(device);
  Guard guard(lock);
  const int own = key(stream_of(device.index()));
  Graph *graph = streams[own].capture;
  ++streams[own].issued;
  for (const auto &[t, writes] : {std::pair(src, false), std::pair(Tensor(self), true)})
    if (t.is_cuda()) {
      touch(t.storage().data(), writes, "copy_");
      if (writes && graph)
        graph->keep(t.storage().data());
    }
  const Tensor to = twins.host(self), from = twins.host(src);
  std::vector<c10::Storage> storages;
  for (const auto &[real, twin] : twins.storages)
    storages.push_back(real);
  if (self.is_cuda() && src.is_cuda()) {
    log().count(self.device() == src.device() ? "operator copy_" : "copy between devices");
    copy_bytes(to, from);
    if (graph)
      graph->add("copy_", storages, [to, from] { copy_bytes(to, from); });
    return self;
  }
  const bool locked = self.is_cuda() ? is_page_locked(src, self) : is_page_locked(self, src);
  const std::string way = std::string(self.is_cuda() ? "upload" : "download") +
                          (locked ? ", page-locked" : ", pageable") + (later ? "" : ", blocking");
  const bool waits = !locked || !later;
  if (waits)
    refuse_in_capture(way);
  log().count(waits ? "SYNC " + way : way);
  if (waits || self.is_cuda())
    copy_bytes(to, from);
  if (waits) {
    known(streams[own].now(own));
  } else if (graph) {
    graph->add(way, storages, [to, from] { copy_bytes(to, from); });
  } else if (self.is_cuda()) {
    take_off(src.storage().data(), own);
  } else { // not there before it was waited for
    const Tensor value = from.clone();
    std::memset(self.data_ptr(), 0xFF, self.nbytes());
    flights.push_back({own, streams[own].issued, 0, [to, value] { copy_bytes(to, value); }});
  }
  return self;
}

at::Scalar item(const Tensor &t) {
  Twins twins(t.device());
  Guard guard(lock);
  refuse_in_capture("_local_scalar_dense");
  const int own = key(stream_of(t.device().index()));
  ++streams[own].issued;
  touch(t.storage().data(), false, "_local_scalar_dense");
  log().count("SYNC _local_scalar_dense");
  known(streams[own].now(own));
  return at::native::_local_scalar_dense_cpu(twins.host(t));
}

const Tensor &resize_(const Tensor &self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard on(self.device());
  return at::native::resize_(self, size, format);
}

Tensor &set_storage(Tensor &self, c10::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto *impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_sizes_and_strides(size, stride.data() ? stride.vec() : at::detail::defaultStrides(size), offset);
  return self;
}

void record_stream(Tensor &t, Stream s) { memory.recordStream(t.storage().data_ptr(), s); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_local_scalar_dense", item);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("record_stream", record_stream);
  const std::unordered_set<std::string> own{"empty.memory_format", "empty_strided", "copy_", "_local_scalar_dense",
                                            "resize_", "set_.source_Storage_storage_offset", "record_stream"};
  for (const auto &kernel : KERNELS)
    if (!own.count(kernel.name))
      m.impl(kernel.name, torch::CppFunction::makeFromBoxedFunction<&any_operator>());
  // One kernel of cuDNN's, and one of oneDNN's; otherwise it would choose one that is neither.
  m.impl("_convolution", torch::CppFunction::makeFromBoxedFunction<&any_operator>());
}

} // namespace fake
