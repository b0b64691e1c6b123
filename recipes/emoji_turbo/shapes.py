"""The untrained models of the pipeline, in the shapes that SDXL's pipeline expects.

Names follow diffusers: the first letter of each function says what comes out, the config says how large.
"""

from diffusers import AutoencoderTiny, LCMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from recipes.emoji_turbo.config import Config

NUM_TIME_IDS = 6
TIME_EMBED_DIM = 32


def autoencoder(config: Config) -> AutoencoderTiny:
    """Return a three-level autoencoder: a quarter of the picture's side, `latent_channels` deep, scaling factor 1."""
    inward, outward = config.encoder_channels, config.decoder_channels
    return AutoencoderTiny(
        latent_channels=config.latent_channels,
        encoder_block_out_channels=(inward, inward, inward),
        decoder_block_out_channels=(outward, outward, outward),
        num_encoder_blocks=(0, 2, 2),
        num_decoder_blocks=(3, 3, 0),
        act_fn="relu",
        scaling_factor=1.0,
    )


def text_encoder(config: Config, *, vocabulary: int, bos: int, eos: int) -> CLIPTextModelWithProjection:
    """Return a causal CLIP text tower whose penultimate states feed the UNet's cross-attention."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            projection_dim=config.projection_dim,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.text_length,
            hidden_act="gelu",
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def image_tower(config: Config) -> CLIPVisionModelWithProjection:
    """Return a small ViT that shares the text tower's projection space; it reads pixels in [-1, 1]."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.image_tower_width,
            intermediate_size=4 * config.image_tower_width,
            projection_dim=config.projection_dim,
            num_hidden_layers=config.image_tower_layers,
            num_attention_heads=config.image_tower_width // 48,
            image_size=config.image_size,
            patch_size=config.image_size // 8,
            hidden_act="gelu",
        )
    )


def unet(config: Config) -> UNet2DConditionModel:
    """Return SDXL's UNet in miniature: text-and-time added embedding, linear projections, skip joins at every level."""
    return UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=config.unet_channels,
        layers_per_block=1,
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[channels // 32 for channels in config.unet_channels],
        cross_attention_dim=config.text_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_EMBED_DIM,
        projection_class_embeddings_input_dim=config.projection_dim + NUM_TIME_IDS * TIME_EMBED_DIM,
    )


def scheduler() -> LCMScheduler:
    """Return the few-step scheduler: velocity prediction, and no signal at all left at the first timestep."""
    return LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_scaling=10.0,
    )
