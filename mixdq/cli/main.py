"""Entry point of the command `mixdq`: verbs, logging, exit codes.

0 done; 1 a mistake that the text on stderr explains; 2 wrong usage; 130 interrupted.
"""

import errno
import functools
import importlib
import importlib.metadata
import logging
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from mixdq.errors import MixDQError

VERBS: dict[str, str] = {
    "quantize": "Quantize a model with all steps: smaller files, pictures, numbers, a report.",
    "run": "Do all steps of a config.toml; finished steps are not done again.",
    "inspect": "List the quantizable layers of a model; begins a run folder.",
    "calibrate": "Find activation ranges and BOS rows on prompts.",
    "sensitivity": "Measure what each layer costs at each width.",
    "fit": "Find on whole plans how the losses of layers add up to a picture's error.",
    "allocate": "Find the best bits for every layer within the budget.",
    "choose": "Score the found plans on pictures and keep the best.",
    "apply": "Quantize the model by the chosen plan and save it.",
    "export": "Write a quantized UNet as one file that ComfyUI opens by itself.",
    "generate": "Make pictures with a model folder, floating-point or quantized.",
    "evaluate": "Compare the quantized model's pictures with the floating-point model's.",
    "benchmark": "Measure seconds per picture and memory, floating point against quantized.",
    "report": "Write report.html and report.md from the files of a run.",
    "demo": "Do the whole job on the embedded model.",
    "doctor": "Say which backends work here, and why others do not.",
}

app = typer.Typer(
    name="mixdq",
    help="Make few-step text-to-image models small without spoiling their pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class State:
    """What the global options say; read when a verb fails."""

    verbose = False


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"mixdq {importlib.metadata.version('mixdq')}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log each layer; show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make few-step text-to-image models small without spoiling their pictures."""
    State.verbose = verbose
    if not verbose:
        # The libraries' own talk at import (of torchvision, which is not needed) would only hide ours.
        for library in ("TRANSFORMERS", "DIFFUSERS"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, show_level=False)
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("mixdq").setLevel(logging.DEBUG if verbose else logging.INFO)


def guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """Return the verb with every mistake it can meet turned into one line on stderr and an exit code."""

    @functools.wraps(verb)
    def guard(*args: Any, **kwargs: Any) -> None:
        say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        try:
            verb(*args, **kwargs)
        except KeyboardInterrupt as error:
            say.print("interrupted; the same command goes on from here.")
            raise typer.Exit(130) from error
        except (MixDQError, OSError) as error:
            if State.verbose:
                raise
            say.print(f"error: {explain(error) if isinstance(error, OSError) else error}")
            raise typer.Exit(1) from error

    return guard


def explain(error: OSError) -> str:
    """Return one line that says what the system refused and what to do."""
    name = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        # The last two are a quota and a limit on one file: as good as full.
        return f"the disk is full{name}: free some space and run the same command again; what is done is kept."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write{name}: choose another folder."
    return f"{error.strerror or error}{name}"


for _verb, _help in VERBS.items():
    app.command(_verb, help=_help)(guarded(importlib.import_module(f"mixdq.cli.verbs.{_verb}").command))
