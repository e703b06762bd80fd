"""Export as a whole: what it writes, what it refuses, and that nothing half-written stays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from filelock import FileLock

from engine.bundle import FILE, load_bundle, verified_path
from engine.errors import ExportMismatch, OptionInvalid, OutputError, SchedulerUnsupported, SourceError
from engine.tablefile import TableFile
from engine.wiring import host_wires
from export import bundle as export_module
from export.bundle import default_precisions, export_bundle, source_entry
from export.families import open_model
from export.place import placed_folder
from export.scheduler import make_scheduler
from export.schedulers import OFFERS
from export.solver import COLUMNS, table
from tests.conftest import SCHEDULERS


def test_writes_a_bundle_that_loads(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    names = ["conditioning", "encoder", "start", "prologue", "denoiser", "solver", "decoder", "preview"]
    assert [graph.name for graph in bundle.graphs("fp32")] == names
    assert set(bundle.tables.schedulers) == set(SCHEDULERS)
    for name in bundle.files:
        verified_path(tiny_bundle, bundle, name)


def test_graphs_are_opset_17_and_named_as_their_bindings(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    for graphs in bundle.variants.values():
        for graph in graphs:
            model = onnx.load(tiny_bundle / graph.file)
            assert [(i.domain, i.version) for i in model.opset_import] == [("", 17)]
            for binding, value in zip(graph.bindings, [*model.graph.input, *model.graph.output], strict=True):
                assert binding.name == value.name
                kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                assert kind == np.dtype(binding.dtype), f"{graph.file}, {binding.name}"


def test_fp16_graphs_keep_solver_arithmetic_in_fp32(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    for graph in bundle.graphs("fp16"):
        assert graph.precision == ("fp32" if graph.name in ("start", "solver", "preview") else "fp16")
        for binding in graph.bindings:
            if binding.name in (*host_wires(4, 8, 200, 15), "latents", "history", "timestep"):
                assert binding.dtype in ("float32", "int32") or binding.name == "image"


def test_tables_hold_every_scheduler_at_every_step_count(tiny_bundle: Path) -> None:
    file = TableFile((tiny_bundle / "tables.npz").read_bytes())
    for key in (*SCHEDULERS, "ddim@1"):
        assert file.table(key, len(COLUMNS)).counts[19] == {"heun": 40, "pndm": 22}.get(key, 21)
    assert sum(file.warm("dpmpp_2m").counts) == sum(range(100))


def test_reference_has_four_cases_with_fp16_errors(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    arrays = np.load(tiny_bundle / bundle.reference.file)
    assert [case.dims["tokens"] for case in bundle.reference.cases] == [77, 77, 77, 154]
    for case in bundle.reference.cases:
        assert 1e-5 < case.fp16_error["denoiser"]["noise_pred"] < 1e-2
        prologue, *graphs = sorted(bundle.graphs("fp32"), key=lambda graph: not graph.hoisted_from)
        assert not any(name.startswith(f"{case.name}/{prologue.name}/") for name in arrays)
        for graph in graphs:
            whole = {binding.name: binding for binding in graph.bindings + prologue.inputs}
            for binding in [
                whole[name.split("/")[2]] for name in arrays if name.startswith(f"{case.name}/{graph.name}/")
            ]:
                array = arrays[f"{case.name}/{graph.name}/{binding.name}"]
                assert array.shape == tuple(binding.resolve(case.dims))
        assert arrays[f"{case.name}/denoiser/encoder_hidden_states"].shape == (
            case.dims["rows"],
            case.dims["tokens"],
            32,
        )


@pytest.mark.slow
def test_the_same_source_gives_the_same_bundle(tiny_source: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    again = export_bundle(tiny_source, tmp_path / "tiny", schedulers=SCHEDULERS)
    before = load_bundle(tiny_bundle)
    assert again.files == before.files


def test_a_graph_that_computes_something_else_is_an_error_and_leaves_nothing(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_module.run_module

    def shifted(spec, inputs):
        return {
            name: array + 1e-3 if spec.name == "conditioning" else array for name, array in real(spec, inputs).items()
        }

    monkeypatch.setattr(export_module, "run_module", shifted)
    with pytest.raises(
        ExportMismatch, match=r"conditioning.onnx \(fp32\), case 'default', output 'encoder_hidden"
    ) as info:
        export_bundle(tiny_source, tmp_path / "tiny", precisions=("fp32",), schedulers=("dpmpp_2m",))
    assert "relative error" in info.value.actual
    assert "e-05" in info.value.allowed
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


@pytest.fixture
def source(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_source, tmp_path / "source"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_refuses_other_families_by_name(source: Path, tmp_path: Path) -> None:
    edit(source / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(SourceError, match="FluxPipeline"):
        export_bundle(source, tmp_path / "out", schedulers=("dpmpp_2m",))


def test_refuses_added_embeddings(source: Path, tmp_path: Path) -> None:
    edit(source / "unet" / "config.json", addition_embed_type="text_time")
    with pytest.raises(SourceError, match="added embeddings"):
        export_bundle(source, tmp_path / "out", schedulers=("dpmpp_2m",))


def test_refuses_a_scheduler_that_is_not_linear(source: Path, tmp_path: Path) -> None:
    edit(source / "scheduler" / "scheduler_config.json", thresholding=True)
    with pytest.raises(SchedulerUnsupported):
        export_bundle(source, tmp_path / "out", schedulers=("dpmpp_2m",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "vae/config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"sample_size": "x"}'])
def test_refuses_broken_configs(source: Path, tmp_path: Path, content: bytes, name: str) -> None:
    (source / name).write_bytes(content)
    with pytest.raises(SourceError) as info:
        export_bundle(source, tmp_path / "out", schedulers=("dpmpp_2m",))
    assert str(source) in info.value.subject


def test_refuses_missing_sources_and_weights(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        export_bundle(tmp_path / "nowhere", tmp_path / "out", schedulers=("dpmpp_2m",))
    (source / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(SourceError, match="vae"):
        export_bundle(source, tmp_path / "out", schedulers=("dpmpp_2m",))


def test_a_scheduler_without_tables_is_replaced_aloud(source: Path) -> None:
    edit(source / "scheduler" / "scheduler_config.json", _class_name="IPNDMScheduler")
    with pytest.warns(UserWarning, match="IPNDMScheduler has no tables .* 'dpmpp_2m'"):
        assert open_model(source).defaults.scheduler == "dpmpp_2m"


def test_the_models_own_scheduler_is_the_default(source: Path) -> None:
    path = source / "scheduler" / "scheduler_config.json"
    edit(path, _class_name="PNDMScheduler", skip_prk_steps=True)
    assert open_model(source).defaults.scheduler == "pndm"
    edit(
        path,
        _class_name="DPMSolverMultistepScheduler",
        solver_order=3,
        algorithm_type="dpmsolver++",
        euler_at_final=True,
    )
    assert open_model(source).defaults.scheduler == "dpmpp_3m"
    edit(path, _class_name="LMSDiscreteScheduler", use_karras_sigmas=True)
    assert open_model(source).defaults.scheduler == "lms_karras"


def test_refuses_unknown_precisions(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionInvalid, match="int4"):
        export_bundle(tiny_source, tmp_path / "out", precisions=("int4",))  # type: ignore[arg-type]


def test_scheduler_names_mean_one_thing_whatever_the_source_says() -> None:
    base = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    for name in SCHEDULERS:
        assert name in OFFERS
        plain, karras = (table(name, make_scheduler(name, {**base, "use_karras_sigmas": k}), 4) for k in (False, True))
        assert np.array_equal(plain, karras)
    tables = [table(name, make_scheduler(name, base), 4).tobytes() for name in SCHEDULERS]
    assert len(set(tables)) == len(SCHEDULERS)


@pytest.mark.parametrize("settings", [{"variance_type": "learned_range"}, {"beta_schedule": "zzz"}])
def test_settings_that_have_no_table_are_refused_by_name(source: Path, tmp_path: Path, settings: dict) -> None:
    edit(source / "scheduler" / "scheduler_config.json", **settings)
    with pytest.raises(SchedulerUnsupported, match="scheduler 'dpmpp_2m'"):
        export_bundle(source, tmp_path / "out", schedulers=("dpmpp_2m",))


def test_refuses_an_output_below_a_regular_file(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError):
            export_bundle(tiny_source, out, schedulers=("dpmpp_2m",))
    assert (tmp_path / "file").read_text() == "mine"


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """A bundle's folder with a plan."""
    target = tmp_path / "bundle"
    with placed_folder(target) as folder:
        (folder / FILE).write_text("old")
    (target / "engines" / "x").mkdir(parents=True)
    (target / "engines" / "x" / "a.plan").write_text("plan")
    return target


OLD = {FILE: "old", "engines/x/a.plan": "plan"}
NEW = {FILE: "new", "engines/x/a.plan": "plan"}


def test_a_bundle_is_replaced_and_keeps_its_plans(placed: Path) -> None:
    with placed_folder(placed) as folder:
        (folder / FILE).write_text("new")
    assert contents(placed) == NEW
    assert sorted(path.name for path in placed.parent.iterdir()) == [".bundle.lock", "bundle"]


def test_a_failed_write_leaves_the_old_bundle(placed: Path) -> None:
    with pytest.raises(RuntimeError), placed_folder(placed) as folder:
        (folder / FILE).write_text("half")
        raise RuntimeError
    assert contents(placed) == OLD


@pytest.mark.parametrize("failing", range(3))
def test_a_swap_that_fails_or_dies_at_any_rename_loses_nothing(
    placed: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing + 1:
            raise PermissionError(13, "in use", str(self))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(OutputError), placed_folder(placed) as folder:
            (folder / FILE).write_text("new")
    with pytest.raises(RuntimeError), placed_folder(placed):
        raise RuntimeError  # what the next export finds is put in order before it writes
    assert contents(placed) == (OLD if failing < 2 else NEW)


def test_a_swap_that_was_killed_is_undone(tmp_path: Path) -> None:
    (tmp_path / ".bundle.old").mkdir()
    (tmp_path / ".bundle.old" / FILE).write_text("old")
    (tmp_path / ".bundle.partial-x").mkdir()
    with pytest.raises(RuntimeError), placed_folder(tmp_path / "bundle"):
        raise RuntimeError
    assert (tmp_path / "bundle" / FILE).read_text() == "old"
    assert not (tmp_path / ".bundle.partial-x").exists()


def test_only_a_bundle_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="other contents"), placed_folder(tmp_path / "mine"):
        pass
    assert contents(tmp_path / "mine") == {"thesis.txt": "mine"}


def test_a_bundle_never_shares_a_folder_with_its_source(source: Path) -> None:
    for out in (source, source / "bundle", source.parent):
        with pytest.raises(OutputError, match="apart"):
            export_bundle(source, out, schedulers=("dpmpp_2m",))
    assert (source / "model_index.json").is_file()


def test_one_writer_at_a_time(placed: Path) -> None:
    with placed_folder(placed) as folder:
        (folder / FILE).write_text("new")
        with pytest.raises(OutputError, match="another export"), placed_folder(placed):
            pass
    lock = FileLock(placed / "engines" / "x" / ".lock")
    with lock, pytest.raises(OutputError, match="a build"), placed_folder(placed) as folder:
        (folder / FILE).write_text("newer")
    assert contents(placed)[FILE] == "new"


def test_a_device_that_torch_cannot_use_is_refused_before_anything_is_written(
    tiny_source: Path, tmp_path: Path
) -> None:
    for device in ("cuda:999", "gpu", "", "cpu:0", "CPU"):
        with pytest.raises(OptionInvalid, match=f"device: got '{device}'; allowed: cpu"):
            export_bundle(tiny_source, tmp_path / "out", device=device)
    assert not list(tmp_path.iterdir())


def test_what_is_written_where_nothing_was_asked_for_and_where_it_came_from(tiny_source, tmp_path):
    model = open_model(tiny_source)
    assert (model.large, default_precisions(model)) == (False, ("fp32", "fp16"))
    assert default_precisions(replace(model, large=True)) == ("fp16",)
    source = source_entry(model, tmp_path / "out", "random:sdxl seed:0")
    assert (tmp_path / "out" / source.path).resolve() == tiny_source.resolve()
    assert source.origin == "random:sdxl seed:0"


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet", {"sample_size": 0}), ("unet", {"sample_size": -8}), ("unet", {"sample_size": 10**6}),
        ("text_encoder", {"num_hidden_layers": 0}), ("text_encoder", {"max_position_embeddings": 1}),
        ("text_encoder", {"vocab_size": "516"}), ("vae", {"block_out_channels": [32] * 8}),
    ],
)  # fmt: skip
def test_configs_of_sizes_that_no_model_has(tiny_source, tmp_path, file, values):
    folder = shutil.copytree(tiny_source, tmp_path / "model")
    path = folder / file / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(SourceError):
        open_model(folder)
