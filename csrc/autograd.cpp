// Differentiation of the ops on every device: the forward op returns what the backward op needs besides its
// inputs; where no gradient is wanted the op itself runs, which keeps nothing.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

namespace mobilevit {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<at::Tensor>;

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

bool requires_grad(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined() && tensor->requires_grad();
}

// Forward-mode differentiation is not implemented, and a tangent is not dropped silently.
template <typename... Tensors>
bool want_gradient(const char* op, const Tensors&... tensors) {
  for (const OptionalTensor& tensor : {OptionalTensor(tensors)...}) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !tensor.has_value() || !tensor->defined() || !tensor->_fw_grad(0).defined(), op,
        ": forward-mode differentiation is not implemented; mobilevit_kernels.use_backend(\"reference\") has it");
  }
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// Backward ops are differentiable only to say that they are not: unless a graph is wanted, that layer is skipped.
template <typename Function>
auto run_backward(const Function& function) {
  if (at::GradMode::is_enabled()) return function();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return function();
}

// Without the gradients that nobody wants.
variable_list only_needed(variable_list gradients, const c10::List<bool>& needs) {
  for (size_t i = 0; i < needs.size(); ++i) {
    if (!needs[i]) gradients[i] = at::Tensor();
  }
  return gradients;
}

// Saves qkv, the output and one logsumexp per token and head.
class UnfoldAttnFold : public torch::autograd::Function<UnfoldAttnFold> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& qkv, int64_t num_heads, at::IntArrayRef patch_size,
      std::optional<double> scale) {
    static const auto op =
        find_op<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, int64_t, at::IntArrayRef, std::optional<double>)>(
            "mobilevit::unfold_attn_fold_forward");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [out, logsumexp] = op.call(qkv, num_heads, patch_size, scale);
    ctx->save_for_backward({qkv, out, logsumexp});
    ctx->saved_data["num_heads"] = num_heads;
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->saved_data["scale"] = scale;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<at::Tensor(
        const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, at::IntArrayRef,
        std::optional<double>)>("mobilevit::unfold_attn_fold_backward");
    const variable_list saved = ctx->get_saved_variables();
    const int64_t num_heads = ctx->saved_data["num_heads"].toInt();
    const std::vector<int64_t> patch_size = ctx->saved_data["patch_size"].toIntVector();
    const auto scale = ctx->saved_data["scale"].toOptional<double>();
    const at::Tensor grad_qkv =
        run_backward([&] { return op.call(grads[0], saved[0], saved[1], saved[2], num_heads, patch_size, scale); });
    return {grad_qkv, {}, {}, {}};
  }
};

at::Tensor unfold_attn_fold(
    const at::Tensor& qkv, int64_t num_heads, at::IntArrayRef patch_size, std::optional<double> scale) {
  if (want_gradient("mobilevit::unfold_attn_fold", qkv)) {
    return UnfoldAttnFold::apply(qkv, num_heads, patch_size, scale);
  }
  static const auto op = find_op<at::Tensor(const at::Tensor&, int64_t, at::IntArrayRef, std::optional<double>)>(
      "mobilevit::unfold_attn_fold");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(qkv, num_heads, patch_size, scale);
}

// Saves x, the weights, one score per token, and two vectors (pooled token and context) per group.
class SeparableAttn : public torch::autograd::Function<SeparableAttn> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& qkv_weight, const OptionalTensor& qkv_bias,
      const at::Tensor& out_weight, const OptionalTensor& out_bias, at::IntArrayRef patch_size) {
    static const auto op = find_op<std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&, const OptionalTensor&,
        at::IntArrayRef)>("mobilevit::separable_attn_forward");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [out, scores, pooled, context] = op.call(x, qkv_weight, qkv_bias, out_weight, out_bias, patch_size);
    ctx->save_for_backward({x, qkv_weight, qkv_bias.value_or(at::Tensor()), out_weight, scores, pooled, context});
    ctx->saved_data["patch_size"] = patch_size.vec();
    ctx->saved_data["needs"] = c10::List<bool>(
        {requires_grad(x), requires_grad(qkv_weight), requires_grad(qkv_bias), requires_grad(out_weight),
         requires_grad(out_bias)});
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&,
        const at::Tensor&, const at::Tensor&, const at::Tensor&, at::IntArrayRef, std::array<bool, 2>)>(
        "mobilevit::separable_attn_backward");
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<int64_t> patch_size = ctx->saved_data["patch_size"].toIntVector();
    const c10::List<bool> needs = ctx->saved_data["needs"].toBoolList();
    const std::array<bool, 2> mask = {needs[0], needs[1] || needs[2] || needs[3] || needs[4]};
    const OptionalTensor qkv_bias = saved[2].defined() ? OptionalTensor(saved[2]) : std::nullopt;
    const auto [x, qkv_weight, bias, out_weight, out_bias] = run_backward([&] {
      return op.call(grads[0], saved[0], saved[1], qkv_bias, saved[3], saved[4], saved[5], saved[6], patch_size, mask);
    });
    return only_needed({x, qkv_weight, bias, out_weight, out_bias, {}}, needs);
  }
};

at::Tensor separable_attn(
    const at::Tensor& x, const at::Tensor& qkv_weight, const OptionalTensor& qkv_bias, const at::Tensor& out_weight,
    const OptionalTensor& out_bias, at::IntArrayRef patch_size) {
  if (want_gradient("mobilevit::separable_attn", x, qkv_weight, qkv_bias, out_weight, out_bias)) {
    return SeparableAttn::apply(x, qkv_weight, qkv_bias, out_weight, out_bias, patch_size);
  }
  static const auto op = find_op<at::Tensor(
      const at::Tensor&, const at::Tensor&, const OptionalTensor&, const at::Tensor&, const OptionalTensor&,
      at::IntArrayRef)>("mobilevit::separable_attn");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, qkv_weight, qkv_bias, out_weight, out_bias, patch_size);
}

// Saves x, the parameters and the statistics of each channel.
class BatchNorm : public torch::autograd::Function<BatchNorm> {
 public:
  static constexpr bool is_traceable = true;
  using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

  static variable_list forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps,
      bool silu) {
    static const auto op = find_op<Outputs(const at::Tensor&, const at::Tensor&, const at::Tensor&, double, bool)>(
        "mobilevit::batch_norm");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [out, mean, var] = op.call(x, weight, bias, eps, silu);
    ctx->save_for_backward({x, weight, bias, mean, var});
    ctx->mark_non_differentiable({mean, var});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["silu"] = silu;
    ctx->saved_data["needs"] = c10::List<bool>({requires_grad(x), requires_grad(weight), requires_grad(bias)});
    return {out, mean, var};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<Outputs(
        const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
        const at::Tensor&, double, bool)>("mobilevit::batch_norm_backward");
    const variable_list saved = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    const bool silu = ctx->saved_data["silu"].toBool();
    const c10::List<bool> needs = ctx->saved_data["needs"].toBoolList();
    const auto [x, weight, bias] =
        run_backward([&] { return op.call(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], eps, silu); });
    return only_needed({x, weight, bias, {}, {}}, needs);
  }
};

// Saves x and the weight.
class PointwiseConv2d : public torch::autograd::Function<PointwiseConv2d> {
 public:
  static constexpr bool is_traceable = true;

  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&, bool);

  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
      bool silu_input) {
    static const auto op = find_op<Signature>("mobilevit::pointwise_conv2d");
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["silu_input"] = silu_input;
    ctx->saved_data["needs"] = c10::List<bool>({requires_grad(x), requires_grad(weight), requires_grad(bias)});
    return op.call(x, weight, bias, silu_input);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<std::tuple<at::Tensor, at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const at::Tensor&, bool, std::array<bool, 3>)>(
        "mobilevit::pointwise_conv2d_backward");
    const variable_list saved = ctx->get_saved_variables();
    const bool silu_input = ctx->saved_data["silu_input"].toBool();
    const c10::List<bool> needs = ctx->saved_data["needs"].toBoolList();
    const std::array<bool, 3> mask = {needs[0], needs[1], needs[2]};
    const auto [x, weight, bias] =
        run_backward([&] { return op.call(grads[0], saved[0], saved[1], silu_input, mask); });
    return only_needed({x, weight, bias, {}}, needs);
  }
};

at::Tensor pointwise_conv2d(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, bool silu_input) {
  if (want_gradient("mobilevit::pointwise_conv2d", x, weight, bias)) {
    return PointwiseConv2d::apply(x, weight, bias, silu_input);
  }
  static const auto op = find_op<PointwiseConv2d::Signature>("mobilevit::pointwise_conv2d");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, weight, bias, silu_input);
}

// Saves x, the parameters and the statistics of each channel.
class BatchNormConv2d : public torch::autograd::Function<BatchNormConv2d> {
 public:
  static constexpr bool is_traceable = true;
  using Signature = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, double, bool, int64_t, int64_t);

  static variable_list forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
      const at::Tensor& weight, double eps, bool silu, int64_t stride, int64_t dilation) {
    static const auto op = find_op<Signature>("mobilevit::batch_norm_conv2d");
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto [out, mean, var] = op.call(x, norm_weight, norm_bias, weight, eps, silu, stride, dilation);
    ctx->save_for_backward({x, norm_weight, norm_bias, weight, mean, var});
    ctx->mark_non_differentiable({mean, var});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["silu"] = silu;
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["dilation"] = dilation;
    ctx->saved_data["needs"] = c10::List<bool>(
        {requires_grad(x), requires_grad(norm_weight), requires_grad(norm_bias), requires_grad(weight)});
    return {out, mean, var};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
        const at::Tensor&, const at::Tensor&, double, bool, int64_t, int64_t)>("mobilevit::batch_norm_conv2d_backward");
    const variable_list saved = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    const bool silu = ctx->saved_data["silu"].toBool();
    const int64_t stride = ctx->saved_data["stride"].toInt(), dilation = ctx->saved_data["dilation"].toInt();
    const c10::List<bool> needs = ctx->saved_data["needs"].toBoolList();
    const auto [x, norm_weight, norm_bias, weight] = run_backward([&] {
      return op.call(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], eps, silu, stride, dilation);
    });
    return only_needed({x, norm_weight, norm_bias, weight, {}, {}, {}, {}}, needs);
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_conv2d(
    const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias, const at::Tensor& weight,
    double eps, bool silu, int64_t stride, int64_t dilation) {
  if (want_gradient("mobilevit::batch_norm_conv2d", x, norm_weight, norm_bias, weight)) {
    const variable_list outputs =
        BatchNormConv2d::apply(x, norm_weight, norm_bias, weight, eps, silu, stride, dilation);
    return {outputs[0], outputs[1], outputs[2]};
  }
  static const auto op = find_op<BatchNormConv2d::Signature>("mobilevit::batch_norm_conv2d");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, norm_weight, norm_bias, weight, eps, silu, stride, dilation);
}

// Saves x and the weight.
class DepthwiseConv2d : public torch::autograd::Function<DepthwiseConv2d> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(
      AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation) {
    static const auto op =
        find_op<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t)>("mobilevit::depthwise_conv2d");
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["dilation"] = dilation;
    ctx->saved_data["needs"] = c10::List<bool>({requires_grad(x), requires_grad(weight)});
    return op.call(x, weight, stride, dilation);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<std::tuple<at::Tensor, at::Tensor>(
        const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, int64_t, std::array<bool, 2>)>(
        "mobilevit::depthwise_conv2d_backward");
    const variable_list saved = ctx->get_saved_variables();
    const int64_t stride = ctx->saved_data["stride"].toInt(), dilation = ctx->saved_data["dilation"].toInt();
    const c10::List<bool> needs = ctx->saved_data["needs"].toBoolList();
    const std::array<bool, 2> mask = {needs[0], needs[1]};
    const auto [x, weight] =
        run_backward([&] { return op.call(grads[0], saved[0], saved[1], stride, dilation, mask); });
    return only_needed({x, weight, {}, {}}, needs);
  }
};

at::Tensor depthwise_conv2d(const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation) {
  if (want_gradient("mobilevit::depthwise_conv2d", x, weight)) {
    return DepthwiseConv2d::apply(x, weight, stride, dilation);
  }
  static const auto op =
      find_op<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, int64_t)>("mobilevit::depthwise_conv2d");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, weight, stride, dilation);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps, bool silu) {
  if (want_gradient("mobilevit::batch_norm", x, weight, bias)) {
    const variable_list outputs = BatchNorm::apply(x, weight, bias, eps, silu);
    return {outputs[0], outputs[1], outputs[2]};
  }
  static const auto op =
      find_op<BatchNorm::Outputs(const at::Tensor&, const at::Tensor&, const at::Tensor&, double, bool)>(
          "mobilevit::batch_norm");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, weight, bias, eps, silu);
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, Autograd, m) {
  m.impl("unfold_attn_fold", &unfold_attn_fold);
  m.impl("separable_attn", &separable_attn);
  m.impl("batch_norm", &batch_norm);
  m.impl("batch_norm_conv2d", &batch_norm_conv2d);
  m.impl("pointwise_conv2d", &pointwise_conv2d);
  m.impl("depthwise_conv2d", &depthwise_conv2d);
}

}  // namespace mobilevit
