"""Every error that MixDQ raises for a user's mistake.

MixDQError
+-- UnsupportedModelError      no family knows this pipeline
+-- ConfigError                unknown key, wrong type, pattern that matches nothing
+-- PromptError                a prompt file that is missing, empty or not UTF-8
+-- CalibrationError           ranges or BOS rows cannot be had from this model and these prompts
|   +-- EmptyRangeError        no data, or no finite value
|   +-- BosNotConstantError    the first text token differs from prompt to prompt
+-- NonFiniteError             NaN or infinity in weights, activations or scores; names the layer
+-- InfeasibleBudgetError      carries the least and the greatest budget that is possible
+-- PlanError                  carries every disagreement between a plan and a model, not only the first
+-- NoBackendError             carries backend -> reasons
+-- ClusterError               no cluster there, or its workers are not fit for the work
+-- ArtifactError
    +-- ArtifactFormatError    foreign, torn or newer file
    +-- StaleArtifactError     made from other inputs than the present ones

Errors of the system (disk full, no permission) stay OSError; the command line words them.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class MixDQError(Exception):
    """The root of the tree: something a user can put right; the text says how. Travels whole between processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is otherwise made again from its text alone, without what it carries.
        return Exception.__new__, (type(self), *self.args), self.__dict__


class UnsupportedModelError(MixDQError):
    """No model family knows this pipeline, or the path holds no pipeline."""


class ConfigError(MixDQError):
    """A setting is unknown, of the wrong type, out of range, or matches nothing."""


class PromptError(MixDQError):
    """A prompt file cannot be used."""


class CalibrationError(MixDQError):
    """Calibration cannot give what quantization needs."""


class EmptyRangeError(CalibrationError):
    """A layer input saw no data, or no finite value."""


class BosNotConstantError(CalibrationError):
    """The first text token's state is not the same for every prompt, so it cannot be stored once."""


class NonFiniteError(MixDQError):
    """NaN or infinity where numbers are needed; `where` names the layer."""

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(message)
        self.where = where


class InfeasibleBudgetError(MixDQError):
    """No assignment of bits meets the budget; `least` and `greatest` (in the budget's unit) are possible.

    Where there are several budgets, `reach` maps the name of each to both.
    """

    def __init__(
        self, message: str, *, least: float, greatest: float, reach: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        super().__init__(message)
        self.least = least
        self.greatest = greatest
        self.reach = dict(reach or {})


class PlanError(MixDQError):
    """A plan does not fit a model; `disagreements` lists every one."""

    def __init__(self, message: str, *, disagreements: Sequence[str]) -> None:
        super().__init__(message)
        self.disagreements = tuple(disagreements)


class NoBackendError(MixDQError):
    """No backend is willing to run a layer; `refusals` maps backend -> reasons."""

    def __init__(self, message: str, *, refusals: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.refusals = {name: tuple(reasons) for name, reasons in refusals.items()}


class ClusterError(MixDQError):
    """A cluster cannot be reached, or its workers hold another MixDQ or model, or do not last."""


class ArtifactError(MixDQError):
    """A file of a run cannot be used."""


class ArtifactFormatError(ArtifactError):
    """The file is foreign, torn, hostile, or of a newer format."""


class StaleArtifactError(ArtifactError):
    """The file was made from other inputs than the present ones."""
