"""The public functions around CUDA graphs; how they are captured and replayed: `mixdq.runtime.graphs`."""

import torch
from torch import nn

from mixdq.errors import ConfigError, UnsupportedModelError
from mixdq.pipeline.family import Pipeline
from mixdq.runtime.graphs import remove_graphs, use_graphs


def use_cuda_graphs(model: Pipeline | nn.Module) -> None:
    """Have the denoiser of a pipeline, or a denoiser, launched as one CUDA graph, floating point or quantized.

    A call with arguments of new shapes runs as ever twice, and is captured; from then on it is replayed. After any
    change to the denoiser (weights, adapters, processors, device) it is captured anew. Calls that cannot be captured
    run as ever, and a warning says why, once. Copies capture their own graphs; saved models know of none.

    Raises:
        ConfigError: there is no NVIDIA GPU, or the denoiser is offloaded, cached or compiled as a whole.
        UnsupportedModelError: the pipeline has neither a UNet nor a transformer.
    """
    denoiser = _denoiser_of(model)
    if not torch.cuda.is_available():
        raise ConfigError(
            "CUDA graphs are for NVIDIA GPUs, and PyTorch sees none here (torch.cuda.is_available() is False). Without "
            "graphs the model runs as it is."
        )
    use_graphs(denoiser)


def remove_cuda_graphs(model: Pipeline | nn.Module) -> None:
    """Undo `use_cuda_graphs`, and free the memory of all graphs; a denoiser without any stays as it is.

    Raises:
        UnsupportedModelError: the pipeline has neither a UNet nor a transformer.
    """
    remove_graphs(_denoiser_of(model))


def _denoiser_of(model: Pipeline | nn.Module) -> nn.Module:
    # Of any pipeline, for graphs ask nothing of its family.
    components = model.components if isinstance(model, Pipeline) else {"unet": model}
    denoiser = components.get("transformer") or components.get("unet")
    if not isinstance(denoiser, nn.Module):
        raise UnsupportedModelError(
            f"{type(model).__name__} has neither a unet nor a transformer: hand over the module that is called in "
            "every step"
        )
    return denoiser
