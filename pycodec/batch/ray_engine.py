"""A batch on a Ray cluster, with Ray Data: ``pip install 'pycodec[ray]'`` on every machine of it.

Source and destination must mean the same on every machine: URLs, or folders that all have mounted.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from pycodec.batch.work import Job, Outcome, Task, Worker
from pycodec.errors import CodecError

# Ray plans and retries blocks. What a first round has not brought back, because blocks were given
# up, is tried once more, file by file: so what kills a worker costs no file but itself.
_FILES_PER_BLOCK = (8, 1)
_RETRIES = 1
_MAX_BLOCKS = 100_000


class _RayWorker:
    """Rows of pickled tasks to rows of pickled outcomes: Arrow need not know what is in them."""

    def __init__(self, job: Job) -> None:
        try:
            self._worker: Worker | CodecError = Worker(job)
        except CodecError as error:  # an exception here would be retried without end
            self._worker = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        result = self._worker
        if isinstance(result, Worker):
            result = result(pickle.loads(row["task"]))
        return {"outcome": pickle.dumps(result)}


def run_on_ray(
    job: Job, tasks: Sequence[Task], workers: int | None, address: str | None
) -> Iterator[Outcome]:
    """Do all tasks, in any order.

    Args:
        job: the job.
        tasks: what to do.
        workers: actors; None: as many as the cluster has room for.
        address: of the cluster, such as ``auto``; None starts one on this machine. Where Ray is
            connected already, that connection is used.

    Raises:
        CodecError: Ray is not installed or there is no cluster, or no worker can do any of this.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise CodecError("the Ray engine needs Ray Data: pip install 'pycodec[ray]'") from error
    if not tasks:
        return
    connected = not ray.is_initialized()
    if connected:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise CodecError(f"cannot connect to a Ray cluster at {address!r}: {error}") from error
    try:
        left = {task.source: task for task in tasks}
        fault = "no answer"
        for files_per_block in _FILES_PER_BLOCK:
            if not left:
                break
            try:
                for outcome in _run(ray, job, list(left.values()), workers, files_per_block):
                    if left.pop(outcome.task.source, None):
                        yield outcome
            except ray.exceptions.RayError as error:
                fault = str(error).strip().splitlines()[0]
        for task in left.values():
            yield Outcome(task, error=f"the workers that worked on it died ({fault})")
    finally:
        if connected:
            ray.shutdown()


def _run(
    ray: Any, job: Job, tasks: list[Task], workers: int | None, files_per_block: int
) -> Iterator[Outcome]:
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1
    rows = [{"task": pickle.dumps(task)} for task in tasks]
    slots = int(ray.cluster_resources().get("CPU", 1)) // job.threads
    most = max(1, min(workers or slots, len(tasks)))
    blocks = min(-(-len(tasks) // files_per_block), _MAX_BLOCKS)
    dataset = ray.data.from_items(rows, override_num_blocks=max(blocks, min(most, len(tasks))))
    dataset = dataset.map(
        _RayWorker,
        fn_constructor_args=(job,),
        # One block at a time: whoever waits behind another would share its fate.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=most, max_tasks_in_flight_per_actor=1
        ),
        num_cpus=job.threads,
        num_gpus=1 if (job.device or "").startswith("cuda") else None,
        ray_remote_args_fn=lambda: {"max_task_retries": _RETRIES},  # without end by default
    )
    for row in dataset.iter_rows():
        result = pickle.loads(row["outcome"])
        if isinstance(result, CodecError):
            raise result
        yield result
