import pytest

from mixdq.errors import ArtifactFormatError
from mixdq.sensitivity.desk import Desk
from mixdq.store.aside import aside
from mixdq.store.sketch_file import read_sketch
from mixdq.store.table_file import read_exact
from mixdq.workflow import measuring, planning, steps
from mixdq.workflow.session import Session


def hybrid(run: Session, **settings: object) -> Session:
    """The run in another session, its layers not measured yet."""
    values = {"method": "hybrid", "tolerance": 0.9, "exact_share": 0.1, **settings}
    section = run.config.sensitivity.model_copy(update=values)
    return Session(run.paths.root, run.config.model_copy(update={"sensitivity": section}))


@pytest.fixture
def vectors(run):
    run.paths.sensitivity.unlink()
    path = run.paths.root / planning.SKETCH
    path.unlink()
    return path


def test_a_sketch_goes_on_from_the_last_slice_and_comes_to_the_same_bytes(run, vectors) -> None:
    table = run.paths.sensitivity
    steps.measure(hybrid(run))
    whole = table.read_bytes(), vectors.read_bytes()
    for at in (1, 2):
        for path in (table, vectors):
            path.unlink()

        def stop(done: int, total: int, what: str, at: int = at) -> None:
            if what == "sketch" and done == 4 * at:
                raise KeyboardInterrupt

        session = hybrid(run)
        session.progress = stop
        with pytest.raises(KeyboardInterrupt):
            steps.measure(session)
        assert len(read_sketch(vectors).vectors) == 4 * at
        steps.measure(hybrid(run))
        assert (table.read_bytes(), vectors.read_bytes()) == whole


def test_a_smaller_tolerance_takes_the_vectors_that_there_are_and_other_settings_do_not(run, vectors) -> None:
    steps.measure(hybrid(run, method="sketch"))
    first = read_sketch(vectors).vectors
    steps.measure(hybrid(run, tolerance=0.5))
    more = read_sketch(vectors).vectors
    assert first.keys() < more.keys()
    assert all((more[key] == vector).all() for key, vector in first.items())
    steps.measure(hybrid(run, ssim_window=7))
    assert read_sketch(vectors.with_name("sketch.old1.safetensors")).vectors.keys() == more.keys()


def test_a_damaged_sketch_is_kept_aside_where_measuring_was_asked_for_and_refused_where_all_was(run, vectors) -> None:
    vectors.write_bytes(b"torn")
    everything = hybrid(run)
    everything.everything = True
    with pytest.raises(ArtifactFormatError, match=r"sketch\.safetensors: .*truncated"):
        steps.measure(everything)
    steps.measure(hybrid(run))
    assert vectors.with_name("sketch.old1.safetensors").read_bytes() == b"torn"
    assert read_sketch(vectors).vectors


def test_exact_rows_of_tables_put_aside_are_not_measured_again_and_the_bytes_are_those_of_measuring_anew(
    run, monkeypatch
) -> None:
    path, tasks, score = run.paths.sensitivity, [], Desk.score

    def noted(desk, trial):
        tasks.extend(trial.keys)
        return score(desk, trial)

    monkeypatch.setattr(Desk, "score", noted)

    def measured() -> bytes:
        tasks.clear()
        steps.measure(hybrid(run, exact_share=0.2))
        return path.read_bytes()

    before = path.read_bytes()
    path.unlink()
    anew, wanted = measured(), set(tasks)
    path.write_bytes(before)
    known = {one.key for one in read_exact(path).scores}
    assert measured() == anew
    assert set(tasks) == wanted - known < wanted

    for old in (path, path.with_name("sensitivity.old1.csv")):
        old.unlink()

    def stop(done: int, total: int, what: str) -> None:
        if done == 30:
            raise KeyboardInterrupt

    interrupted = hybrid(run, method="exact")
    interrupted.progress = stop
    with pytest.raises(KeyboardInterrupt):
        steps.measure(interrupted)
    known = {one.key for one in read_exact(path).scores}
    assert measured() == anew
    assert set(tasks) == wanted - known < wanted


def test_rows_of_other_inputs_and_of_damaged_tables_do_not_serve(run) -> None:
    known = {one.key: one for one in read_exact(run.paths.sensitivity).scores}
    damaged = aside(run.paths.sensitivity).with_name("sensitivity.old2.csv")
    damaged.write_bytes(b"torn")
    assert measuring.measured_before(hybrid(run, method="exact")) == known != {}
    assert measuring.measured_before(hybrid(run, ssim_window=7)) == {}
    run.paths.calibration.write_bytes(b"another")
    assert measuring.measured_before(run) == {}
