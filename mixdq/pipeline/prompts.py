"""Prompt files: one prompt a line, UTF-8."""

from pathlib import Path

from mixdq.errors import PromptError


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Return the prompts of a text file, one a line, in order; blank lines are left out.

    Raises:
        PromptError: the file is missing, is a folder, is not UTF-8, or holds no prompt.
    """
    path = Path(path)
    if not path.is_file():
        raise PromptError(f"{path}: no such prompt file; expected a text file with one prompt a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 text (byte {error.start}); save the prompts as UTF-8") from error
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise PromptError(f"{path}: no prompt in it; write one prompt a line")
    return prompts
