"""Runs commands one after the other in slices of limited time, each command once.

What ``run_all.py`` and ``gpu_campaign.py`` have in common. A folder holds the state: how each
command ended, what it printed and what it wrote; calls for different commands may share it. A call
does as many commands as fit in its slice and the next call goes on from there; nothing is lost when
one is interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MORE_LEFT = 75
"""Exit code of a call after which another one is needed."""


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: of its files in the folder.
        command: arguments; ``{json}`` stands for the path of its results, ``{folder}`` for the
            folder. ``python`` stands for this interpreter.
        seconds: that it may take; then it is stopped.
        needs: a reason to leave it out on this machine, or None; asked when its turn comes.
        environment: added to that of this process.
    """

    name: str
    command: tuple[str, ...]
    seconds: int = 300
    needs: Callable[[], str | None] = lambda: None
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a step ended: ``ok``, ``failed``, ``timeout`` or ``left out``, and why."""

    command: list[str]
    status: str
    seconds: float
    reason: str | None = None


class Slices:
    """Steps and the folder that knows which of them are done.

    Args:
        steps: with names of their own.
        folder: for state and results; made where it is missing.
    """

    def __init__(self, steps: Sequence[Step], folder: Path) -> None:
        if len({step.name for step in steps}) < len(steps):
            raise ValueError("two steps have the same name")
        self.steps, self.folder = list(steps), folder
        folder.mkdir(parents=True, exist_ok=True)

    def _outcome_file(self, name: str) -> Path:
        return self.folder / f"{name}.outcome"

    def results_file(self, step: Step) -> Path:
        """What ``{json}`` stands for."""
        return self.folder / f"{step.name}.json"

    def outcomes(self) -> dict[str, Outcome]:
        """Of the steps that are done; one whose command has changed since is not."""
        known = {}
        for step in self.steps:
            with contextlib.suppress(FileNotFoundError):
                outcome = Outcome(**json.loads(self._outcome_file(step.name).read_text()))
                if outcome.command == list(step.command):
                    known[step.name] = outcome
        return known

    def _keep(self, name: str, outcome: Outcome) -> None:
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(json.dumps(asdict(outcome)) + "\n")
        temporary.replace(self._outcome_file(name))

    def run(
        self, seconds: float, *, retry: bool = False, only: Collection[str] | None = None
    ) -> bool:
        """Runs the steps that are left and fit, passing over what does not; whether none is left.

        Args:
            seconds: of this slice. A step starts only if all the time that it may take is left,
                but the first one starts in any case.
            retry: take up again what failed or ran out of time.
            only: names of the steps to run; by default all.
        """
        end = time.monotonic() + seconds
        done = self.outcomes()
        if retry:
            done = {name: o for name, o in done.items() if o.status in ("ok", "left out")}
        first = finished = True
        for number, step in enumerate(self.steps, 1):
            if step.name in done or (only is not None and step.name not in only):
                continue
            if not first and time.monotonic() + step.seconds > end:
                finished = False
                continue
            print(f"{number} of {len(self.steps)}: {step.name}", flush=True)
            outcome = self._run(step)
            first = first and outcome.status == "left out"
            reason = "" if outcome.reason is None else f": {outcome.reason}"
            print(f"    {outcome.status} after {outcome.seconds:.1f} s{reason}", flush=True)
            self._keep(step.name, outcome)
        return finished

    def _run(self, step: Step) -> Outcome:
        command = list(step.command)
        reason = step.needs()
        if reason is not None:
            return Outcome(command, "left out", 0.0, reason)
        names = {"{json}": str(self.results_file(step)), "{folder}": str(self.folder)}
        arguments = [sys.executable if a == "python" else a for a in command]
        for old, new in names.items():
            arguments = [a.replace(old, new) for a in arguments]
        began = time.monotonic()
        with open(self.folder / f"{step.name}.log", "wb") as log:
            try:
                process = subprocess.Popen(
                    arguments,
                    cwd=ROOT,
                    env=os.environ | dict(step.environment),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that all of it can be stopped
                )
            except OSError as error:
                return Outcome(command, "failed", 0.0, str(error))
            try:
                code = process.wait(step.seconds)
            except subprocess.TimeoutExpired:
                _stop(process)
                return Outcome(command, "timeout", step.seconds)
            except BaseException:
                _stop(process)
                raise
        took = round(time.monotonic() - began, 2)
        if code != 0:
            return Outcome(command, "failed", took, f"exit code {code}: {self._last_line(step)}")
        return Outcome(command, "ok", took)

    def _last_line(self, step: Step) -> str:
        text = (self.folder / f"{step.name}.log").read_text(errors="replace").strip()
        return text.rpartition("\n")[2][-300:]

    def gather(self, machine: dict[str, Any]) -> dict[str, Any]:
        """One document of all steps that are done, with what they wrote or printed."""
        steps = {}
        for name, outcome in self.outcomes().items():
            entry: dict[str, Any] = asdict(outcome)
            # Where folders of this machine lie is nobody's business.
            entry["command"] = [
                Path(part).name if Path(part).is_absolute() else part for part in outcome.command
            ]
            results = self.folder / f"{name}.json"
            if outcome.status == "ok" and "{json}" in outcome.command:
                entry["results"] = json.loads(results.read_text())
            elif outcome.status != "left out":  # of one that failed, how far it got
                log = (self.folder / f"{name}.log").read_text(errors="replace")
                # Nor where this checkout does.
                entry["output"] = log.replace(f"{ROOT}/", "").splitlines()
            steps[name] = entry
        return {"machine": machine, "complete": len(steps) == len(self.steps), "steps": steps}


def _stop(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def missing_files(steps: Sequence[Step]) -> list[str]:
    """Paths of the repository that commands name and that do not exist."""
    named = [a for s in steps for a in s.command if a.startswith(("benchmarks/", "tests/", ".ci/"))]
    return [path for path in named if not (ROOT / path.partition("::")[0]).exists()]
