"""Tokenizer folders to one JSON file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import CLIPTokenizerFast

from ebca.errors import ModelError
from ebca.export.checkpoint.tiny import save_tiny
from ebca.export.checkpoint.tokenizer import tokenizer_json
from ebca.runtime.text.tokenizer import Tokenizer

TEXT = "A lion, with a CROWN! it's 3 unusual words"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny")) / "tokenizer"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tokenizer"))


def expected_ids(folder: Path) -> list[int]:
    reference = CLIPTokenizerFast.from_pretrained(str(folder))
    return reference(TEXT, padding="max_length", max_length=77, truncation=True).input_ids


def test_stable_diffusion_1_pads_with_the_end_token(folder: Path) -> None:
    text, info = tokenizer_json(folder)
    assert info["pad_token"] == info["eos_token"] == "<|endoftext|>"
    assert info["pad_token_id"] == info["eos_token_id"] == info["bos_token_id"] + 1
    assert info["model_max_length"] == 77
    assert Tokenizer.from_json(text, info).encode([TEXT]).ids[0].tolist() == expected_ids(folder)


def test_stable_diffusion_2_pads_with_token_0(folder: Path) -> None:
    special = json.loads((folder / "special_tokens_map.json").read_text())
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "!"}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "!"}))
    text, info = tokenizer_json(folder)
    assert (info["pad_token"], info["pad_token_id"]) == ("!", 0)
    assert Tokenizer.from_json(text, info).encode([TEXT]).ids[0].tolist() == expected_ids(folder)


def test_a_tokenizer_json_is_enough(folder: Path, tmp_path: Path) -> None:
    wanted = tokenizer_json(folder)
    CLIPTokenizerFast.from_pretrained(str(folder)).save_pretrained(str(tmp_path / "fast"))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "fast" / name).unlink(missing_ok=True)
    text, info = tokenizer_json(tmp_path / "fast")
    assert info == wanted[1]
    assert Tokenizer.from_json(text, info).encode([TEXT]).ids[0].tolist() == expected_ids(folder)


def test_limits_stored_in_the_json_are_dropped(folder: Path, tmp_path: Path) -> None:
    reference = CLIPTokenizerFast.from_pretrained(str(folder))
    reference(TEXT, padding="max_length", max_length=5, truncation=True)
    path = tmp_path / "limited.json"
    path.write_text(reference.backend_tokenizer.to_str(), encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8"))["truncation"] is not None
    text, _ = tokenizer_json(path)
    assert json.loads(text)["truncation"] is None
    assert json.loads(text)["padding"] is None


def test_a_bare_json_file_gets_the_facts_of_stable_diffusion_1(folder: Path, tmp_path: Path) -> None:
    text, info = tokenizer_json(folder)
    path = tmp_path / "bare.json"
    path.write_text(text, encoding="utf-8")
    assert tokenizer_json(path) == (text, info)


def test_a_json_file_in_a_tokenizer_folder_stands_for_the_folder(folder: Path) -> None:
    assert tokenizer_json(folder / "vocab.json") == tokenizer_json(folder)


def test_a_folder_without_a_length_limit_gets_77(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer_json(folder)[1]["model_max_length"] == 77


def test_folders_that_are_no_tokenizer_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer folder"):
        tokenizer_json(tmp_path / "absent")
    (folder / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt"):
        tokenizer_json(folder)


def test_broken_files_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read the CLIP tokenizer"):
        tokenizer_json(folder)
    path = tmp_path / "bare.json"
    path.write_text("{}")
    with pytest.raises(ModelError, match="not `tokenizers` JSON"):
        tokenizer_json(path)
