"""The first text token (BOS): its output is kept once in floating point, only the other tokens are quantized.

Follows arXiv 2405.17873, section 3.2. The published constant is generalised: where a caller scales the first token's
state e (zeros for an empty negative prompt, say), the layer's output scales with it, so the stored row is multiplied by
alpha = <x0, e> / <e, e>. Of a state that is no multiple of e (another clip skip, an adapted text encoder) the rest
x0 - alpha e goes through the layer's own weight, with a warning; who has no weight at hand refuses it. Prompts longer
than CLIP's 77 tokens are several texts one after another, whose first tokens are treated alike. Not here: computing
the rows of a model (`mixdq.calibration.bos`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixdq.errors import BosNotConstantError, NonFiniteError

MISFIT_LIMIT = 0.025
"""Greatest |x0 - alpha e| / |x0|, sums of magnitudes, that still passes for a multiple of e.

Not Euclidean lengths: there the outlier, which is the same in every layer of a text encoder, would hide all the rest.
A calibrated encoder run in bfloat16 gives the embedded model 0.014; an adapted one's 0.032 cost it 8 dB unnoticed.
"""


CLIP_TOKENS = 77
"""Tokens of one text, which every CLIP text encoder of a published model takes at most."""

Product = Callable[[Tensor], Tensor]
"""What a layer makes of float32 states [batch, in] without its bias: [batch, out]."""


@dataclass(frozen=True, kw_only=True)
class BosRow:
    """What a layer that reads the text embedding needs: the shared state [in], and its output for it [out]."""

    input: Tensor
    output: Tensor

    def __post_init__(self) -> None:
        if self.input.dim() != 1 or self.output.dim() != 1:
            raise ValueError(f"a BOS row is two vectors, not {list(self.input.shape)} and {list(self.output.shape)}")


def bos_projection(x0: Tensor, bos_input: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and the misfit |x0 - alpha e| / |x0| of first-token states `x0` [..., in], both float32 [...].

    alpha = <x0, e> / <e, e> in float64, so that e itself gives exactly 1; |x| is the sum of magnitudes. A state of
    zeros has alpha 0 and misfit 0.
    Nothing is checked and nothing leaves the device.
    """
    state, e = x0.to(torch.float64), bos_input.to(device=x0.device, dtype=torch.float64)
    length = state.abs().sum(-1)
    alpha = torch.where(length == 0.0, 0.0, (state * e).sum(-1) / (e * e).sum(-1))
    rest = (state - alpha.unsqueeze(-1) * e).abs().sum(-1)
    misfit = torch.where(length == 0.0, 0.0, rest / length)
    return alpha.to(torch.float32), misfit.to(torch.float32)


def bos_coefficients(x0: Tensor, bos_input: Tensor, *, name: str = "the text embedding") -> Tensor:
    """Return alpha [batch] of first-token states `x0` [batch, in]; 1 for an ordinary prompt, 0 for zeros.

    Raises:
        BosNotConstantError: a state is no multiple of `bos_input`, by more than `MISFIT_LIMIT`.
        NonFiniteError: a state holds NaN or infinity; `name` says whose it is.

    >>> bos_coefficients(torch.tensor([[4.0, 2.0], [0.0, 0.0]]), torch.tensor([4.0, 2.0])).tolist()
    [1.0, 0.0]
    """
    alpha, misfit = bos_projection(x0, bos_input)
    if bool((misfit <= MISFIT_LIMIT).all()):
        return alpha
    _check_finite(x0, name)
    raise BosNotConstantError(
        f"{name}: the first text token's state is not the one calibrated (off by {float(misfit.max()):.0%}, at most "
        f"{MISFIT_LIMIT:.0%} is allowed). Use the text encoder and clip skip of the calibration, or calibrate again. A "
        "denoiser compiled as a whole needs a call before that is not."
    )


def bos_rows(
    x0: Tensor,
    bos: BosRow,
    bias: Tensor | None = None,
    *,
    product: Product | None = None,
    name: str = "the text embedding",
) -> Tensor:
    """Return the layer's outputs [batch, out] for first-token states `x0` [batch, in], in the dtype of `x0`.

    alpha * output; where the layer has a bias, which does not scale, bias + alpha * (output - bias). With `product`,
    states that are no multiple of the stored one are right too, up to what the weight's bits cost the rest of them; a
    warning says so. Without it raises as `bos_coefficients` does; NonFiniteError with it too.
    """
    alpha, misfit = bos_projection(x0, bos.input)
    fits = bool((misfit <= MISFIT_LIMIT).all())
    if not fits and product is None:
        bos_coefficients(x0, bos.input, name=name)
    alpha = alpha.unsqueeze(-1)
    output = bos.output.to(device=x0.device, dtype=torch.float32)
    if bias is None:
        rows = alpha * output
    else:
        rows = torch.lerp(bias.detach().to(torch.float32).expand(*alpha.shape[:-1], -1), output, alpha)
    if not fits and product is not None:
        _check_finite(x0, name)
        # The text is the same for every layer, so that Python shows it once.
        warnings.warn(
            "The first text token's state is not the one calibrated (another clip skip, an adapted text encoder): its "
            "rows are computed from the quantized weights, and static inputs are scaled at run time, which takes "
            "longer. Calibrate with this text encoder to have neither.",
            stacklevel=2,
        )
        rows = rows + product(x0.to(torch.float32) - alpha * bos.input.to(x0.device))
    return rows.to(x0.dtype)


class BosRows:
    """`bos_rows` for one layer, with the last answer kept: every step and most prompts ask for the same again.

    It is given again only for states of equal shape, dtype and numbers. `bos` and `bias` must not change in place.
    """

    def __init__(self, bos: BosRow, bias: Tensor | None, *, product: Product | None = None, name: str) -> None:
        self._bos, self._bias, self._product, self._name = bos, bias, product, name
        self._peak = int(bos.input.abs().argmax())
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x0: Tensor) -> Tensor:
        """Return the layer's outputs [batch, out], not to be written to; raises as `bos_rows` does."""
        last = self._last
        if last is not None and last[0].dtype == x0.dtype and torch.equal(last[0], x0):
            return last[1]
        rows = bos_rows(x0, self._bos, self._bias, product=self._product, name=self._name)
        self._last = x0.clone(), rows
        return rows

    def renew(self, x: Tensor, y: Tensor) -> Tensor:
        """Return outputs `y` [..., tokens, out] of `x` [..., tokens, in] with a row wherever a token is the first one.

        Such are multiples of the stored state, by a half of it or more: first tokens of later texts.
        """
        e = self._bos.input.to(x.device)
        found = (x[..., self._peak].abs() > 0.5 * e[self._peak].abs()).nonzero(as_tuple=True)
        states = x[found]
        alpha, misfit = bos_projection(states, e)
        fits = (misfit <= MISFIT_LIMIT) & (alpha >= 0.5)
        if not bool(fits.any()):
            return y
        return y.index_put([axis[fits] for axis in found], bos_rows(states[fits], self._bos, self._bias).to(y.dtype))


def with_bos_row(
    x: Tensor, bos: BosRow, bias: Tensor | None, others: Callable[[Tensor], Tensor], *, name: str
) -> Tensor:
    """Return `with_first_row` of the rows of `bos`."""
    return with_first_row(x, BosRows(bos, bias, name=name), others)


def with_first_row(x: Tensor, rows: BosRows, others: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a layer's output [..., tokens, out]: token 0 from `rows(x[..., 0, :])`, the rest `others(x[..., 1:, :])`.

    `x` is [batch, tokens, in], or [tokens, in] for one text, or [in] for its first token alone; with one token
    `others` is not called. Beyond `CLIP_TOKENS`, first tokens of later texts have rows too. Raises as `rows` does.
    """
    if x.dim() == 1:
        return rows(x).clone()
    first = rows(x[..., 0, :]).unsqueeze(-2)
    if x.shape[-2] == 1:
        return first.clone()
    rest = others(x[..., 1:, :])
    if x.shape[-2] > CLIP_TOKENS:
        rest = rows.renew(x[..., 1:, :], rest)
    return torch.cat([first, rest], dim=-2)


def _check_finite(x0: Tensor, name: str) -> None:
    if not bool(torch.isfinite(x0).all()):
        raise NonFiniteError(f"{name}: the first text token's state holds NaN or infinity", where=name)
