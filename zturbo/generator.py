"""One config, and prompts in: paths of PNG files, seconds and metadata out. For callers who want files, not arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from runtime.per_image import RANDOM
from zturbo.config import Config, as_config
from zturbo.places import check_writable


class Generator:
    """The pipeline of a config, open until close(). config: a file, a mapping of its keys, or a Config.

    Raises ConfigInvalid, OutputError where pictures could not be saved, and what Pipeline.load does.
    """

    def __init__(self, config: Config | Mapping[str, Any] | Path | str) -> None:
        self.config = as_config(config)
        check_writable(Path(self.config.out))
        self.pipeline = self.config.load_pipeline()

    def generate(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int | None = None,
        num_images: int | None = None,
        seed: int | Sequence[int] | None = None,
        cfg_scale: float | Sequence[float] | None = None,
    ) -> tuple[list[str], float, dict[str, Any]]:
        """Paint a prompt and save its pictures: their paths, the seconds it took to paint them, and metadata.

        What is left out is the config's default, then the bundle's; the seed, then random. cfg_scale is a Request's
        guidance_scale; like the seed it may be a list of one per image. metadata: JSON types; what was asked with every
        default filled in, and in `images` each picture's path, seed, guidance scale and the image of that seed it is.
        Raises RequestInvalid, ShapeOutsideProfile, ExecutionFailed or OutputError.
        """
        seed = self.config.defaults.get("seed", RANDOM) if seed is None else seed
        request = self.config.request(
            prompt, negative_prompt=negative_prompt, width=width, height=height, seed=seed, num_images=num_images,
            num_inference_steps=num_inference_steps, guidance_scale=cfg_scale,
        )  # fmt: skip
        result = self.pipeline.generate(request)
        paths = [str(path) for path in result.save(self.config.out)]
        pictures = []
        for index, path in enumerate(paths):
            own = result.metadata_of(index)
            pictures.append({"path": path, **{name: own[name] for name in ("seed", "image", "guidance_scale")}})
        return paths, result.seconds["total"], {**result.metadata, "images": pictures}

    def close(self) -> None:
        """Free what the backend holds; a second call does nothing."""
        self.pipeline.close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
