"""Run the recipe: `python -m recipes.emoji_turbo --small`, again after any interruption."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from recipes.emoji_turbo import (
    autoencoder,
    card,
    distil,
    evaluate,
    export,
    image_tower,
    pictures,
    prompts,
    teacher,
    text_encoder,
)
from recipes.emoji_turbo.config import FULL, SMALL, Config, Workspace

STAGES: dict[str, Callable[[Config, Workspace], object]] = {
    "pictures": pictures.render,
    "autoencoder": autoencoder.train,
    "text": text_encoder.train,
    "image": image_tower.train,
    "teacher": teacher.train,
    "distil": distil.train,
    "export": export.ship,
    "prompts": prompts.write,
    "evaluate": evaluate.run,
    "card": card.write,
}


def main() -> None:
    """Run the asked stages in order; each one that is finished is loaded, not repeated."""
    parser = argparse.ArgumentParser(prog="python -m recipes.emoji_turbo", description=__doc__)
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--small", dest="config", action="store_const", const=SMALL, help="64 px, two CPU cores")
    size.add_argument("--full", dest="config", action="store_const", const=FULL, help="128 px, one GPU")
    parser.add_argument("--work", type=Path, default=Path("build/emoji_turbo"), help="folder for everything made")
    parser.add_argument("--out", type=Path, default=Workspace.shipped, help="folder for the finished model")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=f"of {', '.join(STAGES)}"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in arguments.stages:
        STAGES[name](arguments.config, Workspace(root=arguments.work, shipped=arguments.out))


if __name__ == "__main__":
    main()
