"""Training crops that are cut where the network is trained.

Processors that cut crops keep a GPU waiting. So all pictures lie in the device's memory, and a
batch of crops is two products of matrices: Pillow's resampling, with a row of weights for each row
and each column of a crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pycodec.training.data import NOISY, TURNED, CropSampler


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far)


_KERNELS: dict[Image.Resampling, tuple[float, Callable[[Tensor], Tensor]]] = {
    Image.Resampling.BOX: (0.5, torch.ones_like),
    Image.Resampling.BILINEAR: (1.0, lambda x: 1 - x.abs()),
    Image.Resampling.HAMMING: (1.0, lambda x: torch.sinc(x) * (0.54 + 0.46 * (math.pi * x).cos())),
    Image.Resampling.BICUBIC: (2.0, _bicubic),
    Image.Resampling.LANCZOS: (3.0, lambda x: torch.sinc(x) * torch.sinc(x / 3)),
}
"""Half the width of each of Pillow's filters, and its value within."""
_WIDEST = 3.0


def _bytes(values: Tensor) -> Tensor:
    """Halves up, as Pillow rounds."""
    return (values + 0.5).floor().clamp(0, 255)


class DeviceCrops:
    """Endless batches of the crops of a :class:`CropSampler`, drawn and cut on a device.

    Args:
        sampler: whose pictures are copied to the device, and whose ranges and ``finish`` hold.
        size: of the batches.
        device: where the crops are made.
    """

    def __init__(self, sampler: CropSampler, size: int, device: torch.device | str) -> None:
        self.sampler, self.size, self.device = sampler, size, torch.device(device)
        sizes = torch.tensor([(p.height, p.width) for p in sampler.pictures])
        self._sizes = sizes.to(self.device)
        self._first = (sizes.prod(1).cumsum(0) - sizes.prod(1)).to(self.device)
        pixels = np.concatenate([np.asarray(p).reshape(-1, 3) for p in sampler.pictures])
        self._pixels = torch.from_numpy(pixels).to(self.device)
        self._shares = torch.from_numpy(sampler.weights.cumsum()[:-1]).to(self.device)
        self._random = torch.Generator(self.device)
        self._random.manual_seed(int(sampler.random.integers(1 << 62)))

    def __next__(self) -> Tensor:
        """``uint8 [size, 3, crop, crop]`` on the device."""
        sampler = self.sampler
        # As multinomial() draws them, without waiting for the device.
        picture = torch.searchsorted(self._shares, self._uniform(), right=True)
        height, width = self._sizes[picture].T.double()
        least = torch.minimum(height, width)
        low = (sampler.crop / least).clamp(min=sampler.low).log()
        scale = (low + self._uniform() * (math.log(sampler.high) - low)).exp()
        side = torch.minimum(sampler.crop / scale, least)
        top, left = ((whole - side) * self._uniform() for whole in (height, width))
        filters = self._integers(len(sampler.filters))
        rgb = self.resized(picture, top, left, side, filters)
        if sampler.noise:
            deviation = self._uniform().float() * sampler.noise * (self._uniform() < NOISY)
            noise = torch.randn(rgb.shape, generator=self._random, device=self.device)
            rgb = (rgb + noise * deviation.view(-1, 1, 1, 1)).round().clamp(0, 255)
        rgb = torch.where(self._integers(2).view(-1, 1, 1, 1) == 0, rgb, rgb.flip(3))
        turns = (self._integers(4) * (self._uniform() < TURNED)).view(-1, 1, 1, 1)
        for quarter in (1, 2, 3):
            rgb = torch.where(turns < quarter, rgb, rgb.rot90(1, (2, 3)))
        return sampler.finish(rgb.to(torch.uint8))

    def close(self) -> None:
        """Nothing runs between batches."""

    def resized(
        self, picture: Tensor, top: Tensor, left: Tensor, side: Tensor, filters: Tensor
    ) -> Tensor:
        """Squares of pictures, as ``Image.resize(box=...)`` scales them.

        Args:
            picture: numbers of pictures, int64 [N].
            top, left, side: of the squares, in pixels, float64 [N].
            filters: numbers of the sampler's filters, int64 [N].

        Returns:
            float32 [N, 3, crop, crop], whole numbers of 0..255.
        """
        height, width = self._sizes[picture].T
        rows, down = self._taps(top, side, height, filters)
        columns, across = self._taps(left, side, width, filters)
        places = rows.clamp(min=0).minimum(height[:, None] - 1) * width[:, None]
        places = places[:, :, None] + columns.clamp(min=0).minimum(width[:, None] - 1)[:, None]
        window = self._pixels[places + self._first[picture].view(-1, 1, 1)]  # [N, rows, columns, 3]
        window = window.permute(0, 3, 1, 2).float()
        narrow = _bytes(window @ across.mT[:, None])  # as Pillow does between the axes
        return _bytes(down[:, None] @ narrow)

    def _taps(
        self, first: Tensor, side: Tensor, size: Tensor, filters: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Places along an axis, int64 [N, places], and each one's weights, [N, crop, places]."""
        step = side / self.sampler.crop
        stretch = step.clamp(min=1)
        crop, low = self.sampler.crop, self.sampler.low
        reach = _WIDEST * max(1, 1 / low)
        count = math.ceil(crop / low + 2 * reach) + 2
        places = (first - reach).floor().long()[:, None] + self._range(count)
        centres = first[:, None] + (self._range(crop) + 0.5) * step[:, None]
        distance = places[:, None] + 0.5 - centres[:, :, None]
        x = (distance / stretch.view(-1, 1, 1)).float()
        weights = torch.zeros_like(x)
        for number, name in enumerate(self.sampler.filters):
            support, kernel = _KERNELS[name]
            value = torch.where((x > -support) & (x <= support), kernel(x), 0.0)
            weights = torch.where((filters == number).view(-1, 1, 1), value, weights)
        inside = (places >= 0) & (places < size[:, None])
        weights *= inside[:, None]
        return places, weights / weights.sum(2, keepdim=True)

    def _range(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def _uniform(self) -> Tensor:
        """Of each crop of a batch, float64 in 0..1."""
        options = {"generator": self._random, "device": self.device, "dtype": torch.float64}
        return torch.rand(self.size, **options)

    def _integers(self, end: int) -> Tensor:
        return torch.randint(end, (self.size,), generator=self._random, device=self.device)
