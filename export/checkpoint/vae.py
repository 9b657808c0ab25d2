"""VAEs from elsewhere: one that replaces a checkpoint's own, and a small one for previews."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ebca.errors import ModelError
from ebca.export.checkpoint.architectures import STABLE_DIFFUSION_1
from ebca.export.checkpoint.files import read_json
from ebca.export.checkpoint.folder import load_network
from ebca.export.checkpoint.model import Checkpoint
from ebca.export.checkpoint.original_parts import VAE_PREFIX, read_vae
from ebca.export.checkpoint.supported_parts import check_preview_vae_supported, check_vae_supported
from ebca.export.checkpoint.tensor_file import open_tensors
from ebca.export.checkpoint.weight_files import DIFFUSERS_STEM, local_weights

_DECODER = "decoder.conv_in.weight"
_PREFIXES = (VAE_PREFIX, "vae.", "")


def load_vae(checkpoint: Checkpoint, path: Path, *, variant: str | None = None) -> Checkpoint:
    """The checkpoint with another VAE.

    Args:
        checkpoint: the model.
        path: folder of a VAE or of a pipeline in diffusers format, or a .safetensors file: a VAE alone in the original
            layout or diffusers' own, or a whole checkpoint that has one. A file has no configuration: that of the
            checkpoint's VAE is taken, else that of Stable Diffusion.
        variant: of a folder's weights, if it has them.

    Raises:
        ModelError: a VAE that cannot be read, or whose latents are not the UNet's.
    """
    channels = int(checkpoint.unet.config.out_channels)
    if path.is_dir():
        vae, notices = _of_folder(path, channels, variant)
    elif path.is_file():
        vae, notices = _of_file(checkpoint, path, channels)
    else:
        raise ModelError(f"there is no VAE {path}", "give a folder in diffusers format or a .safetensors file")
    source = {**checkpoint.source, "vae": path.resolve().name}
    return replace(checkpoint, vae=vae, source=source, notices=(*checkpoint.notices, *notices))


def load_preview_vae(checkpoint: Checkpoint, folder: Path, *, variant: str | None = None) -> Checkpoint:
    """The checkpoint with a small decoder for previews.

    Args:
        checkpoint: the model, with a VAE.
        folder: an AutoencoderTiny in diffusers format.
        variant: of its weights, if it has them.

    Raises:
        ModelError: there is no VAE, or the decoder cannot be read or makes images of another size than the VAE.
    """
    if checkpoint.vae is None:
        raise ModelError(f"{checkpoint.name} has no VAE, whose images previews are of", "leave the preview VAE out")
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no preview VAE in {folder}", "give a folder of an AutoencoderTiny with config.json")
    config = read_json(folder / "config.json")
    check_preview_vae_supported(config, int(checkpoint.unet.config.out_channels))
    network, notice = load_network("preview VAE", folder, local_weights(folder, DIFFUSERS_STEM, variant))
    factor = 2 ** (len(checkpoint.vae.config.block_out_channels) - 1)
    own = network.config.upsampling_scaling_factor ** (len(network.config.decoder_block_out_channels) - 1)
    if own != factor:
        raise ModelError(f"the preview VAE in {folder} has {own} pixels per latent, and the VAE {factor}")
    source = {**checkpoint.source, "preview_vae": folder.resolve().name}
    notices = (*checkpoint.notices, notice) if notice else checkpoint.notices
    return replace(checkpoint, preview_vae=network, source=source, notices=notices)


def _of_folder(folder: Path, channels: int, variant: str | None) -> tuple[Any, tuple[str, ...]]:
    inside = folder / "vae"
    place = inside if (inside / "config.json").is_file() else folder
    if not (place / "config.json").is_file():
        raise ModelError(f"{folder} is no VAE: it has neither config.json nor vae/config.json")
    check_vae_supported(read_json(place / "config.json"), channels)
    vae, notice = load_network("vae", place, local_weights(place, DIFFUSERS_STEM, variant))
    return vae, (notice,) if notice else ()


def _of_file(checkpoint: Checkpoint, path: Path, channels: int) -> tuple[Any, tuple[str, ...]]:
    own = checkpoint.vae
    config = dict(STABLE_DIFFUSION_1.vae if own is None else own.config)
    with open_tensors(path) as file:
        prefix = next((one for one in _PREFIXES if one + _DECODER in file), None)
        if prefix is None:
            raise ModelError(f"{path.name} holds no VAE: it has no tensor {_DECODER}", "give the file of a VAE")
        check_vae_supported(config, channels)
        read = read_vae(file, config, prefix)
    assert read is not None
    return read.network, read.notices
