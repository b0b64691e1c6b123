"""What verbs share: opening a run with a progress bar, and tables on the screen."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mixdq.cli.progress import progress_bar
from mixdq.types.evaluation import Evaluation

if TYPE_CHECKING:
    from mixdq.config import RunConfig
    from mixdq.workflow.session import Session

# Where nobody says how wide a line may be (a file, a pipe), tables are not squeezed into 80 columns.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


@contextmanager
def opened(folder: Path) -> "Iterator[Session]":
    """Yield the run in `folder`; ConfigError where there is none."""
    from mixdq.workflow.session import Session

    with progress_bar() as progress:
        yield Session.open(folder, progress=progress)


@contextmanager
def started(folder: Path, config: "RunConfig", *, everything: bool = True) -> "Iterator[Session]":
    """Yield the run in `folder` with these settings; begun or gone on with, `everything` as in `Session.start`."""
    from mixdq.workflow.session import Session

    with progress_bar() as progress:
        yield Session.start(folder, config, everything=everything, progress=progress)


def evaluation_table(evaluations: Sequence[Evaluation]) -> None:
    """Print one row a variant."""
    rows = Table("variant", "bits W / A", "MiB", "SSIM", "PSNR dB", "SQNR dB", "CLIP", "s / picture")
    for one in evaluations:
        clip = "-" if one.clip_score is None else f"{one.clip_score:.4f}"
        rows.add_row(
            one.name,
            f"{one.weight_bits:.2f} / {one.activation_bits:.2f}",
            f"{one.weight_bytes / 2**20:.2f}",
            f"{one.ssim:.4f}",
            f"{one.psnr_db:.2f}",
            f"{one.sqnr_db:.2f}",
            clip,
            f"{one.seconds:.3f}",
        )
    console.print(rows)
