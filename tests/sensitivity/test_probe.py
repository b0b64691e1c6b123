import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from mixdq.errors import ConfigError, NonFiniteError
from mixdq.quant.bos import BosRow
from mixdq.quant.simulate import input_quantizer, simulated_layer
from mixdq.sensitivity.probe import Probe, probing, row_gradients
from mixdq.types.layers import LayerSpec
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange

WEIGHT_BITS, INPUT_BITS = (2, 4, 8), (4, 8)
ROWS = 3
RANGE = ActivationRange(min=-2.5, max=2.5, batches=1)


def probe_of(module: nn.Linear | nn.Conv2d, *, bos: bool = False, splits: tuple[int, ...] = (), **options) -> Probe:
    spec = LayerSpec(
        name="one",
        op="linear" if isinstance(module, nn.Linear) else "conv2d",
        group="quality",
        weight_shape=tuple(module.weight.shape),
        input_numel=1,
        macs=1,
        bos=bos,
        input_splits=splits,
    )
    ranges = [RANGE] * max(1, len(splits))
    quantizers = {bits: input_quantizer(module, bits, ranges=ranges, splits=splits, **options) for bits in INPUT_BITS}
    return Probe(spec, module, WEIGHT_BITS, quantizers)


def products(probe: Probe, forward, v: Tensor) -> Tensor:
    with probing([probe], ROWS):
        forward().backward(v)
    found, probe.products = probe.products, None
    assert found is not None
    return found


CASES = {
    "linear": (lambda: nn.Linear(6, 5), (ROWS, 7, 6), {}),
    "a linear of one vector a row": (lambda: nn.Linear(6, 5), (ROWS, 6), {}),
    "a linear with a joined input": (lambda: nn.Linear(6, 5), (ROWS, 7, 6), {"splits": (4, 2)}),
    "BOS": (lambda: nn.Linear(6, 5), (ROWS, 7, 6), {"bos": True}),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), (ROWS, 6, 8, 8), {}),
    "conv2d with a joined input": (lambda: nn.Conv2d(6, 4, 1), (ROWS, 6, 5, 5), {"splits": (2, 4)}),
    "conv2d in groups, reflected": (
        lambda: nn.Conv2d(6, 4, 3, padding=(1, 2), groups=2, padding_mode="reflect"),
        (ROWS, 6, 5, 5),
        {},
    ),
    "dynamic": (lambda: nn.Linear(6, 5), (ROWS, 7, 6), {"dynamic": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_v_with_what_simulating_the_layer_changes(case: str) -> None:
    """The model is one layer, so the first order is exact: v runs over single outputs, and every difference is seen."""
    build, shape, options = CASES[case]
    torch.manual_seed(0)
    module, x = build(), torch.randn(shape)
    if options.get("bos"):
        x[:, 0] = torch.arange(6.0)
    probe = probe_of(module, **options)
    splits, dynamic = options.get("splits", ()), options.get("dynamic", False)
    with torch.no_grad():
        y = module(x)
        bos = BosRow(input=x[0, 0].clone(), output=y[0, 0].clone()) if options.get("bos") else None
        changed = []
        for role, widths in (("weight", WEIGHT_BITS), ("activation", INPUT_BITS)):
            for bits in widths:
                both = LayerBits(**{"weight": 16, "activation": 16, role: bits})
                ranges = [RANGE] * max(1, len(splits))
                with simulated_layer(module, both, ranges=ranges, splits=splits, bos=bos, dynamic=dynamic):
                    changed.append((module(x) - y).flatten(1))
    moved = torch.stack(changed, dim=2)
    assert bool((moved.abs().amax((0, 1)) > 1e-4).all())
    for index in range(0, moved.shape[1], 5):
        v = torch.zeros_like(y).flatten(1)
        v[:, index] = torch.tensor([1.0, -2.0, 0.5])
        expected = moved[:, index] * v[:, index, None]
        found = products(probe, lambda: module(x), v.view_as(y))
        assert torch.allclose(found, expected.double(), atol=2e-5), case


def test_rows_gradients_add_up_to_autograds() -> None:
    torch.manual_seed(0)
    for module, shape in ((nn.Linear(6, 5), (ROWS, 7, 6)), (nn.Conv2d(6, 4, 3, stride=2, dilation=2), (ROWS, 6, 9, 9))):
        x = torch.randn(shape)
        y = module(x)
        v = torch.randn_like(y)
        (expected,) = torch.autograd.grad(y, module.weight, v)
        rows = row_gradients(module, x, v)
        assert torch.allclose(rows.sum(0), expected, atol=1e-5)
        assert torch.allclose(rows[1], row_gradients(module, x[1:2], v[1:2])[0], atol=1e-6)


def test_a_layer_that_runs_twice_adds_both_up() -> None:
    torch.manual_seed(0)
    module = nn.Linear(6, 6)
    x, v = torch.randn(ROWS, 6), torch.randn(ROWS, 6)
    probe = probe_of(module)
    first = products(probe, lambda: module(x), v @ module.weight.detach())
    second = products(probe, lambda: module(module(x).detach()), v)
    assert torch.allclose(products(probe, lambda: module(module(x)), v), first + second, atol=1e-4)


@pytest.mark.parametrize("module", [nn.Linear(6, 5), nn.Conv2d(6, 5, 1)])
def test_a_layer_may_be_called_by_keyword(module: nn.Linear | nn.Conv2d) -> None:
    x = torch.randn(ROWS, 6) if isinstance(module, nn.Linear) else torch.randn(ROWS, 6, 4, 4)
    probe, v = probe_of(module), torch.randn_like(module(x))
    assert torch.equal(products(probe, lambda: module(input=x), v), products(probe, lambda: module(x), v))


def test_checkpointing_changes_nothing_and_several_passes_may_share_a_graph() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.SiLU(), nn.Linear(6, 6)).requires_grad_(False)
    x, v = torch.randn(ROWS, 6), torch.randn(ROWS, 6)
    inner = model[0]
    probe = probe_of(inner)
    plain = products(probe, lambda: model(x), v)

    def checkpointed() -> Tensor:
        # The block's input asks for a gradient, as any block's behind a probed layer does.
        start = x.clone().requires_grad_()
        return torch.utils.checkpoint.checkpoint(model, start, use_reentrant=False)

    with probing([probe], ROWS):
        result = checkpointed()
        for _ in range(2):
            result.backward(v, retain_graph=True)
            assert torch.allclose(probe.products, plain, atol=1e-6)
            probe.products = None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_that_is_not_finite_names_its_layer() -> None:
    module = nn.Linear(6, 5)
    with pytest.raises(NonFiniteError, match="one: the backward pass gives NaN") as caught:
        products(probe_of(module), lambda: module(torch.randn(ROWS, 6)), torch.full((ROWS, 5), float("nan")))
    assert caught.value.where == "one"
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_an_input_without_a_row_for_each_picture_is_refused() -> None:
    module = nn.Linear(6, 5)
    with pytest.raises(ConfigError, match=r"one: its input is \[2, 6\], expected 3 rows.*method = 'exact'"):
        products(probe_of(module), lambda: module(torch.randn(2, 6)), torch.zeros(2, 5))


def test_signs_that_are_a_whole_orthogonal_basis_give_the_exact_loss() -> None:
    """The mean of <v, e>^2 over the rows of a Hadamard matrix is |e|^2, whatever e is."""
    torch.manual_seed(0)
    first, second = nn.Linear(6, 6), nn.Linear(6, 8)
    x = torch.randn(ROWS, 6)
    probe = probe_of(first)
    basis = torch.from_numpy(hadamard(8)).float()
    found = torch.stack([products(probe, lambda: second(first(x)), v.expand(ROWS, -1)) for v in basis])
    exact = []
    with torch.no_grad():
        for bits in WEIGHT_BITS:
            with simulated_layer(first, LayerBits(weight=bits, activation=16)):
                moved = second(first(x))
            exact.append((moved - second(first(x))).double().square().sum(1))
    assert torch.allclose(found.square().mean(0)[:, :3], torch.stack(exact, dim=1), rtol=1e-3)
