"""The options of `zturbo bench`, as a plan and the contenders. Measures nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.bench.contenders import Spec, chosen, on_cpu, on_gpu
from benchmarks.bench.plan import POLICIES, PROMPTS, Plan, for_gpu, quick
from engine.errors import OptionInvalid
from engine.machine import usable_cores
from runtime.request import MAX_IMAGES, MAX_STEPS

DEFAULT_OUT = Path("out") / "bench"


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    made = argparse.ArgumentParser(
        prog="zturbo bench",
        description="How fast, how much memory, how close to the limit, and is the picture the same",
    )
    add = made.add_argument
    who = (
        "names with commas between: diffusers, torch.compile, tensorrt …; a first word stands for all that begin with "
        "it, `tensorrt=` for itself alone"
    )
    python = "another interpreter for a contender, as tensorrt=.venv86/bin/python"
    add("bundle", type=Path, nargs="?", default=Path("trt_models") / "emoji", help="its source must be where it was")
    add("--steps", type=int, nargs="+", help="step counts, the first counts most (20 4)")
    add("--size", type=int, help="pixels along each side; default: the bundle's")
    add("--contenders", default="", help=who)
    add("--python", action="append", default=[], metavar="NAME=PATH", help=python)
    add("--precision", choices=("fp16", "bf16"), default="fp16", help="on a GPU")
    add("--turns", type=int, help="timed pictures of each contender and step count")
    add("--pictures", type=int, help=f"pictures to compare, up to {len(PROMPTS)}")
    add("--batches", type=int, nargs="*", metavar="N", help="pictures at a time (1 2 4 8); none leaves them out")
    add("--judged", type=int, help="pictures for the model's own judge; 0 leaves it out")
    add("--starts", type=int, help="fresh processes of each contender")
    add("--wait", choices=POLICIES, help="OpenMP's wait policy for torch on a CPU; default: the faster, which where "
        "others come and go should be PASSIVE")  # fmt: skip
    add("--max-autotune", action="store_true", help="torch.compile in that mode too; it takes minutes")
    add("--compile-batches", action="store_true", help="batches for torch.compile, each compiled anew")
    add("--compile-cache", type=Path, metavar="DIR", help="keep what torch.compile makes here, and take what is here; "
        "its first start is then none of a machine that knows nothing")  # fmt: skip
    add("--cpu", action="store_true", help="as if there were no GPU")
    add("--quick", action="store_true", help="as little as shows that it works")
    add("--no-export", action="store_true", help="do not time an export")
    add("--out", type=Path, default=DEFAULT_OUT, metavar="DIR",
                      help="for result.json, plots and index.html (out/bench)")  # fmt: skip
    add("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two results beside each other; no run")
    page = "draw the plots and the page again from what a run wrote to this folder, as on another machine; no run"
    add("--page", type=Path, metavar="DIR", help=page)
    return made


def plan_of(options: argparse.Namespace, *, gpu: bool) -> Plan:
    """How to measure. Raises OptionInvalid."""
    plan = Plan(bundle=options.bundle, size=options.size, compile_batches=options.compile_batches,
                compile_cache=options.compile_cache)  # fmt: skip
    plan = for_gpu(plan) if gpu else plan
    plan = quick(plan) if options.quick else plan
    ranges = {"turns": (1, 1000), "pictures": (0, len(PROMPTS)), "judged": (0, 216), "starts": (1, 20)}
    for name, (low, high) in ranges.items():
        value = getattr(options, name)
        if value is not None:
            _check(name, value, low, high)
            plan = replace(plan, **{name: value})
    for count in options.batches or ():
        _check("batches", count, 1, MAX_IMAGES)
    if options.batches is not None:
        plan = replace(plan, batches=tuple(sorted(set(options.batches))))
    for steps in options.steps or ():
        _check("steps", steps, 1, MAX_STEPS)
    steps = tuple(dict.fromkeys(options.steps)) if options.steps else plan.steps
    plan = plan if options.wait is None else replace(plan, policies=(options.wait,))
    return replace(plan, steps=steps, export=plan.export and not options.no_export)


def specs_of(options: argparse.Namespace, *, gpu: bool) -> list[Spec]:
    """Who takes part. Raises OptionInvalid."""
    autotune = options.max_autotune
    specs = on_gpu(options.precision, autotune=autotune) if gpu else on_cpu(usable_cores(), autotune=autotune)
    names = [name.strip() for name in options.contenders.split(",") if name.strip()]
    return chosen(specs, names, pythons_of(options.python))


def pythons_of(words: Sequence[str]) -> Mapping[str, str]:
    """{name: interpreter} of NAME=PATH. Raises OptionInvalid."""
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise OptionInvalid("bench, --python", actual=repr(word), allowed="NAME=PATH", remedy="As `tensorrt=PATH`.")
        # Not resolved: a virtual environment's interpreter is a link, and finds its packages by where the link lies.
        found[name] = str(Path(path).absolute()) if "/" in path or "\\" in path else path
    return found


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OptionInvalid(f"bench, --{name}", actual=str(value), allowed=f"{low} to {high}", remedy="Leave it out.")
