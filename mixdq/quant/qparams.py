"""Scales and zero points: of a weight by its extremes, of an activation by its calibrated range or by its own numbers.

Follows arXiv 2405.17873, section 3.1 (min-max, per output channel for weights, per tensor for activations); scales of
rows, made at run time, are ours. Zero is always a code, so padding and masked elements stay exact. Of E4M3 floats the
largest stands for the largest magnitude, in weights and activations alike. Not here: estimating ranges (`ranges`).
"""

import torch
from torch import Tensor

from mixdq.errors import NonFiniteError
from mixdq.quant.grid import input_spec, largest, num_steps
from mixdq.types.plan import Number
from mixdq.types.tensors import ActivationRange, QParams, QuantSpec

LEAST_SCALE = torch.finfo(torch.float32).tiny
GREATEST_SCALE = torch.finfo(torch.float32).max


def weight_qparams(weight: Tensor, spec: QuantSpec, *, name: str = "weight") -> QParams:
    """Return min-max scales of a weight, and zero points where `spec` is asymmetric.

    Shaped like `weight` with every axis but `channel_axis` of size 1; [] per tensor. Symmetric: step =
    absmax / (2^(b-1) - 1), of floats absmax / 448. Asymmetric: the range is widened to contain 0. A channel of zeros
    gets scale 1.

    Raises:
        NonFiniteError: the weight holds NaN or infinity; `name` says whose it is.
        ValueError: `spec` asks for groups, which no backend runs.
    """
    if spec.group_size is not None:
        raise ValueError(f"group_size = {spec.group_size}: only whole channels have a scale so far")
    least, greatest = _extremes(weight.detach(), spec.channel_axis)
    if not bool((torch.isfinite(least) & torch.isfinite(greatest)).all()):
        raise NonFiniteError(f"{name}: the weight holds NaN or infinity; mend the model first", where=name)
    if spec.symmetric:
        return _symmetric(least, greatest, spec)
    return _asymmetric(least, greatest, spec)


def activation_qparams(rng: ActivationRange, num_bits: int, number: Number = "int") -> QParams:
    """Return the per-tensor scale and zero point of a range, both of shape [] on the CPU; floats have no zero point.

    The range is widened to contain 0; an empty one ([0, 0]) gets scale 1.

    >>> q = activation_qparams(ActivationRange(min=-1.0, max=1.55, batches=1), 8)
    >>> round(q.scale.item(), 6), q.zero_point.item()
    (0.01, -28)
    """
    spec = input_spec(num_bits, number)
    least, greatest = min(rng.min, 0.0), max(rng.max, 0.0)
    width = greatest - least
    wanted = max(-least, greatest) / largest(spec) if spec.symmetric else width / num_steps(spec)
    scale = torch.tensor(min(max(wanted, LEAST_SCALE), GREATEST_SCALE) if width > 0.0 else 1.0, dtype=torch.float32)
    if spec.symmetric:
        return QParams(scale=scale, zero_point=None, spec=spec)
    zero_point = spec.code_min - round(least / scale.item())
    zero_point = min(max(zero_point, spec.code_min), spec.code_max)
    return QParams(scale=scale, zero_point=torch.tensor(zero_point, dtype=torch.int32), spec=spec)


def row_qparams(x: Tensor, num_bits: int, *, axes: int, number: Number = "int") -> QParams:
    """Return the scale and zero point of each row of `x`, by the numbers in it; floats have no zero point.

    A row is what the last `axes` axes span: 1 for the tokens of a Linear, 3 for the pictures of a Conv2d; these axes
    have size 1 in both tensors. Each row's are bit for bit those that `activation_qparams` gives for its least and
    greatest number. A backend that makes them by itself does as it is done here: in float64, divisions true, rounding
    half to even, the scale rounded to float32 before the zero point is found. `x` is finite.

    >>> q = row_qparams(torch.tensor([[-1.0, 1.55], [0.0, 0.0]]), 8, axes=1)
    >>> q.scale.shape, q.zero_point.flatten().tolist()
    (torch.Size([2, 1]), [-28, -128])
    """
    spec = input_spec(num_bits, number)
    last = tuple(range(-axes, 0))
    if x.numel() == 0:
        x = x.new_zeros(*x.shape[: x.dim() - axes], *[1] * axes)
    least, greatest = (end(last, keepdim=True).to(torch.float64) for end in (x.amin, x.amax))
    return _symmetric(least, greatest, spec) if spec.symmetric else _asymmetric(least, greatest, spec)


def _symmetric(least: Tensor, greatest: Tensor, spec: QuantSpec) -> QParams:
    """Return scales of ranges in float64."""
    return QParams(scale=_safe(torch.maximum(-least, greatest) / largest(spec)), zero_point=None, spec=spec)


def _asymmetric(least: Tensor, greatest: Tensor, spec: QuantSpec) -> QParams:
    """Return scales and zero points of ranges in float64, which are widened to contain 0."""
    least, greatest = least.clamp(max=0.0), greatest.clamp(min=0.0)
    scale = _safe((greatest - least) / num_steps(spec))
    zero_point = (spec.code_min - (least / scale).round()).clamp(spec.code_min, spec.code_max)
    return QParams(scale=scale, zero_point=zero_point.to(torch.int32), spec=spec)


def _extremes(weight: Tensor, channel_axis: int | None) -> tuple[Tensor, Tensor]:
    if channel_axis is None:
        flat = weight.reshape(1, -1)
        shape = []
    else:
        flat = weight.movedim(channel_axis, 0).flatten(1) if weight.dim() > 1 else weight.unsqueeze(1)
        shape = [1] * weight.dim()
        shape[channel_axis] = weight.shape[channel_axis]
    least, greatest = flat.aminmax(dim=1)
    # float64, for the width of a float32 range may overflow.
    return least.to(torch.float64).reshape(shape), greatest.to(torch.float64).reshape(shape)


def _safe(wanted: Tensor) -> Tensor:
    """Return scales in float32, positive and finite; where the range is empty, 1."""
    scale = wanted.clamp(LEAST_SCALE, GREATEST_SCALE)
    return torch.where(wanted == 0.0, torch.ones_like(scale), scale).to(torch.float32)
