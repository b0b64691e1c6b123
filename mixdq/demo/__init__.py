"""The embedded model, emoji-turbo, with its prompts, and the main job done on it.

`emoji_turbo/` is a plain diffusers folder; its card tells how it was trained, `recipes/emoji_turbo` trains it again.
"""

from pathlib import Path

FOLDER = Path(__file__).parent

MODEL = FOLDER / "emoji_turbo"
CALIBRATION_PROMPTS = FOLDER / "calibration_prompts.txt"
EVALUATION_PROMPTS = FOLDER / "evaluation_prompts.txt"
