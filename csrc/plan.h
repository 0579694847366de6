// A recorded run of a model: calls of ops one after another, without Python between them.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

namespace mobilevit {

// Every tensor of a run has a slot: first the inputs, then the result of each call. Immutable once it is finished, so
// that several threads may run it at once.
class Plan {
 public:
  explicit Plan(int64_t inputs) : slots_(inputs) {}

  // Appends a call, its arguments in the order of the schema: arguments[i] where slots[i] is empty, else the tensor of
  // one slot or a list of those of several. Returns the slot of the result. Throws where the op does not return one
  // tensor.
  int64_t add(
      const std::string& name, const std::string& overload, const pybind11::list& arguments,
      const std::vector<std::vector<int64_t>>& slots);

  // Says which slots a run returns.
  void finish(const std::vector<int64_t>& outputs);

  std::vector<at::Tensor> run(std::vector<at::Tensor> inputs) const;

 private:
  struct Operand {
    int64_t slot;
    bool last_use;  // its memory is free for later results
  };
  struct Argument {
    c10::IValue constant;
    std::vector<Operand> operands;
    bool is_list;
  };
  struct Call {
    c10::OperatorHandle op;
    std::vector<Argument> arguments;
  };

  void check_slots(const std::vector<int64_t>& slots, const char* name) const;
  int64_t inputs() const { return slots_ - static_cast<int64_t>(calls_.size()); }

  int64_t slots_;
  std::vector<Call> calls_;
  std::vector<int64_t> outputs_;
};

// Whether each dict has the very entries, (key, value, key, value, ...) in order, that it had once.
bool same_entries(const pybind11::tuple& dicts, const pybind11::tuple& entries);

}  // namespace mobilevit
