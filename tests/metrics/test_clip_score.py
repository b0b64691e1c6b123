import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from mixdq.errors import NonFiniteError, UnsupportedModelError
from mixdq.metrics.clip_score import ClipScore, PictureStats, prepare

PROMPTS = ["a b", "b", "a a b a"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP of random weights with a tokenizer of two letters."""
    folder = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=12)
    tokenizer.save_pretrained(folder)
    text = CLIPTextConfig(
        vocab_size=6, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def score(clip_folder: Path) -> ClipScore:
    return ClipScore.from_pretrained(clip_folder)


def test_score_is_the_cosine_of_the_whole_model(clip_folder: Path, score: ClipScore) -> None:
    pictures = torch.rand(3, 3, 16, 16)
    whole = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = score.tokenizer(PROMPTS, padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = whole(input_ids=tokens.input_ids, pixel_values=prepare(pictures, score.stats))
    theirs = out.logits_per_text.diag() / whole.logit_scale.exp()
    # Cosines of float32 embeddings of 8 numbers: some ulp of 1.
    torch.testing.assert_close(score.score(pictures, PROMPTS), theirs.double(), rtol=0, atol=1e-5)


def test_scores_are_cosines_and_do_not_depend_on_the_batch(score: ClipScore) -> None:
    pictures = torch.rand(3, 3, 24, 32)
    together = score.score(pictures, PROMPTS)
    assert together.abs().max() <= 1
    alone = torch.cat([score.score(pictures[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    assert score(pictures, pictures, PROMPTS) == pytest.approx(float(together.mean()), abs=1e-5)


def test_pipeline_and_tower_give_the_same_score(clip_folder: Path, score: ClipScore, tmp_path: Path) -> None:
    CLIPVisionModelWithProjection.from_pretrained(clip_folder).save_pretrained(tmp_path)
    text = CLIPTextModelWithProjection.from_pretrained(clip_folder)
    pipe = SimpleNamespace(text_encoder=None, tokenizer=None, text_encoder_2=text, tokenizer_2=score.tokenizer)
    pictures = torch.rand(3, 3, 16, 16)
    theirs = ClipScore.from_pipeline(pipe, tmp_path).score(pictures, PROMPTS)
    torch.testing.assert_close(theirs, score.score(pictures, PROMPTS), rtol=0, atol=1e-6)


def test_pipeline_without_projection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no CLIP text encoder with a projection"):
        ClipScore.from_pipeline(SimpleNamespace(text_encoder=None), tmp_path)


def test_folder_without_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no such folder"):
        ClipScore.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        ClipScore.from_pretrained(tmp_path)


def test_torn_weights_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UnsupportedModelError, match="cannot be opened"):
        ClipScore.from_pretrained(tmp_path / "torn")


def test_pickled_weights_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError):
        ClipScore.from_pretrained(tmp_path / "pickled")


def test_preprocessor_file_states_mean_and_deviation(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(stated))
    stats = ClipScore.from_pretrained(tmp_path / "clip").stats
    assert stats == PictureStats(size=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"image_mean": 3}',
        '{"image_std": [0.5, 0.5]}',
        '{"image_std": [0, 1, 1]}',
        '{"image_mean": [NaN, 0, 0]}',
    ],
)
def test_preprocessor_file_that_is_damaged_is_named(clip_folder: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip" / "preprocessor_config.json").write_text(text)
    with pytest.raises(UnsupportedModelError, match=r"preprocessor_config\.json: says not how"):
        ClipScore.from_pretrained(tmp_path / "clip")


def test_prepared_pictures_are_square_and_centred() -> None:
    stripe = torch.zeros(1, 3, 8, 24)
    stripe[..., 8:16] = 1
    torch.testing.assert_close(prepare(stripe, PictureStats(size=8)), torch.ones(1, 3, 8, 8))
    assert prepare(torch.rand(2, 3, 50, 33), PictureStats(size=16)).shape == (2, 3, 16, 16)


def test_wrong_pictures_and_prompts_are_refused(score: ClipScore) -> None:
    pictures = torch.rand(3, 3, 16, 16)
    with pytest.raises(ValueError, match="3 pictures but 1 prompts"):
        score.score(pictures, ["a"])
    with pytest.raises(ValueError, match="needs the prompts"):
        score(pictures, pictures)
    with pytest.raises(NonFiniteError):
        score.score(pictures * torch.nan, PROMPTS)
