"""The `tensorrt` target without TensorRT: every call has a form that NVIDIA's own bindings accept; nothing is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import recording_tensorrt
import torch
from other_bindings import each_folder, run_with
from recording_tensorrt import recording
from small_model import small_profile
from tensorrt_link_stubs import stubbed_tensorrt
from toprovar.compile.graphs import export_scale
from toprovar.compile.plan_options import PlanOptions
from toprovar.compile.plan_record import Limits
from toprovar.compile.plans import PlanBuilder
from toprovar.compile.tensorrt_flavours import FLAVOURS, Toolkit, numbers
from toprovar.compile.weight_store import Exported, WeightStore
from toprovar.models.infinity.generate import build_steps
from toprovar.models.load import WeightOptions, load_model
from toprovar.profiles.baselines import dense
from toprovar.profiles.errors import BundleError
from toprovar.profiles.plan import plan_scales
from toprovar.profiles.schedule import TokenRule

LIMITS = Limits(images=3, text=16)


@pytest.fixture(scope="module")
def exported() -> Exported:
    """A scale that writes the entropy, so that it holds a plugin."""
    model = load_model(small_profile(), WeightOptions(weights="random"), torch.bfloat16)
    base = dense(small_profile())
    rules = [replace(rule, run=rule.scale in (0, 5, 6)) for rule in base.scales]
    rules[6] = replace(rules[6], tokens=TokenRule(kept=(128, 128)))
    schedule = replace(base, scales=tuple(rules), entropy_layer=1)
    assert plan_scales(schedule)[1].writes_entropy
    store = WeightStore()
    store.register("transformer", model.transformer)
    return export_scale(build_steps(model.transformer, model.profile, schedule)[1], store)


@pytest.fixture
def trt() -> Iterator[Any]:
    with stubbed_tensorrt() as found:
        yield found


def builder(trt: Any, calls: list[Any], refuse: str = "", **changes: Any) -> PlanBuilder:
    given = {"target": "tensorrt", "precision": "bf16", "sm": (90,), "max_text": 16, "timing_cache": "none", **changes}
    return PlanBuilder(Toolkit(FLAVOURS["tensorrt"], recording(trt, calls, refuse)), PlanOptions(**given))


def test_every_call_has_a_form_that_the_bindings_accept(trt: Any, exported: Exported, tmp_path: Path) -> None:
    calls: list[Any] = []
    cache = tmp_path / "timing.cache"
    made = builder(trt, calls, opt_level=4, workspace_gib=2, timing_cache=str(cache))
    record = made.build(tmp_path / "s.plan", exported, LIMITS, {})
    by_name = {call[0]: call[1:] for call in calls}
    assert by_name["create_network"] == (1 << int(trt.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS),)
    assert by_name["builder_optimization_level"] == (4,)
    assert by_name["max_aux_streams"] == (0,)
    assert by_name["set_memory_pool_limit"] == (trt.MemoryPoolType.WORKSPACE, 2 << 30)
    assert "clear_flag" not in by_name
    assert "set_compute_capability" not in by_name
    shapes = {call[1]: call[2:] for call in calls if call[0] == "set_shape"}
    assert shapes["ca_k.0"] == ((2, 2, 1, 32), (2, 2, 16, 32), (6, 2, 16, 32))
    assert "tau" not in shapes
    assert cache.read_bytes() == b"timings"
    assert (tmp_path / "s.plan").read_bytes() == b"a plan"
    assert record.plugins == 1
    assert record.inputs["k.0"][0] == "bf16"
    assert record.inputs["noise"][0] == "fp32"
    assert len(made.kernel_hash) == 64


def test_attention_node_reaches_tensorrt_as_a_plugin(trt: Any, exported: Exported, tmp_path: Path) -> None:
    """Its namespace is what makes TensorRT from 10.15 prefer the plugin to the function."""
    for precision, expected in (("bf16", {"scale", "plugin_namespace", "plugin_version", "aot"}), ("fp32", {"scale"})):
        calls: list[Any] = []
        builder(trt, calls, precision=precision).build(tmp_path / "s.plan", exported, LIMITS, {})
        model = onnx.load_from_string(next(call[1] for call in calls if call[0] == "parse"))
        nodes = [node for node in model.graph.node if node.domain == "toprovar"]
        plain = [node for node in model.graph.node if node.op_type == "Attention"]
        assert len(plain) == 3
        assert calls.count(("decomposable", True)) == 3
        assert [{attribute.name for attribute in node.attribute} for node in nodes] == [expected]
        assert [function.name for function in model.functions] == ["FlashAttentionEntropy"]
        assert ("clear_flag", trt.BuilderFlag.TF32) in calls or precision != "fp32"
        assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize(
    ("refuse", "message"),
    [("parse", r"s\.plan: tensorrt 11\.4.* cannot read the graph"), ("build", r"s\.plan: tensorrt builds no plan")],
)
def test_refusals_name_the_plan(trt: Any, exported: Exported, tmp_path: Path, refuse: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        builder(trt, [], refuse).build(tmp_path / "s.plan", exported, LIMITS, {})
    assert not list(tmp_path.iterdir())


def test_machine_without_a_driver(trt: Any) -> None:
    """The genuine builder, linked to nothing."""
    with pytest.raises(BundleError, match=r"tensorrt 11\.4.*makes no builder.*nvidia-smi"):
        PlanBuilder(Toolkit(FLAVOURS["tensorrt"], trt), PlanOptions(target="tensorrt", precision="fp32", sm=(90,), max_text=8))


def test_recorder_refuses_what_the_bindings_lack(trt: Any) -> None:
    made = recording(trt, []).Builder(None)
    with pytest.raises(AttributeError, match="build_engine"):
        made.build_engine()
    with pytest.raises(AssertionError, match=r"build_serialized_network takes 2 to 3, got 1"):
        made.build_serialized_network(None)
    with pytest.raises(AttributeError, match="fp16_mode"):
        made.fp16_mode = True


@each_folder
def test_other_versions_accept_the_same_calls(folder: Path | None) -> None:
    """10.13 gets attention as our function, 10.14 and newer as the operator."""
    version, flags, *calls = run_with(folder, recording_tensorrt.__file__).splitlines()[-1].split()
    # STRONGLY_TYPED is bit 1; 11 is strongly typed without
    assert bool(int(flags) & 2) == version.startswith("10.")
    assert ("decomposable" in calls) == (numbers(version) >= (10, 14))
    assert {"parse", "set_shape", "set_memory_pool_limit", "build_serialized_network", "serialize"} <= {*calls}
