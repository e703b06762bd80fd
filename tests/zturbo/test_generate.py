"""`zturbo generate`: options become a Request, --json is one object, and what is wrong ends with exit code 2."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from engine.errors import ExecutionFailed
from tests.zturbo.stand_ins import FakePipeline, assert_refused


def test_options_become_a_request(zturbo, small_bundle, fake_pipeline):
    zturbo(
        "generate", small_bundle, "a cat", "--negative", "a dog", "--steps", 4, "--guidance", 2.5, "--scheduler",
        "ddim", "--seed", 7, "--height", 128, "--width", 136, "-n", 3,
    )  # fmt: skip
    request = fake_pipeline.requests[0]
    assert (request.prompt, request.negative_prompt, request.scheduler) == ("a cat", "a dog", "ddim")
    assert (request.num_inference_steps, request.guidance_scale, request.seed) == (4, 2.5, 7)
    assert (request.height, request.width, request.num_images) == (128, 136, 3)


def test_prompts_are_read_with_emphasis_and_all_layers_by_default(zturbo, small_bundle, fake_pipeline):
    zturbo("generate", small_bundle, "a (cat)")
    zturbo("generate", small_bundle, "a (cat)", "--clip-skip", 1, "--no-emphasis")
    assert [(one.clip_skip, one.emphasis) for one in fake_pipeline.requests] == [(None, True), (1, False)]


def test_what_was_dropped_of_a_prompt_is_told(zturbo, small_bundle, fake_pipeline):
    assert "dropped" not in zturbo("generate", small_bundle, "x" * 600).stderr
    assert (
        "prompt: its last 3 tokens find no room and were dropped" in zturbo("generate", small_bundle, "x" * 603).stderr
    )


def test_json_is_one_object_and_the_pictures_are_there(zturbo, small_bundle, fake_pipeline, tmp_path):
    done = zturbo("generate", small_bundle, "a cat", "-n", 2, "--out", "pictures", "--json")
    answer = json.loads(done.stdout)
    assert set(answer) == {"paths", "seconds", "metadata"}
    assert answer["metadata"]["prompt"] == "a cat"
    assert len(answer["paths"]) == 2
    for path in answer["paths"]:
        with Image.open(tmp_path / path) as image:
            assert json.loads(image.text["zturbo"])["prompt"] == "a cat"


def test_a_second_run_numbers_on(zturbo, small_bundle, fake_pipeline, tmp_path):
    first, second = (
        json.loads(zturbo("generate", small_bundle, prompt, "--json").stdout)["paths"] for prompt in ("a cat", "a dog")
    )
    assert (first, second) == (["out/image-0.png"], ["out/image-1.png"])
    with Image.open(tmp_path / second[0]) as image:
        assert json.loads(image.text["zturbo"])["prompt"] == "a dog"


def test_stderr_names_the_backend_and_why_not_the_others(zturbo, small_bundle, fake_pipeline):
    done = zturbo("generate", small_bundle, "a cat", "--json")
    assert "not tensorrt: no GPU here" in done.stderr
    assert "backend: onnxruntime, fp32, on cpu" in done.stderr


BAD_OPTIONS = {
    "steps": ("--steps", 0), "many steps": ("--steps", 101), "nan": ("--guidance", "nan"), "inf": ("--guidance", "inf"),
    "guidance": ("--guidance", -1), "seed": ("--seed", -2), "big seed": ("--seed", 2**63), "none": ("-n", 0),
    "one bad of many": ("--seed", "3,-2"), "two guidances, three images": ("--guidance", "3,5", "-n", 3),
    "many": ("-n", 17), "height": ("--height", 0), "negative": ("--negative", "x" * 4001),
    "clip skip": ("--clip-skip", -1),
}  # fmt: skip


@pytest.mark.parametrize("options", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_typed_errors(zturbo, small_bundle, fake_pipeline, tmp_path, options):
    done = zturbo("generate", small_bundle, "a cat", *options)
    assert_refused(done, "RequestInvalid")
    assert not (tmp_path / "out").exists()
    assert not fake_pipeline.requests


def test_files_become_the_requests_pictures(zturbo, small_bundle, fake_pipeline, tmp_path):
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "in.png")
    Image.new("L", (30, 20), 255).save(tmp_path / "mask.webp")
    done = zturbo(
        "generate", small_bundle, "a cat", "--image", "in.png", "--mask", "mask.webp", "--strength", 0.5, "--json"
    )
    request = fake_pipeline.requests[0]
    assert (request.image.size, request.image.getpixel((0, 0)), request.strength) == ((30, 20), (255, 0, 0), 0.5)
    assert request.mask.size == (30, 20)
    assert json.loads(done.stdout)["metadata"]["image"] == [20, 30, 3]


@pytest.mark.parametrize("option", ["--image", "--mask"])
def test_files_that_are_no_pictures_are_refused(zturbo, small_bundle, fake_pipeline, tmp_path, monkeypatch, option):
    good = tmp_path / "good.png"
    Image.new("RGB", (64, 64)).save(good)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-30])
    (tmp_path / "folder.png").mkdir()
    for name in ("nowhere.png", "text.png", "cut.png", "folder.png"):
        done = zturbo("generate", small_bundle, "a cat", option, name)
        assert_refused(done, "OptionInvalid")
        assert f"{option} '{name}': got no picture that can be read" in done.stderr
    for most in (64 * 64 - 1, 64 * 64 // 3):  # PIL warns of the one and refuses the other
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        done = zturbo("generate", small_bundle, "a cat", option, "good.png")
        assert_refused(done, "OptionInvalid")
        assert f"a picture of more than {most} pixels" in done.stderr
    assert not fake_pipeline.requests


def test_a_mask_without_an_image_is_refused(zturbo, small_bundle, fake_pipeline, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    assert_refused(zturbo("generate", small_bundle, "a cat", "--mask", "mask.png"), "RequestInvalid")
    assert_refused(zturbo("generate", small_bundle, "a cat", "--strength", 0.5), "RequestInvalid")


def test_a_preview_is_there_after_each_step(zturbo, small_bundle, fake_pipeline, tmp_path):
    zturbo("generate", small_bundle, "a cat", "-n", 3, "--steps", 4, "--preview", "small/now.png")
    with Image.open(tmp_path / "small" / "now.png") as image:
        assert image.size == (6, 2)
        assert image.getpixel((0, 0)) == (4, 4, 4)
    (tmp_path / "file").write_text("mine")
    assert_refused(zturbo("generate", small_bundle, "a cat", "--preview", "file/now.png"), "OutputError")


def test_one_per_image(zturbo, small_bundle, fake_pipeline):
    zturbo("generate", small_bundle, "a cat", "--seed", "3,5,-1", "--guidance", "3,7.5,1")
    zturbo("generate", small_bundle, "a cat", "--seed", -1)
    zturbo("generate", small_bundle, "a cat", "--seed=7", "-n", 2)
    first, second, third = fake_pipeline.requests
    assert (first.seed, first.guidance_scale, first.num_images) == ((3, 5, -1), (3.0, 7.5, 1.0), 3)
    assert (second.seed, second.num_images) == (-1, 1)
    assert (third.seed, third.num_images) == (7, 2)


@pytest.mark.parametrize("option", ["--seed", "--guidance"])
@pytest.mark.parametrize("value", ["", "many", "3,", "3;5", "3 5", "1" * 5000 + "x"])
def test_lists_that_are_none_are_usage_errors(zturbo, small_bundle, fake_pipeline, option, value):
    done = zturbo("generate", small_bundle, "a cat", option, value)
    assert done.exit_code == 2
    assert option in done.stderr
    assert not fake_pipeline.requests


@pytest.mark.parametrize("words", [[], ["a cat"], ["a", "cat", "please"]])
def test_a_bundle_and_a_prompt_are_asked_for(zturbo, small_bundle, fake_pipeline, words):
    done = zturbo("generate", *words)
    assert done.exit_code == 2
    assert "[BUNDLE] PROMPT" in done.stderr
    assert not fake_pipeline.requests


@pytest.mark.parametrize("prompt", ["", "x" * 4001, "caf\udce9"], ids=["empty", "long", "not UTF-8"])
def test_bad_prompts_are_typed_errors(zturbo, small_bundle, fake_pipeline, prompt):
    assert_refused(zturbo("generate", small_bundle, prompt), "RequestInvalid")


def test_a_number_that_is_none_is_a_usage_error(zturbo, small_bundle):
    done = zturbo("generate", small_bundle, "a cat", "--steps", "many")
    assert done.exit_code == 2
    assert "--steps" in done.stderr


def test_missing_bundle(zturbo, fake_pipeline):
    assert_refused(zturbo("generate", "nowhere", "a cat"), "BundleMissing")


def test_truncated_bundle(zturbo, small_bundle, fake_pipeline):
    (small_bundle / "tables.npz").write_bytes(b"")
    assert_refused(zturbo("generate", small_bundle, "a cat"), "BundleDamaged")


def test_output_below_a_regular_file_is_refused_before_any_work(zturbo, small_bundle, fake_pipeline, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert_refused(zturbo("generate", small_bundle, "a cat", "--out", "file/pictures"), "OutputError")
    assert not fake_pipeline.requests
    assert (tmp_path / "file").read_text() == "mine"


def test_interrupt_ends_with_130_and_leaves_nothing(zturbo, small_bundle, fake_pipeline, monkeypatch, tmp_path):
    def interrupted(self: FakePipeline, request: object, on_step: object = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakePipeline, "generate", interrupted)
    done = zturbo("generate", small_bundle, "a cat")
    assert done.exit_code == 130
    assert not (tmp_path / "out").exists()


def test_a_vendors_failure_is_told_without_a_traceback(zturbo, small_bundle, fake_pipeline, monkeypatch):
    def fails(self: FakePipeline, request: object, on_step: object = None) -> None:
        raise ExecutionFailed("denoiser", actual="[no memory]", allowed="success", remedy="Ask for fewer images.")

    monkeypatch.setattr(FakePipeline, "generate", fails)
    done = zturbo("generate", small_bundle, "a cat")
    assert_refused(done, "ExecutionFailed")
    assert "[no memory]" in done.stderr


def test_what_nobody_foresaw_is_not_swallowed(zturbo, small_bundle, fake_pipeline, monkeypatch):
    def breaks(self: FakePipeline, request: object, on_step: object = None) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(FakePipeline, "generate", breaks)
    done = zturbo("generate", small_bundle, "a cat")
    assert isinstance(done.exception, ZeroDivisionError)
