import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mixdq.errors import BosNotConstantError, NonFiniteError
from mixdq.quant.bos import (
    CLIP_TOKENS,
    MISFIT_LIMIT,
    BosRow,
    BosRows,
    bos_coefficients,
    bos_projection,
    bos_rows,
    with_bos_row,
    with_first_row,
)


def random_vector(features: int, seed: int = 0) -> Tensor:
    vector = torch.randn(features, generator=torch.Generator().manual_seed(seed))
    vector[0] = 800.0
    return vector


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), features=st.integers(1, 300), batch=st.integers(1, 5))
def test_alpha_is_exact_for_the_state_its_half_and_zeros(seed: int, features: int, batch: int) -> None:
    e = random_vector(features, seed)
    for factor in (1.0, 0.5, 0.0, -1.0, 2.0):
        assert bos_coefficients((factor * e).expand(batch, -1), e).tolist() == [factor] * batch


def test_each_sample_has_its_own_alpha() -> None:
    e = random_vector(64)
    assert bos_coefficients(torch.stack([e, 0 * e, 0.5 * e]), e).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_state_in_half_precision_still_passes(dtype: torch.dtype) -> None:
    e = random_vector(2048)
    alpha = bos_coefficients(e.to(dtype).unsqueeze(0), e)
    # Each element is off by at most half an ulp of the dtype, hence alpha as well.
    assert abs(alpha.item() - 1.0) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_a_foreign_state_is_refused_however_long(length: float) -> None:
    e, foreign = random_vector(64), torch.ones(64)
    foreign[0] = 0.0
    with pytest.raises(BosNotConstantError, match=r"mid\.to_k"):
        bos_coefficients(length * foreign.unsqueeze(0), e, name="mid.to_k")


def test_an_outlier_in_common_does_not_make_two_states_one() -> None:
    # As another clip skip gives it: CLIP's 823 in one channel stays, all others are new.
    e, other = (torch.randn(2048, generator=torch.Generator().manual_seed(seed)) / 2 for seed in (0, 1))
    e[7] = other[7] = 823.0
    with pytest.raises(BosNotConstantError):
        bos_coefficients(other.unsqueeze(0), e)


def test_one_foreign_sample_is_enough() -> None:
    e = random_vector(64)
    with pytest.raises(BosNotConstantError):
        bos_coefficients(torch.stack([e, torch.ones(64)]), e)


def test_misfit_is_the_share_of_the_magnitudes_that_is_no_multiple() -> None:
    e = torch.tensor([2.0, 0.0])
    state = torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 1.0]])
    alpha, misfit = bos_projection(state, e)
    torch.testing.assert_close(alpha, torch.tensor([1.5, 2.5, 0.0]))
    torch.testing.assert_close(misfit, torch.tensor([4 / 7, 0.0, 1.0]))


def test_a_row_of_zeros_fits_nothing_but_zeros() -> None:
    assert bos_coefficients(torch.zeros(2, 4), torch.zeros(4)).tolist() == [0.0, 0.0]
    with pytest.raises(BosNotConstantError):
        bos_coefficients(torch.ones(2, 4), torch.zeros(4))


def test_the_limit_lies_where_it_says() -> None:
    e = torch.tensor([1.0, 0.0])
    for share, passes in ((0.9 * MISFIT_LIMIT, True), (1.1 * MISFIT_LIMIT, False)):
        state = torch.tensor([[1 - share, share]])
        if passes:
            bos_coefficients(state, e)
        else:
            with pytest.raises(BosNotConstantError):
                bos_coefficients(state, e)


def test_a_state_that_is_not_finite_is_named() -> None:
    e = random_vector(8)
    with pytest.raises(NonFiniteError, match=r"mid\.to_v"):
        bos_coefficients((e * float("nan")).unsqueeze(0), e, name="mid.to_v")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.0])
def test_rows_are_the_layers_own_output_for_any_multiple(bias: bool, factor: float) -> None:
    layer = nn.Linear(32, 16, bias=bias).requires_grad_(False)
    e = random_vector(32)
    bos = BosRow(input=e, output=layer(e))
    rows = bos_rows((factor * e).expand(3, -1), bos, layer.bias)
    # The outputs are of order |e| |w|; a float32 sum of 32 terms is good to about 32 roundings.
    torch.testing.assert_close(rows, layer((factor * e).expand(3, -1)), rtol=32 * 2**-23, atol=32 * 2**-23 * 800)
    if factor == 1.0:
        assert torch.equal(rows[0], bos.output)


def test_rows_take_the_dtype_of_the_state() -> None:
    e = random_vector(8)
    bos = BosRow(input=e, output=torch.ones(4))
    assert bos_rows(e.to(torch.bfloat16).unsqueeze(0), bos).dtype == torch.bfloat16


def test_only_the_other_tokens_are_passed_on() -> None:
    e = random_vector(6)
    bos = BosRow(input=e, output=torch.full((4,), 7.0))
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    x[:, 0] = torch.stack([e, 0 * e, 0.5 * e])
    seen: list[Tensor] = []

    def others(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return tokens[..., :4]

    out = with_bos_row(x, bos, None, others, name="k")
    assert out.shape == (3, 5, 4)
    assert torch.equal(out[:, 0], torch.tensor([[7.0], [0.0], [3.5]]).expand(3, 4))
    assert torch.equal(out[:, 1:], x[:, 1:, :4])
    assert torch.equal(seen[0], x[:, 1:])


def test_shapes_without_batch_or_further_tokens() -> None:
    e = random_vector(6)
    bos = BosRow(input=e, output=torch.full((4,), 7.0))

    def nobody(tokens: Tensor) -> Tensor:
        raise AssertionError("no other tokens were given")

    assert torch.equal(with_bos_row(e, bos, None, nobody, name="k"), bos.output)
    assert torch.equal(with_bos_row(e.unsqueeze(0), bos, None, nobody, name="k"), bos.output.unsqueeze(0))
    assert torch.equal(with_bos_row(e.expand(2, 1, 6), bos, None, nobody, name="k"), bos.output.expand(2, 1, 4))
    one_text = torch.stack([e, torch.ones(6)])
    out = with_bos_row(one_text, bos, None, lambda tokens: tokens[..., :4], name="k")
    assert torch.equal(out, torch.stack([bos.output, torch.ones(4)]))


def test_a_row_is_two_vectors() -> None:
    with pytest.raises(ValueError, match="two vectors"):
        BosRow(input=torch.ones(1, 3), output=torch.ones(3))


@settings(deadline=None, max_examples=40)
@given(
    states=st.lists(
        st.tuples(
            st.sampled_from([1.0, 0.5, 0.0, -0.0, 1.001]),
            st.integers(1, 3),
            st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
        ),
        min_size=2,
        max_size=8,
    ),
    bias=st.booleans(),
)
def test_kept_rows_are_those_that_would_be_computed(states: list[tuple[float, int, torch.dtype]], bias: bool) -> None:
    e = random_vector(16)
    bos = BosRow(input=e, output=torch.randn(4, generator=torch.Generator().manual_seed(3)))
    offset = torch.ones(4) if bias else None
    kept = BosRows(bos, offset, name="k")
    for factor, batch, dtype in states:
        x0 = (factor * e).to(dtype).expand(batch, -1).clone()
        expected = bos_rows(x0, bos, offset)
        for _ in range(2):
            found = kept(x0)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)


def test_kept_rows_do_not_follow_a_state_that_is_overwritten() -> None:
    e = random_vector(6)
    kept = BosRows(BosRow(input=e, output=torch.ones(4)), None, name="mid.to_k")
    x0 = e.unsqueeze(0).clone()
    kept(x0)
    x0 *= 0.5
    assert torch.equal(kept(x0), torch.full((1, 4), 0.5))
    x0[0, 1] = torch.nan
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"mid\.to_k"):
            kept(x0)
    x0[:] = 1.0
    for _ in range(2):
        with pytest.raises(BosNotConstantError, match=r"mid\.to_k"):
            kept(x0)
    assert torch.equal(kept(e.unsqueeze(0)), torch.ones(1, 4))


def test_who_writes_to_an_output_changes_no_later_one() -> None:
    e = random_vector(6)
    kept = BosRows(BosRow(input=e, output=torch.full((4,), 7.0)), None, name="k")
    for x in (e, e.unsqueeze(0), e.expand(2, 1, 6), e.expand(2, 3, 6)):
        first = with_first_row(x, kept, lambda tokens: tokens[..., :4])
        expected = first.clone()
        first.zero_()
        assert torch.equal(with_first_row(x, kept, lambda tokens: tokens[..., :4]), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_a_foreign_state_is_right_up_to_its_rest_through_the_weight_and_is_told(bias: bool) -> None:
    layer = nn.Linear(32, 16, bias=bias).requires_grad_(False)
    e = random_vector(32)
    foreign = torch.stack([e, 0.5 * e + torch.randn(32), torch.randn(32), torch.zeros(32)])
    bos, coarse = BosRow(input=e, output=layer(e)), layer.weight + 0.01
    with pytest.warns(UserWarning, match="another clip skip"):
        rows = bos_rows(foreign, bos, layer.bias, product=lambda x: x @ coarse.T)
    alpha, _ = bos_projection(foreign, e)
    # What is wrong with the weight is wrong with the rest alone; the outlier keeps its own output.
    rest = (foreign - alpha.unsqueeze(-1) * e).sum(-1, keepdim=True)
    torch.testing.assert_close(rows, layer(foreign) + 0.01 * rest, rtol=0, atol=32 * 2**-23 * 800)
    foreign[1, 3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"mid\.to_k"):
        bos_rows(foreign, bos, layer.bias, product=lambda x: x @ coarse.T, name="mid.to_k")


def test_later_texts_of_a_long_prompt_have_rows_of_their_own() -> None:
    e = random_vector(6)
    bos = BosRow(input=e, output=torch.full((4,), 7.0))
    x = torch.randn(2, 3 * CLIP_TOKENS, 6, generator=torch.Generator().manual_seed(1))
    firsts = [0, CLIP_TOKENS, 2 * CLIP_TOKENS]
    x[:, firsts] = torch.stack([e, 1.25 * e, e])
    x[1, CLIP_TOKENS] = 0.0
    out = with_bos_row(x, bos, None, lambda tokens: tokens[..., :4], name="k")
    wanted = x[..., :4].clone()
    wanted[:, firsts] = torch.tensor([7.0, 8.75, 7.0]).unsqueeze(-1)
    wanted[1, CLIP_TOKENS] = 0.0
    assert torch.equal(out, wanted)


def test_an_outlier_that_is_no_first_token_is_quantized_like_others() -> None:
    e = random_vector(6)
    x = torch.randn(1, CLIP_TOKENS + 1, 6, generator=torch.Generator().manual_seed(1))
    x[0, 0], x[0, 5] = e, 900.0
    out = with_bos_row(x, BosRow(input=e, output=torch.ones(4)), None, lambda tokens: tokens[..., :4], name="k")
    assert torch.equal(out[:, 1:], x[:, 1:, :4])
