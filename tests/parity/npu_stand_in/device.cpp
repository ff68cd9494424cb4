// A device "npu" for torch whose memory is the CPU's and whose operations the CPU computes. Like a real device it refuses operations that mix its tensors
// with the CPU's, and its memory is reached by copies alone; and it refuses to compute in float64.

#include <ATen/EmptyTensor.h>
#include <ATen/NativeFunctions.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

#include <atomic>

namespace {

constexpr auto NPU = c10::DeviceType::PrivateUse1;
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t count) override {
    void* data = c10::alloc_cpu(count);
    return {data, data, &c10::free_cpu, c10::Device(NPU, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }
};

Memory memory;
REGISTER_ALLOCATOR(NPU, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = NPU;
  c10::DeviceType type() const override { return NPU; }
  c10::Device exchangeDevice(c10::Device) const override { return {NPU, 0}; }
  c10::Device getDevice() const override { return {NPU, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, c10::Device(NPU, 0)); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t count) const override {
    auto grown = memory.allocate(count);
    std::memcpy(grown.get(), storage.data(), std::min(count, storage.nbytes()));
    storage.set_data_ptr_noswap(std::move(grown));
    storage.unsafeGetStorageImpl()->set_nbytes(count);
  }
};

at::Tensor seen_by_cpu(const at::Tensor& tensor) {
  return tensor.is_cpu() ? tensor : at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), at::dtype(tensor.scalar_type()));
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  auto target = seen_by_cpu(to);
  target.copy_(seen_by_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

std::optional<at::Tensor> on_cpu(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() && tensor->defined() ? std::make_optional(tensor->cpu()) : std::nullopt;
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups) {
  TORCH_CHECK(weight.device() == input.device(), "input on ", input.device(), " and weight on ", weight.device());
  return at::convolution(input.cpu(), weight.cpu(), on_cpu(bias), stride, padding, dilation, transposed, output_padding, groups).to(input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight,
                                                                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                                                    bool transposed, at::IntArrayRef output_padding, int64_t groups,
                                                                    std::array<bool, 3> wanted) {
  const int64_t channels = gradient.size(1);
  auto found = at::convolution_backward(gradient.cpu(), input.cpu(), weight.cpu(), at::IntArrayRef(channels), stride, padding, dilation, transposed,
                                        output_padding, groups, wanted);
  auto moved = [&](const at::Tensor& tensor) { return tensor.defined() ? tensor.to(input.device()) : tensor; };
  return {moved(std::get<0>(found)), moved(std::get<1>(found)), moved(std::get<2>(found))};
}

int64_t choose_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool, std::optional<double>,
                         bool) {
  return 0;  // SDPBackend::math, of operations that every device has
}

// torch_npu says so too: without it, tied weights would be two when their modules are moved to the device.
bool changes_in_place(const at::Tensor& self, const at::Tensor& from) {
  auto dense = [](const at::Tensor& tensor) { return tensor.is_cpu() || tensor.is_privateuseone(); };
  return dense(self) && dense(from);
}

void refuse_strange(const c10::OperatorHandle& op, const at::Tensor& tensor) {
  const bool number = tensor.defined() && tensor.dim() == 0;
  TORCH_CHECK(!tensor.defined() || number || tensor.device().type() == NPU, "Expected all tensors to be on the same device, but ",
              op.schema().operator_name(), " got one on ", tensor.device(), " beside others on npu:0");
  TORCH_CHECK(number || !tensor.defined() || tensor.scalar_type() != at::kDouble, op.schema().operator_name(), " got float64, which few operations of NPUs take");
}

// On a real device indices may be on the CPU; whatever else is there is an error.
bool may_mix(const std::string& name) { return name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index", 0) == 0; }

std::atomic<int64_t> computed{0};

void computed_by_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  ++computed;
  if (!may_mix(op.schema().name())) {
    for (const auto& argument : torch::jit::last(stack, op.schema().arguments().size())) {
      if (argument.isTensor()) refuse_strange(op, argument.toTensor());
      if (argument.isTensorList())
        for (const at::Tensor& tensor : argument.toTensorList()) refuse_strange(op, tensor);
    }
  }
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("view_as_complex", at::native::view_as_complex);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", at::native::resize_);
  m.impl("set_.source_Storage", at::native::set_);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("_fused_sdp_choice", choose_attention);
  m.impl("_has_compatible_shallow_copy_type", changes_in_place);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&computed_by_cpu>()); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("computed", [] { return computed.load(); }, "The number of operations that the device has computed.");
}
