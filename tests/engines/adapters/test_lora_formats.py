"""Every key format leads to the same weights, and those are W + s alpha / rank B A."""

from pathlib import Path

import numpy as np
import pytest
from helpers import loras

from ebca.engines.adapters.derived import LoraFile, derive
from ebca.engines.contract import weights as stored
from ebca.engines.contract.directory import EngineDirectory
from ebca.engines.contract.weights import Weights

SCALE = 0.7


def weights_of(directory: EngineDirectory) -> Weights:
    assert directory.manifest.weights is not None
    sizes = {name: record.size for name, record in directory.manifest.files.items()}
    return stored.parse(directory.read(directory.manifest.weights), sizes)


def copies(directory: EngineDirectory, part: str, name: str) -> list[np.ndarray]:
    """Every copy of a weight, in PyTorch's orientation."""
    weight = weights_of(directory)[part][name]
    found = []
    for copy in weight.copies:
        shape = weight.shape[::-1] if copy.transposed else weight.shape
        values = np.fromfile(directory.file(copy.file), copy.dtype, int(np.prod(shape)), offset=copy.offset).reshape(
            shape
        )
        found.append(values.T if copy.transposed else values)
    return found


def merged(base: EngineDirectory, folder: Path, style: str) -> EngineDirectory:
    return derive(base, [LoraFile(loras.write(folder / f"{style}.safetensors", loras.tensors(style)), SCALE)])


@pytest.fixture(scope="module")
def kohya(base: EngineDirectory, tmp_path_factory: pytest.TempPathFactory) -> EngineDirectory:
    return merged(base, tmp_path_factory.mktemp("kohya"), "kohya")


def test_every_copy_of_a_weight_changes_by_the_product(base: EngineDirectory, kohya: EngineDirectory) -> None:
    counted = 0
    for part, modules in loras.changes().items():
        for module, change in modules.items():
            before, after = (copies(d, part, f"{module}.weight") for d in (base, kohya))
            for old, new in zip(before, after, strict=True):
                # One rounding of the sum, and those of a product of rank 3.
                np.testing.assert_allclose(new, old + SCALE * change, rtol=0, atol=2e-6)
                counted += 1
    # Keys of cross-attention are stored twice: for k, and as its transpose for g Wk.
    assert counted == sum(map(len, loras.changes().values())) + 2


def test_other_weights_keep_their_bytes(base: EngineDirectory, kohya: EngineDirectory) -> None:
    changed = {(part, f"{module}.weight") for part, modules in loras.changes().items() for module in modules}
    for part, named in weights_of(base).items():
        for name in named:
            same = [
                np.array_equal(*pair) for pair in zip(copies(base, part, name), copies(kohya, part, name), strict=True)
            ]
            assert all(same) == ((part, name) not in changed) and any(same) == all(same)


@pytest.mark.parametrize("style", [style for style in loras.STYLES if style != "kohya"])
def test_formats_agree(base: EngineDirectory, kohya: EngineDirectory, tmp_path: Path, style: str) -> None:
    found = merged(base, tmp_path, style)
    for part, modules in loras.changes().items():
        for module in modules:
            for one, other in zip(
                copies(found, part, f"{module}.weight"), copies(kohya, part, f"{module}.weight"), strict=True
            ):
                # alpha / rank is a factor of B in some styles: one more rounding.
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_bfloat16_and_float16_files(base: EngineDirectory, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = loras.pairs()["unet"][module]
    old = copies(base, "unet", f"{module}.weight")[0]
    for dtype in (torch.bfloat16, torch.float16):
        tensors = {"lora_A": torch.from_numpy(down).to(dtype), "lora_B": torch.from_numpy(up).to(dtype)}
        path = tmp_path / f"{dtype}.safetensors"
        save_file({f"unet.{module}.{name}.weight": value for name, value in tensors.items()}, path)
        found = copies(derive(base, [LoraFile(path)]), "unet", f"{module}.weight")[0]
        product = (tensors["lora_B"].double() @ tensors["lora_A"].double()).numpy()
        np.testing.assert_allclose(found, old + product, rtol=0, atol=1e-6)


def test_peft_files_take_alpha_from_the_configuration_beside_them(base: EngineDirectory, tmp_path: Path) -> None:
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = loras.pairs()["unet"][module]
    name = f"base_model.model.{module}"
    path = loras.write(
        tmp_path / "adapter_model.safetensors", {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    )
    old = copies(base, "unet", f"{module}.weight")[0]
    for config, factor in (
        ('{"lora_alpha": 6, "r": 3}', 2.0),
        ('{"lora_alpha": 6, "r": 3, "use_rslora": true}', 6 / 3**0.5),
        ('{"lora_alpha": 6, "r": 3, "alpha_pattern": {"attn1.to_q": 12}}', 4.0),
    ):
        (tmp_path / "adapter_config.json").write_text(config)
        found = copies(derive(base, [LoraFile(path)]), "unet", f"{module}.weight")[0]
        np.testing.assert_allclose(found, old + factor * (up.astype(np.float64) @ down), rtol=0, atol=2e-6)


def test_several_loras_are_added_up(base: EngineDirectory, tmp_path: Path) -> None:
    files = [
        LoraFile(loras.write(tmp_path / f"{seed}.safetensors", loras.tensors("kohya", seed)), scale)
        for seed, scale in ((0, 0.5), (1, -1.5))
    ]
    found = derive(base, files)
    first, second = loras.changes(0), loras.changes(1)
    for module, change in first["unet"].items():
        name = f"{module}.weight"
        for old, new in zip(copies(base, "unet", name), copies(found, "unet", name), strict=True):
            expected = old + 0.5 * change - 1.5 * second["unet"][module]
            np.testing.assert_allclose(new, expected, rtol=0, atol=4e-6)
