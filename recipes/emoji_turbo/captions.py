"""Captions: which scenes exist, which are held out, and the words for each.

A full caption names everything that can vary, so one caption means one picture; a short one leaves out the colour or
the size, and then any value of it is right. Held out are whole (concept, style) pairs: the model has seen the concept
in other styles and the style on other concepts, never the two together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.emoji_turbo.config import Config, Style

SIZES = ("large", "small")
MASS_NOUNS = ("fire", "corn", "bread", "broccoli", "cheese", "candy", "ice cream", "bacon", "rice", "garlic")
VOICED_AS_CONSONANT = ("unicorn", "euro", "one", "univ")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is drawn: one or two concepts and a style (by index), a colour's name and a size ("large" or "small")."""

    objects: tuple[int, ...]
    style: int
    colour: str
    size: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """A caption and the scenes it may mean: one for a full caption, several where it leaves something out."""

    caption: str
    scenes: tuple[Scene, ...]


def held_out_pairs(config: Config, num_concepts: int) -> frozenset[tuple[int, int]]:
    """Return the (concept, style) pairs that no stage trains on; never two of one concept."""
    random = np.random.default_rng(config.seed)
    count = max(1, round(config.held_out_share * num_concepts * len(config.styles)))
    chosen = random.permutation(num_concepts)[:count]
    return frozenset((int(concept), int(random.integers(len(config.styles)))) for concept in chosen)


def single_scenes(config: Config, num_concepts: int, *, held_out: bool) -> list[Scene]:
    """Return every scene with one object, of the held-out pairs or of all the others."""
    apart = held_out_pairs(config, num_concepts)
    return [
        Scene(objects=(concept,), style=style, colour=colour, size=size)
        for concept in range(num_concepts)
        for style in range(len(config.styles))
        if ((concept, style) in apart) == held_out
        for colour in config.colours
        for size in SIZES
    ]


def double_scenes(config: Config, num_concepts: int) -> list[Scene]:
    """Return `config.pairs_of_objects` training scenes with two different objects side by side."""
    apart = held_out_pairs(config, num_concepts)
    random = np.random.default_rng(config.seed + 1)
    scenes: list[Scene] = []
    while len(scenes) < config.pairs_of_objects:
        left, right = (int(concept) for concept in random.choice(num_concepts, 2, replace=False))
        style = int(random.integers(len(config.styles)))
        if apart.isdisjoint({(left, style), (right, style)}):
            colour = str(random.choice(list(config.colours)))
            scenes.append(Scene(objects=(left, right), style=style, colour=colour, size="small"))
    return scenes


def training_examples(config: Config, names: Sequence[str]) -> list[Example]:
    """Return the captions of the training scenes: two full ones a scene, and short ones that leave one thing out."""
    scenes = single_scenes(config, len(names), held_out=False)
    examples = [
        Example(caption=full_caption(scene, names, config.styles, wording), scenes=(scene,))
        for scene in scenes + double_scenes(config, len(names))
        for wording in range(2)
    ]
    pairs = sorted({(scene.objects, scene.style) for scene in scenes})
    for objects, style in pairs:
        family = [scene for scene in scenes if scene.objects == objects and scene.style == style]
        what, look = with_article(names[objects[0]]), config.styles[style].words
        examples.append(Example(caption=f"a {look} of {what}", scenes=tuple(family)))
        for size in SIZES:
            same = tuple(scene for scene in family if scene.size == size)
            examples.append(Example(caption=f"a {size} {look} of {what}", scenes=same))
        for colour in config.colours:
            same = tuple(scene for scene in family if scene.colour == colour)
            examples.append(Example(caption=f"a {look} of {what} on a {colour} background", scenes=same))
    return examples


def full_caption(scene: Scene, names: Sequence[str], styles: Sequence[Style], wording: int = 0) -> str:
    """Return a caption that names everything; `wording` 0 is a sentence, 1 a list of tags."""
    look = styles[scene.style].words
    if len(scene.objects) == 2:
        left, right = (names[index] for index in scene.objects)
        if wording == 0:
            return (
                f"a {look} of {with_article(left)} and {with_article(right)} side by side "
                f"on a {scene.colour} background"
            )
        return f"{left} and {right}, {look}, {scene.colour} background"
    name = names[scene.objects[0]]
    if wording == 0:
        return f"a {scene.size} {look} of {with_article(name)} on a {scene.colour} background"
    return f"{name}, {look}, {scene.colour} background, {scene.size}"


def language_captions(config: Config, phrases: Sequence[str], count: int) -> list[str]:
    """Return captions about any phrase in any style and wording, for teaching the text encoder words at large."""
    random = np.random.default_rng(config.seed + 2)
    colours = list(config.colours)
    captions = []
    for _ in range(count):
        names = [phrases[int(index)] for index in random.choice(len(phrases), 2, replace=False)]
        objects = (0, 1) if random.random() < 0.1 else (0,)
        scene = Scene(
            objects=objects,
            style=int(random.integers(len(config.styles))),
            colour=colours[int(random.integers(len(colours)))],
            size=SIZES[int(random.integers(2))],
        )
        draw = random.random()
        if draw < 0.15:
            captions.append(f"a {config.styles[scene.style].words} of {with_article(names[0])}")
        else:
            captions.append(full_caption(scene, names, config.styles, wording=int(draw < 0.45)))
    return captions


def with_article(name: str) -> str:
    """Return the name as a noun phrase: `an owl`, `a unicorn`; plurals and mass nouns stay bare."""
    plural = name.endswith("s") and not name.endswith(("ss", "us", "bus"))
    if plural or name.endswith(MASS_NOUNS):
        return name
    vowel = name[0] in "aeiou" and not name.startswith(VOICED_AS_CONSONANT)
    return f"{'an' if vowel else 'a'} {name}"
