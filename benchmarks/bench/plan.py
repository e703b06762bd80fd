"""How a run measures: counts, sizes and limits, from the command's options and the device.

Knows no contender.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

PROMPTS = (
    "a cat left of a pizza on white", "a rocket on a blue background", "a small pizza on teal",
    "a large sunflower on purple", "a panda, pink background", "a cat on a white background",
    "an owl above a book on yellow", "a robot next to a guitar on orange",
)  # fmt: skip
"""One picture each for the comparison of pictures; a prompt's place is its seed. The first is what is timed."""
POLICIES = ("PASSIVE", "default")
"""OpenMP's wait policies. Spinning, which is the default, is up to 1.75 times as fast, and on a core that another
program wants too eight times as slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """steps: step counts, the first for everything that is taken at one. turns, warmup: of each contender, interleaved.

    parts: launches of each graph alone. batches: pictures at a time; batch_turns: of each. pictures: compared with the
    reference. judged: pictures that a model's own judge sees. compile_batches: whether what compiles for each shape
    takes batches too. compile_cache: a folder of what torch.compile made before and makes now; None for one of this
    run's own, so that a first start compiles. starts: fresh processes of each contender, one of a variant. policies:
    OpenMP's wait policies that are tried for torch on a CPU. limits in seconds of one command: open_s (loading),
    first_s (a first picture, a compiler's time included), picture_s (each further one).
    """

    bundle: Path
    size: int | None
    steps: tuple[int, ...] = (20, 4)
    turns: int = 7
    warmup: int = 1
    parts: int = 12
    batches: tuple[int, ...] = (1, 2, 4, 8)
    batch_turns: int = 2
    pictures: int = 4
    judged: int = 24
    starts: int = 2
    compile_batches: bool = False
    gpu: bool = False
    export: bool = True
    policies: tuple[str, ...] = POLICIES
    compile_cache: Path | None = None
    open_s: float = 300.0
    first_s: float = 600.0
    picture_s: float = 120.0

    @property
    def batch_steps(self) -> int:
        """Of the pictures in batches: on a CPU the fewest, for eight pictures of twenty steps are ten seconds there."""
        return self.steps[0] if self.gpu else min(self.steps)

    def told(self) -> dict[str, Any]:
        """As JSON types, without the machine's path."""
        return {
            **asdict(self), "bundle": self.bundle.resolve().name, "compile_cache": self.compile_cache is not None,
        }  # fmt: skip


def for_gpu(plan: Plan) -> Plan:
    """Counts for a GPU, where a picture is short and compilers take minutes."""
    return replace(
        plan, gpu=True, turns=25, warmup=3, parts=100, batch_turns=5, pictures=8, judged=24, open_s=600.0,
        first_s=1200.0,
    )  # fmt: skip


def quick(plan: Plan) -> Plan:
    """As little as shows that everything works."""
    return replace(
        plan, steps=(2,), turns=2, warmup=1, parts=2, batches=(1, 2), batch_turns=1, pictures=1, judged=0, starts=1,
        export=False,
    )  # fmt: skip
