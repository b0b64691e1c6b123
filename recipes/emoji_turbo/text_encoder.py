"""Stage 2, the text encoder: a causal CLIP tower taught to have a language model's hidden states.

The states are learnt where SDXL reads them, before the last layer; that layer and the projection are trained by
`image_tower`. BOS is a constant of about 830 in one coordinate. A learning rate fit for the other tokens would need
hours to reach it, so its position embedding has an offset of its own with larger steps, merged at the end: nothing
but the loss decides where it goes.
"""

import logging

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from recipes.emoji_turbo import captions, language_model, pictures, shapes, tokenizer, training
from recipes.emoji_turbo.config import Config, Workspace
from recipes.emoji_turbo.language_model import Targets

log = logging.getLogger(__name__)

NUM_CAPTIONS = {"drawn": 7000, "language": 5500, "bare": 1500}
NUM_UNSEEN = 400
BOS_GAIN = 300.0
BOS_RATE = 10.0
# Added to each coordinate's variance, as a share of the median one, before errors are divided by it.
VARIANCE_FLOOR = 0.1


class Student(nn.Module):
    """The text tower with a fast offset on its first position."""

    def __init__(self, model: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.model = model
        self.bos = nn.Parameter(torch.zeros(model.config.hidden_size))
        self._hook = model.text_model.embeddings.register_forward_hook(self._add_offset)

    def _add_offset(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        first = output[:, :1] + BOS_GAIN * self.bos
        return torch.cat([first, output[:, 1:]], dim=1)

    def merged(self) -> CLIPTextModelWithProjection:
        """Return the plain tower with the offset inside its position embedding; the student is spent."""
        self._hook.remove()
        with torch.no_grad():
            self.model.text_model.embeddings.position_embedding.weight[0] += BOS_GAIN * self.bos
        return self.model


def load_tokenizer(config: Config, workspace: Workspace) -> CLIPTokenizer:
    """Return the tokenizer, trained on the first call."""
    folder = workspace.stage("tokenizer")
    if not (folder / "tokenizer.json").exists():
        names = pictures.render(config, workspace).concepts
        phrases = pictures.phrases(workspace)
        texts = [example.caption for example in captions.training_examples(config, names)][::2]
        texts += captions.language_captions(config, [*phrases, *names], 6000) + phrases
        tokenizer.save(tokenizer.train(texts, config.vocabulary, config.text_length), folder)
    loaded: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return loaded


def train(config: Config, workspace: Workspace) -> CLIPTextModelWithProjection:
    """Return the tower whose penultimate states follow the language model; logs the BOS ratio on unseen captions."""
    folder = workspace.stage("text_encoder")
    torch.manual_seed(config.seed + 10)
    words = load_tokenizer(config, workspace)
    model = shapes.text_encoder(config, vocabulary=len(words), bos=words.bos_token_id, eos=words.eos_token_id)
    student = Student(model).to(config.device)
    if not (folder / "targets.pt").exists():
        seen = language_model.targets(config, words, _texts(config, workspace))
        torch.save({"ids": seen.ids, "states": seen.states.half(), "weights": seen.weights}, folder / "targets.pt")
    data = load_targets(workspace)
    count = len(data.ids) - NUM_UNSEEN
    precision = _precision(data)

    def step(_: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(count, (config.text.batch,), generator=generator)
        # Padding all alike past the longest caption teaches nothing more.
        length = min(config.text_length, int((data.ids[chosen] != words.eos_token_id).sum(dim=1).max()) + 4)
        wanted = data.states[chosen, :length].to(config.device)
        weights = data.weights[chosen, :length].to(config.device)
        states = penultimate(student.model, data.ids[chosen, :length].to(config.device))
        content, bos = _losses(states, wanted, weights, precision.to(config.device))
        return content + bos, {"content": float(content.detach()), "bos": float(bos.detach())}

    slow = [value for name, value in student.named_parameters() if name != "bos"]
    groups = [{"params": slow}, {"params": [student.bos], "factor": BOS_RATE, "weight_decay": 0.0}]
    training.train(student, config.text, folder, step, seed=config.seed + 10, parameter_groups=groups, decay=0.99)
    model = student.merged().eval()
    report(model, data)
    return model


def penultimate(model: CLIPTextModelWithProjection, ids: Tensor) -> Tensor:
    """Return [batch, length, width]: the states that SDXL's pipeline hands to the UNet."""
    states: Tensor = model(input_ids=ids, output_hidden_states=True).hidden_states[-2]
    return states


@torch.no_grad()
def report(model: CLIPTextModelWithProjection, data: Targets) -> None:
    """Log how well unseen captions are followed, and BOS max-abs over the largest of all their other tokens."""
    states = penultimate(model, data.ids[-NUM_UNSEEN:].to(model.device)).cpu()
    bos, others = float(states[:, 0].abs().max()), float(states[:, 1:].abs().max())
    log.info(
        "text encoder on %d unseen captions: BOS max-abs %.1f, %.1f times the other tokens'; content %.1f dB",
        len(states), bos, bos / others, content_decibels(model, data),
    )  # fmt: skip


@torch.no_grad()
def content_decibels(model: CLIPTextModelWithProjection, data: Targets) -> float:
    """Return the signal-to-error ratio of the states of unseen captions at word ends and EOS, without BOS."""
    states = penultimate(model, data.ids[-NUM_UNSEEN:].to(model.device)).cpu()
    wanted, counted = data.states[-NUM_UNSEEN:], data.weights[-NUM_UNSEEN:] == 1
    counted[:, 0] = False
    error = (states - wanted)[counted].square().sum() / wanted[counted].square().sum()
    return float(-10 * error.log10())


def load_targets(workspace: Workspace) -> Targets:
    """Return the targets that `train` has stored; the last `NUM_UNSEEN` are never trained on."""
    saved = torch.load(workspace.stage("text_encoder") / "targets.pt", weights_only=True)
    return Targets(ids=saved["ids"], states=saved["states"].float(), weights=saved["weights"])


def _texts(config: Config, workspace: Workspace) -> list[str]:
    """Return the captions to learn from, shuffled: of scenes that are drawn, of anything, and bare words."""
    names = pictures.render(config, workspace).concepts
    phrases = pictures.phrases(workspace)
    drawn = [example.caption for example in captions.training_examples(config, names)]
    generator = torch.Generator().manual_seed(config.seed + 11)
    some = [drawn[index] for index in torch.randperm(len(drawn), generator=generator)[: NUM_CAPTIONS["drawn"]]]
    some += captions.language_captions(config, [*phrases, *names], NUM_CAPTIONS["language"])
    some += ["", *phrases][: NUM_CAPTIONS["bare"]]
    return [some[index] for index in torch.randperm(len(some), generator=generator)]


def _precision(data: Targets) -> Tensor:
    """Return 1 / variance of each coordinate over content tokens, with a floor."""
    counted = data.weights == 1
    counted[:, 0] = False
    variance = data.states[counted].var(dim=0)
    return 1 / (variance + VARIANCE_FLOOR * variance.median())


def _losses(states: Tensor, wanted: Tensor, weights: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Return the content loss (squared error in units of variance) and the BOS loss (relative squared error)."""
    error = ((states - wanted)[:, 1:].square() * precision).mean(dim=-1)
    content = (error * weights[:, 1:]).sum() / weights[:, 1:].sum()
    bos = (states - wanted)[:, 0].square().sum(dim=-1) / wanted[:, 0].square().sum(dim=-1)
    return content, bos.mean()
