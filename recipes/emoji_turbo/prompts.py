"""The two prompt files beside the model: captions to calibrate on and captions to judge by."""

import logging

import numpy as np

from recipes.emoji_turbo import captions, pictures
from recipes.emoji_turbo.captions import Scene
from recipes.emoji_turbo.config import Config, Workspace

log = logging.getLogger(__name__)

NUM_CALIBRATION = 128
# Of the evaluation captions: held-out pairs, trained pairs, two objects, and captions that leave something open.
NUM_HELD_OUT, NUM_TRAINED, NUM_DOUBLE, NUM_SHORT = 24, 32, 4, 4


def write(config: Config, workspace: Workspace) -> None:
    """Write `calibration_prompts.txt` and `evaluation_prompts.txt` next to the shipped folder, no caption in both."""
    names = pictures.render(config, workspace).concepts
    random = np.random.default_rng(config.seed + 70)
    held_out = _distinct(captions.single_scenes(config, len(names), held_out=True), random)
    trained = _distinct(captions.single_scenes(config, len(names), held_out=False), random)
    doubles = captions.double_scenes(config, len(names))
    # Held-out concepts are fewer than captions wanted: take a second colour and size of some.
    extra = captions.single_scenes(config, len(names), held_out=True)
    held_out += [extra[index] for index in random.permutation(len(extra)) if extra[index] not in held_out]
    scenes = [*held_out[:NUM_HELD_OUT], *trained[:NUM_TRAINED], *doubles[:NUM_DOUBLE]]
    chosen = [captions.full_caption(scene, names, config.styles, int(random.random() < 0.25)) for scene in scenes]
    for scene in trained[NUM_TRAINED : NUM_TRAINED + NUM_SHORT]:
        look = config.styles[scene.style].words
        chosen.append(f"a {look} of {captions.with_article(names[scene.objects[0]])}")
    calibration = [example.caption for example in captions.training_examples(config, names)]
    calibration = [calibration[index] for index in random.permutation(len(calibration))]
    calibration = [caption for caption in calibration if caption not in chosen][:NUM_CALIBRATION]
    for name, lines in (("calibration", calibration), ("evaluation", chosen)):
        path = workspace.shipped.parent / f"{name}_prompts.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        log.info("%s: %d captions", path.name, len(lines))


def _distinct(scenes: list[Scene], random: np.random.Generator) -> list[Scene]:
    """Return a shuffled choice of scenes, one for each concept."""
    first: dict[tuple[int, ...], Scene] = {}
    for index in random.permutation(len(scenes)):
        first.setdefault(scenes[index].objects, scenes[index])
    return list(first.values())
