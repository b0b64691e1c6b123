"""Nodes that open MixDQ pipelines with diffusers and make pictures with them.

The pipeline travels between them whole: its text encoders, quantized denoiser and VAE are diffusers' and MixDQ's, not
ComfyUI's, so ComfyUI's own samplers, LoRA and ControlNet nodes do not take it. For those, `export_comfyui` of
`mixdq.integrations.comfyui` writes a file that ComfyUI opens by itself.
"""

# mixdq, diffusers and ComfyUI's folder_paths are imported when they are used: ComfyUI imports this file as it starts.

import json
import os
from pathlib import Path
from typing import Any

import torch

CATEGORY = "MixDQ"
LOADERS = "loaders"
PIPELINE = "MIXDQ_PIPELINE"
DTYPES = ("float32", "bfloat16", "float16")
INPUTS_IN_8_BITS, INPUTS_IN_FLOAT = "8 bits", "floating point"


class LoadPipeline:
    """Opens a pipeline that `mixdq quantize` or `save_pretrained` wrote, from ComfyUI's folder models/diffusers."""

    CATEGORY = LOADERS
    FUNCTION = "load"
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)
    DESCRIPTION = "A quantized model as `mixdq quantize` saved it: put OUT/model into models/diffusers."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the node's inputs; `model` is one of the quantized pipelines found now."""
        return {"required": {"model": (sorted(_quantized_folders()),), **_how_to_run()}}

    def load(self, model: str, device: str, dtype: str, backend: str) -> tuple[Any]:
        """Return the pipeline; `dtype` is that of what is not quantized.

        Raises:
            FileNotFoundError: there is no such quantized pipeline any more.
            MixDQError: it cannot be opened; says why.
        """
        from mixdq.pipeline.family import find_family
        from mixdq.pipeline.load import load_pipeline
        from mixdq.runtime.layer import QuantizedLayer

        folder = _quantized_folders().get(model)
        if folder is None:
            raise FileNotFoundError(f"{model}: no quantized pipeline of this name in ComfyUI's models/diffusers")
        pipe = load_pipeline(folder, dtype=getattr(torch, dtype), device=device)
        for layer in find_family(pipe).denoiser(pipe).modules():
            if isinstance(layer, QuantizedLayer):
                layer.use_backend(backend)
        return (pipe,)


class LoadCheckpoint:
    """Opens a checkpoint of the community's layout, from models/checkpoints, and quantizes its UNet as it is read."""

    CATEGORY = LOADERS
    FUNCTION = "load"
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)
    DESCRIPTION = "A float checkpoint, quantized while it is read: every layer alike, without calibration."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the node's inputs; `checkpoint` is one of the .safetensors files found now."""
        import folder_paths

        files = [name for name in folder_paths.get_filename_list("checkpoints") if name.endswith(".safetensors")]
        widths = {
            "weight_bits": ("INT", {"default": 8, "min": 2, "max": 8}),
            "inputs": ([INPUTS_IN_8_BITS, INPUTS_IN_FLOAT],),
        }
        return {"required": {"checkpoint": (files,), **widths, **_how_to_run()}}

    def load(self, checkpoint: str, weight_bits: int, inputs: str, device: str, dtype: str, backend: str) -> tuple[Any]:
        """Return the pipeline; `inputs` of quantized layers are scaled at run time, or left in floating point.

        Raises:
            MixDQError: it cannot be opened, or its denoiser is no UNet; says why.
        """
        import diffusers
        import folder_paths

        from mixdq import MixDQConfig
        from mixdq.errors import UnsupportedModelError
        from mixdq.pipeline.single_file import find_configuration

        file = Path(folder_paths.get_full_path_or_raise("checkpoints", checkpoint))
        configuration = find_configuration(file)
        parts = diffusers.DiffusionPipeline.load_config(configuration)
        if "unet" not in parts:
            raise UnsupportedModelError(
                f"{checkpoint}: {parts['_class_name']} has no UNet; `mixdq quantize` takes more"
            )
        recipe = MixDQConfig(
            weight_bits=weight_bits,
            activation_bits=8 if inputs == INPUTS_IN_8_BITS else 16,
            activations="dynamic",
            backend=backend,
        )
        options = {"config": str(configuration), "dtype": getattr(torch, dtype), "local_files_only": True}
        unet = diffusers.UNet2DConditionModel.from_single_file(
            str(file), subfolder="unet", quantization_config=recipe, **options
        )
        pipe = getattr(diffusers, parts["_class_name"]).from_single_file(str(file), unet=unet, **options)
        return (pipe.to(device),)


class Generate:
    """Makes pictures with a pipeline, as `mixdq generate` does."""

    CATEGORY = CATEGORY
    FUNCTION = "generate"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Pictures of one prompt. Width or height 0 is the model's own; guidance 0 or 1 is none."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the node's inputs."""
        size = {"default": 0, "min": 0, "max": 4096, "step": 8}
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "steps": ("INT", {"default": 1, "min": 1, "max": 100}),
                "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1}),
                "width": ("INT", size),
                "height": ("INT", size),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
                "count": ("INT", {"default": 1, "min": 1, "max": 64}),
            }
        }

    def generate(
        self, pipeline: Any, prompt: str, steps: int, guidance: float, width: int, height: int, seed: int, count: int
    ) -> tuple[torch.Tensor]:
        """Return pictures [count, height, width, 3] in 0..1; picture i depends on the seed and i alone."""
        from mixdq.pipeline.generate import GenerationSpec, generate

        spec = GenerationSpec(
            steps=steps, guidance_scale=guidance, width=width or None, height=height or None, seed=seed
        )
        pictures = generate(pipeline, [prompt] * count, spec, batch_size=1)
        return (pictures.movedim(1, -1).contiguous(),)


NODE_CLASS_MAPPINGS = {
    "MixDQLoadPipeline": LoadPipeline,
    "MixDQLoadCheckpoint": LoadCheckpoint,
    "MixDQGenerate": Generate,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "MixDQLoadPipeline": "Load MixDQ Pipeline",
    "MixDQLoadCheckpoint": "Load Checkpoint and Quantize (MixDQ)",
    "MixDQGenerate": "Generate Pictures (MixDQ)",
}


def _how_to_run() -> dict[str, Any]:
    from mixdq.runtime.select import AUTO, BACKENDS

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        "device": (devices,),
        "dtype": (list(DTYPES),),
        "backend": ([AUTO, *(backend.name for backend in BACKENDS)],),
    }


def _quantized_folders() -> dict[str, Path]:
    """Return name -> folder of every pipeline in models/diffusers whose denoiser says that MixDQ quantized it."""
    import folder_paths

    found: dict[str, Path] = {}
    for place in folder_paths.get_folder_paths("diffusers"):
        for folder, inside, files in os.walk(place, followlinks=True):
            if "model_index.json" in files:
                inside.clear()
                if any(_method(Path(folder, part, "config.json")) == "mixdq" for part in ("unet", "transformer")):
                    # Of two places with one name the first wins, as everywhere in ComfyUI.
                    found.setdefault(Path(folder).relative_to(place).as_posix(), Path(folder))
    return found


def _method(config: Path) -> object:
    """Return the quantization method that a model's config names; None where there is none, or no such file."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    described = values.get("quantization_config") if isinstance(values, dict) else None
    return described.get("quant_method") if isinstance(described, dict) else None
