import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixdq.calibration.collect import calibrate
from mixdq.errors import ConfigError, NonFiniteError
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.sensitivity.measure import METRIC_OF, measure
from mixdq.sensitivity.resume import MemorySink
from mixdq.sensitivity.state import is_complete, known_table
from mixdq.sensitivity.trials import list_trials
from mixdq.store.table_file import SensitivityLog, read_sensitivity, write_sensitivity
from mixdq.testing import fingerprint, tiny_sdxl_pipeline
from mixdq.types.plan import ACTIVATION_CHOICES, WEIGHT_CHOICES
from mixdq.types.progress import Progress, no_progress
from mixdq.types.scores import Score, SensitivityTable

PIPE = tiny_sdxl_pipeline()
FAMILY = find_family(PIPE)
SPEC = GenerationSpec()
PROMPTS = ["a cat", "a dog at sea"]
WHOLE = list_layers(PIPE, FAMILY, SPEC, model="tiny")
RECORD = calibrate(PIPE, FAMILY, WHOLE, PROMPTS, SPEC)
SOME = (
    "conv_in",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
    "up_blocks.0.resnets.1.conv_shortcut",
)
TABLE = replace(WHOLE, layers=tuple(layer for layer in WHOLE if layer.name in SOME))


def measured(**options: object) -> SensitivityTable:
    return measure(PIPE, FAMILY, TABLE, RECORD, PROMPTS, SPEC, **options)


@pytest.fixture(scope="module")
def table() -> SensitivityTable:
    return measured()


def test_every_layer_has_a_score_at_every_width_by_the_metric_of_its_group(table: SensitivityTable) -> None:
    expected = []
    for layer in TABLE:
        metric = "ssim" if layer.group == "content" else "sqnr"
        weights = (2, 4, 8) if layer.group == "content" else (4, 8)
        expected += [(layer.name, "weight", bits, metric) for bits in weights]
        expected += [(layer.name, "activation", bits, metric) for bits in (4, 8)]
    assert [(score.layer, score.role, score.num_bits, score.metric) for score in table.scores] == expected


def test_more_bits_cost_less_far_from_the_noise_floor(table: SensitivityTable) -> None:
    for role in ("weight", "activation"):
        for metric in ("ssim", "sqnr"):
            for layer, scores in table.by_layer(role, metric).items():
                assert scores[8] > scores[4], layer


def test_measuring_twice_gives_the_same_numbers(table: SensitivityTable) -> None:
    assert measured() == table


def test_all_layers_can_be_measured_by_one_metric_or_by_both() -> None:
    both = measured(
        metric_of={"content": ("ssim", "sqnr"), "quality": ("sqnr",)},
        weight_bits={"content": (4,), "quality": (4,)},
        activation_bits={},
    )
    assert set(both.by_layer("weight", "sqnr")) == set(SOME)
    assert set(both.by_layer("weight", "ssim")) == {layer.name for layer in TABLE if layer.group == "content"}


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_weights_grid_is_the_one_asked_for(table: SensitivityTable, symmetric: bool) -> None:
    assert (measured(symmetric=symmetric) == table) == symmetric


def test_dynamic_activations_score_otherwise_and_weights_as_before(table: SensitivityTable) -> None:
    dynamic = measured(activations="dynamic")
    for metric in ("ssim", "sqnr"):
        assert dynamic.by_layer("weight", metric) == table.by_layer("weight", metric)
    changed = [new for new, old in zip(dynamic.scores, table.scores, strict=True) if new != old]
    assert {score.layer for score in changed} == set(SOME)


class Stop:
    """Raises when `at` trials are done."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at, self.error = at, error

    def __call__(self, done: int, total: int, what: str) -> None:
        if done == self.at:
            raise self.error


def logged(path: Path, origin: Mapping[str, str], progress: Progress = no_progress) -> SensitivityTable:
    with SensitivityLog.open(path, origin) as log:
        return measured(resume=log, progress=progress)


@pytest.mark.parametrize(
    ("at", "error"), [(0, KeyboardInterrupt), (1, RuntimeError), (7, KeyboardInterrupt), (17, RuntimeError)]
)
def test_an_interrupted_run_gives_the_model_back_and_continues_to_the_same_bytes(
    tmp_path: Path, table: SensitivityTable, at: int, error: type[BaseException]
) -> None:
    whole, path = tmp_path / "whole.csv", tmp_path / "sensitivity.csv"
    write_sensitivity(whole, replace(table, origin={"model": "d"}))
    before = fingerprint(PIPE.unet)
    with pytest.raises(error):
        logged(path, {"model": "d"}, Stop(at, error))
    assert fingerprint(PIPE.unet) == before
    # A torn last line, as kill -9 in the middle of a write leaves it.
    path.write_bytes(path.read_bytes()[:-3] if at else path.read_bytes())
    continued = logged(path, {"model": "d"})
    assert path.read_bytes() == whole.read_bytes()
    assert continued == read_sensitivity(path)
    assert fingerprint(PIPE.unet) == before


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.csv"
    first = logged(path, {})
    ran: list[str] = []
    handle = PIPE.unet.register_forward_hook(lambda *_: ran.append("unet"))
    assert logged(path, {}) == first
    handle.remove()
    assert not ran


def test_progress_counts_trials_and_starts_at_what_is_known(tmp_path: Path, table: SensitivityTable) -> None:
    path = tmp_path / "sensitivity.csv"
    told: list[tuple[int, int, str]] = []
    with pytest.raises(KeyboardInterrupt):
        logged(path, {}, Stop(5, KeyboardInterrupt))
    logged(path, {}, lambda done, total, what: told.append((done, total, what)))
    total = len(table.scores)
    assert told == [(done, total, "sensitivity") for done in range(5, total + 1)]


def test_unknown_names_are_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="metric lpipz"):
        measured(metric_of={"content": ("lpipz",), "quality": ("sqnr",)})


def test_a_model_whose_pictures_are_nan_is_refused() -> None:
    pipe = tiny_sdxl_pipeline()
    with torch.no_grad():
        pipe.vae.decoder.layers[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="picture 0"):
        measure(pipe, FAMILY, TABLE, RECORD, PROMPTS, SPEC)


METHODS = ("sketch", "hybrid")


@pytest.mark.parametrize("method", METHODS)
def test_estimates_stand_where_exact_scores_would_with_their_standard_errors(
    table: SensitivityTable, method: str
) -> None:
    found = measured(method=method, exact_share=0.2)
    assert [score.key for score in found.scores] == [score.key for score in table.scores]
    exact = [score for score in found.scores if score.stderr is None]
    assert len(exact) == (math.ceil(0.2 * len(table.scores)) if method == "hybrid" else 0)
    assert set(exact) <= set(table.scores)
    assert measured(method=method, exact_share=0.2) == found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [1, 9, 14, 19, 21])
def test_an_interrupted_sketch_or_hybrid_continues_to_the_same_bytes(tmp_path: Path, method: str, at: int) -> None:
    whole, path = tmp_path / "whole.csv", tmp_path / "sensitivity.csv"

    def run(path: Path, stop: int | None = None) -> SensitivityTable:
        with SensitivityLog.open(path, {}, estimated=True) as log:
            appended = iter(range(1, 1000))
            append = log.append

            def counted(score: Score) -> None:
                append(score)
                if next(appended) == stop:
                    raise KeyboardInterrupt

            log.append = counted
            return measured(method=method, exact_share=0.2, tolerance=10.0, resume=log)

    found = run(whole)
    rows = len(found.scores) + (math.ceil(0.2 * len(found.scores)) if method == "hybrid" else 0)
    before = fingerprint(PIPE.unet)
    with pytest.raises(KeyboardInterrupt) if at <= rows else nullcontext():
        run(path, at)
    assert fingerprint(PIPE.unet) == before
    # A torn last line, as kill -9 in the middle of a write leaves it.
    path.write_bytes(path.read_bytes()[:-3])
    assert run(path) == found
    assert path.read_bytes() == whole.read_bytes()
    assert read_sensitivity(path).scores == tuple(
        {score.key: score for score in read_sensitivity(whole).scores}.values()
    )


def test_a_finished_table_is_known_to_be_so_without_a_model(tmp_path: Path) -> None:
    with SensitivityLog.open(tmp_path / "sensitivity.csv", {}, estimated=True) as log:
        found = measured(method="hybrid", exact_share=0.2, resume=log)
        trials = list_trials(TABLE, WEIGHT_CHOICES, ACTIVATION_CHOICES, METRIC_OF)
        assert is_complete(trials, TABLE, log, method="hybrid", exact_share=0.2)
        assert not is_complete(trials, TABLE, log, method="hybrid", exact_share=0.5)
        assert known_table(trials, log) == found


def test_a_method_or_metric_that_cannot_be_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="method = 'guess': expected one of exact, sketch, hybrid"):
        measured(method="guess")
    with pytest.raises(ConfigError, match="metric psnr can be measured exactly only"):
        measured(method="sketch", metric_of={"content": ("psnr",), "quality": ("sqnr",)})


@pytest.mark.parametrize("method", ["exact", "sketch"])
def test_a_window_wider_than_the_pictures_is_refused_before_anything_is_measured(method: str) -> None:
    sink = MemorySink({})
    with pytest.raises(ConfigError, match=r"sensitivity.ssim_window = 511: the pictures are .* from 3 to "):
        measured(method=method, ssim_window=511, resume=sink)
    assert not sink.done


@pytest.mark.parametrize("method", ["exact", "sketch"])
def test_a_denoiser_that_gives_zeros_alone_is_refused_before_anything_is_measured(method: str) -> None:
    pipe, sink = tiny_sdxl_pipeline(), MemorySink({})

    def silence(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        return output * torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1)

    pipe.unet.conv_out.register_forward_hook(silence)
    with pytest.raises(NonFiniteError, match="row 1 of denoiser call 0: the model gives zeros alone"):
        measure(pipe, FAMILY, TABLE, RECORD, PROMPTS, SPEC, method=method, resume=sink)
    assert not sink.done


def test_the_log_counts_what_was_measured_not_what_was_to_be(caplog) -> None:
    pipe, unseen = tiny_sdxl_pipeline(), "up_blocks.0.resnets.1.conv_shortcut"
    pipe.unet.get_submodule(unseen).register_forward_hook(lambda _, __, output: output.detach())
    with caplog.at_level("INFO", logger="mixdq.sensitivity.measure"):
        found = measure(
            pipe,
            FAMILY,
            TABLE,
            RECORD,
            PROMPTS,
            SPEC,
            method="sketch",
            tolerance=10.0,
            metric_of={"quality": ("sqnr",)},
        )
    exact = [score for score in found.scores if score.stderr is None]
    assert {score.layer for score in exact} == {unseen}
    assert f"scored {len(found.scores)} trials on 4 layers, {len(exact)} of them exactly" in caplog.text
