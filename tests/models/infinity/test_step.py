"""Scale steps under schedules: what is removed is removed exactly, and nothing else changes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_model import PROMPTS, small_model, small_profile
from toprovar.models.infinity.blocks import Block
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.infinity.quantizer import bits_to_code
from toprovar.models.infinity.step import ScaleStep
from toprovar.models.noise import image_noise
from toprovar.models.resize import AreaResize, resize
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.geometry import budgets, templates
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.plan import ScalePlan, plan_scales
from toprovar.profiles.schedule import Schedule, TokenRule
from torch import Tensor
from torch.nn import functional as F

LAST = 6


def draw(
    schedule: Schedule, profile: ModelProfile | None = None, prompts: tuple[str, ...] = PROMPTS[:2], seed: int = 0
) -> tuple[Tensor, dict[int, dict[str, Tensor]]]:
    """Summed codes, and what every scale returned."""
    profile = profile or small_profile()
    model = small_model()
    features = model.text.encode_prompts(prompts)
    tokens = sum(h * w for h, w in profile.sizes)
    noise = torch.stack([torch.from_numpy(image_noise(seed + i, tokens, 16)) for i in range(len(prompts))])
    outputs: dict[int, dict[str, Tensor]] = {}

    def keep(plan: ScalePlan, out: dict[str, Tensor]) -> None:
        outputs[plan.scale] = dict(out)

    steps = build_steps(model.transformer, profile, schedule)
    return generate(steps, features.features, features.lengths, noise, on_scale=keep), outputs


def with_tokens(scale: int = LAST, **tokens: object) -> Schedule:
    base = dense(small_profile())
    rules = list(base.scales)
    rules[scale] = replace(rules[scale], tokens=TokenRule(**tokens))  # type: ignore[arg-type]
    return replace(base, scales=tuple(rules), entropy_layer=1)


def test_a_schedule_that_removes_nothing_equals_dense_bit_for_bit() -> None:
    whole, _ = draw(dense(small_profile()))
    for fill, cache in (("hold", None), ("bypass", None), ("cache", 4), ("branch", 4)):
        schedule = with_tokens(kept=(256, 256), fill=fill, cache_scale=cache)
        assert schedule.removes_nothing
        assert torch.equal(draw(schedule)[0], whole)


def test_requests_leave_no_state_behind() -> None:
    first, _ = draw(dense(small_profile()))
    draw(with_tokens(kept=(99, 99)), prompts=PROMPTS[2:4], seed=9)
    assert torch.equal(draw(dense(small_profile()))[0], first)


def test_skip_is_the_sum_before_the_skipped_scales() -> None:
    _, outputs = draw(dense(small_profile()))
    assert torch.equal(draw(baseline("skip-2", small_profile()))[0], outputs[LAST - 2]["summed"])


def test_dropped_guidance_equals_cfg_one_from_there_on() -> None:
    """Without unconditional rows the logits are the conditional ones: what cfg = 1 at those scales gives."""
    profile = small_profile().with_options(cfg=(3.0,) * 5 + (1.0,) * 2)
    expected, _ = draw(dense(profile), profile)
    ours, outputs = draw(baseline("noguide-2", small_profile()))
    assert torch.equal(ours, expected)
    assert outputs[5]["k.0"].shape[0] == 2
    assert outputs[4]["k.0"].shape[0] == 4


def test_guidance_can_be_dropped_after_a_skipped_layer() -> None:
    base = baseline("noguide-2", small_profile())
    rules = list(base.scales)
    rules[5] = replace(rules[5], skip_layers=(0,))
    summed, outputs = draw(replace(base, scales=tuple(rules)))
    assert "k.0" not in outputs[5]
    assert torch.isfinite(summed).all()


def test_skipped_layer_is_an_identity() -> None:
    model = small_model().transformer
    called: list[int] = []
    hooks = [b.register_forward_hook(lambda *_, i=i: called.append(i)) for i, b in enumerate(model.blocks())]
    base = dense(small_profile())
    rules = [replace(rule, skip_layers=(1,) if rule.scale == 3 else ()) for rule in base.scales]
    draw(replace(base, scales=tuple(rules)))
    for hook in hooks:
        hook.remove()
    assert called.count(0) == 7
    assert called.count(1) == 6


@pytest.mark.parametrize("score", ["entropy", "random"])
def test_held_tokens_add_nothing_and_kept_ones_are_the_sharpest(score: str) -> None:
    whole, before = draw(dense(small_profile()))
    schedule = with_tokens(kept=(100, 100), score=score)
    summed, outputs = draw(schedule)
    added = (summed - before[LAST - 1]["summed"]).flatten(2)
    silent = (added == 0).all(dim=1)
    assert silent.sum(dim=1).tolist() == [156, 156]
    if score == "entropy":
        entropy = resize(outputs[LAST - 1]["entropy"], (16, 16)).flatten(1)
        assert float(entropy[0][~silent[0]].max()) <= float(entropy[0][silent[0]].min())
    assert not torch.equal(summed, whole)


def test_bypassed_layer_leaves_other_tokens_alone() -> None:
    """With every layer bypassed, a pruned token's logits are those of its input embedding."""
    summed, _outputs = draw(with_tokens(kept=(100, 100), fill="bypass"))
    whole, before = draw(dense(small_profile()))
    assert ((summed - before[LAST - 1]["summed"]) != 0).all()
    assert not torch.equal(summed, whole)


def test_cached_update_is_the_enlarged_one_of_the_earlier_scale() -> None:
    """A token that a layer drops takes the bilinearly enlarged update of the cache scale."""
    model, schedule = small_model().transformer, with_tokens(kept=(100, 256), fill="cache", cache_scale=LAST - 1)
    streams: list[tuple[int, Tensor]] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args, i=i: streams.append((i, args[0])))
        for i, block in enumerate(model.blocks())
    ]
    _, outputs = draw(schedule)
    for hook in hooks:
        hook.remove()
    before, after = streams[-2][1], streams[-1][1]
    assert before.shape[1] == 100
    assert after.shape[1] == 256
    update = resize(outputs[LAST - 1]["delta.0"], (16, 16)).flatten(2).transpose(1, 2)
    dense_input = _embedding_before_block_0(schedule)
    pruned = ((after - dense_input - update).abs().amax(dim=-1) < 1e-5).sum(dim=1)
    assert pruned.tolist() == [156] * 4


def _embedding_before_block_0(schedule: Schedule) -> Tensor:
    seen: list[Tensor] = []
    hook = next(small_model().transformer.blocks()).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    draw(dense(small_profile()))
    hook.remove()
    return seen[-1]


@pytest.mark.parametrize("cfg", [3.0, 1.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_an_image_does_not_depend_on_its_batch(batch: int, cfg: float) -> None:
    profile = small_profile().with_options(cfg=cfg)
    together, _ = draw(dense(profile), profile, PROMPTS[:batch])
    for index in range(batch):
        alone, _ = draw(dense(profile), profile, PROMPTS[index : index + 1], seed=index)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("ratio", templates())
def test_every_aspect_ratio_runs(ratio: float) -> None:
    profile = replace(small_profile(), aspect_ratio=ratio)
    summed, _ = draw(dense(profile), profile, PROMPTS[:1])
    assert summed.shape[-2:] == profile.sizes[-1]
    assert torch.isfinite(summed).all()


def test_every_budget_extends_the_smaller_one() -> None:
    sizes = [replace(small_profile(), pixel_budget=budget).sizes for budget in budgets()]
    assert [len(s) for s in sizes] == [7, 10, 12, 13]
    assert all(longer[: len(shorter)] == shorter for shorter, longer in itertools.pairwise(sizes))


def test_half_bits_are_a_zero_code() -> None:
    assert torch.equal(bits_to_code(torch.full((1, 4, 16), 0.5), (2, 2), False), torch.zeros(1, 16, 2, 2))


BRANCHED = {"kept": (100, 256), "score": "distance", "fill": "branch", "cache_scale": LAST - 1}


def _branch_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Tensor, Tensor]]:
    """Name, layer, input and output of every branch that runs."""
    blocks, calls = list(small_model().transformer.blocks()), []
    for name in ("attention_branch", "cross_branch", "mlp_branch"):
        run = getattr(Block, name)

        def kept(self: Block, x: Tensor, *args: Any, name: str = name, run: Any = run) -> Any:
            out = run(self, x, *args)
            calls.append((name, blocks.index(self), x, out[0] if isinstance(out, tuple) else out))
            return out

        monkeypatch.setattr(Block, name, kept)
    return calls


def test_each_branch_runs_its_farthest_tokens_and_fills_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain recomputation: scores, sets and area windows written out, from the branches' recorded inputs and outputs."""
    calls = _branch_calls(monkeypatch)
    _, outputs = draw(with_tokens(**BRANCHED))
    source = {name: out for name, layer, _, out in calls[-12:-6] if layer == 0}
    last, behind = [call for call in calls[-6:] if call[1] == 0], next(x for _, layer, x, _ in calls[-6:] if layer == 1)
    x = _embedding_before_block_0(with_tokens(**BRANCHED))
    assert last[0][2].shape == (4, 100, 64)
    for name, _, part, out in last:
        distance = (x - x.mean(dim=1, keepdim=True)).pow(2).sum(dim=-1)
        kept = [sorted(row.tolist()) for row in distance.argsort(dim=-1, descending=True)[:, :100]]
        full = F.interpolate(source[name].transpose(1, 2).unflatten(-1, (12, 12)), size=(16, 16), mode="area")
        full = full.flatten(2).transpose(1, 2).clone()
        for row, tokens in enumerate(kept):
            torch.testing.assert_close(part[row], x[row, tokens], rtol=0, atol=1e-5)
            full[row, tokens] = out[row]
        x = x + full
    torch.testing.assert_close(behind, x, rtol=0, atol=1e-5)
    assert outputs[LAST - 1]["delta_mlp.0"].shape == (4, 64, 12, 12)
    assert "delta_mlp.1" not in outputs[LAST - 1]


def test_rows_choose_their_own_tokens() -> None:
    model, profile = small_model().transformer, small_profile()
    plan = plan_scales(with_tokens(**BRANCHED))[-1]
    x = torch.randn(4, plan.count, 64, generator=torch.Generator().manual_seed(0))
    step = ScaleStep(model, profile, plan)
    chosen = step._branch_tokens("mlp", 0, x, None, {})
    assert chosen is not None
    assert len({tuple(row.tolist()) for row in chosen.index}) == 4
    assert step._branch_tokens("mlp", 1, x, None, {}) is None


@pytest.mark.parametrize("score", ["entropy", "random"])
def test_other_scores_fill_branches_too(score: str) -> None:
    """One choice serves all branches; the map of the entropy is completed as with the other fills."""
    summed, outputs = draw(with_tokens(**{**BRANCHED, "score": score}))
    assert torch.isfinite(summed).all()
    assert "delta_cross.0" in outputs[LAST - 1]
    assert not torch.equal(summed, draw(dense(small_profile()))[0])


@pytest.mark.parametrize("cfg", [3.0, 1.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_fastvar_image_depends_on_prompt_and_seed_alone(batch: int, cfg: float) -> None:
    """Neither on its batch, nor on the image drawn before; with guidance and without."""
    profile = small_profile().with_options(cfg=cfg)
    schedule = baseline("fastvar", profile)
    together, _ = draw(schedule, profile, PROMPTS[:batch])
    for index in range(batch):
        alone, _ = draw(schedule, profile, PROMPTS[index : index + 1], seed=index)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-4)


@pytest.mark.parametrize("ratio", templates())
def test_fastvar_runs_at_every_aspect_ratio(ratio: float) -> None:
    profile = replace(small_profile(), aspect_ratio=ratio, pixel_budget="0.25M")
    summed, outputs = draw(baseline("fastvar", profile), profile, PROMPTS[:1])
    assert summed.shape[-2:] == profile.sizes[-1]
    assert torch.isfinite(summed).all()
    assert any(name.startswith("delta_") for out in outputs.values() for name in out)


def test_fastvar_with_dropped_guidance() -> None:
    """The cached outputs of the unconditional rows go with the rows."""
    base = baseline("fastvar", small_profile())
    pruned = next(rule.scale for rule in base.scales if rule.tokens is not None)
    rules = [replace(rule, guidance=rule.scale < pruned) for rule in base.scales]
    summed, outputs = draw(replace(base, scales=tuple(rules)))
    assert outputs[pruned - 1]["delta_mlp.0"].shape[0] == 4
    assert torch.isfinite(summed).all()


@pytest.mark.parametrize(("source", "target"), [((24, 24), (32, 32)), ((4, 5), (8, 10)), ((7, 3), (7, 9)), ((9, 5), (6, 6))])
def test_area_windows_are_adaptive_means(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *source, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(AreaResize(source, target, x)(x), F.interpolate(x, size=target, mode="area"), rtol=0, atol=1e-6)
