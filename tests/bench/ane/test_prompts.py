"""Prompts that name two things."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from ebca.bench.ane.prompts import COLORS, SUBSETS, chosen, own, parse, read
from ebca.errors import ParameterError


def test_our_list_has_the_structure_of_the_original() -> None:
    prompts = own()
    assert {name: len(found) for name, found in prompts.items()} == dict(zip(SUBSETS, (66, 144, 66), strict=True))
    texts = [prompt.text for found in prompts.values() for prompt in found]
    assert len(set(texts)) == 276 and texts == [prompt.text for found in own().values() for prompt in found]
    for text in texts:
        words = text.split()
        for article, word in pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), text
    for prompt in prompts["objects"]:
        colors = [phrase.split()[0] for phrase in prompt.phrases]
        assert len(set(colors)) == 2 and set(colors) <= set(COLORS)
    used = {prompt.phrases[1].split()[0] for prompt in prompts["animals_objects"]}
    assert used == set(COLORS)
    assert [prompt.text for prompt in own(1)["objects"]] != [prompt.text for prompt in prompts["objects"]]


def test_what_is_worn_is_joined_by_with() -> None:
    for prompt in own()["animals_objects"]:
        worn = prompt.text.split()[-1] in ("crown", "bow", "glasses", "backpack")
        assert (" with " in prompt.text) == worn and (" and " in prompt.text) != worn


def test_a_prompt_is_split_as_the_benchmark_does() -> None:
    prompt = parse("animals_objects", "an elephant with an orange bow")
    assert prompt.halves == ("an elephant", "an orange bow") and prompt.phrases == ("elephant", "orange bow")
    assert parse("objects", "a car with a bow and a bench").phrases == ("car with a bow", "bench")
    for text in ("a cat", "a cat and a cat", "a cat and ", "bandwidth"):
        with pytest.raises(ParameterError, match="does not name two things; join two"):
            parse("animals", text)


def test_a_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    lists = {"objects": ["a red car and a blue bench"], "animals": ["a cat and a dog", "a cat and a dog"]}
    file.write_text(json.dumps(lists))
    found = read(file)
    assert {name: [prompt.text for prompt in prompts] for name, prompts in found.items()} == {
        "animals": ["a cat and a dog"], "objects": ["a red car and a blue bench"]
    }  # fmt: skip
    for text in (
        "",
        "[]",
        "{}",
        '{"animals": "a cat and a dog"}',
        '{"plants": []}',
        '{"animals": []}',
        '{"animals": [1]}',
    ):
        file.write_text(text)
        with pytest.raises(ParameterError, match="animals_objects"):
            read(file)
    with pytest.raises(ParameterError, match="cannot read the prompts"):
        read(tmp_path / "nothing.json")


def test_the_first_prompts_of_some_subsets() -> None:
    found = chosen(own(), ["objects"], 3)
    assert list(found) == ["objects"] and found["objects"] == own()["objects"][:3]
    with pytest.raises(ParameterError, match="--limit is 0"):
        chosen(own(), None, 0)
    with pytest.raises(ParameterError, match="no subset 'animals'; choose from objects"):
        chosen(found, ["animals"], None)
