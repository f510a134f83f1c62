"""The report: complete, self-contained, the same bytes twice, and its kept tokens those that the model keeps."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic_measurements import synthetic_measurements
from toprovar.calibrate.example_figures import kept_mask, layers_keeping, pruned_plans
from toprovar.calibrate.figures import kept_shares
from toprovar.calibrate.policy import toprovar_schedule
from toprovar.calibrate.report import write_report
from toprovar.calibrate.search.front_page import front_table
from toprovar.models.select import select_tokens
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.errors import MeasurementError, ScheduleError
from toprovar.profiles.model import load_profile
from toprovar.profiles.schedule import ScaleRule, TokenRule

PROMPTS = ('a <b>red</b> circle & a "star" $speedup', "two moons")
HEADINGS = (
    "The schedule",
    "Entropy by scale",
    "Layers",
    "Entropy over the image",
    "Kept tokens over the image",
    "Cost by scale",
)
CHARTS = 5  # schedule, rho, entropy, layers, FLOPs


@pytest.fixture(scope="module")
def tiny():
    return load_profile("tiny")


@pytest.fixture(scope="module")
def measurements(tiny):
    return synthetic_measurements(tiny, PROMPTS)


@pytest.fixture(scope="module")
def written(tiny, measurements, tmp_path_factory):
    """One report of a pruned schedule, as bytes."""
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(path, measurements, toprovar_schedule(measurements, tiny, 2.5), tiny)
    return path.read_bytes()


def pictures(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(d))) for d in re.findall(r"data:image/png;base64,([^\"]+)", page)]


def visible_text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]))


def test_is_one_complete_page_with_every_section(written):
    page = written.decode()
    assert page.startswith("<!DOCTYPE html>")
    assert page.rstrip().endswith("</html>")
    assert tuple(re.findall(r"<h2>(.*?)</h2>", page)) == HEADINGS
    assert len(written) < 3_000_000


def test_needs_no_network_and_no_other_file(written):
    page = written.decode()
    assert not re.search(r"https?://|<link|<script|@import|url\(", page)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)', page))


def test_figures_are_pictures_of_some_content(written):
    found = pictures(written.decode())
    assert len(found) == CHARTS + 2
    for picture in found:
        assert picture.format == "PNG"
        assert not picture.info.get("Software")
        assert picture.width <= 1400
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20


def test_prompts_are_escaped(written):
    page = written.decode()
    assert "a &lt;b&gt;red&lt;/b&gt; circle &amp; a &quot;star&quot; $speedup" in page
    assert "<b>red" not in page


def test_two_writes_give_the_same_bytes(written, tiny, measurements, tmp_path):
    write_report(tmp_path / "again.html", measurements, toprovar_schedule(measurements, tiny, 2.5), tiny)
    assert (tmp_path / "again.html").read_bytes() == written
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]


def test_header_and_table_state_the_schedule(written, tiny, measurements):
    text, schedule = visible_text(written.decode()), toprovar_schedule(measurements, tiny, 2.5)
    assert f"{schedule.provenance['flops_speedup']:.3f}×" in text
    for digest in (schedule.digest(), tiny.digest(), "ab" * 32):
        assert digest in text
    rules = [rule for rule in schedule.scales if rule.prunes_tokens]
    for rule in rules:
        assert f"{min(rule.tokens.kept)} to {max(rule.tokens.kept)}" in text
    # share of dense of the whole image
    assert re.search(r"all\s+2521\s+[\d.,]+\s+40\.0%", text)
    for gap in schedule.provenance["toprovar"]["gaps"].values():
        assert gap in text


@pytest.mark.parametrize("policy", ["dense", "skip-2", "noguide-3"])
def test_schedule_without_token_pruning_says_so(policy, tiny, measurements, tmp_path):
    write_report(tmp_path / "report.html", measurements, baseline(policy, tiny), tiny)
    page = (tmp_path / "report.html").read_text()
    assert "This schedule prunes no tokens" in page
    assert len(pictures(page)) == CHARTS + 1
    assert page.count("<td>not run</td>") == (2 if policy == "skip-2" else 0)


def test_measurements_without_examples_give_a_report_without_images(tiny, tmp_path):
    bare = synthetic_measurements(tiny)
    write_report(tmp_path / "report.html", bare, toprovar_schedule(bare, tiny, 1.5), tiny)
    page = (tmp_path / "report.html").read_text()
    assert page.count("hold no example images") == 2
    assert len(pictures(page)) == CHARTS


def test_other_ways_to_choose_tokens_are_told(tiny, measurements, tmp_path):
    """A held random set and skipped layers."""
    base = dense(tiny)
    rules = list(base.scales)
    rules[9] = replace(rules[9], tokens=TokenRule(kept=(100,) * 8, score="random"), skip_layers=(2, 3))
    write_report(tmp_path / "report.html", measurements, replace(base, scales=tuple(rules)), tiny)
    text = visible_text((tmp_path / "report.html").read_text())
    assert "fixed random set" in text
    assert "100 (10%)" in text
    assert "2, 3" in text


def test_reused_updates_and_what_the_flops_are_of_are_told(tiny, measurements, tmp_path):
    """A layer that adds an earlier update was told as one that runs."""
    rules = list(dense(tiny).scales)
    rules[9] = replace(rules[9], reuse_layers=(3,), skip_layers=(5,))
    write_report(tmp_path / "report.html", measurements, replace(dense(tiny), scales=tuple(rules)), tiny)
    text = visible_text((tmp_path / "report.html").read_text())
    assert "3 (update reused), 5" in text
    assert "transformer only, text of 40 tokens." in text


def test_a_front_names_every_change():
    """All tokens were told to be held where a layer reused its update, and reused guidance as none."""
    change = {"share": 1.0, "fill": "hold", "skipped_layers": [], "reused_layers": [0]}
    point = {"speedup": 2.0, "psnr_db": 30.0, "scales_run": 5, "scales_guided": 3, "guidance_reused": True}
    pruned = {**change, "share": 0.5, "fill": "cache", "skipped_layers": [1], "reused_layers": []}
    front = [{**point, "changes": {4: change}}, {**point, "guidance_reused": False, "changes": {3: pruned}}]
    heads, rows = front_table({"chosen": {"psnr_db": 30.0}, "front": front})
    assert heads == ("Speed-up", "PSNR, dB", "Scales", "Tokens and layers")
    assert rows == [
        (
            "2.00×",
            "30.0",
            "5 run, 3 with guidance, the others with its last difference",
            "scale 4: layers [0] add their update of an earlier scale",
        ),
        ("2.00×", "30.0", "5 run, 3 with guidance", "scale 3: 50% of the tokens (cache), without layers [1]"),
    ]


def test_wide_images_fit_too(tmp_path):
    wide = load_profile("tiny").with_options(aspect_ratio=0.5)
    measurements = synthetic_measurements(wide, PROMPTS)
    write_report(tmp_path / "report.html", measurements, toprovar_schedule(measurements, wide, 1.5), wide)
    assert len(pictures((tmp_path / "report.html").read_text())) == CHARTS + 2


def test_schedule_or_measurements_of_another_geometry_are_refused(tiny, measurements, tmp_path):
    wide = tiny.with_options(aspect_ratio=2.0)
    with pytest.raises(ScheduleError, match="made for scales"):
        write_report(tmp_path / "report.html", measurements, dense(tiny), wide)
    with pytest.raises(MeasurementError, match="not of model tiny at this geometry"):
        write_report(tmp_path / "report.html", measurements, dense(wide), wide)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("count", [1, 37, 99, 100])
def test_kept_mask_takes_the_tokens_that_the_model_takes(count):
    entropy = np.random.default_rng(5).uniform(1, 4, (6, 7)).astype(np.float32)
    mask = kept_mask(entropy, count, (10, 10))
    picked = select_tokens("entropy", count, (10, 10), 1, torch.from_numpy(entropy)[None, None], seed=0)[0]
    assert mask.shape == (10, 10)
    assert mask.sum() == count
    assert set(np.flatnonzero(mask)) == set(picked.tolist())


def test_kept_mask_keeps_the_lowest_entropy():
    """At equal size nothing is interpolated: the mask is a threshold."""
    entropy = np.random.default_rng(6).permutation(48).reshape(6, 8).astype(np.float32)
    np.testing.assert_array_equal(kept_mask(entropy, 13, (6, 8)), entropy < 13)


def test_layers_keeping_counts_layers(tiny, measurements):
    plan = pruned_plans(toprovar_schedule(measurements, tiny, 2.5))[-1]
    entropy = measurements.examples[f"entropy.0.{plan.entropy_from}"][plan.entropy_layer]
    share = layers_keeping(entropy, plan)
    assert share.shape == plan.size
    assert share.sum() == pytest.approx(sum(plan.kept) / len(plan.layers))


def test_kept_shares_are_zero_where_nothing_runs(tiny):
    rules = [ScaleRule(scale=r.scale, size=r.size, run=r.scale != 9) for r in dense(tiny).scales]
    rules[8] = replace(rules[8], tokens=TokenRule(kept=(144,) * 8), skip_layers=(1,))
    shares = kept_shares(replace(dense(tiny), scales=tuple(rules)))
    assert shares.shape == (8, 10)
    np.testing.assert_array_equal(shares[:, 9], 0)
    np.testing.assert_array_equal(shares[:, 8], [0.25, 0, *[0.25] * 6])
    np.testing.assert_array_equal(shares[:, :8], 1)
