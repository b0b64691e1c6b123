"""What the check of a plan on another model found, and what follows from it, in words. Needs no model and no torch.

Errors are compared as shares: of the denoiser's output power, and of what SSIM loses to 1.
"""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["holds", "holds less well", "ruins the pictures"]

OWN_RUN_SLACK = 2.0
"""On another model the errors may be this many times those on the plan's own: models differ, and so do their errors."""

UNIFORM_SLACK = 1.1
"""Beside a plain plan on the same model there is no such excuse, only the noise of few pictures."""

RUINED_NOISE = 0.5
"""From this share of the denoiser's output power on, the error says as much as the output (SQNR of 3 dB)."""


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """How near a quantized model is to floating point, means over pictures: SQNR of the denoiser, SSIM of pictures."""

    sqnr_db: float
    ssim: float

    @property
    def noise(self) -> float:
        """The error's share of the denoiser's output power."""
        return float(10 ** (-self.sqnr_db / 10))

    @property
    def loss(self) -> float:
        """What SSIM lacks."""
        return 1.0 - self.ssim

    def __str__(self) -> str:
        return f"SQNR {self.sqnr_db:.1f} dB, SSIM {self.ssim:.4f}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """A plan simulated on another model, beside a yardstick.

    Attributes:
        plan, model: what was checked on what.
        prompts: how many pictures were drawn.
        measured: the plan on this model.
        yardstick: the plan on its own model as its run reports it, or a plain plan of as many bytes on this model.
        own_run: which of the two.
        against: the yardstick in words.
        strangers: mean SSIM of two floating-point pictures of different prompts: nothing in common is worth that.
        differences: how many layers differ from the architecture that the plan was made for.
    """

    plan: str
    model: str
    prompts: int
    measured: Closeness
    yardstick: Closeness
    own_run: bool
    against: str
    strangers: float
    differences: int = 0

    @property
    def outcome(self) -> Outcome:
        """What the numbers mean."""
        if self.measured.noise >= RUINED_NOISE or self.measured.ssim <= self.strangers:
            return "ruins the pictures"
        slack = OWN_RUN_SLACK if self.own_run else UNIFORM_SLACK
        worse = self.measured.noise > slack * self.yardstick.noise or self.measured.loss > slack * self.yardstick.loss
        return "holds less well" if worse else "holds"

    @property
    def text(self) -> str:
        """The verdict for people."""
        differing = f"; {self.differences} layers differ" if self.differences else ""
        return (
            f"plan {self.plan} {self.outcome} on {self.model}: {self.measured} on {self.prompts} prompts; "
            f"{self.against}: {self.yardstick}; pictures of different prompts: SSIM {self.strangers:.4f}{differing}"
        )
