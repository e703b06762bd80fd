"""Pictures to begin from, as arrays: rotation, alpha, modes and sizes; and diffusers' own processing of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from engine.errors import RequestInvalid
from runtime.pictures import check_mask, check_picture, image_pixels, latent_mask
from runtime.request import Request

RNG = np.random.default_rng(3)
NOISE = RNG.integers(0, 256, (40, 56, 3)).astype(np.uint8)
RED = (255, 0, 0)


def reread(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    """As it comes from a file, not yet read."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return Image.open(stream)


def halves(left, right, size=(16, 8), mode="RGB") -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


@pytest.mark.parametrize("kind", ["array", "PIL"])
def test_of_the_right_size_no_pixel_changes(kind):
    picture = NOISE if kind == "array" else Image.fromarray(NOISE)
    np.testing.assert_array_equal(image_pixels(picture, 40, 56), NOISE)


def test_an_array_that_is_no_one_block_of_memory():
    np.testing.assert_array_equal(image_pixels(NOISE[:, ::-1], 40, 56), NOISE[:, ::-1])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (33, 17), (640, 481)])
def test_any_size_is_resized(size):
    pixels = image_pixels(np.full((*size, 3), 77, np.uint8), 128, 136)
    assert pixels.shape == (128, 136, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 77).all()


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, "left top"), (3, "right bottom"), (6, "right top"), (8, "left bottom")]
)
def test_exif_turns_image_and_mask(orientation, corner):
    stored = np.zeros((32, 32, 3), np.uint8)
    stored[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = reread(Image.fromarray(stored), exif=exif)
    pixels, mask = image_pixels(turned, 32, 32)[..., 0], latent_mask(turned, 32, 32, 8)[0]
    x, y = (slice(16, 32) if word in ("right", "bottom") else slice(0, 16) for word in corner.split())
    assert (pixels[y, x] == 255).all()
    assert pixels.astype(int).sum() == 255 * 16 * 16
    assert mask.sum() == 4
    assert mask[y.start // 8 : y.stop // 8, x.start // 8 : x.stop // 8].all()


def test_a_camera_picture_that_lies_is_as_wide_as_it_is_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = reread(halves(RED, (0, 0, 255), (64, 32)), "JPEG", exif=exif)  # red is on top when it is turned
    pixels = image_pixels(lying, 64, 32)
    assert pixels[8, 16, 0] > 200
    assert pixels[56, 16, 0] < 50


@pytest.mark.parametrize("picture", [
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)), np.zeros((8, 8, 4), np.uint8), Image.new("LA", (8, 8), (0, 0)),
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).quantize(4),
])  # fmt: skip
def test_what_is_transparent_is_white_in_an_image_and_black_in_a_mask(picture):
    assert (image_pixels(picture, 16, 16) == 255).all()
    assert not latent_mask(picture, 16, 16, 8).any()


def test_half_transparent_is_between():
    pixels = image_pixels(np.full((8, 8, 4), [255, 0, 0, 128], np.uint8), 8, 8)
    assert np.abs(pixels.astype(int) - [255, 127, 127]).max() <= 1


@pytest.mark.parametrize(("picture", "colour"), [
    (Image.new("L", (9, 7), 90), (90, 90, 90)),
    (np.full((9, 7), 90, np.uint8), (90, 90, 90)),
    (Image.new("1", (9, 7), 1), (255, 255, 255)),
    (Image.new("RGB", (9, 7), RED).quantize(2), RED),
    (Image.new("CMYK", (9, 7), (0, 255, 255, 0)), (255, 0, 0)),
    (Image.fromarray(np.full((9, 7), 90 << 8 | 3, np.uint16)), (90, 90, 90)),
    (reread(Image.new("RGB", (9, 7), RED), transparency=(0, 0, 255)), RED),
])  # fmt: skip
def test_every_mode_becomes_rgb(picture, colour):
    assert (image_pixels(picture, 16, 24) == colour).all()


def test_a_mask_is_cut_at_one_half_and_brought_to_latents():
    grey = np.zeros((32, 32), np.uint8)
    grey[:, 8:16], grey[:, 16:24], grey[:, 24:] = 127, 128, 255
    assert latent_mask(grey, 32, 32, 8).tolist() == [[[0, 0, 1, 1]] * 4]
    assert latent_mask(Image.fromarray(grey), 32, 32, 8).dtype == np.float32


def test_of_each_place_the_first_pixel_counts():
    mask = np.zeros((16, 16), np.uint8)
    mask[1:8, 1:8] = 255
    mask[8, 8] = 255
    assert latent_mask(mask, 16, 16, 8).tolist() == [[[0, 0], [0, 1]]]


@pytest.mark.parametrize("size", [(128, 128), (77, 200), (301, 33)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_it_is_what_diffusers_makes_of_them(size, mode):
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor
    blobs = Image.fromarray(RNG.integers(0, 256, (7, 9, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    if mode == "RGB":
        theirs = processor(vae_scale_factor=8).preprocess(blobs, height=136, width=200)
        ours = image_pixels(blobs, 136, 200).astype(np.float32) / 255 * 2 - 1
        np.testing.assert_allclose(theirs[0].permute(1, 2, 0).numpy(), ours, atol=1e-6)
    mask = blobs.convert(mode)
    make = processor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    import torch

    theirs = torch.nn.functional.interpolate(make.preprocess(mask, height=136, width=200), size=(17, 25))
    np.testing.assert_array_equal(theirs[0].numpy(), latent_mask(mask, 136, 200, 8))
    assert 0 < theirs.mean() < 1


BAD = [
    (NOISE.astype(np.float32), "float32 array"), (NOISE > 5, "bool array"), (NOISE[..., :2], "an array of (40, 56, 2)"),
    (NOISE[None], "an array of (1, 40, 56, 3)"), (NOISE[:0], "an array of (0, 56, 3)"),
    (NOISE[0, 0], "an array of (3,)"), ("a.png", "str"), ([NOISE], "list"), (b"", "bytes"),
    (Image.new("F", (4, 4)), "4x4 pixels of mode F"), (Image.new("I", (4, 4)), "4x4 pixels of mode I"),
    (Image.new("RGB", (0, 4)), "0x4 pixels of mode RGB"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "actual"), BAD, ids=[actual for _, actual in BAD])
def test_what_is_no_picture_is_refused_by_name(value, actual):
    for field, fields in (("image", {"image": value}), ("mask", {"image": NOISE, "mask": value})):
        with pytest.raises(RequestInvalid, match="allowed: a PIL image, or a uint8 array") as caught:
            Request(prompt="a cat", **fields)
        assert (caught.value.subject, caught.value.actual) == (f"request, {field}", actual)


def test_a_damaged_file_is_refused_when_the_request_is_made():
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "PNG")
    broken = Image.open(io.BytesIO(stream.getvalue()[:-500]))
    with pytest.raises(RequestInvalid, match=r"request, image: got an image that cannot be read"):
        Request(prompt="a cat", image=broken)


def test_a_mask_of_ones_is_a_mistake_and_one_of_zeros_is_not():
    ones = np.ones((8, 8), np.uint8)
    with pytest.raises(RequestInvalid, match="multiply it by 255"):
        check_mask("mask", ones)
    check_picture("image", ones)
    check_mask("mask", ones * 0)
    check_mask("mask", ones * 255)
