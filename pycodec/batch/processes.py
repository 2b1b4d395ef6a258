"""A batch on the processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

from pycodec.batch.work import Job, Outcome, Task, Worker
from pycodec.errors import CodecError

_ATTEMPTS = 2
"""At a file whose process died: it may have been the victim, once, of a lack of memory."""


@dataclass
class _Process:
    process: Any
    pipe: connection.Connection
    ready: bool = False
    task: Task | None = None


def run_on_processes(job: Job, tasks: Sequence[Task], processes: int) -> Iterator[Outcome]:
    """Do all tasks, in any order; a process that dies takes no more than its own file with it.

    Not a ``ProcessPoolExecutor``: that gives up all its work when one process dies, and does not
    tell which file killed it.

    Raises:
        CodecError: no worker can do any of this, see :class:`~pycodec.batch.work.Worker`.
    """
    waiting = deque(tasks)
    deaths: dict[str, int] = {}
    failed_starts = 0
    running = [_start(job) for _ in range(min(processes, len(tasks)))]
    try:
        while running:
            for pipe in connection.wait([worker.pipe for worker in running]):
                worker = next(worker for worker in running if worker.pipe is pipe)
                try:
                    message = pipe.recv()
                except (EOFError, OSError):  # it died, perhaps within a message
                    running.remove(worker)
                    worker.process.join()
                    pipe.close()
                    if worker.task is None:
                        failed_starts += not worker.ready
                        if failed_starts >= 3:
                            raise CodecError(
                                f"worker processes die as they start ({_cause(worker.process)})"
                            ) from None
                    else:
                        source = worker.task.source
                        deaths[source] = deaths.get(source, 0) + 1
                        if deaths[source] < _ATTEMPTS:
                            waiting.append(worker.task)
                        else:
                            yield Outcome(worker.task, error=_obituary(worker.process))
                    if waiting:
                        running.append(_start(job))
                    continue
                if isinstance(message, CodecError):
                    raise message
                if worker.ready:
                    worker.task = None
                worker.ready = True
                if waiting:
                    worker.task = waiting.popleft()
                    with suppress(BrokenPipeError, ConnectionResetError):  # seen by the next recv
                        pipe.send(worker.task)
                else:
                    running.remove(worker)
                    pipe.close()
                    worker.process.join()
                if isinstance(message, Outcome):
                    yield message
    finally:
        for worker in running:
            worker.process.terminate()
        for worker in running:
            worker.process.join()


def _start(job: Job) -> _Process:
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(job, theirs), daemon=True)
    # Ctrl-C reaches all processes of a terminal; only the first is to act on it. The mask is
    # inherited, so there is no moment at which a new process would fall over it. The tracker comes
    # first: where start() has to start it, it unblocks the signal before the process is made.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Process(process, ours)


def _main(job: Job, pipe: connection.Connection) -> None:
    try:
        worker = Worker(job)
    except CodecError as error:
        pipe.send(error)
        return
    pipe.send(None)
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):  # the first process is gone
        while True:
            pipe.send(worker(pipe.recv()))


def _obituary(process: Any) -> str:
    return f"the process that worked on it died {_ATTEMPTS} times ({_cause(process)})"


def _cause(process: Any) -> str:
    code = process.exitcode
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name
