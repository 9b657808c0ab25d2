"""LoRAs and textual inversions merged into a checkpoint before it is exported, by the code that derives engines."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ebca.engines.adapters import embedding as embeddings
from ebca.engines.adapters import lora as loras
from ebca.engines.adapters import tokens
from ebca.engines.adapters.derived import EmbeddingFile, LoraFile
from ebca.engines.adapters.embedding import Embedding
from ebca.engines.adapters.modules import Modules
from ebca.engines.contract.weights import StoredWeight
from ebca.errors import ParameterError
from ebca.export.checkpoint.model import Checkpoint


def merged(
    checkpoint: Checkpoint, lora_files: Sequence[LoraFile] = (), embedding_files: Sequence[EmbeddingFile] = ()
) -> Checkpoint:
    """The checkpoint with these merged into its weights, which are changed in place.

    Raises:
        ParameterError: a file that cannot be read or does not fit the checkpoint.
    """
    parameters = checkpoint.matrices()
    modules = Modules(
        {
            part: {name: StoredWeight(tuple(value.shape), ()) for name, value in named.items()}
            for part, named in parameters.items()
        }
    )
    found = [loras.read(file.path, file.scale, modules) for file in lora_files]
    with torch.no_grad():
        for lora in found:
            for weight in lora.weights:
                value = parameters[weight.part][weight.name]
                value += torch.from_numpy(lora.change(weight, tuple(value.shape))).to(value.dtype)
    added = [embeddings.read(file.path, file.token, _width(checkpoint)) for file in embedding_files]
    source = dict(checkpoint.source)
    if found:
        source["lora"] = ", ".join(f"{one.path.name}:{one.scale:g}" for one in found)
    if not added:
        return replace(checkpoint, source=source)
    source["embedding"] = ", ".join(f"{one.path.name}={one.token}" for one in added)
    return replace(_with_tokens(checkpoint, added), source=source)


def _width(checkpoint: Checkpoint) -> int:
    if checkpoint.text_encoder is None or checkpoint.tokenizer_json is None:
        raise ParameterError("an embedding needs a text encoder", "name a full model")
    if checkpoint.text_encoder_2 is not None:
        raise embeddings.for_two_encoders()
    return int(checkpoint.text_encoder.config.hidden_size)


def _with_tokens(checkpoint: Checkpoint, added: Sequence[Embedding]) -> Checkpoint:
    assert checkpoint.text_encoder is not None and checkpoint.tokenizer_json is not None
    text, info, first = tokens.with_tokens(checkpoint.tokenizer_json, checkpoint.tokenizer_info, added)
    old = checkpoint.text_encoder.get_input_embeddings().weight
    rows = max(len(old), *(first[index] + len(one.vectors) for index, one in enumerate(added)))
    with torch.no_grad():
        table = torch.zeros(rows, old.shape[1], dtype=old.dtype)
        table[: len(old)] = old
        for index, one in enumerate(added):
            table[first[index] : first[index] + len(one.vectors)] = torch.from_numpy(one.vectors)
    checkpoint.text_encoder.set_input_embeddings(nn.Embedding.from_pretrained(table))
    checkpoint.text_encoder.config.vocab_size = rows
    return replace(checkpoint, tokenizer_json=text, tokenizer_info=info)
