"""Batches on a real Ray cluster on this machine, whose workers and machines die."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before Ray is imported: it shall talk to itself only, and to nobody about it.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else it looks for an address of its own
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A thread of Ray Data that outlives ray.shutdown() would connect this process again by itself, and
# then the cluster cannot be taken down.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

from ray.cluster_utils import Cluster  # noqa: E402

from pycodec import CodecError  # noqa: E402
from pycodec.batch import Job  # noqa: E402
from pycodec.batch.ray_engine import run_on_ray  # noqa: E402
from pycodec.storage import TEMPORARY, LocalFolder  # noqa: E402

from .album import PICTURES, Poison, results, start, tasks, wait_for_a_file  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    """A head that does no work, and two machines with a core each."""
    options = {"object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **options)
        yield cluster
    finally:
        cluster.shutdown()


def workers_of(node) -> list[int]:
    """Process ids of the node's workers that encode."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            status, title = (path / "status").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        if f"\nPPid:\t{raylet}\n" in status and b"_RayWorker" in title:
            found.append(int(path.name))
    return found


def encode(cluster, album, out):
    return start("encode", album, out, "--engine", "ray", "--address", cluster.address)


def check(process, out, encoded_album) -> str:
    """All is there, nothing is half-written, and all is what one process makes."""
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    folder = LocalFolder(str(out))
    assert results(folder) == encoded_album
    assert folder.names(TEMPORARY) == []
    return said


def test_a_worker_is_killed(cluster, album, encoded_album, tmp_path):
    out = tmp_path / "out"
    process = encode(cluster, album, out)
    wait_for_a_file(out, process)
    victims = [pid for node in cluster.worker_nodes for pid in workers_of(node)]
    assert victims
    assert len(results(LocalFolder(str(out)))) < PICTURES  # mid-way
    os.kill(victims[0], signal.SIGKILL)
    said = check(process, out, encoded_album)
    assert f"{PICTURES} done, 0 finished before, 0 failed" in said

    (out / "00.lci").unlink()
    said = check(encode(cluster, album, out), out, encoded_album)
    assert f"1 done, {PICTURES - 1} finished before, 0 failed" in said


def test_who_kills_its_worker_fails_alone(cluster, album, encoded_album, tmp_path):
    out = tmp_path / "out"
    todo = tasks(album)[:4]
    todo.insert(1, Poison("poison.png", "poison.lci", 0, "", ""))
    outcomes = list(run_on_ray(Job("encode", str(album), str(out)), todo, 2, cluster.address))
    assert sorted(o.task.source for o in outcomes) == sorted(task.source for task in todo)
    assert [o.task.source for o in outcomes if o.error] == ["poison.png"]
    found = results(LocalFolder(str(out)))
    assert len(found) == 4 and found.items() <= encoded_album.items()


def test_no_worker_can_start(cluster, album, tmp_path):
    job = Job("encode", str(album), str(tmp_path / "out"), model="missing")
    with pytest.raises(CodecError, match="no model"):
        list(run_on_ray(job, tasks(album), 1, cluster.address))
    assert not ray.is_initialized()


def test_no_cluster(album, tmp_path):
    with pytest.raises(CodecError, match="cannot connect"):
        job = Job("encode", str(album), str(tmp_path / "out"))
        list(run_on_ray(job, tasks(album), 1, "not an address"))


def test_a_machine_is_lost(cluster, album, encoded_album, tmp_path):
    """The last test: the cluster has only one machine left."""
    out = tmp_path / "out"
    process = encode(cluster, album, out)
    wait_for_a_file(out, process)
    busy = max(cluster.worker_nodes, key=lambda node: len(workers_of(node)))
    assert len(results(LocalFolder(str(out)))) < PICTURES  # mid-way
    cluster.remove_node(busy, allow_graceful=False)
    check(process, out, encoded_album)
