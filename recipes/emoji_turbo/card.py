"""The model card of the shipped folder: written from the run's own numbers, so that it cannot drift from them."""

import json
import shutil
from pathlib import Path

from recipes.emoji_turbo import bank, evaluate, pictures
from recipes.emoji_turbo.config import Config, Workspace

TEMPLATE = Path(__file__).with_name("card.md")


def write(config: Config, workspace: Workspace) -> None:
    """Write README.md and the sample sheets into the shipped folder."""
    evaluation = workspace.stage("evaluation")
    held = bank.Bank(config, workspace)
    names = pictures.render(config, workspace).concepts
    weights = {part: _millions(workspace.shipped / part) for part in ("unet", "text_encoder_2", "vae", "image_tower")}
    facts = {
        "concepts": ", ".join(names),
        "num_concepts": str(len(names)),
        "num_examples": f"{len(held.captions):,}",
        "styles": ", ".join(f'"{style.words}"' for style in config.styles),
        "colours": ", ".join(config.colours),
        "table": (evaluation / "table.md").read_text(encoding="utf-8").strip(),
        "num_captions": str(json.loads((evaluation / "table.json").read_text())["captions"]),
        "side": str(config.image_size),
        "draws": str(evaluate.DRAWS),
        "teacher_pictures": f"{config.teacher.steps * config.teacher.batch:,}",
        "distil_pictures": f"{config.distil.steps * config.distil.batch:,}",
        **{f"weights_{part}": f"{count:.1f}" for part, count in weights.items()},
        **{key: f"{value:.1f}" for key, value in json.loads((evaluation / "facts.json").read_text()).items()},
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for key, value in facts.items():
        text = text.replace("{{" + key + "}}", value)
    (workspace.shipped / "README.md").write_text(text, encoding="utf-8")
    for sheet in ("samples.png", "held_out.png"):
        shutil.copyfile(evaluation / sheet, workspace.shipped / sheet)


def _millions(folder: Path) -> float:
    """Return the millions of float16 weights in a folder's safetensors files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2e6
