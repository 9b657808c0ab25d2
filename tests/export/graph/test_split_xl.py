"""The graph cut of Stable Diffusion XL's UNet: `tiny-xl`, and one with the real number of layers, against PyTorch."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from diffusers import UNet2DConditionModel  # noqa: E402
from helpers.random_graphs import run_split  # noqa: E402
from helpers.reference_unet import Image, ReferenceUNet  # noqa: E402
from helpers.xl import call_inputs, narrow_unet  # noqa: E402

from ebca.engines.contract import dims  # noqa: E402
from ebca.engines.contract.accuracy import relative_l2  # noqa: E402
from ebca.export.checkpoint.tiny_xl import TINY_XL  # noqa: E402
from ebca.export.graph.segments import Split  # noqa: E402
from ebca.export.graph.split import split_unet  # noqa: E402
from ebca.export.graph.torch_op import TorchEnergyAttention  # noqa: E402
from ebca.export.graph.trace import layers_of  # noqa: E402
from ebca.export.graph.traced_unet import TracedUNet  # noqa: E402

ADDED = ("text_embeds", "time_ids")
GAMMA_ATTN, GAMMA_NORM = 0.05, 0.03
# Of latents; not square, and odd, so that no halving is exact.
SIZE = (13, 7)
TOKENS = 6


@dataclass
class Case:
    unet: UNet2DConditionModel
    split: Split

    def run(self, feeds: dict[str, np.ndarray], gamma_attn: float, gamma_norm: float) -> dict[str, np.ndarray]:
        """All tensors of the segments and a PyTorch op in between."""
        rows, contexts, tokens, _ = feeds["contexts"].shape
        op = TorchEnergyAttention(
            [layer.heads for layer in layers_of(self.unet)],
            weights=torch.ones(rows, contexts),
            gamma_attn=torch.full((rows, contexts, tokens), gamma_attn),
            gamma_norm=torch.full((rows, contexts), gamma_norm),
        )
        return run_split(self.split, feeds, lambda layer, *qkv: [t.numpy() for t in op(layer, *map(torch.tensor, qkv))])


@pytest.fixture(scope="module", params=["tiny-xl", pytest.param("70 layers", marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest) -> Case:
    unet = TINY_XL.build().unet if request.param == "tiny-xl" else narrow_unet()
    return Case(unet, split_unet(TracedUNet.of(unet))[0])


def test_layers_come_in_the_order_of_execution() -> None:
    """Those of a block run before those of the next, and those of one transformer one after the other."""
    unet = narrow_unet()
    feeds = {name: torch.from_numpy(value) for name, value in call_inputs(unet, 1, 1, TOKENS, (8, 8)).items()}
    run: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: run.append(name))
        for name, module in unet.named_modules()
        if name.endswith(".attn2")
    ]
    with torch.no_grad():
        unet(
            feeds["sample"], feeds["timestep"], feeds["contexts"][:, 0], added_cond_kwargs={n: feeds[n] for n in ADDED}
        )
    for hook in hooks:
        hook.remove()
    assert len(run) == 70
    assert [layer.name for layer in layers_of(unet)] == run


def test_there_is_a_segment_before_and_after_each_layer(case: Case) -> None:
    layers = len(layers_of(case.unet))
    segments = case.split.segments
    assert [s.name for s in segments] == ["time_embedding", *(f"segment_{i:02}" for i in range(layers + 1))]
    assert [call.layer for s in segments for call in s.ops] == list(range(layers))


def test_pooled_embedding_and_sizes_are_embedded_in_float32(case: Case) -> None:
    """A size of 4095 is 4096 in float16, whose sinusoids are others."""
    first, *others = case.split.segments
    assert first.float32_only and not any(s.float32_only for s in others)
    assert first.inputs == ("text_embeds", "time_ids", "timestep")
    assert not any({"timestep", *ADDED} & {*s.inputs} for s in others)
    assert not any(node.op_type in ("Sin", "Cos") for s in others for node in s.graph)


def test_without_updates_it_equals_the_unet_of_diffusers(case: Case) -> None:
    feeds = call_inputs(case.unet, 2, 1, TOKENS, SIZE)
    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    added = {name: tensors[name] for name in ADDED}
    with torch.no_grad():
        expected = case.unet(
            tensors["sample"], tensors["timestep"], tensors["contexts"][:, 0], added_cond_kwargs=added
        ).sample
    actual = case.run(feeds, 0.0, 0.0)
    # float32 in two engines, over up to 70 layers.
    assert relative_l2(actual["noise"], expected.numpy()) < 2e-5
    assert np.array_equal(actual["contexts_out"], feeds["contexts"])
    sizes = {"batch": 2, "contexts": 1, "tokens": TOKENS, "height": SIZE[0], "width": SIZE[1]}
    for name, boundary in case.split.tensors.items():
        assert actual[name].shape == dims.shape(boundary.shape, sizes)


def test_with_updates_it_equals_the_formulas_in_float64(case: Case) -> None:
    feeds = call_inputs(case.unet, 2, 1, TOKENS, SIZE, seed=1)
    main = torch.from_numpy(feeds["contexts"][:, 0]).double()
    image = Image(main, None)
    reference = ReferenceUNet(copy.deepcopy(case.unet).double(), gamma_attn=GAMMA_ATTN, gamma_norm=GAMMA_NORM)
    added = {name: torch.from_numpy(feeds[name]).double() for name in ADDED}
    noise = reference(feeds["sample"], torch.from_numpy(feeds["timestep"]), [image], added=added)
    actual = case.run(feeds, GAMMA_ATTN, GAMMA_NORM)
    # float32 against float64, where each layer reads what the one before has changed.
    assert relative_l2(actual["noise"], noise) < 2e-5
    assert relative_l2(actual["contexts_out"][:, 0], image.main.numpy()) < 2e-5
    # The updates do something.
    assert relative_l2(image.main.numpy(), main.numpy()) > 1e-3
