"""What happens to saved models that are damaged or hostile: thousands of spoilt folders, each opened by diffusers.

A tiny denoiser of each kind (see `SOURCES`) is saved, one `mutation` spoils a copy, and a process of its own opens it.
Three outcomes are right: MixDQ refuses it, what stands before MixDQ refuses it (diffusers reads the configs and builds
the model first, safetensors reads the headers), or it opens and is the same to the last bit of its tensors, its config
and its output. Wrong are: another model opens, another error leaves our code, the process dies or never ends.
"""

import argparse
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from rich.table import Table
from safetensors.torch import load_file, save_file

import mixdq
from benchmarks import measuring, mutations
from mixdq.integrations.checksums import CHECKSUMS
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, Budget, LayerBits

PROMPTS = ("a red dog", "two cats")
WIDTHS = ("W8A8", "W4A8", "W2A16", "W16A16", "W5A6", "W3A8")
PACKAGE = Path(mixdq.__file__).parent
MEMORY = 8 * 2**30
"""Address space of a process: diffusers builds what config.json says, and to run out of it is a refusal."""
SECONDS = 60
"""Of its own time that an opening may take; alike."""
PATIENCE = 900
"""Seconds without a word after which a process counts as hung; the machine may be busy."""

ANY = {name: getattr(mutations, name) for name in ("config_bytes", "header_bytes", "tensor_bytes", "header_values")}
CONFIGS = {name: getattr(mutations, name) for name in ("quantization_config", "architecture", "extremes", "strangers")}
INDEX = {name: getattr(mutations, name) for name in ("index_bytes", "index_values")}
SOURCES: Mapping[str, Mapping[str, mutations.Mutation]] = {
    "one file": {**ANY, **CONFIGS},
    "shards": {**ANY, **CONFIGS, **INDEX},
    "no checksums": {**ANY, **CONFIGS},
}
"""Saved model -> what is done to it. Without checksums a model may open as another one; nothing else may happen."""

KINDS = [(source, name) for source, ways in SOURCES.items() for name in ways]
RIGHT = ("identical", "refused by MixDQ", "refused before MixDQ", "another, without checksums")
WRONG = ("another model", "other error of MixDQ", "process died", "no end")


@dataclass(frozen=True)
class Outcome:
    """What became of one case; `error` is the type's name and where it was raised, `text` what it said."""

    case: int
    source: str
    mutation: str
    damage: str
    verdict: str
    error: str = ""
    text: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print the table, write the JSON; exit code 1 where an outcome is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--cases", type=measuring.count, default=12_000)
    parser.add_argument("--first", type=int, default=0, help="the first case's number; with --cases 1 it alone")
    parser.add_argument("--smoke", action="store_true", help="one case of each kind: does it run")
    parser.add_argument("--json", type=Path, help="write the counts, the wrong outcomes and one of each kind here")
    arguments = parser.parse_args(argv)
    cases = range(arguments.first, arguments.first + (len(KINDS) if arguments.smoke else arguments.cases))
    with tempfile.TemporaryDirectory() as folder:
        make_sources(Path(folder))
        outcomes = list(run(cases, Path(folder)))
    measuring.console().print(table(outcomes))
    measuring.console().print(errors(outcomes))
    wrong = [outcome for outcome in outcomes if outcome.verdict in WRONG]
    for outcome in wrong[:20]:
        print(
            f"case {outcome.case}, {outcome.source}, {outcome.damage}: {outcome.verdict} {outcome.error} {outcome.text}"
        )
    if arguments.json:
        counts = Counter((o.source, o.mutation, o.verdict, o.error) for o in outcomes)
        examples = {(o.source, o.mutation, o.verdict, o.error): asdict(o) for o in reversed(outcomes)}
        rows = [{**examples[key], "count": count} for key, count in sorted(counts.items())]
        measuring.write_json(arguments.json, rows, cases=len(outcomes), wrong=[asdict(outcome) for outcome in wrong])
    if wrong:
        sys.exit(1)


def make_sources(folder: Path) -> None:
    """Save for every source a `model` and an `other` one, which differs in its weights and nothing else."""
    for seed, name in enumerate(("model", "other")):
        save(quantized(tiny_sdxl_pipeline(seed)), folder / "one file" / name)
        pipe = quantized(tiny_sd_pipeline(seed), symmetric=False, activations="dynamic")
        save(pipe, folder / "shards" / name, max_shard_size="100KB")
        bare = Path(shutil.copytree(folder / "one file" / name, folder / "no checksums" / name))
        for file in bare.glob("*.safetensors"):
            save_file({key: t for key, t in load_file(file).items() if key not in CHECKSUMS}, file, {"format": "pt"})


def quantized(pipe: DiffusionPipeline, **how: Any) -> DiffusionPipeline:
    """Return the pipeline with its denoiser in all kinds of widths."""
    table, record = mixdq.inspect(pipe), mixdq.calibrate(pipe, PROMPTS)
    layers = {spec.name: LayerBits.parse(WIDTHS[i % len(WIDTHS)]) for i, spec in enumerate(table)}
    plan = BitPlan(name="all kinds", layers=layers, budget=Budget(weight_bits=5.0))
    return mixdq.apply(pipe, plan, record, table, backend="reference", **how)


def save(pipe: DiffusionPipeline, folder: Path, **how: Any) -> None:
    """Save the denoiser alone."""
    pipe.unet.save_pretrained(folder, **how)


def run(cases: Sequence[int], folder: Path) -> Iterator[Outcome]:
    """Yield each case's outcome; the process that opens is begun anew when it died or came to no end."""
    context = multiprocessing.get_context("spawn")
    left = list(cases)
    while left:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(left, folder, theirs), daemon=True)
        process.start()
        theirs.close()
        begun: Outcome | None = None
        try:
            while left:
                # A second at a time: where the whole machine stands still, only one of them passes.
                if not any(ours.poll(1) for _ in range(PATIENCE)):
                    raise EOFError
                begun = ours.recv()
                if begun.verdict:
                    yield begun
                    left = left[1:]
        except EOFError:
            verdict = "no end" if process.is_alive() else "process died"
            assert begun is not None, "the process did not even begin"
            yield Outcome(**{**asdict(begun), "case": left[0], "verdict": verdict})
            left = left[1:]
        process.kill()
        process.join()


def serve(cases: Sequence[int], folder: Path, out: Connection) -> None:
    """Send each case's damage before it is opened, and its outcome after."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, _too_long)
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    diffusers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    whole = {source: facts(folder / source / "model") for source in SOURCES}
    for case in cases:
        source, name = KINDS[case % len(KINDS)]
        spoilt = folder / "spoilt"
        shutil.rmtree(spoilt, ignore_errors=True)
        shutil.copytree(folder / source, spoilt)
        damage = SOURCES[source][name](Random(case), spoilt / "model")
        out.send(Outcome(case, source, name, damage, ""))
        verdict, error, text = judge(spoilt / "model", whole[source])
        if verdict == "another model" and source == "no checksums":
            verdict = "another, without checksums"
        out.send(Outcome(case, source, name, damage, verdict, error, text))


def judge(folder: Path, whole: Mapping[str, object]) -> tuple[str, str, str]:
    """Open a folder; return the verdict, the error and its text."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        found = facts(folder)
    except mixdq.MixDQError as error:
        return "refused by MixDQ", type(error).__name__, str(error)[:200]
    except Exception as error:  # noqa: BLE001  (whichever it is: that is what is asked)
        frames = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        ours = any(frame.is_relative_to(PACKAGE) for frame in frames)
        places = (frame.parts for frame in reversed(frames))
        last = next((parts for parts in places if "site-packages" in parts), ("site-packages", "python"))
        room = last[last.index("site-packages") + 1].removesuffix(".py")
        return (
            "other error of MixDQ" if ours else "refused before MixDQ",
            f"{room}: {type(error).__name__}",
            str(error)[:200],
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    differs = [name for name in {*whole, *found} if found.get(name) != whole.get(name)]
    return ("another model" if differs else "identical"), "", ", ".join(differs[:8])


def facts(folder: Path) -> dict[str, object]:
    """Return all that makes a denoiser: its config, every tensor's bytes, and what it answers."""
    unet = UNet2DConditionModel.from_pretrained(folder, allow_pickle=False)
    made: dict[str, object] = {key: str(value) for key, value in unet.config.items() if not key.startswith("_")}
    made["quantization_config"] = str(unet.config.quantization_config and unet.config.quantization_config.to_dict())
    for name, tensor in unet.state_dict().items():
        made[name] = (tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 16, unet.config.cross_attention_dim, generator=generator)
    inputs = {
        "sample": torch.randn(1, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(499),
        "encoder_hidden_states": text,
        "added_cond_kwargs": {"text_embeds": torch.ones(1, 32), "time_ids": torch.ones(1, 6)},
    }
    bos = next((m.bos_input for m in unet.modules() if isinstance(m, QuantizedLayer) and m.bos_input is not None), None)
    if bos is not None:
        text[:, 0] = bos
    with torch.no_grad():
        made["output"] = unet(**inputs).sample.numpy().tobytes()
    return made


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return how often each verdict came out, a row for each thing that was done."""
    verdicts = [name for name in (*RIGHT, *WRONG) if name in WRONG or any(o.verdict == name for o in outcomes)]
    made = Table(title=f"{len(outcomes)} spoilt folders opened")
    for name in ("saved as", "spoilt", *verdicts):
        made.add_column(name, justify="left" if name in ("saved as", "spoilt") else "right")
    counts = Counter((o.source, o.mutation, o.verdict) for o in outcomes)
    for source, ways in SOURCES.items():
        for way in ways:
            made.add_row(source, way.replace("_", " "), *(str(counts[source, way, name] or "") for name in verdicts))
    made.add_section()
    total = Counter(o.verdict for o in outcomes)
    made.add_row("all", "", *(str(total[name]) for name in verdicts))
    return made


def errors(outcomes: Sequence[Outcome]) -> Table:
    """Return how often each error was raised."""
    made = Table("verdict", "error", "times", "one of them said")
    said = {(o.verdict, o.error): o.text for o in reversed(outcomes) if o.error}
    for (verdict, error), times in Counter((o.verdict, o.error) for o in outcomes if o.error).most_common():
        made.add_row(verdict, error, str(times), said[verdict, error][:60].replace("\n", " ").replace("[", "("))
    return made


def _too_long(signum: int, frame: object) -> None:
    raise TimeoutError(f"no end after {SECONDS} s")


if __name__ == "__main__":
    main()
