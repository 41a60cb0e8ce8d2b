"""Decoders that turn the pyramid of a backbone into a saliency map: U-Net and U-Net++.

The decoder modules are those of segmentation-models-pytorch. The encoder is the classifier itself, so there are no
weights to move between a network that predicts maps and one that predicts labels.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lookhere.backbone import Backbone
from lookhere.errors import UsageError

DecoderName = Literal["unet", "unet++"]
WIDTHS = (256, 128, 64, 32, 16)


class MapDecoder(nn.Module):
    """Predicts the logits of a saliency map from a backbone's pyramid.

    Args:
        backbone: gives the number of channels of each level.
        name: U-Net, for images of any size, or U-Net++, for sides that are multiples of the coarsest reduction.

    Raises:
        UsageError: the backbone has no pyramid that halves from level to level.
    """

    def __init__(self, backbone: Backbone, name: DecoderName = "unet") -> None:
        super().__init__()
        # Importing the library takes a second, which only methods with a decoder should pay.
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
        from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder

        self.name, self.levels = name, backbone.levels
        self.reduction = self.levels[-1].reduction
        depth = self.reduction.bit_length() - 1
        channels = {level.reduction: level.channels for level in self.levels}
        if any(reduction.bit_count() != 1 for reduction in channels):
            raise UsageError(
                f"a decoder of maps needs levels that halve, got reductions {list(channels)}; take another backbone"
            )
        # A level that the backbone lacks, such as half size in a transformer of 4 x 4 patches, has no channels.
        self.channels = [channels.get(2**i, 0) for i in range(1, depth + 1)]
        kind = UnetDecoder if name == "unet" else UnetPlusPlusDecoder
        self.decoder = kind([3, *self.channels], WIDTHS[-depth:], n_blocks=depth)
        self.head = nn.Conv2d(WIDTHS[-1], 1, kernel_size=3, padding=1)
        initialize_decoder(self.decoder)
        initialize_head(self.head)

    def check_size(self, height: int, width: int) -> None:
        """Raise UsageError for images of a size that U-Net++ cannot take."""
        if self.name == "unet++" and (height % self.reduction or width % self.reduction):
            raise UsageError(
                f"unet++ needs images whose sides are multiples of {self.reduction}, got {height} x {width}; "
                'change data.size, or take the decoder "unet"'
            )

    def forward(self, image: Tensor, pyramid: tuple[Tensor, ...]) -> Tensor:
        """Return map logits ``b 1 h w`` of images ``b 3 h w``, of which only the shape is read, and their pyramid.

        Raises:
            UsageError: a size that U-Net++ cannot take.
        """
        h, w = image.shape[-2:]
        self.check_size(h, w)
        found = iter(pyramid)
        levels = [
            next(found) if width else image.new_empty(len(image), 0, -(-h // 2**i), -(-w // 2**i))
            for i, width in enumerate(self.channels, start=1)
        ]
        logits: Tensor = self.head(self.decoder([image, *levels]))
        return logits if logits.shape[-2:] == (h, w) else F.interpolate(logits, (h, w), mode="bilinear")
