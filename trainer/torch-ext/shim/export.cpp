// TorchScript of a network: tensors registered under their names, `forward` as traced.

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include "guard.h"

using torch::autograd::Variable;
using torch::jit::IValue;
using torch::jit::Module;
using torch::jit::Stack;

extern "C" {

// A tensor that the network reads, under a name with dots ("block0.conv1.weight").
struct ext_named {
  const char *name;
  Variable *tensor;
  int trainable; // a parameter, or a buffer
};

// Computes the outputs of the network, owned tensors, from its input. Returns 0, or 1 if it failed.
typedef int (*ext_forward)(void *context, const Variable *input, Variable **outputs);

// Runs `forward` once on `example` and saves what it did at `path` as a TorchScript module named `name`
// on the CPU. `forward` must read the very tensors given. The module takes one tensor, called `argument`,
// and returns a tensor if `count_outputs` is 1 and `outputs` is null, else a dictionary with the keys
// `outputs`. `note` goes in as the extra file `note_name`.
char *ext_script(const char *name, const ext_named *tensors, size_t count, const char *argument,
                Variable *example, ext_forward forward, void *context, const char *const *outputs,
                size_t count_outputs, const char *note_name, const char *note, const char *path);
}

namespace {

// A module tree built from dotted names.
struct Tree {
  Module root;
  std::map<std::string, Module> children; // by dotted path

  explicit Tree(const std::string &name) : root(c10::QualifiedName("__torch__." + name)) {
    root.register_attribute("training", c10::BoolType::get(), false);
  }

  // The module at a dotted path, made where it is missing.
  Module at(const std::string &path) {
    if (path.empty())
      return root;
    const auto found = children.find(path);
    if (found != children.end())
      return found->second;
    const size_t dot = path.rfind('.');
    const bool top = dot == std::string::npos;
    Module parent = at(top ? "" : path.substr(0, dot));
    const c10::QualifiedName type(parent.type()->name()->qualifiedName() + "_" +
                                  (top ? path : path.substr(dot + 1)));
    Module child(type, root._ivalue()->compilation_unit(), true);
    child.register_attribute("training", c10::BoolType::get(), false);
    parent.register_module(top ? path : path.substr(dot + 1), child);
    children.emplace(path, child);
    return child;
  }

  // The module that holds the tensor of this name, and its name there.
  std::pair<Module, std::string> place(const std::string &name) {
    const size_t dot = name.rfind('.');
    if (dot == std::string::npos)
      return {root, name};
    return {at(name.substr(0, dot)), name.substr(dot + 1)};
  }
};

IValue result(const std::vector<Variable> &values, const char *const *keys) {
  if (!keys)
    return values.at(0);
  c10::Dict<std::string, at::Tensor> dict;
  for (size_t i = 0; i < values.size(); ++i)
    dict.insert(keys[i], values[i]);
  return dict;
}

} // namespace

char *ext_script(const char *name, const ext_named *tensors, size_t count, const char *argument,
                Variable *example, ext_forward forward, void *context, const char *const *outputs,
                size_t count_outputs, const char *note_name, const char *note, const char *path) {
  return guarded([&] {
    Tree tree(name);
    for (const ext_named *t = tensors; t != tensors + count; ++t) {
      auto [module, leaf] = tree.place(t->name);
      module.register_parameter(leaf, *t->tensor, !t->trainable);
    }
    const auto run = [&](Stack in) -> Stack {
      const Variable input = in.at(0).toTensor();
      std::vector<Variable *> raw(count_outputs, nullptr);
      const int failed = forward(context, &input, raw.data());
      std::vector<Variable> values(count_outputs);
      for (size_t i = 0; i < count_outputs; ++i) {
        const std::unique_ptr<Variable> owned(raw[i]);
        if (owned)
          values[i] = *owned;
      }
      if (failed)
        throw std::runtime_error("the forward pass of an exported network failed");
      return {result(values, outputs)};
    };
    const auto unnamed = [](const Variable &) { return std::string(); };
    // Not strict: a dictionary is what we mean to return.
    const auto traced = torch::jit::tracer::trace({*example}, run, unnamed, false, false, &tree.root,
                                                  {argument});
    auto *function = tree.root._ivalue()->compilation_unit()->create_function(
        c10::QualifiedName(*tree.root.type()->name(), "forward"), traced.first->graph);
    tree.root.type()->addMethod(function);
    // Ours are views of one flat tensor, which a file would hold as a whole.
    for (const ext_named *t = tensors; t != tensors + count; ++t) {
      auto [module, leaf] = tree.place(t->name);
      const at::Tensor own = t->tensor->detach().to(at::kCPU, false, true).contiguous();
      module.setattr(leaf, own.clone().set_requires_grad(t->trainable != 0));
    }
    tree.root.save(path, {{note_name, note}});
  });
}
