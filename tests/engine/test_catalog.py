"""Which plans are found: sets by folder, chains of parts, precision, verdicts; and that no mutant is let through."""

from __future__ import annotations

import random
import re
from pathlib import Path

import msgspec
import pytest

from engine.bundle import load_bundle
from engine.catalog import find_plans
from engine.dialect import load_dialect
from engine.errors import PlanDamaged, PlanError, PlanInvalid, PlanMismatch, PlanMissing
from engine.machine import Machine
from engine.plan import Identity, PlanInfo, info_path, seal
from engine.publish import set_aside
from engine.verdict import NOT_YET, Verdict
from tests.fake_plans import H200, Shelf
from tests.toy_bundle import write_bundle

CUTS = {"denoiser": ("half", "weighted")}
DIMS = {"samples": 1, "rows": 2, "height": 128, "width": 128, "tokens": 77, "draws": 1}


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    return Shelf(monkeypatch, write_bundle(tmp_path / "toy"))


def found(shelf, precision="fp16", here=H200):
    return find_plans(shelf.folder, load_bundle(shelf.folder), precision, load_dialect("tensorrt"), here)


def edit(plan: Path, **identity) -> None:
    """Change fields of a plan's identity, and compute the hash of plan.json's body again."""
    info = msgspec.json.decode(info_path(plan).read_bytes(), type=PlanInfo)
    info_path(plan).write_bytes(
        seal(msgspec.structs.replace(info, identity=msgspec.structs.replace(info.identity, **identity)))
    )


def test_sets_are_read_from_their_folders_names(shelf):
    shelf.put("128@2")
    shelf.put("dynamic:64-128@1-4", "136@2")
    shelf.put("128@2", precision="bf16")
    folder = shelf.put("64@2").parent
    (folder / "notes").mkdir()
    (folder / "064@2").mkdir()  # reads as 64@2, which is another folder
    (folder / "timing.cache").touch()
    catalog = found(shelf)
    assert [plans.name for plans in catalog.sets] == ["128@2", "64@2", "dynamic-64-128@1-4+136@2"]
    assert not catalog.problems
    assert catalog.others == ("tensorrt-10.13.0.35-sm90 in bf16",)
    assert [plans.name for plans in found(shelf, "bf16").sets] == ["128@2.bf16"]


def test_the_closest_profile_of_all_sets_is_taken_with_its_index(shelf):
    shelf.put("dynamic:64-256@1-8")
    shelf.put("64@2", "128@2", "128@3-8")
    catalog = found(shelf)

    def of(**dims):
        plans, index = catalog.covering({**DIMS, **dims})
        return plans.name, index

    assert of() == ("64@2+128@2+128@3-8", 1)
    assert of(rows=4, samples=2) == ("64@2+128@2+128@3-8", 2)
    assert of(height=64, width=64) == ("64@2+128@2+128@3-8", 0)
    assert of(rows=1) == ("dynamic-64-256@1-8", 0)
    assert catalog.covering({**DIMS, "rows": 9}) is None
    assert catalog.nearest(512, 512).name == "dynamic-64-256@1-8"
    assert catalog.row_counts(128, 128, 77) == list(range(1, 9))


def test_rows_have_gaps_where_profiles_do(shelf):
    shelf.put("128@2")
    shelf.put("128@6-8")
    assert found(shelf).row_counts(128, 128, 77) == [2, 6, 7, 8]
    assert found(shelf).row_counts(512, 512, 77) == [2, 6, 7, 8]


def test_prompts_of_several_chunks_have_rows_and_profiles_of_their_own(shelf):
    shelf.put("128@1-2")
    shelf.put("128@4t77-231", "128@6t231")
    catalog = found(shelf)
    assert [catalog.row_counts(128, 128, tokens) for tokens in (77, 154, 231)] == [[1, 2, 4], [4], [4, 6]]
    assert catalog.row_counts(128, 128, 308) == [1, 2, 4, 6]
    assert catalog.covering({**DIMS, "tokens": 154}) is None
    plans, index = catalog.covering({**DIMS, "rows": 4, "samples": 2, "tokens": 154})
    assert (plans.name, index) == ("128@4t77-231+128@6t231", 0)


def test_of_two_profiles_of_one_size_the_one_for_shorter_prompts_is_tuned_closer(shelf):
    shelf.put("128@2t77-231")
    shelf.put("128@2")
    assert found(shelf).covering(DIMS)[0].name == "128@2"
    assert found(shelf).covering({**DIMS, "tokens": 154})[0].name == "128@2t77-231"


def test_of_several_chains_the_one_with_fewest_parts_that_may_run_is_taken(shelf):
    shelf.put("128@2", cuts=CUTS)
    shelf.put("128@2", cuts={"denoiser": ("half",)})

    def parts():
        return [path.name for path, _ in found(shelf).sets[0].plans["denoiser"]]

    two, three = ([f"denoiser.{k}of{n}.plan" for k in range(1, n + 1)] for n in (2, 3))
    assert parts() == two
    folder = shelf.put("128@2")
    assert parts() == ["denoiser.plan"]
    edit(folder / "denoiser.plan", recipe=99)
    assert parts() == two
    info_path(folder / two[1]).unlink()
    assert parts() == three
    assert [(graph, part) for graph, part, _ in found(shelf).sets[0].read()] == [
        ("start", (1, 1)), ("denoiser", (1, 3)), ("denoiser", (2, 3)), ("denoiser", (3, 3)), ("decoder", (1, 1)),
    ]  # fmt: skip
    (folder / three[2]).unlink()
    assert isinstance(found(shelf).problems[0], PlanMismatch)  # of the whole one: a missing part tells less
    edit(folder / three[0], recipe=99)
    info_path(folder / "denoiser.plan").unlink()
    assert "recipe" in str(found(shelf).problems[0])
    info_path(folder / three[0]).unlink()
    info_path(folder / two[0]).unlink()
    assert isinstance(found(shelf).problems[0], PlanMissing)


def test_a_part_in_the_place_of_another_is_told(shelf):
    folder = shelf.put("128@2", cuts=CUTS)
    for suffix in ("plan", "plan.json"):
        first, second = (folder / f"denoiser.{k}of3.{suffix}" for k in (1, 2))
        first.rename(folder / "aside")
        second.rename(first)
        (folder / "aside").rename(second)
    with pytest.raises(PlanMismatch, match="part of the graph: got 2 of 3; allowed: 1 of 3"):
        raise found(shelf).problems[0]


def test_what_the_gate_never_saw_is_used_with_one_line_and_what_it_rejected_is_not(shelf):
    shelf.put("128@2", verdict=NOT_YET)
    shelf.put("64@2", verdict=NOT_YET)
    shelf.put("136@2")
    folder = shelf.put("192@2", verdict=Verdict(status="rejected", reason="error 0.5"))
    catalog = found(shelf)
    assert [plans.name for plans in catalog.sets] == ["128@2", "136@2", "64@2"]
    assert catalog.soft_differences(H200) == ["the parity gate has not compared all plans of 128@2, 64@2"]
    other = Machine(gpu="NVIDIA H100", compute_capability="9.0", driver="unknown", cuda="13.0")
    assert len(catalog.soft_differences(other)) == 2
    with pytest.raises(PlanInvalid, match=re.escape(str(folder)) + r".*parity gate rejected \(error 0\.5\)"):
        raise catalog.problems[0]


def test_parts_that_were_cut_at_different_places_are_refused(shelf):
    """Each part is what its plan.json says, and none lacks anything but its neighbours."""
    folder = shelf.put("128@2", cuts={"denoiser": ("half",)})
    first = {path: path.read_bytes() for path in folder.glob("denoiser.1of2.*")}
    shelf.put("128@2", cuts={"denoiser": ("weighted",)})
    assert found(shelf).sets
    for path, raw in first.items():
        path.write_bytes(raw)
    with pytest.raises(PlanMismatch, match="part 2 of 2 reads 'weighted', which no part before it makes") as caught:
        raise found(shelf).problems[0]
    assert caught.value.remedy.endswith("--parts 2`.")


def test_after_a_rejection_the_report_and_its_reason_are_named(shelf):
    folder = shelf.put("128@2")
    plan = folder / "denoiser.plan"
    info = msgspec.json.decode(info_path(plan).read_bytes(), type=PlanInfo)
    set_aside(plan, msgspec.structs.replace(info, verdict=Verdict(status="rejected", reason="error 0.5")))
    with pytest.raises(PlanMissing, match=r"rejected \(error 0\.5\)") as caught:
        raise found(shelf).problems[0]
    assert str(folder / "denoiser.plan.rejected.json") in caught.value.remedy
    assert "--precision or --parts" in caught.value.remedy


def test_a_verdict_of_another_gpu_and_profiles_that_were_not_compared_are_told(shelf):
    other = msgspec.structs.replace(H200, compute_capability="8.9")
    left_out = "profile 64@2: no case of the reference fits it"
    shelf.put("64@2", verdict=Verdict(status="passed", machine=other, ungated=("case odd: in no profile", left_out)))
    assert found(shelf).soft_differences(H200) == [
        "parity gate: compared on compute capability 8.9, running on 9.0",
        f"the parity gate could not compare {left_out}",
    ]


def test_the_scratch_that_builds_recorded(shelf):
    shelf.put("128@2", scratch_bytes=7000)
    shelf.put("64@2", scratch_bytes=5000)
    shelf.put("136@2")
    assert found(shelf).scratch_bytes == 7000


EDITS = {
    "bundle_sha256": ["0" * 64, ""], "graph": ["start", "decoder", "x"], "graph_sha256": ["0" * 64, "f" * 64],
    "part": [(2, 3), (1, 2), (2, 2), (0, 1)], "precision": ["fp32", "bf16"],
    "profiles": [("128@2", "64@2"), ("64@2",), (), ("128@2 ",)], "shapes": [(), ({},)],
    "flavour": ["tensorrt_rtx", ""], "version": ["10.13.0.36", "10.13.0", "8.6.0", ""],
    "capabilities": [("8.9",), (), ("9",), ("8.6", "12.0")], "recipe": [1, 3, 0],
}  # fmt: skip


def mutants(folder: Path):
    """1,000 of one set: {file: bytes} to write; two fifths are edits of one field whose hash was computed again."""
    pick = random.Random(4)
    plans = sorted(folder.glob("*.plan"))
    files = [*plans, *map(info_path, plans)]
    for k in range(1000):
        if k % 5 < 2:
            plan, field = pick.choice(plans), pick.choice(list(EDITS))
            info = msgspec.json.decode(info_path(plan).read_bytes(), type=PlanInfo)
            value = pick.choice([v for v in EDITS[field] if v != getattr(info.identity, field)])
            changed = msgspec.structs.replace(info, identity=msgspec.structs.replace(info.identity, **{field: value}))
            yield field, {info_path(plan): seal(changed)}
        else:
            path = pick.choice(files)
            yield "damage", {path: damaged(path.read_bytes(), pick)}


def damaged(raw: bytes, pick: random.Random) -> bytes:
    """A flipped bit, a cut, an insertion, a swapped number, or a block of zeros."""
    at = pick.randrange(len(raw))
    end = min(len(raw), at + pick.randrange(1, 64))
    return {
        0: raw[:at] + bytes([raw[at] ^ 1 << pick.randrange(8)]) + raw[at + 1 :],
        1: raw[:at],
        2: raw[:at] + pick.randbytes(pick.randrange(1, 16)) + raw[at:],
        3: raw[:at] + raw[end:],
        4: raw[:at] + bytes(end - at) + raw[end:],
    }[pick.randrange(5)]


def test_a_thousand_mutants_are_refused_before_anything_is_deserialized(shelf):
    """Each is a PlanError with the command that mends it, or leaves what counts as it was (white space)."""
    folder = shelf.put("128@2", cuts=CUTS)
    wanted = list(found(shelf).sets[0].read())
    kinds, harmless = dict.fromkeys((PlanMismatch, PlanInvalid, PlanDamaged, PlanMissing), 0), 0
    edits = 0
    for field, files in mutants(folder):
        kept = {path: path.read_bytes() for path in files}
        for path, raw in files.items():
            path.write_bytes(raw)
        try:
            catalog = found(shelf)
            read = list(catalog.sets[0].read()) if catalog.sets else None
            error = None if catalog.sets else catalog.problems[0]
        except PlanError as caught:
            read, error = None, caught
        if error is None:
            assert read == wanted
            assert field == "damage"
            harmless += 1
        else:
            assert "zturbo build " in error.remedy
            kinds[type(error)] += 1
        if field != "damage":
            assert isinstance(error, PlanMismatch)
            edits += 1
        for path, raw in kept.items():
            path.write_bytes(raw)
    assert edits == 400
    assert harmless < 20
    assert kinds[PlanInvalid] > 100
    assert kinds[PlanDamaged] > 100


def test_every_field_of_an_identity_is_among_the_edits():
    assert set(EDITS) == set(Identity.__struct_fields__)


def test_a_whole_plan_json_of_another_graph_is_refused(shelf):
    folder = shelf.put("128@2")
    for name in ("plan", "plan.json"):
        (folder / f"decoder.{name}").write_bytes((folder / f"start.{name}").read_bytes())
    with pytest.raises(PlanMismatch, match="graph it was built from: got start; allowed: decoder"):
        raise found(shelf).problems[0]


def test_nothing_at_all(shelf):
    catalog = found(shelf)
    assert (catalog.sets, catalog.problems, catalog.others, catalog.scratch_bytes) == ((), (), (), 0)
