"""How the common web UI reads weights and long prompts, once more: by recursion instead of marks, with transformers'
tokenizer and PyTorch. Written from the description of the syntax, for comparing."""

import math
import random
from typing import Any

import torch

_COMMA_WITHIN = 20

Run = tuple[str, float]
BREAK = ("", float("nan"))


def runs(prompt: str) -> list[Run]:
    """Texts and their weights; BREAK in between. The prompt is well formed."""
    found, end = _inside(prompt, 0, "")
    assert end == len(prompt)
    merged: list[Run] = []
    for text, weight in found:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged


def _inside(prompt: str, at: int, closing: str) -> tuple[list[Run], int]:
    """The runs up to a bracket that closes, with its factor, and the place behind it."""
    found: list[Run] = []
    text = ""

    def flush() -> None:
        nonlocal text
        for index, piece in enumerate(text.split(" BREAK ")):
            found.extend(([BREAK] if index else []) + ([(piece, 1.0)] if piece else []))
        text = ""

    while at < len(prompt):
        char = prompt[at]
        if char == "\\" and prompt[at + 1] in "()[]":
            text += prompt[at + 1]
            at += 2
        elif char in "([":
            flush()
            inner, at = _inside(prompt, at + 1, ")" if char == "(" else "]")
            found.extend(inner)
        elif char == closing and char:
            factor = 1.1 if char == ")" else 1 / 1.1
            head, colon, number = text.rpartition(":")
            if colon and char == ")" and number.strip().replace(".", "", 1).lstrip("-").isdigit():
                text, factor = head, float(number)
            flush()
            return [one if one is BREAK else (one[0], one[1] * factor) for one in found], at + 1
        else:
            text += char
            at += 1
    flush()
    return found, at


def chunks(prompt: str, tokenizer: Any) -> list[list[tuple[int, float]]]:
    """Tokens and weights of each chunk of 75."""
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    done: list[list[tuple[int, float]]] = []
    now: list[tuple[int, float]] = []
    for run in runs(prompt):
        if math.isnan(run[1]):
            done.append(now)
            now = []
            continue
        for token in tokenizer(run[0], add_special_tokens=False).input_ids:
            if len(now) == 75:
                commas = [i for i in range(75 - _COMMA_WITHIN, 75) if now[i][0] == comma]
                cut = commas[-1] + 1 if commas and token != comma else 75
                done.append(now[:cut])
                now = now[cut:]
            now.append((token, run[1]))
    if now or not done:
        done.append(now)
    return done


def rows(prompt: str, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and weights of each chunk, [k,77]."""
    ids, weights = [], []
    for chunk in chunks(prompt, tokenizer):
        padding = [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (75 - len(chunk))
        ids.append([tokenizer.bos_token_id, *(token for token, _ in chunk), *padding])
        weights.append([1.0, *(weight for _, weight in chunk), *[1.0] * len(padding)])
    return torch.tensor(ids), torch.tensor(weights)


def weighted(embeddings: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Embeddings [k,77,D] of chunks with their weights -> [77 k,D], in float64."""
    plain = embeddings.double()
    scaled = plain * weights.double()[:, :, None]
    means = plain.mean((1, 2)) / scaled.mean((1, 2))
    return (scaled * means[:, None, None]).flatten(0, 1)


def prompts(words: tuple[str, ...], count: int, seed: int = 0) -> list[str]:
    """Prompts of 0 to about 250 tokens with everything that is syntax."""
    draw = random.Random(seed)

    def phrase(depth: int) -> str:
        text = " ".join(draw.choices(words, k=draw.randint(1, 4)))
        if depth < 3 and draw.random() < 0.4:
            text += " " + phrase(depth + 1)
        kind = draw.random()
        if kind < 0.15:
            return f"({text}:{draw.choice(('1.3', '0.5', '1.21', '2', '0', '.75', ' 1.4 '))})"
        if kind < 0.25:
            return f"({text})"
        if kind < 0.35:
            return f"[{text}]"
        return rf"\({text}\)" if kind < 0.4 else text

    def prompt() -> str:
        pieces = [phrase(0) for _ in range(draw.choice((0, 1, 2, 5, 10, 20, 40)))]
        joints = [draw.choice((", ", " ", " ", ",", " BREAK " if len(pieces) < 20 else ", ")) for _ in pieces]
        return "".join(part for pair in zip(pieces, joints, strict=True) for part in pair).removesuffix(" BREAK ")

    return [prompt() for _ in range(count)]
