"""VAR under schedules: what is removed is removed exactly, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_var import CLASSES, small_var, small_var_profile
from toprovar.models.family import build_steps, noise_of
from toprovar.models.generate import generate, image_noise
from toprovar.models.resize import resize
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.errors import ProfileError, PromptError
from toprovar.profiles.plan import ScalePlan
from toprovar.profiles.schedule import Schedule, TokenRule
from torch import Tensor

LAST = 5


def draw(
    schedule: Schedule, prompts: tuple[str, ...] = CLASSES[:2], seed: int = 0, shared: bool = False, **sampling: object
) -> tuple[Tensor, dict[int, dict[str, Tensor]]]:
    """Summed codes, and what every scale returned."""
    model = small_var(shared)
    profile = model.profile.with_options(**sampling)
    model = replace(model, profile=profile)
    text = model.text.encode_prompts(prompts)
    outputs: dict[int, dict[str, Tensor]] = {}

    def keep(plan: ScalePlan, out: dict[str, Tensor]) -> None:
        outputs[plan.scale] = dict(out)

    noise = image_noise(profile, [seed + i for i in range(len(prompts))])
    steps = build_steps(model, schedule)
    return generate(model.transformer, steps, text.features, text.lengths, noise, on_scale=keep), outputs


def with_tokens(scale: int = LAST, **tokens: object) -> Schedule:
    base = dense(small_var_profile())
    rules = list(base.scales)
    rules[scale] = replace(rules[scale], tokens=TokenRule(**tokens))  # type: ignore[arg-type]
    return replace(base, scales=tuple(rules), entropy_layer=1)


def test_a_schedule_that_removes_nothing_equals_dense_bit_for_bit() -> None:
    whole, _ = draw(dense(small_var_profile()))
    for fill, cache in (("hold", None), ("bypass", None), ("cache", 4), ("branch", 4)):
        schedule = with_tokens(kept=(64, 64), fill=fill, cache_scale=cache)
        assert schedule.removes_nothing
        assert torch.equal(draw(schedule)[0], whole)


def test_requests_leave_no_state_behind() -> None:
    first, _ = draw(dense(small_var_profile()))
    draw(with_tokens(kept=(20, 20)), prompts=CLASSES[2:4], seed=9)
    assert torch.equal(draw(dense(small_var_profile()))[0], first)


def test_skip_is_the_sum_before_the_skipped_scales() -> None:
    _, outputs = draw(dense(small_var_profile()))
    assert torch.equal(draw(baseline("skip-2", small_var_profile()))[0], outputs[LAST - 2]["summed"])


def test_a_scale_that_is_left_out_changes_no_other_scales_noise() -> None:
    profile = small_var_profile()
    alone = noise_of(profile, [5], 3)["noise"]
    assert alone.shape == (1, 16, 48)
    both = noise_of(profile, [4, 5], 3)["noise"]
    assert (both[1] == alone[0]).all()
    # Gumbel noise has mean 0.577 and variance pi^2 / 6
    assert abs(float(both.mean()) - 0.577) < 0.1
    assert abs(float(both.var()) - 1.645) < 0.3


def test_without_guidance_the_conditional_rows_are_the_same() -> None:
    unguided, outputs = draw(
        dense(replace(small_var_profile(), sampling=small_var_profile().sampling).with_options(cfg=0.0)), cfg=0.0
    )
    assert outputs[0]["k.0"].shape[0] == 2
    guided, outputs = draw(dense(small_var_profile()))
    assert outputs[0]["k.0"].shape[0] == 4
    # the first scale has a guidance of 0
    assert not torch.equal(unguided, guided)


def test_dropped_guidance_keeps_the_conditional_rows() -> None:
    summed, outputs = draw(baseline("noguide-2", small_var_profile()))
    _, whole = draw(dense(small_var_profile()))
    assert torch.equal(outputs[LAST - 2]["summed"], whole[LAST - 2]["summed"])
    assert outputs[LAST - 2]["k.0"].shape[0] == 4
    assert outputs[LAST - 1]["k.0"].shape[0] == 2
    assert torch.isfinite(summed).all()


def test_skipped_layer_is_an_identity() -> None:
    called: list[int] = []
    blocks = enumerate(small_var().transformer.layers())
    hooks = [block.register_forward_hook(lambda *_, i=i: called.append(i)) for i, block in blocks]
    base = dense(small_var_profile())
    rules = [replace(rule, skip_layers=(1,) if rule.scale == 3 else ()) for rule in base.scales]
    draw(replace(base, scales=tuple(rules)))
    for hook in hooks:
        hook.remove()
    assert (called.count(0), called.count(1)) == (6, 5)


@pytest.mark.parametrize("score", ["entropy", "random"])
def test_held_tokens_draw_nothing_and_kept_ones_are_the_sharpest(score: str) -> None:
    quantizer, seen = small_var().vae.quantize, list[Tensor]()
    residual = quantizer.residual
    quantizer.residual = lambda codes, *args: seen.append(codes) or residual(codes, *args)
    try:
        summed, outputs = draw(with_tokens(kept=(25, 25), score=score))
    finally:
        del quantizer.residual
    silent = (seen[-1] == 0).all(dim=-1)
    assert silent.sum(dim=1).tolist() == [39, 39]
    assert not (seen[-2] == 0).all(dim=-1).any()
    if score == "entropy":
        entropy = resize(outputs[LAST - 1]["entropy"], (8, 8)).flatten(1)
        assert float(entropy[0][~silent[0]].max()) <= float(entropy[0][silent[0]].min())
    assert not torch.equal(summed, draw(dense(small_var_profile()))[0])


@pytest.mark.parametrize("fill", ["bypass", "cache", "branch"])
def test_other_fills_draw_every_token(fill: str) -> None:
    cache = LAST - 1 if fill in ("cache", "branch") else None
    summed, outputs = draw(with_tokens(kept=(25, 64), fill=fill, cache_scale=cache))
    whole, before = draw(dense(small_var_profile()))
    assert not torch.equal(summed, whole)
    assert ((summed - before[LAST - 1]["summed"]) != 0).any(dim=1).all()
    names = {"cache": {"delta.0"}, "branch": {"delta_attention.0", "delta_mlp.0"}, "bypass": set()}[fill]
    assert {name for name in outputs[LAST - 1] if name.startswith("delta")} == names


@pytest.mark.parametrize("shared", [False, True], ids=["adaln", "shared"])
@pytest.mark.parametrize("cfg", [3.0, 0.0], ids=["guided", "unguided"])
def test_an_image_does_not_depend_on_its_batch(shared: bool, cfg: float) -> None:
    profile = small_var_profile(shared_modulation=shared).with_options(cfg=cfg)
    together, _ = draw(dense(profile), CLASSES, shared=shared, cfg=cfg)
    for index, prompt in enumerate(CLASSES):
        alone, _ = draw(dense(profile), (prompt,), seed=index, shared=shared, cfg=cfg)
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-4)


def test_soft_codes_need_their_own_noise() -> None:
    hard, _ = draw(dense(small_var_profile()))
    soft, _ = draw(dense(small_var_profile()), more_smooth=True)
    assert torch.isfinite(soft).all()
    assert not torch.equal(soft, hard)


def test_what_the_family_has_not_is_said_in_one_line() -> None:
    profile = small_var_profile()
    with pytest.raises(ProfileError, match="small-var has no tau; its sampling has cfg, top_k, top_p, more_smooth"):
        profile.with_options(tau=0.5)
    with pytest.raises(ProfileError, match="small-var draws 32 x 32 pixels only"):
        profile.with_options(aspect_ratio=2.0)
    with pytest.raises(ProfileError, match="the VQVAE has 4096 codes of 8 channels, the transformer 48 of 8"):
        replace(profile, vae=replace(profile.vae, vocabulary=4096))  # type: ignore[type-var]
    with pytest.raises(PromptError, match="prompt 'a dog' is no class; expected a number from 0 to 9"):
        small_var().text.encode_prompts(["a dog"])
