// Autograd of the ops for inference: they refuse where a gradient is wanted, and otherwise run.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <algorithm>

namespace mobilevit {
namespace {

void inference_only(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  if (at::GradMode::is_enabled()) {
    const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
    const bool wanted = std::any_of(arguments.begin(), arguments.end(), [](const c10::IValue& argument) {
      return argument.isTensor() && argument.toTensor().requires_grad();
    });
    TORCH_CHECK(!wanted, op.schema().name(), " is for inference and has no gradient: use torch.no_grad()");
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, Autograd, m) {
  for (const char* name :
       {"transformer_layer", "separable_transformer_layer", "transformer", "separable_transformer", "convolution",
        "depthwise_convolution", "inverted_residual", "pooled_linear", "winograd_convolution"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&inference_only>());
  }
}

}  // namespace mobilevit
