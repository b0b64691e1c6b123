import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdq.config import (
    AllocationConfig,
    ModelConfig,
    RunConfig,
    build_config,
    dump_config,
    load_config,
    match_layers,
    parse_config,
)
from mixdq.errors import ConfigError

LEAST = "[model]\npath = 'a'\n"


def test_least_config_has_the_defaults_of_few_step_models() -> None:
    config = parse_config(LEAST)
    assert config == RunConfig(model=ModelConfig(path="a"))
    assert (config.generation.steps, config.generation.guidance_scale, config.generation.seed) == (1, 0.0, 0)
    assert (config.allocation.weight_bits, config.allocation.activation_bits) == (4.0, 8.0)
    assert config.allocation.weight_bytes is None


@given(
    st.floats(2, 16, exclude_max=True),
    st.sets(st.integers(2, 8), min_size=1),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    st.integers(0, 2**63 - 1),
    st.none() | st.lists(st.floats(0.01, 9), min_size=1),
)
def test_settings_survive_toml(bits, widths, keep, seed, ratios) -> None:
    allocation = {"weight_bits": bits, "keep": keep, "ratios": ratios}
    choices = {"content": sorted(widths), "quality": [4]}
    config = build_config(
        {"model": {"path": "x"}, "generation": {"seed": seed}, "allocation": {**allocation, "weight_choices": choices}}
    )
    text = dump_config(config)
    assert parse_config(text) == config
    assert dump_config(parse_config(text)) == text


def test_budget_in_bytes_replaces_the_default_in_bits() -> None:
    config = parse_config(LEAST + "[allocation]\nweight_bytes = 1000")
    assert config.allocation.weight_bits is None
    assert parse_config(dump_config(config)) == config
    assert config.allocation.budget(["a"]).weight_bytes == 1000


def test_floating_point_weights_go_with_floating_point_inputs() -> None:
    config = parse_config(LEAST + "[allocation]\nweight_bits = 16\nactivation_bits = 16")
    assert config.allocation.budget(["a"]).weight_bits == 16.0


def test_the_joint_program_takes_budgets_together_and_its_own_defaults() -> None:
    joint = AllocationConfig(program="joint", weight_bits=4.0, weight_bytes=10**9, latency_ms=900.0)
    assert (joint.objective, joint.activation_bits) == ("linear", 16.0)
    budget = joint.budget(["a"])
    assert (budget.weight_bits, budget.weight_bytes, budget.latency_ms) == (4.0, 10**9, 900.0)
    assert AllocationConfig(program="joint").weight_bits == 4.0
    assert AllocationConfig(program="joint", latency_ms=9.0).weight_bits is None
    floating = {"content": (4, 16), "quality": (8, 16)}
    assert AllocationConfig(program="joint", weight_choices=floating).activation_bits == 8.0


def test_settings_of_an_older_version_are_read() -> None:
    old = LEAST + "[allocation]\nweight_bits = 4.0\nprotect = 0.01\nkeep = []\nobjective = 'raw'\nmax_plans = 12"
    allocation = parse_config(old).allocation
    assert allocation == AllocationConfig(objective="raw")
    assert (allocation.program, allocation.latency_ms) == ("split", None)


def test_keep_patterns_become_names() -> None:
    config = parse_config(LEAST + "[allocation]\nkeep = ['conv_*']")
    assert config.allocation.budget(["conv_in", "mid", "conv_out"]).keep == ("conv_in", "conv_out")
    with pytest.raises(
        ConfigError, match=r"allocation.keep: the pattern 'conv_\*' matches none of the model's 1 layers"
    ):
        config.allocation.budget(["mid"])


def test_pattern_that_matches_nothing_names_the_nearest() -> None:
    assert match_layers([], ["a"]) == ()
    assert match_layers(["b", "?"], ["a", "b", "cc"]) == ("a", "b")
    with pytest.raises(ConfigError, match=r"Such names are down\.conv_in"):
        match_layers(["down.convin"], ["x.y", "down.conv_in"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "model is missing"),
        ("[model]", "model.path is missing"),
        ("[model]\npath = ''", "model.path"),
        (LEAST + "[alocation]", "unknown key alocation; did you mean 'allocation'"),
        (LEAST + "[generation]\nstep = 1", "unknown key generation.step; did you mean 'steps'"),
        (LEAST + "[generation]\nsteps = 0", "generation.steps: expected greater than or equal to 1, got 0"),
        (LEAST + "[generation]\nsteps = '1'", "generation.steps: expected a valid integer, got '1'"),
        (LEAST + "[generation]\nsteps = true", "generation.steps"),
        (LEAST + "[allocation]\nweight_bits = nan", "allocation.weight_bits: expected a finite number"),
        (LEAST + "[allocation]\nweight_bits = 1.5", "allocation.weight_bits"),
        (LEAST + "[allocation]\nweight_bits = 4\nweight_bytes = 9", "both given"),
        (LEAST + "[allocation]\nkeep = 'a'", "allocation.keep: expected a list"),
        (LEAST + "[allocation]\nweight_choices = {content = [4]}", "expected widths for both content and quality"),
        (LEAST + "[allocation]\nweight_choices = {content = [9], quality = [4]}", "9 bits: expected 2 to 8"),
        (LEAST + "[allocation]\nweight_choices = {content = [], quality = [4]}", "weight_choices.content"),
        (
            LEAST + "[allocation]\nobjective = 'log'",
            "allocation.objective: expected 'raw', 'linear' or 'calibrated', got 'log'",
        ),
        (LEAST + "[allocation]\nprogram = 'joint'\nobjective = 'raw'", "decibels and SSIM do not add up"),
        (LEAST + "[allocation]\nobjective = 'calibrated'", "objective = 'calibrated' needs program = 'joint'"),
        (LEAST + "[allocation]\nlatency_ms = 5", "latency_ms needs program = 'joint'"),
        (LEAST + "[allocation]\npairs = 9", "pairs = 9 needs program = 'joint'"),
        (LEAST + "[allocation]\nprogram = 'joint'\nlatency_ms = 0", "latency_ms: expected greater than 0"),
        (LEAST + "[allocation]\nweight_bits = 16", "activation_bits = 8 beside weights of 16 bits"),
        (LEAST + "[allocation]\nweight_choices = {content = [4], quality = [8, 16]}", "Set activation_bits = 16"),
        (LEAST + "[sensitivity]\nssim_window = 4", "its width is odd"),
        ("model = 3", "model"),
        ("[model", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
    ],
)
def test_mistake_is_named_with_key_expected_and_got(text, says) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        parse_config(text)


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("[generation]\nsteps = 0\nseed = -1\n[x]")
    assert len(str(caught.value).splitlines()) == 4


def test_file_that_cannot_be_read_is_named(tmp_path) -> None:
    path = tmp_path / "config.toml"
    with pytest.raises(ConfigError, match="no such file"):
        load_config(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path)
    path.write_text(LEAST)
    assert load_config(path).model.path == "a"
