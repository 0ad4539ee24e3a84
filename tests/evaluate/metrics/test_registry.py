"""The registry of metrics: one place for what is known of each."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

from qdmr_ray.config import experiment_from_dict
from qdmr_ray.evaluate.metrics.metric import MetricInfo
from qdmr_ray.evaluate.metrics.registry import METRICS, PRIMARY, metric_info, metrics_for


def test_what_is_known_of_each_metric() -> None:
    known = {
        name: (m.info.label, m.info.unit, m.info.better, m.info.digits, m.info.needs_truth)
        for name, m in METRICS.items()
    }
    assert known == {
        "psnr": ("PSNR", "dB", 1, 2, True),
        "ssim": ("SSIM", "", 1, 4, True),
        "lpips": ("LPIPS", "", -1, 4, True),
        "niqe": ("NIQE", "", -1, 3, False),
    }
    assert PRIMARY == "psnr"


def test_which_file_a_metric_compares_with_has_a_key_of_its_own() -> None:
    keys = [m.info.reference for m in METRICS.values() if m.info.reference]
    assert keys == ["lpips_weights", "niqe_parameters"]


def test_without_settings_psnr_and_ssim_are_measured_and_travel_to_workers() -> None:
    experiment = experiment_from_dict({"evaluation": {"border": 2, "luma": True}})
    metrics = pickle.loads(pickle.dumps(metrics_for(experiment)))
    assert [metric.info.name for metric in metrics] == ["psnr", "ssim"]
    a, b = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    inside = [image.copy() for image in (a, b)]
    for image in inside:
        image[:2] = image[-2:] = 0
        image[:, :2] = image[:, -2:] = 0
    for metric in metrics:
        measure = metric.open("cpu")
        assert measure(a, b) == measure(*inside)
        assert measure(a, a) == (math.inf if metric.info.name == "psnr" else pytest.approx(1.0))


def test_variants_read_as_their_metric_and_other_names_as_they_are() -> None:
    luma = metric_info("psnr_y")
    assert (luma.name, luma.label, luma.unit, luma.better) == ("psnr_y", "PSNR Y", "dB", 1)
    assert metric_info("lpips_vgg").label == "LPIPS vgg"
    assert metric_info("edge_sharpness") == MetricInfo(
        name="edge_sharpness", label="edge sharpness", better=0
    )


def test_values_as_text() -> None:
    psnr = metric_info("psnr")
    assert psnr.text(-1.2345, signed=True) == "−1.23"
    assert psnr.text(1.2345, signed=True) == "+1.23"
    assert (psnr.text(None), psnr.text(math.nan)) == ("n/a", "n/a")
    assert (psnr.text(math.inf), psnr.text(-math.inf)) == ("∞", "−∞")
    assert (psnr.full_label, psnr.direction) == ("PSNR dB", "higher is better")
    assert metric_info("lpips").direction == "lower is better"
    assert metric_info("other").direction == ""


def test_labels_need_no_pytorch() -> None:
    """A table or a page of stored results should not wait seconds for it."""
    code = (
        "import sys; import qdmr_ray.evaluate.metrics.registry; "
        "print(*{'torch', 'ray', 'skimage'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
