// What a device is: streams and the order of their work, memory and who uses it, and the log. Part of
// fake_cuda.cpp.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/Stream.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>

#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace fake {
using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

// Over all that follows.
std::recursive_mutex lock;
using Guard = std::lock_guard<std::recursive_mutex>;

const char *setting(const char *name, const char *otherwise) {
  const char *text = std::getenv(name);
  return text ? text : otherwise;
}

// Whether FAKE_CUDA_BREAK names this: `block` (a stream does not wait for an event), `record` (record_stream
// is forgotten), `sync` (the host does not wait for an event), `wait` (a stream does not wait for NCCL).
bool broken(const char *what) {
  static const std::string named = setting("FAKE_CUDA_BREAK", "");
  return named == what;
}

// ---------------------------------------------------------------- log

// FAULT lines as they are seen, COUNT lines at exit.
struct Log {
  std::map<std::string, int64_t> counts;
  std::FILE *file = std::fopen(setting("FAKE_CUDA_LOG", "/dev/null"), "a");
  void count(const std::string &what, int64_t n = 1) {
    Guard guard(lock);
    counts[what] += n;
  }
  void fault(const std::string &text) {
    Guard guard(lock);
    for (std::FILE *to : {file, stderr})
      if (to) {
        std::fprintf(to, "FAULT %s\n", text.c_str());
        std::fflush(to);
      }
  }
  void end() {
    Guard guard(lock);
    for (const auto &[what, n] : counts)
      if (file)
        std::fprintf(file, "COUNT %ld %s\n", static_cast<long>(n), what.c_str());
    if (file)
      std::fflush(file);
  }
};
Log &log() {
  static Log *all = [] {
    std::atexit([] { log().end(); });
    return new Log; // never freed: other threads may still compute
  }();
  return *all;
}

// ---------------------------------------------------------------- devices, streams and the order of work

constexpr int MOST_DEVICES = 4, STREAMS = 16, KEYS = MOST_DEVICES * STREAMS;
constexpr int NCCL_STREAM = STREAMS - 1;

DeviceIndex count() {
  static const int n = std::atoi(setting("FAKE_CUDA_DEVICES", "2"));
  return static_cast<DeviceIndex>(std::max(0, std::min(MOST_DEVICES, n)));
}

thread_local DeviceIndex current = 0;
thread_local std::array<c10::StreamId, MOST_DEVICES> current_stream{};

// How much of each stream's work is known to be done (a vector clock).
struct Clock {
  std::array<uint64_t, KEYS> done{};
  void merge(const Clock &other) {
    for (int i = 0; i < KEYS; ++i)
      done[i] = std::max(done[i], other.done[i]);
  }
  bool covers(const Clock &other) const {
    for (int i = 0; i < KEYS; ++i)
      if (done[i] < other.done[i])
        return false;
    return true;
  }
};

struct Graph;
struct State {
  uint64_t issued = 0;      // pieces of work that it was given
  Clock before;             // what is done before the next of them begins
  Graph *capture = nullptr; // what its work is recorded into
  Clock now(int own) const {
    Clock clock = before;
    clock.done[own] = issued;
    return clock;
  }
};
State streams[KEYS];
Clock host; // what the host has waited for

int key(const Stream &s) { return s.device_index() * STREAMS + static_cast<int>(s.id()); }
Stream stream_of(DeviceIndex device) {
  return Stream(Stream::UNSAFE, Device(DeviceType::CUDA, device), current_stream[device]);
}

// CUDA's error where a stream of this thread is being recorded.
void refuse_in_capture(const std::string &what) {
  for (int i = 0; i < count(); ++i)
    TORCH_CHECK(!streams[key(stream_of(i))].capture,
                "CUDA error: operation not permitted when stream is capturing (", what, ")");
}

// ---------------------------------------------------------------- memory

struct Block { // of device memory
  size_t bytes;
  DeviceIndex device;
  int born;                     // the stream that was current
  uint64_t graph;               // number of the graph that was being recorded; 0 for none
  int writer = -1;              // the stream of the last write
  uint64_t written = 0;         // which piece of its work
  std::map<int, uint64_t> used; // by stream: the last piece of work that uses it
  std::set<int> recorded;       // streams that record_stream named
};
std::map<uintptr_t, Block> blocks;

struct Locked { // page-locked host memory; read-only while a copy from it may be under way
  size_t bytes;
  int copies = 0;
};
std::map<uintptr_t, Locked> page_locked;

// The entry whose memory `pointer` is in, or null.
template <typename Value> std::pair<const uintptr_t, Value> *find(std::map<uintptr_t, Value> &all, const void *pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto it = all.upper_bound(address);
  if (it == all.begin())
    return nullptr;
  --it;
  return address < it->first + std::max<size_t>(it->second.bytes, 1) ? &*it : nullptr;
}

struct Flight { // a copy that may be under way
  int stream;
  uint64_t piece;
  uintptr_t source; // page-locked memory that it reads; 0 for none
  std::function<void()> land;
};
std::list<Flight> flights;

void protect(uintptr_t memory, const Locked &locked, int may) {
  mprotect(reinterpret_cast<void *>(memory), (locked.bytes + 4095) / 4096 * 4096, may);
}

// A copy from page-locked memory begins in `stream`.
void take_off(const void *source, int stream) {
  auto *from = find(page_locked, source);
  if (from->second.copies++ == 0)
    protect(from->first, from->second, PROT_READ);
  flights.push_back({stream, streams[stream].issued, from->first, [from] {
                       if (--from->second.copies == 0)
                         protect(from->first, from->second, PROT_READ | PROT_WRITE);
                     }});
}

// The host has waited for this.
void known(const Clock &clock) {
  host.merge(clock);
  for (auto it = flights.begin(); it != flights.end();) {
    const auto flight = it++;
    if (host.done[flight->stream] < flight->piece)
      continue;
    flight->land();
    flights.erase(flight);
  }
}

// `stream` is given work that uses memory. Whoever used it otherwise before must be known to be done.
void touch(const void *memory, bool writes, const std::string &work) {
  if (!memory)
    return;
  auto *found = find(blocks, memory);
  if (!found)
    return log().fault(work + " uses memory that is not, or no longer, the device's");
  Block &block = found->second;
  const int own = key(stream_of(block.device));
  State &state = streams[own];
  state.before.merge(host);
  const auto open = [&](int other, uint64_t piece) { return other != own && state.before.done[other] < piece; };
  const auto said = [&](const char *how, int other, const char *doing) {
    log().fault(work + " in stream " + std::to_string(own) + how + std::to_string(other) + doing);
  };
  if (block.writer >= 0 && open(block.writer, block.written))
    said(" uses what stream ", block.writer, " may still be writing");
  if (writes)
    for (const auto &[other, piece] : block.used)
      if (open(other, piece))
        said(" writes what stream ", other, " may still be using");
  block.used[own] = state.issued;
  if (writes) {
    block.writer = own;
    block.written = state.issued;
  }
}

uint64_t graphs = 0; // recorded so far
c10::CachingDeviceAllocator::DeviceStats stats[MOST_DEVICES];

void free_block(void *pointer) {
  if (!pointer)
    return;
  Guard guard(lock);
  const auto it = blocks.find(reinterpret_cast<uintptr_t>(pointer));
  TORCH_INTERNAL_ASSERT(it != blocks.end(), "memory freed twice");
  const Block &block = it->second;
  for (const auto &[stream, piece] : block.used)
    if (!block.graph && stream != block.born && !block.recorded.count(stream) && host.done[stream] < piece &&
        streams[block.born].before.done[stream] < piece)
      log().fault("memory of stream " + std::to_string(block.born) + " is freed while stream " +
                  std::to_string(stream) + " may use it: no record_stream");
  stats[block.device].allocated_bytes[0].decrease(block.bytes);
  std::memset(pointer, 0xDB, block.bytes);
  std::free(pointer);
  blocks.erase(it);
}

void *new_block(size_t bytes) {
  static const long long limit = std::atoll(setting("FAKE_CUDA_BYTES", "0"));
  Guard guard(lock);
  auto &taken = stats[current].allocated_bytes[0];
  const long long left = limit - taken.current;
  TORCH_CHECK_WITH(OutOfMemoryError, !limit || static_cast<long long>(bytes) <= left,
                   "CUDA out of memory. Tried to allocate ", bytes / 1048576.0, " MiB. GPU ", int(current),
                   " has a total capacity of ", limit / 1048576.0, " MiB of which ", left / 1048576.0, " MiB is free.");
  void *pointer = nullptr;
  TORCH_CHECK(posix_memalign(&pointer, 512, std::max<size_t>(bytes, 1)) == 0, "the host has no more memory");
  std::memset(pointer, 0xFF, bytes); // NaN, or -1
  const int stream = key(stream_of(current));
  blocks.emplace(reinterpret_cast<uintptr_t>(pointer),
                 Block{bytes, current, stream, streams[stream].capture ? graphs : 0});
  taken.increase(bytes);
  return pointer;
}

namespace caching = c10::cuda::CUDACachingAllocator;
struct Memory final : caching::CUDAAllocator {
  c10::DataPtr allocate(size_t n) override {
    void *p = new_block(n);
    return {p, p, &free_block, Device(DeviceType::CUDA, current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void *to, const void *from, size_t n) const override { std::memcpy(to, from, n); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr &p, Stream s) override {
    Guard guard(lock);
    if (auto *block = find(blocks, p.get()); block && !broken("record"))
      block->second.recorded.insert(key(s));
  }
  void recordStream(const c10::DataPtr &p, c10::cuda::CUDAStream s) override { recordStream(p, s.unwrap()); }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex d) override { return stats[d]; }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex d) override { stats[d].allocated_bytes[0].reset_peak(); }
  void *raw_alloc(size_t n) override { return new_block(n); }
  void raw_delete(void *p) override { free_block(p); }
  bool isEnabled() const override { return true; }
  std::string name() override { return "fake"; }
  // What nobody asks of it.
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex) override { unused(); }
  void *raw_alloc_with_stream(size_t, cudaStream_t) override { unused(); }
  void init(int) override { unused(); }
  double getMemoryFraction(DeviceIndex) override { unused(); }
  void setMemoryFraction(double, DeviceIndex) override { unused(); }
  std::vector<caching::StreamSegmentSize> getExpandableSegmentSizes(DeviceIndex) override { unused(); }
  void enable(bool) override { unused(); }
  void cacheInfo(DeviceIndex, size_t *) override { unused(); }
  void *getBaseAllocation(void *, size_t *) override { unused(); }
  caching::SnapshotInfo snapshot(c10::MempoolId_t, bool) override { unused(); }
  void beginAllocateToPool(DeviceIndex, c10::MempoolId_t, std::function<bool(cudaStream_t)>) override { unused(); }
  void endAllocateToPool(DeviceIndex, c10::MempoolId_t) override { unused(); }
  void releasePool(DeviceIndex, c10::MempoolId_t) override { unused(); }
  caching::ShareableHandle shareIpcHandle(void *) override { unused(); }
  std::shared_ptr<void> getIpcDevPtr(std::string) override { unused(); }
  void recordHistory(bool, caching::CreateContextFn, size_t, caching::RecordContext, bool,
                     const std::vector<std::string> &) override { unused(); }
  void attachOutOfMemoryObserver(caching::OutOfMemoryObserver) override { unused(); }
  void attachAllocatorTraceTracker(caching::AllocatorTraceTracker) override { unused(); }
  void enablePeerAccess(DeviceIndex, DeviceIndex) override { unused(); }
  cudaError_t memcpyAsync(void *, int, const void *, int, size_t, cudaStream_t, bool) override { unused(); }
  std::shared_ptr<caching::AllocatorState> getCheckpointState(DeviceIndex, c10::MempoolId_t) override { unused(); }
  caching::CheckpointDelta setCheckpointPoolState(DeviceIndex, std::shared_ptr<caching::AllocatorState>) override {
    unused();
  }
  [[noreturn]] static void unused() { TORCH_CHECK(false, "not a part of this fake"); }
};
Memory memory;

// The CPU's memory; the device's where a CPU kernel computes for it.
thread_local bool on_device = false;
c10::Allocator *cpu_memory = nullptr;
struct HostMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    if (!on_device)
      return cpu_memory->allocate(n);
    void *p = new_block(n);
    return {p, p, &free_block, Device(DeviceType::CPU)};
  }
  static void release(void *p) {
    Guard guard(lock);
    blocks.count(reinterpret_cast<uintptr_t>(p)) ? free_block(p) : cpu_memory->raw_deleter()(p);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void *to, const void *from, size_t n) const override { std::memcpy(to, from, n); }
};
HostMemory host_memory;

struct PageLockedMemory final : c10::Allocator {
  static void release(void *p) { // CUDA's keeps it until the copies are done
    Guard guard(lock);
    const auto it = page_locked.find(reinterpret_cast<uintptr_t>(p));
    flights.remove_if([&](const Flight &flight) { return flight.source == it->first; });
    munmap(p, it->second.bytes);
    page_locked.erase(it);
  }
  c10::DataPtr allocate(size_t n) override {
    const size_t bytes = std::max<size_t>(n, 1);
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(p != MAP_FAILED, "no page-locked memory");
    Guard guard(lock);
    page_locked.emplace(reinterpret_cast<uintptr_t>(p), Locked{bytes});
    return {p, p, &release, Device(DeviceType::CPU)};
  }
  void copy_data(void *to, const void *from, size_t n) const override { std::memcpy(to, from, n); }
};
PageLockedMemory page_locked_memory;

} // namespace fake
