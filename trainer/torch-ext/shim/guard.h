// How the calls of the shim end: null, or an error text that the caller frees.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>

namespace {

inline char *text(const char *message) {
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
