"""`mixdq allocate RUN`: the best bits for every layer within a budget. Needs no model and no torch."""

from rich.table import Table

from mixdq.cli.options import ActivationBits, RunArgument, WeightBits, WeightMib
from mixdq.cli.screen import console, opened


def command(
    run: RunArgument,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    weight_mib: WeightMib = None,
) -> None:
    """Write plans/*.toml of a run; a budget given here is kept in its config.toml."""
    from mixdq.workflow import planning
    from mixdq.workflow.settings import with_budget

    with opened(run) as session:
        session.config = with_budget(
            session.config, weight_bits=weight_bits, activation_bits=activation_bits, weight_mib=weight_mib
        )
        plans = planning.allocate(session)
        # Kept once it has been found to be within reach.
        session.change(session.config)
    rows = Table("plan", "mean weight bits", "mean activation bits", "content/quality")
    for plan in plans:
        assert plan.solver is not None
        ratio = plan.solver.content_quality_ratio
        means = (f"{plan.solver.values[key]:.3f}" for key in ("weight_mean_bits", "activation_mean_bits"))
        rows.add_row(plan.name, *means, "-" if ratio is None else f"{ratio:.3f}")
    console.print(rows)
