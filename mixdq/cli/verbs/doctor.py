"""`mixdq doctor`: what this machine can run."""

from rich.console import Console
from rich.table import Table


def command() -> None:
    """Print versions, devices and every backend with the reasons why it would not run here."""
    from mixdq.workflow.doctor import diagnose

    console = Console(highlight=False)
    facts, backends = diagnose()
    for name, value in facts.items():
        console.print(f"{name:<14} {value}")
    table = Table("backend", "linear", "conv2d")
    for backend, refusals in backends.items():
        table.add_row(backend, *("; ".join(reasons) if reasons else "works" for reasons in refusals.values()))
    console.print(table)
