"""What the engine's tests share: refusals of bundles, made-up TensorRTs, and builds and gates without one."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

import engine.plan
from engine.bundle import load_bundle
from engine.chain import cut_wires
from engine.errors import BundleError, ZturboError
from engine.job import GateJob, GateReply, Job
from engine.plan import Facts, PlanInfo, Wires
from engine.publish import publish
from engine.schema import FileEntry
from engine.verdict import NOT_YET, Verdict
from tests import fake_cuda, fake_tensorrt


@pytest.fixture
def refused() -> Callable[[Path, type[BundleError]], BundleError]:
    """Load a bundle that must be refused with exactly this error, and see that nothing was written."""

    def check(folder: Path, kind: type[BundleError]) -> BundleError:
        before = contents(folder)
        with pytest.raises(ZturboError) as caught:
            load_bundle(folder)
        assert type(caught.value) is kind
        assert contents(folder) == before
        assert caught.value.actual
        assert "`zturbo export" in caught.value.remedy
        return caught.value

    return check


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@dataclass
class StubBuilds:
    """Builds without TensorRT, in this process. A plan's bytes are what it was asked to be.

    jobs: what was built. asked: how many side by side, of each build. seconds: that a build says it took.
    """

    jobs: list[Job] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    seconds: float = 2.0

    def run_jobs(self, jobs, side_by_side, on_start, on_tick=lambda: None):
        self.asked.append(side_by_side)
        for job in jobs:
            on_start(job)
            on_tick()
            self.jobs.append(job)
            yield job, self.build(job)

    def build(self, job: Job) -> PlanInfo:
        identity = msgspec.structs.replace(job.identity, bundle_sha256="")
        raw = msgspec.json.encode([identity, job.options])
        info = PlanInfo(
            version_of_schema=engine.plan.VERSION, sha256="", identity=job.identity, options=job.options, mode="stub",
            wires=self.wires(job), machine=job.machine,
            plan=FileEntry(size_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest()),
            warnings=0, seconds=self.seconds, facts=Facts(), verdict=NOT_YET,
        )  # fmt: skip
        publish(Path(job.plan), raw, info)
        return info

    def wires(self, job: Job) -> Wires:
        """As the graph is cut; where it has fewer blocks than parts, one made-up tensor crosses."""
        index, count = job.identity.part
        with contextlib.suppress(ValueError):
            return cut_wires(Path(job.folder), job.graph, [job.identity.part])[0]
        inputs, outputs = (tuple(one.name for one in side) for side in (job.graph.inputs, job.graph.outputs))
        return Wires(
            inputs=inputs if index == 1 else (f"cut {index - 1}",),
            outputs=outputs if index == count else (f"cut {index}",),
        )

    def names(self) -> list[str]:
        """`folder/plan` of what was built since the last call, sorted."""
        found = sorted(f"{Path(job.plan).parent.name}/{job.identity.name}" for job in self.jobs)
        self.jobs.clear()
        return found


@pytest.fixture
def stub_builds(monkeypatch) -> StubBuilds:
    stub = StubBuilds()
    monkeypatch.setattr("engine.build.run_jobs", stub.run_jobs)
    return stub


@pytest.fixture
def rtx(monkeypatch):
    """A made-up TensorRT-RTX, whose plans need no GPU; and there is none but where a test put one."""
    if not isinstance(sys.modules.get("cuda.bindings.runtime"), fake_cuda.FakeCuda):
        fake_cuda.install(monkeypatch, fake_cuda.FakeCuda(count=0))
    return fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("rtx"))


@pytest.fixture
def gpu(monkeypatch) -> fake_cuda.FakeCuda:
    """A made-up H200 and TensorRT 10."""
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("10"))
    return fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())


@pytest.fixture
def old_gpu(monkeypatch) -> fake_cuda.FakeCuda:
    """A made-up H200 and TensorRT 8.6."""
    fake_tensorrt.install(monkeypatch, fake_tensorrt.fake("8.6"))
    return fake_cuda.install(monkeypatch, fake_cuda.FakeCuda())


@pytest.fixture
def gate(monkeypatch) -> Callable[..., list[GateJob]]:
    """Set what the parity gate replies: a GateReply, or a function of the job; returns the jobs that it gets."""

    def replies(reply: GateReply | Callable[[GateJob], GateReply]) -> list[GateJob]:
        jobs: list[GateJob] = []

        def run_gate(job, on_tick=lambda: None):
            jobs.append(job)
            return reply if isinstance(reply, GateReply) else reply(job)

        monkeypatch.setattr("engine.gating.run_gate", run_gate)
        return jobs

    return replies


def passed(job: GateJob) -> GateReply:
    return GateReply(verdicts={graph: Verdict(status="passed", ungated=("odd",)) for graph in job.plans})
