// What the two units of c10d share.
#pragma once

#include <chrono>
#include <cstdint>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

struct ext_store {
  c10::intrusive_ptr<c10d::Store> store;
};

struct ext_group {
  c10::intrusive_ptr<c10d::Backend> backend;
};
