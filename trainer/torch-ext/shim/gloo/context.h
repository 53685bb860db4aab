// Stands in for Gloo's header, which torch's wheel leaves out though libtorch_cpu holds Gloo itself.
// ProcessGroupGloo.hpp needs the names and only passes pointers: nothing here has a layout that counts.
#pragma once

#include <chrono>

namespace gloo {
class Context {
public:
  void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
