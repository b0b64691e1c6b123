"""The custom-node folder, loaded as ComfyUI loads it and run as its executor does: in inference mode, by keywords.

ComfyUI itself is on no package registry. Its `folder_paths`, all that the nodes import of it, is a module of three
functions here that look into a temporary folder.
"""

import ast
import importlib
import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from mixdq.errors import UnsupportedModelError
from mixdq.integrations.unet_names import community_names
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import tiny_flux_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline

ROOT = Path(__file__).resolve().parents[2] / "comfyui"
GRAPH = json.loads((ROOT / "example_workflows" / "text_to_image.json").read_text(encoding="utf-8"))
API_GRAPH = json.loads((ROOT / "text_to_image_api.json").read_text(encoding="utf-8"))
IMPORTS = (ast.Import, ast.ImportFrom)

# Of ComfyUI's own nodes the examples use this one: its inputs and what they take.
SAVE_IMAGE = {"images": "IMAGE", "filename_prefix": "STRING"}

HOW = {"device": "cpu", "dtype": "float32", "backend": "reference"}
ASKED = {"prompt": "a red dog", "steps": 1, "guidance": 0.0, "width": 16, "height": 16, "seed": 5, "count": 2}


@pytest.fixture(scope="module")
def nodes() -> dict[str, Any]:
    """NODE_CLASS_MAPPINGS of the folder, under a module name that is a path, as ComfyUI gives it."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return module.NODE_CLASS_MAPPINGS


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """ComfyUI's folder of models, empty."""
    for kind in ("diffusers", "checkpoints"):
        (tmp_path / kind).mkdir()
    paths: Any = ModuleType("folder_paths")
    paths.get_folder_paths = lambda kind: [str(tmp_path / kind)]
    paths.get_filename_list = lambda kind: sorted(file.name for file in (tmp_path / kind).iterdir() if file.is_file())
    paths.get_full_path_or_raise = lambda kind, name: str(tmp_path / kind / name)
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    return tmp_path


def call(node: Any, **inputs: Any) -> tuple[Any, ...]:
    """Run a node as ComfyUI does, and check what it returns against what it declares."""
    declared = node.INPUT_TYPES()["required"]
    assert inputs.keys() == declared.keys()
    with torch.inference_mode():
        outputs: tuple[Any, ...] = getattr(node(), node.FUNCTION)(**inputs)
    assert len(outputs) == len(node.RETURN_TYPES)
    return outputs


def drawn(pipe: DiffusionPipeline) -> torch.Tensor:
    spec = GenerationSpec(steps=1, height=16, width=16, seed=5)
    return generate(pipe, ["a red dog"] * 2, spec, batch_size=1).movedim(1, -1)


def test_a_saved_pipeline_makes_the_pictures_that_it_makes_outside(nodes: Any, models: Path, quantized: Any) -> None:
    (models / "diffusers" / "mine").mkdir()
    (models / "diffusers" / "mine" / "w4a8").symlink_to(quantized.folder)
    load = nodes["MixDQLoadPipeline"]
    assert load.INPUT_TYPES()["required"]["model"] == (["mine/w4a8"],)
    (pipe,) = call(load, model="mine/w4a8", **HOW)
    (pictures,) = call(nodes["MixDQGenerate"], pipeline=pipe, **ASKED)
    assert pictures.shape == (2, 16, 16, 3)
    assert pictures.dtype == torch.float32
    assert bool(((pictures >= 0) & (pictures <= 1)).all())
    assert torch.equal(pictures, drawn(quantized.pipe))
    # A second run of the graph, as after a change of the prompt, meets layers whose kernels are bound.
    assert torch.equal(call(nodes["MixDQGenerate"], pipeline=pipe, **ASKED)[0], pictures)


def test_the_backend_is_the_one_that_the_node_names(nodes: Any, models: Path, quantized: Any) -> None:
    (models / "diffusers" / "w4a8").symlink_to(quantized.folder)
    for backend in ("auto", "reference"):
        (pipe,) = call(nodes["MixDQLoadPipeline"], model="w4a8", **{**HOW, "backend": backend})
        layers = [layer for layer in pipe.unet.modules() if isinstance(layer, QuantizedLayer)]
        assert layers
        assert {layer.backend for layer in layers} == {backend}


def test_float_pipelines_and_damaged_ones_are_not_offered(nodes: Any, models: Path) -> None:
    tiny_sdxl_pipeline().save_pretrained(models / "diffusers" / "float")
    damaged = models / "diffusers" / "damaged"
    (damaged / "unet").mkdir(parents=True)
    (damaged / "model_index.json").write_text("{}")
    for text in ("{", "[]", '{"quantization_config": 1}', "\udcff"):
        (damaged / "unet" / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert nodes["MixDQLoadPipeline"].INPUT_TYPES()["required"]["model"] == ([],)
    with pytest.raises(FileNotFoundError, match="float: no quantized pipeline"):
        call(nodes["MixDQLoadPipeline"], model="float", **HOW)


def test_width_and_height_0_are_the_models_own(nodes: Any, models: Path, quantized: Any) -> None:
    own = {**ASKED, "width": 0, "height": 0, "count": 1}
    (pictures,) = call(nodes["MixDQGenerate"], pipeline=quantized.pipe, **own)
    side = quantized.pipe.unet.config.sample_size * quantized.pipe.vae_scale_factor
    assert pictures.shape == (1, side, side, 3)


@pytest.mark.parametrize(("inputs", "bits"), [("8 bits", "W8A8"), ("floating point", "W8A16")])
def test_a_checkpoint_is_quantized_while_it_is_read(nodes: Any, models: Path, inputs: str, bits: str) -> None:
    pipe = tiny_sd_pipeline()
    pipe.save_pretrained(models / "checkpoints" / "model")
    renamed, text = community_names(pipe.unet), "cond_stage_model.transformer.text_model."
    tensors = {f"model.diffusion_model.{renamed(name)}": tensor for name, tensor in pipe.unet.state_dict().items()}
    tensors |= {text + name.removeprefix("text_model."): t for name, t in pipe.text_encoder.state_dict().items()}
    save_file(tensors, models / "checkpoints" / "model.safetensors")
    (models / "checkpoints" / "old.ckpt").touch()
    load = nodes["MixDQLoadCheckpoint"]
    assert load.INPUT_TYPES()["required"]["checkpoint"] == (["model.safetensors"],)
    (opened,) = call(load, checkpoint="model.safetensors", weight_bits=8, inputs=inputs, **HOW)
    assert {str(b) for b in opened.unet.config["quantization_config"].saved.plan.layers.values()} == {bits}
    (pictures,) = call(nodes["MixDQGenerate"], pipeline=opened, **ASKED)
    # Eight bits everywhere, scaled token by token, change little: less than pictures of other noise differ.
    others = call(nodes["MixDQGenerate"], pipeline=opened, **{**ASKED, "seed": 6})[0]
    assert (pictures - drawn(pipe)).abs().mean() < 0.2 * (pictures - others).abs().mean()


def test_a_checkpoint_without_a_unet_is_refused(nodes: Any, models: Path) -> None:
    tiny_flux_pipeline().save_pretrained(models / "checkpoints" / "flux")
    save_file({"model.diffusion_model.x": torch.zeros(1)}, models / "checkpoints" / "flux.safetensors")
    with pytest.raises(UnsupportedModelError, match="FluxPipeline has no UNet"):
        call(nodes["MixDQLoadCheckpoint"], checkpoint="flux.safetensors", weight_bits=8, inputs="floating point", **HOW)


def test_the_example_graph_runs(nodes: Any, models: Path, quantized: Any) -> None:
    (models / "diffusers" / API_GRAPH["1"]["inputs"]["model"]).symlink_to(quantized.folder)
    made: dict[str, tuple[Any, ...]] = {}
    for key in ("1", "2"):
        node = API_GRAPH[key]
        inputs = {n: made[v[0]][v[1]] if isinstance(v, list) else v for n, v in node["inputs"].items()}
        # The tiny model makes pictures of 16 px, and need not have a C compiler.
        inputs |= {name: 16 for name in ("width", "height") if name in inputs}
        inputs |= {"backend": "reference"} if "backend" in inputs else {}
        made[key] = call(nodes[node["class_type"]], **inputs)
    assert API_GRAPH["3"]["inputs"]["images"] == ["2", 0]
    assert made["2"][0].shape == (1, 16, 16, 3)


def test_both_example_graphs_are_one_graph_and_its_values_are_allowed(nodes: Any, models: Path) -> None:
    links = {link[0]: link for link in GRAPH["links"]}
    as_api = {}
    for node in GRAPH["nodes"]:
        kind = nodes.get(node["type"])
        declared = SAVE_IMAGE if kind is None else kind.INPUT_TYPES()["required"]
        types = {name: spec if isinstance(spec, str) else spec[0] for name, spec in declared.items()}
        linked = {slot["name"]: slot for slot in node["inputs"]}
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for name in declared:
            if name in linked:
                _, source, slot, target, index, carried = links[linked[name]["link"]]
                assert (target, carried) == (node["id"], types[name])
                assert node["inputs"][index]["name"] == name
                giver = next(other for other in GRAPH["nodes"] if other["id"] == source)
                assert nodes[giver["type"]].RETURN_TYPES[slot] == carried
                inputs[name] = [str(source), slot]
                continue
            inputs[name] = next(values)
            options = declared[name][1] if not isinstance(declared[name], str) and len(declared[name]) > 1 else {}
            if isinstance(types[name], list) and name != "model":
                assert inputs[name] in types[name]
            if "min" in options:
                assert options["min"] <= inputs[name] <= options["max"]
            if options.get("control_after_generate"):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
        assert next(values, None) is None
        as_api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    assert as_api == API_GRAPH


def test_comfy_cli_makes_one_graph_of_the_other_and_reads_the_project(nodes: Any, models: Path) -> None:
    graphs = pytest.importorskip("comfy_cli.workflow_to_api", reason="comfy-cli, ComfyUI's own tool, is absent")
    projects = importlib.import_module("comfy_cli.registry.config_parser")
    known = {name: {"input": node.INPUT_TYPES()} for name, node in nodes.items()}
    known["SaveImage"] = {"input": {"required": {name: (kind,) for name, kind in SAVE_IMAGE.items()}}}
    converted = graphs.convert_ui_to_api(GRAPH, json.loads(json.dumps(known)))
    found = {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in converted.items()}
    assert found == API_GRAPH
    read = projects.extract_node_configuration(str(ROOT / "pyproject.toml"))
    assert read.project.license.text == "Apache-2.0"
    assert read.project.urls.repository
    assert read.tool_comfy.display_name == "MixDQ"


def test_loaders_stand_among_the_loaders_and_every_node_says_what_it_does(nodes: Any) -> None:
    for name, node in nodes.items():
        expected = "loaders" if "Load" in name else "MixDQ"
        assert expected == node.CATEGORY
        assert node.DESCRIPTION
        assert callable(getattr(node, node.FUNCTION))


def test_starting_comfyui_costs_no_import_of_diffusers_or_mixdq() -> None:
    for file in ROOT.glob("*.py"):
        at_the_top = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, IMPORTS)]
        names = {alias.name for node in at_the_top if isinstance(node, ast.Import) for alias in node.names}
        names |= {f"{'.' * node.level}{node.module}" for node in at_the_top if isinstance(node, ast.ImportFrom)}
        assert names <= {"json", "os", "pathlib", "typing", "torch", ".nodes"}


def test_the_projects_versions_agree() -> None:
    node = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    package = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert node["project"]["version"] == package["project"]["version"]
    assert node["project"]["requires-python"] == package["project"]["requires-python"]
    assert {"PublisherId", "DisplayName", "Icon"} <= node["tool"]["comfy"].keys()
    assert node["project"]["urls"]["Repository"]
