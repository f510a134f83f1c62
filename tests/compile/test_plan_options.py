"""Options of plans: each mistake is told at once, in one line that says what to do instead; what is written is whole."""

from __future__ import annotations

import argparse
import json
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hart_model import small_profile as small_hart
from small_model import small_profile, write_profile
from small_var import small_var_profile
from toprovar.compile import cli
from toprovar.compile.build_report import REPORT, earlier_plans, keep
from toprovar.compile.cli import main as build_engine
from toprovar.compile.plan_inputs import free_names, sizes
from toprovar.compile.plan_options import PlanOptions, check_limits, plan_options
from toprovar.compile.plan_record import Limits, PlanRecord
from toprovar.compile.tensorrt_flavours import FLAVOURS, check_version, numbers, target_sm, toolkit
from toprovar.compile.timing_cache import TimingCache, timing_cache_path, write_whole
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.decision import Decision, thresholds
from toprovar.profiles.errors import BundleError, ScheduleError
from toprovar.profiles.model import ModelProfile, load_profile
from toprovar.profiles.rules import Rung
from toprovar.profiles.schedule import TokenRule

REFUSED = [
    (["--target", "onnx", "--precision", "bf16"], "ONNX Runtime has no bf16 kernels"),
    (
        ["--target", "onnx", "--resume", "--opt-level", "5"],
        "--opt-level, --resume: only plans of tensorrt and tensorrt-rtx",
    ),
    (
        ["--target", "cuda", "--max-batch", "8"],
        "--max-batch: only plans of tensorrt and tensorrt-rtx have this",
    ),
    (["--target", "tensorrt-rtx", "--opt-level", "6"], "--opt-level 6: expected 0 to 5"),
    (["--target", "tensorrt-rtx", "--max-batch", "0"], "--max-batch 0: expected 1 to 64"),
    (["--target", "tensorrt-rtx", "--max-text", "99"], "gives at most 16 tokens"),
    (["--target", "tensorrt-rtx", "--sm", "90", "--dry-run"], "--sm 90: tensorrt-rtx has no such target"),
    (["--target", "tensorrt-rtx", "--workspace", "-1"], "--workspace -1: expected GiB above 0"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_refusals(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--policy", "dense", "--weights", "random", "--model", str(write_profile(tmp_path / "small.yaml"))]
    assert build_engine([*model, "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sm", [90, 100])
def test_rtx_has_no_data_centre_target(sm: int) -> None:
    with pytest.raises(BundleError, match=f"--sm {sm}: tensorrt-rtx has no such target.*80, 86, 89, 120.*--target tensorrt"):
        target_sm(FLAVOURS["tensorrt-rtx"], (80, sm))


def test_rtx_builds_for_all_common_gpus_unless_told() -> None:
    assert target_sm(FLAVOURS["tensorrt-rtx"], ()) == (80, 86, 89, 120)
    assert target_sm(FLAVOURS["tensorrt-rtx"], (89, 86, 89)) == (86, 89)


def test_tensorrt_builds_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    flavour = FLAVOURS["tensorrt"]
    monkeypatch.setattr("toprovar.compile.tensorrt_flavours._gpu", lambda: 90)
    assert target_sm(flavour, ()) == target_sm(flavour, (90,)) == (90,)
    with pytest.raises(BundleError, match=r"--sm 89: tensorrt builds for the GPU at hand only, sm_90"):
        target_sm(flavour, (89,))
    monkeypatch.setattr("toprovar.compile.tensorrt_flavours._gpu", lambda: 0)
    with pytest.raises(BundleError, match=r"torch sees no GPU; build on the GPU that will run it"):
        target_sm(flavour, ())


@pytest.mark.parametrize("version", ["10.12.0", "12.0.0"])
def test_unknown_tensorrt_is_refused(version: str) -> None:
    with pytest.raises(BundleError, match=rf"tensorrt {version}: expected 10\.13 or newer, below 12\.0"):
        check_version(FLAVOURS["tensorrt"], version)


@pytest.mark.parametrize("version", ["10.13.3.9.post1", "10.16.1.11", "11.4.0.106"])
def test_known_tensorrt_is_taken(version: str) -> None:
    check_version(FLAVOURS["tensorrt"], version)
    assert numbers("10.13.3.9.post1") == (10, 13, 3, 9)


def test_missing_library_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BundleError, match=r"tensorrt_rtx.*is not installed; run `pip install tensorrt-rtx-cu13`|does not load"):
        toolkit("tensorrt-rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", types.SimpleNamespace(__version__="2.3.0"))
    with pytest.raises(BundleError, match=r"tensorrt-rtx 2\.3\.0: expected 1\.1 or newer, below 2\.0"):
        toolkit("tensorrt-rtx")


def test_precisions_and_targets_are_checked_without_the_command_too() -> None:
    with pytest.raises(BundleError, match=r"--precision int8: expected one of fp32, fp16, bf16"):
        PlanOptions(target="tensorrt", precision="int8", max_text=8)
    with pytest.raises(BundleError, match="target 'cuda': expected one of tensorrt, tensorrt-rtx"):
        PlanOptions(target="cuda", max_text=8)


def test_free_dimensions() -> None:
    shape: tuple[int | str, ...] = ("2*batch", 8, "text")
    assert free_names(shape) == {"batch", "text"}
    assert sizes(shape, {"batch": 3, "text": 5}) == (6, 8, 5)
    limits = Limits(images=4, text=512, rows=2)
    assert limits.most() == {"batch": 8, "text": 512}
    assert limits.usual() == {"batch": 2, "text": 40}


def test_timing_cache_is_named_by_all_that_makes_it_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    found = {
        timing_cache_path("", "tensorrt", v, sm, k) for v in ("11.3", "11.4") for sm in (89, 90) for k in ("a" * 64, "b" * 64)
    }
    assert len(found) == 8
    assert Path("/cache/toprovar/timing_tensorrt_11.4_sm90_aaaaaaaaaaaa.cache") in found
    assert timing_cache_path("none", "tensorrt", "11.4", 90, "a") is None
    assert timing_cache_path("my.cache", "tensorrt", "11.4", 90, "a") == Path("my.cache")


def test_timing_cache_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    given: list[Any] = []
    config = types.SimpleNamespace(
        create_timing_cache=lambda data: None if data else "an empty one",
        set_timing_cache=lambda cache, ignore_mismatch: given.append(cache),
    )
    (tmp_path / "x.cache").write_bytes(b"of something else")
    TimingCache(tmp_path / "x.cache").load(config)
    assert given == ["an empty one"]


def test_timing_cache_goes_in_and_out(tmp_path: Path) -> None:
    class Config:
        given: list[Any] = []  # noqa: RUF012 - one test, one instance

        def create_timing_cache(self, data: bytes) -> bytes:
            return data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            self.given.append((cache, ignore_mismatch))
            return True

        def get_timing_cache(self) -> Any:
            return types.SimpleNamespace(serialize=lambda: b"timings")

    cache, config = TimingCache(tmp_path / "deep" / "x.cache"), Config()
    for _ in range(2):
        cache.load(config)
        cache.save(config)
    assert config.given == [(b"", False), (b"timings", False)]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.cache"]


def test_interrupted_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.plan"
    write_whole(path, b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"


RECORD = PlanRecord(key="a" * 64, bytes=6, seconds=1.0, layers=1, plugins=0, inputs={}, outputs={})


def test_plans_of_another_version_are_not_kept(tmp_path: Path) -> None:
    """A report with other fields is no reason to fail: those plans are built again."""
    bundle, kept = tmp_path / "engine", tmp_path / "kept"
    bundle.mkdir()
    for name in ("a.plan", "b.plan"):
        (bundle / name).write_bytes(b"a plan")
    ours, theirs = asdict(RECORD), {**asdict(RECORD), "key": "b" * 64, "surprise": 1}
    (bundle / REPORT).write_text(json.dumps({"plans": {"a.plan": ours, "b.plan": theirs}}))
    assert earlier_plans(bundle, kept) == {"a" * 64: kept / f"{'a' * 64}.plan"}


def test_plan_without_its_record_is_kept_anew(tmp_path: Path) -> None:
    """A copy that was interrupted is half a plan; it used to stand in the way of the whole one."""
    (tmp_path / "x.plan").write_bytes(b"a plan")
    half = tmp_path / "kept" / f"{RECORD.key}.plan"
    half.parent.mkdir()
    half.write_bytes(b"a p")
    assert earlier_plans(tmp_path / "engine", half.parent) == {}
    keep(half.parent, tmp_path / "x.plan", RECORD)
    assert half.read_bytes() == b"a plan"
    assert PlanRecord(**json.loads(half.with_suffix(".json").read_text())) == RECORD


@pytest.mark.parametrize(("target", "told"), [("onnx", "is as it was"), ("tensorrt", "--resume keeps the plans that are done")])
def test_interrupt_tells_how_to_go_on(
    target: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_build", interrupted)
    flags = ["--policy", "dense", "--weights", "random", "--target", target, "--out", str(tmp_path / "out")]
    assert build_engine(flags) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("build-engine: interrupted")
    assert last.endswith(told)


def test_dry_run_predicts_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the library: a prediction needs none."""
    model = ["--policy", "dense", "--weights", "random", "--model", str(write_profile(tmp_path / "small.yaml"))]
    assert build_engine([*model, "--target", "tensorrt", "--dry-run", "--max-batch", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{len(small_profile().sizes) + 3} plans of about" in text
    assert "up to 2 images and 16 text tokens" in text
    assert "once, fp16" in text


def test_a_choice_beyond_topk_is_refused_early() -> None:
    """Infinity-2B has 4096 tokens at its last scale; keeping 3900 of them fails in the parser, 3840 and all do not."""
    profile = load_profile("infinity-2b")
    for kept, refused in ((3840, False), (3900, True), (4096, False)):
        tokens = TokenRule(kept=(kept,) * profile.transformer.depth)
        base = dense(profile)
        schedule = replace(base, scales=(*base.scales[:-1], replace(base.scales[-1], tokens=tokens)))
        if not refused:
            check_limits(schedule, profile, "tensorrt")
            continue
        with pytest.raises(ScheduleError, match=r"scale 12 keeps 3900 of 4096 tokens by entropy; TopK .* at most 3840"):
            check_limits(schedule, profile, "tensorrt")


def test_a_choice_beyond_topk_is_found_in_every_rung() -> None:
    profile = load_profile("infinity-2b")
    base = dense(profile)
    kept = TokenRule(kept=(3900,) * profile.transformer.depth)
    rungs = (Rung(name="whole"), Rung(name="fewer", scales=(replace(base.scales[-1], tokens=kept),)))
    decision = Decision(scale=11, features="detail", view=4, models=(thresholds(0, (0.5,), ("whole", "fewer"), "detail"),))
    with pytest.raises(ScheduleError, match=r"scale 12 keeps 3900 of 4096 tokens by entropy; TopK of --target tensorrt-rtx"):
        check_limits(replace(base, rungs=rungs, decision=decision), profile, "tensorrt-rtx")
    check_limits(baseline("skipvar", profile), profile, "tensorrt-rtx")


def test_more_codes_than_topk_ranks_are_refused_early() -> None:
    """The released VAR draws out of 900 codes; of all 4096, with `top_p`, or of 3900 TensorRT cannot."""
    profile = load_profile("var-d16")
    for top_k, top_p, ranked in ((900, 0.95, 0), (0, 0.0, 0), (4096, 0.0, 0), (0, 0.95, 4096), (3900, 0.0, 3900)):
        changed = replace(profile, sampling=replace(profile.sampling, top_k=top_k, top_p=top_p))
        if not ranked:
            check_limits(dense(changed), changed, "tensorrt")
            continue
        with pytest.raises(ScheduleError, match=rf"var-d16 ranks {ranked} codes a token .*takes at most 3840"):
            check_limits(dense(changed), changed, "tensorrt")
    hart = load_profile("hart-0.7b")
    check_limits(dense(hart), hart, "tensorrt")


@pytest.mark.parametrize(("profile", "asked"), [(small_hart(), 3), (small_var_profile(), 0)], ids=["hart", "var"])
def test_text_of_a_fixed_length_is_built_whole(profile: ModelProfile, asked: int) -> None:
    given = argparse.Namespace(
        target="tensorrt-rtx", precision=None, sm=[89], opt_level=3, workspace=None, timing_cache="", resume=False, max_batch=2
    )
    tokens = profile.transformer.text_tokens
    for max_text in (None, tokens):
        found = plan_options(argparse.Namespace(**vars(given), max_text=max_text), profile)
        assert found is not None
        assert found.max_text == tokens
    with pytest.raises(BundleError, match=rf"--max-text {asked}: small-\w+ always reads {tokens} text tokens; leave it out"):
        plan_options(argparse.Namespace(**vars(given), max_text=asked), profile)
