"""Graphs of image patches: each node joined to those most like it, and what it takes from them.

The blocks of a Pyramid ViG (``pvig.py``; Han et al., NeurIPS 2022, arXiv 2206.00272), in plain PyTorch: the distance of
every node to every other is one matrix product, so that no library for sparse graphs is needed.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lookhere.losses import wide

Positions = Literal["pooled", "released"]
NEIGHBOURS = 9


class Block(nn.Module):
    """Exchange between the nodes of a graph, then within each node."""

    def __init__(self, channels: int, dilation: int, ratio: int) -> None:
        super().__init__()
        self.grapher = Grapher(channels, dilation, ratio)
        self.ffn = nn.Sequential(
            *convolution(channels, 4 * channels, 1), nn.GELU(), *convolution(4 * channels, channels, 1)
        )

    def forward(self, x: Tensor, relative: Tensor) -> Tensor:
        """Return nodes ``b c h w`` of nodes and their relative positions ``n m``."""
        x = self.grapher(x, relative)
        return x + self.ffn(x)


class Grapher(nn.Module):
    """Max-relative graph convolution on a graph that is drawn anew from the features."""

    def __init__(self, channels: int, dilation: int, ratio: int) -> None:
        super().__init__()
        self.dilation, self.ratio = dilation, ratio
        self.fc1 = nn.Sequential(*convolution(channels, channels, 1))
        self.merge = nn.Sequential(*convolution(2 * channels, 2 * channels, 1, groups=4), nn.GELU())
        self.fc2 = nn.Sequential(*convolution(2 * channels, channels, 1))

    def forward(self, x: Tensor, relative: Tensor) -> Tensor:
        """Return nodes ``b c h w`` of nodes and their relative positions ``n m``."""
        y = self.fc1(x)
        nodes = y.flatten(2)
        others = nodes if self.ratio == 1 else F.avg_pool2d(y, self.ratio).flatten(2)
        neighbours = dilated_neighbours(nodes, others, relative, NEIGHBOURS, self.dilation)
        # Side by side, so that each group of the convolution sees a channel together with its difference.
        both = torch.stack([nodes, max_relative(nodes, others, neighbours)], dim=2).flatten(1, 2)
        return x + self.fc2(self.merge(both.unflatten(2, y.shape[-2:])))


@torch.no_grad()
def dilated_neighbours(
    nodes: Float[Tensor, "b c n"],
    others: Float[Tensor, "b c m"],
    relative: Float[Tensor, "n m"],
    k: int = NEIGHBOURS,
    dilation: int = 1,
) -> Int[Tensor, "b n k"]:
    """Return for each node every ``dilation``-th of its ``k * dilation`` nearest others, ascending; no gradient.

    Args:
        nodes, others: features, compared by the squared distance of their directions.
        relative: what is added to the distance of a node and another.
        k, dilation: where there are fewer others, first the dilation and then ``k`` is lowered to what there is.
    """
    k = min(k, others.shape[-1])
    dilation = min(dilation, others.shape[-1] // k)
    with torch.autocast(nodes.device.type, enabled=False):  # half precision would make ties of near neighbours
        a, b = (F.normalize(wide(features), dim=1) for features in (nodes, others))
        # The node's own squared length is the same for all of its candidates.
        distance = b.square().sum(1, keepdim=True) - 2 * a.transpose(1, 2) @ b + relative.to(a)
    return distance.topk(k * dilation, largest=False).indices[..., ::dilation]


def max_relative(
    nodes: Float[Tensor, "b c n"], others: Float[Tensor, "b c m"], neighbours: Int[Tensor, "b n k"]
) -> Float[Tensor, "b c n"]:
    """Return the largest difference of a node's neighbours from it, channel by channel."""
    sample = torch.arange(len(nodes), device=nodes.device).view(-1, 1, 1)
    found = others.transpose(1, 2)[sample, neighbours]  # b n k c
    return found.max(2).values.transpose(1, 2) - nodes


def relative_positions(
    channels: int, h: int, w: int, ratio: int = 1, positions: Positions = "pooled"
) -> Float[Tensor, "n m"]:
    """Return -2 e_i . e_j / c of the sin-cos encodings of ``n = h * w`` nodes and ``m = n / ratio**2`` pooled cells.

    Args:
        channels: length c of an encoding, half of it for rows and half for columns; the term lies in [-1, 1].
        h, w: the grid; node ``y * w + x``.
        ratio: side of a pooled cell in nodes.
        positions: ``pooled`` averages over a cell's nodes, as its features are averaged. ``released`` resizes the
            matrix along the flattened nodes, bicubic, as the released code does: the cells of a row then lie on single
            nodes of different rows and unrelated columns. They are the same where nothing is pooled.
    """
    if positions == "released" and ratio > 1:
        whole = relative_positions(channels, h, w)
        return F.interpolate(whole[None, None], size=(h * w, h * w // ratio**2), mode="bicubic")[0, 0]
    frequency = 10_000 ** -torch.linspace(0, 1, channels // 4 + 1, dtype=torch.float64)[:-1]

    def similarity(side: int) -> Tensor:
        place = torch.arange(side, dtype=torch.float64)
        # sin a sin b + cos a cos b = cos(a - b)
        alike = torch.cos((place[:, None] - place)[..., None] * frequency).mean(-1)
        return alike.view(side, side // ratio, ratio).mean(-1)

    rows, columns = similarity(h), similarity(w)
    return -(rows[:, None, :, None] + columns[None, :, None, :]).reshape(h * w, -1).float() / 2


def convolution(
    before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return a convolution that keeps the size (over ``stride``), and its batch norm."""
    layer = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, groups=groups)
    return layer, nn.BatchNorm2d(after)
