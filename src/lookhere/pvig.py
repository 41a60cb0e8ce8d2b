"""Pyramid ViG: an image as a graph of patches, each joined to those most like it (Han et al., NeurIPS 2022).

Written in plain PyTorch from arXiv 2206.00272, with timm's interface, so that every method can train on it. GazeGNN's
one addition to it is an optional map of gaze, which joins the patches' features (``methods/gaze_gnn.py``)::

    node = patch embedding + position embedding + batch norm of the gaze at that patch, in every channel
    x = x + fc2(merge([y, max over neighbours j of (y_j - y)])),  y = fc1(x)
    x = x + FFN(x)

The neighbours of a node are every d-th of its 9 d nearest nodes. Near are features of a like direction and, by a fixed
term, of a like position; in the two finest stages the neighbours are cells of an average-pooled map.

The head is pooling, a layer of 1024 units and the classifier. Between the pooled map and the logits there is thus more
than one linear layer, and class activation maps are not defined.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lookhere.errors import UsageError
from lookhere.graph import Block, Positions, convolution, relative_positions
from lookhere.map_losses import min_max

SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "pvig_ti": ((48, 96, 240, 384), (2, 2, 6, 2)),
    "pvig_s": ((80, 160, 400, 640), (2, 2, 6, 2)),
    "pvig_m": ((96, 192, 384, 768), (2, 2, 16, 2)),
    "pvig_b": ((128, 256, 512, 1024), (2, 2, 18, 2)),
}
"""Channels and blocks of the four stages."""
NETWORKS = (*SIZES, *(f"{size}.released" for size in SIZES))
"""Names that ``create_pvig`` takes."""
POOLING = (4, 2, 1, 1)
MAX_DILATION = 5
REDUCTION = 32
HEAD = 1024


def create_pvig(name: str, classes: int, size: int) -> PViG:
    """Return a network by its name, with random weights, for images of ``size`` pixels.

    Raises:
        UsageError: a size that is not a multiple of 32.
    """
    kind, _, released = name.partition(".")
    return PViG(*SIZES[kind], classes, size, "released" if released else "pooled")


class PViG(nn.Module):
    """A Pyramid ViG classifier.

    Args:
        channels, depths: of the four stages, whose sides are 1/4, 1/8, 1/16 and 1/32 of the image's.
        classes: number of classes.
        size: side of the images that the position embedding is made for; other sizes get it resized.
        positions: where the cells of a pooled map lie: in their middle, or where the released code takes them to be.
            Weights that were trained with the released code need the latter; see ``relative_positions``.

    Raises:
        UsageError: a size that is not a multiple of 32.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        classes: int = 1000,
        size: int = 224,
        positions: Positions = "pooled",
    ) -> None:
        super().__init__()
        _check_size(size, size)
        self.positions = positions
        first, side = channels[0], size // 4
        self.stem = nn.Sequential(
            *convolution(3, first // 2, 3, stride=2),
            nn.GELU(),
            *convolution(first // 2, first, 3, stride=2),
            nn.GELU(),
            *convolution(first, first, 3),
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, first, side, side))
        self.gaze_norm = nn.BatchNorm2d(1)
        self.stages = nn.ModuleList()
        dilations = iter(min(block // 4 + 1, MAX_DILATION) for block in range(sum(depths)))
        for i, (width, depth, ratio) in enumerate(zip(channels, depths, POOLING, strict=True)):
            before = channels[i - 1] if i else None
            self.stages.append(_Stage(before, width, list(islice(dilations, depth)), ratio, side // 2**i, positions))
        self.head = nn.Sequential(*convolution(channels[-1], HEAD, 1), nn.GELU())
        self.classifier = nn.Linear(HEAD, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.num_features = channels[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, width in enumerate(channels)
        ]
        self.pretrained_cfg: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    def forward(self, images: Tensor, gaze: Tensor | None = None, has_gaze: Tensor | None = None) -> Tensor:
        """Return logits ``b k``; arguments as of ``forward_intermediates``."""
        return self.forward_head(self.forward_features(images, gaze, has_gaze))

    def forward_features(self, images: Tensor, gaze: Tensor | None = None, has_gaze: Tensor | None = None) -> Tensor:
        """Return the last stage's features, ``b c h/32 w/32``; arguments as of ``forward_intermediates``."""
        return self.forward_intermediates(images, gaze, has_gaze)[0]

    def forward_intermediates(
        self, images: Tensor, gaze: Tensor | None = None, has_gaze: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the last stage's features and those of all stages, from fine to coarse.

        Args:
            images: ``b 3 h w``, sides multiples of 32.
            gaze: ``b 1 h w`` in [0, 1], where people look; none for no gaze embedding.
            has_gaze: ``b`` bool, the samples that get a gaze embedding, and alone count in its batch norm; all by
                default.

        Raises:
            UsageError: another size of images.
        """
        _check_size(*images.shape[-2:])
        x = self.stem(images)
        x = x + _resize(self.pos_embed, x.shape[-2:])
        if gaze is not None:
            shown = torch.arange(len(x), device=x.device) if has_gaze is None else has_gaze.nonzero().squeeze(1)
            if len(shown):
                embedding = self.gaze_norm(gaze_patches(gaze[shown]).to(x))
                x = x.index_add(0, shown, embedding.to(x).expand(-1, x.shape[1], -1, -1))
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return x, levels

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits ``b k`` of the last stage's features, or the ``b 1024`` that the classifier sees."""
        embedding: Tensor = self.head(x.mean((2, 3), keepdim=True)).flatten(1)
        return embedding if pre_logits else self.classifier(embedding)

    def get_classifier(self) -> nn.Linear:
        """Return the last layer."""
        return self.classifier

    def load_pretrained(self, weights: Mapping[str, Tensor]) -> None:
        """Take over all weights but the classifier's, from a network of this kind or from a released checkpoint.

        Args:
            weights: by this module's names, or by those of the released Pyramid ViG or GazeGNN. The position embedding
                is resized; a gaze embedding need not be there.

        Raises:
            ValueError: a released checkpoint for a network that places pooled cells elsewhere.
            KeyError: weights that are lacking or unknown.
            RuntimeError: weights of another shape.
        """
        if self.positions == "pooled" and any(name.endswith(".relative_pos") for name in weights):
            raise ValueError("a checkpoint of the released code, whose name here ends in .released: pvig_ti.released")
        blocks = [
            f"stages.{i}.{part}."
            for i, stage in enumerate(self.stages)
            for part in (*(["down"] if i else []), *(f"blocks.{j}" for j in range(len(stage.blocks))))  # type: ignore[arg-type]
        ]
        found = {_rename(name, blocks): value for name, value in weights.items()}
        found = {name: value for name, value in found.items() if not name.startswith(("classifier.", "fixed."))}
        if "pos_embed" in found:
            found["pos_embed"] = _resize(found["pos_embed"], self.pos_embed.shape[-2:])
        missing, unknown = self.load_state_dict(found, strict=False)
        missing = [name for name in missing if not name.startswith(("classifier.", "gaze_norm."))]
        if missing or unknown:
            raise KeyError(
                f"it lacks {len(missing)} weights and has {len(unknown)} others, such as {[*missing, *unknown][0]}"
            )


class _Stage(nn.Module):
    """Blocks on one grid of nodes, with the convolution that halves the grid of the stage before."""

    def __init__(
        self, before: int | None, channels: int, dilations: list[int], ratio: int, side: int, positions: Positions
    ) -> None:
        super().__init__()
        self.down = nn.Sequential(*convolution(before, channels, 3, stride=2)) if before else nn.Identity()
        self.blocks = nn.ModuleList(Block(channels, dilation, ratio) for dilation in dilations)
        self.channels, self.ratio, self.grid, self.positions = channels, ratio, (side, side), positions
        self.register_buffer("relative", self._relative(self.grid), persistent=False)
        self.relative: Tensor

    def _relative(self, grid: tuple[int, int]) -> Tensor:
        return relative_positions(self.channels, *grid, self.ratio, self.positions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        grid = (x.shape[-2], x.shape[-1])
        relative = self.relative if grid == self.grid else self._relative(grid).to(x.device)
        for block in self.blocks:
            x = block(x, relative)
        return x


def gaze_patches(gaze: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 i j"]:
    """Return how much each patch was looked at, in [0, 1]: ``b 1 h w`` -> ``b 1 h/4 w/4``.

    Patch (i, j) is the sum over rows [4i - 7, 4i + 7) and columns [4j - 7, 4j + 7), as far as they lie in the image;
    each sample's patches are then stretched to [0, 1]. A constant map gives 0.
    """
    h, w = gaze.shape[-2] // 4, gaze.shape[-1] // 4
    # Stretched first, as a window at the border holds less of the image and would mark the middle of a constant map.
    sums = 14 * 14 * F.avg_pool2d(min_max(gaze), kernel_size=14, stride=4, padding=7)
    return min_max(sums[..., :h, :w])


def _resize(embedding: Tensor, size: torch.Size) -> Tensor:
    if embedding.shape[-2:] == size:
        return embedding
    return F.interpolate(embedding, size=tuple(size), mode="bicubic", antialias=True)


def _check_size(h: int, w: int) -> None:
    if h % REDUCTION or w % REDUCTION:
        raise UsageError(
            f"pvig networks take images whose sides are multiples of {REDUCTION}, got {h} x {w}; change data.size"
        )


def _rename(name: str, blocks: list[str]) -> str:
    """Return this module's name of a weight of the released code; other names are left as they are."""
    if name.endswith(".relative_pos"):
        return f"fixed.{name}"
    name = re.sub(r"^backbone\.(\d+)\.(?:conv\.)?", lambda match: blocks[int(match[1])], name)
    for released, ours in RELEASED_NAMES:
        name = re.sub(released, ours, name)
    return name


RELEASED_NAMES = (
    (r"^stem\.convs\.", "stem."),
    (r"^b1\.", "gaze_norm."),
    (r"^prediction\.4\.", "classifier."),
    (r"^prediction\.", "head."),
    (r"(blocks\.\d+)\.0\.graph_conv\.gconv\.nn\.", r"\1.grapher.merge."),
    (r"(blocks\.\d+)\.0\.", r"\1.grapher."),
    (r"(blocks\.\d+)\.1\.fc1\.", r"\1.ffn."),
    (r"(blocks\.\d+)\.1\.fc2\.0\.", r"\1.ffn.3."),
    (r"(blocks\.\d+)\.1\.fc2\.1\.", r"\1.ffn.4."),
)
"""Patterns of the names in released checkpoints, once their blocks are numbered by stage."""
