"""Networks and stages work where there is nothing but PyTorch: a GPU machine without Ray."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "pydantic", "pyarrow", "yaml", "lpips", "typer", "rich"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
from qdmr_ray.nets import (NetworkSettings, SwinSettings)
from qdmr_ray.stages import (BaseSettings, Components, VQGANSettings, build_stage)

network = NetworkSettings(
    widths=(8, 16), codebook_size=8, code_dim=8, swin=SwinSettings(groups=1, blocks=1, heads=2)
)
settings = VQGANSettings(lpips=0, semantic=0)
vqgan = build_stage("vqgan", settings, Components(network=network)).to("cpu")
images = {name: torch.rand(1, 3, 16, 16) for name in ("source", "target", "ground_truth")}
vqgan.step(images)
components = Components(network=network, trained={"vqgan": vqgan.network})
losses = build_stage("base", BaseSettings(lpips=0), components).to("cpu").step(images)
print(sorted(losses)[-1])
"""


def test_stages_train_without_ray_and_pydantic() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "source/l1"
