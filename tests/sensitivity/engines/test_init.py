import pytest

from mixdq.errors import ConfigError
from mixdq.sensitivity.engines import ENGINES, find_engine
from mixdq.sensitivity.engines.local import run_local


def test_the_local_engine_needs_nothing() -> None:
    assert find_engine("local") is run_local


def test_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=f"engine = 'cloud': expected one of {', '.join(sorted(ENGINES))}"):
        find_engine("cloud")
