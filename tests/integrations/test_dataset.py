"""Datasets: order, threads, forks, shards, and what goes wrong."""

from __future__ import annotations

import io
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import pycodec
from pycodec import CodecError, CorruptStreamError, InputError
from pycodec.integrations.dataset import BatchDecoder, LciFiles, LciShards, decode_lci

SIZES = [(40, 56), (33, 20), (64, 64), (16, 90), (50, 50), (1, 1), (48, 31)]


@pytest.fixture(scope="module")
def pictures(photograph) -> list[np.ndarray]:
    return [photograph[10 * i : 10 * i + h, 40:][:, :w] for i, (h, w) in enumerate(SIZES)]


@pytest.fixture(scope="module")
def files(pictures) -> list[bytes]:
    return pycodec.encode(pictures, 60)


@pytest.fixture(scope="module")
def decoded(files) -> list[torch.Tensor]:
    return [torch.from_numpy(p).permute(2, 0, 1) for p in pycodec.decode(files, threads=1)]


@pytest.fixture
def folder(tmp_path, files):
    for i, data in enumerate(files):
        path = tmp_path / ("nested" if i % 2 else ".") / f"{i}.lci"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "other.txt").write_text("not a picture")
    return tmp_path


def equal(found, expected) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def tar(path, members: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


# BatchDecoder


@pytest.mark.parametrize("workers", [None, 1, 2, 3])
def test_order_is_kept(files, decoded, workers):
    with BatchDecoder(workers=workers) as decoder:
        assert equal(decoder(files), decoded)
        assert equal(decoder(files[::-1] * 3), decoded[::-1] * 3)
        assert equal(decoder(files[:1]), decoded[:1])
        assert decoder([]) == []
    with decoder:  # closed, and used once more
        assert equal(decoder(files[:3]), decoded[:3])


def test_threads_are_those_of_the_pool_and_compute_alone(files):
    before = torch.get_num_threads()
    seen = {}

    def transform(tensor):
        seen[threading.current_thread().name] = torch.get_num_threads()
        return tensor.shape[1]

    with BatchDecoder(workers=2, transform=transform) as decoder:
        assert decoder(files) == [h for h, _ in SIZES]
    assert all(name.startswith("pycodec-decode") for name in seen)
    assert set(seen.values()) == {1}
    assert torch.get_num_threads() == before
    threads = []
    thread = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert threads == [before]


def test_endless_files_are_not_held(files, decoded):
    taken = []

    def endless():
        i = 0
        while True:
            taken.append(i)
            yield files[i % len(files)]
            i += 1

    with BatchDecoder(workers=2) as decoder:
        results = decoder.map(endless())
        found = [next(results) for _ in range(10)]
        assert len(taken) < 20
        results.close()
    assert equal(found, (decoded * 2)[:10])


def test_paths_and_urls(folder, decoded):
    decoder = BatchDecoder()
    assert torch.equal(decoder([folder / "0.lci"])[0], decoded[0])
    assert torch.equal(decoder([str(folder / "nested" / "1.lci")])[0], decoded[1])
    assert torch.equal(decoder([f"file://{folder}/nested/3.lci"])[0], decoded[3])


def test_channels(photograph):
    gray = np.ascontiguousarray(photograph[:40, :50, 1])
    transparent = np.dstack([photograph[:40, :50], gray])
    both = [pycodec.encode(gray, 90), pycodec.encode(transparent, 90)]
    both.append(pycodec.encode(Image.fromarray(gray).convert("LA"), 90))
    with BatchDecoder(rgb=True) as decoder:
        same = decoder(both)
        assert [tuple(t.shape) for t in same] == [(3, 40, 50)] * 3
        assert torch.equal(same[0][0], same[0][2])
        torch.stack(same).add_(1)  # not views of one channel
    with BatchDecoder(rgb=False) as decoder:
        kept = decoder(both)
        assert [t.shape[0] for t in kept] == [1, 4, 2]
        assert torch.equal(kept[1][3], torch.from_numpy(gray))


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_name_the_file(files, folder, workers):
    damaged = files[2][:-3]
    with BatchDecoder(workers=workers) as decoder:
        with pytest.raises(CorruptStreamError, match="file 2: "):
            decoder([*files[:2], damaged, *files[3:]])
        (folder / "bad.lci").write_bytes(damaged)
        with pytest.raises(CorruptStreamError, match=r"bad\.lci: "):
            decoder([folder / "0.lci", folder / "bad.lci"])
        with pytest.raises(InputError, match="missing"):
            decoder([folder / "missing.lci", folder / "0.lci"])
        with pytest.raises(InputError, match="cannot be read"):
            decoder([folder])
        assert len(decoder(files)) == len(files)  # goes on
    with (
        BatchDecoder(workers=workers, max_pixels=40 * 56 - 1) as decoder,
        pytest.raises(InputError, match="max_pixels"),
    ):
        decoder(files)
    with pytest.raises(InputError):
        BatchDecoder(workers=0)


def test_pickle(files, decoded):
    decoder = BatchDecoder(workers=2)
    decoder(files)
    assert equal(pickle.loads(pickle.dumps(decoder))(files), decoded)


# LciFiles


def order(dataset: LciFiles) -> list[int]:
    return [int(path.rsplit("/", 1)[1].removesuffix(".lci")) for path in dataset.paths]


def test_files_of_a_folder(folder, decoded):
    dataset = LciFiles(folder)
    assert len(dataset) == len(decoded) == len(set(order(dataset)))
    assert dataset.paths == sorted(dataset.paths)
    assert all(torch.equal(dataset[i], decoded[n]) for i, n in enumerate(order(dataset)))
    by_url = LciFiles(f"file://{folder}")
    assert sorted(order(by_url)) == list(range(len(decoded)))
    assert torch.equal(by_url[0], decoded[order(by_url)[0]])
    assert torch.equal(LciFiles(dataset.paths[::-1])[0], dataset[len(dataset) - 1])
    with pytest.raises(InputError, match="no such folder"):
        LciFiles(folder / "missing")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("context", [None, "spawn"])
def test_loader(folder, decoded, num_workers, context):
    if context and not num_workers:
        pytest.skip("no processes to start")
    dataset = LciFiles(folder)
    dataset[0]  # threads, torch's and ours, are running before processes are forked
    dataset.__getitems__([0, 1, 2])
    loader = DataLoader(
        dataset,
        batch_size=3,
        num_workers=num_workers,
        collate_fn=list,
        multiprocessing_context=context,
        timeout=120 if num_workers else 0,
    )
    for _ in range(2):
        batches = list(loader)
        assert [len(batch) for batch in batches] == [3, 3, 1]
        found = [tensor for batch in batches for tensor in batch]
        assert equal(found, [decoded[n] for n in order(dataset)])


def test_loader_stacks_crops(folder):
    dataset = LciFiles(
        [folder / "0.lci", folder / "2.lci", folder / "4.lci"], transform=lambda t: t[:, :32, :32]
    )
    (batch,) = DataLoader(dataset, batch_size=3)
    assert batch.shape == (3, 3, 32, 32) and batch.dtype == torch.uint8


def test_loader_reports_damage(folder, files):
    (folder / "bad.lci").write_bytes(files[0][:-1])
    for workers in (0, 1):
        with pytest.raises(CorruptStreamError, match=r"bad\.lci"):
            list(DataLoader(LciFiles(folder), collate_fn=list, num_workers=workers))


# LciShards


@pytest.fixture
def shards(tmp_path, files) -> list[str]:
    def member(i: int) -> dict[str, bytes]:
        return {f"train/{i:03}.lci": files[i], f"train/{i:03}.cls": str(i).encode()}

    return [
        tar(tmp_path / "a.tar", member(0) | member(1) | {"README": b"", "train/.x.y": b""}),
        tar(tmp_path / "b.tar", member(2) | member(3) | member(4)),
        tar(tmp_path / "c.tar.gz", member(5) | member(6), "w:gz"),
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards(shards, decoded, num_workers):
    dataset = LciShards(shards)
    samples = list(DataLoader(dataset, batch_size=None, num_workers=num_workers))
    numbers = [int(sample["cls"]) for sample in samples]
    assert sorted(numbers) == list(range(7))
    if num_workers == 0:
        assert numbers == list(range(7))
    for number, sample in zip(numbers, samples, strict=True):
        assert torch.equal(sample["lci"], decoded[number])
        assert sample["__key__"] == f"train/{number:03}"
        assert sample["__url__"] in shards
        assert set(sample) == {"__key__", "__url__", "lci", "cls"}
    urls = LciShards([f"file://{shard}" for shard in shards[:2]])
    assert [int(sample["cls"]) for sample in urls] == [0, 1, 2, 3, 4]


def test_shards_are_divided(shards):
    parts = [[int(s["cls"]) for s in LciShards(shards, rank=r, world_size=2)] for r in range(2)]
    assert parts == [[0, 1, 5, 6], [2, 3, 4]]


def test_several_pictures_in_a_sample(tmp_path, files, decoded):
    path = tar(tmp_path / "a.tar", {"0.left.lci": files[0], "0.RIGHT.LCI": files[1]})
    (sample,) = LciShards([path])
    assert torch.equal(sample["left.lci"], decoded[0])
    assert torch.equal(sample["right.lci"], decoded[1])


def test_damaged_shards(tmp_path, files, shards):
    members = {"0.lci": files[0], "1.lci": files[1][:-1], "2.lci": files[2]}
    damaged = tar(tmp_path / "d.tar", members)
    whole = Path(shards[1]).read_bytes()
    truncated, cut, garbled = (tmp_path / name for name in ("t.tar", "u.tar", "g.tar"))
    truncated.write_bytes(whole[:700])  # within a file
    blocks = 1 + -(-len(files[2]) // 512)
    cut.write_bytes(whole[: 512 * blocks])  # between two
    garbled.write_bytes(cut.read_bytes() + b"?" * 2048)
    junk = tmp_path / "j.tar"
    junk.write_bytes(b"no tar file at all" * 100)
    empty = tmp_path / "e.tar"
    empty.touch()
    twice = tar(tmp_path / "w.tar", {"0.lci": files[0], "0.LCI": files[0]})
    for shard, fault in [
        (damaged, r"d\.tar: 1\.lci: "),
        (truncated, r"t\.tar: "),
        (cut, r"u\.tar: .*does not end"),
        (garbled, r"g\.tar: .*does not end"),
        (junk, r"j\.tar: not a tar file"),
        (empty, r"e\.tar: not a tar file"),
        (twice, "twice"),
        (tmp_path / "missing.tar", "missing"),
    ]:
        with pytest.raises(CodecError, match=fault):
            list(LciShards([shard]))
    errors: list[CodecError] = []
    shards = [damaged, junk, tmp_path / "missing.tar", shards[0]]
    keys = [s["__key__"] for s in LciShards(shards, skip_damaged=errors.append)]
    assert keys == ["0", "2", "train/000", "train/001"]
    assert len(errors) == 3
    with pytest.raises(InputError, match="list"):
        LciShards(damaged)


def test_leaving_early(shards):
    for _ in range(3):
        next(iter(LciShards(shards)))


def test_webdataset(shards, decoded):
    webdataset = pytest.importorskip("webdataset")
    dataset = webdataset.WebDataset(shards, shardshuffle=False).decode(decode_lci)
    samples = [sample for sample in dataset if "lci" in sample]
    assert equal([sample["lci"] for sample in samples], decoded)
    assert [sample["cls"] for sample in samples] == list(range(7))


# GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu(files, decoded):
    with BatchDecoder(device="cuda", workers=2) as decoder:
        found = decoder(files)
    assert all(tensor.device.type == "cuda" for tensor in found)
    for tensor, expected in zip(found, decoded, strict=True):
        # Float transforms: a level or two, never a symbol.
        assert (tensor.cpu().int() - expected.int()).abs().max() <= 4
