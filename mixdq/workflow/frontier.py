"""The frontier of a run: what every budget buys, as a table and a picture. Needs no model and no torch."""

from mixdq.allocation.frontier import Frontier, find_frontier
from mixdq.errors import ConfigError
from mixdq.report.frontier_plot import frontier_plot
from mixdq.report.theme import LIGHT
from mixdq.store.artifact import atomic_write
from mixdq.store.frontier_file import write_frontier
from mixdq.workflow.planning import joint_program, plans_origin, scores_of
from mixdq.workflow.session import Session


def frontier(session: Session, points: int) -> Frontier:
    """Return the best plans along the run's first budget, written to frontier.csv and drawn in frontier.svg.

    Raises:
        ConfigError: the run's program is the split one, or its budgets are nothing to go along.
        InfeasibleBudgetError: a budget that does not vary is out of reach.
        ArtifactError: a table is missing, damaged, or made from other inputs.
    """
    paths, config = session.paths, session.config
    if config.allocation.program != "joint":
        raise ConfigError("a frontier is one of the joint program, and this run's is split: say `--program joint`")
    origin = plans_origin(config, paths.sensitivity)
    found = find_frontier(joint_program(session, scores_of(session)), points, origin=origin)
    write_frontier(paths.root / "frontier.csv", found.setting, (found.least, found.greatest), found.plans, origin)
    atomic_write(paths.root / "frontier.svg", frontier_plot(found.setting, found.plans, LIGHT))
    return found
