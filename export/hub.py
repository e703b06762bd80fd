"""A model of a hub, at one commit, as a diffusers folder in the hub library's own cache.

Knows which files are worth their bytes: configs, tokenizers and one variant of safetensors; never a pickle. Does not
read the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.errors import SourceError
from export.source import INDEX, TEXTS, UNUSED, read_index

PREFIX = "hub:"
ID = re.compile(r"(?:hub:)?([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,127}))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
FILE = re.compile(r"[\w.-]+")
STEM = r"(?:diffusion_pytorch_model|model)"
WEIGHTS = (
    re.compile(rf"{STEM}(?:-\d{{5}}-of-\d{{5}})?\.safetensors"),
    re.compile(rf"{STEM}\.fp16\.safetensors"),
    re.compile(rf"{STEM}\.[\w-]+\.safetensors"),
)
"""Names of weights, the better ones first: those of the whole model, of half precision, of another variant."""


def fetch(text: str, *, weights: bool = True, endpoint: str | None = None) -> tuple[Path, str]:
    """The folder of `org/name` or `org/name@revision`, and its commit. What is in the cache is not fetched again.

    weights: without them configs and tokenizers alone. endpoint: of the hub, None for the library's own setting.
    Raises SourceError where the hub or the model cannot be reached, or the model has no safetensors.
    """
    match = ID.fullmatch(text)
    assert match is not None, "whoever asks has looked"
    repository, revision = match[1], match[2] or "main"
    with _translated(text):
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download
        from huggingface_hub.constants import is_offline_mode

        if is_offline_mode():
            kept = Path(hf_hub_download(repository, INDEX, revision=revision, local_files_only=True)).parent
            return kept, kept.name
        info = HfApi(endpoint=endpoint).model_info(repository, revision=revision)
        commit, names = str(info.sha), [file.rfilename for file in info.siblings or ()]
        if INDEX not in names or COMMIT.fullmatch(commit) is None:
            raise _unfit(text, f"a model without {INDEX}")
        index = Path(hf_hub_download(repository, INDEX, revision=commit, endpoint=endpoint))
        chosen = [INDEX, *wanted(text, names, components(index.parent), weights=weights)]
        folder = snapshot_download(repository, revision=commit, allow_patterns=chosen, endpoint=endpoint)
    return Path(folder), commit


def components(folder: Path) -> tuple[str, ...]:
    """The components that a folder's index names and that are used."""
    index = read_index(folder)
    return tuple(
        name for name, part in index.items() if isinstance(part, list) and part[1] is not None and name not in UNUSED
    )


def wanted(text: str, names: Sequence[str], parts: Sequence[str], *, weights: bool) -> list[str]:
    """Which of a model's files to fetch, component by component. Raises SourceError where one has pickles alone."""
    chosen = []
    for part in parts:
        files = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        files = [file for file in files if FILE.fullmatch(file)]
        texts = [file for file in files if file.endswith(TEXTS)]
        found = _weights(files)
        if weights and not found and any(file.endswith((".bin", ".msgpack", ".h5", ".ckpt", ".pt")) for file in files):
            raise _unfit(text, f"{part} without safetensors")
        chosen += [f"{part}/{file}" for file in (*texts, *(found if weights else ()))]
    return chosen


def _weights(files: Sequence[str]) -> list[str]:
    """The weights of one component in its best variant; shards only where there is no whole file."""
    for pattern in WEIGHTS:
        found = sorted(file for file in files if pattern.fullmatch(file))
        whole = [file for file in found if "-of-" not in file]
        if found:
            return whole[:1] or found
    return []


@contextmanager
def _translated(text: str) -> Iterator[None]:
    """What the hub's library raises becomes a SourceError with a remedy."""
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the errors below say what its warnings do
    unanswered = getattr(errors, "HTTPError", OSError)  # the HTTP library's own, which differs between versions
    try:
        yield
    except errors.GatedRepoError as error:
        raise _unfit(text, "a model whose terms this account has not accepted", "Accept them on its page.") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise _unfit(
            text, "no such model or revision on the hub", "Check the name; a folder needs its path."
        ) from error
    except (OSError, ValueError, errors.EntryNotFoundError, unanswered) as error:
        raise _unfit(
            text, f"no such folder here, nothing in the cache, and no answer of the hub ({type(error).__name__})",
            "Check the path. A hub's model needs a network, and HF_HUB_OFFLINE must not be 1.",
        ) from error  # fmt: skip
    finally:
        logging.set_verbosity(level)


def _unfit(text: str, actual: str, remedy: str = "") -> SourceError:
    return SourceError(
        text, actual=actual, allowed="a folder, or a hub's model in diffusers layout with safetensors",
        remedy=remedy or "Fetch a .safetensors checkpoint yourself and export that with --config.",
    )  # fmt: skip
