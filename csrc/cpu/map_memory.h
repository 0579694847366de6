// Memory of large maps between the layers of a model. An allocator returns memory of this size to the system at
// once, and every page of the next map costs a fault; here some of it is kept and given out again.
#pragma once

#include <ATen/core/Tensor.h>

namespace mobilevit::cpu {

// Uninitialised, channels_last.
at::Tensor empty_map(at::IntArrayRef sizes, const at::TensorOptions& options);

// Gives what is kept for nobody back to the system.
void release_idle_maps();

}  // namespace mobilevit::cpu
