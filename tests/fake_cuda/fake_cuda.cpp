// A CUDA device without a GPU, to test the path through CUDA where there is none: host memory for the device's, and
// libtorch's CPU kernels for CUDA's. Built as libtorch_cuda.so (tests/build.rs) and found in its place through
// LD_LIBRARY_PATH. It refuses what CUDA refuses (operands of other devices, kernels that there are not, reading back
// while a graph is recorded), keeps the order of streams in vector clocks, and says where work could meet memory
// that other work still uses. Of real kernels' numbers, of cuDNN, NCCL and speed it knows nothing.
//
//   FAKE_CUDA_DEVICES  how many (2)
//   FAKE_CUDA_BYTES    memory of each (0: no limit)
//   FAKE_CUDA_LOG      file that gets FAULT lines as they are seen, and COUNT lines at exit
//   FAKE_CUDA_BREAK    what is left out, to test the detectors (device.h)
#include "operators.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <csignal>

namespace fake {

// ---------------------------------------------------------------- c10's view of the device

struct DeviceGuardImpl final : c10::impl::DeviceGuardImplInterface {
  static Clock &event(void *handle) { return *static_cast<Clock *>(handle); }
  static DeviceIndex index(Device d) { return d.index() < 0 ? current : d.index(); }

  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override { return Device(DeviceType::CUDA, current); }
  void setDevice(Device d) const override {
    TORCH_CHECK(d.index() >= 0 && d.index() < count(), "CUDA error: invalid device ordinal");
    current = d.index();
  }
  void uncheckedSetDevice(Device d) const noexcept override { current = index(d); }
  Device exchangeDevice(Device d) const override {
    const Device before = getDevice();
    setDevice(d);
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return count(); }

  Stream getStream(Device d) const override { return stream_of(index(d)); }
  Stream getDefaultStream(Device d) const override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, index(d))); }
  Stream getStreamFromGlobalPool(Device d, bool) const override {
    static std::atomic<int> taken{0};
    return Stream(Stream::UNSAFE, Device(DeviceType::CUDA, index(d)), 1 + taken++ % (NCCL_STREAM - 1));
  }
  Stream exchangeStream(Stream s) const override {
    const Stream before = stream_of(s.device_index());
    current_stream[s.device_index()] = s.id();
    return before;
  }
  bool queryStream(const Stream &s) const override {
    Guard guard(lock);
    return host.covers(streams[key(s)].now(key(s)));
  }
  void synchronizeStream(const Stream &s) const override {
    Guard guard(lock);
    refuse_in_capture("synchronizeStream");
    log().count("SYNC stream");
    known(streams[key(s)].now(key(s)));
  }
  void synchronizeDevice(const DeviceIndex d) const override {
    Guard guard(lock);
    refuse_in_capture("synchronizeDevice");
    log().count("SYNC device");
    for (int s = d * STREAMS; s < (d + 1) * STREAMS; ++s)
      known(streams[s].now(s));
  }
  void recordDataPtrOnStream(const c10::DataPtr &p, const Stream &s) const override { memory.recordStream(p, s); }

  void record(void **handle, const Stream &s, const DeviceIndex, const c10::EventFlag) const override {
    Guard guard(lock);
    if (!*handle)
      *handle = new Clock;
    event(*handle) = streams[key(s)].now(key(s));
  }
  void block(void *handle, const Stream &s) const override {
    Guard guard(lock);
    if (handle && !broken("block"))
      streams[key(s)].before.merge(event(handle));
  }
  bool queryEvent(void *handle) const override {
    Guard guard(lock);
    return !handle || host.covers(event(handle));
  }
  void synchronizeEvent(void *handle) const override {
    Guard guard(lock);
    refuse_in_capture("synchronizeEvent");
    if (!handle)
      return;
    log().count("wait for an event");
    if (!broken("sync"))
      known(event(handle));
  }
  void destroyEvent(void *handle, const DeviceIndex) const noexcept override { delete static_cast<Clock *>(handle); }
};
const DeviceGuardImpl guard_impl;
C10_REGISTER_GUARD_IMPL(CUDA, DeviceGuardImpl)

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return count() > 0; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return count(); }
  int getNumGPUs() const override { return count(); }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex current_device() const override { return current; }
  void setCurrentDevice(DeviceIndex d) const override { current = d; }
  DeviceIndex exchangeDevice(DeviceIndex d) const override { return std::exchange(current, d); }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return std::exchange(current, d); }
  bool isPinnedPtr(const void *p) const override {
    Guard guard(lock);
    return find(page_locked, p) != nullptr;
  }
  c10::Allocator *getPinnedMemoryAllocator() const override { return &page_locked_memory; }
  c10::Allocator *getCUDADeviceAllocator() const override { return &memory; }
  Device getDeviceFromPtr(void *p) const override {
    Guard guard(lock);
    const auto *block = find(blocks, p);
    TORCH_CHECK(block, "not device memory");
    return Device(DeviceType::CUDA, block->second.device);
  }
  std::string showConfig() const override { return "a fake CUDA device"; }
  void deviceSynchronize(DeviceIndex d) const override { guard_impl.synchronizeDevice(d); }
};

// Page-locked memory is read-only while a copy may still read it; says so where the host writes to it.
void segmentation_fault(int, siginfo_t *info, void *) {
  const auto *locked = find(page_locked, info->si_addr);
  if (locked && locked->second.copies)
    log().fault("the host writes page-locked memory that a copy may still read");
  std::signal(SIGSEGV, SIG_DFL); // the write is tried again
}

const bool started = [] {
  struct sigaction action {};
  action.sa_sigaction = segmentation_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  c10::SetAllocator(DeviceType::CUDA, &memory, 255);
  cpu_memory = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&host_memory, 255);
  log();
  return true;
}();

} // namespace fake

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, fake::Hooks)
} // namespace at

// ---------------------------------------------------------------- what the trainer's parts over CUDA name

namespace c10::cuda {
namespace CUDACachingAllocator {
std::atomic<CUDAAllocator *> allocator{&fake::memory};
}
namespace {
Device at(DeviceIndex d) { return Device(DeviceType::CUDA, d); }
} // namespace
DeviceIndex device_count() noexcept { return fake::count(); }
cudaError_t GetDevice(DeviceIndex *d) {
  *d = fake::current;
  return cudaSuccess;
}
cudaError_t SetDevice(DeviceIndex d, const bool) {
  fake::current = d;
  return cudaSuccess;
}
cudaError_t MaybeSetDevice(DeviceIndex d) { return SetDevice(d, false); }
DeviceIndex ExchangeDevice(DeviceIndex d) { return std::exchange(fake::current, d); }
void device_synchronize() { fake::guard_impl.synchronizeDevice(fake::current); }
void c10_cuda_check_implementation(const int32_t error, const char *, const char *, const uint32_t, const bool) {
  TORCH_CHECK(error == 0, "CUDA error ", error);
}
cudaStream_t CUDAStream::stream() const { return reinterpret_cast<cudaStream_t>(stream_.id()); }
bool CUDAStream::query() const { return fake::guard_impl.queryStream(stream_); }
void CUDAStream::synchronize() const { fake::guard_impl.synchronizeStream(stream_); }
CUDAStream getStreamFromPool(const bool, DeviceIndex d) {
  return CUDAStream(fake::guard_impl.getStreamFromGlobalPool(at(d), false));
}
CUDAStream getStreamFromPool(const int, DeviceIndex d) { return getStreamFromPool(false, d); }
CUDAStream getDefaultCUDAStream(DeviceIndex d) { return CUDAStream(fake::guard_impl.getDefaultStream(at(d))); }
CUDAStream getCurrentCUDAStream(DeviceIndex d) { return CUDAStream(fake::guard_impl.getStream(at(d))); }
void setCurrentCUDAStream(CUDAStream s) { fake::guard_impl.exchangeStream(s.unwrap()); }
} // namespace c10::cuda

extern "C" {
// Named by inline functions of CUDA's headers that nothing here calls.
#define UNUSED(name, ...)                                                                                              \
  cudaError_t name(__VA_ARGS__) {                                                                                      \
    fake::log().fault(#name " is not a part of this fake");                                                            \
    return cudaErrorNotSupported;                                                                                      \
  }
UNUSED(cudaDeviceSynchronize)
UNUSED(cudaEventCreateWithFlags, cudaEvent_t *, unsigned)
UNUSED(cudaEventDestroy, cudaEvent_t)
UNUSED(cudaEventElapsedTime, float *, cudaEvent_t, cudaEvent_t)
UNUSED(cudaEventQuery, cudaEvent_t)
UNUSED(cudaEventRecord, cudaEvent_t, cudaStream_t)
UNUSED(cudaEventSynchronize, cudaEvent_t)
UNUSED(cudaGetLastError)
UNUSED(cudaStreamWaitEvent, cudaStream_t, cudaEvent_t, unsigned)
const char *cudaGetErrorString(cudaError_t) { return "an error of a fake device"; }

// The driver's library is this one, too (libcuda.so.1).
int fake_init(unsigned) __asm__("cuInit");
int fake_device(int *, int) __asm__("cuDeviceGet");
int fake_name(char *, int, int) __asm__("cuDeviceGetName");
int fake_init(unsigned) { return fake::count() > 0 ? 0 : 100; }
int fake_device(int *device, int index) {
  *device = index;
  return index < fake::count() ? 0 : 101;
}
int fake_name(char *name, int room, int) {
  std::snprintf(name, room, "Fake GPU");
  return 0;
}
}

namespace at::cuda {
// As the trainer sees it, behind a pointer.
struct CUDAGraph {
  CUDAGraph(bool keep = false);
  ~CUDAGraph();
  void capture_begin(c10::MempoolId_t pool, cudaStreamCaptureMode mode);
  void capture_end();
  void replay();
  c10::MempoolId_t pool();
  fake::Graph *own;
};
CUDAGraph::CUDAGraph(bool) : own(new fake::Graph{}) {}
CUDAGraph::~CUDAGraph() { delete own; }
c10::MempoolId_t CUDAGraph::pool() { return {own->number, 0}; }
void CUDAGraph::capture_begin(c10::MempoolId_t, cudaStreamCaptureMode) {
  fake::Guard guard(fake::lock);
  own->device = fake::current;
  own->stream = fake::key(fake::stream_of(fake::current));
  TORCH_CHECK(own->stream % fake::STREAMS, "CUDA graphs must be captured on a non-default stream.");
  own->number = ++fake::graphs;
  fake::streams[own->stream].capture = own;
}
void CUDAGraph::capture_end() {
  fake::Guard guard(fake::lock);
  fake::streams[own->stream].capture = nullptr;
  for (const auto &[memory, bytes] : own->before) // nothing of it has run
    std::memcpy(reinterpret_cast<void *>(memory), bytes.data(), bytes.size());
  own->before.clear();
  fake::log().count("graph recorded");
  fake::known(fake::streams[own->stream].now(own->stream));
}
void CUDAGraph::replay() {
  fake::Guard guard(fake::lock);
  const c10::DeviceGuard on(c10::Device(c10::DeviceType::CUDA, own->device));
  fake::log().count("graph replayed");
  ++fake::streams[fake::key(fake::stream_of(own->device))].issued;
  for (const auto &work : own->work)
    work();
}
} // namespace at::cuda

namespace c10d {
// NCCL's place is taken by Gloo, over the same memory and in a stream of its own.
class ProcessGroupNCCL : public Backend {
public:
  struct Options : Backend::Options { // the beginning of the real one, whose size the trainer allocates
    explicit Options(bool high_priority);
  };
  ProcessGroupNCCL(c10::intrusive_ptr<Store> store, int rank, int size, c10::intrusive_ptr<Options> options);
  const std::string getBackendName() const override { return "nccl"; }
  c10::intrusive_ptr<Work> allreduce(std::vector<at::Tensor> &all, const AllreduceOptions &options) override {
    return send("all_reduce", all, [&](auto &twins) { return gloo->allreduce(twins, options); });
  }
  c10::intrusive_ptr<Work> broadcast(std::vector<at::Tensor> &all, const BroadcastOptions &options) override {
    return send("broadcast", all, [&](auto &twins) { return gloo->broadcast(twins, options); });
  }

private:
  struct Sent : Work {
    c10::intrusive_ptr<Work> inner;
    std::vector<at::Tensor> held;
    c10::DeviceIndex device;
    fake::Clock done;
    bool wait(std::chrono::milliseconds limit) override { // CUDA's lets the current stream wait
      const bool ended = inner->wait(limit);
      fake::Guard guard(fake::lock);
      if (!fake::broken("wait"))
        fake::streams[fake::key(fake::stream_of(device))].before.merge(done);
      return ended;
    }
  };

  template <typename F> c10::intrusive_ptr<Work> send(const char *name, std::vector<at::Tensor> &all, F &&through) {
    const auto device = all.at(0).device();
    TORCH_CHECK(device.is_cuda() && all[0].is_contiguous(), "Tensors must be CUDA and dense");
    meet(device);
    auto sent = c10::make_intrusive<Sent>();
    sent->held = all;
    sent->device = device.index();
    fake::Twins twins(device);
    std::vector<at::Tensor> own;
    {
      fake::Guard guard(fake::lock);
      const int from = fake::key(fake::stream_of(sent->device)), to = sent->device * fake::STREAMS + fake::NCCL_STREAM;
      fake::streams[to].before.merge(fake::streams[from].now(from));
      ++fake::streams[to].issued;
      const auto before = std::exchange(fake::current_stream[sent->device], fake::NCCL_STREAM);
      for (const auto &t : all) {
        fake::touch(t.storage().data(), true, name);
        fake::memory.recordStream(t.storage().data_ptr(), fake::stream_of(sent->device));
        own.push_back(twins.host(t));
      }
      fake::current_stream[sent->device] = before;
      fake::log().count(std::string("NCCL ") + name);
      sent->done = fake::streams[to].now(to);
    }
    sent->inner = through(own);
    return sent;
  }

  // NCCL refuses two ranks on one device, at the first collective.
  void meet(c10::Device device) {
    if (std::exchange(met, true))
      return;
    const auto key = [](int rank) { return "gpu/" + std::to_string(rank); };
    const std::string own = fake::setting("CUDA_VISIBLE_DEVICES", "") + ("/" + std::to_string(device.index()));
    store->set(key(getRank()), std::vector<uint8_t>(own.begin(), own.end()));
    for (int rank = 0; rank < getSize(); ++rank) {
      const auto other = store->get(key(rank));
      TORCH_CHECK(rank == getRank() || std::string(other.begin(), other.end()) != own,
                  "NCCL error: invalid usage (run with NCCL_DEBUG=WARN for details)\nncclInvalidUsage: This usually "
                  "reflects invalid usage of NCCL library.\nLast error:\nDuplicate GPU detected : rank ", getRank(),
                  " and rank ", rank, " both on CUDA device ", int(device.index()));
    }
  }
  c10::intrusive_ptr<Store> store;
  c10::intrusive_ptr<ProcessGroupGloo> gloo;
  bool met = false;
};
ProcessGroupNCCL::Options::Options(bool) : Backend::Options("nccl") {}
ProcessGroupNCCL::ProcessGroupNCCL(c10::intrusive_ptr<Store> with, int rank, int size,
                                   c10::intrusive_ptr<Options> options)
    : Backend(rank, size), store(std::move(with)) {
  TORCH_CHECK(fake::count() > 0, "ProcessGroupNCCL is only supported with GPUs, no GPUs found!");
  auto inner = ProcessGroupGloo::Options::create(options->timeout);
  inner->devices.push_back(ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
  gloo = c10::make_intrusive<ProcessGroupGloo>(c10::make_intrusive<PrefixStore>("fake/", store), rank, size, inner);
}
} // namespace c10d
