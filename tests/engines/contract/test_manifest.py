"""A hostile or damaged manifest.json raises a clear EngineError, and nothing else."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import manifests as stamping

from ebca.engines.contract import consistency, limits
from ebca.engines.contract import manifest as manifests
from ebca.errors import EngineError
from ebca.plugins.energy_attention import GUIDED_VARIANTS, VARIANTS, signature


@pytest.fixture(scope="module")
def data(shapes_dir: Path) -> dict[str, Any]:
    return stamping.load(shapes_dir)


@pytest.fixture
def refused(data: dict[str, Any]) -> Callable[[Callable[[dict[str, Any]], object]], str]:
    """What is said of a manifest that was changed and stamped again."""

    def refusal(change: Callable[[dict[str, Any]], object]) -> str:
        changed = copy.deepcopy(data)
        change(changed)
        with pytest.raises(EngineError) as caught:
            manifests.parse(stamping.stamped(changed), "it")
        assert len(str(caught.value).splitlines()) == 1
        return str(caught.value)

    return refusal


Refused = Callable[[Callable[[dict[str, Any]], object]], str]


def test_round_trip(shapes_dir: Path) -> None:
    manifest = manifests.read(shapes_dir)
    assert manifests.parse(manifest.to_json().encode()) == manifest


# --- the document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": manifests.VERSION + 1}, "has manifest version 3, this ebca reads 2; upgrade ebca"),
        ({"version": 1}, "has manifest version 1, this ebca reads 2; export the engine again"),
        ({"version": 0}, "version 0"),
        ({"version": True}, "version true"),
        ({"version": 2.0}, "version 2.0"),
        ({"version": "2"}, "version '2'"),
        ({"version": ["x" * 5000]}, "version "),
        ({"format": "other"}, "not an ebca manifest"),
        ({"unet": {}}, "is broken: unet"),
        ({"components": None}, "is broken: components is null instead of an object; export the engine again"),
    ],
)
def test_wrong_fields_are_refused(refused: Refused, change: dict[str, Any], message: str) -> None:
    assert message in refused(lambda data: data.update(change))


def test_missing_folders_manifests_and_broken_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not exist"):
        manifests.read(tmp_path / "absent")
    with pytest.raises(EngineError, match="did not finish"):
        manifests.read(tmp_path)
    path = tmp_path / manifests.FILE_NAME
    for contents in (b'{"format": "ebca-engine", "vers', b"\xff\xfe\x00", b"", b"\xef\xbb\xbf{}"):
        path.write_bytes(contents)
        with pytest.raises(EngineError, match=r"cannot be read: .*; copy or export the engine again"):
            manifests.read(tmp_path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(limits.MANIFEST_BYTES + 1)
    with pytest.raises(EngineError, match="more than any that ebca writes"):
        manifests.read(tmp_path)


@pytest.mark.parametrize("what", ["pipe", "directory", "dangling link", "link to itself", "device"])
def test_a_manifest_that_is_no_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / manifests.FILE_NAME
    if what == "pipe":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "dangling link": "nowhere"}.get(what, path.name))
    expected = "link to a file that is not there" if "link" in what else f"is a {what} instead of a file"
    with pytest.raises(EngineError, match=expected):
        manifests.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ('{"a": ' * 65 + "1" + "}" * 65, "nested deeper than 64 levels"),
        ('{"a": 1, "a": 1}', "an object has 'a' twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "1e999... is too large"),
        ('{"a": ' + "9" * 5000 + "}", "is too large"),
        (r'{"a": "\ud800"}', "not valid Unicode"),
        (r'{"\ud800": 1}', "not valid Unicode"),
    ],
)
def test_json_that_parsers_read_differently_is_refused(text: str, message: str) -> None:
    with pytest.raises(EngineError, match=f"cannot be read: .*{message}"):
        manifests.parse(text.encode())


def test_json_may_be_as_deep_as_the_limit() -> None:
    with pytest.raises(EngineError, match="not an ebca manifest"):
        manifests.parse(("[" * limits.DEPTH + "]" * limits.DEPTH).encode())


# --- the digest


def test_every_change_of_a_byte_is_refused(shapes_dir: Path) -> None:
    contents = bytearray((shapes_dir / manifests.FILE_NAME).read_bytes())
    manifests.parse(bytes(contents))
    places = np.random.default_rng(0).choice(len(contents), 200, replace=False)
    for place in (*places, 30, contents.index(b'"digest"') + 12, len(contents) - 1):
        contents[place] ^= 1
        with pytest.raises(EngineError):
            manifests.parse(bytes(contents))
        contents[place] ^= 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"guidance_scale": 4.0', b'"guidance_scale": 5.0'),
        (b'"scaling_factor": 1.2126', b'"scaling_factor": 1.2127'),
        (b'"bos_token_id": 585', b'"bos_token_id": 584'),
        (b'"sample_size": 16', b'"sample_size": 32'),
        (b'"downscale": 4', b'"downscale":  4'),
    ],
)
def test_one_digit_is_enough(shapes_dir: Path, before: bytes, after: bytes) -> None:
    contents = (shapes_dir / manifests.FILE_NAME).read_bytes()
    assert before in contents
    with pytest.raises(EngineError, match=r"was changed or damaged after the export.*copy the engine directory again"):
        manifests.parse(contents.replace(before, after, 1))


@pytest.mark.parametrize("digest", [None, "", "0" * 64, "A" * 64, 5, ["0" * 64]])
def test_a_digest_that_is_none_is_refused(data: dict[str, Any], digest: Any) -> None:
    with pytest.raises(EngineError, match="was changed or damaged"):
        manifests.parse(json.dumps({**data, "digest": digest}).encode())
    with pytest.raises(EngineError, match="was changed or damaged"):
        manifests.parse(json.dumps({name: value for name, value in data.items() if name != "digest"}).encode())


# --- values


def _set(data: dict[str, Any], place: str, value: Any) -> None:
    *way, last = place.split("/")
    holder: Any = data
    for key in way:
        holder = holder[int(key)] if isinstance(holder, list) else holder[key]
    if isinstance(holder, list):
        holder[int(last)] = value
    else:
        holder[last] = value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("vae/scaling_factor", "abc", "vae.scaling_factor is 'abc' instead of a number from 1e-06 to 1e+06"),
        ("vae/scaling_factor", 0, "vae.scaling_factor is 0 instead of"),
        ("vae/scaling_factor", -1, "vae.scaling_factor is -1 instead of"),
        ("vae/scaling_factor", True, "vae.scaling_factor is true instead of"),
        ("vae/scaling_factor", 10**12, "vae.scaling_factor is 1000000000000 instead of"),
        ("vae/shift_factor", [], "vae.shift_factor is a list that is empty instead of"),
        ("vae/downscale", 0, "vae.downscale is 0 instead of an integer from 1 to 256"),
        ("vae/downscale", 4.0, "vae.downscale is 4.0 instead of an integer"),
        ("vae/downscale", 8, "tensor 'image' of the VAE's decoder is float32 [batch, 3, 4*height, 4*width] instead of"),
        ("vae/latent_channels", 3, "vae.latent_channels is 3, and unet.out_channels is 4"),
        ("vae/decoder", "vae_encoder", "the VAE's decoder has the tensors image instead of latents"),
        ("vae/decoder", "nothing", "the VAE needs the unknown component 'nothing'"),
        ("vae", None, "model.kind is 'text-to-image' of a directory without all other models"),
        ("model/guidance_scale", "high", "model.guidance_scale is 'high' instead of"),
        ("model/guidance_scale", 10**30, "model.guidance_scale is 1e+30 instead of"),
        ("model/kind", "video", "kind is 'video' instead of text-to-image or inpainting or instruct-pix2pix or unet"),
        ("model/kind", "unet", "model.kind is 'unet' of a directory with all other models"),
        ("model/kind", "inpainting", "unet.in_channels is 4 instead of 9"),
        ("model/kind", {}, "model.kind is an object that is empty instead of"),
        ("model/name", "two\nlines", r"model.name is 'two\nlines' instead of a line"),
        ("model/name", "", "model.name is '' instead of a line"),
        ("model/source", "x", "model.source is 'x' instead of an object"),
        ("precision", "int8", "precision is 'int8' instead of fp32 or fp16"),
        ("compute", "bf16", "compute is 'bf16' instead of"),
        ("compute", "fp16", "compute is 'fp16', and no tensor of the UNet is float16"),
        ("unet/in_channels", 10**9, "unet.in_channels is 1000000000 instead of"),
        ("unet/in_channels", 5, "tensor 'sample' of the UNet is float32 [batch, 4, height, width] instead of"),
        ("unet/context_dim", 64, "tensor 'contexts' of the UNet"),
        ("unet/sample_size", 10**12, "unet.sample_size is 1000000000000 instead of"),
        ("unet/max_contexts", True, "unet.max_contexts is true instead of"),
        ("unet/max_contexts", 2.0, "unet.max_contexts is 2.0 instead of"),
        ("unet/inputs", ["sample"], "the UNet has other inputs than sample, timestep, contexts"),
        ("unet/layers/0/heads", 3, "instead of float32 [batch, height_1*width_1, 144]"),
        ("unet/layers/0/heads", None, "unet.layers[0].heads is null instead of an integer"),
        ("unet/layers/0/height", "height", "instead of float32 [batch, height*width_1, 96]"),
        ("unet/layers/0/height", "height_9999", "unet.layers[0].height: dimension 'height_9999'"),
        ("unet/layers/0/op", "energy_attention_h2_d56", "tensor 'q' of op"),
        ("unet/layers/0/op", "nothing", "op 'nothing' of layer"),
        ("unet/layers", [], "a step has layer 0, and there are 0"),
        ("unet/plan/2/layer", 1, "tensor 'q' of layer 1"),
        ("unet/plan/2/layer", None, "unet.plan[2] has to name either a segment or a layer"),
        ("unet/plan/2/inputs", ["layer_00.k", "layer_00.q", "layer_00.v"], "tensor 'q' of layer 0"),
        ("unet/plan/1/inputs", ["sample", "sample"], "unet.plan[1].inputs has 'sample' twice"),
        ("unet/plan/1/segment", "segment_02", "segment 'segment_02' has the tensors"),
        ("unet/tensors/skip_0/shape/1", 50, "tensor 'skip_0' of segment 'segment_00'"),
        ("unet/tensors/skip_0/dtype", "float8", "unet.tensors.skip_0.dtype is 'float8' instead of float32"),
        ("unet/tensors/skip_0/shape", ["batch", "depth"], "unet.tensors.skip_0.shape[1]: dimension 'depth' uses"),
        ("unet/ops/energy_attention_h2_d48/update", "text_encoder", "op 'text_encoder' has the tensors input_ids"),
        ("unet/vanilla", "segment_00", "the full UNet 'segment_00' has the tensors"),
        ("text_encoder/max_length", 77, "tensor 'input_ids' of the text encoder is int64 [batch, 24] instead of"),
        ("text_encoder/hidden_size", 64, "tensor 'hidden_states' of the text encoder"),
        ("tokenizer/info/model_max_length", 77, "the tokenizer makes 77 tokens, and text_encoder.max_length is 24"),
        ("tokenizer/info/bos_token_id", "585", "tokenizer.info.bos_token_id is '585' instead of"),
        ("tokenizer/info/bos_token", None, "tokenizer.info.bos_token is null instead of a text"),
        ("tokenizer/file", "nothing", "the tokenizer needs 'nothing', which is not among the files"),
        ("components/segment_03/graph", "nothing", "component 'segment_03' needs 'nothing', which is not among"),
        ("components/segment_03/weights", ["x"], "components.segment_03.weights is a list instead of a text"),
        ("components/segment_03/float32_only", 1, "components.segment_03.float32_only is 1 instead of true or false"),
        ("components/engine", {}, "components.engine cannot be the name of a component"),
        ("components/a\\b", {}, "cannot be the name of a component"),
        ("schedulers/default", "nothing", "schedulers.default is 'nothing', which has no table"),
        ("schedulers/image_to_image", "nothing", "schedulers.image_to_image is 'nothing', which has no table"),
        ("schedulers/config/num_train_timesteps", 999, "num_train_timesteps is 999, and 'schedulers/alphas_cumprod"),
        ("schedulers/config/num_train_timesteps", 0, "num_train_timesteps is 0 instead of"),
        ("schedulers/tables/ddim/file", "x", "the scheduler ddim needs 'x', which is not among the files"),
        ("schedulers/tables/ddim/file", "schedulers/alphas_cumprod.f64", "alphas_cumprod.f64' has 8000"),
        ("schedulers/tables/ddim/memory/noises", 17, "memory.noises is 17 instead of"),
        ("schedulers/tables/ddim/memory/noises", 2, "bytes, and 'schedulers/ddim.f64' has"),
        ("schedulers/tables/ddim/steps/50", 51, "bytes, and 'schedulers/ddim.f64' has"),
        ("schedulers/tables/ddim/steps/50", 10**6, "is 1000000 instead of"),
        ("schedulers/tables/ddim/steps/05", 5, "steps has '05' instead of a number"),
        ("files/tokenizer.json/size", -1, "files['tokenizer.json'].size is -1 instead of"),
        ("files/tokenizer.json/sha256", "0", "files['tokenizer.json'].sha256 is '0' instead of 64 hexadecimal digits"),
        ("parity/unet/noise", "x", "parity.unet.noise is 'x' instead of a finite number"),
        ("plans", {"tensorrt": None}, "plans.tensorrt is null instead of an object"),
    ],
)
def test_values_of_a_wrong_type_or_range_are_named(refused: Refused, place: str, value: Any, message: str) -> None:
    text = refused(lambda data: _set(data, place, value))
    assert text.startswith("it is broken: ") and message in text


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "..\\b", "C:/b", "", "./x", "a//b", "a/"])
def test_paths_that_leave_the_directory_are_refused(refused: Refused, path: str) -> None:
    text = refused(lambda data: data["files"].update({path: {"size": 1, "sha256": "0" * 64}}))
    assert "outside the engine directory" in text if path else "a name in files is ''" in text


def test_steps_that_read_before_writing_are_refused(refused: Refused) -> None:
    assert "before it is written" in refused(lambda data: data["unet"]["plan"].reverse())


def test_steps_that_write_again_are_refused(refused: Refused) -> None:
    assert "which is there already" in refused(lambda data: data["unet"]["plan"].insert(1, data["unet"]["plan"][0]))


def test_what_is_missing_or_null_has_a_default(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    for holder, name in (
        (changed["model"], "guidance_scale"),
        (changed, "compute"),
        (changed, "parity"),
        (changed, "created_by"),
        (changed, "plans"),
        (changed["unet"], "max_contexts"),
        (changed["schedulers"]["tables"]["ddim"], "minimum_steps"),
        (changed["schedulers"]["config"], "prediction_type"),
    ):
        for value in (None, "missing"):
            holder[name] = value
            if value:
                del holder[name]
            manifest = manifests.parse(stamping.stamped(changed))
    assert manifest.guidance_scale == 7.5 and manifest.compute == "fp32" and manifest.unet.max_contexts is None
    assert "minimum_steps" not in manifest.schedulers["tables"]["ddim"]


def test_the_op_is_the_one_of_its_contract() -> None:
    """The contract's copy of the op's tensors, which may not import the op."""
    assert tuple(consistency.OP_VARIANTS) == VARIANTS
    for variant, (inputs, outputs) in consistency.OP_VARIANTS.items():
        expected = signature(variant, 2, 48)
        assert (inputs, outputs) == (tuple(expected.inputs), tuple(expected.outputs))
    assert tuple(consistency.GUIDED_VARIANTS) == GUIDED_VARIANTS
    for variant, (inputs, outputs) in consistency.GUIDED_VARIANTS.items():
        expected = signature(variant, 2, 48)
        assert (inputs, outputs) == (tuple(expected.inputs), tuple(expected.outputs))


# --- layers for subjects


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            {"biased": [0, 5, 7], "sources": [5]},
            "subject_layers.biased is [0, 5, 7] instead of ascending indices below 7",
        ),
        ({"biased": [5, 0], "sources": [5]}, "subject_layers.biased is [5, 0]"),
        ({"biased": [5, 5], "sources": [5]}, "subject_layers.biased is [5, 5]"),
        ({"biased": [], "sources": []}, "subject_layers.biased is []"),
        ({"biased": [5], "sources": []}, "subject_layers.sources is []"),
        ({"biased": [0, 5], "sources": [6]}, "layer 6 is among the sources of subject_layers, but not biased"),
        ({"biased": [0, 1], "sources": [0]}, "layers 0 and 1 of subject_layers have different sizes"),
        ({"biased": [1, 2], "sources": [1]}, "has no variant 'attention_guided'"),
        ({"biased": [-1], "sources": [-1]}, "unet.subject_layers.biased[0] is -1 instead of an integer"),
        ({"biased": [True], "sources": [0]}, "unet.subject_layers.biased[0] is true instead of an integer"),
        ({"biased": [0]}, "unet.subject_layers.sources is missing"),
        ([0, 5], "unet.subject_layers is a list instead of an object"),
    ],
)
def test_layers_for_subjects_that_cannot_be_are_refused(refused: Refused, layers: Any, message: str) -> None:
    assert message in refused(lambda data: data["unet"].update(subject_layers=layers))


def test_a_manifest_without_layers_for_subjects_is_fine(data: dict[str, Any]) -> None:
    for change in ({"subject_layers": None}, {}):
        unet = {name: value for name, value in data["unet"].items() if name != "subject_layers"} | change
        assert manifests.parse(stamping.stamped({**data, "unet": unet})).unet.subject_layers is None
