#include "plan.h"

#include <torch/csrc/jit/python/pybind_utils.h>

namespace py = pybind11;

namespace mobilevit {
namespace {

bool is_tensor(const c10::Type& type) { return type.kind() == c10::TypeKind::TensorType; }

bool is_tensor_list(const c10::Type& type) {
  return type.kind() == c10::TypeKind::ListType && is_tensor(*type.castRaw<c10::ListType>()->getElementType());
}

at::Tensor take(std::vector<at::Tensor>& slots, int64_t slot, bool last_use) {
  return last_use ? std::move(slots[slot]) : slots[slot];
}

}  // namespace

void Plan::check_slots(const std::vector<int64_t>& slots, const char* name) const {
  for (const int64_t slot : slots) {
    TORCH_CHECK_VALUE(slot >= 0 && slot < slots_, name, ": expected numbers from 0 to below ", slots_, ", got ", slot);
  }
}

int64_t Plan::add(
    const std::string& name, const std::string& overload, const py::list& arguments,
    const std::vector<std::vector<int64_t>>& slots) {
  const c10::OperatorHandle op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str());
  const c10::FunctionSchema& schema = op.schema();
  const size_t count = schema.arguments().size();
  TORCH_CHECK_VALUE(
      arguments.size() == count && slots.size() == count, name, ": expected ", count, " arguments and slots, got ",
      arguments.size(), " and ", slots.size());
  TORCH_CHECK_VALUE(
      schema.returns().size() == 1 && is_tensor(*schema.returns()[0].type()), name,
      ": expected an op that returns one tensor");
  Call call{op, {}};
  for (size_t i = 0; i < count; ++i) {
    const c10::TypePtr& type = schema.arguments()[i].type();
    check_slots(slots[i], "slots");
    Argument argument{{}, {}, is_tensor_list(*type)};
    TORCH_CHECK_VALUE(slots[i].size() < 2 || argument.is_list, "slots: expected one of argument ", i, " of ", name);
    for (const int64_t slot : slots[i]) argument.operands.push_back({slot, false});
    if (slots[i].empty()) argument.constant = torch::jit::toIValue(arguments[i], type);
    call.arguments.push_back(std::move(argument));
  }
  calls_.push_back(std::move(call));
  return slots_++;
}

void Plan::finish(const std::vector<int64_t>& outputs) {
  check_slots(outputs, "outputs");
  std::vector<bool> used(slots_);
  for (const int64_t slot : outputs) used[slot] = true;
  for (auto call = calls_.rbegin(); call != calls_.rend(); ++call) {
    for (auto argument = call->arguments.rbegin(); argument != call->arguments.rend(); ++argument) {
      for (auto operand = argument->operands.rbegin(); operand != argument->operands.rend(); ++operand) {
        operand->last_use = !used[operand->slot];
        used[operand->slot] = true;
      }
    }
  }
  outputs_ = outputs;
}

std::vector<at::Tensor> Plan::run(std::vector<at::Tensor> slots) const {
  TORCH_CHECK_VALUE(
      static_cast<int64_t>(slots.size()) == inputs(), "inputs: expected ", inputs(), " tensors, got ", slots.size());
  slots.resize(slots_);
  int64_t result = inputs();
  torch::jit::Stack stack;
  for (const Call& call : calls_) {
    stack.clear();
    for (const Argument& argument : call.arguments) {
      if (argument.operands.empty()) {
        stack.push_back(argument.constant);
      } else if (argument.is_list) {
        c10::List<at::Tensor> list;
        for (const Operand& operand : argument.operands) list.push_back(take(slots, operand.slot, operand.last_use));
        stack.emplace_back(std::move(list));
      } else {
        const Operand& operand = argument.operands.front();
        stack.emplace_back(take(slots, operand.slot, operand.last_use));
      }
    }
    call.op.callBoxed(stack);
    slots[result++] = std::move(stack.front()).toTensor();
  }
  std::vector<at::Tensor> results;
  for (const int64_t slot : outputs_) results.push_back(slots[slot]);
  return results;
}

bool same_entries(const py::tuple& dicts, const py::tuple& entries) {
  for (size_t i = 0; i < dicts.size(); ++i) {
    PyObject *dict = PyTuple_GET_ITEM(dicts.ptr(), i), *expected = PyTuple_GET_ITEM(entries.ptr(), i);
    if (2 * PyDict_Size(dict) != PyTuple_GET_SIZE(expected)) return false;
    Py_ssize_t position = 0, at = 0;
    for (PyObject *key, *value; PyDict_Next(dict, &position, &key, &value); at += 2) {
      if (key != PyTuple_GET_ITEM(expected, at) || value != PyTuple_GET_ITEM(expected, at + 1)) return false;
    }
  }
  return true;
}

}  // namespace mobilevit
