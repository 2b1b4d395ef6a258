"""CompressAI's models with pycodec's entropy coding.

    model = compressai.zoo.mbt2018(quality=3, pretrained=True).eval()
    fast = pycodec.integrations.compressai.accelerate(model, calibrate=pictures)
    fast.decompress(**fast.compress(x))["x_hat"]

``docs/integrations.md`` says what is the same and what is not. This module does not import
CompressAI: it takes any model whose parts have its names.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pycodec.coding import compressai_ans
from pycodec.errors import CodecError, CorruptStreamError, InputError, UnsupportedError
from pycodec.images import load_image
from pycodec.models.hyperprior import (
    LATENT_BITS,
    HyperpriorEntropyModel,
    export_entropy_model,
    hyperlatents,
)
from pycodec.models.hyperprior_codec import save_hyperprior_model
from pycodec.models.hyperprior_network import load_checkpoint

STRIDE = 64
"""Pixels along a hyperlatent."""

CALIBRATION_SIZE = 256
MAX_CALIBRATION_PICTURES = 16

Pictures = Iterable["np.ndarray | Tensor"]


def accelerate(
    model: nn.Module,
    calibrate: Pictures | None = None,
    *,
    exact: bool = False,
    threads: int | None = None,
) -> AcceleratedModel | ExactModel:
    """The model with the same ``compress``, ``decompress`` and ``state_dict``, and other streams.

    Hyper-synthesis, context and entropy parameters run as integer networks, contexts wave by wave;
    the transforms stay those of ``model``, which is shared, not copied.

    Args:
        model: a trained ``FactorizedPrior``, ``ScaleHyperprior``, ``MeanScaleHyperprior``,
            ``JointAutoregressiveHierarchicalPriors``, ``Cheng2020Anchor``,
            ``Cheng2020Attention``, ``Cheng2020AnchorCheckerboard``, ``Elic2022Official`` or
            ``Elic2022Chandelier``, or what has the same parts.
        calibrate: some pictures like those to come, uint8 [H, W, 3] or float [3, H, W] in 0..1: the
            ranges of integer activations are chosen by up to 16 of them. None for made ones, which
            will do. Encoder and decoder need the same.
        exact: keep CompressAI's own streams, byte for byte, of models without a context; only the
            coder is replaced. The networks then run in floating point, as CompressAI's do.
        threads: of the CPU; None for as many as torch uses.

    Raises:
        UnsupportedError: the model is of another kind, or has a context and ``exact`` is asked for.
        InputError: an argument cannot be used.
    """
    has_latent_codec = isinstance(getattr(model, "latent_codec", None), nn.Module)
    for part in ("g_a", "g_s", "latent_codec" if has_latent_codec else "entropy_bottleneck"):
        if not isinstance(getattr(model, part, None), nn.Module):
            raise UnsupportedError(f"{type(model).__name__} has no {part}: no such model is known")
    if hasattr(model, "Gain"):
        raise UnsupportedError(f"{type(model).__name__} has gains: no such model is known")
    if exact:
        return ExactModel(model, threads)
    return AcceleratedModel(model, _calibration_batch(calibrate), threads)


class _Wrapped(nn.Module):
    """What has a model's transforms and parameters, under its names."""

    def __init__(self, model: nn.Module, threads: int | None) -> None:
        super().__init__()
        if threads is not None and not 1 <= threads <= 1024:
            raise InputError(f"threads must be 1 to 1024, not {threads!r}")
        # Not a child: the names of its parameters are to be those of the model itself.
        object.__setattr__(self, "model", model)
        self.threads = threads
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Any]:
        """The model's own, for training or estimates of rate."""
        return self.model(x)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The model's own."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Refused: what is coded with was made from the weights of before."""
        raise InputError("load the weights into the model first, then call accelerate again")

    @property
    def device(self) -> torch.device:
        """Of the transforms."""
        return next(self.model.g_a.parameters()).device

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def _picture_batch(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != 3 or not x.numel():
            raise InputError("compress takes a float tensor [N, 3, H, W] in 0..1")
        return x

    @torch.no_grad()
    def _reconstruct(self, latents: Tensor) -> dict[str, Tensor]:
        return {"x_hat": self.model.g_s(latents.to(self.device)).clamp_(0, 1)}


class AcceleratedModel(_Wrapped):
    """What :func:`accelerate` makes; streams decode on every machine to the same latents.

    Args:
        model, threads: as there.
        pictures: float [B, 3, H, W], H and W multiples of 64.
    """

    def __init__(self, model: nn.Module, pictures: Tensor, threads: int | None = None) -> None:
        super().__init__(model, threads)
        training, device = model.training, self.device
        try:
            tensors = export_entropy_model(model.cpu().eval(), pictures)
        finally:
            model.to(device).train(training)
        self.entropy_model = HyperpriorEntropyModel(tensors)

    @torch.no_grad()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """As CompressAI's: ``strings``, a list of streams for each kind of latents; ``shape``.

        All latents of a picture are in one stream, also of models with groups of channels or a
        checkerboard, for which CompressAI has one for each step. Models built of latent codecs have
        ``shape`` for each of them, and ``y_hat``, the latents as decoded.

        Args:
            x: float [N, 3, H, W] in 0..1, H and W multiples of 64 (16 without a hyperprior).

        Raises:
            InputError: x cannot be used.
        """
        y = self.model.g_a(self._picture_batch(x).to(self.device))
        z = None
        if self.entropy_model.has_hyperprior:
            z = hyperlatents(self.model, y, abs_latents=not self.entropy_model.has_means)
        coded = [
            self.entropy_model.encode(y[i], None if z is None else z[i], self._threads)
            for i in range(len(y))
        ]
        strings = [list(kind) for kind in zip(*(c.streams for c in coded), strict=True)]
        shape = (y if z is None else z).shape[-2:]
        if not hasattr(self.model, "latent_codec"):
            return {"strings": strings, "shape": shape}
        y_hat = _float_latents([c.latents for c in coded]).to(self.device)
        shapes = {"y": _shape_of(self.model.latent_codec.y, y.shape[1:]), "hyper": shape}
        return {"strings": strings, "shape": shapes, "y_hat": y_hat}

    @torch.no_grad()
    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: Sequence[int] | Mapping[str, Any],
        y_hat: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``x_hat``, float [N, 3, H, W] in 0..1, of what :meth:`compress` returned.

        Args:
            strings, shape: as they were.
            y_hat: not looked at.

        Raises:
            CorruptStreamError: a stream is damaged.
            InputError: an argument is not what :meth:`compress` returns.
        """
        if hasattr(self.model, "latent_codec"):
            if not isinstance(shape, Mapping) or "hyper" not in shape:
                raise InputError(f"shape must have those of all latent codecs, not {shape!r}")
            shape = shape["hyper"]
        _check_results(strings, shape, 1 + self.entropy_model.has_hyperprior)
        height, width = shape
        latents = [
            self.entropy_model.decode(streams, height, width, self._threads)
            for streams in zip(*strings, strict=True)
        ]
        return self._reconstruct(_float_latents(latents))


class ExactModel(_Wrapped):
    """CompressAI's own streams, of a model without a context, through pycodec's coder."""

    def __init__(self, model: nn.Module, threads: int | None = None) -> None:
        super().__init__(model, threads)
        if hasattr(model, "context_prediction") or hasattr(model, "latent_codec"):
            raise UnsupportedError(
                "streams of models with a context are not reproducible in floating point, not even "
                "by CompressAI on another machine: leave out exact (docs/integrations.md)"
            )
        self._bottleneck = _cdf_tables(model.entropy_bottleneck)
        self._conditional = None
        if getattr(model, "h_s", None) is not None:
            self._conditional = _cdf_tables(model.gaussian_conditional)

    @torch.no_grad()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """Byte for byte what the model's own ``compress`` returns."""
        y = self.model.g_a(self._picture_batch(x).to(self.device))
        if self._conditional is None:
            strings, _ = self._encode_bottom(y)
            return {"strings": [strings], "shape": y.shape[-2:]}
        z = hyperlatents(self.model, y, abs_latents=self._has_scales_alone(y.shape[1]))
        bottom, z_hat = self._encode_bottom(z)
        indexes, means = self._gaussians(z_hat, y.shape[1])
        symbols = torch.round(y if means is None else y - means).int().cpu()
        encoder = compressai_ans.RansEncoder()
        strings = [
            encoder.encode_with_indexes(s.numpy(), i.numpy(), self._conditional)
            for s, i in zip(symbols, indexes, strict=True)
        ]
        return {"strings": [strings, bottom], "shape": z.shape[-2:]}

    @torch.no_grad()
    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict:
        """What the model's own ``decompress`` returns.

        Raises:
            CorruptStreamError: a stream is damaged.
            InputError: an argument is not what :meth:`compress` returns.
        """
        _check_results(strings, shape, 1 if self._conditional is None else 2)
        bottom = self._decode_bottom(strings[-1], shape)
        if self._conditional is None:
            return self._reconstruct(bottom)
        indexes, means = self._gaussians(bottom.to(self.device), self._latent_channels)
        decoder = compressai_ans.RansDecoder()
        symbols = [
            decoder.decode_with_indexes(stream, index.numpy(), self._conditional)
            for stream, index in zip(strings[0], indexes, strict=True)
        ]
        latents = torch.from_numpy(np.stack(symbols)).float().to(self.device)
        return self._reconstruct(latents if means is None else latents + means)

    @property
    def _latent_channels(self) -> int:
        return next(self.model.g_s.parameters()).shape[0]  # of a transposed convolution

    def _has_scales_alone(self, channels: int) -> bool:
        last = [m for m in self.model.h_s.modules() if isinstance(m, nn.Conv2d)][-1]
        return last.out_channels == channels

    def _gaussians(self, z_hat: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
        parameters = self.model.h_s(z_hat)
        scales, means = parameters, None
        if parameters.shape[1] == 2 * channels:
            scales, means = parameters.chunk(2, 1)
        return self.model.gaussian_conditional.build_indexes(scales).int().cpu().contiguous(), means

    @property
    def _medians(self) -> Tensor:
        return self.model.entropy_bottleneck.quantiles[:, :, 1:2].detach()  # [C, 1, 1]

    def _indexes(self, height: int, width: int) -> np.ndarray:
        index = np.arange(len(self._bottleneck), dtype=np.int32)[:, None, None]
        return np.ascontiguousarray(np.broadcast_to(index, (len(index), height, width)))

    def _encode_bottom(self, latents: Tensor) -> tuple[list[bytes], Tensor]:
        symbols = torch.round(latents - self._medians).int()
        indexes = self._indexes(*latents.shape[2:])
        encoder = compressai_ans.RansEncoder()
        strings = [
            encoder.encode_with_indexes(s.numpy(), indexes, self._bottleneck)
            for s in symbols.cpu().contiguous()
        ]
        return strings, symbols.type_as(latents) + self._medians

    def _decode_bottom(self, strings: Sequence[bytes], shape: Sequence[int]) -> Tensor:
        indexes = self._indexes(*shape)
        decoder = compressai_ans.RansDecoder()
        symbols = [decoder.decode_with_indexes(s, indexes, self._bottleneck) for s in strings]
        return torch.from_numpy(np.stack(symbols)).float().to(self.device) + self._medians


def convert_checkpoint(
    architecture: str, checkpoint: Path, folder: Path, pictures: Pictures | None = None
) -> None:
    """Make a model folder for ``pycodec encode --model`` from a CompressAI checkpoint.

    Args:
        architecture: CompressAI's name of the model, one of
            ``pycodec.models.hyperprior_network.ARCHITECTURES``.
        checkpoint: a state dict as ``torch.save`` writes it, or CompressAI's training checkpoint
            around one. Nothing in it is executed.
        folder: for ``model.safetensors`` and ``model.json``.
        pictures: as ``calibrate`` of :func:`accelerate`.

    Raises:
        InputError: the checkpoint cannot be read, or is none of this architecture.
        UnsupportedError: its numbers cannot be represented in integers.
    """
    try:
        state = torch.load(io.BytesIO(checkpoint.read_bytes()), "cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {checkpoint}: {error}") from error
    except Exception as error:  # on other files torch raises whatever it stumbles on
        raise InputError(
            f"cannot read the checkpoint {checkpoint}: damaged, or not of PyTorch"
        ) from error
    for key in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{checkpoint} holds no state dict")
    network = load_checkpoint(architecture, state)
    tensors = export_entropy_model(network, _calibration_batch(pictures))
    save_hyperprior_model(folder, network, tensors)


def read_pictures(folder: Path) -> list[np.ndarray]:
    """Up to 16 pictures of a folder, evenly spread over their names.

    Raises:
        InputError: there is none.
    """
    pictures = []
    files = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    for file in files[:: max(1, len(files) // MAX_CALIBRATION_PICTURES)]:
        try:
            pixels = load_image(file).pixels
        except CodecError:
            continue  # a folder may hold other things
        pictures.append(np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels)
        if len(pictures) == MAX_CALIBRATION_PICTURES:
            break
    if not pictures:
        raise InputError(f"no pictures in {folder}")
    return pictures


def _calibration_batch(pictures: Pictures | None) -> Tensor:
    """Float [B, 3, 256, 256]: the middle of each picture."""
    if pictures is None:
        return _made_pictures()
    batch = []
    for picture in pictures:
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise InputError("calibration pictures must be uint8 [H, W, 3]")
            x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
        else:
            x = picture.detach().cpu().float()
            x = x[0] if x.dim() == 4 and len(x) == 1 else x
        if x.dim() != 3 or x.shape[0] != 3 or not x.numel():
            raise InputError("calibration pictures must be float [3, H, W]")
        top, left = (max(0, (size - CALIBRATION_SIZE) // 2) for size in x.shape[1:])
        x = x[:, top : top + CALIBRATION_SIZE, left : left + CALIBRATION_SIZE]
        missing = [CALIBRATION_SIZE - size for size in x.shape[1:]]
        batch.append(F.pad(x[None], (0, missing[1], 0, missing[0]), mode="replicate"))
        if len(batch) == MAX_CALIBRATION_PICTURES:
            break
    if not batch:
        raise InputError("there are no calibration pictures")
    return torch.cat(batch)


def _made_pictures() -> Tensor:
    """Noise of every fineness, soft and in flat pieces, the same on every machine."""
    random = np.random.default_rng(7)
    batch = np.zeros((8, 3, CALIBRATION_SIZE, CALIBRATION_SIZE))
    for octave in range(9):
        size = 1 << octave
        noise = random.standard_normal((8, 1, size, size)) + 0.4 * random.standard_normal(
            (8, 3, size, size)
        )
        repeat = CALIBRATION_SIZE // size
        batch += noise.repeat(repeat, 2).repeat(repeat, 3) * 0.2 * 2.0 ** (-0.5 * octave)
    soft = F.avg_pool2d(torch.from_numpy(batch[:4]), 5, stride=1, padding=2)
    return (torch.cat([soft, torch.from_numpy(batch[4:])]) + 0.5).clamp(0, 1).float()


def _cdf_tables(entropy_model: nn.Module) -> compressai_ans.CdfTables:
    if not entropy_model._quantized_cdf.numel():
        raise InputError("the model has no tables yet: call its update() first")
    arrays = (entropy_model._quantized_cdf, entropy_model._cdf_length, entropy_model._offset)
    return compressai_ans.CdfTables(*(a.cpu().numpy() for a in arrays))


def _float_latents(latents: Sequence[Tensor]) -> Tensor:
    """Fixed point [H, W, M] of each picture to float [N, M, H, W]."""
    return torch.stack([one.permute(2, 0, 1) for one in latents]).float() / (1 << LATENT_BITS)


def _shape_of(codec: nn.Module, shape: torch.Size) -> Any:
    """Of latents [M, H, W], as CompressAI's latent codecs have it in their results."""
    if hasattr(codec, "channel_context"):
        sizes = enumerate(codec.groups)
        return [
            _shape_of(codec.latent_codec[f"y{k}"], torch.Size((size, *shape[1:])))
            for k, size in sizes
        ]
    return shape if hasattr(codec, "anchor_parity") else shape[1:]


def _check_results(strings: Any, shape: Any, kinds: int) -> None:
    """Of ``compress``."""
    if not isinstance(strings, (list, tuple)) or len(strings) != kinds:
        raise InputError(f"strings must be {kinds} lists of streams")
    if any(not isinstance(kind, (list, tuple)) or not kind for kind in strings):
        raise InputError(f"strings must be {kinds} lists of streams")
    if len({len(kind) for kind in strings}) != 1:
        raise CorruptStreamError("there must be as many streams of each kind")
    if len(shape) != 2 or not all(0 < int(size) < 1 << 16 for size in shape):
        raise InputError(f"shape must be two positive numbers, not {shape!r}")
