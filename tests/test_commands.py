"""The commands as a user meets them: from prompts to images, and every refusal in one line with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_model import write_profile
from toprovar import cli
from toprovar.benchmarks.side_by_side import main as side_by_side
from toprovar.compile.cli import main as build_engine
from toprovar.profiles.model import shipped
from toprovar.runtime.cli import main as run_engine


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small profile, prompts, a calibration and its bundle, made by the commands."""
    folder = tmp_path_factory.mktemp("work")
    profile = str(write_profile(folder / "small.yaml"))
    (folder / "prompts.txt").write_text("a red star\na blue circle\n\na red star\na green heart\n")
    calibrate = ["calibrate", "--model", profile, "--weights", "random", "--prompts", str(folder / "prompts.txt")]
    assert cli.main([*calibrate, "--target-speedup", "1.5", "--out", str(folder / "calibration")]) == 0
    schedule = str(folder / "calibration" / "schedule.yaml")
    assert cli.main(["build-engine", "--schedule", schedule, "--out", str(folder / "engine")]) == 0
    return folder


def test_from_prompts_to_images(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {p.name for p in (work / "calibration").iterdir()} == {
        "measurements.safetensors",
        "schedule.yaml",
        "report.html",
    }
    out = work / "images"
    arguments = ["--engine", str(work / "engine"), "--prompts", str(work / "prompts.txt"), "--output", str(out)]
    assert run_engine([*arguments, "--num-images", "2", "--seed", "5", "--batch", "3", "--log-format", "json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["seed"] for r in records] == [5, 6] * 4
    assert len(list(out.glob("*.png"))) == 8
    image = Image.open(records[0]["image"])
    assert image.size == (128, 128)
    manifest = json.loads((work / "engine" / "manifest.json").read_text())
    assert image.text["prompt"] == "a red star"  # type: ignore[attr-defined]
    assert image.text["seed"] == "5"  # type: ignore[attr-defined]
    assert image.text["schedule_sha256"] == manifest["schedule_sha256"]  # type: ignore[attr-defined]


def test_same_command_same_bytes(work: Path) -> None:
    for name in ("a", "b"):
        prompt = ["--prompt", "a red star", "--output", str(work / name)]
        assert run_engine(["--engine", str(work / "engine"), *prompt]) == 0
    assert (work / "a" / "0000_seed0.png").read_bytes() == (work / "b" / "0000_seed0.png").read_bytes()


def test_resume_draws_what_is_missing(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing image, one that was cut off, one of another prompt and one of another negative prompt."""
    command = ["--engine", str(work / "engine"), "--prompts", str(work / "prompts.txt"), "--output", str(tmp_path)]
    assert run_engine([*command, "--num-images", "2"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    names = sorted(before)
    assert len(names) == 8
    (tmp_path / names[1]).unlink()
    (tmp_path / names[3]).write_bytes(before[names[3]][:-200])
    (tmp_path / names[6]).write_bytes(before[names[0]])
    capsys.readouterr()
    assert run_engine([*command, "--num-images", "2", "--resume", "--batch", "2"]) == 0
    said = capsys.readouterr()
    assert "5 of 8 images are there already" in said.err
    assert [line.split()[0] for line in said.out.splitlines()] == [str(tmp_path / names[i]) for i in (1, 3, 6)]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run_engine([*command, "--num-images", "2", "--resume", "--negative-prompt", "a blue circle"]) == 0
    assert "0 of 8 images are there already" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red before: the same command was said to go on, and began anew."""
    monkeypatch.setattr("toprovar.runtime.images.save_png", lambda *_: raise_interrupt())
    assert run_engine(["--engine", str(work / "engine"), "--prompt", "a red star", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "run-engine: interrupted; images that are written stay, and the same command with --resume draws the others"
    )


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_negative_prompt_and_verbose(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--engine", str(work / "engine"), "--prompt", "a red star", "--verbose"]
    assert run_engine([*base, "--output", str(work / "plain")]) == 0
    assert run_engine([*base, "--negative-prompt", "a blue circle on a grey", "--output", str(work / "negative")]) == 0
    assert "scale 6" in capsys.readouterr().out
    plain, other = (np.asarray(Image.open(work / n / "0000_seed0.png")) for n in ("plain", "negative"))
    assert not np.array_equal(plain, other)


def test_run_engine_imports_no_torch(work: Path) -> None:
    code = (
        "import sys; from toprovar.runtime.cli import main; "
        f"code = main(['--engine', {str(work / 'engine')!r}, '--prompt', 'a star', '--output', {str(work / 'free')!r}]); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_inspect_prints_everything(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for thing in (work / "calibration" / "schedule.yaml", work / "engine"):
        assert cli.main(["inspect", str(thing)]) == 0
        text = capsys.readouterr().out
        assert "fewer FLOPs than dense" in text
        assert text.count("x") > 7
    assert cli.main(["inspect", str(work / "small.yaml")]) == 0
    assert "profile         small\n" in capsys.readouterr().out
    for name in shipped():
        assert cli.main(["inspect", name]) == 0
    assert "64x64" in capsys.readouterr().out


def test_dry_run_builds_nothing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = str(work / "calibration" / "schedule.yaml")
    assert build_engine(["--schedule", schedule, "--out", str(work / "none"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "would build  10 ONNX graphs" in text
    assert "weights" in text
    assert not (work / "none").exists()


def test_doctor_names_each_implementation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert f"yes  torch {version('torch')}" in lines["torch, CPU"]
    assert f"yes  onnxruntime {version('onnxruntime')}" in lines["ONNX Runtime, CPU"]
    for name in ("target cuda, kernels (Triton)", "FAE kernel for Hopper", "TensorRT plugin, ahead of time", "TensorRT-RTX"):
        assert "  yes  " in lines[name] or "  no  " in lines[name]
    if not torch.cuda.is_available():
        assert "sees no GPU; install a CUDA build of torch" in lines["torch, CUDA"]
        assert "  no  " in lines["target cuda, kernels (Triton)"]


REFUSED = [
    (["run", "--engine", "{work}/nowhere", "--prompt", "x"], "no such bundle"),
    (["run", "--engine", "{work}/calibration", "--prompt", "x"], "is no engine bundle"),
    (["run", "--engine", "{work}/engine", "--prompt", "  "], "--prompt is empty"),
    (["run", "--engine", "{work}/engine", "--prompts", "{work}/none.txt"], "no such file"),
    (["run", "--engine", "{work}/engine", "--prompts", "{work}/engine/weights.safetensors"], "is no text file"),
    (["run", "--engine", "{work}/engine", "--prompt", "x", "--num-images", "0"], "--num-images must be 1"),
    (["run", "--engine", "{work}/engine", "--prompt", "x", "--seed", "-1"], "--seed must be 0"),
    (["run", "--engine", "{work}/engine", "--prompt", "x", "--text-encoder", "t5"], "this bundle holds its text encoder"),
    (["build-engine", "--schedule", "{work}/none.yaml"], "no such file"),
    (["build-engine", "--policy", "skip-99"], "N must be 1 to 9"),
    (["build-engine", "--policy", "dense", "--model", "var-d16", "--cfg", "1", "2"], "cfg must be one number"),
    (["build-engine", "--policy", "dense", "--model", "hart-0.7b", "--cfg", "1", "2"], "cfg must be one number"),
    (["build-engine", "--policy", "dense", "--out", "{work}/calibration"], "is no engine bundle"),
    (["build-engine", "--policy", "dense", "--model", "infinity-3b"], "is not known"),
    (["build-engine", "--policy", "dense", "--model", "infinity-125m", "--out", "{work}/x"], "no transformer weights"),
    (["build-engine", "--schedule", "{work}/calibration/schedule.yaml", "--pn", "0.25M"], "was made for scales"),
    (["inspect", "{work}/prompts.txt"], "expected a schedule"),
    (["calibrate", "--prompts", "{work}/none.txt"], "none.txt"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(a)[:60] for a, _ in REFUSED])
def test_refusals(work: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([argument.format(work=work) for argument in arguments]) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith(f"toprovar {arguments[0]}: error: ")
    assert message in last
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("command", [["--help"], ["calibrate", "--help"], ["build-engine", "--help"], ["run", "--help"]])
def test_help_answers_at_once(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"from toprovar.cli import main; main({command!r})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "usage: toprovar" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "datasets", "onnxruntime", "matplotlib"}


def test_side_by_side_compares_with_the_first_engine(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against itself an engine is the same; the last line is JSON."""
    engine, picture = str(work / "engine"), work / "side.png"
    arguments = ["--engines", engine, engine, "--prompts", str(work / "prompts.txt"), "--warm-up", "0"]
    assert side_by_side([*arguments, "--picture", str(picture)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [entry["psnr_db"] for entry in record["engines"]] == [None, None]
    assert record["prompts"] == 4
    assert record["engines"][0]["latency_ms"][0] > 0
    assert Image.open(picture).size[0] > 400


def test_side_by_side_draws_the_images_of_run_engine(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run-engine` draws every prompt with one seed."""
    shown: list[np.ndarray] = []
    module = "toprovar.benchmarks.side_by_side"
    monkeypatch.setattr(f"{module}._picture", lambda path, found, tallies, jobs: shown.extend(tallies[0].pictures))
    prompts, out = ["--prompts", str(work / "prompts.txt"), "--seed", "3"], work / "same"
    assert run_engine(["--engine", str(work / "engine"), *prompts, "--output", str(out)]) == 0
    options = ["--warm-up", "0", "--same-seed", "--picture", str(work / "same.png")]
    assert side_by_side(["--engines", str(work / "engine"), *prompts, *options]) == 0
    assert len(shown) == 4
    for path, pixels in zip(sorted(out.iterdir()), shown, strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))
