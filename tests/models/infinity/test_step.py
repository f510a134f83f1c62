"""Scale steps under schedules: what is removed is removed exactly, and nothing else changes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from small_model import PROMPTS, small_model, small_profile
from toprovar.models.infinity.generate import build_steps, generate
from toprovar.models.infinity.quantizer import bits_to_code, resize
from toprovar.models.noise import image_noise
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.geometry import budgets, templates
from toprovar.profiles.model import ModelProfile
from toprovar.profiles.plan import ScalePlan
from toprovar.profiles.schedule import Schedule, TokenRule
from torch import Tensor

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
    for fill, cache in (("hold", None), ("bypass", None), ("cache", 4)):
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
