"""``.lci`` files for training in PyTorch: batches decoded on threads, folders, and tar shards.

>>> from torch.utils.data import DataLoader
>>> from pycodec.integrations.dataset import LciFiles
>>> pictures = LciFiles("train", transform=crop)  # doctest: +SKIP
>>> for batch in DataLoader(pictures, batch_size=32, shuffle=True):  # doctest: +SKIP
...     step(batch)  # uint8 [32, 3, H, W]

A thread decodes a picture from start to end with nobody to wait for, so as many threads as cores
are as fast as the codec gets; all that takes time runs outside of Python's lock. Nothing is ever
reordered, and a picture's pixels do not depend on how many threads or others there are.
"""

from __future__ import annotations

import os
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from pycodec import api
from pycodec.coding.container import SUFFIX, peek, refuse_large
from pycodec.errors import CodecError, InputError
from pycodec.images import DEFAULT_MAX_PIXELS
from pycodec.storage import open_file, open_folder, read_file

__all__ = ["BatchDecoder", "LciFiles", "LciShards", "decode_lci"]

_AHEAD = 2
"""Pictures a thread that are decoded, or waiting to be, before they are asked for."""


class BatchDecoder:
    """Decodes many files on threads; a tensor for each, in the order of the files.

    Can be sent to other processes, and survives a fork: threads are started where they are needed.

    Args:
        rgb: three channels whatever the files hold, so that pictures of a size can be stacked: gray
            is repeated, alpha left out. Otherwise as many channels as the file has.
        transform: called with each tensor, in the thread that decoded it; its result is returned.
        workers: threads; None: as many as torch has, which in a worker of a ``DataLoader`` is one.
        model: name or folder, if it is none of the package's.
        device: of the transforms and of the tensors, such as ``"cuda"``; None for the CPU.
        max_pixels: larger pictures are refused before they are decoded; None for no limit.
    """

    def __init__(
        self,
        *,
        rgb: bool = True,
        transform: Callable[[Tensor], Any] | None = None,
        workers: int | None = None,
        model: str | os.PathLike | None = None,
        device: str | None = None,
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
    ) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"workers must be positive, not {workers}")
        self._rgb = rgb
        self._transform = transform
        self._workers = workers
        self._model = None if model is None else os.fspath(model)
        self._device = device
        self._max_pixels = max_pixels
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def __call__(self, files: Iterable[bytes | str | os.PathLike]) -> list[Any]:
        """Decode a batch.

        Args:
            files: their bytes, their paths or fsspec URLs.

        Returns:
            For each file uint8 [C, H, W], or what the transform made of it.

        Raises:
            CodecError: a file cannot be read or decoded; the message says which.
        """
        return list(self.map(files))

    def map(self, files: Iterable[bytes | str | os.PathLike]) -> Iterator[Any]:
        """As a call, one after the other: of endless files, no more than a few are held at once."""
        return self.map_over(self._decode_item, enumerate(files))

    def map_over(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """``map(function, items)`` on the threads, in order."""
        workers = self._workers or torch.get_num_threads()
        items = iter(items)
        first = list(islice(items, 2))
        if workers == 1 or len(first) < 2:
            yield from map(function, first)
            yield from map(function, items)
            return
        pool = self._threads(workers)
        waiting: deque[Future] = deque(pool.submit(function, item) for item in first)
        try:
            for item in items:
                if len(waiting) >= _AHEAD * workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def decode(self, data: bytes, name: str) -> Any:
        """Decode one file in this thread.

        Args:
            data: the file.
            name: what errors call it.
        """
        try:
            if self._max_pixels is not None:
                refuse_large(peek(data), self._max_pixels)
            # Float arithmetic may round otherwise on more threads than one. Where there is but one,
            # as in the pool, it is left alone: to set it is to set it for threads to come.
            threads = None if torch.get_num_threads() == 1 else 1
            picture, _ = api.decode_picture(
                data, model=self._model, device=self._device, threads=threads
            )
        except CodecError as error:
            error.args = (f"{name}: {error.args[0]}",)
            raise
        pixels = picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]
        if not self._rgb and picture.alpha is not None:
            pixels = np.dstack([pixels, picture.alpha])
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        if self._rgb:
            tensor = tensor.expand(3, -1, -1)
        tensor = tensor.contiguous()
        if self._device is not None:
            tensor = tensor.to(self._device)
        return tensor if self._transform is None else self._transform(tensor)

    def _decode_item(self, item: tuple[int, bytes | str | os.PathLike]) -> Any:
        index, file = item
        if isinstance(file, (str, os.PathLike)):
            return self.decode(read_file(file), os.fspath(file))
        return self.decode(file, f"file {index}")

    def _threads(self, workers: int) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), _start_threads(workers)
        return self._pool[1]

    def close(self) -> None:
        """End the threads; the next call starts new ones."""
        if self._pool is not None and self._pool[0] == os.getpid():
            self._pool[1].shutdown(cancel_futures=True)
        self._pool = None

    def __enter__(self) -> BatchDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}


def _start_threads(workers: int) -> ThreadPoolExecutor:
    """A pool whose threads compute alone: the cores are taken by each other."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "pycodec-decode")
    barrier = threading.Barrier(workers + 1)

    def start() -> None:
        torch.get_num_threads()  # a thread's first look takes over what was set for all
        torch.set_num_threads(1)
        barrier.wait()

    for _ in range(workers):
        pool.submit(start)
    barrier.wait()
    # What a thread sets holds for itself, and for threads to come: not so here.
    torch.set_num_threads(before)
    return pool


class LciFiles(Dataset):
    """The ``.lci`` files of a folder and its subfolders, sorted by path, or a list of files.

    A ``DataLoader`` asks for whole batches, which are decoded on threads: ``num_workers=0`` is no
    slower here than worker processes are, and needs no copies between processes.

    Args:
        files: a folder or fsspec URL, or a sequence of paths and URLs.
        options: as those of :class:`BatchDecoder`.

    Attributes:
        paths: the files, as indexed.
    """

    def __init__(
        self, files: str | os.PathLike | Sequence[str | os.PathLike], **options: Any
    ) -> None:
        if isinstance(files, (str, os.PathLike)):
            folder = open_folder(files)
            if not folder.exists():
                raise InputError(f"{os.fspath(files)}: no such folder")
            self.paths = [
                folder.location(info.path)
                for info in folder.list()
                if info.path.lower().endswith(SUFFIX)
            ]
        else:
            self.paths = [os.fspath(file) for file in files]
        self.decoder = BatchDecoder(**options)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.decoder([self.paths[index]])[0]

    def __getitems__(self, indexes: Sequence[int]) -> list[Any]:
        return self.decoder(self.paths[index] for index in indexes)


class LciShards(IterableDataset):
    """Samples of tar files in the WebDataset layout: files of one sample follow each other, and
    share their name up to the first dot.

    A sample is a dictionary: ``__key__`` is the common name, ``__url__`` the shard, the other keys
    are what follows the dot. Values whose key is ``lci`` or ends with ``.lci`` are decoded, others
    are bytes.

    Shards are divided among processes of a distributed run and workers of a ``DataLoader``, so
    there should be at least as many, and they come in the order that is given.

    Args:
        shards: paths or fsspec URLs of tar files, compressed or not.
        skip_damaged: leave out samples that cannot be decoded, and the rest of damaged shards,
            instead of raising; called with the error. None to raise.
        rank, world_size: of a distributed run; None: those of ``torch.distributed``, if it is used.
        options: as those of :class:`BatchDecoder`.
    """

    def __init__(
        self,
        shards: Sequence[str | os.PathLike],
        *,
        skip_damaged: Callable[[CodecError], None] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        **options: Any,
    ) -> None:
        if isinstance(shards, (str, os.PathLike)):
            raise InputError("shards must be a sequence of paths: put a single one in a list")
        self.shards = [os.fspath(shard) for shard in shards]
        self._skip_damaged = skip_damaged
        self._rank, self._world_size = rank, world_size
        self.decoder = BatchDecoder(**options)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        results = self.decoder.map_over(self._decode_sample, self._samples())
        with closing(results):
            yield from (sample for sample in results if sample is not None)

    def _samples(self) -> Iterator[dict[str, Any]]:
        for shard in self._own_shards():
            try:
                yield from _read_samples(shard)
            except CodecError as error:
                if self._skip_damaged is None:
                    raise
                self._skip_damaged(error)

    def _own_shards(self) -> list[str]:
        rank, world_size = self._rank or 0, self._world_size or 1
        distributed = torch.distributed
        if self._world_size is None and distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        shards = self.shards[rank::world_size]
        worker = get_worker_info()
        return shards if worker is None else shards[worker.id :: worker.num_workers]

    def _decode_sample(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        try:
            for key, value in sample.items():
                if f".{key}".endswith(SUFFIX):
                    name = f"{sample['__url__']}: {sample['__key__']}.{key}"
                    sample[key] = self.decoder.decode(value, name)
        except CodecError as error:
            if self._skip_damaged is None:
                raise
            self._skip_damaged(error)
            return None
        return sample


def _read_samples(shard: str) -> Iterator[dict[str, Any]]:
    sample: dict[str, Any] = {}
    with open_file(shard) as file, _open_tar(file, shard) as archive:
        for path, data in _members(archive, shard):
            folder, name = os.path.split(path)
            stem, _, key = name.partition(".")
            common = os.path.join(folder, stem)
            if sample and sample["__key__"] != common:
                yield sample
                sample = {}
            sample.setdefault("__url__", shard)
            sample.setdefault("__key__", common)
            key = key.lower()
            if key in sample:
                raise CodecError(f"{shard}: {path} is there twice")
            sample[key] = data
    if sample:
        yield sample


class _TarInfo(tarfile.TarInfo):
    """Raises where tarfile would take damage for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it does not end as a tar file does ({error})") from error


@contextmanager
def _open_tar(file: BinaryIO, shard: str) -> Iterator[tarfile.TarFile]:
    try:
        archive = tarfile.open(fileobj=file, mode="r|*", tarinfo=_TarInfo)  # noqa: SIM115 (closed below)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CodecError(f"{shard}: not a tar file: {error}") from error
    with archive:
        yield archive


def _members(archive: tarfile.TarFile, shard: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files, except hidden ones and those without a dot in their name."""
    members = iter(archive)
    while True:
        try:
            member = next(members, None)
            if member is None:
                return
            name = os.path.basename(member.name)
            if not member.isfile() or name.startswith(".") or "." not in name:
                continue
            data = archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise CodecError(f"{shard}: damaged: {error}") from error
        yield member.name, data


def decode_lci(key: str, data: bytes) -> Tensor | None:
    """A handler for the webdataset package: ``WebDataset(urls).decode(decode_lci)``.

    Args:
        key: name of the file within its sample, such as ``".lci"``.
        data: the file.

    Returns:
        uint8 [3, H, W]; None, which leaves it to other handlers, if the name ends otherwise.
    """
    if not key.lower().endswith(SUFFIX):
        return None
    return BatchDecoder(workers=1).decode(data, key)
