// torch.distributed's C++ half (c10d) behind a C ABI. Every call returns null or an error text that the
// caller frees; no exception crosses. NCCL is in nccl.cpp.

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "group.h"
#include "guard.h"

using std::chrono::milliseconds;

struct ext_pending {
  c10::intrusive_ptr<c10d::Work> work;
};

namespace {

// Room that the caller frees.
uint8_t *bytes(size_t length) {
  auto *room = static_cast<uint8_t *>(std::malloc(std::max<size_t>(length, 1)));
  if (!room)
    throw std::bad_alloc();
  return room;
}

// Gives a group work to begin. The flight recorder that all groups of a process share enters a group's first work
// into a map without its lock (pytorch/pytorch#179313): where ranks are threads, Gloo's are given theirs one after the
// other. Giving Gloo work waits for nobody; NCCL's first waits for the other ranks.
template <typename Body> auto begin(const ext_group *group, Body body) {
  static std::mutex one_at_a_time;
  std::unique_lock<std::mutex> lock(one_at_a_time, std::defer_lock);
  if (group->backend->getBackendName() == "gloo")
    lock.lock();
  return body();
}

} // namespace

extern "C" {

// Serves a store on `port` (0 for any), or connects to the one there, waiting at most `timeout` for it.
// One that is served listens at `listener`, a socket bound to `port` that it takes over, or on every
// interface where that is -1. Gives a handle and the port.
char *ext_store_open(const char *host, uint16_t port, int serve, int listener, int64_t timeout,
                    ext_store **out, uint16_t *bound);
void ext_store_close(ext_store *store);
char *ext_store_set(ext_store *store, const char *key, const uint8_t *data, size_t length);
// Of a key that has no value yet.
char *ext_store_set_first(ext_store *store, const char *key, const uint8_t *data, size_t length);
// The value of `key`, to be freed by the caller; null and 0 while there is none. One message, which does
// not wait. No value may be the single byte 255.
char *ext_store_get(ext_store *store, const char *key, uint8_t **data, size_t *length);
// The values of keys that all have one, in one call: their lengths, then all of them end to end in `data`,
// to be freed by the caller. Waits for those that have none.
char *ext_store_get_all(ext_store *store, const char *const *keys, size_t count, size_t *lengths,
                       uint8_t **data);
// Waits, at most `timeout`, until `key` has a value. Gives whether it has.
char *ext_store_wait(ext_store *store, const char *key, int64_t timeout, int *there);
// Adds to a counter, from 0. Gives the sum.
char *ext_store_add(ext_store *store, const char *key, int64_t amount, int64_t *sum);

// A process group on CPU tensors. Every rank opens it with the same prefix. `address` is one of this
// machine's that the others can reach; the interface that GLOO_SOCKET_IFNAME names wins over it.
char *ext_gloo_open(ext_store *store, const char *prefix, int rank, int size, const char *address,
                   int64_t timeout, ext_group **out);
void ext_group_close(ext_group *group);
// Begins, in place, over all ranks: sum (op 0) or maximum (op 1). Gives a handle.
char *ext_group_all_reduce(ext_group *group, const at::Tensor *tensor, int op, ext_pending **out);
// Waits for the end; on a CUDA device, has its stream wait.
char *ext_pending_wait(ext_pending *pending);
// Of one that is over or whose group is never closed.
void ext_pending_close(ext_pending *pending);
// In place, from rank `root` to all.
char *ext_group_broadcast(ext_group *group, const at::Tensor *tensor, int root);
}

char *ext_store_open(const char *host, uint16_t port, int serve, int listener, int64_t timeout,
                    ext_store **out, uint16_t *bound) {
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serve != 0;
    options.waitWorkers = false;
    if (listener >= 0)
      options.masterListenFd = listener;
    options.timeout = milliseconds(timeout);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *bound = store->getPort();
    *out = new ext_store{std::move(store)};
  });
}

void ext_store_close(ext_store *store) { delete store; }

char *ext_store_set(ext_store *store, const char *key, const uint8_t *data, size_t length) {
  return guarded([&] { store->store->set(key, std::vector<uint8_t>(data, data + length)); });
}

char *ext_store_set_first(ext_store *store, const char *key, const uint8_t *data, size_t length) {
  return guarded([&] { store->store->compareSet(key, {}, std::vector<uint8_t>(data, data + length)); });
}

char *ext_store_get(ext_store *store, const char *key, uint8_t **data, size_t *length) {
  return guarded([&] {
    *data = nullptr;
    *length = 0;
    // A key without a value gives back what was expected of it, and is left without one.
    const std::vector<uint8_t> none{255};
    const auto value = store->store->compareSet(key, none, none);
    if (value == none)
      return;
    *data = bytes(value.size());
    std::copy(value.begin(), value.end(), *data);
    *length = value.size();
  });
}

char *ext_store_get_all(ext_store *store, const char *const *keys, size_t count, size_t *lengths,
                       uint8_t **data) {
  return guarded([&] {
    const auto values = store->store->multiGet({keys, keys + count});
    size_t length = 0;
    for (size_t i = 0; i < count; i++)
      length += lengths[i] = values.at(i).size();
    *data = bytes(length);
    auto *next = *data;
    for (const auto &value : values)
      next = std::copy(value.begin(), value.end(), next);
  });
}

char *ext_store_wait(ext_store *store, const char *key, int64_t timeout, int *there) {
  return guarded([&] {
    try {
      store->store->wait({key}, milliseconds(timeout));
      *there = 1;
    } catch (const c10::DistStoreError &) {
      // In vain. A lost connection is a DistNetworkError.
      *there = 0;
    }
  });
}

char *ext_store_add(ext_store *store, const char *key, int64_t amount, int64_t *sum) {
  return guarded([&] { *sum = store->store->add(key, amount); });
}

char *ext_gloo_open(ext_store *store, const char *prefix, int rank, int size, const char *address,
                   int64_t timeout, ext_group **out) {
  return guarded([&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout));
    const char *interface = std::getenv("GLOO_SOCKET_IFNAME");
    options->devices.push_back(interface
                                   ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                   : c10d::ProcessGroupGloo::createDeviceForHostname(address));
    auto own = c10::make_intrusive<c10d::PrefixStore>(prefix, store->store);
    *out = new ext_group{
        c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(own), rank, size, options)};
  });
}

void ext_group_close(ext_group *group) { delete group; }

char *ext_group_all_reduce(ext_group *group, const at::Tensor *tensor, int op, ext_pending **out) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = op == 0 ? c10d::ReduceOp::SUM : c10d::ReduceOp::MAX;
    *out = new ext_pending{
        begin(group, [&] { return group->backend->allreduce(tensors, options); })};
  });
}

char *ext_pending_wait(ext_pending *pending) {
  return guarded([&] { pending->work->wait(); });
}

void ext_pending_close(ext_pending *pending) { delete pending; }

char *ext_group_broadcast(ext_group *group, const at::Tensor *tensor, int root) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    begin(group, [&] { return group->backend->broadcast(tensors, options); })->wait();
  });
}
