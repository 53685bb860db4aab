// What ran and for how long, as libtorch's profiler (Kineto) sees it.

#include <memory>
#include <set>
#include <string>

#include <torch/csrc/autograd/profiler_kineto.h>

#include "guard.h"

using torch::autograd::profiler::ActivityType;
using torch::autograd::profiler::ProfilerConfig;
using torch::autograd::profiler::ProfilerState;

extern "C" {

// One operator, call of CUDA or kernel.
struct ext_span {
  const char *name;
  int64_t device; // number of the device that it ran on, -1 for the host
  uint64_t thread;
  uint64_t start, duration; // nanoseconds
  uint64_t id, cause;       // of an operator, and of the operator that started a kernel; 0 for none
};
typedef void (*ext_seen)(void *context, const ext_span *span);

// Records this thread's operators and those of its backward passes from now on, with `device` kernels too.
char *ext_profile_start(int device);
// Ends that, and tells of all spans in no order. A name lives as long as the call.
char *ext_profile_stop(ext_seen seen, void *context);
}

char *ext_profile_start(int device) {
  return guarded([&] {
    std::set<ActivityType> activities{ActivityType::CPU};
    if (device)
      activities.insert(ActivityType::CUDA);
    const ProfilerConfig config(ProfilerState::KINETO);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION});
  });
}

char *ext_profile_stop(ext_seen seen, void *context) {
  return guarded([&] {
    const auto result = torch::autograd::profiler::disableProfiler();
    for (const auto &event : result->events()) {
      const std::string name = event.name();
      const bool host = event.deviceType() == c10::DeviceType::CPU;
      const ext_span span{name.c_str(),         host ? -1 : event.deviceIndex(), event.startThreadId(),
                         event.startNs(),      event.durationNs(),              event.correlationId(),
                         event.linkedCorrelationId()};
      seen(context, &span);
    }
  });
}
