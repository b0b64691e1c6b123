"""Every distinct layer of SDXL's and Stable Diffusion 1.5's UNets on a GPU against the reference backend: equal or not.

Layers of integers must give the reference's output bit for bit, static and dynamic, float16 and bfloat16; weight-only
ones lie within the roundings of float32 sums, each number and all together, those of E4M3 floats within their backend's
tolerance. With a norm or a gate before them and a residual after, folded, they give what torch makes of the three in
turn, but for a code here and there. Says at once what does not, and ends with code 1 then. `--part 2/8` asks the second
eighth of the layers alone.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import sdxl
from benchmarks.cuda.kernels import SMOKE
from benchmarks.cuda.timing import failures, need_cuda, said
from benchmarks.sdxl import Shape
from mixdq.quant.grid import input_spec
from mixdq.quant.weights import dequantize_weight, quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.backends.fp8 import Fp8Backend
from mixdq.runtime.backends.reference import ReferenceBackend
from mixdq.runtime.before import Before, Kind
from mixdq.runtime.kernel import Backend, FoldingKernel, Kernel, KernelRequest
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams, QTensor

BITS = ("W8A8", "W4A8", "W2A8", "W5A6", "W8A16", "W4A16", "W2A16", "W8A8 float")
GROUPS = 32
"""Of group norms."""
MOST_OFF = 0.01
"""What codes that fall otherwise may change, as a share of a folded layer's output."""
MOST_SAID = 40
"""After so many that are wrong the rest is not asked."""


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


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a backend binds, and the weight that it was made of."""

    request: KernelRequest
    weight: Tensor
    part: QTensor
    bias: Tensor | None
    activation: QParams | None

    def bound(self, backend: Backend) -> Kernel:
        """Return its kernel."""
        return backend.bind(self.request, self.part, self.bias, self.activation)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare all cases and say which differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda.check", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="two layers: does it run")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", metavar="BITS", choices=BITS, default=BITS, help=", ".join(BITS))
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="of the layers, one of N parts")
    arguments = parser.parse_args(argv)
    need_cuda()
    known = [made for batch in arguments.batch for made in (sdxl.shapes(batch, 64), sdxl.sd15_shapes(batch, 64))]
    shapes = list(dict.fromkeys(shape for each in known for shape in each))
    number, parts = arguments.part
    shapes = list(SMOKE) if arguments.smoke else shapes[number - 1 :: parts]
    asked = wrong = 0
    with torch.inference_mode():
        for i, shape in enumerate(shapes, 1):
            started = time.perf_counter()
            for case, kind in questions(shape, arguments.only):
                asked += 1
                if reason := answer(case, kind):
                    wrong += 1
                    print(reason, flush=True)
                if wrong == MOST_SAID:
                    raise SystemExit(f"{asked} asked: {wrong} wrong, and the rest was left")
            print(f"{i} of {len(shapes)}, {shape}: {time.perf_counter() - started:.1f} s", flush=True)
    print(f"{len(shapes)} layers, {asked} asked: {wrong} wrong")
    raise SystemExit(1 if wrong else 0)


def part(text: str) -> tuple[int, int]:
    """Return (which, of how many) of "2/8"."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text}: expected I/N, 1 <= I <= N")
    return int(number), int(parts)


def questions(shape: Shape, widths: Sequence[str]) -> Iterator[tuple[Case, Kind | None]]:
    """Yield what is asked of a layer: by itself (None), or with something folded in."""
    for case in cases(shape):
        if str(case.bits) in widths:
            yield case, None
    for case in folded_cases(shape):
        if str(case.bits) in widths:
            for kind in befores(shape):
                yield case, kind


def answer(case: Case, kind: Kind | None) -> str:
    """Return what is wrong, in words; nothing where nothing is. What a compiler raises is wrong, too."""
    try:
        return difference(case) if kind is None else folded_difference(case, kind)
    except failures() as error:
        return f"{case}{'' if kind is None else f', folded {kind}'}: {said(error)}"


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


def folded_cases(shape: Shape) -> Iterator[Case]:
    """Yield what is asked of a layer that something is folded into."""
    for text in ("W8A8", "W4A16"):
        case = Case(shape=shape, bits=LayerBits.parse(text), dynamic=False, symmetric=True, dtype=torch.float16)
        yield case
        if text == "W8A8":
            yield replace(case, dynamic=True, dtype=torch.bfloat16)


def befores(shape: Shape) -> tuple[Kind, ...]:
    """Return what may stand before a layer; a group norm has 32 groups."""
    if shape.op == "linear":
        return ("layer_norm", "geglu", "group_norm") if len(shape.input) == 3 else ("",)
    return ("group_norm",) if shape.weight[1] % GROUPS == 0 else ("",)


def folded_difference(case: Case, kind: Kind) -> str:
    """Return what is wrong with a folded layer, in words; nothing where nothing is."""
    kernel = layer_of(case).bound(CudaBackend())
    if not isinstance(kernel, FoldingKernel):
        return f"{case}: the kernel folds nothing"
    axis, channels = (-1 if case.shape.op == "linear" else 1), case.shape.weight[1]
    size = list(case.shape.input)
    size[axis] *= 2 if kind == "geglu" else 1
    x = (torch.randn(size, device="cuda") * 2 + 0.5).to(case.dtype)
    weight, bias = (torch.rand(channels, device="cuda").to(case.dtype) for _ in range(2))
    before = Before(kind, weight, bias, GROUPS, 1e-5, silu=case.shape.op == "conv2d")
    wanted = kernel(before(x, -1 if axis == -1 else -3))
    added = torch.randn_like(wanted)
    found = kernel.folded(x, before, added)
    wanted = wanted + added
    if not torch.equal(found, kernel.folded(x, before, added)):
        return f"{case}, folded {kind}: two calls differ"
    off = (found.float() - wanted.float()).square().mean().sqrt() / wanted.float().square().mean().sqrt()
    return "" if float(off) <= MOST_OFF else f"{case}, folded {kind}: off by {float(off):.3g} of the outputs' size"


def difference(case: Case) -> str:
    """Return what differs, in words; nothing where nothing does."""
    layer = layer_of(case)
    backend = Fp8Backend() if case.bits.is_float else CudaBackend()
    if refusals := backend.refusals(layer.request):
        return f"{case}: refused: {'; '.join(refusals)}"
    x = (torch.randn(case.shape.input, device="cuda") + 0.3).to(case.dtype)
    kernel = layer.bound(backend)
    found = kernel(x)
    if not torch.equal(found, kernel(x)):
        return f"{case}: two calls differ"
    if case.bits.activation == FLOAT_BITS:
        return _beyond(case, found, layer, x)
    wanted = layer.bound(ReferenceBackend())(x)
    if torch.equal(found, wanted):
        return ""
    off = (found.float() - wanted.float()).abs()
    if case.bits.is_float:
        assert layer.bias is not None
        # Codes are at most a 16th larger than what they stand for, on either side.
        size = 1.13 * functional.linear(x.float().abs(), layer.weight.abs(), layer.bias.abs())
        if bool((off <= size * (backend.tolerance + torch.finfo(case.dtype).eps)).all()):
            return ""
    return f"{case}: {int((off > 0).sum())} of {off.numel()} numbers differ, by up to {float(off.max()):.3g}"


def layer_of(case: Case) -> Layer:
    """Return a layer of random weights, and leave the generator where the same case always leaves it."""
    torch.manual_seed(len(str(case)))
    weight = torch.randn(case.shape.weight, device="cuda")
    bias = torch.randn(case.shape.weight[0], device="cuda")
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
    activation = None
    if case.bits.activation != FLOAT_BITS and not case.dynamic:
        spec = input_spec(case.bits.activation, case.bits.number)
        zero = None if spec.is_float else torch.tensor(3, dtype=torch.int32, device="cuda")
        activation = QParams(scale=torch.tensor(0.03, device="cuda"), zero_point=zero, spec=spec)
    return Layer(request=request, weight=weight, part=part, bias=bias, activation=activation)


def _beyond(case: Case, found: Tensor, layer: Layer, x: Tensor) -> str:
    exact = replace(layer, request=replace(layer.request, dtype=torch.float64, output_dtype=torch.float64))
    wanted = exact.bound(ReferenceBackend())(x.double())
    bias = None if layer.bias is None else layer.bias.double().abs()
    weight, size = dequantize_weight((layer.part,)).double().abs(), x.double().abs()
    if case.shape.op == "linear":
        magnitude = functional.linear(size, weight, bias)
    else:
        magnitude = functional.conv2d(size, weight, bias, case.shape.stride, case.shape.padding)
    # Those of the sum, the scale and the bias.
    terms = torch.Size(case.shape.weight[1:]).numel() + 2
    return f"{case}: {reason}" if (reason := float_excess(found, wanted, magnitude, terms)) else ""


def float_excess(found: Tensor, wanted: Tensor, magnitude: Tensor, terms: int) -> str:
    """Return by how much sums of floats are further from the exact ones than rounding takes them; nothing if not.

    `wanted` and `magnitude`, the sums of |x| |w| and |bias|, are float64. A float32 sum of n terms in any order is off
    by at most n 2^-24 of the magnitude (Higham, Accuracy and Stability of Numerical Algorithms, 4.2), and rounding to
    the dtype of `found` adds half an ulp. Of all numbers together, whose errors have either sign, the root of n does.
    """
    ulp = torch.finfo(found.dtype).eps
    off, rounding = (found.double() - wanted).abs(), wanted.abs() * ulp
    each = off / (terms * 2.0**-24 * magnitude + rounding)
    together = off.square().mean().sqrt() / (terms**0.5 * 2.0**-24 * magnitude + rounding).square().mean().sqrt()
    if float(each.max()) <= 1 and float(together) <= 1:
        return ""
    return f"off by up to {float(each.max()):.2f} of what rounding may do, together {float(together):.2f} of it"


if __name__ == "__main__":
    main()
