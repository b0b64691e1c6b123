import math

import pytest

from mixdq.cli import screen
from mixdq.config import build_config
from mixdq.errors import ConfigError
from mixdq.types.evaluation import Evaluation


def one(**changes: object) -> Evaluation:
    values: dict[str, object] = {
        "name": "MixDQ W4A8",
        "method": "mixdq",
        "weight_bits": 4.0,
        "activation_bits": 8.0,
        "weight_bytes": 3 * 2**20,
        "ssim": 0.98765,
        "psnr_db": math.inf,
        "sqnr_db": 12.345,
        "clip_score": None,
        "seconds": 0.1234,
    }
    return Evaluation(**{**values, **changes})  # type: ignore[arg-type]


def test_table_shows_every_number_in_its_unit(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    screen.evaluation_table([one(), one(name="other", clip_score=0.25)])
    shown = capsys.readouterr().out
    for text in ("MixDQ W4A8", "4.00 / 8.00", "3.00", "0.9877", "inf", "12.3", "0.2500", "other"):
        assert text in shown
    assert "None" not in shown


def test_opening_a_folder_without_a_run_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no run in it"), screen.opened(tmp_path):
        pass


def test_starting_writes_the_settings_and_opening_reads_them(tmp_path) -> None:
    config = build_config({"model": {"path": "m"}})
    with screen.started(tmp_path, config) as session:
        assert session.everything
    with screen.started(tmp_path, config, everything=False) as session:
        assert not session.everything
    with screen.opened(tmp_path) as session:
        assert session.config == config
        assert not session.everything
