"""LoRAs of Stable Diffusion XL, and those of other models, on its weights."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import loras

from ebca.engines.adapters.derived import EmbeddingFile, LoraFile, derive
from ebca.engines.contract import weights as stored
from ebca.engines.contract.directory import EngineDirectory, open_directory
from ebca.errors import ParameterError

pytest.importorskip("torch")

from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.tiny_xl import TINY_XL
from ebca.export.merging import merged

RANK = 2
STYLES = ("diffusers", "kohya", "compvis")


@dataclass(frozen=True)
class Changed:
    """One weight that the LoRA changes, and its module's name in each style."""

    part: str
    name: str
    shape: tuple[int, ...]
    kohya: str
    compvis: str


CHANGED = (
    Changed(
        "unet",
        "down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k",
        (64, 80),
        "lora_unet_down_blocks_2_attentions_0_transformer_blocks_1_attn2_to_k",
        # Blocks of one resnet and one downsampler each.
        "lora_unet_input_blocks_5_1_transformer_blocks_1_attn2_to_k",
    ),
    Changed(
        "unet",
        "up_blocks.1.attentions.1.proj_in",
        (64, 64),
        "lora_unet_up_blocks_1_attentions_1_proj_in",
        "lora_unet_output_blocks_3_1_proj_in",
    ),
    Changed("unet", "add_embedding.linear_1", (128, 88), "lora_unet_add_embedding_linear_1", "lora_unet_label_emb_0_0"),
    *(
        Changed(part, f"text_model.encoder.layers.{layer}.mlp.fc1", shape, name, name)
        for part, layer, shape, name in (
            ("text_encoder", 0, (64, 32), "lora_te1_text_model_encoder_layers_0_mlp_fc1"),
            # The UNet reads the layer before.
            ("text_encoder", 2, (64, 32), "lora_te1_text_model_encoder_layers_2_mlp_fc1"),
            ("text_encoder_2", 3, (96, 48), "lora_te2_text_model_encoder_layers_3_mlp_fc1"),
        )
    ),
    Changed("text_encoder_2", "text_projection", (40, 48), "lora_te2_text_projection", "lora_te2_text_projection"),
)


def write(path: Path, style: str = "kohya", changes: tuple[Changed, ...] = CHANGED) -> dict[str, np.ndarray]:
    """Write a LoRA; what it adds to each weight, by part and name."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    expected: dict[str, np.ndarray] = {}
    for one in changes:
        down = rng.standard_normal((RANK, one.shape[1]), np.float32)
        up = rng.standard_normal((one.shape[0], RANK), np.float32)
        key = f"{one.part}.{one.name}" if style == "diffusers" else getattr(one, style)
        roles = ("lora_A", "lora_B") if style == "diffusers" else ("lora_down", "lora_up")
        tensors |= {f"{key}.{role}.weight": value for role, value in zip(roles, (down, up), strict=True)}
        expected[f"{one.part} {one.name}.weight"] = up @ down
    loras.write(path, tensors)
    return expected


@pytest.fixture(scope="module")
def before() -> dict[str, np.ndarray]:
    return weights_of(TINY_XL.build())


def weights_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    found = checkpoint.matrices()
    return {f"{part} {name}": value.numpy() for part, named in found.items() for name, value in named.items()}


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_of_each_style_is_merged_into_a_checkpoint(
    style: str, before: dict[str, np.ndarray], tmp_path: Path
) -> None:
    expected = write(tmp_path / "a.safetensors", style)
    with warnings.catch_warnings():
        # Everything fits something.
        warnings.simplefilter("error")
        after = weights_of(merged(TINY_XL.build(), [LoraFile(tmp_path / "a.safetensors", 0.5)]))
    changed = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    assert changed == {*expected}
    for name, change in expected.items():
        # Of float32.
        np.testing.assert_allclose(after[name] - before[name], 0.5 * change, rtol=0, atol=1e-5)


def copies(directory: EngineDirectory) -> dict[str, Any]:
    """Every stored copy of each weight, as it is in PyTorch."""
    sizes = {name: record.size for name, record in directory.manifest.files.items()}
    weights = stored.parse(directory.read(directory.manifest.weights or ""), sizes)
    found: dict[str, list[np.ndarray]] = {}
    for part, named in weights.items():
        for name, weight in named.items():
            values = found.setdefault(f"{part} {name}", [])
            for copy in weight.copies:
                shape = weight.shape[::-1] if copy.transposed else weight.shape
                array = np.memmap(directory.file(copy.file), copy.dtype, "r", copy.offset, shape)
                values.append(array.T if copy.transposed else array)
    return found


def test_a_lora_is_merged_into_an_engine(tiny_xl_dir: Path, before: dict[str, np.ndarray], tmp_path: Path) -> None:
    expected = write(tmp_path / "a.safetensors")
    base = open_directory(tiny_xl_dir)
    # Graphs have the positions in another form.
    assert copies(base).keys() == {name for name in before if "position_embedding" not in name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = copies(derive(base, [LoraFile(tmp_path / "a.safetensors")]))
    for name, values in made.items():
        wanted = before[name] + expected.get(name, np.float32(0))
        # No graph reads the first text encoder's last layer.
        assert bool(values) != name.startswith("text_encoder text_model.encoder.layers.2.")
        assert all(np.allclose(value, wanted, rtol=0, atol=1e-5) for value in values)


def test_a_lora_of_another_architecture_is_refused(tmp_path: Path) -> None:
    """Its text encoder's weights would fit, and so would some of its UNet's."""
    key = CHANGED[0].kohya
    down, up = np.ones((RANK, 32), np.float32), np.ones((64, RANK), np.float32)
    loras.write(tmp_path / "one.safetensors", {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up})
    with pytest.raises(ParameterError) as caught:
        merged(TINY_XL.build(), [LoraFile(tmp_path / "one.safetensors")])
    assert "was made for texts of width 32, and this engine's have 80" in str(caught.value)
    assert "Stable Diffusion 1.x has 768, 2.x 1024, XL 2048" in str(caught.value)


def test_embeddings_are_refused(tiny_xl_dir: Path, tmp_path: Path) -> None:
    toy = EmbeddingFile(loras.write(tmp_path / "toy.safetensors", {"<toy>": np.ones((1, 32), np.float32)}))
    with pytest.raises(ParameterError, match="embeddings for Stable Diffusion XL are not supported"):
        merged(TINY_XL.build(), [], [toy])
    with pytest.raises(ParameterError, match="embeddings for Stable Diffusion XL are not supported"):
        derive(open_directory(tiny_xl_dir), (), [toy])
