"""The `calibrate` command, in process: what it writes and prints, and every mistake told in one line with exit code 2."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from small_model import PROMPTS, small_profile, write_profile
from toprovar.calibrate.cli import main
from toprovar.models.load import WeightOptions
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.measurements import Measurements
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.plan import schedule_flops
from toprovar.profiles.schedule import Schedule


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Flags of a run that succeeds, with the baseline policy skip-1."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[:3]))
    model = ["--model", str(write_profile(tmp_path / "small.yaml")), "--weights", "random", "--device", "cpu"]
    return ["--prompts", str(prompts), *model, "--policy", "skip-1", "--out", str(tmp_path / "out")]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that ends with 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("calibrate: error: ")
    return lines[0]


def test_baseline_writes_measurements_schedule_and_report(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--seed", "3"]) == 0
    captured, out, profile = capsys.readouterr(), tmp_path / "out", small_profile()
    assert sorted(path.name for path in out.iterdir()) == ["measurements.safetensors", "report.html", "schedule.yaml"]
    schedule, expected = Schedule.load(out / "schedule.yaml"), baseline("skip-1", profile)
    assert schedule.digest() == expected.digest()
    provenance = schedule.provenance
    assert ModelProfile.from_dict(provenance["profile"], "provenance") == profile
    assert provenance["weights"] == dict.fromkeys(("transformer", "vae", "text_encoder"), "random, seed 3")
    assert provenance["weight_options"] == asdict(WeightOptions(weights="random", seed=3))
    digest = hashlib.sha256("\n".join(PROMPTS[:3]).encode()).hexdigest()
    assert provenance["prompts"] == {"source": "prompts.txt", "count": 3, "sha256": digest}
    assert provenance["measurements_sha256"] == hashlib.sha256((out / "measurements.safetensors").read_bytes()).hexdigest()
    speedup = schedule_flops(dense(profile), profile) / schedule_flops(expected, profile)
    assert (provenance["seed"], provenance["target_speedup"]) == (3, None)
    assert provenance["flops_speedup"] == pytest.approx(speedup, rel=1e-12)
    assert f"{speedup:.2f}x fewer FLOPs than dense" in captured.out
    assert all(str(out / name) in captured.out for name in ("measurements.safetensors", "schedule.yaml", "report.html"))
    assert Measurements.load(out / "measurements.safetensors").images == 3


def test_toprovar_policy_meets_its_target_and_measures_once(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toprovar.calibrate.report.write_report", lambda *_: None)
    flags = [*flags, "--policy", "toprovar", "--target-speedup"]
    assert main([*flags, "1.3"]) == 0
    first = (tmp_path / "out" / "schedule.yaml").read_bytes()
    schedule = Schedule.load(tmp_path / "out" / "schedule.yaml")
    assert schedule.policy == "toprovar"
    assert schedule.provenance["target_speedup"] == 1.3
    assert schedule.provenance["flops_speedup"] >= 1.3 * 0.98
    assert "(asked 1.3x)" in capsys.readouterr().out
    assert main([*flags, "1.3"]) == 0
    assert "already measured, used again" in capsys.readouterr().err
    assert (tmp_path / "out" / "schedule.yaml").read_bytes() == first


def test_untidy_prompts_are_reported(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toprovar.calibrate.report.write_report", lambda *_: None)
    source, long = tmp_path / "prompts.txt", "a red circle above " + "a blue star and " * 12 + "a ring"
    source.write_text(f"a cup\n\n{long}\na cup\na cup\n")
    assert main([*flags, "--num-prompts", "9"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.split("warning: ")[1].removeprefix(f"{source}: ") for line in warnings] == [
        "2 repeated prompts left out",
        "1 blank prompt left out",
        "holds 2 different prompts, fewer than --num-prompts 9",
        "1 of 2 prompts are longer than the text encoder takes (16 tokens) and lost their end; the first is "
        f"'{long[:60].rstrip()} ...'",
    ]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        pytest.param(["--target-speedup", "1"], "--target-speedup must be more than 1 (2 = half the FLOPs), got 1", id="one"),
        pytest.param(["--target-speedup", "nan"], "--target-speedup must be more than 1", id="nan"),
        pytest.param(["--policy", "magic"], "policy 'magic' is not known; choose toprovar, auto or dense", id="policy"),
        pytest.param(["--policy", "skip-9"], "policy skip-9: N must be 1 to", id="skip"),
        pytest.param(["--policy", "noguide-1", "--cfg", "1"], "the model runs without guidance", id="noguide"),
        pytest.param(["--prompts", "none.txt"], "none.txt", id="prompts"),
        pytest.param(["--num-prompts", "0"], "num_prompts must be at least 1, got 0", id="number"),
        pytest.param(["--seed", "-1"], "seed must be 0 or more, got -1", id="seed"),
        pytest.param(["--model", "huge"], "model 'huge' is not known", id="model"),
        pytest.param(["--device", "abacus"], "--device 'abacus' is not known; choose cpu, cuda or cuda:N", id="device"),
        pytest.param(["--device", "cuda:99"], "CUDA devices here; use --device cpu", id="cuda"),
    ],
)
def test_mistakes_are_told_in_one_line_before_weights_are_loaded(
    flags: list[str],
    extra: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("toprovar.models.load.load_model", None)
    assert message in refused([*flags, *extra], capsys)


def test_an_output_that_is_a_file_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toprovar.models.load.load_model", None)
    (tmp_path / "out").write_text("mine")
    assert "cannot be written (File exists); choose another folder" in refused(flags, capsys)
    assert (tmp_path / "out").read_text() == "mine"


def test_unfinished_measurements_of_something_else_are_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toprovar.calibrate.report.write_report", lambda *_: None)
    assert main(flags) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    (out / "measurements.safetensors").rename(out / "measurements.partial.safetensors")
    line = refused([*flags, "--seed", "1"], capsys)
    assert "unfinished measurements of something else: seed differs (1 here, 0 there); delete it or use another --out" in line


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys, toprovar.calibrate.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'datasets', 'matplotlib', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
