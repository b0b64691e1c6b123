from dataclasses import replace

import pytest

from mixdq.store.table_file import read_sensitivity
from mixdq.types.scores import SensitivityTable
from mixdq.workflow import origins
from mixdq.workflow.session import Session


def changed(run: Session, section: str, **values: object) -> Session:
    part = getattr(run.config, section).model_copy(update=values)
    return Session(run.paths.root, run.config.model_copy(update={section: part}))


@pytest.fixture
def exact(run) -> SensitivityTable:
    """The run's table, as if it had been measured exactly."""
    return replace(read_sensitivity(run.paths.sensitivity), origin=origins.sensitivity_origin(run, "exact"))


def test_a_table_measured_exactly_is_one_while_what_it_was_measured_from_is_the_same(run, exact) -> None:
    assert origins.is_exact(run, exact)
    assert not origins.is_exact(run, read_sensitivity(run.paths.sensitivity))
    assert not origins.is_exact(changed(run, "sensitivity", ssim_window=7), exact)
    assert not origins.is_exact(changed(run, "conversion", activations="dynamic"), exact)
    run.paths.calibration.write_bytes(b"another")
    assert not origins.is_exact(run, exact)


def test_a_table_measured_exactly_is_one_where_the_calibration_is_not_at_hand(run, exact) -> None:
    run.paths.calibration.unlink()
    assert origins.is_exact(run, exact)


@pytest.mark.parametrize(
    ("section", "values", "same"),
    [
        ("sensitivity", {"method": "exact", "exact_share": 0.5, "tolerance": 0.1, "checkpointing": True}, True),
        ("allocation", {"pairs": 3}, True),
        ("sensitivity", {"ssim_window": 7}, False),
        ("sensitivity", {"num_prompts": 2}, False),
        ("conversion", {"activations": "dynamic"}, False),
        ("conversion", {"symmetric": False}, False),
        ("generation", {"seed": 1}, False),
        ("generation", {"batch_size": 1}, False),
    ],
)
def test_exact_rows_depend_on_what_was_measured_and_as_what_alone(run, section, values, same) -> None:
    assert (origins.rows_origin(changed(run, section, **values)) == origins.rows_origin(run)) is same
