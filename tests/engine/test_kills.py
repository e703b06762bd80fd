"""`zturbo build` killed at random moments: nothing partial is visible, no lock blocks, and a rerun only goes on."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.bundle import load_bundle
from engine.plan import engines_folder, graph_sha256, info_path, read_info, verified_plan
from engine.publish import TEMPORARY
from tests.toy_bundle import write_bundle

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX's")
REAL = importlib.util.find_spec("tensorrt_rtx") is not None
GRAPHS = ("start", "denoiser", "decoder")
ORPHANS_S = 0.3
"""Workers whose parent was killed end by themselves."""

FAKE = """
import sys
from tests import fake_tensorrt
sys.modules[__name__] = fake_tensorrt.fake("rtx")
"""


class Builds:
    """Builds of one bundle, each a process group of its own."""

    def __init__(self, root: Path, folder: Path, python_path: Path, *profiles: str) -> None:
        self.folder, self.profiles = folder, profiles
        self._root, self._env = root, {**os.environ, "PYTHONPATH": f"{python_path}{os.pathsep}{root}"}

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "zturbo", "build", self.folder, "--target", "tensorrt_rtx:8.6"]
        return subprocess.Popen(
            [*command, "--profiles", " ".join(self.profiles), "--jobs", "2"], cwd=self._root, env=self._env,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def finish(self) -> float:
        """A whole build; the seconds it took."""
        begun = time.monotonic()
        with self.start() as process:
            _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
        return time.monotonic() - begun

    def kill_after(self, seconds: float, everything: bool) -> None:
        """A build that is killed, its workers with it or only itself."""
        with self.start() as process:
            time.sleep(seconds)
            if everything:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
                time.sleep(ORPHANS_S)

    def sound(self) -> dict[Path, tuple[int, int]]:
        """The plans that there is a plan.json of, each of which it describes: {path: inode and time of writing}."""
        found = {}
        for path in engines_folder(self.folder).glob("*/*/*.plan.json"):
            plan = path.with_suffix("")
            verified_plan(plan, read_info(plan, ""), "")
            found[plan] = (plan.stat().st_ino, plan.stat().st_mtime_ns)
        return found


def spoil(builds: Builds, dice: random.Random, turn: int) -> None:
    """Something for the next build to do."""
    if turn % 3 == 0:
        shutil.rmtree(engines_folder(builds.folder), ignore_errors=True)
    elif turn % 3 == 1:
        write_bundle(builds.folder, scale=1.0 + turn)
    else:
        for plan in dice.sample(sorted(builds.sound()), 2):
            info_path(plan).unlink()


def valid(builds: Builds) -> dict[Path, tuple[int, int]]:
    """Those of `sound` that were built from the graphs as they are now."""
    bundle = load_bundle(builds.folder)
    digests = {graph.name: graph_sha256(bundle, graph) for graph in bundle.graphs("fp16")}
    return {
        plan: written
        for plan, written in builds.sound().items()
        if (identity := read_info(plan, "").identity).graph_sha256 == digests[identity.graph]
    }


def kill_and_rerun(builds: Builds, kills: int, seed: int) -> int:
    """Kill so many builds; returns how many plans were there, finished, when a build was killed."""
    dice, finished = random.Random(seed), 0
    longest = builds.finish()
    for turn in range(kills):
        spoil(builds, dice, turn)
        builds.kill_after(dice.uniform(0, longest), everything=dice.random() < 0.5)
        before = valid(builds)
        finished += len(before)
        builds.finish()
        after = builds.sound()
        assert len(after) == len(builds.profiles) * len(GRAPHS)
        assert {plan: after[plan] for plan in before} == before
        assert not list(engines_folder(builds.folder).rglob(f"*{TEMPORARY}"))
    return finished


@pytest.mark.slow
def test_builds_that_are_killed_leave_nothing_partial(root, tmp_path):
    """With the fake TensorRT where there is no real one, which starts sooner."""
    (tmp_path / "path").mkdir()
    if not REAL:
        (tmp_path / "path" / "tensorrt_rtx.py").write_text(FAKE)
    builds = Builds(root, write_bundle(tmp_path / "toy"), tmp_path / "path", "64@1")
    kill_and_rerun(builds, kills=4, seed=1)


@pytest.mark.skipif(not REAL, reason="tensorrt_rtx is not installed")
@pytest.mark.slow
def test_fifty_builds_that_are_killed_leave_nothing_partial(root, tmp_path):
    builds = Builds(root, write_bundle(tmp_path / "toy", external=True), tmp_path, "128@2", "64@1")
    assert kill_and_rerun(builds, kills=50, seed=2) > 20
