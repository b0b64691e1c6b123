"""The one training loop: seeded by step, resumable, with a moving average of the weights.

Every random choice of a step comes from a generator seeded with (seed, step), so a run that was killed and continued
takes the same steps as one that was not. On a CPU a small network gains little from a second thread inside each
operation and nearly everything from a second half of the batch beside the first: hence `shards`.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn

from recipes.emoji_turbo.config import Stage

log = logging.getLogger(__name__)

SECONDS_BETWEEN_CHECKPOINTS = 90
STEPS_BETWEEN_LOGS = 25
WARMUP_STEPS = 60
FINAL_RATE = 0.02

StepFunction = Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, float]]]


class Averages:
    """An exponential moving average of a module's parameters, younger at the start: min(decay, (1 + n) / (10 + n))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in module.parameters()]

    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's present parameters."""
        keep = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in module.parameters()], 1 - keep)

    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the averages."""
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.data.copy_(value)


def train(
    module: nn.Module,
    stage: Stage,
    folder: Path,
    step_function: StepFunction,
    *,
    seed: int,
    parameter_groups: Sequence[dict[str, object]] | None = None,
    decay: float = 0.995,
    weight_decay: float = 1e-3,
    on_checkpoint: Callable[[int, Averages], None] | None = None,
    shards: int = 1,
) -> None:
    """Train `module` in place and leave its averaged weights in it.

    `step_function(step, generator)` returns the loss and numbers to log; with `shards` it is called that many times a
    step, side by side in threads with a generator each, and the gradients are averaged. A group's learning rate is
    `stage.learning_rate` times its "factor" (1 where absent), warmed up and then lowered along a cosine. A finished
    stage is loaded, not trained again. `on_checkpoint` is called after each file is written.
    """
    groups = list(parameter_groups or [{"params": [p for p in module.parameters() if p.requires_grad]}])
    rate = stage.learning_rate
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    averages = Averages(module, decay)
    path = folder / "checkpoint.pt"
    first = _resume(path, module, optimizer, averages)
    started = saved_at = time.monotonic()
    running: dict[str, float] = {}
    module.train()
    parameters = [p for group in groups for p in group["params"]]
    threads = ThreadPoolExecutor(shards, initializer=torch.set_num_threads, initargs=(1,)) if shards > 1 else None
    for step in range(first, stage.steps):
        rate = _rate(step, stage)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        seeds = [(seed * 1_000_003 + step) * shards + shard for shard in range(shards)]
        work = [(step_function, step, one, parameters) for one in seeds]
        results = list(threads.map(_gradients, work)) if threads else [_gradients(one) for one in work]
        for parameter, *parts in zip(parameters, *(gradients for gradients, _ in results), strict=True):
            parameter.grad = sum(parts[1:], start=parts[0]) / shards
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        averages.update(module, step)
        for name, number in results[0][1].items():
            running[name] = number if name not in running else 0.95 * running[name] + 0.05 * number
        done = step + 1
        if done % STEPS_BETWEEN_LOGS == 0 or done == stage.steps:
            left = (time.monotonic() - started) / (done - first) * (stage.steps - done)
            log.info("%s %d/%d, %s, %.1f min left", folder.name, done, stage.steps, _text(running), left / 60)
        if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS or done == stage.steps:
            _save(path, done, module, optimizer, averages)
            if on_checkpoint is not None:
                on_checkpoint(done, averages)
            saved_at = time.monotonic()
    averages.copy_to(module)
    module.eval()


def _gradients(
    work: tuple[StepFunction, int, int, Sequence[Tensor]],
) -> tuple[tuple[Tensor, ...], dict[str, float]]:
    """Return the gradients of one shard and its numbers; nothing is accumulated, so shards may share the module."""
    step_function, step, seed, parameters = work
    loss, numbers = step_function(step, torch.Generator().manual_seed(seed))
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return gradients, {"loss": float(loss.detach()), **numbers}


def _rate(step: int, stage: Stage) -> float:
    """Return the learning rate: linear warm-up, then half a cosine down to `FINAL_RATE` of the peak."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    fall = 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / stage.steps))))
    return stage.learning_rate * warm * (FINAL_RATE + (1 - FINAL_RATE) * fall)


def _resume(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, averages: Averages) -> int:
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True)
    module.load_state_dict(saved["module"])
    optimizer.load_state_dict(saved["optimizer"])
    for value, kept in zip(averages.values, saved["averages"], strict=True):
        value.copy_(kept)
    log.info("%s: continues at step %d", path.parent.name, saved["step"])
    return int(saved["step"])


def _save(path: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, averages: Averages) -> None:
    """Write the checkpoint beside the old one, then swap: a kill leaves one of the two whole."""
    state = {
        "step": step,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "averages": averages.values,
    }
    new = path.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)


def _text(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {number:.4g}" for name, number in numbers.items())
