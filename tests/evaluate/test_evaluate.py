"""Evaluations on a Ray of the tests' own: lost workers, lost drivers and broken photographs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from local_ray import is_free, local_ray

import qdmr_ray.evaluate.evaluate as evaluate_module
import qdmr_ray.evaluate.pool as pool_module
from qdmr_ray.cli.main import main
from qdmr_ray.cli.output import evaluation_notes
from qdmr_ray.config import EvaluationSettings, code_version
from qdmr_ray.data.format.index import set_index
from qdmr_ray.data.format.manifest import read_manifest
from qdmr_ray.data.format.reader import Record
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.errors import QdmrError, SettingsError
from qdmr_ray.evaluate import worker as restorer_module
from qdmr_ray.evaluate.compare import compare
from qdmr_ray.evaluate.evaluate import evaluate_run
from qdmr_ray.evaluate.journal import ResultsFile
from qdmr_ray.evaluate.metrics.lpips import LPIPS
from qdmr_ray.evaluate.metrics.pristine import GAUSSIAN_WINDOW, PristineModel, save_pristine
from qdmr_ray.evaluate.metrics.psnr import psnr
from qdmr_ray.evaluate.pool import spread_over
from qdmr_ray.evaluate.results import Evaluation, ImageValues, Judged
from qdmr_ray.evaluate.statistics import summarize
from qdmr_ray.evaluate.stored import read_evaluation
from qdmr_ray.evaluate.worker import EvaluationTask, Restorer
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, NetworkSettings
from qdmr_ray.photographs.decode import read_image, write_png
from qdmr_ray.storage import Location, open_location

IMAGES = 60
FRAME = (24, 40)
SETTINGS = EvaluationSettings(sheets=False)


@dataclass(frozen=True)
class Bench:
    """A tiny trained model and a packed test set."""

    model: Path
    data: Path

    def task(self, out: Path, **changes: Any) -> EvaluationTask:
        given = {"endpoint": None, "models": {}, "settings": SETTINGS, **changes}
        return EvaluationTask(data=str(self.data), out=str(out), **given)

    def evaluate(self, out: Path, **options: Any) -> dict[str, Any]:
        """What evaluation.json holds."""
        place = open_location(self.model)
        return evaluate_run(place, data=str(self.data), out=str(out), **options).to_dict()


def packed_noise(folder: Path, count: int, *, paired: bool = True) -> Path:
    """A dataset whose test set is ``count`` photographs of noise."""
    generator = np.random.default_rng(count)
    for kind in ("image", "truth")[: 1 + paired]:
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (*FRAME, 3), dtype=np.uint8)
            write_png(folder / kind / f"photo{number:03}.png", pixels)
    truth = {"test_ground_truth": "truth"} if paired else {}
    pack(folder, str(folder / "packed"), settings=PackSettings(test_images="image", **truth))
    return folder / "packed"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_network: NetworkSettings) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base" / "final"
    save_model(open_location(folder), QDMR(tiny_network), kind="qdmr_base", step=1, digest="d")
    return folder


@pytest.fixture(scope="module")
def bench(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(model, packed_noise(tmp_path_factory.mktemp("data"), IMAGES))


@pytest.fixture
def small(model: Path, tmp_path: Path) -> Bench:
    return Bench(model, packed_noise(tmp_path / "data", 5))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


def restoring_processes() -> list[int]:
    """The restoring actors of this process's own Ray: those of another are no descendants."""
    children: dict[int, list[int]] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The parent is the second field after the name, which stands in brackets.
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        waiting += below
        found += [pid for pid in below if "RestoringWorker" in titles[pid]]
    return found


def names_of(evaluation: dict[str, Any]) -> list[str]:
    return [row["name"] for row in evaluation["per_image"]]


def every_name(count: int) -> list[str]:
    return [f"photo{number:03}" for number in range(count)]


# -- with Ray --------------------------------------------------------------------------------------


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_two_workers_killed_on_the_way_lose_and_double_nothing(
    cluster: None, bench: Bench, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_at(done: int, total: int) -> None:
        assert total == IMAGES
        if done in (10, 30):
            victims = [pid for pid in restoring_processes() if pid not in killed]
            assert victims
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    evaluation = bench.evaluate(
        tmp_path, overrides=["evaluation.workers=2", "evaluation.sheets=false"], progress=kill_at
    )
    assert len(killed) == 2
    assert evaluation["failed"] == []
    assert evaluation["images"] == IMAGES
    assert names_of(evaluation) == every_name(IMAGES)
    lines = (tmp_path / "evaluation" / "results.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["name"] for line in lines[1:]) == every_name(IMAGES)
    assert evaluation == json.loads((tmp_path / "evaluation.json").read_text())


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_photograph_that_kills_its_worker_is_reported_and_the_rest_goes_on(
    cluster: None, small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Restorer):
        """Pickled by value, as a class inside a function is."""

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            if row["index"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(row)

    monkeypatch.setattr(evaluate_module, "Restorer", Killed)
    monkeypatch.setattr(pool_module, "RETRIES", 1)
    monkeypatch.setattr(evaluate_module, "RETRIES", 1)
    evaluation = small.evaluate(tmp_path / "out")
    assert names_of(evaluation) == [n for n in every_name(5) if n != "photo002"]
    (failure,) = evaluation["failed"]
    assert failure["name"] == "photo002"
    assert "its worker was lost 2 times" in failure["reason"]
    assert is_free(), "the worker that replaced the lost one keeps its CPU"


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_broken_photographs_are_named_and_the_command_fails(
    cluster: None,
    small: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = open_location(small.data)
    entry = read_manifest(place).set("test")
    record = set_index(place, entry)[3]
    shard = small.data / entry.shards[0].file
    whole = shard.read_bytes()
    pixels = bytearray(whole)
    pixels[record.image_offset + 5] ^= 1
    shard.write_bytes(pixels)
    out = tmp_path / "out"
    words = ["qdmr", "evaluate", str(small.model), "--data", str(small.data), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert "means over 4 test images" in told.out
    # By which `qdmr jobs fetch` finds it.
    assert told.out.startswith(f"run folder {out}\n")
    (line,) = [line for line in told.err.splitlines() if "photo003" in line]
    assert f"{shard.name}: wrong checksum" in line
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert names_of(evaluation) == [n for n in every_name(5) if n != "photo003"]
    assert [failure["name"] for failure in evaluation["failed"]] == ["photo003"]
    assert "wrong checksum" in evaluation["failed"][0]["reason"]
    # Mended, and evaluated again: only the failed one is missing.
    shard.write_bytes(whole)
    seen: list[int] = []
    mended = small.evaluate(out, progress=lambda done, _: seen.append(done))
    assert seen == [5]
    assert mended["failed"] == []
    assert names_of(mended) == every_name(5)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_an_evaluation_goes_on_after_its_driver_was_killed(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qdmr_ray.cli", "evaluate", str(bench.model)]
    command += ["--data", str(bench.data), "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "QDMR_VERBOSE")}
    # What the killed command leaves running finds out so soon that its Ray is gone.
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "10"
    results = out / "evaluation" / "results.jsonl"
    driver = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: results.exists() and len(results.read_text().splitlines()) > 5, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not (out / "evaluation.json").exists()
    kept = len(results.read_text().splitlines()) - 1
    # As a crash in the middle of a write leaves it.
    with results.open("a") as file:
        file.write('{"index": 99, "na')
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"means over {IMAGES} test images" in done.stdout
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert names_of(evaluation) == every_name(IMAGES)
    lines = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    assert len(lines) == IMAGES
    # What the killed evaluation had done was not done again: its pictures are older.
    marks = [(out / "evaluation" / r["name"] / "base.png").stat().st_mtime for r in lines]
    assert 5 <= kept < IMAGES
    assert max(marks[:kept]) < min(marks[kept + 2 :])


def wait_until(reached: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not reached():
        assert driver.poll() is None, "the evaluation ended before it could be killed"
        assert time.monotonic() < deadline, "nothing in four minutes"
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_damaged_model_is_one_line(
    cluster: None, small: Bench, tmp_path: Path, tiny_network: NetworkSettings
) -> None:
    folder = tmp_path / "base" / "final"
    save_model(open_location(folder), QDMR(tiny_network), kind="qdmr_base", step=1, digest="d")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(QdmrError, match="differs from its checksum") as caught:
        Bench(folder, small.data).evaluate(tmp_path / "out")
    assert "\n" not in str(caught.value)


# -- in this process -------------------------------------------------------------------------------


def test_workers_are_ended_when_an_error_leaves_the_evaluation(
    small: Bench, tmp_path: Path, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, ended = evaluate_module._judged, []

    def told(*arguments: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from judge(*arguments)
        finally:
            ended.append(list(in_process))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_module, "_judged", told)
    # The traceback, which ``caught`` holds, keeps every frame of the evaluation.
    with pytest.raises(KeyboardInterrupt) as caught:
        small.evaluate(tmp_path / "out", progress=stop)
    assert caught.value is not None
    assert ended == [[0]]


def test_what_evaluation_json_holds(small: Bench, tmp_path: Path, in_process: list[int]) -> None:
    evaluation = small.evaluate(tmp_path)
    assert evaluation == json.loads((tmp_path / "evaluation.json").read_text())
    assert list(evaluation["stages"]) == ["base"]
    values = []
    for row in evaluation["per_image"]:
        folder = tmp_path / "evaluation" / row["name"]
        truth = read_image(folder / "ground_truth.png")
        values.append(psnr(read_image(folder / "base.png"), truth))
        assert row["base"]["psnr"] == pytest.approx(values[-1])
        assert read_image(folder / "comparison.png").shape[1] > 1000
    assert evaluation["stages"]["base"]["psnr"] == pytest.approx(np.mean(values))
    statistics = evaluation["statistics"]["base"]["psnr"]
    assert statistics["mean"] == evaluation["stages"]["base"]["psnr"]
    assert statistics["median"] == pytest.approx(np.median(values))
    low, high = statistics["ci95"]
    assert min(values) <= low < statistics["mean"] < high <= max(values)
    assert statistics["n"] == 5
    assert list(evaluation["statistics"]) == ["input", "base"]
    assert evaluation["provenance"]["code_version"] == code_version()
    assert "niqe_parameters" not in evaluation
    assert "lpips_weights" not in evaluation
    assert evaluation["environment"] == {
        "qdmr_ray": code_version(),
        "torch": torch.__version__,
        "device": "CPU",
        "dtype": "float32",
    }


def test_an_interrupted_evaluation_goes_on(
    small: Bench, tmp_path: Path, in_process: list[int]
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small.evaluate(tmp_path, progress=stop)
    seen: list[int] = []
    evaluation = small.evaluate(tmp_path, progress=lambda done, _: seen.append(done))
    assert in_process == [0, 1, 2, 3, 4]
    assert seen == [3, 4, 5]
    assert names_of(evaluation) == every_name(5)
    # Finished: nothing is left to do, unless a picture is gone.
    (tmp_path / "evaluation" / "photo001" / "base.png").unlink()
    assert small.evaluate(tmp_path) == evaluation
    assert in_process[5:] == [1]


@pytest.mark.parametrize("change", ["border", "model", "data"])
def test_other_settings_models_and_data_start_anew(
    small: Bench,
    tmp_path: Path,
    in_process: list[int],
    change: str,
    tiny_network: NetworkSettings,
) -> None:
    out = tmp_path / "out"
    # Elsewhere, so that it is changed for this test alone.
    own = Bench(tmp_path / "base" / "final", small.data)
    save_model(open_location(own.model), QDMR(tiny_network), kind="qdmr_base", step=1, digest="d")
    before = own.evaluate(out)
    in_process.clear()
    overrides = []
    if change == "border":
        overrides = ["evaluation.border=2"]
    elif change == "model":
        network = QDMR(tiny_network)
        save_model(open_location(own.model), network, kind="qdmr_base", step=1, digest="d")
    else:
        own = Bench(own.model, packed_noise(tmp_path / "other", 4))
    after = own.evaluate(out, overrides=overrides)
    assert len(in_process) == (4 if change == "data" else 5)
    assert after["provenance"]["digest"] != before["provenance"]["digest"]
    assert after["stages"] != before["stages"]


def test_how_it_is_spread_changes_no_result(
    small: Bench, tmp_path: Path, in_process: list[int]
) -> None:
    before = small.evaluate(tmp_path)
    in_process.clear()
    after = small.evaluate(tmp_path, overrides=["evaluation.workers=3", "evaluation.sheets=false"])
    assert in_process == []
    assert after == before


def node(cpus: float, gpus: float = 0, *, alive: bool = True, name: str = "here") -> dict[str, Any]:
    """As Ray lists a node; what it hasn't is not named."""
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return {"Alive": alive, "Resources": resources if cpus else {}, "NodeID": name}


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([node(64, 8)], None, (8, 1.0, 8)),
        ([node(4), node(64, 8), node(64, 8)], None, (16, 1.0, 8)),
        ([node(16), node(16), node(16, alive=False)], None, (2, 0.0, 1)),
        ([node(0), node(16)], None, (1, 0.0, 1)),
        ([], None, (1, 0.0, 1)),
        ([node(64, 8)], 1, (1, 1.0, 1)),
        ([node(16), node(16)], 3, (3, 0.0, 2)),
        ([node(16, 1)], 3, (3, 1 / 3, 3)),
        ([node(64, 8)] * 4, None, (20, 1.0, 5)),
    ],
)
def test_every_gpu_or_else_every_node_has_a_worker(
    nodes: list[dict[str, Any]], workers: int | None, expected: tuple[int, float, int]
) -> None:
    found = spread_over(nodes, workers, photographs=20)
    assert (found.workers, found.gpus, found.sharing) == expected


def test_threads_are_the_nodes_as_ray_counts_them(
    small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        get_node_id = staticmethod(lambda: "here")

    threads: list[int] = []
    monkeypatch.setattr(restorer_module.torch, "set_num_threads", threads.append)
    monkeypatch.setattr(restorer_module.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(restorer_module.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(restorer_module.ray, "get_runtime_context", Here)
    # A container with 16 CPUs of the machine's 64, beside another one.
    nodes = [node(4, name="elsewhere"), node(16)]
    monkeypatch.setattr(restorer_module.ray, "nodes", lambda: nodes)
    for sharing in (1, 3, 40):
        Restorer(small.task(tmp_path, sharing=sharing))
    assert threads == [16, 5, 1]


def test_a_failing_restoration_is_reported(
    small: Bench, tmp_path: Path, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = restorer_module.restore
    calls: list[int] = []

    def restore(image: np.ndarray, model: Any, **_: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("CUDA out of\nmemory")
        return real(image, model)

    monkeypatch.setattr(restorer_module, "restore", restore)
    evaluation = small.evaluate(tmp_path)
    assert evaluation["failed"] == [
        {"name": "photo003", "reason": "RuntimeError: CUDA out of memory"}
    ]
    assert evaluation["images"] == 4


def test_one_metric_that_says_nothing_of_a_photograph_is_left_out_alone(
    model: Path, tmp_path: Path, in_process: list[int]
) -> None:
    """Of 24 x 40 pixels NIQE can say nothing; of 8 x 8 SSIM neither."""
    folder = tmp_path / "data"
    for kind in ("image", "truth"):
        (folder / kind).mkdir(parents=True)
        for name, (height, width) in {
            "large": (192, 96),
            "small": (24, 40),
            "tiny": (8, 8),
        }.items():
            pixels = np.random.default_rng(ord(kind[0])).integers(
                0, 256, (height, width, 3), np.uint8
            )
            write_png(folder / kind / f"{name}.png", pixels)
    settings = PackSettings(test_images="image", test_ground_truth="truth")
    pack(folder, str(folder / "packed"), settings=settings)
    pristine = tmp_path / "own.npz"
    save_pristine(pristine, PristineModel(np.zeros(36), np.eye(36), GAUSSIAN_WINDOW, "nowhere"))
    out = tmp_path / "out"
    evaluation = Bench(model, folder / "packed").evaluate(
        out, overrides=[f"evaluation.niqe={pristine}"]
    )
    assert evaluation["failed"] == []
    assert evaluation["images"] == 3
    known = {row["name"]: set(row["base"]) for row in evaluation["per_image"]}
    assert known == {"large": {"psnr", "ssim", "niqe"}, "small": {"psnr", "ssim"}, "tiny": {"psnr"}}
    counts = {metric: f["n"] for metric, f in evaluation["statistics"]["base"].items()}
    assert counts == {"psnr": 3, "ssim": 2, "niqe": 1}
    left_out = [(row["name"], row["metric"]) for row in evaluation["left_out"]]
    assert left_out == [("small", "niqe"), ("tiny", "ssim"), ("tiny", "niqe")]
    assert "NIQE needs 2 blocks of 96x96" in evaluation["left_out"][0]["reason"]
    assert read_image(out / "evaluation" / "tiny" / "base.png").shape == (8, 8, 3)
    # What can't be measured is no reason to measure it again.
    in_process.clear()
    assert (
        Bench(model, folder / "packed").evaluate(out, overrides=[f"evaluation.niqe={pristine}"])
        == evaluation
    )
    assert in_process == []


def test_an_identical_pair_counts_neither_here_nor_in_a_comparison(tmp_path: Path) -> None:
    known: dict[str, ImageValues] = {
        "a": {"input": {"psnr": 20.0}, "base": {"psnr": None}},
        "b": {"input": {"psnr": 22.0}, "base": {"psnr": 25.0}},
        "c": {"input": {"psnr": 24.0}, "base": {"psnr": 28.0}},
    }
    rows = [Judged(index=i, name=n, values=v) for i, (n, v) in enumerate(known.items())]
    evaluation = summarize(rows, ["base"]).to_dict()
    assert evaluation["input"] == {"psnr": 23.0}
    assert evaluation["stages"]["base"] == {"psnr": 26.5}
    assert evaluation["statistics"]["input"]["psnr"]["n"] == 2
    assert evaluation["statistics"]["base"]["psnr"]["ci95"] is not None
    assert evaluation["per_image"][0]["base"]["psnr"] is None
    (left_out,) = evaluation["left_out"]
    assert left_out["name"] == "a"
    assert "identical" in left_out["reason"]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    rows_of_table = compare([read_evaluation(open_location(tmp_path))]).rows
    for name, stage in (("input", "input"), (f"{tmp_path.name}/base", "base")):
        cell, statistics = rows_of_table[name]["psnr"], evaluation["statistics"][stage]["psnr"]
        assert cell.statistics.model_dump(mode="json") == statistics


def test_settings_of_an_evaluation(small: Bench, tmp_path: Path) -> None:
    """Refused before anything starts; without Ray, which none of these needs."""
    for override, error, reason in (
        ("seed=4", SettingsError, "takes only settings of evaluation and weights"),
        ("evaluation.bordr=4", SettingsError, r"did you mean evaluation\.border"),
        ("evaluation.lpips=true", QdmrError, "LPIPS-alex needs"),
        ("evaluation.niqe=pristine.npz", QdmrError, r"evaluation\.niqe=pristine\.npz: .*no file"),
    ):
        overrides = [override]
        if "lpips" in override:
            overrides.append(f"weights.alexnet={tmp_path / 'none.pth'}")
        with pytest.raises(error, match=reason):
            small.evaluate(tmp_path / "out", overrides=overrides)
    assert not (tmp_path / "out").exists()


def test_niqe_without_ground_truth(
    model: Path, tmp_path: Path, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import qdmr_ray.evaluate.metrics.niqe as niqe_module

    class Pristine:
        source = "photographs of the house"

    monkeypatch.setattr(niqe_module, "load_pristine", lambda path: Pristine())
    monkeypatch.setattr(
        niqe_module, "niqe", lambda image, model, border=0: float(image.mean()) + border
    )
    monkeypatch.chdir(tmp_path)
    Path("own.npz").write_bytes(b"parameters")
    unpaired = Bench(model, packed_noise(tmp_path / "data", 3, paired=False))
    overrides = ["evaluation.niqe=own.npz", "evaluation.border=1"]
    evaluation = unpaired.evaluate(tmp_path / "out", overrides=overrides)
    assert evaluation["niqe_parameters"] == (
        "own.npz, sha256 f528212a496dc7a0e9a57c129b561aa4609364d70f886c09d668e00797521eb5"
        ": photographs of the house"
    )
    for row in evaluation["per_image"]:
        folder = tmp_path / "out" / "evaluation" / row["name"]
        assert row["input"] == {"niqe": read_image(folder / "input.png").mean() + 1}
        assert not (folder / "ground_truth.png").exists()
        assert (folder / "comparison.png").exists()
    assert set(evaluation["stages"]["base"]) == {"niqe"}


def test_lpips_is_computed_where_the_models_are_and_says_with_which_weights(
    small: Bench, tmp_path: Path, in_process: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distance(torch.nn.Module):
        seen: ClassVar[list[str]] = []

        def to(self, device: str) -> Distance:  # type: ignore[override]
            self.seen.append(device)
            return self

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            self.seen.append(str(a.device))
            assert a.device == b.device
            return torch.tensor([0.25])

    monkeypatch.setattr("qdmr_ray.nets.lpips.build_lpips", lambda *_: Distance())
    digests = []
    for content in (b"one", b"another"):
        weights = tmp_path / "alexnet.pth"
        weights.write_bytes(content)
        evaluation = small.evaluate(
            tmp_path / "out",
            overrides=["evaluation.lpips=true", f"weights.alexnet={weights}"],
        )
        named = f"alexnet.pth, sha256 {hashlib.sha256(content).hexdigest()}"
        assert evaluation["lpips_weights"] == evaluation["provenance"]["lpips_weights"] == named
        assert f"LPIPS with {named}" in evaluation_notes(Evaluation.from_dict(evaluation, ""))
        digests.append(evaluation["provenance"]["digest"])
    assert digests[0] != digests[1]
    assert set(Distance.seen) == {"cpu"}
    # On "meta" every model can be, where there is no GPU.
    measure = LPIPS(weights=None, reference="").open("meta")
    measure(*np.zeros((2, 32, 32, 3), np.uint8))
    assert Distance.seen[-1] == "meta"


def test_results_in_a_store_are_written_together(
    small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object can't be appended to: within ten seconds it is written once, and at the end."""
    writes: list[bytes] = []
    place = open_location(tmp_path / "results.jsonl")
    monkeypatch.setattr(
        Location, "write_bytes_atomic", lambda self, data: writes.append(bytes(data))
    )
    monkeypatch.setattr(Location, "local_path", None)
    monkeypatch.setattr(Location, "exists", lambda self: bool(writes))
    monkeypatch.setattr(Location, "read_bytes", lambda self: writes[-1])
    results = ResultsFile(place, "digest")
    for index in range(50):
        results.add(Judged(index=index, name=f"{index}", values={}))
    results.add(Judged(index=7, name="again", values={}))
    assert len(writes) == 1
    results.flush()
    assert ResultsFile(place, "digest").rows == results.rows
    assert [row.name for row in results.rows.values()] == [str(i) for i in range(50)]
    assert ResultsFile(place, "another").rows == {}


def test_a_worker_reports_instead_of_raising(small: Bench, tmp_path: Path) -> None:
    worker = Restorer(small.task(tmp_path / "out"))
    assert worker({"index": 0, "name": "x"})["failure"] == ""

    def broken(set_name: str, index: int) -> Record:
        raise MemoryError

    worker.reader.read = broken  # type: ignore[method-assign]
    assert worker({"index": 0, "name": "x"})["failure"] == "MemoryError: no message"
