"""A bundle is what it says: ORT equals torch, weights are stored once, damage is refused, nothing half-built stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graph_numbers import compare, drawn, engine_runs
from small_model import PROMPTS, everything_at_once, small_model, small_profile
from toprovar.compile.bundle import build_bundle
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.load import LoadedModel
from toprovar.models.noise import image_noise
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.errors import BundleError
from toprovar.profiles.manifest import MANIFEST, SCHEDULE, WEIGHTS, EngineManifest
from toprovar.profiles.schedule import Schedule, TokenRule
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource

TEXT = {"kind": "words"}
SEEDS = [3, 4]


SCHEDULES = {
    "dense": dense(small_profile()),
    "skip-1": baseline("skip-1", small_profile()),
    "noguide-2": baseline("noguide-2", small_profile()),
    "everything": everything_at_once(),
    "fastvar": baseline("fastvar", small_profile()),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for name, schedule in SCHEDULES.items():
        build_bundle(small_model(), schedule, folder / name, TEXT, lambda _: None)
    return {name: folder / name for name in SCHEDULES}


@pytest.fixture
def copied(bundles: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(bundles["skip-1"], tmp_path / "bundle"))


def torch_image(
    schedule: Schedule, prompts: tuple[str, ...], seeds: list[int], model: LoadedModel | None = None
) -> np.ndarray[Any, Any]:
    model = model or small_model()
    profile = model.profile
    features = model.text.encode_prompts(prompts)
    tokens = sum(h * w for h, w in profile.sizes)
    noise = torch.from_numpy(np.stack([image_noise(seed, tokens, 16) for seed in seeds]))
    with torch.inference_mode():
        summed = generate(build_steps(model.transformer, profile, schedule), features.features, features.lengths, noise)
        return model.vae.decoder(summed).clamp(-1, 1).numpy()  # type: ignore[no-any-return]


def engine_image(folder: Path, prompts: tuple[str, ...], seeds: list[int]) -> np.ndarray[Any, Any]:
    engine = Engine(folder, threads=1)
    features = TextSource(engine).encode(prompts)
    return engine.generate(features.text, features.lengths, seeds).pixels


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_onnx_runtime_equals_torch(bundles: dict[str, Path], name: str) -> None:
    ours = engine_image(bundles[name], PROMPTS[:2], SEEDS)
    np.testing.assert_allclose(ours, torch_image(SCHEDULES[name], PROMPTS[:2], SEEDS), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["everything", "noguide-2", "fastvar"])
def test_each_graph_equals_torch(bundles: dict[str, Path], name: str) -> None:
    """Text encoder, conditioning, every scale and decoder, each on torch's own inputs."""
    images, runs = drawn(small_model(), SCHEDULES[name]), engine_runs(bundles[name])
    assert images.keys() == runs.keys()
    for graph, (given, expected) in images.items():
        compare(runs[graph](given), expected, "fp32", graph=graph)


@pytest.mark.parametrize("batch", [1, 4])
def test_batches_and_lengths_are_free(bundles: dict[str, Path], batch: int) -> None:
    prompts, seeds = PROMPTS[:batch], list(range(batch))
    ours = engine_image(bundles["everything"], prompts, seeds)
    np.testing.assert_allclose(ours, torch_image(SCHEDULES["everything"], prompts, seeds), rtol=0, atol=1e-3)


def test_schedule_that_removes_nothing_is_the_dense_engine(bundles: dict[str, Path], tmp_path: Path) -> None:
    base = dense(small_profile())
    rules = (*base.scales[:-1], replace(base.scales[-1], tokens=TokenRule(kept=(256, 256))))
    build_bundle(small_model(), replace(base, scales=rules), tmp_path / "same", TEXT, lambda _: None)
    for path in sorted(bundles["dense"].glob("*.onnx")):
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes(), path.name
    ours, dense_image = (engine_image(p, PROMPTS[:1], [3]) for p in (tmp_path / "same", bundles["dense"]))
    assert np.array_equal(ours, dense_image)


def test_no_state_from_one_request_to_the_next(bundles: dict[str, Path]) -> None:
    engine = Engine(bundles["everything"], threads=1)
    texts = TextSource(engine)
    first, other = texts.encode(PROMPTS[:1]), texts.encode(PROMPTS[3:4])
    image = engine.generate(first.text, first.lengths, [3]).pixels
    engine.generate(other.text, other.lengths, [9])
    assert np.array_equal(engine.generate(first.text, first.lengths, [3]).pixels, image)


def test_weights_are_stored_once_and_graphs_are_small(bundles: dict[str, Path]) -> None:
    model = small_model()
    stored = (bundles["everything"] / WEIGHTS).stat().st_size
    parameters = sum(p.numel() * 4 for module in (model.transformer, model.vae.decoder) for p in module.parameters())
    encoder = sum(p.numel() * 4 for p in model.text.encoder.parameters())  # type: ignore[attr-defined]
    assert stored < 1.1 * (parameters + encoder)
    assert max(p.stat().st_size for p in bundles["everything"].glob("scale_*.onnx")) < 250_000


def test_entropy_is_read_by_a_local_function(bundles: dict[str, Path]) -> None:
    """Only where a later scale reads it; the node carries what TensorRT needs to take the plugin instead."""
    nodes = {}
    for path in sorted(bundles["everything"].glob("scale_*.onnx")):
        model = onnx.load(path, load_external_data=False)
        found = [node for node in model.graph.node if node.op_type == "FlashAttentionEntropy"]
        nodes[path.name] = len(found)
        assert bool(found) == any(f.name == "FlashAttentionEntropy" for f in model.functions)
        for node in found:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert attributes == {"scale": 1.0, "plugin_namespace": b"toprovar", "plugin_version": b"1", "aot": 1}
    assert nodes == {f"scale_{i:02d}.onnx": int(i in (4, 5)) for i in (0, 1, 2, 4, 5, 6)}


def test_manifest_says_what_went_in(bundles: dict[str, Path]) -> None:
    manifest = EngineManifest.load(bundles["everything"])
    assert manifest.schedule_sha256 == SCHEDULES["everything"].digest()
    assert manifest.weights == small_model().digests
    assert manifest.flops_speedup > 1.2
    assert {scale.scale for scale in manifest.scales} == {0, 1, 2, 4, 5, 6}
    assert set(manifest.files) == {p.name for p in bundles["everything"].iterdir()} - {MANIFEST}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "scale_03.onnx").unlink(), "scale_03.onnx is missing"),
        (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]), "bytes instead of"),
        (lambda f: _flip(f / WEIGHTS), "another SHA-256"),
        (lambda f: _flip(f / SCHEDULE, 40), "another SHA-256"),
        (lambda f: (f / MANIFEST).unlink(), "is no engine bundle"),
        (lambda f: (f / MANIFEST).write_text("{"), "damaged"),
        (lambda f: _edit(f / MANIFEST, format=2), "another format"),
        (lambda f: _edit(f / MANIFEST, surprise=1), "unknown keys"),
    ],
)
def test_damage_is_refused_before_anything_runs(copied: Path, damage: Any, message: str) -> None:
    damage(copied)
    with pytest.raises(BundleError, match=message):
        Engine(copied)


def _flip(path: Path, position: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("keep me")
    with pytest.raises(BundleError, match="is no engine bundle"):
        build_bundle(small_model(), SCHEDULES["skip-1"], tmp_path / "out", TEXT, lambda _: None)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_failed_build_leaves_the_older_bundle(copied: Path) -> None:
    before = {p.name: p.read_bytes() for p in copied.iterdir()}

    def fail(name: str) -> None:
        if name == "decoder.onnx":
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        build_bundle(small_model(), SCHEDULES["dense"], copied, TEXT, fail)
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == before
    assert [p.name for p in copied.parent.iterdir()] == [copied.name]
