"""Plans of TensorRT-RTX, built here without a GPU: they hold what the manifest says, and their ONNX computes what torch does.

Deserialising a plan needs a driver, so inputs and outputs are those of the network that the plan was built from, and the
numbers are ONNX Runtime's on the very same graphs.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from graph_numbers import compare, drawn, engine_runs
from plan_checks import check_precision, check_tensors, check_weights
from small_model import PROMPTS, small_profile
from toprovar.compile.build_report import REPORT, report_table
from toprovar.compile.bundle import build_bundle
from toprovar.compile.graphs import export_scale
from toprovar.compile.plan_bundle import kept_folder
from toprovar.compile.plan_inputs import plan_model
from toprovar.compile.plan_options import PlanOptions
from toprovar.compile.plan_record import Limits
from toprovar.compile.plans import PlanBuilder
from toprovar.compile.report_page import PAGE
from toprovar.compile.tensorrt_flavours import toolkit
from toprovar.compile.weight_store import Exported, WeightStore
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.models.noise import image_noise
from toprovar.profiles.baselines import dense
from toprovar.profiles.errors import BundleError
from toprovar.profiles.manifest import MANIFEST, EngineManifest
from toprovar.profiles.schedule import Schedule, TokenRule
from toprovar.runtime.engine import Engine
from toprovar.runtime.text import TextSource

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed (pip install tensorrt-rtx-cu13)")

# |difference| / (1 + |value|) of keys, values, updates and entropies was at most 9.2e-4 over three seeds, on the CPU; doubled
TOLERANCE = 2e-3


def schedule() -> Schedule:
    """Few scales with all that a plan can hold: entropy written and read, tokens pruned both ways, guidance dropped."""
    base = dense(small_profile())
    rules = [replace(rule, run=rule.scale in (0, 3, 5, 6)) for rule in base.scales]
    rules[5] = replace(rules[5], tokens=TokenRule(kept=(60, 144), fill="cache", cache_scale=3))
    rules[6] = replace(rules[6], guidance=False, tokens=TokenRule(kept=(128, 128)))
    return replace(base, policy="plans", scales=tuple(rules), entropy_layer=1)


def options(**changes: Any) -> PlanOptions:
    return PlanOptions(**{"target": "tensorrt-rtx", "sm": (89,), "max_batch": 3, "max_text": 16, **changes})


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(small_profile(), WeightOptions(weights="random"), torch.float16)


@pytest.fixture(scope="module")
def bundle(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rtx") / "engine"
    build_bundle(model, schedule(), out, {"kind": "words"}, lambda _: None, PlanBuilder(toolkit("tensorrt-rtx"), options()))
    return out


def test_every_graph_has_a_plan_and_the_manifest_knows_it(bundle: Path) -> None:
    manifest = EngineManifest.load(bundle)
    manifest.verify(bundle)
    assert (manifest.target, manifest.precision) == ("tensorrt-rtx", "fp16")
    engine = manifest.engine
    assert engine["flavour"] == "tensorrt-rtx"
    assert engine["sm"] == [89]
    assert (engine["max_batch"], engine["max_text"], engine["kernel_hash"]) == (3, 16, "")
    for name, plan in engine["plans"].items():
        assert plan["bytes"] == (bundle / name).stat().st_size
        assert plan["plugins"] == 0
    assert not kept_folder(bundle).exists()


def test_inputs_and_outputs_are_those_of_the_manifest(bundle: Path) -> None:
    check_tensors(bundle)


def test_state_that_bits_are_drawn_from_is_fp32(bundle: Path) -> None:
    check_precision(bundle)


def test_weights_are_stored_once_and_fit_their_inputs(bundle: Path) -> None:
    check_weights(bundle)
    assert all(graph.weights for graph in EngineManifest.load(bundle).graphs)


def test_onnx_runtime_computes_what_torch_does(bundle: Path, model: LoadedModel) -> None:
    """fp16, scale by scale from the same state; a bit may flip where its probability meets the noise."""
    generator = torch.Generator().manual_seed(7)
    for step, scale in zip(
        build_steps(model.transformer, model.profile, schedule()), EngineManifest.load(bundle).scales, strict=True
    ):
        proto = onnx.load(bundle / scale.graph.file, load_external_data=False)
        state = {value.name: _random(value, generator) for value in proto.graph.input}
        with torch.inference_mode():
            expected = step(state)
        session = ort.InferenceSession(str(bundle / scale.graph.file), providers=["CPUExecutionProvider"])
        found = session.run(list(scale.graph.outputs), {name: value.numpy() for name, value in state.items()})
        for name, value in zip(scale.graph.outputs, found, strict=True):
            theirs = expected[name.removesuffix(".out")].numpy()
            assert value.dtype == theirs.dtype
            if name == "summed.out":
                assert np.mean(np.abs(value - theirs) > 1e-3) < 0.02
            else:
                np.testing.assert_allclose(value, theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{scale.scale} {name}")


def test_each_graph_computes_what_torch_does(bundle: Path, model: LoadedModel) -> None:
    """fp16, text encoder, conditioning, scales and decoder, each on what torch gives it in two images."""
    images, runs = drawn(model, schedule()), engine_runs(bundle)
    assert images.keys() == runs.keys()
    for graph, (given, expected) in images.items():
        compare(runs[graph](given), expected, "fp16", graph=graph)


def _random(value: Any, generator: torch.Generator) -> torch.Tensor:
    sizes = {"batch": 2, "2*batch": 4, "text": 5}
    shape = [sizes.get(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    if value.name == "mask":
        return torch.zeros(shape, dtype=torch.float16)
    kind = torch.float16 if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 else torch.float32
    return (torch.rand(shape, generator=generator) + (0.5 if value.name in ("cfg", "tau") else 0.0)).to(kind)


def test_bundle_of_fp16_draws_what_torch_draws_in_fp16(bundle: Path, model: LoadedModel) -> None:
    """The whole fp16 bundle on ONNX Runtime, text encoder to decoder, against torch in fp16 and fp32."""
    engine = Engine(bundle, threads=1)
    features = TextSource(engine).encode(PROMPTS[:1])
    ours = engine.generate(features.text, features.lengths, [3]).pixels
    for theirs in (model, load_model(small_profile(), WeightOptions(weights="random"))):
        text = theirs.text.encode_prompts(PROMPTS[:1])
        tokens = sum(h * w for h, w in theirs.profile.sizes)
        noise = torch.from_numpy(image_noise(3, tokens, theirs.profile.transformer.token_bits))[None]
        steps = build_steps(theirs.transformer, theirs.profile, schedule())
        with torch.inference_mode():
            summed = generate(steps, text.features, text.lengths, noise)
            image = theirs.vae.decoder(summed).float().clamp(-1, 1).numpy()
        assert 10 * np.log10(4 / np.mean((ours - image) ** 2)) > 25


def test_page_shows_what_the_report_holds(bundle: Path) -> None:
    content, shown = json.loads((bundle / REPORT).read_text()), (bundle / PAGE).read_text()
    assert "http" not in shown
    for file, plan in content["plans"].items():
        row = next(line for line in shown.splitlines() if f"<td>{file}</td>" in line)
        counts = [f"{plan['layers']:,}", "fp16", "0", str(len(plan["inputs"])), str(len(plan["weights"]))]
        expected = [*counts, f"{plan['bytes'] / 1e6:.2f}", f"{plan['seconds']:.1f}"]
        assert re.findall(r"<td[^>]*>(.*?)</td>", row)[1:8] == expected


def test_attention_is_the_fused_kernel_in_every_scale(bundle: Path) -> None:
    for path in sorted(bundle.glob("scale_*.onnx")):
        functions = onnx.load(path, load_external_data=False).functions
        assert "MaskedAttention" in {function.name for function in functions}, path.name
        assert b"fused_multihead" in path.with_suffix(".plan").read_bytes() or path.name == "scale_00.onnx"


def test_report_lists_every_plan(bundle: Path) -> None:
    content = json.loads((bundle / REPORT).read_text())
    assert set(content["plans"]) == set(EngineManifest.load(bundle).engine["plans"])
    assert content["total"]["bytes"] == sum(path.stat().st_size for path in bundle.glob("*.plan"))
    assert report_table(content).count("fp16") == len(content["plans"])


def test_resume_keeps_what_is_still_right(bundle: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build stops at the decoder; the third one, resumed, builds that plan only; nothing else is left behind."""
    before = (bundle / MANIFEST).read_bytes()
    built: list[str] = []
    real = PlanBuilder._parse

    def parse(self: PlanBuilder, name: str, found: Any) -> Any:
        built.append(name)
        if name == "decoder.plan" and len(built) == 1:
            raise RuntimeError("power cut")
        return real(self, name, found)

    monkeypatch.setattr(PlanBuilder, "_parse", parse)
    again = PlanBuilder(toolkit("tensorrt-rtx"), options(resume=True))
    # the decoder's key is another one, so that plan has to be built
    report = json.loads((bundle / REPORT).read_text())
    report["plans"]["decoder.plan"]["key"] = "0" * 64
    (bundle / REPORT).write_text(json.dumps(report))
    for attempt in range(2):
        if attempt == 0:
            with pytest.raises(RuntimeError, match="power cut"):
                build_bundle(model, schedule(), bundle, {"kind": "words"}, lambda _: None, again)
            assert (bundle / MANIFEST).read_bytes() == before
            assert kept_folder(bundle).is_dir()
        else:
            build_bundle(model, schedule(), bundle, {"kind": "words"}, lambda _: None, again)
    assert built == ["decoder.plan", "decoder.plan"]
    EngineManifest.load(bundle).verify(bundle)
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.fixture(scope="module")
def first_scale(model: LoadedModel) -> Exported:
    store = WeightStore()
    store.register("transformer", model.transformer)
    return export_scale(build_steps(model.transformer, model.profile, schedule())[0], store)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_pruned_scale_builds_in_every_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """fp16 is the bundle's; here the scale that reads and writes the entropy."""
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    other = load_model(small_profile(), WeightOptions(weights="random"), dtype)
    store = WeightStore()
    store.register("transformer", other.transformer)
    exported = export_scale(build_steps(other.transformer, other.profile, schedule())[2], store)
    builder = PlanBuilder(toolkit("tensorrt-rtx"), options(precision=name))
    record = builder.build(tmp_path / "x.plan", exported, Limits(images=2, text=8), {})
    assert record.inputs["k.0"] == [name, [-1, 2, 1 + 36, 32]]
    assert record.inputs["entropy"] == ["fp32", [-1, 1, 6, 6]]
    assert record.outputs["k.0.out"][0] == name


def test_key_holds_what_changes_a_plan(first_scale: Exported, tmp_path: Path) -> None:
    """Two plans of one key have one size; TensorRT-RTX 1.7 leaves about 1200 of 2.7 million bytes different."""
    limits, kit = Limits(images=2, text=8), toolkit("tensorrt-rtx")
    first = PlanBuilder(kit, options()).build(tmp_path / "a.plan", first_scale, limits, {})
    same = PlanBuilder(kit, options()).build(tmp_path / "b.plan", first_scale, limits, {})
    assert first.key == same.key
    assert first.bytes == same.bytes
    model = plan_model(first_scale, plugins=False, operator=kit.attention)
    changed = [(options(opt_level=1), limits), (options(sm=(80, 89)), limits), (options(), replace(limits, text=9))]
    keys = [PlanBuilder(kit, opts)._key(model, most) for opts, most in [(options(), limits), *changed]]
    assert keys[0] == first.key
    assert len(set(keys)) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"a.plan", "b.plan"}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in the foreground: a run in the background inherits that Ctrl-C is ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_a_build_and_leaves_no_plan(first_scale: Exported, tmp_path: Path) -> None:
    """Ctrl-C in the middle of TensorRT's build used to be printed by its bindings and told as a graph that does not build."""
    before, phases = signal.getsignal(signal.SIGINT), list[str]()

    def interrupt(phase: str) -> None:
        phases.append(phase)
        if len(phases) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    builder = PlanBuilder(toolkit("tensorrt-rtx"), options(), interrupt)
    with pytest.raises(KeyboardInterrupt):
        builder.build(tmp_path / "x.plan", first_scale, Limits(images=1, text=4), {})
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is before
    assert builder.build(tmp_path / "x.plan", first_scale, Limits(images=1, text=4), {}).bytes > 0


def test_graph_that_cannot_be_read_is_told_with_its_node(first_scale: Exported, tmp_path: Path) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(first_scale.proto)
    next(node for node in proto.graph.node if node.op_type == "Sigmoid").op_type = "Multinomial"
    with pytest.raises(BundleError, match=r"x\.plan: tensorrt-rtx 1\..* cannot read the graph: .* at Multinomial"):
        PlanBuilder(toolkit("tensorrt-rtx"), options()).build(
            tmp_path / "x.plan", replace(first_scale, proto=proto), Limits(images=1, text=4), {}
        )
    assert not list(tmp_path.iterdir())
