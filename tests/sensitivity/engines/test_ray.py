import itertools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from mixdq.errors import CalibrationError, ClusterError, ConfigError
from mixdq.sensitivity.desk import Desk, Slice
from mixdq.sensitivity.engines import find_engine
from mixdq.sensitivity.engines import ray as engine
from mixdq.sensitivity.trials import by_metric
from mixdq.store.table_file import format_row
from mixdq.types.scores import Score

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SOME = slice(0, None, 3)


def rows(results: Iterator[tuple[Score, ...]]) -> list[str]:
    """The lines of a sensitivity table, as they come."""
    return [format_row(score) for scores in results for score in scores]


@pytest.fixture(scope="module")
def expected(case) -> list[str]:
    with find_engine("local")(case.desk) as team:
        return rows(team.map(Desk.score, case.trials[SOME]))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two processors."""
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


def workers(count: int) -> list[psutil.Process]:
    """The processes that do the tasks, as soon as there are so many."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = [one for one in psutil.Process().children(recursive=True) if name(one).startswith("ray::Worker")]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"no {count} workers")


def name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_a_worker_killed_changes_no_row_what_a_trial_raises_comes_in_its_turn_and_the_cluster_ends(
    case, expected
) -> None:
    trials = case.trials[SOME]
    last = trials[-1].layer
    ranges = {name: found for name, found in case.scorer.record.ranges.items() if name != last}
    scorer = replace(case.scorer, record=replace(case.scorer.record, ranges=ranges))
    assert [trial for trial in trials if (trial.layer, trial.role) == (last, "activation")] == [trials[-1]]
    desk = Desk(scorer, by_metric([trial for trial in trials if trial.layer != last]))
    with find_engine("ray", source=case.source)(desk) as team:
        assert team.workers == max(1, os.cpu_count() // torch.get_num_threads())
        slices = [Slice(metric="ssim", part=0, numbers=(number,)) for number in range(team.workers)]
        for one, products in zip(slices, team.map(Desk.products, slices), strict=True):
            assert np.array_equal(products, desk.products(one))
        # They score trials next.
        crew = workers(team.workers)
        run = team.map(Desk.score, trials)
        found = rows(itertools.islice(run, 9))
        killed, *others = workers(len(crew))
        assert {killed.pid, *(one.pid for one in others)} == {one.pid for one in crew}
        killed.kill()
        assert found + rows(itertools.islice(run, len(trials) - 10)) == expected[:-1]
        with pytest.raises(CalibrationError, match=last):
            next(run)
    assert not ray.is_initialized()
    assert psutil.wait_procs([killed, *others], timeout=10)[1] == []


def test_a_worker_that_hangs_holds_up_nobody_and_not_all_that_are_lost_are_replaced(
    case, expected, address, monkeypatch
) -> None:
    with find_engine("ray", source=case.source, address=address)(case.desk) as team:
        run = team.map(Desk.score, case.trials[SOME])
        found = rows(itertools.islice(run, 5))
        asleep, awake = workers(2)
        asleep.suspend()
        # Far more than what may be dealt beyond the trial of the one that hangs.
        enough = 8 * engine.AHEAD
        found += rows(itertools.islice(run, enough))
        assert found == expected[: 5 + enough]
        monkeypatch.setattr(engine, "LOSSES", 0)
        awake.kill()
        with pytest.raises(ClusterError, match=r"1 workers ended without a result.* What has been measured is kept"):
            rows(run)
    assert psutil.wait_procs([asleep], timeout=10)[1] == []


def test_other_code_is_refused_by_the_worker(case, address, monkeypatch) -> None:
    monkeypatch.setattr(engine, "code", lambda: {"mixdq": "0.0.1"})
    with (
        find_engine("ray", source=case.source, address=address)(case.desk) as team,
        pytest.raises(ClusterError, match=r"a worker on .*: mixdq is .*, not 0\.0\.1"),
    ):
        next(team.map(Desk.score, case.trials[:1]))


def test_a_worker_needs_as_many_processors_as_there_are_threads(case, address) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with (
            pytest.raises(ClusterError, match=r"no machine .* needs: 3 CPUs"),
            find_engine("ray", source=case.source, address=address)(case.desk),
        ):
            pass
    finally:
        torch.set_num_threads(before)


def test_a_connection_of_the_callers_own_is_left_alone(case, address) -> None:
    ray.init(address=address, log_to_driver=False)
    try:
        with (
            pytest.raises(ConfigError, match=r"connected to Ray already.*ray\.shutdown"),
            find_engine("ray", source=case.source, address=address)(case.desk),
        ):
            pass
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.parametrize("nowhere", ["127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_address_where_nothing_answers_is_refused_in_seconds(case, nowhere) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match=f"address = '{nowhere}': nothing answers there"):
        find_engine("ray", source=case.source, address=nowhere)
    assert time.monotonic() - start < 4 * engine.SECONDS_TO_ANSWER


@pytest.mark.parametrize("wrong", ["", "head", "head:", ":6379", "ray://head:10001", "head:port"])
def test_what_is_no_address_is_refused(case, wrong) -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        find_engine("ray", source=case.source, address=wrong)


def test_without_ray_the_extra_is_named(case, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'mixdq\[ray\]'"):
        find_engine("ray", source=case.source)


def test_a_model_in_memory_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"in memory alone.*save_pretrained"):
        find_engine("ray")
