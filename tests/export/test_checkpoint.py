"""Loading checkpoints: every form, and one clear line for every way it can fail. No network is used."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ebca.errors import ModelError
from ebca.export import hub
from ebca.export.checkpoint import check_unet_supported, load_checkpoint
from ebca.export.folder import choose_files, weight_files
from ebca.export.model import Checkpoint, check_text_encoder_supported
from ebca.export.single_file import STABLE_DIFFUSION_1, Architecture, load_single_file
from ebca.export.tiny import TEXT_ENCODER_CONFIG, UNET_CONFIG, VAE_CONFIG, build_tiny, save_tiny

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return build_tiny()


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_weights(a: nn.Module | None, b: nn.Module | None) -> bool:
    assert a is not None and b is not None
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# Folders


def test_tiny_is_built_in(tiny: Checkpoint) -> None:
    loaded = load_checkpoint("tiny")
    assert loaded.name == "tiny"
    assert same_weights(loaded.unet, tiny.unet)


def test_a_unet_folder_has_only_a_unet(folder: Path, tmp_path: Path, tiny: Checkpoint) -> None:
    """Both as the folder of the UNet itself and as a folder with nothing but unet/ in it."""
    shutil.copytree(folder / "unet", tmp_path / "bare" / "unet")
    for place in (folder / "unet", tmp_path / "bare"):
        loaded = load_checkpoint(place)
        assert same_weights(loaded.unet, tiny.unet)
        assert loaded.text_encoder is loaded.vae is loaded.tokenizer_json is loaded.scheduler_config is None


def test_half_precision_weights_are_read_as_float32(folder: Path) -> None:
    """Some hub repositories hold only the fp16 variant."""
    path = folder / "unet" / WEIGHTS
    half = {name: value.half() for name, value in load_file(path).items()}
    path.unlink()
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    unet = load_checkpoint(folder).unet
    assert unet.dtype == torch.float32
    assert torch.equal(unet.conv_in.weight, half["conv_in.weight"].float())


def test_weights_in_shards(folder: Path, tiny: Checkpoint) -> None:
    shutil.rmtree(folder / "unet")
    tiny.unet.save_pretrained(folder / "unet", safe_serialization=True, max_shard_size="1MB")
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert same_weights(load_checkpoint(folder).unet, tiny.unet)
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"names {shards[0].name}, which is missing"):
        load_checkpoint(folder)


def test_another_tokenizer_can_stand_in(folder: Path, tiny: Checkpoint) -> None:
    shutil.copytree(folder / "tokenizer", folder.parent / "other")
    edit_json(folder.parent / "other" / "tokenizer_config.json", model_max_length=20)
    assert load_checkpoint(folder, tokenizer=folder.parent / "other").tokenizer_info["model_max_length"] == 20
    edit_json(folder.parent / "other" / "tokenizer_config.json", model_max_length=99)
    assert load_checkpoint(folder, tokenizer=folder.parent / "other").tokenizer_info["model_max_length"] == 77


def test_a_tokenizer_with_too_many_tokens_is_refused(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    edit_json(folder / "tokenizer" / "vocab.json", extra=len(vocabulary))
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the text encoder of model only \d+"):
        load_checkpoint(folder)


def test_a_folder_in_no_known_layout(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither model_index"):
        load_checkpoint(tmp_path)
    (tmp_path / "dream.safetensors").touch()
    with pytest.raises(ModelError, match=r"to load dream\.safetensors, pass the path of that file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_an_incomplete_pipeline_names_what_is_missing(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ModelError, match=rf"is incomplete: model_index\.json names {part}, but {part}/"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "unet": None,
                "transformer": ["diffusers", "SD3Transformer2DModel"],
                "_class_name": "SD3Pipeline",
            },
            "SD3Pipeline is built on SD3Transformer2DModel",
        ),
        ({"unet": [None, None]}, "is built on no UNet"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "the unet of StableDiffusionPipeline is UNet2DModel"),
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "two text encoders"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel; only CLIPTextModel"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny; only AutoencoderKL"),
    ],
)
def test_other_pipelines_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(folder / "model_index.json", **changes)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(folder)


def test_a_broken_json_file_is_named(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        load_checkpoint(folder)
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json holds a list"):
        load_checkpoint(folder)


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_broken_weight_file_is_named(folder: Path, size: int) -> None:
    path = folder / "unet" / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(ModelError, match=rf"broken safetensors file .*{re.escape(WEIGHTS)}.*download it again"):
        load_checkpoint(folder)


def test_pickled_weights_are_never_loaded(folder: Path) -> None:
    (folder / "vae" / WEIGHTS).rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights .* are never loaded"):
        load_checkpoint(folder)


@pytest.mark.parametrize(("part", "file"), [("unet", WEIGHTS), ("text_encoder", "model.safetensors")])
def test_missing_tensors_are_not_filled_with_noise(folder: Path, part: str, file: str) -> None:
    """diffusers and transformers only warn."""
    tensors = load_file(folder / part / file)
    name = sorted(tensors)[3]
    del tensors[name]
    save_file(tensors, folder / part / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"the {part} in .* lacks 1 tensors"):
        load_checkpoint(folder)


@pytest.mark.parametrize(("part", "file"), [("unet", WEIGHTS), ("text_encoder", "model.safetensors")])
def test_tensors_of_another_shape_are_refused(folder: Path, part: str, file: str) -> None:
    tensors = load_file(folder / part / file)
    name = next(name for name, value in tensors.items() if value.ndim == 2)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / part / file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"the {part} in .*(another shape|expected shape)"):
        load_checkpoint(folder)


# What is supported


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "UNet2DModel"),
        ("addition_embed_type", "text"),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 1000),
        ("encoder_hid_dim", 4096),
        ("encoder_hid_dim_type", "text_proj"),
        ("cross_attention_norm", "layer_norm"),
        ("dual_cross_attention", True),
        ("only_cross_attention", True),
        ("only_cross_attention", [False, True]),
        ("mid_block_only_cross_attention", True),
        ("attention_type", "gated"),
        ("time_cond_proj_dim", 256),
        ("cross_attention_dim", [32, 64]),
        ("down_block_types", ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("in_channels", 8),
    ],
)
def test_unsupported_unets_name_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"unsupported UNet: {field} = ") as caught:
        check_unet_supported({**UNET_CONFIG, field: value})
    named = value[0] if field == "down_block_types" else value
    assert repr(named) in str(caught.value)


def test_sdxl_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="Stable Diffusion XL, not supported for now"):
        check_unet_supported({**UNET_CONFIG, "addition_embed_type": "text_time"})


def test_a_unet_without_cross_attention_is_refused() -> None:
    plain = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "mid_block_type": None}
    with pytest.raises(ModelError, match="no cross-attention"):
        check_unet_supported({**UNET_CONFIG, **plain})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": True, "attention_head_dim": [5, 10], "upcast_attention": True},
        {"in_channels": 9},
        {"cross_attention_dim": [32, 32]},
        {"only_cross_attention": [False, False]},
        {"class_embed_type": None, "dual_cross_attention": False},
    ],
)
def test_supported_unets_pass(changes: dict[str, Any]) -> None:
    check_unet_supported({**UNET_CONFIG, **changes})


def test_an_empty_configuration_means_the_defaults_of_diffusers() -> None:
    check_unet_supported({})


def test_text_encoders_must_fit_the_unet(folder: Path) -> None:
    with pytest.raises(ModelError, match="T5EncoderModel; only CLIPTextModel"):
        check_text_encoder_supported({"architectures": ["T5EncoderModel"]}, 768)
    edit_json(folder / "text_encoder" / "config.json", hidden_size=64)
    with pytest.raises(ModelError, match="hidden_size = 64, but the UNet's cross_attention_dim is 32"):
        load_checkpoint(folder)


def test_another_vae_is_refused(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", _class_name="AsymmetricAutoencoderKL")
    with pytest.raises(ModelError, match="AsymmetricAutoencoderKL; only AutoencoderKL"):
        load_checkpoint(folder)


# Names and paths


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'sd-9': known names are tiny, sd-1\.4, sd-1\.5, sd-1\.5-inp"):
        load_checkpoint("sd-9")


@pytest.mark.parametrize("name", ["./absent", "/absent/folder/model", "a/b/c", "~/absent"])
def test_an_absent_folder_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        load_checkpoint(name)


def test_an_absent_file() -> None:
    with pytest.raises(ModelError, match=r"there is no file absent/model\.safetensors"):
        load_checkpoint("absent/model.safetensors")


# The hub


class Hub:
    """Stands in for the hub: a repository that is a local folder, or an error for every request."""

    def __init__(self, repository: Path | None = None, error: Exception | None = None) -> None:
        self.repository = repository
        self.error = error
        self.downloads: list[list[str]] = []

    def model_info(self, repo: str, **_: Any) -> Any:
        if self.error is not None:
            raise self.error
        assert self.repository is not None
        files = [path for path in self.repository.rglob("*") if path.is_file()]
        names = [path.relative_to(self.repository).as_posix() for path in files]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(
        self, repo: str, *, allow_patterns: list[str] | None = None, local_files_only: bool = False, **_: Any
    ) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        assert allow_patterns is not None
        self.downloads.append(allow_patterns)
        return str(self.repository)


@pytest.fixture
def set_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub], Hub]:
    def install(stand_in: Hub) -> Hub:
        monkeypatch.setattr(hub, "HfApi", lambda: stand_in)
        monkeypatch.setattr(hub, "snapshot_download", stand_in.snapshot_download)
        return stand_in

    return install


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("failed", response=response)


def test_a_hub_model_is_loaded_from_the_files_it_needs(
    folder: Path, tiny: Checkpoint, set_hub: Callable[[Hub], Hub]
) -> None:
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").touch()
    (folder / "unet" / "diffusion_pytorch_model.bin").touch()
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "model.safetensors").touch()
    stand_in = set_hub(Hub(folder))
    loaded = load_checkpoint("owner/name")
    assert same_weights(loaded.unet, tiny.unet)
    assert (loaded.name, loaded.source) == (
        "owner/name",
        {"kind": "hub", "id": "owner/name", "revision": "model"},
    )
    small, everything = stand_in.downloads
    assert not any(name.endswith(".safetensors") for name in small)
    weights = {name for name in everything if name.endswith((".safetensors", ".bin"))}
    assert weights == {f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"}


def test_an_unsupported_hub_model_is_refused_before_its_weights_are_fetched(
    folder: Path, set_hub: Callable[[Hub], Hub]
) -> None:
    edit_json(folder / "unet" / "config.json", addition_embed_type="text_time")
    stand_in = set_hub(Hub(folder))
    with pytest.raises(ModelError, match="Stable Diffusion XL"):
        load_checkpoint("owner/name")
    assert len(stand_in.downloads) == 1


def test_short_names_are_hub_ids(folder: Path, set_hub: Callable[[Hub], Hub]) -> None:
    set_hub(Hub(folder))
    assert load_checkpoint("sd-1.5").name == "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(GatedRepoError, 403), "is gated: accept its licence .* HF_TOKEN or pass --token"),
        (http_error(HfHubHTTPError, 403), "is gated"),
        (http_error(RepositoryNotFoundError, 404), "check the spelling"),
        (http_error(RepositoryNotFoundError, 401), "set HF_TOKEN or pass --token"),
        (http_error(HfHubHTTPError, 401), "check the spelling"),
        (http_error(RevisionNotFoundError, 404), "has no revision 'v9'"),
        (http_error(HfHubHTTPError, 503), "the hub answered 503"),
        (ConnectionError("name not known"), "cannot reach the hub .*name not known.*check the network"),
        (OSError(errno.ENOSPC, "No space left"), "cannot store owner/name .*HF_HOME"),
    ],
)
def test_hub_failures_say_what_to_do(set_hub: Callable[[Hub], Hub], error: Exception, message: str) -> None:
    set_hub(Hub(error=error))
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint("owner/name", revision="v9")
    assert "\n" not in str(caught.value)


def test_errors_of_the_http_client_itself_are_explained(set_hub: Callable[[Hub], Hub]) -> None:
    """With a dead network the library lets its HTTP client's error through, which is no OSError."""
    client_error = HfHubHTTPError.__bases__[0]
    set_hub(Hub(error=client_error("no route")))
    with pytest.raises(ModelError, match=r"cannot reach the hub .*no route"):
        load_checkpoint("owner/name")


def test_offline_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real library, told not to use the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(ModelError, match=r"cannot reach the hub for CompVis/stable-diffusion-v1-4 .*pass its path"):
        load_checkpoint("sd-1.4", cache_dir=tmp_path)


def test_offline_with_a_cache(monkeypatch: pytest.MonkeyPatch, saved: Path, tmp_path: Path, tiny: Checkpoint) -> None:
    """The real library finds an earlier download."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = load_checkpoint("owner/name", cache_dir=tmp_path)
    assert loaded.source == {"kind": "hub", "id": "owner/name", "revision": commit}
    assert same_weights(loaded.unet, tiny.unet)


def test_files_are_chosen_per_network() -> None:
    names = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "v1-5.ckpt",
        "v1-5.safetensors",
        "README.md",
    ]
    names += ["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"]
    names += [f"vae/{WEIGHTS}", "vae/diffusion_pytorch_model.fp16.safetensors", "tokenizer/merges.txt"]
    assert set(choose_files(names)) == {
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        f"vae/{WEIGHTS}",
        "tokenizer/merges.txt",
    }
    with pytest.raises(ModelError, match="no safetensors weights for the unet"):
        choose_files(["unet/config.json", "unet/diffusion_pytorch_model.bin"])


def test_half_shards_need_their_index() -> None:
    shard = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    assert weight_files([shard], "diffusion_pytorch_model") is None
    index = "diffusion_pytorch_model.safetensors.index.fp16.json"
    found = weight_files([shard, index], "diffusion_pytorch_model")
    assert found is not None and (found.variant, found.files, found.index) == ("fp16", (shard,), (index,))


# Single files

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
# Levels of one resnet going down and two going up, as in tiny.
UNET_LEVELS = {
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def ldm_unet_name(name: str) -> str:
    for ours, theirs in {**UNET_TOP, **UNET_LEVELS}.items():
        if name.startswith(ours + "."):
            rest = name.removeprefix(ours + ".")
            head = rest.split(".")[0]
            inner = rest.replace(head, RESNET.get(head, head), 1) if "resnets" in ours else rest
            return f"model.diffusion_model.{theirs}.{inner}"
    raise AssertionError(name)


def ldm_vae_name(name: str) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in VAE_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
    return f"first_stage_model.{name}"


def ldm_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The checkpoint under the names and shapes of the original single-file layout."""
    assert checkpoint.vae is not None and checkpoint.text_encoder is not None
    tensors = {ldm_unet_name(name): value for name, value in checkpoint.unet.state_dict().items()}
    for name, value in checkpoint.vae.state_dict().items():
        convolution = ".attentions." in name and value.ndim == 2
        tensors[ldm_vae_name(name)] = value[:, :, None, None] if convolution else value
    for name, value in checkpoint.text_encoder.named_parameters():
        inner = name.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{inner}"] = value
    prefix = "cond_stage_model.transformer.text_model.embeddings."
    tensors[prefix + "position_ids"] = torch.arange(77)[None]
    tensors["model_ema.decay"] = torch.zeros(())
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def architecture(tiny: Checkpoint) -> Architecture:
    assert tiny.text_encoder is not None
    text = {**TEXT_ENCODER_CONFIG, "vocab_size": tiny.text_encoder.config.vocab_size}
    return Architecture(unet=UNET_CONFIG, vae=VAE_CONFIG, text_encoder=text)


@pytest.fixture
def single(tiny: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "dream.safetensors"
    save_file(ldm_tensors(tiny), path)
    return path


def test_the_written_down_architecture_is_stable_diffusion_1() -> None:
    """Parameter counts as published for the weights."""
    with torch.device("meta"):
        networks = (
            UNet2DConditionModel.from_config(dict(STABLE_DIFFUSION_1.unet)),
            AutoencoderKL.from_config(dict(STABLE_DIFFUSION_1.vae)),
            CLIPTextModel(CLIPTextConfig(**STABLE_DIFFUSION_1.text_encoder)),
        )
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [859_520_964, 83_653_863, 123_060_480]


def test_a_single_file_is_the_model_it_was_made_of(
    single: Path, saved: Path, tiny: Checkpoint, architecture: Architecture
) -> None:
    loaded = load_single_file(single, tokenizer=saved / "tokenizer", architecture=architecture)
    assert same_weights(loaded.unet, tiny.unet)
    assert same_weights(loaded.vae, tiny.vae)
    assert same_weights(loaded.text_encoder, tiny.text_encoder)
    assert loaded.tokenizer_json == tiny.tokenizer_json
    assert loaded.scheduler_config == tiny.scheduler_config
    assert (loaded.name, loaded.source["id"]) == ("dream", "dream.safetensors")
    for model in (loaded.unet, loaded.vae, loaded.text_encoder):
        assert model is not None and not model.training
        assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_a_single_inpainting_file_in_half_precision(saved: Path, tmp_path: Path, architecture: Architecture) -> None:
    path = tmp_path / "inpaint.safetensors"
    tensors = ldm_tensors(build_tiny(in_channels=9))
    save_file({name: value.half() for name, value in tensors.items()}, path)
    unet = load_single_file(path, tokenizer=saved / "tokenizer", architecture=architecture).unet
    assert (unet.config.in_channels, unet.dtype) == (9, torch.float32)


def test_a_single_file_may_lack_vae_and_text_encoder(
    tiny: Checkpoint, tmp_path: Path, architecture: Architecture
) -> None:
    path = tmp_path / "pruned.safetensors"
    save_file({n: v for n, v in ldm_tensors(tiny).items() if n.startswith("model.")}, path)
    loaded = load_single_file(path, architecture=architecture)
    assert loaded.vae is loaded.text_encoder is loaded.tokenizer_json is None


def test_a_v_prediction_file_says_so(tiny: Checkpoint, tmp_path: Path, architecture: Architecture) -> None:
    path = tmp_path / "v.safetensors"
    tensors = {name: value for name, value in ldm_tensors(tiny).items() if name.startswith("model.")}
    save_file({**tensors, "v_pred": torch.zeros(0)}, path)
    config = load_single_file(path, architecture=architecture).scheduler_config
    assert config is not None and config["prediction_type"] == "v_prediction"


def test_a_single_file_without_tokenizer_asks_for_one(
    single: Path, architecture: Architecture, set_hub: Callable[[Hub], Hub], saved: Path
) -> None:
    set_hub(Hub(error=ConnectionError("offline")))
    with pytest.raises(ModelError, match=r"has no tokenizer; pass --tokenizer .*cannot reach the hub"):
        load_single_file(single, architecture=architecture)
    set_hub(Hub(saved / "tokenizer"))
    assert load_single_file(single, architecture=architecture).tokenizer_json is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.joint_blocks.0.weight", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.weight", "Flux"),
        ("conditioner.embedders.1.model.positional_embedding", "Stable Diffusion XL"),
        ("lora_unet_down_blocks_0.lora_up.weight", "LoRA weights"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers format; pass their folder"),
        ("something.else", "no Stable Diffusion checkpoint"),
    ],
)
def test_other_single_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=message):
        load_checkpoint(path)


def test_a_single_file_of_stable_diffusion_2_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    prefix = "model.diffusion_model.input_blocks."
    conv_in, to_k = f"{prefix}0.0.weight", f"{prefix}1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({conv_in: torch.zeros(8, 4, 3, 3), to_k: torch.zeros(8, 1024)}, path)
    with pytest.raises(ModelError, match=r"two\.safetensors is Stable Diffusion 2\.x"):
        load_checkpoint(path)


def test_a_single_file_that_does_not_fit_names_the_part(single: Path, saved: Path, architecture: Architecture) -> None:
    tensors = load_file(single)
    del tensors["first_stage_model.quant_conv.bias"]
    save_file(tensors, single)
    with pytest.raises(ModelError, match=r"the VAE in dream\.safetensors does not fit .*quant_conv\.bias"):
        load_single_file(single, tokenizer=saved / "tokenizer", architecture=architecture)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
@pytest.mark.parametrize("exists", [True, False])
def test_pickled_single_files_are_never_loaded(tmp_path: Path, suffix: str, exists: bool) -> None:
    path = tmp_path / f"model{suffix}"
    if exists:
        path.write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match=r"is a pickle, .* never loaded"):
        load_checkpoint(str(path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.touch()
    with pytest.raises(ModelError, match="no checkpoint"):
        load_checkpoint(path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"abc")
    with pytest.raises(ModelError, match=r"broken safetensors file .*broken\.safetensors"):
        load_checkpoint(broken)
