"""From a layer's geometry to kernel requests: one for each input part, borders and unusual paddings resolved.

A float layer and its quantized successor have the same geometry, so conversion asks the same questions beforehand.
"""

from dataclasses import dataclass

import torch
from torch import nn

from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.layout import LayerLayout, part_shapes, weight_shape_of


@dataclass(frozen=True, kw_only=True)
class Borders:
    """What a convolution adds around its input.

    `kernel` (vertical, horizontal) is left to the kernel: symmetric zeros. `explicit` (left, right, top, bottom) is
    added beforehand, in `mode` of torch.nn.functional.pad; all zeros where there is nothing to add.
    """

    kernel: tuple[int, int]
    explicit: tuple[int, int, int, int]
    mode: str


def kernel_requests(
    module: nn.Linear | nn.Conv2d, layout: LayerLayout, *, device: str, dtype: torch.dtype
) -> tuple[KernelRequest, ...]:
    """Return one request for each input part of a layer, float or quantized.

    Raises:
        ValueError: a grouped convolution with several input parts, whose groups cross the parts; or one with floats.
    """
    shapes = part_shapes(layout, weight_shape_of(module))
    output_dtype = dtype if len(shapes) == 1 else torch.float32
    if isinstance(module, nn.Linear):
        return tuple(
            KernelRequest(
                layer=layout.name,
                op="linear",
                bits=layout.bits,
                weight_shape=shape,
                symmetric=layout.symmetric,
                dynamic=layout.dynamic and not layout.weight_only,
                device=device,
                dtype=dtype,
                output_dtype=output_dtype,
            )
            for shape in shapes
        )
    if layout.bits.is_float:
        raise ValueError(f"{layout.name}: {layout.bits} is for Linear layers; a Conv2d takes W8A8")
    if len(shapes) > 1 and module.groups != 1:
        raise ValueError(f"{layout.name}: an input of {len(shapes)} parts with {module.groups} groups")
    return tuple(
        KernelRequest(
            layer=layout.name,
            op="conv2d",
            bits=layout.bits,
            weight_shape=shape,
            stride=_pair(module.stride),
            padding=borders(module).kernel,
            dilation=_pair(module.dilation),
            groups=module.groups,
            symmetric=layout.symmetric,
            dynamic=layout.dynamic and not layout.weight_only,
            device=device,
            dtype=dtype,
            output_dtype=output_dtype,
        )
        for shape in shapes
    )


def borders(module: nn.Conv2d) -> Borders:
    """Return what a convolution adds around its input, and who adds it."""
    vertical, horizontal = _side_paddings(module, 0), _side_paddings(module, 1)
    if module.padding_mode == "zeros" and vertical[0] == vertical[1] and horizontal[0] == horizontal[1]:
        return Borders(kernel=(vertical[0], horizontal[0]), explicit=(0, 0, 0, 0), mode="constant")
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return Borders(kernel=(0, 0), explicit=(*horizontal, *vertical), mode=mode)


def _side_paddings(module: nn.Conv2d, axis: int) -> tuple[int, int]:
    if module.padding == "valid":
        return 0, 0
    if module.padding == "same":
        total = module.dilation[axis] * (module.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    amount = int(module.padding[axis])
    return amount, amount


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]
