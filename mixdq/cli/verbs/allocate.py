"""`mixdq allocate RUN`: the best bits for every layer within a budget. Needs no model and no torch."""

from typing import Annotated

import typer
from rich.table import Table

from mixdq.cli.options import ActivationBits, LatencyMs, Objective, Program, RunArgument, WeightBits, WeightMib
from mixdq.cli.screen import console, opened

Points = Annotated[int | None, typer.Option(help="Write frontier.csv and frontier.svg too: so many budgets.", min=2)]


def command(
    run: RunArgument,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    weight_mib: WeightMib = None,
    latency_ms: LatencyMs = None,
    program: Program = None,
    objective: Objective = None,
    frontier: Points = None,
) -> None:
    """Write plans/*.toml of a run; a budget given here is kept in its config.toml."""
    from mixdq.workflow import planning
    from mixdq.workflow.settings import with_budget

    with opened(run) as session:
        session.config = with_budget(
            session.config,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            weight_mib=weight_mib,
            latency_ms=latency_ms,
            program=program,
            objective=objective,
        )
        plans = planning.allocate(session)
        # Kept once it has been found to be within reach.
        session.change(session.config)
        if frontier is not None:
            from mixdq.workflow.frontier import frontier as find

            found = find(session, frontier)
            console.print(
                f"{len(found.plans)} budgets: {session.paths.root / 'frontier.csv'}\n"
                f"{found.setting} below {found.least:.6g} is out of reach, "
                f"above {found.greatest:.6g} nothing is gained."
            )
    rows = Table("plan", "mean weight bits", "mean activation bits", "content/quality", "predicted error", "ms")
    for plan in plans:
        assert plan.solver is not None
        values, ratio = plan.solver.values, plan.solver.content_quality_ratio
        means = (f"{values[key]:.3f}" for key in ("weight_mean_bits", "activation_mean_bits"))
        others = (f"{values[key]:.4g}" if key in values else "-" for key in ("predicted_error", "latency_ms"))
        rows.add_row(plan.name, *means, "-" if ratio is None else f"{ratio:.3f}", *others)
    console.print(rows)
