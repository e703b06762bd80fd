"""1,000 plans and plan.jsons that are not what they must be: each is refused before anything of it is deserialized.

More than a third are edits of a field whose body hash was then computed again, as who means to deceive would not stop
at, but as a mix-up of folders, versions or machines looks. What holds no promise (seconds, warnings, machine, options,
facts, the words of a verdict) is information: to change it and compute the hash again is no mutant.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.bundle import FILE, encode_bundle, load_bundle, sealed
from engine.errors import BackendUnavailable, PlanError, ZturboError
from engine.plan import info_path, read_info, seal
from engine.verdict import Verdict
from runtime.backends.base import BackendOptions
from runtime.backends.tensorrt import open_backend
from runtime.pipeline import Pipeline
from tests.cut_plans import EVERY, put
from tests.fake_plans import PASSED, Shelf
from tests.mutants import EDITS, KINDS, Files, Good, edited_and_sealed, plans_of

SEED, COUNT = 20261124, 1000
SHARES = {"edited and sealed": 400, "edited": 200, "bits": 200, "cut": 100, "swapped": 100}
assert sum(SHARES.values()) == COUNT


class Deserialized(BaseException):
    """A plan was deserialized that a mutant changed."""


@dataclass
class Ward:
    """A bundle whose plans are good, and what they were. engines: by digest, made once, for they take long to make."""

    shelf: Shelf
    good: Good
    engines: dict[bytes, Any]
    deserialized: list[bytes]

    def load(self) -> None:
        """What a picture needs, then what is loaded where it is asked for."""
        self.deserialized.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Pipeline.load(self.shelf.folder, "tensorrt") as pipeline:
                for plans in pipeline.backend._catalog.sets:
                    for name in sorted(plans.apart):
                        pipeline.backend._loaded(plans, name)

    def write(self, files: Files) -> None:
        for path, raw in files.items():
            path.unlink(missing_ok=True) if raw is None else path.write_bytes(raw)

    def mend(self, files: Files) -> None:
        self.write({path: self.good.files[path] for path in files})


@pytest.fixture
def ward(monkeypatch, tmp_path) -> Ward:
    selftest = pytest.importorskip("zturbo.selftest_bundle")
    (tmp_path / "bundle").mkdir()
    selftest.write_bundle(tmp_path / "bundle")
    shelf = Shelf(monkeypatch, tmp_path / "bundle")
    job = put(shelf, EVERY, parts={"denoiser": 2}, verdict=PASSED)
    plans = [Path(path) for paths in job.plans.values() for path in paths]
    good = {path: path.read_bytes() for plan in plans for path in (plan, info_path(plan))}
    made = Ward(shelf, Good(plans, good), {}, [])
    real, allowed = shelf.module.Runtime.deserialize_cuda_engine, {raw for path, raw in good.items() if path in plans}

    def deserialize(self, raw: bytes) -> Any:
        if raw not in allowed:
            raise Deserialized
        digest = hashlib.sha256(raw).digest()
        made.deserialized.append(digest)
        if digest not in made.engines:
            made.engines[digest] = real(self, raw)
        return made.engines[digest]

    monkeypatch.setattr(shelf.module.Runtime, "deserialize_cuda_engine", deserialize)
    return made


def test_a_thousand_mutants_are_refused_before_they_are_deserialized(ward):
    rng, seen = random.Random(SEED), Counter[str]()
    ward.load()
    assert len(ward.deserialized) == len(ward.good.plans)
    for number, kind in enumerate(kind for kind, share in SHARES.items() for _ in range(share)):
        files = KINDS[kind](ward.good, rng)
        assert files != {path: ward.good.files[path] for path in files}, (kind, number)
        ward.write(files)
        try:
            ward.load()
            pytest.fail(f"mutant {number} ({kind}) was taken: {files}")
        except (BackendUnavailable, PlanError):
            seen[kind] += 1
        touched = {hashlib.sha256(ward.good.files[plan]).digest() for plan in plans_of(files)}
        assert not touched & set(ward.deserialized), (kind, number)
        ward.mend(files)
    assert seen == Counter(SHARES)
    ward.load()


def test_every_field_that_must_agree_is_among_the_edits(ward):
    """Each edit by itself, with the reason that is told: none is refused for another's sake."""
    words = {
        "version": "version of TensorRT", "capabilities": "compute capability", "profiles": ", profiles",
        "graph": "graph it was built from", "part": "part of the graph", "precision": ", precision",
        "bundle": "bundle it was built for", "graph file": "graph file", "recipe": "recipe of zturbo",
        "shapes": "shapes of its profiles", "flavour": "kind of TensorRT", "plan's entry": "denoiser.1of2.plan",
        "verdict": "the parity gate rejected", "schema": "version 2",
    }  # fmt: skip
    assert set(words) == set(EDITS)
    plan = next(path for path in ward.good.plans if path.name == "denoiser.1of2.plan")
    bundle = load_bundle(ward.shelf.folder)
    for name, edit in EDITS.items():
        ward.write({info_path(plan): seal(edit(ward.good.info(plan), random.Random(SEED)))})
        with pytest.raises(ZturboError) as caught:
            open_backend(ward.shelf.folder, bundle, BackendOptions())
        assert words[name] in str(caught.value), (name, str(caught.value))


def test_whole_folders_in_the_wrong_place_are_refused(ward):
    """Every hash in them right: under another profile's name, and under another version's beside a changed bundle."""
    folder = ward.good.plans[0].parent
    moved = folder.rename(folder.with_name("128@2"))
    with pytest.raises(BackendUnavailable, match=r"profiles: dynamic:64-128@1-4; allowed: 128@2"):
        ward.load()
    moved.rename(folder)
    path = ward.shelf.folder / FILE
    bundle = msgspec.structs.replace(load_bundle(ward.shelf.folder), guidance_offset=1.0)
    path.write_bytes(encode_bundle(sealed(bundle)))
    with pytest.raises(BackendUnavailable, match="bundle it was built for"):
        ward.load()
    assert not ward.deserialized


def test_what_is_information_alone_may_be_changed(ward):
    plan = ward.good.plans[0]
    info = ward.good.info(plan)
    assert info.machine is not None
    changes: dict[str, Any] = {
        "seconds": 9.5, "warnings": 3, "machine": msgspec.structs.replace(info.machine, driver="1.0"), "mode": "other",
        "options": msgspec.structs.replace(info.options, level=5),
        "facts": msgspec.structs.replace(info.facts, layers=12, scratch_bytes=8192),
        "verdict": Verdict(status="unverified", reason="not compared yet"),
    }  # fmt: skip
    for name, value in changes.items():
        ward.write({info_path(plan): seal(msgspec.structs.replace(info, **{name: value}))})
        assert read_info(plan, "") != info
        ward.load()
        assert len(ward.deserialized) == len(ward.good.plans), name


def test_a_mutant_that_is_taken_would_be_seen(ward, monkeypatch):
    """The check itself: without the comparison of identities, sealed edits get through."""
    monkeypatch.setattr("engine.catalog.check_identity", lambda *_: None)
    rng = random.Random(SEED)
    taken = 0
    for _ in range(30):
        files = edited_and_sealed(ward.good, rng)
        ward.write(files)
        try:
            ward.load()
            taken += 1
        except (BackendUnavailable, PlanError):
            pass
        ward.mend(files)
    assert taken > 15
