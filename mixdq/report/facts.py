"""All that a report shows, as one value; how it came about is not known here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mixdq.errors import ArtifactFormatError
from mixdq.types.evaluation import Evaluation
from mixdq.types.layers import LayerTable
from mixdq.types.plan import BitPlan
from mixdq.types.receipt import Receipt
from mixdq.types.scores import SensitivityTable


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant of the model: its numbers, a folder of PNGs (one a prompt, in the order of names), its bits.

    `plan` is None for the floating-point model.
    """

    evaluation: Evaluation
    pictures: Path
    plan: BitPlan | None = None

    @property
    def name(self) -> str:
        """The name of its evaluation."""
        return self.evaluation.name

    def picture_files(self, count: int) -> list[Path]:
        """Return the first `count` PNGs; raise ArtifactFormatError where there are fewer."""
        files = sorted(self.pictures.glob("*.png"))
        if len(files) < count:
            raise ArtifactFormatError(
                f"{self.pictures}: expected {count} PNG pictures of {self.name}, one a prompt, found {len(files)}; "
                "generate them again"
            )
        return files[:count]


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """Everything a report shows, in order.

    Attributes:
        title: its first line.
        model: what the user named.
        environment: machine and library facts, such as "torch" -> "2.13.0".
        settings: how the run was made, such as "seed" -> "0".
        prompts: of the evaluation pictures.
        variants: the floating-point model first; every other is compared with it.
        layers: of the denoiser.
        sensitivity: None where it was not measured.
        receipts: one for each variant that was converted, found by the name of its plan.
        candidates: plan name -> the plans it was chosen from, each with its score on pictures; higher is better.
        warnings: what a reader must know before believing the numbers.
        shown_prompts: how many rows of pictures are embedded; the rest is only counted.
    """

    title: str
    model: str
    environment: Mapping[str, str]
    settings: Mapping[str, str]
    prompts: tuple[str, ...]
    variants: tuple[Variant, ...]
    layers: LayerTable
    sensitivity: SensitivityTable | None = None
    receipts: tuple[Receipt, ...] = ()
    candidates: Mapping[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    shown_prompts: int = 12

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a report needs variants with names that differ, got {names}")
        if not self.prompts or self.shown_prompts < 1:
            raise ValueError("a report needs prompts, and at least one that is shown")
        for variant in self.variants:
            for metric, values in variant.evaluation.per_picture.items():
                if len(values) != len(self.prompts):
                    raise ValueError(f"{variant.name}: {len(values)} values of {metric}, {len(self.prompts)} prompts")

    @property
    def reference(self) -> Variant:
        """The floating-point model."""
        return self.variants[0]

    @property
    def mixed(self) -> tuple[Variant, ...]:
        """The variants whose plan gives different layers different bits."""
        return tuple(v for v in self.variants if v.plan is not None and len(set(v.plan.layers.values())) > 1)
