import io

import pytest
from rich.console import Console

from mixdq.cli import progress
from mixdq.types.progress import no_progress


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    return screen


def test_nothing_is_drawn_where_there_is_no_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO()))
    with progress.progress_bar() as report:
        assert report is no_progress
        report(1, 2, "sensitivity")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_bar_tells_what_how_much_and_the_time_left(terminal) -> None:
    with progress.progress_bar() as report:
        report(0, 40, "sensitivity")
        report(10, 40, "sensitivity")
        report(1, 3, "choice")
    drawn = terminal.getvalue()
    assert "sensitivity" in drawn
    assert "10/40" in drawn
    assert "1/3" in drawn
    assert "left" in drawn


def test_bar_is_taken_off_when_the_work_fails(terminal) -> None:
    def interrupted() -> None:
        with progress.progress_bar() as report:
            report(1, 2, "choice")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # The cursor is shown again.
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h")
