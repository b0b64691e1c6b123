"""Tiny text-to-image pipelines built in memory: no network, no files, milliseconds a picture.

They have every part that the method must handle: CLIP tokenizers with BOS first, causal text encoders whose BOS state
is an outlier, cross-attention, skip joins and a few-step scheduler; or T5, joint attention and single-stream blocks.
Weights are random, pictures mean nothing.
For tests of MixDQ and of its extensions; nothing in the package needs this module.
"""

import hashlib
import string
from typing import TypeVar

import torch
from diffusers import (
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    LCMScheduler,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

TOKENS = 16
"""Tokens in every text embedding, BOS and padding included."""

TEXT_WIDTH = 32
"""Features of one text encoder."""

BLOCKS = (16, 32)
"""Channels of a UNet's blocks."""

HEADS, HEAD_WIDTH = 2, 16
"""Attention heads of a transformer and features of each."""

_Encoder = TypeVar("_Encoder", CLIPTextModel, CLIPTextModelWithProjection)


def tiny_sdxl_pipeline(
    seed: int = 0,
    *,
    bos_outlier: float = 100.0,
    text_encoders: int = 2,
    zero_empty_prompt: bool = True,
    layers_per_block: int = 1,
) -> StableDiffusionXLPipeline:
    """Return an SDXL pipeline of about 0.2 M parameters that makes 16 px pictures, the same for the same seed.

    Args:
        seed: chooses the weights; the global random state is left alone.
        bos_outlier: magnitude of the BOS state, where other tokens are about 1; 0 for no outlier.
        text_encoders: 2 as in SDXL, or 1 (`text_encoder_2` only) as in its refiner.
        zero_empty_prompt: whether an empty negative prompt is replaced by zeros, as SDXL does.
        layers_per_block: residual layers in each block of the denoiser.
    """
    if text_encoders not in (1, 2):
        raise ValueError(f"text_encoders = {text_encoders}: expected 1 or 2")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        first = _text_encoder(CLIPTextModel, bos_outlier) if text_encoders == 2 else None
        second = _text_encoder(CLIPTextModelWithProjection, bos_outlier)
        unet = _unet(
            cross_attention_dim=TEXT_WIDTH * text_encoders,
            layers_per_block=layers_per_block,
            transformer_layers_per_block=1,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
        )
        vae = _vae()
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=None if first is None else tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=zero_empty_prompt,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd_pipeline(
    seed: int = 0, *, bos_outlier: float = 100.0, layers_per_block: int = 1
) -> StableDiffusionPipeline:
    """Return a Stable Diffusion 1.5-like pipeline of about 0.2 M parameters that makes 16 px pictures.

    The final layer norm of its text encoder bounds the BOS state to sqrt(features) in one channel, as in CLIP ViT-L.
    The arguments are those of `tiny_sdxl_pipeline`.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        text_encoder = _text_encoder(CLIPTextModel, bos_outlier)
        unet = _unet(cross_attention_dim=TEXT_WIDTH, layers_per_block=layers_per_block)
        vae = _vae()
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tiny_tokenizer(),
        unet=unet,
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_flux_pipeline(seed: int = 0) -> FluxPipeline:
    """Return a Flux-schnell-like pipeline of about 0.2 M parameters: one block of two streams, two of one.

    Ask it for pictures of 16 px: where it is not told, a `FluxPipeline` makes 128 latents a side, here 256 px.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        text_encoder = _text_encoder(CLIPTextModel, 100.0)
        text_encoder_2 = _t5_encoder(TEXT_WIDTH)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            axes_dims_rope=(4, 6, 6),
        ).eval()
        vae = _vae()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tiny_tokenizer(),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tiny_t5_tokenizer(),
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd3_pipeline(seed: int = 0) -> StableDiffusion3Pipeline:
    """Return a Stable Diffusion 3.5-like pipeline of about 0.2 M parameters that makes 16 px pictures.

    Its first of two blocks attends to the picture a second time, as some of SD3.5-medium's do.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        text_encoder = _text_encoder(CLIPTextModelWithProjection, 100.0)
        text_encoder_2 = _text_encoder(CLIPTextModelWithProjection, 100.0)
        # As in SD3, T5's states are wider than both CLIPs' together, which are padded with zeros.
        text_encoder_3 = _t5_encoder(3 * TEXT_WIDTH)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            joint_attention_dim=3 * TEXT_WIDTH,
            caption_projection_dim=HEADS * HEAD_WIDTH,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ).eval()
        vae = _vae()
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tiny_tokenizer(),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tiny_tokenizer(),
        text_encoder_3=text_encoder_3,
        tokenizer_3=tiny_t5_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_t5_tokenizer() -> T5Tokenizer:
    """Return a T5 tokenizer that knows single letters only, inside of words and before: no BOS, `</s>` last."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(before + letter, -1.0) for before in ("▁", "") for letter in string.ascii_lowercase]
    return T5Tokenizer(vocab=special + letters, extra_ids=0)


def tiny_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows single bytes only: BOS first, EOS as padding, `TOKENS` tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    symbols = alphabet + [letter + "</w>" for letter in alphabet] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def fingerprint(model: nn.Module) -> dict[str, object]:
    """Return all that borrowing a model could change, to be compared before and after.

    The identity, type and bytes of every parameter and buffer, every module's own `forward`, its hooks and its mode.
    """
    facts: dict[str, object] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        facts[name] = (id(tensor), tensor.dtype, tensor.requires_grad, hashlib.sha256(data).hexdigest())
    for name, module in model.named_modules():
        hooks = {key: len(value) for key, value in vars(module).items() if "_hooks" in key and value}
        facts[f"{name}:"] = (type(module), module.training, vars(module).get("forward"), hooks)
    return facts


def _text_encoder(kind: type[_Encoder], bos_outlier: float) -> _Encoder:
    tokenizer = tiny_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = kind(config).eval()
    with torch.no_grad():
        table = encoder.get_input_embeddings().weight
        # Tokens of unit size, as trained ones are; initialised ones of 0.02 would drown in every tolerance.
        table.normal_()
        # Residual blocks carry the embedding through to the output, and causality keeps every other token out of it.
        table[tokenizer.bos_token_id, 3] += bos_outlier
    return encoder


def _t5_encoder(width: int) -> T5EncoderModel:
    words = len(tiny_t5_tokenizer())
    return T5EncoderModel(
        T5Config(vocab_size=words, d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2)
    ).eval()


def _unet(**architecture: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=BLOCKS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **architecture,
    ).eval()


def _vae() -> AutoencoderTiny:
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    with torch.no_grad():
        # The decoder's range is 0 to 1: centred and spread there, so that pictures differ instead of clipping to black.
        last = vae.decoder.layers[-1]
        last.weight.mul_(3.0)
        last.bias.fill_(0.5)
    return vae


def _scheduler() -> LCMScheduler:
    return LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
