import pytest

from mixdq.config import load_config
from mixdq.errors import ArtifactError, ArtifactFormatError, ConfigError, StaleArtifactError
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.workflow.session import RunPaths, Session, prompts_digest


class Step:
    """A step whose file holds what it was made from."""

    def __init__(self, session: Session, made_from: str) -> None:
        self.session, self.made_from, self.made = session, made_from, 0
        self.path = session.paths.root / "step.txt"

    def read(self) -> tuple[str, dict[str, str]]:
        text = self.path.read_text()
        if text == "torn":
            raise ArtifactFormatError(f"{self.path}: torn. Make it again with `mixdq something`.")
        return text, {"input": text}

    def make(self) -> str:
        self.made += 1
        self.path.write_text(self.made_from)
        return self.made_from

    def resolve(self, *, own: bool) -> str:
        expected = {"input": self.made_from}
        return self.session.resolve(
            self.path, command="mixdq step", expected=expected, read=self.read, make=self.make, own=own
        )


@pytest.fixture
def asked(tmp_path, configure) -> Step:
    return Step(Session.start(tmp_path, configure(), everything=False), "new")


@pytest.fixture
def within_all(tmp_path, configure) -> Step:
    return Step(Session.start(tmp_path, configure()), "new")


def test_up_to_date_file_is_read_and_not_made(asked) -> None:
    asked.path.write_text("new")
    assert asked.resolve(own=False) == asked.resolve(own=True) == "new"
    assert asked.made == 0


def test_missing_input_names_the_command_and_the_run(asked) -> None:
    with pytest.raises(ArtifactError, match=f"there is no such file; `mixdq step {asked.path.parent}` makes it"):
        asked.resolve(own=False)
    assert asked.made == 0


def test_stale_input_names_the_command_and_the_run(asked) -> None:
    asked.path.write_text("old")
    with pytest.raises(StaleArtifactError, match=f"input was old, is new.*`mixdq step {asked.path.parent}`"):
        asked.resolve(own=False)
    assert asked.path.read_text() == "old"


def test_damaged_input_names_the_command_that_makes_this_very_file(asked) -> None:
    asked.path.write_text("torn")
    with pytest.raises(ArtifactFormatError, match=f"torn. Make it again with `mixdq step {asked.path.parent}`"):
        asked.resolve(own=False)


def test_step_that_is_asked_for_makes_what_is_missing_stale_or_damaged(asked) -> None:
    for before in (None, "old", "torn"):
        asked.path.unlink(missing_ok=True)
        if before is not None:
            asked.path.write_text(before)
        assert asked.resolve(own=True) == "new"
    assert asked.made == 3
    assert asked.path.with_name("step.old1.txt").read_text() == "torn"


def test_where_everything_is_asked_for_inputs_are_made_but_damage_is_left_to_people(within_all) -> None:
    for before in (None, "old"):
        if before is not None:
            within_all.path.write_text(before)
        assert within_all.resolve(own=False) == "new"
    within_all.path.write_text("torn")
    with pytest.raises(ArtifactFormatError, match=f"`rm -r {within_all.path}` and then the same command"):
        within_all.resolve(own=True)
    assert within_all.path.read_text() == "torn"


def test_advice_is_added_where_the_complaint_has_none(asked) -> None:
    with (
        pytest.raises(ArtifactFormatError, match=r"too large. To have it made again: `mixdq step`\."),
        asked.session.advising(asked.path, "mixdq step"),
    ):
        raise ArtifactFormatError("too large")


def test_folder_without_a_run_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no run in it"):
        Session.open(tmp_path)


def test_settings_that_are_kept_are_the_ones_that_hold(tmp_path, configure) -> None:
    Session.start(tmp_path, configure())
    path = RunPaths(tmp_path).config
    text = "# mine\n" + path.read_text()
    path.write_text(text)
    Session.start(tmp_path, configure())
    assert path.read_text() == text
    other = configure(generation={"seed": 3})
    Session.start(tmp_path, other)
    assert load_config(path) == other
    assert Session.open(tmp_path).config == other


def test_weights_that_changed_behind_the_run_are_refused_when_the_model_is_loaded(run) -> None:
    session = Session(run.paths.root, run.config, pipe=tiny_sdxl_pipeline(seed=1))
    with pytest.raises(StaleArtifactError, match="not those that this run began with"):
        _ = session.pipe


def test_released_model_is_loaded_anew(run) -> None:
    first = run.pipe
    assert run.pipe is first
    run.release()
    assert run.pipe is not first


def test_model_on_disk_is_known_by_its_weights_and_nothing_else_is(run, configure, tmp_path) -> None:
    assert set(run.weights) == {"weights"}
    assert Session(tmp_path, run.config).weights == run.weights
    file = tmp_path / "checkpoint.safetensors"
    seen = set()
    for content in (b"one", b"other"):
        file.write_bytes(content)
        seen.add(Session(tmp_path, configure(model={"path": str(file)})).weights["weights"])
    assert len(seen) == 2
    assert Session(tmp_path, configure(model={"path": "owner/model"})).weights == {}
    assert Session(tmp_path, run.config, pipe=tiny_sdxl_pipeline()).weights == {}


def test_order_of_prompts_counts() -> None:
    assert prompts_digest(["a", "b"]) != prompts_digest(["b", "a"])
    assert prompts_digest(["a", "b"]) == prompts_digest(("a", "b"))
