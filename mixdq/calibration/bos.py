"""The first text token's state, which a causal text encoder gives every prompt alike (arXiv 2405.17873, section 3.2).

It is taken from what the layers really read, so it belongs to the user's own text encoder, adapters included. Applying
the rows is done in `mixdq.quant.bos`.
"""

import math

import torch
from torch import Tensor, nn

from mixdq.errors import BosNotConstantError, EmptyRangeError, NonFiniteError
from mixdq.quant.bos import MISFIT_LIMIT
from mixdq.types.layers import LayerTable


class SharedState:
    """Sees first-token states of many prompts and gives back the one they share."""

    def __init__(self) -> None:
        self._state: Tensor | None = None

    def see(self, layer: str, states: Tensor) -> None:
        """Take first-token states [..., features] that `layer` reads.

        States of zeros, which stand for an empty negative prompt, are passed over. Others may differ by
        sqrt(epsilon) of their dtype, in sums of magnitudes relative to the first one seen: what a text encoder's
        rounding can do, and never more than passes at run time.

        Raises:
            BosNotConstantError: they differ by more.
            NonFiniteError: one holds NaN or infinity.
        """
        rows = states.detach().reshape(-1, states.shape[-1])
        rows = rows[rows.ne(0).any(dim=-1)]
        if len(rows) == 0:
            return
        if not bool(torch.isfinite(rows).all()):
            raise NonFiniteError(
                f"{layer}: the first text token's state holds NaN or infinity. Run the text encoder in a wider dtype.",
                where=layer,
            )
        if self._state is None:
            self._state = rows[0].to(device="cpu", dtype=torch.float32, copy=True)
        state = self._state.to(rows.device)
        if state.shape != rows.shape[1:]:
            raise BosNotConstantError(f"{layer}: reads another text embedding than the layers before it")
        rest = (rows.to(torch.float32) - state).abs().sum(-1)
        worst = float((rest / state.abs().sum()).max())
        limit = min(math.sqrt(torch.finfo(states.dtype).eps), MISFIT_LIMIT)
        if worst > limit:
            raise BosNotConstantError(
                f"{layer}: the first text token's state differs from prompt to prompt (by {worst:.1%}). It is the same "
                "for causal text encoders such as CLIP's; use no prompt weighting in calibration prompts."
            )

    def result(self) -> Tensor:
        """Return the shared state, float32 [features] on the CPU; raise EmptyRangeError if there is none."""
        if self._state is None:
            raise EmptyRangeError("no text embedding reached the layers that read it; calibrate with ordinary prompts")
        return self._state


def bos_outputs(denoiser: nn.Module, table: LayerTable, state: Tensor) -> dict[str, Tensor]:
    """Return BOS layer -> its floating-point output for `state`, float32 [out_features] on the CPU."""
    outputs: dict[str, Tensor] = {}
    for layer in table:
        if layer.bos:
            module = denoiser.get_submodule(layer.name)
            weight = module.weight
            assert isinstance(weight, Tensor)
            with torch.no_grad():
                output: Tensor = module(state.to(device=weight.device, dtype=weight.dtype))
            outputs[layer.name] = output.to(device="cpu", dtype=torch.float32)
    return outputs
