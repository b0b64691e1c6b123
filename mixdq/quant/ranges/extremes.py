"""The least and greatest element of one batch, with NaN and infinity refused by name."""

from torch import Tensor

from mixdq.errors import EmptyRangeError, NonFiniteError


def finite_extremes(x: Tensor, name: str) -> tuple[float, float] | None:
    """Return the least and greatest element of `x`; None where it has none.

    Raises:
        NonFiniteError: an element is NaN or infinite; `name` says whose input it is.
    """
    if x.numel() == 0:
        return None
    least, greatest = (float(bound) for bound in x.detach().aminmax())
    # NaN anywhere makes both NaN, and an infinity is an extreme, so these two speak for all elements.
    if not (abs(least) < float("inf") and abs(greatest) < float("inf")):
        raise NonFiniteError(
            f"{name}: the input holds NaN or infinity. Run the model in float32, or look for a broken weight above it.",
            where=name,
        )
    return least, greatest


def empty_range(name: str) -> EmptyRangeError:
    """Return the error for a layer input that never saw data."""
    return EmptyRangeError(f"{name}: no data reached this input; calibrate with prompts that make the layer run")
