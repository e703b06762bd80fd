"""The parts of bundle.json: what each says of the model, its tables, its references and its LoRAs.

Does not read or check a file (engine/bundle.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from engine.binding import Precision
from engine.wiring import Wire

Count = Annotated[int, msgspec.Meta(ge=1)]
Offset = Annotated[int, msgspec.Meta(ge=0)]
Guidance = Literal["classifier_free", "embedded"]
"""How a guidance scale acts: on two denoiser rows of a sample, or as an embedding that a distilled denoiser reads."""
FOLDER = "folder"


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the schema: frozen, and an unknown key is an error."""


class FileEntry(Struct, frozen=True):
    """Size in bytes and sha256 of one file."""

    size_bytes: int
    sha256: str


class Source(Struct, frozen=True):
    """The model that was exported: its folder relative to the bundle, and the hash of its files.

    origin: what that folder was made from: `folder` (itself), `file:NAME sha256:HEX`, `hub:ORG/NAME@COMMIT`,
    `random:NAME seed:N`.
    """

    path: str
    sha256: str
    origin: str = FOLDER


class Latents(Struct, frozen=True):
    """Channels of the latents, and how many pixels one of them spans along each side."""

    channels: Count
    factor: Count


class Limits(Struct, frozen=True):
    """Sizes in pixels that the model was made for: height and width from min_px to max_px in steps of multiple_px."""

    min_px: Count
    max_px: Count
    multiple_px: Count

    def allow(self, px: int) -> bool:
        """Whether a height or width is one of these sizes."""
        return self.min_px <= px <= self.max_px and px % self.multiple_px == 0


class Defaults(Struct, frozen=True):
    """What a request gets where it names nothing."""

    height: Count
    width: Count
    num_inference_steps: Count
    guidance_scale: float
    scheduler: str


class SchedulerEntry(Struct, frozen=True):
    """One scheduler in the tables: the diffusers class and settings it was probed from, and its range of steps.

    aliases: other names of it, in any case. etas: those with tables, the default first; none where it takes none.
    order: evaluations per step, as diffusers' pipelines count. warm: how many rows are others after a late begin.
    """

    class_name: str
    settings: dict[str, Any]
    min_steps: Count
    max_steps: Count
    aliases: tuple[str, ...]
    etas: tuple[float, ...]
    order: Count
    warm: Annotated[int, msgspec.Meta(ge=0)]


class Tables(Struct, frozen=True):
    """The solver tables: an .npz laid out as engine/tablefile.py has it, (evaluations + 1, columns) per step count.

    Row 0 starts the loop; row i replays model evaluation i. A batch's table is padded to `rows`.
    columns: names by position; a reader ignores those it does not know. refused: why a scheduler has none, by name.
    part_counts: whether a strength that ends within a step makes all of that step, as pipelines of flow models reckon
    it, or none of it.
    """

    file: str
    rows: Count
    columns: tuple[str, ...]
    schedulers: dict[str, SchedulerEntry]
    refused: dict[str, str]
    part_counts: bool = False


class ReferenceCase(Struct, frozen=True):
    """One recorded case of reference.npz: keys `<case>/<graph>/<binding>`.

    fp16_error: {graph: {output: ‖fp16 − fp32‖ / ‖fp32‖}}, what torch's own fp16 loses at this case.
    """

    name: str
    dims: dict[str, int]
    fp16_error: dict[str, dict[str, float]]


class LoopCase(Struct, frozen=True):
    """A short run of all stages in reference.npz: keys `loop/<wire>` for the host's inputs, and for `latents` and
    `images` at the end. evaluations: how often the loop's graphs run. fp16_error: {wire: what torch's fp16 loses}.
    """

    dims: dict[str, int]
    evaluations: Count
    fp16_error: dict[str, float]


class Reference(Struct, frozen=True):
    """Seeded inputs and fp32 torch outputs of every graph, and of a short loop, for the parity gate.

    A hoisted prologue has no arrays of its own: those of the graph it was cut from are the whole's. largest: the
    largest magnitude of any intermediate of each graph that the fp16 variant computes in fp16, found in fp32; fp16
    ends at 65504. Of a bundle that was exported unchecked there are no cases and no loop: its plans are not gated.
    """

    file: str
    cases: tuple[ReferenceCase, ...]
    loop: LoopCase | None
    largest: dict[str, float] = {}


class FusedLora(Struct, frozen=True):
    """A LoRA that export added to the weights: its file relative to the bundle, its hash, and its weight."""

    path: str
    sha256: str
    weight: float


class LoraLayer(Struct, frozen=True):
    """A layer of the denoiser that takes a LoRA. name: diffusers' module path. aliases: the stems of it in files.

    inputs, outputs: its features. down, up: where the columns of A (rank, inputs) and of Bᵀ (rank, outputs) begin.
    """

    name: str
    aliases: tuple[str, ...]
    inputs: Count
    outputs: Count
    down: Offset
    up: Offset


class LoraInputs(Struct, frozen=True):
    """The wire `lora`: (rows, rank, size), A and Bᵀ of every layer side by side; zeros are no LoRA.

    rank: the greatest there may be, of all LoRAs of a row together.
    """

    rank: Count
    size: Count
    layers: tuple[LoraLayer, ...]

    def wire(self, precision: Precision) -> Wire:
        """The wire in one variant: it has the denoiser's own type."""
        return "float16" if precision == "fp16" else "float32", ("rows", self.rank, self.size)
