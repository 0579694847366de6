// The Python module: importing it registers the ops; its functions report how it runs.
#include <pybind11/pybind11.h>

#include "cpu/capability.h"
#include "cpu/map_memory.h"
#include "cpu/threads.h"

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
}
