// The Python module: importing it registers the ops; its functions report how it runs.
#include <pybind11/pybind11.h>

#include "cpu/capability.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of mobilevit_kernels.";
  m.def(
      "cpu_capability", &mobilevit::cpu::capability_name,
      "Instruction set of the CPU kernels: 'default', 'avx2' or 'avx512'.");
}
