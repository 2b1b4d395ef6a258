"""A batch on a Ray cluster, with Ray Data: ``pip install 'pycodec[ray]'`` on every machine of it.

Source and destination must mean the same on every machine: URLs, or folders that all have mounted.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from pycodec.batch.work import Job, Outcome, Task, Worker
from pycodec.errors import CodecError

_FILES_PER_BLOCK = 8
_MAX_BLOCKS = 100_000
_ATTEMPTS = 2
"""At a file whose worker died; Ray itself would try without end."""


class _Attempts:
    """An actor that counts how often a file was begun and not ended."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def begin(self, index: int) -> int:
        self._counts[index] = self._counts.get(index, 0) + 1
        return self._counts[index]

    def end(self, index: int) -> None:
        self._counts.pop(index, None)


class _RayWorker:
    """Rows of pickled tasks to rows of pickled outcomes: Arrow need not know what is in them."""

    def __init__(self, job: Job, attempts: Any) -> None:
        self._attempts = attempts
        try:
            self._worker: Worker | CodecError = Worker(job)
        except CodecError as error:  # raised here, it would only start the worker again
            self._worker = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        outcome = self._outcome(row["index"], row["task"])
        return {"index": row["index"], "outcome": pickle.dumps(outcome)}

    def _outcome(self, index: int, pickled: bytes) -> Outcome | CodecError | None:
        """None: it has killed enough workers."""
        import ray

        if isinstance(self._worker, CodecError):
            return self._worker
        if ray.get(self._attempts.begin.remote(index)) > _ATTEMPTS:
            return None
        outcome = self._worker(pickle.loads(pickled))
        self._attempts.end.remote(index)
        return outcome


def run_on_ray(
    job: Job, tasks: Sequence[Task], workers: int | None, address: str | None
) -> Iterator[Outcome]:
    """Do all tasks, in any order; a worker that dies takes no more than its own file with it.

    Args:
        job: the job.
        tasks: what to do.
        workers: actors; None: as many as the cluster has room for.
        address: of the cluster, such as ``auto``; None starts one on this machine. Where Ray is
            connected already, that connection is used.

    Raises:
        CodecError: Ray is not installed, there is no cluster or it failed, or no worker can do any
            of this, see :class:`~pycodec.batch.work.Worker`.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise CodecError("the Ray engine needs Ray Data: pip install 'pycodec[ray]'") from error
    if not tasks:
        return
    connect = not ray.is_initialized()
    if connect:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise CodecError(f"cannot connect to a Ray cluster at {address!r}: {error}") from error
    left = dict(enumerate(tasks))
    try:
        # Closed before the connection is: else Ray may go on with them after it, and connect again.
        with contextlib.closing(_rows(ray, job, left, workers)) as rows:
            for row in rows:
                result = pickle.loads(row["outcome"])
                if isinstance(result, CodecError):
                    raise result
                task = left.pop(row["index"], None)
                if task is not None:  # what is retried may come twice
                    yield result or Outcome(task, error=f"its worker died {_ATTEMPTS} times")
    except ray.exceptions.RayError as error:
        raise CodecError(f"the Ray cluster failed: {error}") from error
    finally:
        if connect:
            ray.shutdown()
    for task in left.values():
        yield Outcome(task, error="the Ray cluster lost it")


def _rows(
    ray: Any, job: Job, tasks: dict[int, Task], workers: int | None
) -> Generator[dict[str, Any], None, None]:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = [{"index": index, "task": pickle.dumps(task)} for index, task in tasks.items()]
    slots = int(ray.cluster_resources().get("CPU", 1)) // job.threads
    most = max(1, min(workers or slots, len(tasks)))
    blocks = min(-(-len(tasks) // _FILES_PER_BLOCK), _MAX_BLOCKS)
    attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Attempts).remote()
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(tasks), max(blocks, 2 * most)))
    dataset = dataset.map(
        _RayWorker,
        fn_constructor_args=(job, attempts),
        # One block at a time: whoever waits behind another would share its fate.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=most, max_tasks_in_flight_per_actor=1
        ),
        num_cpus=job.threads,
        num_gpus=1 if (job.device or "").startswith("cuda") else None,
    )
    yield from dataset.iter_rows()
