"""`toprovar bench` from flags to its last line, on a stand-in of a GPU: its graphs are called, its times made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from direct_graphs import Direct, without_a_gpu
from small_model import small_model, small_profile
from small_var import write_var_profile
from toprovar.benchmarks import cuda_timing
from toprovar.benchmarks.latency import costs, gate, programs
from toprovar.benchmarks.latency.cli import floors_ms, main
from toprovar.benchmarks.latency.programs import Times
from toprovar.models import load
from toprovar.profiles.baselines import dense
from toprovar.profiles.costs import CostTable

GIB = 2**30
MACHINE = {"gpu": "a GPU", "torch": "2", "triton": "3", "cuda": "13"}
WITHOUT = {"memory_allocated": 0, "max_memory_allocated": GIB, "reset_peak_memory_stats": None, "synchronize": None}


@torch.inference_mode()
def called(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, Times]:
    """Two milliseconds a call, which has run."""
    for call in calls.values():
        call()
    return {name: Times(median=2.0, low=1.0, high=3.0) for name in calls}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_gpu(monkeypatch)
    for name, value in {**WITHOUT, "is_available": True, "graph_pool_handle": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    for module in (programs, costs):
        monkeypatch.setattr(module, "Captured", Direct)
        monkeypatch.setattr(module, "interleaved", called)
    for module in (cuda_timing, costs):
        monkeypatch.setattr(module, "machine", lambda: MACHINE)
    monkeypatch.setattr(gate, "worst_ratio", lambda _: 1.0)
    here = load.load_model
    monkeypatch.setattr(load, "load_model", lambda profile, options, dtype, device: here(profile, options, torch.float32))


def test_everything_asked_for_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, table = write_var_profile(tmp_path / "small.yaml", patch_nums=(1, 2, 3, 4, 6)), tmp_path / "costs.json"
    command = ["--model", str(model), "--weights", "random", "--runs", "1"]
    assert main([*command, "--policy", "dense", "skip-1", "--save-costs", str(table)]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(last)
    assert list(found["whole_ms"]) == ["eager", "dense", "skip-1"]
    assert set(found["parts_ms"]["skip-1"]) == {"condition", "1 x 1", "2 x 2", "3 x 3", "4 x 4", "decode"}
    assert found["text_encoder_ms"] == {}
    heads = [line.split()[0] for line in shown if line]
    assert {"parity:", "ms", "image", "scale", "costs"} <= set(heads)
    assert any("picking a rung by entropy" in line for line in shown)
    costs_of = CostTable.load(table)
    assert costs_of.decisions
    assert costs_of.fixed_ms == 4.0


def test_the_limit_is_that_of_the_gpu_and_of_an_unknown_one_none() -> None:
    """Small scales take the time to read the weights: an H200 reads them 4.8 / 3.35 times as fast as an H100."""
    model, schedule = small_model(), dense(small_profile())
    h100, h200 = (floors_ms(model, schedule, 1, gpu) for gpu in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"))
    assert h100["1 x 1"] == pytest.approx(h200["1 x 1"] * 4.8 / 3.35)
    assert floors_ms(model, schedule, 1, "a GPU") == {}


def test_a_cost_table_needs_the_dense_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--policy", "skip-1", "--save-costs", "costs.json"]) == 2
    assert "add `dense` to --policy" in capsys.readouterr().err
