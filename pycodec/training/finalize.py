"""From a trained network to a model folder: export, probability tables, dead zones.

Both tables and dead zones are fitted to what the exported integer network does on pictures that it
was trained on; never on those it is measured on.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pycodec.coding.tables import TableSet, quantize_pmf
from pycodec.models.photo import PhotoCodec, load_photo_model, save_photo_model
from pycodec.models.photo_network import PhotoNetwork, quality_lambda
from pycodec.models.sphere import SphereCodec
from pycodec.ops.quadtree_stage import LOG2_SCALE_MIN, LOG2_UNITS, SCALE_LEVELS
from pycodec.quantization.export import export_entropy_model

Coder = PhotoCodec | SphereCodec
Error = Callable[[np.ndarray, np.ndarray], float]

log = logging.getLogger(__name__)

PRECISION = 12
FIT_QUALITIES = (5.0, 20.0, 35.0, 50.0, 65.0, 80.0, 95.0)
PRIOR_COUNT = 200.0
"""Weight of the Gaussian in each table, in symbols: it decides where little was seen."""

CERTAIN = 2.0**-11
"""A level whose symbols are 0 but for this share is not coded: they are all made 0."""


def _gaussian(level: int, reach: int) -> np.ndarray:
    """Probabilities of -reach..reach at a scale level."""
    scale = 2.0 ** ((LOG2_SCALE_MIN + 16 * level) / LOG2_UNITS)
    edges = (np.arange(-reach, reach + 2) - 0.5) / (scale * math.sqrt(2))
    # Differences of erfc on the negative side keep their digits far out in the tails.
    lower = np.array([math.erfc(-e) if e < 0 else 2 - math.erfc(e) for e in edges])
    upper = np.array([math.erfc(e) if e > 0 else 2 - math.erfc(-e) for e in edges])
    return 0.5 * np.where(edges[:-1] >= 0, upper[:-1] - upper[1:], lower[1:] - lower[:-1])


def fit_tables(histograms: np.ndarray, certain: np.ndarray) -> TableSet:
    """Tables from counts.

    Args:
        histograms: int64 [tables, 2 reach + 1], counts of the symbols -reach..reach.
        certain: bool [tables], whose only value is to be 0.
    """
    frequencies, offsets, escapes = [], [], []
    reach = histograms.shape[1] // 2
    for table, counts in enumerate(histograms):
        if certain[table]:
            frequencies.append(np.array([1 << PRECISION], np.uint32))
            offsets.append(0)
            escapes.append(False)
            continue
        # Both signs are equally likely: residuals are centred on their predicted means.
        counts = 0.5 * (counts + counts[::-1])
        pmf = counts + PRIOR_COUNT * _gaussian(table % SCALE_LEVELS, reach)
        pmf /= pmf.sum()
        tails = np.cumsum(pmf[::-1])[::-1][reach + 1 :]  # P(symbol > k), k = 0, 1, ...
        rare = np.append(tails < 2.0 ** -(PRECISION + 1), True)
        k = max(1, int(rare.argmax()))
        inner = pmf[reach - k : reach + k + 1]
        frequencies.append(quantize_pmf(np.append(inner, 1 - inner.sum()).clip(min=0), PRECISION))
        offsets.append(-k)
        escapes.append(True)
    return TableSet(frequencies, offsets, PRECISION, escapes)


def _histograms(codec: Coder, pictures: list[np.ndarray], reach: int = 500) -> np.ndarray:
    """Counts of the symbols of ``pictures`` at all ``FIT_QUALITIES``, by table."""
    counts = np.zeros((2 * SCALE_LEVELS, 2 * reach + 1), np.int64)
    for quality in FIT_QUALITIES:
        for picture in pictures:
            coded = codec.compress(picture, quality, keep_symbols=True)
            for symbols, indexes in zip(coded.symbols, coded.indexes, strict=True):
                clipped = symbols.clip(-reach, reach).astype(np.int64) + reach
                flat = indexes.astype(np.int64) * counts.shape[1] + clipped
                counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
    return counts


def _cost(codec: Coder, pictures: list[np.ndarray], error: Error) -> float:
    """Mean over qualities of the logarithm of bpp + lambda 255^2 MSE: 0.01 is about 1 %."""
    total = 0.0
    for quality in FIT_QUALITIES:
        multiplier = float(quality_lambda(torch.tensor(quality)))
        loss = 0.0
        for picture in pictures:
            height, width, _ = picture.shape
            coded = codec.compress(picture, quality)
            decoded = codec.decompress(coded.streams, width, height, coded.quality_code)
            bpp = 8 * sum(map(len, coded.streams)) / (height * width)
            loss += bpp + multiplier * error(picture, decoded)
        total += math.log(loss)
    return total / len(FIT_QUALITIES)


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error of uint8 [H, W, C]."""
    return float(np.square(a.astype(np.float32) - b).mean())


def dead_zone(low: int, high: int) -> torch.Tensor:
    """Rounding offsets by scale level: ``low`` up to one step, rising to ``high`` at 8 steps."""
    log2_scale = (LOG2_SCALE_MIN + 16 * torch.arange(SCALE_LEVELS)) / LOG2_UNITS
    share = (log2_scale / 3).clamp(0, 1)
    return torch.round(low + (high - low) * share).int()


def finalize(
    network: PhotoNetwork,
    pictures: list[np.ndarray],
    folder: Path,
    report: Callable[[str], None] = log.info,
    *,
    coder: Callable[[PhotoCodec], Coder] = lambda codec: codec,
    error: Error = squared_error,
    base: str | None = None,
) -> PhotoCodec:
    """Write the model folder of a trained network and return its codec.

    Args:
        network: trained with quantization on.
        pictures: uint8 [H, W, 3]; a few dozen, at natural sharpness.
        folder: of the model.
        report: told what was found, a line at a time.
        coder: makes of the model what codes the pictures.
        error: mean squared error of two pictures.
        base: model of the package from which the training started; only what differs is written.
    """
    network = network.eval()
    entropy = export_entropy_model(network.entropy_model)
    half = {
        # Half precision loses nothing that matters and halves the file.
        name: tensor.detach().half()
        for name, tensor in network.state_dict().items()
        if name.startswith(("analysis.", "hyper_analysis.", "synthesis."))
    }

    def save(target: Path) -> PhotoCodec:
        tensors = half | {f"entropy.{name}": tensor for name, tensor in entropy.items()}
        save_photo_model(target, tensors, network.config, base)
        return load_photo_model(target)

    def refit(codec: PhotoCodec) -> PhotoCodec:
        counts = _histograms(coder(codec), pictures)
        seen = counts.sum(axis=1)
        others = seen - counts[:, counts.shape[1] // 2]
        certain = (seen > 20_000) & (others < CERTAIN * seen)
        certain[SCALE_LEVELS:] = False
        # Only the least scales may be certain: the first level that is not ends the run.
        certain[:SCALE_LEVELS] = np.logical_and.accumulate(certain[:SCALE_LEVELS])
        arrays = fit_tables(counts, certain).to_arrays()
        for name, array in arrays.items():
            entropy[f"tables.{name}"] = torch.from_numpy(array.astype(np.int32))
        entropy["rounding"][torch.from_numpy(certain[:SCALE_LEVELS])] = -1
        report(f"tables fitted to {seen.sum()} symbols; {certain.sum()} levels are certain zeros")
        return save(trials)

    # `folder` must never hold a model that is only a trial.
    with tempfile.TemporaryDirectory() as temporary:
        trials = Path(temporary)
        save(trials)
        trial = pictures[:: max(1, len(pictures) // 12)]
        best, best_cost = (128, 128), math.inf
        for low, high in ((128, 128), (112, 128), (96, 128), (96, 112), (80, 112), (64, 112)):
            entropy["rounding"] = dead_zone(low, high)
            cost = _cost(coder(save(trials)), trial, error)
            report(f"rounding offsets {low}..{high}: log cost {cost:.4f}")
            if cost < best_cost:
                best, best_cost = (low, high), cost
        entropy["rounding"] = dead_zone(*best)
        # Zeros made certain change what later stages see a little: the second fit has seen them.
        refit(refit(save(trials)))
    return save(folder)
