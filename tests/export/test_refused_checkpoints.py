"""Single checkpoints that are no model of the families: a LoRA, a ControlNet, a component, another family's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import SourceError

torch = pytest.importorskip("torch")

from diffusers import UNet2DConditionModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from export.origin import open_source  # noqa: E402
from tests.family_pipelines import family_source  # noqa: E402
from tests.lora_files import DIALECTS, random_pairs, unet_layers, write  # noqa: E402
from tests.single_checkpoint import save_checkpoint  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tiny_source, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "dream.safetensors"
    save_checkpoint(tiny_source, path)
    return path


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
NAMES = {
    "inpainting": ({FIRST: torch.zeros(32, 9, 3, 3)}, True, "9 channels", "Request"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": torch.zeros(4)}, False, "a ControlNet", "not supported"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(4)}, False, "Flux", "supported"),
    "sd3": ({"model.diffusion_model.joint_blocks.0.x": torch.zeros(4)}, True, "Stable Diffusion 3", "supported"),
    "ip-adapter": ({"ip_adapter.1.to_k_ip.weight": torch.zeros(4)}, False, "an IP-Adapter", "not supported"),
    "embedding": ({"emb_params": torch.zeros(2, 32)}, False, "a checkpoint without", "--config"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_checkpoints_of_other_kinds(checkpoint, tiny_source, tmp_path, kind):
    tensors, beside, actual, remedy = NAMES[kind]
    path = tmp_path / "x.safetensors"
    save_file({**(load_file(checkpoint) if beside else {}), **tensors}, path)
    no_checkpoint(path, tiny_source, actual, remedy)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_lora_is_no_checkpoint(tiny_source, tmp_path, dialect):
    module = UNet2DConditionModel.from_pretrained(tiny_source / "unet")
    path = write(tmp_path / "x.safetensors", random_pairs("unet", module, unet_layers(module)), DIALECTS[dialect])
    no_checkpoint(path, tiny_source, "a LoRA", "--lora FILE")


@pytest.mark.parametrize("part", ["model.", "first_stage_model.", "cond_stage_model."])
def test_a_component_is_no_checkpoint(checkpoint, tiny_source, tmp_path, part):
    path = tmp_path / "x.safetensors"
    save_file({name: value for name, value in load_file(checkpoint).items() if name.startswith(part)}, path)
    no_checkpoint(path, tiny_source, "a checkpoint without", "--config")


@pytest.mark.parametrize("family", ["sdxl", "sd21"])
def test_a_checkpoint_with_the_configs_of_another_family(checkpoint, tmp_path, family):
    path = Path(shutil.copy(checkpoint, tmp_path / "x.safetensors"))
    no_checkpoint(path, family_source(family), "a checkpoint without what the configs of", "--config")


@pytest.mark.parametrize(
    ("values", "actual"),
    [
        ({"_class_name": "FluxPipeline"}, "transformer"),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet"),
    ],
)
def test_a_checkpoint_with_configs_that_no_family_has(checkpoint, tiny_source, tmp_path, values, actual):
    index = Path(shutil.copytree(tiny_source, tmp_path / "configs")) / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **values}))
    with pytest.raises(SourceError, match=actual) as caught:
        open_source(str(checkpoint), tmp_path / "out", config=str(index.parent))
    assert caught.value.subject == str(index)


def no_checkpoint(path: Path, config: Path, actual: str, remedy: str) -> None:
    """It is refused as this file, not as a temporary copy of the configs, and leaves no folder."""
    with pytest.raises(SourceError) as caught:
        open_source(str(path), path.parent / "out", config=str(config))
    error = caught.value
    assert error.subject == str(path)
    assert actual in error.actual
    assert remedy in error.remedy
    assert not [path for path in (path.parent / "out" / ".sources").iterdir() if path.is_dir()]
