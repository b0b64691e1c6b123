"""What one variant of a model is worth: its size, its speed and how far its pictures are from floating point."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One variant, measured against the floating-point model on the same prompts and seeds.

    Attributes:
        name: what people call it, such as "MixDQ W4A8".
        method: how it was made, such as "float", "minmax" or "mixdq".
        weight_bits, activation_bits: means over weight and input elements; 16 counts as floating point.
        weight_bytes: the denoiser's weights on disk, scales and everything left in floating point included.
        ssim, psnr_db: against the floating-point pictures, means over pictures; +inf dB where identical.
        sqnr_db: of the denoiser's first outputs against the floating-point model's, mean over pictures.
        clip_score: mean cosine of pictures and prompts; None without a CLIP model for it.
        seconds: median for one picture.
        peak_memory: greatest resident bytes while generating; None where not measured.
        per_picture: metric name -> one value a picture, in the order of the prompts.
    """

    name: str
    method: str
    weight_bits: float
    activation_bits: float
    weight_bytes: int
    ssim: float
    psnr_db: float
    sqnr_db: float
    clip_score: float | None
    seconds: float
    peak_memory: int | None = None
    per_picture: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.weight_bytes < 0 or self.seconds < 0:
            raise ValueError(f"{self.name}: weight_bytes and seconds cannot be negative")
        values = {"ssim": self.ssim, "psnr_db": self.psnr_db, "sqnr_db": self.sqnr_db, "clip_score": self.clip_score}
        for key, value in values.items():
            if value is not None and math.isnan(value):
                raise ValueError(f"{self.name}: {key} is not a number")
        if len({len(pictures) for pictures in self.per_picture.values()}) > 1:
            raise ValueError(f"{self.name}: the metrics cover different numbers of pictures")
