"""The public functions: importable in any order beside the packages of their names, and working."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

import qdmr_ray
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, NetworkSettings
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.storage import open_location

ROOT = Path(__file__).parents[1]


def python(code: str) -> str:
    """What a process of its own prints: in this one everything is imported already."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_itself_imports_nothing_heavy_and_names_its_functions() -> None:
    heavy = "[n for n in ('ray', 'torch', 'pydantic', 'numpy') if n in sys.modules]"
    assert python(f"import sys, qdmr_ray; print({heavy})") == "[]"
    assert set(qdmr_ray.__all__) == {
        *("load_experiment", "train", "load_sweep", "sweep", "evaluate", "restore", "compare")
    }
    for name in qdmr_ray.__all__:
        function = getattr(qdmr_ray, name)
        assert callable(function)
        assert inspect.signature(function).parameters
    with pytest.raises(AttributeError, match="tarin"):
        qdmr_ray.tarin  # noqa: B018


ORDERS = (
    # The package first, then the function, and the other way round.
    "import qdmr_ray.train.run; from qdmr_ray import train; assert callable(train)",
    "from qdmr_ray import train; import qdmr_ray.train.run as r; assert callable(train)",
    "import qdmr_ray; f = qdmr_ray.train; import qdmr_ray.train.run; "
    "assert f is qdmr_ray.train and qdmr_ray.train.run.train_run is not None",
    # A public function of a package stays importable from it.
    "from qdmr_ray import evaluate, restore; from qdmr_ray.evaluate import restore as one; "
    "import qdmr_ray.restore.restoration as r; assert callable(evaluate) and one is r.restore",
)
# Each order meets a package that nothing was imported from: a child of a process that has only
# the libraries, which take seconds.
TRY_ORDERS = f"""
import os, numpy, pyarrow, pydantic, ray.data, ray.train, ray.tune, torch, torchvision
for code in {ORDERS!r}:
    child = os.fork()
    if not child:
        exec(code, {{}})
        print(code, flush=True)
        os._exit(0)
    assert not os.waitpid(child, 0)[1], code
"""


@pytest.mark.slow
def test_functions_and_packages_of_one_name_work_in_any_order() -> None:
    assert python(TRY_ORDERS).splitlines() == list(ORDERS)


def test_a_callable_package_is_still_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    for copy in (
        pickle.loads(pickle.dumps(qdmr_ray.train)),
        cloudpickle.loads(cloudpickle.dumps(qdmr_ray.train)),
    ):
        assert copy is qdmr_ray.train
    assert inspect.ismodule(qdmr_ray.train)
    calls = []
    monkeypatch.setattr("qdmr_ray.train.run.train_run", lambda *_, **given: calls.append(given))
    experiment = qdmr_ray.load_experiment(str(ROOT / "experiments" / "demo.yaml"))
    qdmr_ray.train(experiment, storage=Path("there"), say=str)
    assert calls == [{"storage": "there", "stages": None, "store": None, "say": str}]


def test_restores_arrays_and_files(tmp_path: Path, tiny_network: NetworkSettings) -> None:
    model = tmp_path / "final"
    save_model(open_location(model), QDMR(tiny_network), kind="qdmr_base", step=1, digest="")
    image = np.random.default_rng(0).integers(0, 256, (13, 21, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)

    corrected = qdmr_ray.restore(image, model)
    files = [str(tmp_path / "a.png"), tmp_path / "none.png"]
    (failure,) = qdmr_ray.restore(files, model, out=tmp_path / "out")

    np.testing.assert_array_equal(read_image(tmp_path / "out" / "a.png"), corrected)
    assert "none.png" in failure.reason
    with pytest.raises(SettingsError, match="out="):
        qdmr_ray.restore(files, model)  # type: ignore[call-overload]


def test_compares_runs_and_evaluates_no_run(tmp_path: Path) -> None:
    rows = [
        {"name": f"{i}.png", "input": {"psnr": 20.0 + i}, "base": {"psnr": 21.5 + i}}
        for i in range(3)
    ]
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        content = {"images": 3, "input": {}, "stages": {"base": {}}, "per_image": rows}
        (tmp_path / run / "evaluation.json").write_text(json.dumps(content))
    runs = [tmp_path / "a", open_location(tmp_path / "b")]
    comparison = qdmr_ray.compare(runs, metrics=["psnr"], reference="a/base")
    assert comparison.rows["b/base"]["psnr"].statistics.mean == pytest.approx(22.5)
    assert comparison.rows["input"]["psnr"].p is not None
    with pytest.raises(QdmrError, match="neither a run folder nor a trained model"):
        qdmr_ray.evaluate(tmp_path / "none")
