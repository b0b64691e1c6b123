"""The model card of a quantized pipeline: README.md with its metadata, numbers and pictures, made from a run's facts.

It lies in the saved folder, so that `hf upload OWNER/NAME RUN/model` shares it with the model. Nothing is sent here.
"""

import filecmp
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCardData

from mixdq.errors import ConfigError
from mixdq.report.facts import ReportFacts, Variant
from mixdq.report.markdown import code, escape
from mixdq.report.summary import backends, main_table, mib
from mixdq.store.artifact import atomic_write

CARD = "README.md"
PICTURES = "pictures"
SHOWN = 4
"""Prompts whose pictures go along."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

_USE = """```python
import mixdq  # before the model is opened: it teaches diffusers the format
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("OWNER/NAME")  # this repository, or a folder with its files
pipe("a corgi in a spacesuit", num_inference_steps={steps}, guidance_scale={guidance}).images[0].save("corgi.png")
```"""


def write_model_card(
    facts: ReportFacts, folder: Path, *, variant: str | None = None, license: str | None = None
) -> Path:
    """Return the path of README.md, written into a saved pipeline's folder with the pictures that it shows.

    `variant` names the one of `facts` that lies there; it may be left out where there is one. `license` is a hub's
    short name such as "openrail++".

    Raises:
        ConfigError: there is no such variant, several and none was named, or no such folder.
        ArtifactFormatError: pictures are missing.
    """
    found = [one for one in facts.variants[1:] if variant in (None, one.name)]
    if len(found) != 1:
        names = ", ".join(one.name for one in facts.variants[1:]) or "none"
        raise ConfigError(f"variant = {variant!r}: expected the name of one of the quantized variants ({names})")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no folder; the card is written beside a saved pipeline")
    own = replace(facts, variants=(facts.reference, found[0]))
    shown = min(SHOWN, len(facts.prompts), facts.shown_prompts)
    pictures = [_copied(one, folder / PICTURES, shown) for one in own.variants]
    path, text = folder / CARD, _card(own, found[0], pictures, license).encode()
    if not path.exists() or path.read_bytes() != text:
        atomic_write(path, text)
    return path


def _card(facts: ReportFacts, variant: Variant, pictures: Sequence[Sequence[str]], license: str | None) -> str:
    numbers = variant.evaluation
    base = facts.model if _HUB_ID.fullmatch(facts.model) and not Path(facts.model).exists() else None
    metadata = ModelCardData(
        base_model=base,
        base_model_relation="quantized" if base else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license=license,
        tags=["mixdq", "quantized", f"w{numbers.weight_bits:.3g}a{numbers.activation_bits:.3g}"],
    )
    named = f"[{escape(base)}](https://huggingface.co/{base})" if base else code(Path(facts.model).name or facts.model)
    prompts = [escape(prompt) for prompt in facts.prompts[: len(pictures[0])]]
    columns = [[f"![]({picture})" for picture in one] for one in pictures]
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {escape(variant.name)}",
        f"{named} with its denoiser quantized by MixDQ (arXiv 2405.17873): {numbers.weight_bits:.2f} bits a weight and "
        f"{numbers.activation_bits:.2f} an activation in the mean, {mib(numbers.weight_bytes)} MiB instead of "
        f"{mib(facts.reference.evaluation.weight_bytes)}. Its licence is that of the model it was made from.",
        *(f"**{escape(warning)}**" for warning in facts.warnings),
        "## Use",
        "Needs `pip install mixdq`.",
        _USE.format(steps=facts.settings.get("steps", "1"), guidance=facts.settings.get("guidance scale", "0.0")),
        "## Numbers",
        f"Against the floating-point model, {len(facts.prompts)} prompts, same seeds.",
        _numbers(facts),
        "## Pictures",
        _table(["prompt", *(escape(one.name) for one in facts.variants)], zip(prompts, *columns, strict=True)),
    ]
    for receipt in facts.receipts:
        if variant.plan is not None and receipt.plan == variant.plan.name:
            rows = [[escape(backend), bits, str(layers)] for backend, bits, layers in backends(receipt)]
            parts += ["## Bits", _table(["backend", "bits", "layers"], rows)]
    settings = {**facts.settings, **facts.environment}
    parts += ["## How it was made", _table(["what", "value"], [[escape(k), escape(v)] for k, v in settings.items()])]
    return "\n\n".join(parts) + "\n"


def _copied(variant: Variant, folder: Path, count: int) -> list[str]:
    """Copy the first pictures of a variant into the card's folder; return their places as the card names them."""
    folder.mkdir(exist_ok=True)
    kind = "float" if variant.evaluation.method == "float" else "quantized"
    names = []
    for index, file in enumerate(variant.picture_files(count)):
        names.append(f"{PICTURES}/{index:03d}-{kind}.png")
        copy = folder.parent / names[-1]
        if not copy.exists() or not filecmp.cmp(file, copy):
            shutil.copyfile(file, copy)
    return names


def _numbers(facts: ReportFacts) -> str:
    titles, rows = main_table(facts)
    cells = [
        [escape(variant.name), *(f"{c.text} ({c.note})" if c.note else c.text for c in row)] for variant, row in rows
    ]
    return _table(["", *titles], cells)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
