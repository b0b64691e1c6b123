"""What quantized layers have in common: their tensors, and the kernel bound to them.

A kernel is bound on the first call, when codes, device and dtype are known, and again after anything of these changed.
Where a kernel holds the weight in an order of its own, the layer's own `weight` is a stand-in of the same shape and no
memory; whatever reads or changes the layer brings the codes back.
Casting a layer (`.half()`, `.to(dtype)`) casts its bias alone: codes, scales and BOS rows stay as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixdq.quant.bos import BosRow, BosRows
from mixdq.quant.grid import input_spec
from mixdq.quant.weights import dequantize_weight
from mixdq.runtime.before import NOTHING, Before
from mixdq.runtime.binding import Bound, bind_parts, is_offloaded, stand_in
from mixdq.runtime.compose import BesideBosRow, joined
from mixdq.runtime.heap import HEAP
from mixdq.runtime.kernel import BosKernel, HoldingKernel, Kernel
from mixdq.runtime.layout import (
    EXACT_NAMES,
    LayerLayout,
    check_values,
    join_parts,
    split_parts,
    tensor_specs,
    weight_shape_of,
)
from mixdq.runtime.opaque import new_handle
from mixdq.runtime.select import check_backend
from mixdq.types.tensors import QParams, QTensor


class QuantizedLayer(nn.Module):
    """The part of `QuantizedLinear` and `QuantizedConv2d` that is not geometry; see `mixdq.runtime.layout`."""

    layout: LayerLayout
    backend: str
    weight: Tensor
    bias: Tensor | None
    weight_scale: Tensor
    weight_zero_point: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    bos_input: Tensor | None
    bos_output: Tensor | None
    _bound: Bound | None
    _at_run_time: bool
    handle: Tensor

    channel_axis: int

    def _hold(self, layout: LayerLayout, backend: str, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        """Take tensors of the portable layout as this layer's own, once."""
        self.layout = layout
        self.backend = check_backend(backend)
        self._bound = None
        self._at_run_time = not self.is_static
        self.handle = new_handle(self)
        self.weight = nn.Parameter(tensors["weight"], requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        for name in EXACT_NAMES:
            self.register_buffer(name, tensors.get(name))

    def _hold_parts(
        self,
        layout: LayerLayout,
        backend: str,
        parts: Sequence[QTensor],
        activation: Sequence[QParams] | None,
        bos: BosRow | None,
        bias: Tensor | None,
    ) -> None:
        tensors = join_parts(parts, activation)
        if bos is not None:
            # Copies, for layers share the input row and safetensors refuses shared memory.
            device = tensors["weight"].device
            tensors["bos_input"] = bos.input.detach().to(device, torch.float32, copy=True)
            tensors["bos_output"] = bos.output.detach().to(device, torch.float32, copy=True)
        expected = tensor_specs(layout, weight_shape_of(self._geometry_module()))
        found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        if found != expected:
            raise ValueError(f"{layout.name}: {layout} needs tensors {expected}, not {found}")
        self._hold(layout, backend, tensors, bias)

    def _hold_empty(self, layout: LayerLayout, backend: str, float_module: nn.Linear | nn.Conv2d) -> None:
        device = float_module.weight.device
        specs = tensor_specs(layout, weight_shape_of(float_module))
        tensors = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in specs.items()}
        self._hold(layout, backend, tensors, float_module.bias)

    @property
    def is_static(self) -> bool:
        """Whether inputs are quantized as calibrated."""
        return not (self.layout.weight_only or self.layout.dynamic)

    def parts(self) -> tuple[QTensor, ...]:
        """Return the weight as quantized parts that share this layer's memory."""
        shape = weight_shape_of(self._geometry_module())
        return split_parts(self.layout, shape, self._codes(), self.weight_scale, self.weight_zero_point)

    def activation(self) -> tuple[QParams, ...] | None:
        """Return scale and zero point of each input part; None where weight-only or dynamic."""
        if self.input_scale is None:
            return None
        spec = input_spec(self.layout.bits.activation, self.layout.bits.number)
        zero_points = [None] * len(self.input_scale) if self.input_zero_point is None else self.input_zero_point
        return tuple(
            QParams(scale=scale, zero_point=zero_point, spec=spec)
            for scale, zero_point in zip(self.input_scale, zero_points, strict=True)
        )

    def bos_row(self) -> BosRow | None:
        """Return the stored first-token row; None where the layer has none."""
        if self.bos_input is None or self.bos_output is None:
            return None
        return BosRow(input=self.bos_input, output=self.bos_output)

    def float_weight(self) -> Tensor:
        """Return the weight that the codes stand for, in float32."""
        return dequantize_weight(self.parts())

    def put(self, name: str, tensor: Tensor) -> None:
        """Take one tensor of the portable layout as this layer's own: what loading does.

        Raises:
            ValueError: shape, dtype or values are not what the layout allows.
        """
        shape, dtype = tensor_specs(self.layout, weight_shape_of(self._geometry_module()))[name]
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{self.layout.name}.{name}: expected {dtype} {list(shape)}, found {found}")
        check_values(self.layout, name, tensor)
        self._unbind()
        if name == "weight":
            self.weight = nn.Parameter(tensor, requires_grad=False)
        else:
            self._buffers[name] = tensor

    def use_backend(self, backend: str) -> None:
        """Run on another backend from the next call on; raises ConfigError where there is no such backend."""
        self.backend = check_backend(backend)
        self._unbind()

    def scale_at_run_time(self, on: bool) -> None:
        """Scale quantized inputs by their own numbers from the next call on, or as calibrated again.

        Only with their own is a first text token computed that is no multiple of the stored one. What is saved stays.
        """
        if on != self._at_run_time:
            self._unbind()
            self._at_run_time = on

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output in the dtype of `input`, which has a gradient; see `input_gradient`.

        What is compiled holds a call of `run` in its place.
        """
        differentiated = torch.is_grad_enabled() and input.requires_grad
        return self.traced(input) if differentiated or torch.compiler.is_compiling() else self.run(input)

    def run(self, input: Tensor, /) -> Tensor:
        """Return the layer's output; raises ValueError where the input has other axes or channels than the layer."""
        self.check_shape(input.shape)
        return self.kernel_for(input)(input)

    def kernel_for(self, input: Tensor) -> Kernel:
        """Return the bound kernel, bound first where there is none for such an input.

        Raises:
            NoBackendError: nobody runs the layer on the input's device or in its dtype.
        """
        geometry = self._geometry()
        bound = self._bound
        if bound is None or not bound.fits(self.weight, input, geometry):
            self._unbind()
            layout, activation = self.layout, self.activation()
            if self._at_run_time:
                layout, activation = replace(layout, dynamic=True), None
            parts = bind_parts(self._geometry_module(), layout, self.parts(), activation, backend=self.backend, x=input)
            kernel = self._compose(parts, input.dtype)
            # An offloaded layer's tensors come for one call alone: a kept kernel would keep them on the device.
            if is_offloaded(self):
                return kernel
            if all(isinstance(part, HoldingKernel) for part in parts):
                freed = self.weight.nbytes
                self.weight = stand_in(self.weight)
                HEAP.freed(freed)
            self._bound = bound = Bound(kernel, parts, self.weight, input.device, input.dtype, geometry)
        return bound.kernel

    def input_gradient(self, grad: Tensor, shape: Sequence[int], /) -> Tensor:
        """Return the gradient by an input of `shape`, in the dtype of `grad`, the gradient by the output.

        It is that of a float layer of the weight that the codes stand for: rounding and clipping of the input pass it
        through (Bengio et al., arXiv 1308.3432). A stored first token's output hangs on nothing, so its gradient is 0.
        """
        with torch.enable_grad():
            x = grad.new_zeros(tuple(shape)).requires_grad_()
            (by_input,) = torch.autograd.grad(self.to_float(grad.dtype)(x), x, grad)
        if self.layout.bos:
            (by_input if x.dim() == 1 else by_input[..., 0, :]).zero_()
        return by_input

    def to_float(self, dtype: torch.dtype) -> nn.Linear | nn.Conv2d:
        """Return a float layer of the weight that the codes stand for."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return what `print(layer)` shows besides the float layer's own."""
        parts = f", splits={self.layout.splits}" if self.layout.splits else ""
        dynamic = ", dynamic" if self.layout.dynamic and not self.layout.weight_only else ""
        facts = f"bits={self.layout.bits}{dynamic}{parts}, bos={self.layout.bos}, backend={self.backend}"
        return f"{super().extra_repr()}, {facts}"

    def _fill(self, module: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> None:
        """Give a float module, made on meta, this layer's weight and bias."""
        module.weight = nn.Parameter(self.float_weight().to(dtype), requires_grad=False)
        if self.bias is not None:
            module.bias = nn.Parameter(self.bias.detach().to(dtype), requires_grad=False)
        module.train(self.training)

    def _geometry_module(self) -> nn.Linear | nn.Conv2d:
        assert isinstance(self, nn.Linear | nn.Conv2d)
        return self

    def traced(self, x: Tensor, before: Before = NOTHING, added: Tensor | None = None) -> Tensor:
        """Return `run(x)`, or `run_folded`, as an operator that says the output's shape before it runs."""
        raise NotImplementedError

    def check_shape(self, shape: Sequence[int]) -> None:
        """Return if an input of this shape can be the layer's; raise ValueError otherwise."""
        raise NotImplementedError

    def _geometry(self) -> object:
        """Return what else of this module a bound kernel depends on."""
        return None

    def _compose(self, parts: tuple[Kernel, ...], dtype: torch.dtype) -> Kernel:
        """Return the kernels of the parts as the layer's own."""
        kernel = parts[0] if len(parts) == 1 else joined(parts, self.layout.splits, self.channel_axis, dtype)
        bos = self.bos_row()
        if bos is None:
            return kernel
        product = self._float_product if self._at_run_time else None
        beside = BesideBosRow(kernel, BosRows(bos, self.bias, product=product, name=self.layout.name))
        return kernel.beside_bos(bos, beside) if isinstance(kernel, BosKernel) else beside

    def _float_product(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.float_weight().to(x.device))

    def _codes(self) -> Tensor:
        """Return the weight's codes in the portable layout, wherever they are now."""
        bound = self._bound
        held = bound.codes() if bound is not None and bound.weight is self.weight else None
        return self.weight if held is None else held

    def _unbind(self) -> None:
        """Let the kernel go, with the codes back in `weight`."""
        codes = self._codes()
        if codes is not self.weight:
            self.weight = nn.Parameter(codes, requires_grad=False)
        self._bound = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._unbind()
        kept = {name: buffer for name in EXACT_NAMES if (buffer := self._buffers.get(name)) is not None}
        codes = self.weight.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = self._buffers[name]
            if after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        # `.type(dtype)`, unlike `.to(dtype)`, casts integers too.
        if self.weight.dtype != codes.dtype:
            self.weight = nn.Parameter(codes.to(self.weight.device), requires_grad=False)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._unbind()
        super()._load_from_state_dict(*args, **kwargs)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        codes = self._codes()
        if codes is not self.weight:
            destination[prefix + "weight"] = codes

    def __getstate__(self) -> dict[str, Any]:
        # A copy binds a kernel to its own tensors.
        self._unbind()
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.handle = new_handle(self)
