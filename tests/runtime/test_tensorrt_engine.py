"""Plans draw the images of the onnx engine, bit for bit: buffers, addresses, order, narrowing, graphs, second requests.

TensorRT is a stand-in on host memory (`tensorrt_run_time`).
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_bundles import MAX_TEXT, as_plans, opened
from small_model import PROMPTS
from tensorrt_run_time import RecordingTensorRT
from toprovar.profiles.errors import BundleError, ToprovarError
from toprovar.profiles.manifest import MANIFEST, EngineManifest
from toprovar.runtime.device import ALIGNMENT, Arena
from toprovar.runtime.engine import Engine
from toprovar.runtime.tensorrt_engine import PROGRAMS, TEXT_STEP
from toprovar.runtime.text import TextSource

SCALES = [f"scale_{i:02d}.onnx" for i in (0, 1, 2, 4, 5, 6)]
ORDER = ["condition.onnx", *SCALES, "decoder.onnx"]


@pytest.fixture(scope="module")
def plans(onnx_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_plans(onnx_bundle, tmp_path_factory.mktemp("plans") / "engine")


@pytest.fixture(scope="module")
def reference(onnx_bundle: Path) -> Engine:
    return Engine(onnx_bundle, threads=1)


def request(reference: Engine, first: int, batch: int) -> tuple[Any, Any, list[int]]:
    """Features padded as the engine pads them, so that the sums have the same order."""
    text, lengths, _ = TextSource(reference).encode(PROMPTS[first : first + batch])
    length = -(-text.shape[1] // TEXT_STEP) * TEXT_STEP
    return np.pad(text, ((0, 0), (0, length - text.shape[1]), (0, 0))), lengths, list(range(first, first + batch))


@pytest.mark.parametrize("batch", [1, 3])
def test_images_are_those_of_the_onnx_engine(plans: Path, reference: Engine, batch: int) -> None:
    engine, trt = opened(plans)
    asked = request(reference, 0, batch)
    images = engine.generate(*asked)
    assert np.array_equal(images.pixels, reference.generate(*asked).pixels)
    # one warm run, one replay
    assert trt.ran == ORDER * 2
    assert list(images.milliseconds) == ["image"]
    assert engine.device.replays == 1  # type: ignore[attr-defined]


def test_negative_prompt_and_unpadded_text(plans: Path, reference: Engine) -> None:
    engine, _ = opened(plans)
    text, lengths, seeds = request(reference, 0, 2)
    other = request(reference, 2, 2)[:2]
    ours = engine.generate(text, lengths, seeds, other).pixels
    assert np.array_equal(ours, reference.generate(text, lengths, seeds, other).pixels)
    short = text[:, : lengths.max()]
    np.testing.assert_allclose(
        engine.generate(short, lengths, seeds).pixels, reference.generate(short, lengths, seeds).pixels, rtol=0, atol=1e-4
    )


def test_requests_leave_nothing_behind(plans: Path, reference: Engine) -> None:
    """Another prompt and another batch in between, which share all memory, change nothing; contexts are not made again."""
    engine, trt = opened(plans)
    first = request(reference, 0, 2)
    image = engine.generate(*first).pixels
    made = len(trt.contexts)
    engine.generate(*request(reference, 3, 2))
    assert len(trt.contexts) == made == len(ORDER)
    engine.generate(*request(reference, 1, 4))
    assert len(trt.contexts) == 2 * made
    assert np.array_equal(engine.generate(*first).pixels, image)
    assert trt.ran == [*ORDER * 2, *ORDER, *ORDER * 2, *ORDER]


def test_weights_have_one_address_in_all_contexts(plans: Path, reference: Engine) -> None:
    engine, trt = opened(plans)
    engine.generate(*request(reference, 0, 1))
    found: dict[str, set[int]] = {}
    for context, name in zip(trt.contexts, ORDER, strict=True):
        plan = engine._plans[name.replace(".onnx", ".plan")]
        for key, tensor in plan.graph.weights.items():
            found.setdefault(tensor, set()).add(context.addresses[key])
    assert {len(addresses) for addresses in found.values()} == {1}
    assert len({min(addresses) for addresses in found.values()}) == len(found) > 40
    assert len({context._scratch for context in trt.contexts}) == 1


@pytest.mark.parametrize("rtx", [False, True], ids=["tensorrt", "tensorrt-rtx"])
def test_plan_that_refuses_capture_runs_without(
    onnx_bundle: Path, reference: Engine, rtx: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trt = RecordingTensorRT(rtx)
    folder = as_plans(onnx_bundle, tmp_path / "engine", "tensorrt-rtx" if rtx else "tensorrt")
    trt.not_capturable = {"scale_02.onnx", "decoder.onnx"}
    engine, _ = opened(folder, trt)
    asked = request(reference, 0, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            images = engine.generate(*asked)
    assert np.array_equal(images.pixels, reference.generate(*asked).pixels)
    assert [r.message for r in caplog.records] == [
        "image: no CUDA graph of it as a whole; plans that run without one: scale 2, decoder"
    ]
    assert list(images.milliseconds) == ["condition", *(f"scale {i}" for i in (0, 1, 2, 4, 5, 6)), "decoder"]
    assert engine.device.replays == 2 * (len(ORDER) - 2)  # type: ignore[attr-defined]
    assert trt.ran == ORDER * 3


def test_a_graph_a_scale_where_one_of_all_is_refused(plans: Path, reference: Engine) -> None:
    engine, _ = opened(plans, whole=False)
    asked = request(reference, 0, 1)
    assert np.array_equal(engine.generate(*asked).pixels, reference.generate(*asked).pixels)
    assert engine.device.replays == len(ORDER)  # type: ignore[attr-defined]


@pytest.mark.parametrize("as_plan", [True, False])
def test_words_run_as_plan_or_graph(onnx_bundle: Path, reference: Engine, as_plan: bool, tmp_path: Path) -> None:
    engine, trt = opened(as_plans(onnx_bundle, tmp_path / "engine", words=as_plan))
    ours, expected = (TextSource(e).encode(PROMPTS[:2]) for e in (engine, reference))
    assert np.array_equal(ours.text, expected.text)
    assert ("words.onnx" in trt.ran) == as_plan


def test_only_so_many_shapes_stay(plans: Path, reference: Engine) -> None:
    engine, _ = opened(plans)
    ids = np.ones((1, 1), dtype=np.int64)
    for length in range(1, PROGRAMS + 4):
        engine.words(ids.repeat(length, axis=1))
    assert len(engine._programs) == PROGRAMS


REFUSED = [
    (1, 5, "was built for 4 images at once; lower --batch or build with --max-batch 5"),
    (MAX_TEXT + 1, 1, f"was built for {MAX_TEXT} text tokens; shorten the prompt or build with --max-text {MAX_TEXT + 1}"),
]


@pytest.mark.parametrize(("length", "batch", "message"), REFUSED)
def test_too_large_a_request_is_refused(plans: Path, length: int, batch: int, message: str) -> None:
    engine, trt = opened(plans)
    text = np.zeros((batch, length, engine.profile.transformer.text_channels), np.float32)
    with pytest.raises(ToprovarError, match=message):
        engine.generate(text, np.ones(batch, np.int64), [0] * batch)
    assert not trt.ran


def change(folder: Path, **fields: Any) -> None:
    manifest = EngineManifest.load(folder)
    (folder / MANIFEST).write_bytes(replace(manifest, **fields).to_json())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: replace(g, weights={**g.weights, "gone": "gone"}), "lacks \\['gone'\\]"),
        (lambda g: replace(g, weights=dict.fromkeys(g.weights, next(iter(g.weights.values())))), "gives torch.float32"),
        (lambda g: replace(g, weights=dict(list(g.weights.items())[1:])), "has tensors \\["),
        (lambda g: replace(g, outputs=(*g.outputs, "gone.out")), "lacks \\['gone.out'\\]"),
    ],
)
def test_manifest_that_contradicts_a_plan_is_refused(onnx_bundle: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    folder = as_plans(onnx_bundle, tmp_path / "engine")
    change(folder, decoder=spoil(EngineManifest.load(folder).decoder))
    with pytest.raises(BundleError, match=message):
        opened(folder)


def test_plan_that_does_not_load_is_named(onnx_bundle: Path, tmp_path: Path) -> None:
    folder = as_plans(onnx_bundle, tmp_path / "engine")
    (folder / "decoder.plan").write_text("[]")
    files = {name: entry for name, entry in EngineManifest.load(folder).files.items() if name != "decoder.plan"}
    change(folder, files=files)
    with pytest.raises(BundleError, match=r"decoder\.plan: TensorRT refuses the plan"):
        opened(folder)


def test_blocks_are_aligned_and_grow() -> None:
    arena = Arena("cpu")
    small = arena.take("a", 10)
    assert arena.take("a", 5) is small
    large = arena.take("a", 1000)
    assert large is not small
    assert {len(small), len(large)} == {10, 1000}
    assert {block.data_ptr() % ALIGNMENT for block in (small, large, arena.take("b", 1))} == {0}


def test_manifest_keeps_plans(plans: Path) -> None:
    manifest = EngineManifest.load(plans)
    assert json.loads(manifest.to_json())["condition"]["weights"] == manifest.condition.weights
    assert manifest.condition.plan == "condition.plan"
