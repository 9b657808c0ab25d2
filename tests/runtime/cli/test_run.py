"""ebca-run: the image, its parameters, and one line for every user error."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from helpers import manifests
from helpers.tiny import changed_copy
from PIL import Image

from ebca.runtime.cli import run as cli
from ebca.runtime.images.files import read_parameters

PROMPT = "a lion with a crown"
BACKEND = ("--backend", "onnxruntime")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(engine: Path, *more: str) -> list[str]:
    size = ("--height", "64", "--width", "64", "--steps", "3")
    return ["--engine", str(engine), "--prompt", PROMPT, *BACKEND, *size, *more]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image).copy()


def refused(capsys: pytest.CaptureFixture[str], folder: Path, argv: list[str]) -> str:
    """The line on stderr of a call that fails and writes no file."""
    before = sorted(folder.rglob("*"))
    assert cli.main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("ebca-run: error: "), err
    assert sorted(folder.rglob("*")) == before
    return err.removeprefix("ebca-run: error: ").strip()


# --- images


def test_an_image_carries_its_parameters(engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(engine_dir, "--seed", "7", "--gamma-attn", "0.05", "--gamma-tau", "0.7")) == 0
    assert capsys.readouterr() == ("wrote ebca.png\n", "")
    assert pixels(here / "ebca.png").shape == (64, 64, 3)
    stored = read_parameters(here / "ebca.png")
    assert stored["prompt"] == PROMPT
    assert (stored["seed"], stored["steps"], stored["height"], stored["width"]) == (7, 3, 64, 64)
    assert stored["gamma_attn"] == {"schedule": "reverse_step", "value": 0.05, "parameter": 0.7}
    assert (stored["model"], stored["backend"], stored["precision"]) == ("tiny", "onnxruntime", "fp32")


def argv_of(stored: dict[str, Any], engine: Path) -> list[str]:
    """A command line with the parameters from a PNG."""
    argv = ["--engine", str(engine)]
    for name in ("prompt", "negative_prompt", "steps", "guidance_scale", "scheduler", "height", "width", "norm_factor"):
        argv += ["--" + name.replace("_", "-"), str(stored[name])]
    seeds = stored["seed"] if isinstance(stored["seed"], list) else [stored["seed"]]
    argv += ["--seed", *map(str, seeds), "--backend", stored["backend"], "--precision", stored["precision"]]
    for name in ("gamma_attn", "gamma_norm"):
        gamma = stored[name]
        argv += ["--" + name.replace("_", "-")]
        argv += [repr(gamma["value"])] if isinstance(gamma, dict) else [repr(g) for g in gamma]
        if isinstance(gamma, dict):
            argv += ["--gamma-schedule", gamma["schedule"]]
            argv += ["--gamma-ratio" if gamma["schedule"] in ("linear", "exponential") else "--gamma-tau"]
            argv += [repr(gamma["parameter"])]
    pairs = sorted(stored["token_weights"], key=lambda pair: isinstance(pair[0], str))
    if pairs:
        indices = [str(k) for k, _ in pairs if not isinstance(k, str)]
        words = [k for k, _ in pairs if isinstance(k, str)]
        argv += ["--token-indices", *indices] if indices else []
        argv += ["--token-words", *words] if words else []
        argv += ["--token-upweight", *(repr(f) for _, f in pairs)]
    return argv


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--seed", "3", "--gamma-attn", "0.05", "--gamma-norm", "0.4", "--gamma-schedule", "exponential",
         "--gamma-ratio", "0.7", "--scheduler", "DPM++ 2M", "--guidance-scale", "3"),
        ("--gamma-attn", "0.1", "0.05", "0.02", "0.01", "--gamma-norm", "-1e-1", "--gamma-schedule", "step",
         "--gamma-tau", "0.4", "--norm-factor", "0.5", "--negative-prompt", "blurry"),
        ("--gamma-attn", "0.1", "--token-indices", "5", "--token-words", "lion", "a",
         "--token-upweight", "3", "2", "0.5"),
    ],
    ids=["defaults", "exponential", "lists", "tokens"],
)  # fmt: skip
def test_the_parameters_in_the_png_reproduce_the_image(engine_dir: Path, here: Path, more: tuple[str, ...]) -> None:
    assert cli.main(arguments(engine_dir, *more, "--output", "first.png")) == 0
    stored = read_parameters(here / "first.png")
    assert cli.main([*argv_of(stored, engine_dir), "--output", "second.png"]) == 0
    assert np.array_equal(pixels(here / "first.png"), pixels(here / "second.png"))
    assert read_parameters(here / "second.png") == stored


@pytest.mark.parametrize("name", ["new/folder/x.jpg", "x.webp"])
def test_the_suffix_chooses_the_format(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.main(arguments(engine_dir, "--seed", "7", "--output", name)) == 0
    assert capsys.readouterr().out == f"wrote {name}\n"
    assert cli.main(arguments(engine_dir, "--seed", "7")) == 0
    assert read_parameters(here / name) == read_parameters(here / "ebca.png")


def test_one_image_per_seed(engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(engine_dir, "--seed", "1", "2", "1", "--output", "many.png")) == 0
    assert capsys.readouterr().out == "wrote many-0.png\nwrote many-1.png\nwrote many-2.png\n"
    first, second, third = (pixels(here / f"many-{i}.png") for i in range(3))
    assert np.array_equal(first, third) and not np.array_equal(first, second)
    stored = read_parameters(here / "many-1.png")
    assert (stored["seed"], stored["image_index"]) == ([1, 2, 1], 1)
    assert sorted(p.name for p in here.iterdir()) == ["many-0.png", "many-1.png", "many-2.png"]


def test_one_seed_draws_several_images(engine_dir: Path, here: Path) -> None:
    assert cli.main(arguments(engine_dir, "--seed", "1", "--num-images", "2")) == 0
    assert not np.array_equal(pixels(here / "ebca-0.png"), pixels(here / "ebca-1.png"))


def test_the_flags_of_the_authors_scripts_are_accepted(engine_dir: Path, here: Path) -> None:
    theirs = [
        "--engine", str(engine_dir), "--prompt", PROMPT, *BACKEND, "--height", "64", "--width", "64", "--seed", "1",
        "--num_steps", "4", "--guidance_scale", "5", "--gamma_attn", "0.05", "--gamma_norm", "0.4",
        "--gamma_tau", "0.5", "--token_indices", "2", "5", "--token_upweight", "2.5", "0.5",
        "--negative_prompt", "blurry", "--output", "theirs.png",
    ]  # fmt: skip
    assert cli.main(theirs) == 0
    ours = [a.replace("num_steps", "steps").replace("theirs", "ours") for a in theirs]
    assert cli.main([a.replace("_", "-") if a.startswith("--") else a for a in ours]) == 0
    assert np.array_equal(pixels(here / "theirs.png"), pixels(here / "ours.png"))


def test_tokens_named_twice_multiply(engine_dir: Path, here: Path) -> None:
    both = arguments(engine_dir, "--seed", "1", "--gamma-attn", "0.05", "--output", "a.png")
    assert cli.main([*both, "--token-indices", "5", "5", "--token-upweight", "2", "1.5"]) == 0
    assert cli.main([*both[:-1], "b.png", "--token-indices", "5", "--token-upweight", "3"]) == 0
    assert np.array_equal(pixels(here / "a.png"), pixels(here / "b.png"))


def test_json_reports_files_parameters_and_timings(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(engine_dir, "--seed", "1", "--json", "--quiet")) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["files"] == ["ebca.png"] and err == ""
    assert report["parameters"] | {"image_index": 0} == read_parameters(here / "ebca.png")
    assert len(report["timings"]["unet_steps"]) == 4


def test_preparing_is_announced_once(
    engine_dir: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EBCA_CACHE_DIR", str(here / "cache"))
    assert cli.main(arguments(engine_dir)) == 0
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"preparing \d+ components for this machine; later starts skip this", first)
    assert re.fullmatch(r"prepared \d+ components in .* s", last)
    assert cli.main(arguments(engine_dir)) == 0
    assert capsys.readouterr().err == ""


def test_a_long_prompt_gives_one_warning(engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*arguments(engine_dir), "--no-long-prompts", "--negative-prompt", "ugly " * 75 + "cartoon"]) == 0
    err = capsys.readouterr().err
    assert err == "ebca-run: warning: the negative prompt is longer than 75 tokens; dropped: 'cartoon'\n"


def test_an_existing_image_is_replaced(engine_dir: Path, here: Path) -> None:
    (here / "ebca.png").write_bytes(b"old")
    assert cli.main(arguments(engine_dir)) == 0
    assert read_parameters(here / "ebca.png")["prompt"] == PROMPT


# --- refusals


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--height", "100"), "height is 100; give a multiple of 8, such as 96 or 104"),
        (("--width", "0"), "width is 0; give a multiple of 8"),
        (("--gamma-attn", "0.1", "0.2"), "gamma_attn has 2 values, but pndm with 3 steps makes 4 evaluations"),
        (("--gamma-norm", *["0"] * 5, "--scheduler", "ddim"), "gamma_norm has 5 values, but ddim with 3 steps makes 3"),
        (("--gamma-attn", "nan"), "--gamma-attn is nan; give a finite number"),
        (("--gamma-tau", "1.5"), "tau is 1.5"),
        (("--gamma-schedule", "linear"), "--gamma-schedule linear needs --gamma-ratio"),
        (
            ("--token-words", "dog", "--token-upweight", "2"),
            "the word 'dog' is not in the prompt; the prompt's tokens are",
        ),
        (("--token-words", "lion"), "--token-indices and --token-words need --token-upweight"),
        (("--token-upweight", "2"), "--token-upweight needs --token-indices or --token-words"),
        (
            ("--token-indices", "1", "2", "3", "--token-upweight", "1", "2"),
            "--token-upweight has 2 values for 3 tokens",
        ),
        (("--token-indices", "77", "--token-upweight", "2"), "position 77; there are positions 0 to 76"),
        (("--token-indices", "-1", "--token-upweight", "2"), "position -1; there are positions 0 to 76"),
        (("--scheduler", "lms"), "scheduler 'lms' is not in this engine; available: pndm, ddim, euler"),
        (("--scheduler", "ddim_inverse"), "scheduler 'ddim_inverse' is not in this engine"),
        (("--steps", "0"), "steps is 0"),
        (("--steps", "-1"), "steps is -1"),
        (("--steps", "73"), "(the nearest stored count is 7"),
        (("--seed", "1", "2", "--num-images", "3"), "--seed has 2 values for 3 images; give one, or one each"),
        (("--seed", str(2**64)), "give a number from -2^63 to 2^64 - 1"),
        (("--num-images", "0"), "--num-images is 0; give 1 or more"),
        (("--num-images", "-2"), "--num-images is -2; give 1 or more"),
        (("--guidance-scale", "nan"), "guidance_scale is nan"),
        (("--guidance-scale", "1e300"), "the latents after timestep"),
        (("--gamma-attn", "1e30"), "after segment_0"),
        (("--norm-factor", "inf"), "norm_factor is inf"),
        (("--threads", "0"), "threads is 0"),
        (("--precision", "bf16"), "precision 'bf16' is not available with onnxruntime"),
        (("--output", "image.gif"), "--output 'image.gif' has the suffix '.gif'; name a .png, .jpg or .webp file"),
        (("--output", "image"), "--output 'image' has no suffix; name a .png, .jpg or .webp file"),
        (("--output", "/dev/null/x.png"), "--output '/dev/null/x.png' cannot be written: Not a directory"),
        (("--output", ""), "--output '.' is a folder; name a file"),
        (
            ("--output", "{seeds}.png"),
            "--output '{seeds}.png' has the placeholder {seeds}; choose from {number}, {slug}",
        ),
        (("--output", "{.png"), "--output '{.png' has a brace that is no placeholder"),
        (("--output", "{seed:,}.png"), "--output '{seed:,}.png' has a brace that is no placeholder: seed:,"),
        (
            ("--energies", "{index}.jsonl"),
            "--energies '{index}.jsonl' has the placeholder {index}; choose from {number}",
        ),
        (("--energies", "ebca.png"), "--energies 'ebca.png' is the same file as --output 'ebca.png'"),
        (("--seed", "1", "2", "--attention-maps", "./ebca.png", "--energy-plot", "ebca-1.png"), "is the same file as"),
        (("--prompts-file", "x"), "--prompts-file and --prompt do not go together; leave one out"),
        (("--output", "x" * 260 + ".png"), "cannot be written: File name too long"),
        (("--prompt", "broken \udce4"), "is not valid Unicode text"),
    ],
    ids=lambda v: " ".join(v)[:40].encode("ascii", "replace").decode() if isinstance(v, tuple) else "",
)
def test_bad_input_gives_one_line(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], named: str
) -> None:
    assert named in refused(capsys, here, arguments(engine_dir, *more))


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--engine", "x"],
        ["--engine", "x", "--prompt", "y", "--steps", "many"],
        ["--engine", "x", "--prompt", "y", "--device", "tpu"],
        ["--engine", "x", "--prompt", "y", "--backend", "tensorflow"],
        ["--engine", "x", "--prompt", "y", "--seed"],
        ["--engine", "x", "--prompt", "y", "--gamma", "1"],
    ],
)
def test_usage_errors_exit_with_2(argv: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert len(lines) in (2, 3) and lines[0].startswith("ebca-run: error: ") and lines[-1] == "see ebca-run --help"


def test_help_has_examples_and_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert (
        out.index("examples:") < out.index("--engine DIR  ") < out.index("--gamma-attn G") < out.index("--device DEV")
    )
    assert "--gamma_attn" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_an_output_that_is_a_folder_is_refused(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder.png").mkdir()
    (here / "many-1.png").mkdir()
    assert "folder.png' is a folder" in refused(capsys, here, arguments(engine_dir, "--output", "folder.png"))
    more = ("--output", "many.png", "--seed", "1", "2")
    assert "many-1.png' is a folder" in refused(capsys, here, arguments(engine_dir, *more))


def test_an_unwritable_output_folder_is_refused(
    engine_dir: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    message = refused(capsys, here, arguments(engine_dir, "--output", "x.png"))
    assert message == "--output 'x.png' cannot be written: Permission denied; name a file in a writable folder"


def test_a_full_disk_while_saving_is_reported(
    engine_dir: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    message = refused(capsys, here, arguments(engine_dir))
    assert message == (
        "the file 'ebca.png' cannot be written: No space left on device; "
        "free some space, or name a file on another disk"
    )


def test_a_file_that_cannot_be_written_does_not_keep_the_others_from_being_written(
    engine_dir: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "ebca-0.png":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    assert cli.main([*arguments(engine_dir, "--seed", "1", "2", "--attention-maps", "new/maps.png")]) == 1
    out, err = capsys.readouterr()
    assert out == "wrote ebca-1.png\nwrote new/maps-0.png\nwrote new/maps-1.png\n"
    assert "'ebca-0.png'" in err and "No space left on device" in err and err.count("\n") == 1


def test_names_have_placeholders(engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(engine_dir, "--seed", "1", "2", "--output", "{slug}/{seed:03}.jpg")) == 0
    assert capsys.readouterr().out == "wrote a-lion-with-a-crown/001.jpg\nwrote a-lion-with-a-crown/002.jpg\n"
    assert cli.main(arguments(engine_dir, "--output-dir", "images")) == 0
    (file,) = (here / "images").iterdir()
    assert file.name == f"0001-a-lion-with-a-crown-{read_parameters(file)['seed']}.png"


def test_an_unknown_engine_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'nowhere' does not exist" in refused(capsys, here, ["--engine", "nowhere", "--prompt", "x"])


def test_folders_that_are_not_engine_directories_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "folder"
    folder.mkdir()
    argv = ["--engine", "folder", "--prompt", "x"]
    assert "not an engine directory" in refused(capsys, here, argv)
    for text, named in [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is not an ebca manifest"),
        ('{"format": "other"}', "is not an ebca manifest"),
        ('{"format": "ebca-engine", "version": 1}', "export the engine again"),
        ('{"format": "ebca-engine", "version": 2}', "was changed or damaged"),
    ]:
        (folder / "manifest.json").write_text(text)
        assert named in refused(capsys, here, argv)


def test_a_newer_manifest_version_is_refused(engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed_copy(engine_dir, here / "new", lambda data: data.update(version=99))
    message = refused(capsys, here, arguments(here / "new"))
    assert "manifest version 99" in message and "upgrade ebca" in message


@pytest.mark.parametrize("outside", ["../secret", "/etc/passwd"])
def test_a_manifest_that_names_outside_files_is_refused(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str], outside: str
) -> None:
    def name_outside(data: dict[str, Any]) -> None:
        component = data["components"]["segment_03"]
        data["files"][outside] = data["files"][component["graph"]]
        component["graph"] = outside

    changed_copy(engine_dir, here / "evil", name_outside)
    message = refused(capsys, here, arguments(here / "evil"))
    assert f"'{outside}', which is outside the engine directory" in message


@pytest.mark.parametrize("damage", ["missing", "truncated", "corrupted"])
def test_a_damaged_segment_is_named(
    engine_dir: Path, here: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    copy = here / "engine"
    shutil.copytree(engine_dir, copy)
    name = manifests.load(copy)["components"]["segment_03"]["weights"]
    content = bytearray((copy / name).read_bytes())
    if damage == "missing":
        (copy / name).unlink()
    elif damage == "truncated":
        (copy / name).write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
    message = refused(capsys, here, arguments(copy))
    assert name in message
    assert {"missing": "is missing", "truncated": "bytes instead of", "corrupted": "is corrupted"}[damage] in message


def test_an_inpainting_model_refuses_text_to_image(
    tiny_inpainting_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, here, [*arguments(tiny_inpainting_dir), "--quiet"])
    assert "takes 9 channels (an inpainting model)" in message


def test_a_unet_only_directory_cannot_decode_images(
    tiny_unet_dir: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no VAE" in refused(capsys, here, [*arguments(tiny_unet_dir), "--quiet"])


# --- as a process


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **more}


def test_the_process_prints_one_line_and_no_traceback(engine_dir: Path, here: Path) -> None:
    command = [sys.executable, "-m", "ebca.runtime.cli.run", *arguments(engine_dir, "--scheduler", "lms")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("ebca-run: error: scheduler 'lms'")
    assert not list(here.iterdir())


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_an_ascii_terminal_gets_escaped_file_names(engine_dir: Path, here: Path, flags: tuple[str, ...]) -> None:
    more = ("--prompt", "ein Löwe", "--output", "löwe.png", *flags)
    command = [sys.executable, "-m", "ebca.runtime.cli.run", *arguments(engine_dir, *more)]
    env = environment(PYTHONIOENCODING="ascii")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    if flags:
        assert json.loads(done.stdout)["parameters"]["prompt"] == "ein Löwe"
    else:
        assert done.stdout == "wrote l\\xf6we.png\n"
    assert read_parameters(here / "löwe.png")["prompt"] == "ein Löwe"


@pytest.mark.parametrize("wait", [0.3, 2.0])
def test_ctrl_c_prints_one_line_and_leaves_no_file(engine_dir: Path, here: Path, wait: float) -> None:
    program = (
        "import sys; from ebca.runtime.cli.run import main; print('ready', flush=True); sys.exit(main(sys.argv[1:]))"
    )
    long = ("--height", "512", "--width", "512", "--steps", "100")
    command = [sys.executable, "-c", program, *arguments(engine_dir, *long)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "ebca-run: interrupted; no image was written\n"
    assert not list(here.iterdir())
