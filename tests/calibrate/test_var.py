"""Calibration of a class-conditional model: measured, scheduled and searched as any other."""

from __future__ import annotations

from pathlib import Path

from small_model import prompt_set
from small_var import CLASSES, small_var
from toprovar.calibrate.policy import toprovar_schedule
from toprovar.calibrate.report import write_report
from toprovar.calibrate.run import measure
from toprovar.calibrate.search.trials import Trials
from toprovar.profiles.baselines import baseline, dense
from toprovar.profiles.plan import schedule_flops


def test_measured_and_scheduled(tmp_path: Path) -> None:
    model = small_var()
    measurements = measure(model, prompt_set(CLASSES), 0, tmp_path, progress=False)
    assert measurements.sums["images"] == len(CLASSES)
    again = measure(model, prompt_set(CLASSES), 0, tmp_path / "again", progress=False)
    assert (tmp_path / "measurements.safetensors").read_bytes() == (tmp_path / "again/measurements.safetensors").read_bytes()
    assert again.header == measurements.header
    schedule = toprovar_schedule(measurements, model.profile, 1.8)
    speedup = schedule_flops(dense(model.profile), model.profile) / schedule_flops(schedule, model.profile)
    assert 1.7 < speedup < 1.9
    write_report(tmp_path / "report.html", measurements, schedule, model.profile)
    # a class has no text
    assert "dense model’s work; transformer only.</p>" in (tmp_path / "report.html").read_text()


def test_trials_see_what_a_schedule_costs() -> None:
    model = small_var()
    trials = Trials(model, [(CLASSES[0], 0), (CLASSES[1], 1)], "key")
    same, near, far = trials.measure(
        [dense(model.profile), baseline("noguide-1", model.profile), baseline("skip-3", model.profile)]
    )
    assert same.psnr_db == 99.0
    assert far.psnr_db < 99.0
    assert near.psnr_db > far.psnr_db
