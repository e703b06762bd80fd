"""`zturbo bench` and `zturbo judge` hand their options on, and end as those programs end."""

from __future__ import annotations

import json

import pytest

from tests.zturbo.stand_ins import assert_refused

JUDGE = """
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("--count", type=int, default=200)
if __name__ == "__main__":
    print(json.dumps({"count": parser.parse_args().count}))
"""


@pytest.fixture
def measured(monkeypatch):
    """What the benchmark's main was called with; its exit code is 1 where `--fail` is among it."""
    pytest.importorskip("skimage")
    calls = []

    def main(arguments):
        calls.append(arguments)
        return int("--fail" in arguments)

    monkeypatch.setattr("benchmarks.bench.main.main", main)
    return calls


def test_bench_hands_on_its_options(zturbo, measured):
    assert zturbo("bench", "--quick", "--out", "x").exit_code == 0
    assert zturbo("bench", "--fail").exit_code == 1
    assert measured == [["--quick", "--out", "x"], ["--fail"]]


def test_benchs_help_is_the_benchmarks_own(zturbo):
    pytest.importorskip("skimage")
    done = zturbo("bench", "--help")
    assert done.exit_code == 0
    assert "--quick" in done.stdout


def test_bench_refuses_what_the_benchmark_refuses(zturbo):
    pytest.importorskip("skimage")
    assert zturbo("bench", "--nonsense").exit_code == 2


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "judge.py").write_text(JUDGE)
    return tmp_path / "model"


def test_judge_runs_the_models_judge(zturbo, model):
    done = zturbo("judge", "--model", model, "--count", 3)
    assert json.loads(done.stdout) == {"count": 3}
    assert zturbo("judge", "--model", model, "--count", "many").exit_code == 2


def test_a_model_without_a_judge(zturbo):
    assert_refused(zturbo("judge", "--model", "nowhere"), "OptionInvalid")


def test_a_judge_that_lacks_a_library(zturbo, model):
    (model / "judge.py").write_text("raise ModuleNotFoundError('gone', name='torch')")
    assert_refused(zturbo("judge", "--model", model), "ExtraMissing")
