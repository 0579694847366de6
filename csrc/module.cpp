// The Python module: importing it registers the ops; its functions report how it runs, its Plan repeats a run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "cpu/capability.h"
#include "cpu/map_memory.h"
#include "cpu/threads.h"
#include "plan.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of mobilevit_kernels.";
  m.def(
      "cpu_capability", &mobilevit::cpu::capability_name,
      "Instruction set of the CPU kernels: 'default', 'avx2', 'avx512', 'avx512_bf16' or 'amx'.");
  m.def("has_matrix_unit", &mobilevit::cpu::has_matrix_unit, "Whether bfloat16 products run on matrix units (AMX).");
  m.def(
      "has_fast_bfloat16", &mobilevit::cpu::has_fast_bfloat16,
      "Whether bfloat16 products are faster than float32 ones.");
  m.def(
      "release_idle_maps", &mobilevit::cpu::release_idle_maps, "Gives memory of maps that nobody uses to the system.");
  m.def("note_threads", &mobilevit::cpu::note_threads, "Remembers that threads may have run, if torch has several.");
  m.def("threads_used", &mobilevit::cpu::threads_used, "Whether several threads may have run.");
  pybind11::class_<mobilevit::Plan>(m, "Plan", "Calls of ops one after another, on slots of tensors.")
      .def(pybind11::init<int64_t>(), pybind11::arg("inputs"))
      .def(
          "add", &mobilevit::Plan::add, pybind11::arg("name"), pybind11::arg("overload"), pybind11::arg("arguments"),
          pybind11::arg("slots"), "Appends a call; returns the slot of its result.")
      .def("finish", &mobilevit::Plan::finish, pybind11::arg("outputs"), "Says which slots a run returns.")
      .def(
          "run", &mobilevit::Plan::run, pybind11::arg("inputs"), pybind11::call_guard<pybind11::gil_scoped_release>(),
          "The outputs for these inputs.");
  m.def(
      "same_entries", &mobilevit::same_entries, pybind11::arg("dicts"), pybind11::arg("entries"),
      "Whether each dict has the very entries, (key, value, ...) in order, that it had once.");
}
