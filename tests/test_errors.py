import copy
import inspect
import pickle

import pytest

from mixdq import errors
from mixdq.errors import (
    InfeasibleBudgetError,
    MixDQError,
    NoBackendError,
    NonFiniteError,
    PlanError,
)

ALL = {name: one for name, one in vars(errors).items() if inspect.isclass(one) and issubclass(one, Exception)}


def test_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    parents = {0: "MixDQError"}
    for line in errors.__doc__.splitlines():
        if "+-- " in line:
            depth = line.index("+-- ") // 4
            name = line.split("+-- ")[1].split()[0]
            drawn[name] = parents[depth]
            parents[depth + 1] = name
    assert drawn == {name: one.__base__.__name__ for name, one in ALL.items() if one is not MixDQError}


def test_every_error_is_ours() -> None:
    assert all(issubclass(one, MixDQError) for one in ALL.values())


CARRYING = pytest.mark.parametrize(
    ("error", "attribute", "value"),
    [
        (NonFiniteError("x", where="conv_in"), "where", "conv_in"),
        (InfeasibleBudgetError("x", least=2.0, greatest=8.0), "greatest", 8.0),
        (InfeasibleBudgetError("x", least=2.0, greatest=8.0), "least", 2.0),
        (PlanError("x", disagreements=["a", "b"]), "disagreements", ("a", "b")),
        (NoBackendError("x", refusals={"cpu": ["no"]}), "refusals", {"cpu": ("no",)}),
    ],
)


@CARRYING
def test_errors_carry_what_they_say(error, attribute, value) -> None:
    assert str(error) == "x"
    assert getattr(error, attribute) == value


@CARRYING
@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_what_errors_carry_arrives_in_another_process(travel, error, attribute, value) -> None:
    arrived = travel(error)
    assert type(arrived) is type(error)
    assert str(arrived) == "x"
    assert getattr(arrived, attribute) == value
