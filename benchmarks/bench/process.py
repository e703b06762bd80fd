"""A contender's process as its parent sees it: started, asked with a time limit, ended.

Knows no contender and imports none; a process that does not answer in time is killed with all that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from benchmarks.bench.contenders import Spec
from benchmarks.bench.plan import PROMPTS, Plan
from engine.errors import ExecutionFailed

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 20.0
"""Between the end of its input and a kill: an engine's memory takes a while to free."""
LOG_LINES = 3


class ContenderFailed(ExecutionFailed):
    """A contender cannot run, or fell in the middle; `short` is the reason in one line."""

    @property
    def short(self) -> str:
        """What it said, and what would mend it."""
        return self.actual if self.remedy in ("", LOOK) else f"{self.actual}. {self.remedy}"


LOOK = "See its log in the result's folder."


class Child:
    """One contender's process; use `with`. log: where its stderr goes. born: when it was started (perf_counter)."""

    def __init__(self, spec: Spec, log: Path) -> None:
        self.spec, self._log = spec, log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [spec.python, "-u", "-m", "benchmarks.bench.child", spec.factory]
        self.born = time.perf_counter()
        with log.open("ab") as stream:
            try:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=environment(spec.environment), stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE, stderr=stream, text=True, encoding="utf-8", start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise self._failed(f"'{spec.python}' cannot be started ({error.strerror})") from error
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._answers), daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, what: str, *, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """The answer of one method. Raises ContenderFailed, after `limit_s` seconds too; the process is killed then."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"ask": what, "with": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=limit_s)
        except queue.Empty:
            self.kill()
            raise self._failed(f"no answer to '{what}' within {limit_s:g} s") from None
        except OSError:
            line = None
        if line is None:
            raise self._failed(f"its process ended with code {self._process.wait()}{self._last_words()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise self._refused(found["error"])
        return dict(found["ok"] or {})

    def open(self, plan: Plan) -> dict[str, Any]:
        """Have it load what the plan measures; what it tells of itself. Raises ContenderFailed."""
        bundle = str(plan.bundle.resolve())
        return self.ask("open", bundle=bundle, size=plan.size, settings=self.spec.settings, limit_s=plan.open_s)

    def paint(self, steps: int, limit_s: float, **changes: Any) -> dict[str, Any]:
        """One picture of the first prompt. changes: to prompt, seed, count, out. Raises ContenderFailed."""
        asked = {"prompt": PROMPTS[0], "seed": 0, "steps": steps, "count": 1, "out": None, **changes}
        return self.ask("paint", limit_s=limit_s, **asked)

    def close(self) -> None:
        """End the process: by the end of its input, and where that is not enough, at once."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def kill(self) -> None:
        """End it at once, with whatever it started: compilers, workers."""
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refused(self, error: Mapping[str, str]) -> ContenderFailed:
        remedy = error.get("remedy", LOOK)
        return self._failed(f"{error['kind']}: {error['actual']}", error.get("allowed", "an answer"), remedy)

    def _failed(self, actual: str, allowed: str = "an answer", remedy: str = LOOK) -> ContenderFailed:
        subject = f"benchmark, contender {self.spec.name}"
        return ContenderFailed(subject, actual=actual, allowed=allowed, remedy=remedy)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_LINES:]
        return f" ({' | '.join(lines)})" if lines else ""


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's variables with changes, and the checkout on the path of imports."""
    found = {name: value for name, value in os.environ.items() if name not in changes}
    path = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    found["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))
    return found | {name: value for name, value in changes.items() if value is not None}


def _read(stream: IO[str] | None, answers: queue.Queue[str | None]) -> None:
    assert stream is not None
    with contextlib.suppress(ValueError, OSError):  # closed while it is read
        for line in stream:
            answers.put(line)
    answers.put(None)
