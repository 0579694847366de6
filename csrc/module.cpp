// The Python module: importing it registers the ops; its functions report how it runs.
#include <pybind11/pybind11.h>

#include "cpu/capability.h"
#include "cpu/threads.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of mobilevit_kernels.";
  m.def(
      "cpu_capability", &mobilevit::cpu::capability_name,
      "Instruction set of the CPU kernels: 'default', 'avx2' or 'avx512'.");
  m.def("note_threads", &mobilevit::cpu::note_threads, "Remembers that threads may have run, if torch has several.");
  m.def("threads_used", &mobilevit::cpu::threads_used, "Whether several threads may have run.");
}
