"""What every metric asks of its inputs: equal shapes, finite numbers, and pictures in 0..1."""

import torch
from torch import Tensor

from mixdq.errors import NonFiniteError

_SLACK = 1e-3
"""How far a picture may leave 0..1: the rounding of half-precision decoders, never a forgotten division by 255."""


def check_pair(reference: Tensor, candidate: Tensor) -> None:
    """Raise ValueError unless both have one shape [batch, ...] with data, NonFiniteError on NaN or infinity."""
    if reference.shape != candidate.shape:
        raise ValueError(f"the shapes differ: reference {list(reference.shape)}, candidate {list(candidate.shape)}")
    if reference.ndim < 1 or reference.numel() == 0:
        raise ValueError(f"nothing to compare: expected [batch, ...] with data, got {list(reference.shape)}")
    check_finite(reference, "reference")
    check_finite(candidate, "candidate")


def check_pictures(pictures: Tensor, name: str) -> None:
    """Raise ValueError unless `pictures` is [pictures, 3, height, width], floating point, finite and in 0..1."""
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or pictures.numel() == 0:
        raise ValueError(f"{name}: expected pictures [pictures, 3, height, width], got {list(pictures.shape)}")
    if not pictures.is_floating_point():
        raise ValueError(f"{name}: expected floating point in 0..1, got {pictures.dtype}; divide by 255 first")
    check_finite(pictures, name)
    low, high = float(pictures.min()), float(pictures.max())
    if low < -_SLACK or high > 1 + _SLACK:
        raise ValueError(f"{name}: expected pictures in 0..1, got values from {low:g} to {high:g}")


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise NonFiniteError with the first bad sample if `tensor` holds NaN or infinity."""
    if bool(torch.isfinite(tensor).all()):
        return
    bad = [i for i, sample in enumerate(tensor) if not bool(torch.isfinite(sample).all())]
    raise NonFiniteError(
        f"{name}: NaN or infinity in {len(bad)} of {len(tensor)} samples, the first is number {bad[0]}", where=name
    )
