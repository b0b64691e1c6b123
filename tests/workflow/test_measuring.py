import pytest

from mixdq.errors import ArtifactFormatError
from mixdq.store.sketch_file import read_sketch
from mixdq.workflow import planning, steps
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
