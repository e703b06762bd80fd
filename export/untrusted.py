"""A component's folder, judged before diffusers or transformers read it: nothing in it makes them run or allocate much.

A config is compared with the weights: a module that would have more tensors or numbers than its files is given up while
it is made, on torch's meta device. Code that a config names is refused, never run. Does not know families.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from engine.errors import SourceError, ZturboError, shown
from export.safefile import Safefile, check_safetensors
from export.silent import silent
from export.source import RESAVE, read_json

SPARE_NUMBERS, SPARE_TENSORS = 2**22, 64
"""What a module may have beside its weights: buffers of positions."""
FOREIGN = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    TypeError, ValueError, StrictDataclassError,
)  # fmt: skip
"""What the libraries raise on configs and weights that are not what they expect."""
PLAIN: dict[Any, str] = {
    int: "number", float: "number", bool: "number", str: "text", list: "list", tuple: "list", ...: "list",
    type(None): "nothing",
}  # fmt: skip
WEIGHTS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
OTHERS = {
    **dict.fromkeys(
        (".bin", ".ckpt", ".pt", ".pth"), "Save the model again with safe_serialization=True: pickles are never read."
    ),
    **dict.fromkeys(
        (".gguf", ".msgpack", ".h5", ".onnx", ".pb", ".xml", ".ot"),
        "Export the model that PyTorch reads, in .safetensors: weights of other libraries are not converted.",
    ),
}  # fmt: skip
"""The endings of weights that are not read, and what mends that."""
TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
"""All that a text encoder's architecture needs; its config has room for more, kernels from a hub among them."""


QWEN_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters",
    "attention_bias",
)  # fmt: skip
FIELDS = {"Qwen3Model": QWEN_FIELDS}
"""The same of encoders that are not CLIP's."""


def open_component(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A module of a class of diffusers or transformers in eval mode, from safetensors in this folder alone.

    Raises SourceError where config or weights are missing, damaged, or do not belong together.
    """
    config = checked_config(kind, folder)
    variant, files = weights_of(kind, folder)
    check_size(kind, folder, config, files)
    with translated(kind, folder), silent():
        if is_of_transformers(kind):
            named = {"config": text_config(kind, config), "dtype": dtype}
        else:
            named = {"torch_dtype": dtype}
        module, told = kind.from_pretrained(
            folder, variant=variant, local_files_only=True, use_safetensors=True, output_loading_info=True, **named
        )
    if missing := sorted(map(str, told["missing_keys"])):
        raise _unusable(kind, folder, f"no weights for {missing[0]!r}, {len(missing)} missing")
    return module.eval()


def checked_config(kind: Any, folder: Path) -> dict[str, Any]:
    """config.json of a component: for this class, without code of its own, and of sane numbers. Raises SourceError."""
    path = folder / "config.json"
    config = read_json(path)
    named = config.get("architectures") if is_of_transformers(kind) else [config.get("_class_name")]
    allowed = (None, kind.__name__, *ALSO.get(kind.__name__, ()))
    if named is not None and not (isinstance(named, list) and all(name in allowed for name in named)):
        raise _unusable(kind, path, f"a config of {shown(named)}")
    _check_kinds(kind, path, config)
    if (folder / "adapter_config.json").exists():
        raise _unusable(kind, folder / "adapter_config.json", "an adapter, which names another model")
    return config


ALSO = {
    "CLIPTextModel": ("CLIPModel",), "CLIPTextModelWithProjection": ("CLIPModel", "CLIPTextModel"),
    "Qwen3Model": ("Qwen3ForCausalLM",),
}  # fmt: skip
"""Classes whose configs and weights serve as well."""


def _check_kinds(kind: Any, path: Path, config: dict[str, Any]) -> None:
    """Raise SourceError for a value of another kind than a class's argument takes: some would fail only when it runs.

    transformers checks its own configs; but a list of ids, which it takes, no text encoder of ours can use.
    """
    if is_of_transformers(kind):
        wrong = [name for name in fields_of(kind) if isinstance(config.get(name), list)]
    else:
        hints = get_type_hints(kind.__init__)
        defaults = {name: one.default for name, one in inspect.signature(kind.__init__).parameters.items()}
        wrong = [
            name for name, hint in hints.items()
            if name in config and config[name] != defaults.get(name) and (taken := _taken(hint))
            and not _kinds(config[name]) <= taken
        ]  # fmt: skip
    if wrong:
        raise _unusable(kind, path, f"{wrong[0]} of {shown(config[wrong[0]])}")


def _taken(hint: Any) -> set[str]:
    """The kinds of values that an annotation allows; none where it is not one of the plain ones."""
    if hint is bool:
        return {"number", "nothing"}  # SDXL's own config has null for false
    if hint in PLAIN:
        return {PLAIN[hint]}
    inner = [_taken(one) for one in get_args(hint)]
    return (set().union(*inner) | {PLAIN.get(get_origin(hint), "")} - {""}) if inner and all(inner) else set()


def _kinds(value: Any) -> set[str]:
    """The kinds of a value and of what is in it."""
    if isinstance(value, list):
        return {"list"}.union(*map(_kinds, value))
    return {PLAIN.get(type(value), "object")}


def weights_of(kind: Any, folder: Path) -> tuple[str | None, tuple[Safefile, ...]]:
    """The variant that the names of a component's weights bear, None for none, and its checked files."""
    stem = WEIGHTS["transformers" if is_of_transformers(kind) else "diffusers"]
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if (folder / whole).exists() or (folder / index).exists():
        names = _shards(folder / index) if not (folder / whole).exists() else (whole,)
        return None, tuple(check_safetensors(folder / name) for name in names)
    found = sorted(path.name for path in folder.glob(f"{stem}.*.safetensors"))
    if len(found) == 1:
        return found[0].split(".")[-2], (check_safetensors(folder / found[0]),)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHERS) if folder.is_dir() else []
    remedy = OTHERS[Path(others[0]).suffix] if others else "Keep one variant of the weights." if found else RESAVE
    raise SourceError(
        str(folder), actual=", ".join(found or others) or "no weights", allowed=f"{whole}, or shards with {index}",
        remedy=remedy,
    )  # fmt: skip


def _shards(index: Path) -> tuple[str, ...]:
    """The files that an index of shards names; all of them lie beside it."""
    places = read_json(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise _refused(index, f"weights in {shown(names)}")
    return tuple(names)


def check_size(kind: Any, folder: Path, config: dict[str, Any], files: tuple[Safefile, ...]) -> None:
    """Raise SourceError where the module that a config describes has more in it than the files that shall fill it."""
    tensors = sum(len(file.tensors) for file in files)
    numbers = sum(file.elements for file in files)
    with translated(kind, folder), silent(), torch.device("meta"), bounded(tensors, numbers):
        if is_of_transformers(kind):
            kind(text_config(kind, config))
        else:
            kind.from_config(config)


@contextmanager
def bounded(tensors: int, numbers: int) -> Iterator[None]:
    """Within the block making a module ends with a ValueError where it gets to be larger than this."""
    left = {"tensors": tensors + SPARE_TENSORS, "numbers": numbers + SPARE_NUMBERS}

    def count(_module: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None:
            left["tensors"] -= 1
            left["numbers"] -= value.numel()
        if min(left.values()) < 0:
            raise ValueError(f"a module larger than its {tensors} tensors of {numbers} numbers, at {name!r}")

    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def text_config(kind: Any, config: dict[str, Any]) -> Any:
    """The config object of a text encoder, of the fields of its architecture alone."""
    return kind.config_class(**{name: config[name] for name in fields_of(kind) if name in config})


def fields_of(kind: Any) -> tuple[str, ...]:
    """The fields of a text encoder's config that its architecture needs."""
    return FIELDS.get(kind.__name__, TEXT_FIELDS)


@contextmanager
def translated(kind: Any, place: Path) -> Iterator[None]:
    """What the libraries raise within the block becomes a SourceError about this place."""
    try:
        yield
    except FOREIGN as error:
        raise _unusable(kind, place, _in_short(error)) from error


@contextmanager
def running(source: Path, graph: str) -> Iterator[None]:
    """What a module raises when it runs within the block becomes a SourceError: its configs ask for something that no
    family gives it, or for more memory than there is. A GPU's memory that is not there is none of it.
    """
    try:
        yield
    except (ZturboError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):  # torch has no class of its own for the host's memory
            raise SourceError(
                f"{source}, graph '{graph}'", actual=f"more than this machine's memory ({_in_short(error)})",
                allowed="a model that fits, with what it computes",
                remedy="Export it with --unchecked, which runs none of it.",
            ) from error  # fmt: skip
        raise _does_not_run(source, graph, error) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _does_not_run(source, graph, error) from error


def _does_not_run(source: Path, graph: str, error: BaseException) -> SourceError:
    return SourceError(
        f"{source}, graph '{graph}'", actual=f"a module that does not run ({_in_short(error)})",
        allowed="modules that run on what their family gives them",
        remedy="Report it if diffusers paints with this model; its configs may be another one's.",
    )  # fmt: skip


def _in_short(error: BaseException) -> str:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return words if len(words) <= 200 else f"{words[:199]}…"


def is_of_transformers(kind: Any) -> bool:
    """Whether a class is one of transformers, not of diffusers."""
    return str(kind.__module__).startswith("transformers.")


def _unusable(kind: Any, place: Path, actual: str) -> SourceError:
    return SourceError(
        str(place), actual=actual, allowed=f"a saved {kind.__name__}",
        remedy=RESAVE,
    )  # fmt: skip


def _refused(path: Path, actual: str) -> SourceError:
    return SourceError(
        str(path), actual=actual, allowed="the configs that diffusers saves",
        remedy=RESAVE,
    )  # fmt: skip
