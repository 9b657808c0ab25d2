"""Reads textual inversions: new tokens, each with a row, or several, of the text encoder's table."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebca.engines.adapters import safetensors
from ebca.errors import ParameterError

# The one key of the form that other programs than diffusers write; the token is the file's name there.
_NAMELESS = "emb_params"
# Text that the tokenizer splits into words before it looks for tokens.
_TOKEN = re.compile(r"[^\s\x00-\x1f]{1,100}")
_LARGEST_COUNT = 1000


@dataclass(frozen=True)
class Embedding:
    """A textual inversion.

    Attributes:
        path: of the file.
        sha256: of its contents.
        token: what prompts write for it.
        vectors: [n,D] float32; a prompt's token stands for all n.
    """

    path: Path
    sha256: str
    token: str
    vectors: np.ndarray

    @property
    def tokens(self) -> tuple[str, ...]:
        """The name of each vector, as diffusers has them: token, token_1, token_2, ..."""
        return (self.token, *(f"{self.token}_{index}" for index in range(1, len(self.vectors))))


def for_two_encoders() -> ParameterError:
    """The error for a model with two text encoders, whose textual inversions have vectors for each."""
    return ParameterError("embeddings for Stable Diffusion XL are not supported", "leave them out")


def read(path: str | Path, token: str | None, width: int) -> Embedding:
    """Read a textual inversion.

    Args:
        path: a .safetensors file with one tensor, [D] or [n,D]: `emb_params`, or the token as its name.
        token: None: the tensor's name, for `emb_params` the file's.
        width: D of the text encoder.

    Raises:
        ParameterError: the file cannot be read, is no textual inversion, is of another width, or the token is none.
    """
    file = safetensors.read(path)
    if len(file.names) != 1:
        raise ParameterError(
            f"'{path}' has {len(file.names)} tensors; a textual inversion has one", "name the file of an embedding"
        )
    name = file.names[0]
    vectors = np.atleast_2d(file.array(name))
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ParameterError(
            f"'{path}' has vectors of shape {list(file.shape(name))}, and this text encoder's have {width} numbers",
            "use an embedding that was made for this architecture",
        )
    if not 1 <= len(vectors) <= _LARGEST_COUNT:
        raise ParameterError(f"'{path}' has {len(vectors)} vectors", f"an embedding has 1 to {_LARGEST_COUNT}")
    chosen = token if token is not None else Path(path).stem if name == _NAMELESS else name
    if not _TOKEN.fullmatch(chosen):
        raise ParameterError(
            f"'{chosen[:60]}' cannot be a token: it is empty, long, or has spaces", f"write {path}=my-token"
        )
    return Embedding(Path(path), file.sha256, chosen, vectors)
