"""VAR and HART on the target `cuda`: every policy, guidance and batch equals torch; half precision; neighbours; memory.

What runs on a GPU with graphs and compiled blocks runs on a CPU without, from bundle to bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matrix_cases
import numpy as np
import pytest
import torch
from direct_graphs import A_GPU, without_a_gpu
from half_precision import error_ratio, in_half
from hart_model import small_profile as small_hart_profile
from matrix_cases import PROMPTS, Case, cases, model_of, schedule_of
from small_var import small_var_profile
from toprovar.benchmarks.latency.gate import worst_ratio
from toprovar.compile.cuda_bundle import build_cuda_bundle
from toprovar.models.family import build_steps, family_of
from toprovar.models.generate import condition_rows, generate, image_noise
from toprovar.models.infinity.vae import to_uint8
from toprovar.models.load import LoadedModel, WeightOptions, load_model
from toprovar.models.plain_steps import compile_blocks, shapes_of
from toprovar.models.rungs import build_rungs, generate_rungs
from toprovar.models.step import ScaleStep
from toprovar.profiles.baselines import dense
from toprovar.profiles.plan import ScalePlan, plan_scales
from toprovar.profiles.schedule import TokenRule
from toprovar.runtime.cuda_engine import CudaEngine
from toprovar.runtime.loop import Images
from toprovar.runtime.text import TextSource

SEEDS = (11, 12, 13, 14)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")))
ALL = [case for case in cases() if case.family != "infinity" and not case.refused]
SHARED = [Case(matrix_cases.SHARED, policy, 1.0, guided) for policy in ("dense", "entropy") for guided in (True, False)]
BY_BRANCH = [Case(family, "fastvar", 1.0, True) for family in ("var", "hart")]
PRUNED = [Case(family, "entropy", 1.0, True) for family in ("var", "hart")]
ROUNDED = 20
"""Levels of a byte that a decoder in bf16 may differ from one that sums otherwise; measured 11."""

Open = Callable[..., CudaEngine]
"""Case, device and, where it is not the case's own, the model."""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """A case's bundle, opened on a GPU or, its programs called where graphs would be replayed, on the CPU."""

    def engine_of(case: Case, device: str, model: LoadedModel | None = None) -> CudaEngine:
        model = model or model_of(case)
        build_cuda_bundle(model, schedule_of(case, model.profile), tmp_path / "engine", model.text_source, lambda _: None)
        if device == "cuda":
            return CudaEngine(tmp_path / "engine")
        without_a_gpu(monkeypatch)
        return CudaEngine(tmp_path / "engine", A_GPU, torch.device("cpu"))

    return engine_of


def drawn(engine: CudaEngine, case: Case, images: list[int], seeds: list[int] | None = None) -> Images:
    """Some of the case's prompts, each with its own seed unless others are given."""
    text = TextSource(engine).encode([PROMPTS[case.family][index] for index in images])
    return engine.generate(text.text, text.lengths, seeds or [SEEDS[index] for index in images])


@torch.inference_mode()
def expected_images(case: Case, model: LoadedModel | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The case's four images and their rungs, of the torch modules on the CPU."""
    model = model or model_of(case)
    schedule, text = schedule_of(case, model.profile), model.text.encode_prompts(PROMPTS[case.family])
    given = text.features, text.lengths, image_noise(model.profile, SEEDS)
    if schedule.rungs:
        summed, picked = generate_rungs(build_rungs(model, schedule), *given)
    else:
        summed, picked = generate(model.transformer, build_steps(model, schedule), *given), ()
    return to_uint8(model.decoder(summed).float()).numpy(), picked


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", [*ALL, *SHARED], ids=str)
def test_images_equal_the_torch_modules(case: Case, device: str, opened: Open) -> None:
    """fp32: a pixel may fall to the other side of a whole number, no more."""
    expected, rungs = expected_images(case)
    engine = opened(case, device)
    for batch in (1, 2, 4):
        found = drawn(engine, case, list(range(batch)))
        difference = np.abs(found.uint8().astype(int) - expected[:batch].astype(int))
        assert difference.max() <= 1, f"batch {batch}"
        assert found.rungs == rungs[:batch]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", PRUNED, ids=str)
def test_one_seed_gives_one_image_whatever_ran_before_and_beside(case: Case, device: str, opened: Open) -> None:
    engine = opened(case, device)
    first = drawn(engine, case, [0, 1]).uint8().copy()
    drawn(engine, case, [3, 2])
    drawn(engine, case, [1])
    beside = drawn(engine, case, [0, 2], [SEEDS[0], 99]).uint8().copy()
    assert np.array_equal(beside[0], first[0])
    assert not np.array_equal(beside[1], first[1])
    assert np.array_equal(drawn(engine, case, [0, 1]).uint8(), first)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", PRUNED, ids=str)
def test_a_replay_allocates_nothing(case: Case, opened: Open) -> None:
    engine = opened(case, "cuda")
    drawn(engine, case, [0])
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    drawn(engine, case, [0])
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.mark.parametrize("case", [*PRUNED, *BY_BRANCH], ids=str)
def test_tokens_chosen_and_put_back_by_kernels_draw_the_same(case: Case, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, on the definitions of its kernels."""
    expected, _ = expected_images(case)
    monkeypatch.setattr(ScaleStep, "_uses_kernels", lambda step, x: True)
    found = drawn(opened(case, "cpu"), case, [0, 1, 2, 3]).uint8()
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", PRUNED, ids=str)
def test_bf16_is_as_exact_as_the_eager_modules(case: Case, device: str) -> None:
    """On the CPU both are the same calls, which shows that every policy runs in bf16 at all."""
    model = in_half(model_of(case), torch.bfloat16, device)
    ratio = error_ratio(model, plan_scales(schedule_of(case, model.profile)))
    assert 0 < ratio < 2.0
    if device == "cuda":
        assert worst_ratio(model) < 2.0


@pytest.mark.parametrize("case", [case for case in ALL if case.guided and case.policy not in ("dense", "skip-1")], ids=str)
def test_every_policy_draws_in_bf16(case: Case, opened: Open) -> None:
    """Without a GPU: codes and what they stand for are fp32, whatever the weights are, and the decoder's sums are rounded."""
    model = in_half(model_of(case), torch.bfloat16, "cpu")
    expected, _ = expected_images(case, model)
    found = drawn(opened(case, "cpu", model), case, [0, 1, 2, 3]).uint8()
    difference = np.abs(found.astype(int) - expected.astype(int))
    # another code would change a token's pixels by a hundred and more
    assert difference.max() <= ROUNDED


@pytest.mark.parametrize("case", [*PRUNED, *BY_BRANCH], ids=str)
def test_a_block_is_one_graph_and_compiled_once_a_shape(case: Case) -> None:
    """A break would go back to Python in every block, and a graph a layer would soon exceed what may be compiled."""
    model, graphs = model_of(case), list[torch.fx.GraphModule]()
    plans = plan_scales(schedule_of(case, model.profile))
    steps = family_of(model.profile).fast_steps(model, plans, 1)
    compile_blocks(steps.steps, fullgraph=True, backend=kept_in(graphs))
    text = model.text.encode_prompts(PROMPTS[case.family][:1])
    with torch.inference_mode():
        rows = condition_rows(model.transformer, text.features, text.lengths, True)
        steps.run(*rows, image_noise(model.profile, SEEDS[:1]))
    calls = [call for plan in plans for layer in plan.layers for call in compiled_calls(plan, layer)]
    assert len(graphs) == len(set(calls)) < len(calls)


def kept_in(graphs: list[torch.fx.GraphModule]) -> Callable[..., Callable[..., object]]:
    """A backend that compiles nothing and keeps what it is given."""

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    return backend


def compiled_calls(plan: ScalePlan, layer: int) -> list[tuple[object, ...]]:
    """What a layer calls, by all that makes another graph of it."""
    attended = plan.kept[layer], plan.past[layer], plan.writes_entropy and layer == plan.entropy_layer
    if layer in plan.branch_layers or layer in plan.writes_branches:
        return [("attention", *attended), ("mlp", plan.kept[layer])]
    return [("whole", *attended)]


@torch.inference_mode()
@pytest.mark.parametrize("family", ["var", "hart"])
def test_scales_of_many_shapes_share_what_is_compiled(family: str) -> None:
    """Layers that keep a number of tokens each would take seconds each to compile; here four layers of two scales."""
    profile = small_var_profile(depth=4) if family == "var" else small_hart_profile({"depth": 4})
    model = load_model(profile, WeightOptions(weights="random"))
    rules = list(dense(profile).scales)
    for scale, kept in ((-2, (24, 7, 1, 20)), (-1, (50, 3, 1, 33))):
        tokens = TokenRule(kept=kept, score="entropy", fill="cache", cache_scale=len(rules) - 3)
        rules[scale] = replace(rules[scale], tokens=tokens)
    plans = plan_scales(replace(dense(profile), scales=tuple(rules)))
    steps, graphs = family_of(profile).fast_steps(model, plans, 1), list[torch.fx.GraphModule]()
    text = model.text.encode_prompts(PROMPTS[family][:1])
    given = *condition_rows(model.transformer, text.features, text.lengths, True), image_noise(profile, SEEDS[:1])
    expected = steps.run(*given)
    compile_blocks(steps.steps, fullgraph=True, backend=kept_in(graphs))
    assert torch.equal(steps.run(*given), expected)
    # one token is a shape of its own, and so is a layer whose entropy is read
    assert len(graphs) <= len(plans) + 4 < sum(shapes_of(plan) for plan in plans)
