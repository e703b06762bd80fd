"""The whole of `zturbo bench`, with contenders that answer at once: files, tables, comparison, README."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks.bench import main as command
from benchmarks.bench import options, readme, rows, run
from benchmarks.bench.contenders import Spec
from benchmarks.bench.gpu_memory import Gpu
from benchmarks.bench.judged import judge_of, judged
from benchmarks.bench.plan import Plan
from benchmarks.bench.result import read_result
from engine.errors import OptionInvalid

STAND = "tests.bench_stand_ins:Stand"
GIB = 2**30


def stand(name, of="", by="", **settings):
    return Spec(name=name, factory=STAND, settings=settings, of=of, by=by)


SPECS = [
    stand("diffusers", seconds=0.2),
    stand("diffusers fp32", "diffusers", "precision", seconds=0.4, grey=101),
    stand("torch.compile", seconds=0.1, compile="reduce-overhead", kernels_ms=100.0),
    stand("onnxruntime", seconds=0.1, grey=103, device=True),
    stand("tensorrt", refuse="open"),
    stand("tensorrt_rtx", die="parts"),
]


@pytest.fixture(scope="module")
def bench(tiny_bundle, tmp_path_factory):
    """A run on a GPU that is a stand-in; (exit code, folder)."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("skimage")
    out = tmp_path_factory.mktemp("bench") / "out"
    gpu = Gpu("A GPU", "580.1", 80 * GIB, lambda: 79 * GIB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "first_gpu", lambda: gpu)
        patch.setattr(options, "on_gpu", lambda precision, autotune: list(SPECS))
        patch.setattr(run, "CEILINGS", STAND)
        words = [str(tiny_bundle), "--quick", "--size", "64", "--steps", "4", "2", "--out", str(out), "--turns", "2"]
        yield command.main(words), out


def test_a_run_ends_with_its_files(bench):
    code, out = bench
    assert code == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"result.json", "pictures.json", "index.html", "logs", "speed.png", "batches.png", "roofline.png",
                     "memory.png"}  # fmt: skip
    assert {path.suffix for path in (out / "logs").iterdir()} == {".log"}, "pictures and caches are gone"


def test_what_is_told(bench):
    result = read_result(bench[1] / "result.json")
    assert (result["device"], result["machine"]["gpu"], result["reference"]) == ("gpu", "A GPU", "diffusers fp32")
    assert result["plan"]["steps"] == [4, 2]
    ort = result["contenders"]["onnxruntime"]
    assert ort["speed"]["4"]["seconds"]["median"] == pytest.approx(0.4)
    assert ort["speed"]["4"]["loop_over_device"]["median"] == pytest.approx(1 / 0.9, rel=1e-4)
    assert ort["times_as_fast_as"]["diffusers"]["median"] == pytest.approx(2)
    assert ort["quality"]["psnr_db"]["median"] == pytest.approx(42.11, abs=0.01)  # 20·log10(255 / 2)
    assert set(ort["limits"]) == {"denoiser", "decoder", "picture"}
    compiled = result["contenders"]["torch.compile"]
    assert compiled["picture_over_kernels"] == pytest.approx(4)
    assert "reason" in compiled["batches"]["by_count"]["2"]
    assert not result["contenders"]["tensorrt"]["runs"]
    assert "no such GPU" in result["contenders"]["tensorrt"]["reason"]
    assert "ended with code 3" in result["contenders"]["tensorrt_rtx"]["parts"]["reason"]
    (pair,) = result["comparisons"]
    assert pair["names"] == ["diffusers", "diffusers fp32"]
    assert pair["flip"][0] > pair["flip"][1] == 0


def test_tables_show_it(bench):
    tables = {table[0]: table for table in rows.tables(read_result(bench[1] / "result.json"))}
    speed = next(table for title, table in tables.items() if "seconds" in title)
    assert [row[0] for row in speed[2]][:3] == ["diffusers", "diffusers fp32", "torch.compile"]
    assert "conditioning, ms" in speed[1]
    assert any(row[0] == "tensorrt" for row in tables["did not run"][2])
    assert all("–" not in row or len(set(row)) > 1 for _, _, lines in tables.values() for row in lines)


def test_the_gpus_own_time_is_the_kernels_where_they_are_known():
    by_events = {"device_ms": {"conditioning": {"median": 1.0}, "loop": {"median": 8.0}, "decode": {"median": 2.0}}}
    assert rows._gpu_ms({"facts": {"clock": "gpu"}}, by_events) == 11.0
    assert rows._gpu_ms({"facts": {"clock": "gpu"}, "kernels_ms": 7.0}, by_events) == 7.0
    assert rows._gpu_ms({"facts": {"clock": "host"}}, by_events) is None


def test_the_page_needs_no_other_file(bench):
    page = (bench[1] / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert page.count("data:image/jpeg;base64,") == 4
    assert 'src="http' not in page
    assert "href" not in page
    for word in ("onnxruntime", "A GPU", "no such GPU", "dpmpp_2m"):
        assert word in page


def test_the_page_is_drawn_anew_elsewhere(bench, tmp_path):
    _, out = bench
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("result.json", "pictures.json"):
        shutil.copy(out / name, elsewhere)
    assert command.main(["--page", str(elsewhere)]) == 0
    assert (elsewhere / "index.html").read_text() == (out / "index.html").read_text()


@pytest.fixture
def comparison(bench, tmp_path, capsys):
    """What --compare prints of a result and a changed one."""

    def told(other: dict) -> str:
        (tmp_path / "b.json").write_text(json.dumps(other))
        assert command.main(["--compare", str(bench[1] / "result.json"), str(tmp_path / "b.json")]) == 0
        return capsys.readouterr().out

    return told


def test_two_results_beside_each_other(bench, comparison):
    other = read_result(bench[1] / "result.json")
    for one in other["contenders"].values():
        for of in one.get("speed", {}).values():
            of["seconds"] = {name: 2 * value for name, value in of["seconds"].items()}
    other["versions"]["numpy"] = "9.9"
    del other["contenders"]["torch.compile"]
    told = comparison(other)
    assert "slower" in told
    assert "9.9 in B" in told
    assert "in one of them alone: torch.compile" in told


def test_what_is_no_result_is_refused(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"benchmark": "loop"}')
    assert command.main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 2
    assert "of another benchmark" in capsys.readouterr().err
    with pytest.raises(OptionInvalid, match="unreadable"):
        read_result(tmp_path / "none.json")
    (tmp_path / "a.json").write_text('{"benchmark": "zturbo bench", "version": 99}')
    with pytest.raises(OptionInvalid, match="version 99"):
        read_result(tmp_path / "a.json")

    (tmp_path / "a.json").write_text('{"benchmark": "zturbo bench"}')
    with pytest.raises(OptionInvalid, match="version None"):
        read_result(tmp_path / "a.json")


def test_what_a_comparison_of_unlike_runs_tells(bench, comparison):
    other = read_result(bench[1] / "result.json")
    other["device"], other["plan"]["turns"] = "cpu", 99
    other["contenders"]["onnxruntime"]["precision"] = "bf16"
    told = comparison(other)
    assert "device: gpu in A, cpu in B" in told
    assert "plan, turns: 2 in A, 99 in B" in told
    assert "onnxruntime, precision:" in told


@pytest.mark.parametrize("size", ["100", "-8", "8192"])
def test_sizes_that_no_bundle_takes_are_refused_first(tiny_bundle, size, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "first_gpu", lambda: None)
    words = [str(tiny_bundle), f"--size={size}", "--no-export", "--out", str(tmp_path / "out")]
    assert command.main(words) == 2
    assert f"size: got {size}" in capsys.readouterr().err


def test_logs_of_others_stay_and_a_run_that_falls_keeps_what_it_knew(tmp_path):
    (tmp_path / "logs").mkdir()
    for name in ("mine.txt", "old.log"):
        (tmp_path / "logs" / name).write_text("x")
    with pytest.raises(KeyboardInterrupt), command._workplace(tmp_path) as folder:
        (folder / "alone.json").write_text("{}")
        raise KeyboardInterrupt
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"mine.txt", "alone.json"}
    with command._workplace(tmp_path) as folder:
        (folder / "turns.json").write_text("{}")
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"mine.txt", "alone.json"}


def test_turns_in_groups_are_told_of():
    told = rows.notes({"contenders": {}, "groups": [["a", "b"], ["c"]]})
    assert "in groups that fit into memory (a, b; c)" in told[0]


@pytest.mark.parametrize("words", [["--turns", "0"], ["nowhere"], ["--contenders", "nobody"]])
def test_errors_end_with_2_and_without_files(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "first_gpu", lambda: None)
    assert command.main([*words, "--no-export"]) == 2
    assert not list(tmp_path.rglob("*.json"))


def test_a_markdown_of_a_result(bench):
    text = readme.one_result(read_result(bench[1] / "result.json"), "benchmarks/results/x.json")
    lines = text.splitlines()
    assert "A GPU" in lines[0]
    assert lines[2].count("|") == lines[3].count("|") == lines[4].count("|")
    assert "| onnxruntime, fp32 | 0.4 | 0.4 to 0.4 | 2.00 |" in text
    assert "| diffusers, fp32 | 0.8 | 0.8 to 0.8 | – |" in text
    alone = json.loads((bench[1] / "result.json").read_text())
    alone["reference"] = None
    for one in alone["contenders"].values():
        one.pop("quality", None)
    assert "reference" not in readme.one_result(alone, "x.json")
    assert "Did not run: tensorrt (BackendUnavailable: no such GPU" in text


def test_the_readmes_table_is_what_the_results_make(root):
    assert readme.main(["--check"]) == 0, "run `python -m benchmarks.bench.readme`"


def test_a_readme_is_filled_between_its_lines(tmp_path, capsys):
    assert (
        readme.filled(f"a\n{readme.BEGIN}\nold\n{readme.END}\nz", "new\n") == f"a\n{readme.BEGIN}\nnew\n{readme.END}\nz"
    )
    path = tmp_path / "README.md"
    path.write_text(f"{readme.BEGIN}\n{readme.END}\n")
    assert readme.main(["--check", "--readme", str(path)]) == 1
    assert readme.main(["--readme", str(path)]) == 0
    assert readme.main(["--check", "--readme", str(path)]) == 0
    path.write_text("no lines")
    assert readme.main(["--readme", str(path)]) == 2
    assert "no marker lines" in capsys.readouterr().err


JUDGE = """
held_out_pairs = lambda: frozenset({("cat", "white"), ("fox", "teal")})
ordered = lambda pairs, count: sorted(pairs)[:count]
plain_prompt = lambda word, ground: f"a {word} on {ground}"
rates = lambda score, prefix: {f"{prefix}object": score}
class Matcher: pass
def score(matcher, asked, pictures, title):
    return sum(picture.getpixel((0, 0))[0] > 120 for picture in pictures) / len(asked)
"""


def test_a_models_judge_sees_its_pictures(tmp_path):
    (tmp_path / "judge.py").write_text(JUDGE)
    judge = judge_of(tmp_path)
    plan = Plan(bundle=tmp_path, size=None, judged=2, open_s=20, first_s=20)
    assert judged(stand("a", grey=(200 - 200_000) % 256), plan, tmp_path, judge) == {"count": 2, "object": 1.0}
    assert judge_of(tmp_path / "nowhere") is None
    (tmp_path / "judge.py").write_text("x = 1")
    assert judge_of(tmp_path) is None


def test_contenders_that_do_not_fit_together_take_turns_in_groups(tiny_bundle, tmp_path):
    room = 10 * GIB
    measured = run.Run(
        Plan(bundle=tiny_bundle, size=64, steps=(2,)),
        [],
        tmp_path,
        Gpu("A GPU", "1", room, lambda: room),
        lambda _: None,
    )
    alone = {
        name: {"host_peak_bytes": 1, "gpu_peak_bytes": size * GIB} for name, size in {"a": 4, "b": 3, "c": 6}.items()
    }
    assert measured._grouped(alone) == [["a", "b"], ["c"]]


def test_what_is_compiled_is_kept_where_it_was_asked_for(tmp_path):
    compiled = stand("torch.compile", compile="reduce-overhead")
    with_cache = run._with_cache
    own = with_cache(compiled, tmp_path, None).environment["TORCHINDUCTOR_CACHE_DIR"]
    assert own == str(tmp_path / "torch-compile")
    assert with_cache(compiled, tmp_path, tmp_path / "kept").environment["TORCHINDUCTOR_CACHE_DIR"] == str(
        tmp_path / "kept"
    )
    assert with_cache(stand("diffusers"), tmp_path, tmp_path / "kept").environment == {}
