"""Adds tokens to the tokenizer of an engine: its JSON, and what the manifest says about it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ebca.engines.adapters.embedding import Embedding
from ebca.errors import EngineError, ParameterError

EXPANSIONS = "expansions"
"""Member of the tokenizer's information: token -> ids, for those that stand for several."""


def with_tokens(
    text: str, info: Mapping[str, Any], embeddings: Sequence[Embedding]
) -> tuple[str, dict[str, Any], dict[int, int]]:
    """Add the tokens of textual inversions.

    Args:
        text: tokenizer.json.
        info: the manifest's information about it.
        embeddings: in the order in which they get ids.

    Returns:
        tokenizer.json with them; the information; the first id of each embedding, by its index.

    Raises:
        ParameterError: a token that is there already.
        EngineError: the JSON has another form than the export writes.
    """
    try:
        document = json.loads(text)
        added, ids = document["added_tokens"], dict(document["model"]["vocab"])
        ids |= {token["content"]: token["id"] for token in added}
        following = max(ids.values()) + 1
        lowered = {token.lower() for token in ids}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EngineError("the tokenizer's JSON has an unknown form", "export the engine again") from None
    expansions, first = dict(info.get(EXPANSIONS) or {}), dict[int, int]()
    for index, embedding in enumerate(embeddings):
        first[index] = following
        for token in embedding.tokens:
            # Tokens are found in any case, as all of a prompt.
            if token.lower() in lowered or f"{token.lower()}</w>" in lowered:
                raise ParameterError(
                    f"the token '{token}' of '{embedding.path}' exists already", f"write {embedding.path}=another-token"
                )
            lowered.add(token.lower())
            added.append(
                {"id": following, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
                | {"normalized": True, "special": False}
            )
            following += 1
        if len(embedding.tokens) > 1:
            expansions[embedding.token] = list(range(first[index], following))
    changed = dict(info) | ({EXPANSIONS: expansions} if expansions else {})
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")), changed, first
