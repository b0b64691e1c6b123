"""Every distinct layer of SDXL's and Stable Diffusion 1.5's UNets on a GPU against the reference backend: equal or not.

Layers of integers must give the reference's output bit for bit, static and dynamic, float16 and bfloat16; weight-only
ones lie within the roundings of a float32 sum, those of E4M3 floats within their backend's tolerance. Ends with code 1
where any does not.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from benchmarks import sdxl
from benchmarks.cuda.timing import need_cuda
from benchmarks.sdxl import Shape
from mixdq.quant.grid import input_spec
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.backends.fp8 import Fp8Backend
from mixdq.runtime.backends.reference import ReferenceBackend
from mixdq.runtime.kernel import Kernel, KernelRequest
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams

BITS = ("W8A8", "W4A8", "W2A8", "W5A6", "W8A16", "W4A16", "W2A16", "W8A8 float")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer, its bits, whether they are dynamic and symmetric, and the dtype."""

    shape: Shape
    bits: LayerBits
    dynamic: bool
    symmetric: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        how = f"{'dynamic' if self.dynamic else 'static'}, {'' if self.symmetric else 'a'}symmetric, {self.dtype}"
        return f"{self.shape}: {self.bits}, {how}"


def main(argv: Sequence[str] | None = None) -> None:
    """Compare all cases and say which differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda.check", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="two layers: does it run")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args(argv)
    need_cuda()
    known = [made for batch in arguments.batch for made in (sdxl.shapes(batch, 64), sdxl.sd15_shapes(batch, 64))]
    shapes = list(dict.fromkeys(shape for each in known for shape in each))
    if arguments.smoke:
        shapes = shapes[:2]
    with torch.inference_mode():
        wrong = [said for shape in track(shapes, "checking") for case in cases(shape) if (said := difference(case))]
    for said in wrong:
        print(said)
    print(f"{len(shapes)} layers: {len(wrong)} wrong")
    raise SystemExit(1 if wrong else 0)


def cases(shape: Shape) -> Iterator[Case]:
    """Yield what is asked of a layer: the usual bits both ways, unusual ones once."""
    for text in BITS:
        bits = LayerBits.parse(text)
        if bits.is_float and shape.op != "linear":
            continue
        case = Case(shape=shape, bits=bits, dynamic=False, symmetric=True, dtype=torch.float16)
        yield case
        if text in ("W8A8", "W4A8", "W8A8 float"):
            yield replace(case, dynamic=True, dtype=torch.bfloat16)
        if text in ("W4A8", "W4A16"):
            yield replace(case, symmetric=False, dtype=torch.bfloat16)


def difference(case: Case) -> str:
    """Return what differs, in words; nothing where nothing does."""
    generator = torch.Generator("cuda").manual_seed(len(str(case)))
    weight = torch.randn(case.shape.weight, generator=generator, device="cuda")
    bias = torch.randn(case.shape.weight[0], generator=generator, device="cuda")
    x = (torch.randn(case.shape.input, generator=generator, device="cuda") + 0.3).to(case.dtype)
    request = KernelRequest(
        layer=str(case.shape),
        op="linear" if case.shape.op == "linear" else "conv2d",
        bits=case.bits,
        weight_shape=case.shape.weight,
        stride=(case.shape.stride, case.shape.stride),
        padding=(case.shape.padding, case.shape.padding),
        symmetric=case.symmetric,
        dynamic=case.dynamic,
        device="cuda",
        dtype=case.dtype,
        output_dtype=case.dtype,
    )
    (part,) = quantize_weight(weight, case.bits.weight, symmetric=case.symmetric, number=case.bits.number)
    weight_only = case.bits.activation == FLOAT_BITS
    activation = None
    if not weight_only and not case.dynamic:
        spec = input_spec(case.bits.activation, case.bits.number)
        zero = None if spec.is_float else torch.tensor(3, dtype=torch.int32, device="cuda")
        activation = QParams(scale=torch.tensor(0.03, device="cuda"), zero_point=zero, spec=spec)
    backend = Fp8Backend() if case.bits.is_float else CudaBackend()
    if refusals := backend.refusals(request):
        return f"{case}: refused: {'; '.join(refusals)}"
    kernel = backend.bind(request, part, bias, activation)
    found = kernel(x)
    if not torch.equal(found, kernel(x)):
        return f"{case}: two calls differ"
    if weight_only:
        return _beyond(case, found, ReferenceBackend().bind, request, part, bias, x)
    wanted = ReferenceBackend().bind(request, part, bias, activation)(x)
    if torch.equal(found, wanted):
        return ""
    off = (found.float() - wanted.float()).abs()
    if case.bits.is_float:
        # Codes are at most a 16th larger than what they stand for, on either side.
        size = 1.13 * functional.linear(x.float().abs(), weight.abs(), bias.abs())
        if bool((off <= size * (backend.tolerance + torch.finfo(case.dtype).eps)).all()):
            return ""
    return f"{case}: {int((off > 0).sum())} of {off.numel()} numbers differ, by up to {float(off.max()):.3g}"


def _beyond(case: Case, found: Tensor, bind, request, part, bias: Tensor, x: Tensor) -> str:  # type: ignore[no-untyped-def]
    exact = replace(request, dtype=torch.float64, output_dtype=torch.float64)
    wanted = bind(exact, part, bias, None)(x.double())
    size: Kernel = bind(exact, replace(part, qparams=part.qparams), None, None)
    # The sum of magnitudes is at most that of |x| times the largest weight.
    magnitude = size(x.double()).abs() + x.double().abs().mean() * torch.Size(case.shape.weight[1:]).numel()
    bound = magnitude * 1e-4 + wanted.abs() * torch.finfo(case.dtype).eps
    off = (found.double() - wanted).abs()
    return "" if bool((off <= bound).all()) else f"{case}: off by up to {float((off / bound).max()):.2f} of the bound"


if __name__ == "__main__":
    main()
