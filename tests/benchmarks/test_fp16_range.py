"""What fp16 cannot hold is named, with its value; a model that fits names nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_numbers import drawn
from small_model import PROMPTS, small_model, small_profile
from toprovar.benchmarks.fp16_range import FP16_LARGEST, MeasuringEngine, main
from toprovar.compile.bundle import build_bundle
from toprovar.profiles.baselines import dense
from toprovar.profiles.manifest import MANIFEST, WEIGHTS, EngineManifest, FileEntry, sha256_of
from toprovar.profiles.schedule import Schedule
from toprovar.runtime.text import TextSource

SEEDS = (0, 1)


def schedule() -> Schedule:
    """Two scales, of one token and four."""
    base = dense(small_profile())
    return replace(base, scales=tuple(replace(rule, run=rule.scale < 2) for rule in base.scales))


def each_drawn() -> list[Any]:
    """Both images in torch, one after the other, as the benchmark draws them."""
    return [drawn(small_model(), schedule(), (seed,), (prompt,)) for prompt, seed in zip(PROMPTS[1:3], SEEDS, strict=True)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("range") / "engine"
    build_bundle(small_model(), schedule(), folder, {"kind": "words"}, lambda _: None)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in PROMPTS[1:3]))
    return path


def scaled(engine: Path, out: Path, name: str, factor: float) -> Path:
    """The engine with one weight multiplied, its manifest in order."""
    shutil.copytree(engine, out)
    data = np.memmap(out / WEIGHTS, np.uint8, "r+")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    first, end = (start + offset for offset in header[name]["data_offsets"])
    values = data[first:end].view(np.float32)
    values *= np.float32(factor)
    data.flush()
    manifest = EngineManifest.load(out)
    entry = FileEntry(bytes=manifest.files[WEIGHTS].bytes, sha256=sha256_of(out / WEIGHTS))
    (out / MANIFEST).write_bytes(replace(manifest, files={**manifest.files, WEIGHTS: entry}).to_json())
    return out


def test_magnitudes_are_those_of_torch(engine: Path) -> None:
    """Every output of every graph, the largest of two images drawn one after the other."""
    measuring = MeasuringEngine(engine, threads=1)
    features = TextSource(measuring)
    for prompt, seed in zip(PROMPTS[1:3], SEEDS, strict=True):
        text = features.encode([prompt])
        measuring.generate(text.text, text.lengths, [seed])
    graphs = measuring.manifest
    assert graphs.words is not None
    files = {"words": graphs.words, "condition": graphs.condition, "decoder": graphs.decoder}
    files |= {f"scale {scale.scale}": scale.graph for scale in graphs.scales}
    images = each_drawn()
    for name, graph in files.items():
        for output in graph.outputs:
            tensor = output.removesuffix(".out")
            values = np.concatenate([image[name][1][tensor].ravel() for image in images])
            expected = np.abs(values[np.isfinite(values)]).max()
            found = measuring.largest[graph.file, output].value
            assert found == pytest.approx(expected, rel=1e-4), (name, output)


def test_a_model_that_fits_names_nothing(engine: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", str(engine), "--prompts", str(prompts), "--threads", "1"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["beyond"] == []
    assert {top["graph"] for top in result["largest"]} == {graph.file for graph in EngineManifest.load(engine).graphs}
    assert all(0 < top["value"] < FP16_LARGEST for top in result["largest"])


@pytest.mark.parametrize(("share", "beyond"), [(1.01, 1), (0.99, 0)], ids=["beyond", "within"])
def test_a_tensor_that_overflows_is_named(
    engine: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float, beyond: int
) -> None:
    """The decoder's last convolution, scaled to end just beyond fp16 and just within; what follows cuts it off at 1."""
    convolution = small_model().decoder.conv_out.conv  # type: ignore[union-attr]
    with torch.inference_mode():
        drawings = [small_model().decoder(torch.from_numpy(image["decoder"][0]["summed"])) for image in each_drawn()]
        bias = convolution.bias.view(3, 1, 1)
        without_bias = torch.cat(drawings) - bias
        factor = share * FP16_LARGEST / float(without_bias.abs().max())
        expected = float((without_bias * factor + bias).abs().max())
    folder = scaled(engine, tmp_path / "engine", "vae.decoder.conv_out.conv.weight", factor)
    assert main(["--engine", str(folder), "--prompts", str(prompts), "--threads", "1"]) == beyond
    lines = capsys.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    top = next(top for top in result["largest"] if top["graph"] == "decoder.onnx")
    assert top["operator"] == "Conv"
    assert top["value"] == pytest.approx(expected, rel=1e-4)
    assert result["beyond"] == [top] * beyond
    told = [line for line in lines if "fp16 ends at 65504" in line]
    assert told == [f"decoder.onnx: Conv {top['tensor']} reaches {top['value']:.4g}, fp16 ends at 65504"] * beyond


def test_an_engine_of_another_precision_is_refused(
    engine: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(engine, tmp_path / "engine"))
    (folder / MANIFEST).write_bytes(replace(EngineManifest.load(folder), precision="fp16").to_json())
    assert main(["--engine", str(folder), "--prompts", str(prompts)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "target onnx, precision fp16; expected an engine of --target onnx --precision fp32" in line
