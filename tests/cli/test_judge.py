"""``qdmr evaluate`` of what is no run."""

from __future__ import annotations

from pathlib import Path

from command_line import Command

from qdmr_ray.models.files import save_model
from qdmr_ray.nets import VQGAN, NetworkSettings
from qdmr_ray.storage import open_location


def test_evaluating_what_is_no_run(
    tmp_path: Path, model: Path, tiny_network: NetworkSettings, qdmr: Command
) -> None:
    """All of it is told before Ray starts, which takes seven seconds."""
    vqgan = tmp_path / "vqgan" / "final"
    save_model(open_location(vqgan), VQGAN(tiny_network), kind="vqgan", step=1, digest="")
    for words, reason in (
        ((tmp_path / "none",), "neither a run folder nor a trained model"),
        ((model,), "name the packed dataset with --data"),
        ((model, "--data", tmp_path), "no packed dataset"),
        ((vqgan, "--data", tmp_path), "VQGAN"),
    ):
        told = qdmr("evaluate", *words)
        assert told.code == 1
        assert reason in told.line
        assert str(words[0] if reason == "VQGAN" else words[-1]) in told.line
    assert not list(tmp_path.rglob("evaluation*"))
