"""How long work tells how far it is."""

from typing import Protocol


class Progress(Protocol):
    """Called after each piece of work: `done` of `total` pieces of `what` (a short noun such as "calibration")."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take note; an exception raised here, Ctrl-C included, stops the work and leaves the model as it was."""


def no_progress(done: int, total: int, what: str) -> None:
    """Do nothing: the default wherever a `Progress` is taken."""
