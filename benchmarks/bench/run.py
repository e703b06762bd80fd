"""The whole of a measurement, in order: threads, ceilings, each contender alone, all in turns, likeness, the judge.

What is measured how is in the modules that it calls; what is made of it, in benchmarks/bench/result.py.
"""

from __future__ import annotations

import base64
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.bench.ceilings import merge
from benchmarks.bench.contenders import HIDDEN, Spec
from benchmarks.bench.counts import as_told, counts
from benchmarks.bench.gpu_memory import Gpu
from benchmarks.bench.judged import judge_of, judged
from benchmarks.bench.plan import Plan
from benchmarks.bench.process import ROOT, Child, ContenderFailed
from benchmarks.bench.quality import likeness
from benchmarks.bench.result import BENCHMARK, VERSION, Counts, Result, add_limits, add_turns, comparisons, contender_of
from benchmarks.bench.solo import Alone, slug
from benchmarks.bench.threads import Trial, best_threads
from benchmarks.bench.turns import Turns, groups, take_turns
from benchmarks.loop import dims_of
from benchmarks.machine import Bystanders, commit, machine, versions
from benchmarks.report import as_json
from benchmarks.work import Work, work_from_bundle
from engine.bundle import load_bundle
from engine.machine import free_memory, usable_cores

Say = Callable[[str], None]
REFERENCES = ("diffusers fp32", "diffusers", "pytorch fp32", "pytorch")
"""Whose pictures the others' are compared with: the first that ran in fp32."""
SHOWN = 4
"""Pictures of each contender that the page shows."""
EXPORT_S = 1200
CEILINGS = "benchmarks.bench.ceilings:Ceilings"
SPARE = 0.85
"""Of the free memory, what contenders that take turns may have together."""


class Run:
    """One measurement. folder: for logs and pictures of its processes. gpu: None on a CPU."""

    def __init__(self, plan: Plan, specs: Sequence[Spec], folder: Path, gpu: Gpu | None, say: Say) -> None:
        self.plan, self.folder, self.gpu, self.say = plan, folder, gpu, say
        self.specs = [_with_cache(spec, folder, plan.compile_cache) for spec in specs]
        self.work: Work = work_from_bundle(plan.bundle, size_px=plan.size, steps=plan.steps[0])
        self.ceilings: Result = {"matmul": {}, "copy": {}}
        self.trials: list[Trial] = []
        self.other_cores: list[float] = []
        self.groups: list[list[str]] = []
        self.commit = commit(ROOT)

    def measure(self) -> Result:
        """Everything, as JSON types."""
        begun = time.perf_counter()
        exported = self._export() if self.plan.export else None
        self._choose_threads()
        self._look_up()
        alone, reasons = self._alone()
        turns, fallen = self._turns([spec for spec in self.specs if spec.name in alone], alone)
        self._look_up()
        contenders = {
            spec.name: contender_of(spec, alone.get(spec.name), fallen.get(spec.name, reasons.get(spec.name)))
            for spec in self.specs
        }
        add_turns(contenders, turns, self.plan.steps, "diffusers")
        bundle = load_bundle(self.plan.bundle)
        counted: Counts = {}
        with contextlib.suppress(ValueError):  # shapes that depend on data: no limit is told
            counted = counts(self.plan.bundle, bundle, dims_of(bundle, self.plan.size))
        add_limits(contenders, counted, self.ceilings, self.plan.steps[0])
        reference, pictures = self._likeness(contenders, alone)
        self._judge(contenders)
        return {
            **self._facts(), "ceilings": self.ceilings, "counts": as_told(counted), "export": exported,
            "contenders": contenders, "groups": self.groups, "comparisons": comparisons(contenders, self.plan.steps[0]),
            "reference": reference, "pictures": pictures, "seconds": time.perf_counter() - begun,
        }  # fmt: skip

    def _keep(self, name: str, found: Any) -> None:
        """Write what is known so far, for whoever finds a run that was killed; one that ends takes it away again."""
        (self.folder / f"{name}.json").write_text(as_json(found, indent=1), encoding="utf-8")

    def _facts(self) -> Result:
        work = self.work
        names = ("prompt", "height", "width", "guidance_scale", "scheduler", "scheduler_class")
        here: Result = dict(machine())
        if self.gpu is not None:
            here |= {"gpu": self.gpu.name, "driver": self.gpu.driver, "gpu_memory_bytes": self.gpu.total_bytes}
        return {
            "benchmark": BENCHMARK, "version": VERSION, "device": "cpu" if self.gpu is None else "gpu",
            "work": {"model": work.source.name, **{name: getattr(work, name) for name in names}},
            "machine": here, "versions": versions(), "commit": self.commit, "plan": self.plan.told(),
            "threads": [{"threads": t.threads, "policy": t.policy, "seconds": t.seconds} for t in self.trials],
            "other_cores": max(self.other_cores, default=None), "day": time.strftime("%Y-%m-%d"),
        }  # fmt: skip

    def _export(self) -> Result:
        """Seconds of an export of the same source with its one scheduler, in a fresh process, and its files' size."""
        self.say("exporting once")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / self.work.source.name
            words = ["export", str(self.work.source), "--out", str(out), "--schedulers", self.work.scheduler, "--json"]
            words += ["--device", "cuda"] if self.gpu is not None else []
            begun = time.perf_counter()
            try:
                done = subprocess.run([sys.executable, "-m", "zturbo", *words], capture_output=True, text=True,
                                      cwd=ROOT, check=False, timeout=EXPORT_S)  # fmt: skip
            except subprocess.TimeoutExpired:
                return {"reason": f"no end within {EXPORT_S} s"}
            seconds = time.perf_counter() - begun
            if done.returncode != 0:
                return {"reason": done.stderr.strip()[-300:]}
            return {"seconds": seconds, "size_bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file())}

    def _choose_threads(self) -> None:
        """Of a CPU's contenders of torch: what is fastest for diffusers is taken by all of them."""
        asked = next((spec for spec in self.specs if spec.name == "diffusers"), None)
        torch = [spec.name for spec in self.specs if spec.uses_torch]
        if self.gpu is not None:
            return
        if asked is None:  # nobody to try with
            best = Trial(usable_cores(), self.plan.policies[0], None)
        else:
            self.say("trying threads")
            best, self.trials = best_threads(
                asked, self.plan, self.folder, usable_cores(),
                lambda trial: self.say(f"  {trial.text}"),
            )  # fmt: skip
        self.specs = [best.taken_by(spec) if spec.name in torch else spec for spec in self.specs]

    def _look_up(self) -> None:
        """Measure the ceilings, and keep the better of this moment and an earlier one."""
        self.say("the device's ceilings")
        python = next((spec.python for spec in self.specs if spec.uses_torch), sys.executable)
        spec = Spec(name="ceilings", factory=CEILINGS, settings={}, python=python,
                    environment={"OMP_NUM_THREADS": None, **({} if self.gpu else HIDDEN)})  # fmt: skip
        device = "cpu" if self.gpu is None else "gpu"
        with contextlib.suppress(ContenderFailed), Child(spec, self.folder / "ceilings.log") as child:
            limit_s = self.plan.picture_s
            merge(self.ceilings, child.ask("measure", device=device, threads=usable_cores(), limit_s=limit_s))

    def _alone(self) -> tuple[dict[str, Result], dict[str, str]]:
        found, reasons = dict[str, Result](), dict[str, str]()
        for spec in self.specs:
            free = None if self.gpu is None else self.gpu.free
            try:
                one = found[spec.name] = Alone(spec, self.plan, self.work.source, self.folder, free).measure()
            except ContenderFailed as error:
                reasons[spec.name] = error.short
                self.say(f"{spec.name}: does not run: {error.short}")
            else:
                self._keep("alone", found)
                cold_s = one["coldest"]["cold_s"]
                self.say(f"{spec.name}: first picture after {cold_s:.1f} s, then one in {one['second_s']:.3f} s")
        return found, reasons

    def _turns(self, specs: Sequence[Spec], alone: Mapping[str, Result]) -> tuple[dict[str, Turns], dict[str, str]]:
        """Turns of all contenders that run, in groups that fit into memory together."""
        turns, fallen = dict[str, Turns](), dict[str, str]()
        self.groups = self._grouped(alone)
        for names in self.groups:
            group = [spec for spec in specs if spec.name in names]
            self.say("taking turns: " + ", ".join(names))
            watch = Watch()
            told = take_turns(group, self.plan, self.folder, on_round=watch.look, on_open=watch.begin)
            self.other_cores += [] if watch.cores is None else [watch.cores]
            turns |= told[0]
            fallen |= told[1]
            self._keep("turns", turns)
        return turns, fallen

    def _grouped(self, alone: Mapping[str, Result]) -> list[list[str]]:
        """Contenders that may be alive together: by the host's memory, and on a GPU by its own too."""
        names, host = list(alone), free_memory()
        rooms = [("host_peak_bytes", host)] if host is not None else []
        rooms += [("gpu_peak_bytes", self.gpu.free())] if self.gpu is not None else []
        found = [names]
        for which, room in rooms:
            sizes = {name: one[which] or 0 for name, one in alone.items()}
            found = [part for group in found for part in groups(group, sizes, int(SPARE * room))]
        return found

    def _likeness(self, contenders: Mapping[str, Result], alone: Mapping[str, Result]) -> tuple[str | None, Result]:
        """Adds `quality` to the contenders; the reference's name, and a sheet of everyone's first pictures."""
        painted = {name: np.load(one["pictures"]["file"]) for name, one in alone.items() if "file" in one["pictures"]}
        reference = next(
            (name for name in REFERENCES if name in painted and contenders[name]["precision"] == "fp32"), None
        )
        if reference is not None:
            for name, pictures in painted.items():
                contenders[name]["quality"] = likeness(pictures, painted[reference])
        return reference, {name: as_jpegs(pictures[:SHOWN]) for name, pictures in painted.items()}

    def _judge(self, contenders: Mapping[str, Result]) -> None:
        """Adds `judge` to the main contenders; on a CPU to the first of ours alone, for it takes minutes there."""
        judge = judge_of(self.work.source) if self.plan.judged else None
        if judge is None:
            return
        asked = [spec for spec in self.specs if contenders[spec.name]["runs"] and not spec.of]
        if self.gpu is None:
            asked = [spec for spec in asked if spec.settings.get("backend") not in (None, "pytorch")][:1]
        for spec in asked:
            self.say(f"{spec.name}: the model's judge")
            with contextlib.suppress(ContenderFailed):
                contenders[spec.name]["judge"] = judged(spec, self.plan, self.folder, judge)


def _with_cache(spec: Spec, folder: Path, kept: Path | None) -> Spec:
    """Without `kept`, what is compiled is for this run alone: a first start compiles, others find what that made."""
    if not spec.settings.get("compile"):
        return spec
    cache = folder / slug(spec.name) if kept is None else kept.absolute()
    return replace(spec, environment={**spec.environment, "TORCHINDUCTOR_CACHE_DIR": str(cache)})


class Watch:
    """How many cores other work took while contenders took turns."""

    def __init__(self) -> None:
        self.cores: float | None = None
        self._bystanders: Bystanders | None = None

    def begin(self, pids: list[int]) -> None:
        """From now on, all but these processes are others."""
        with contextlib.suppress(ImportError):  # without psutil nobody can tell
            self._bystanders = Bystanders(pids)

    def look(self) -> None:
        """Up to now; what cannot be told, for a process of ours is gone, is left as it was."""
        if self._bystanders is not None:
            with contextlib.suppress(ProcessLookupError):
                self.cores = self._bystanders.cores()


def as_jpegs(pictures: Sequence[Any]) -> list[str]:
    """Pictures as base64 of JPEG files, for the page."""
    found = []
    for picture in pictures:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=88)
        found.append(base64.b64encode(stream.getvalue()).decode("ascii"))
    return found
