"""Seeds and guidance scales, one per image: which noise each picture has, what a random seed is, what a PNG tells."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from runtime.images import Result
from runtime.per_image import RANDOM_SEEDS, drawn, of_one_image
from runtime.request import Request

COMMON = {"prompt": "a cat", "height": 128, "width": 136, "num_inference_steps": 3, "scheduler": "ancestral"}


def arrays(pipeline, **fields):
    return pipeline.generate(Request(**{**COMMON, **fields})).arrays


def test_each_image_has_the_noise_of_its_own_seed(pipeline):
    many = arrays(pipeline, seed=[9, 3, 9])
    for index, seed in enumerate((9, 3, 9)):
        assert np.array_equal(many[index], arrays(pipeline, seed=seed)[0])
    assert not np.array_equal(many[0], many[1])
    assert not np.array_equal(arrays(pipeline, seed=9, num_images=2)[1], many[2])


def test_each_image_has_its_own_guidance(pipeline):
    scales = [3.0, 1.0, 7.5, 0.0]
    many = arrays(pipeline, guidance_scale=scales, seed=4)
    for index, scale in enumerate(scales):
        alone = arrays(pipeline, guidance_scale=scale, seed=4, num_images=4)
        assert np.array_equal(many[index], alone[index])
    assert pipeline.backend.allocated[0]["rows"] == 6  # two guided samples, two unguided ones


def test_a_random_seed_is_recorded_and_gives_the_picture_again(pipeline):
    asked = Request(**COMMON, seed=-1, num_images=2)
    first, second = pipeline.generate_many([asked, asked])
    seeds = [result.metadata["seed"] for result in (first, second)]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < RANDOM_SEEDS for seed in seeds)
    assert asked.seed == -1
    assert np.array_equal(arrays(pipeline, seed=seeds[0], num_images=2), first.arrays)
    assert not np.array_equal(first.arrays, second.arrays)


def test_a_random_seed_among_others_is_drawn_alone(pipeline):
    result = pipeline.generate(Request(**COMMON, seed=[5, -1, -1]))
    five, *others = result.metadata["seed"]
    assert five == 5
    assert len({five, *others}) == 3
    assert np.array_equal(arrays(pipeline, seed=[5, *others]), result.arrays)


def test_what_is_drawn_is_spread_out():
    seeds = [drawn(-1) for _ in range(200)]
    assert len(set(seeds)) == 200
    assert min(seeds) < RANDOM_SEEDS / 4 < RANDOM_SEEDS * 3 / 4 < max(seeds)
    assert drawn(7) == 7
    assert drawn((7, 8)) == (7, 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 7, "num_images": 2},
        {"seed": [7, 3], "guidance_scale": [1.0, 4.0]},
        {"seed": 7, "guidance_scale": [1.0, 4.0]},
        {"seed": [7, -1], "guidance_scale": 4.0},
        {"seed": -1, "num_images": 2},
    ],
    ids=["one seed", "all apart", "guidance apart", "seeds apart", "random"],
)
def test_a_png_names_a_request_that_gives_the_picture(pipeline, tmp_path, fields):
    result = pipeline.generate(Request(**COMMON, **fields))
    for index, path in enumerate(result.save(tmp_path)):
        with Image.open(path) as image:
            told = json.loads(image.text["zturbo"])
        assert told == result.metadata_of(index)
        names = (*COMMON, "seed", "guidance_scale", "num_images")
        again = pipeline.generate(Request(**{name: told[name] for name in names}))
        assert np.array_equal(again.arrays[told["image"]], result.arrays[index])


def test_metadata_of_other_makers_is_left_alone():
    result = Result(np.zeros((2, 8, 8, 3), np.uint8), {}, {"by": "hand"})
    assert result.metadata_of(1) == of_one_image({"by": "hand"}, 1) == {"by": "hand", "image": 1}
