"""The sensitivity step: scores row by row in sensitivity.csv, and the vectors of a sketch in sketch.safetensors.

A file that was made from other inputs, or is damaged, is kept under another name, and a new one begun; a damaged one
only where measuring itself was asked for. What such a table has measured exactly, and would be measured the same, is
taken from there.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from mixdq.errors import ArtifactError, ArtifactFormatError, StaleArtifactError
from mixdq.sensitivity import measure as sensitivity
from mixdq.sensitivity.engines.knowing import knowing
from mixdq.sensitivity.resume import MemorySink, Sink, VectorSink
from mixdq.sensitivity.state import is_complete, known_table
from mixdq.sensitivity.trials import Trial, by_metric, list_trials
from mixdq.store.aside import aside, kept_aside
from mixdq.store.sketch_file import SketchLog
from mixdq.store.table_file import SensitivityLog, read_exact, read_sensitivity
from mixdq.types.layers import Group, LayerTable
from mixdq.types.scores import Score, ScoreKey, SensitivityTable
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow import origins, planning
from mixdq.workflow.session import Session
from mixdq.workflow.settings import engine_of, sensitivity_prompts

log = logging.getLogger(__name__)

T = TypeVar("T")


def measure(
    session: Session, table: LayerTable, record: CalibrationRecord, metric_of: Mapping[Group, Sequence[str]]
) -> SensitivityTable:
    """Return the scores of every layer.

    Raises:
        ArtifactFormatError: everything was asked for, and a file is damaged.
        ConfigError, ClusterError: the engine cannot work.
    """
    config, path = session.config, session.paths.sensitivity
    settings = config.sensitivity
    estimated = settings.method != "exact"
    origin = origins.sensitivity_origin(session)
    trials = list_trials(table, config.allocation.weight_choices, config.allocation.activation_choices, metric_of)
    if estimated and (exact := _exact(session, table, trials)):
        session.say_up_to_date(path)
        return known_table(trials, exact)
    noted = origins.rows_origin(session)
    with _opened(session, path, partial(SensitivityLog.open, origin=origin, estimated=estimated, noted=noted)) as sink:
        if is_complete(trials, table, sink, method=settings.method, exact_share=settings.exact_share):
            # Found out here, so that no model is loaded in vain.
            session.say_up_to_date(path)
            return known_table(trials, sink)
        return sensitivity.measure(
            session.pipe,
            session.family,
            table,
            record,
            sensitivity_prompts(config),
            session.spec,
            weight_bits=config.allocation.weight_choices,
            activation_bits=config.allocation.activation_choices,
            metric_of=metric_of,
            ssim_window=settings.ssim_window,
            symmetric=config.conversion.symmetric,
            rounding=config.conversion.rounding,
            activations=config.conversion.activations,
            batch_size=config.generation.batch_size,
            engine=knowing(engine_of(config, in_memory=session.in_memory), measured_before(session)),
            method=settings.method,
            tolerance=settings.tolerance,
            exact_share=settings.exact_share,
            checkpointing=settings.checkpointing,
            resume=sink,
            vectors=partial(_vectors, session, trials),
            progress=session.progress,
        )


def measured_before(session: Session) -> dict[ScoreKey, Score]:
    """Return the exact scores in tables that were put aside, of those that would come out the same to the bits."""
    wanted, known = origins.rows_origin(session), dict[ScoreKey, Score]()
    for path in kept_aside(session.paths.sensitivity):
        try:
            found = read_exact(path)
        except ArtifactError:
            # It was put aside for that.
            continue
        if all(found.origin.get(name) == digest for name, digest in wanted.items()):
            log.info("%s has %d scores that need not be measured again", path.name, len(found.scores))
            known |= {score.key: score for score in found.scores}
    return known


def _exact(session: Session, table: LayerTable, trials: Sequence[Trial]) -> Sink | None:
    """Return the scores of a table that was measured exactly, if the run has such a one, whole."""
    try:
        scores = read_sensitivity(session.paths.sensitivity)
    except ArtifactError:
        # What is wrong with it is said where it is opened.
        return None
    found = MemorySink(scores.origin, scores.scores)
    return found if origins.is_exact(session, scores) and is_complete(trials, table, found) else None


def _vectors(session: Session, trials: Sequence[Trial]) -> VectorSink:
    columns = {
        metric: tuple((trial.layer, trial.role, trial.num_bits) for trial in of_metric)
        for metric, of_metric in by_metric(trials).items()
    }
    origin = origins.sketch_origin(session, columns)
    return _opened(session, session.paths.root / planning.SKETCH, lambda path: SketchLog.open(path, columns, origin))


def _opened(session: Session, path: Path, begin: Callable[[Path], T]) -> T:
    """Return what is open at `path`, begun anew where that cannot be gone on with."""
    try:
        with session.advising(path, f"mixdq sensitivity {session.paths.root}"):
            return begin(path)
    except (StaleArtifactError, ArtifactFormatError) as error:
        if session.everything and isinstance(error, ArtifactFormatError):
            raise
        aside(path)
        return begin(path)
