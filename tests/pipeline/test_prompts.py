from pathlib import Path

import pytest

from mixdq.errors import PromptError
from mixdq.pipeline.prompts import read_prompts


def test_prompts_are_lines_in_order_without_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat \r\n\r\n\n  un chien à la mer\na cat".encode())
    assert read_prompts(path) == ("a cat", "un chien à la mer", "a cat")


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"", "no prompt"), (b" \n\n", "no prompt"), (b"a cat\n\xff\xfe", "not UTF-8")]
)
def test_a_file_without_readable_prompts_is_refused_by_name(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=complaint) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(PromptError, match="no such prompt file"):
            read_prompts(path)
