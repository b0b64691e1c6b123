"""Which plots a report holds, in order, with the words under them."""

from collections.abc import Callable
from dataclasses import dataclass

from mixdq.report.bit_map import bit_map
from mixdq.report.facts import ReportFacts, Variant
from mixdq.report.plots import pareto_plot, sensitivity_plot
from mixdq.report.theme import Theme
from mixdq.types.evaluation import Evaluation
from mixdq.types.scores import ROLES, Role, SensitivityTable


@dataclass(frozen=True)
class Plot:
    """A plot to be drawn in any theme: file name without ending, title, what it shows in one sentence."""

    key: str
    title: str
    text: str
    draw: Callable[[Theme], bytes | None]


def pareto_plots(facts: ReportFacts) -> list[Plot]:
    """Return size against SSIM, and against the CLIP score where there is one."""
    evaluations = [variant.evaluation for variant in facts.variants]
    values: list[tuple[str, str, Callable[[Evaluation], float | None]]] = [
        ("ssim", "SSIM", lambda e: e.ssim),
        ("clip_score", "CLIP score", lambda e: e.clip_score),
    ]
    return [
        Plot(
            f"size_{key}",
            f"Size against {title}",
            f"Each point is a variant: weights on disk against {title}. Up and to the left is better; the dashed line "
            "joins the variants that no other beats in both.",
            lambda theme, value=value, title=title: pareto_plot(evaluations, value, title, theme),  # type: ignore[misc]
        )
        for key, title, value in values
        if sum(value(e) is not None for e in evaluations) > 1
    ]


def bit_maps(facts: ReportFacts, variant: Variant) -> list[Plot]:
    """Return the map of weights and, where they are not all alike, of activations."""
    plan = variant.plan
    if plan is None:
        return []
    plots = []
    for role in ROLES:
        widths = {bits.weight if role == "weight" else bits.activation for bits in plan.layers.values()}
        if role == "activation" and len(widths) == 1:
            continue
        number = next(i for i, other in enumerate(facts.variants) if other is variant)
        plots.append(
            Plot(
                f"bits_{number}_{role}",
                f"{variant.name}: {role} bits",
                f"{role.capitalize()} bits of every layer.",
                lambda theme, role=role: bit_map(plan, facts.layers, role, theme),  # type: ignore[misc]
            )
        )
    return plots


def sensitivity_plots(facts: ReportFacts) -> list[Plot]:
    """Return one plot for weights and one for activations, where they were measured."""
    table = facts.sensitivity
    if table is None:
        return []
    words: dict[Role, str] = {
        "weight": "the weights of one layer alone are",
        "activation": "the input of one layer alone is",
    }
    measured = [role for role in ROLES if any(score.role == role for score in table.scores)]
    return [
        Plot(
            f"sensitivity_{role}",
            f"Sensitivity of {role}s",
            f"What is left when {words[role]} quantized. Higher is better; each line is sorted by itself."
            + _estimated(table, role),
            lambda theme, role=role: sensitivity_plot(table, facts.layers, role, theme),  # type: ignore[misc]
        )
        for role in measured
    ]


def _estimated(table: SensitivityTable, role: Role) -> str:
    """Return how many scores of a role are not measured, as the end of a caption; nothing where all are."""
    scores = [score for score in table.scores if score.role == role]
    count = sum(score.stderr is not None for score in scores)
    if not count:
        return ""
    return f" {count} of {len(scores)} scores are estimates from gradients; dots are measured."
