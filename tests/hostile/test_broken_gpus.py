"""A broken GPU takes no photograph along, and a photograph that breaks kernels no GPU."""

import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import torch
from hostile.datasets import packed_noise
from hostile.limits import outcome
from local_ray import is_free, local_ray
from ray.exceptions import ActorDiedError, RayTaskError

import qdmr_ray.evaluate.evaluate as evaluate_module
import qdmr_ray.evaluate.pool as pool_module
from qdmr_ray.errors import QdmrError
from qdmr_ray.evaluate.pool import Pool, Spread
from qdmr_ray.evaluate.worker import Restorer
from qdmr_ray.models.files import save_model
from qdmr_ray.nets import QDMR, NetworkSettings
from qdmr_ray.restore.device import is_device_error
from qdmr_ray.storage import open_location

STICKY = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"
Row = dict[str, Any]
# What a worker does with a photograph on a GPU; it raises, or returns nothing.
Work = Callable[[int, int], None]


class Lost(BaseException):
    """Stands for the end of a worker's process."""


class Machine:
    """Ray's part in a pool, without processes: an actor gets the first GPU that is free."""

    def __init__(self, work: Work, opens: Callable[[int], None]) -> None:
        self.work, self.opens = work, opens
        self.held: list[int] = []
        self.gpu = -1
        self.util = self

    def restorer(self) -> Callable[[Row], Row]:
        self.opens(self.gpu)

        def judge(row: Row) -> Row:
            self.work(row["index"], self.gpu)
            return {**row, "judged": "{}", "failure": ""}

        return judge

    def remote(self, kind: type[pool_module.RestoringWorker]) -> Any:
        self.kind = kind
        return self

    def options(self, **_: Any) -> Any:
        return type("Remote", (), {"remote": partial(Actor, self)})

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> "Machine":
        return self

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        return {"GPU": [str(self.gpu)]}

    def get_node_ip_address(self) -> str:
        return "10.0.0.1"

    def kill(self, actor: "Actor") -> None:
        if not actor.ended:
            actor.ended = True
            self.held.remove(actor.gpu)

    def wait(self, references: list[Any], num_returns: int) -> Any:
        return references[:num_returns], references[num_returns:]

    def get(self, reference: Callable[[], Any]) -> Any:
        try:
            return reference()
        except Lost:
            raise ActorDiedError from None
        except Exception as error:
            raise RayTaskError("judge", "Traceback", error) from None


class Actor:
    def __init__(self, machine: Machine, make: Any) -> None:
        self.machine, self.ended = machine, False
        self.gpu = next(gpu for gpu in range(9) if gpu not in machine.held)
        machine.held.append(self.gpu)
        self.worker = machine.kind(make)

    def __getattr__(self, method: str) -> Any:
        def later(*arguments: Any) -> Any:
            self.machine.gpu = self.gpu
            return getattr(self.worker, method)(*arguments)

        return type("Method", (), {"remote": staticmethod(lambda *a: partial(later, *a))})


def broken(*gpus: int) -> Work:
    def work(index: int, gpu: int) -> None:
        if gpu in gpus:
            raise RuntimeError(STICKY)

    return work


def poison(*photographs: int) -> Work:
    def work(index: int, gpu: int) -> None:
        if index in photographs:
            raise RuntimeError(STICKY)

    return work


def deadly(*photographs: int) -> Work:
    def work(index: int, gpu: int) -> None:
        if index in photographs:
            raise Lost

    return work


def opens(*gpus: int, error: type[BaseException] = RuntimeError) -> Callable[[int], None]:
    def opening(gpu: int) -> None:
        if gpu in gpus:
            raise error(STICKY)

    return opening


def nothing(*_: int) -> None:
    pass


class Case(NamedTuple):
    """What goes wrong, and which photographs of eight fail, are missing, or whether all end."""

    work: Work = nothing
    opens: Callable[[int], None] = nothing
    gpus: int = 1
    failed: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    error: str = ""


CASES = {
    "nothing": Case(),
    "one of three GPUs": Case(broken(1), gpus=3),
    "two of three GPUs": Case(broken(0, 2), gpus=3),
    "the only GPU": Case(broken(0), error=r"8 photographs \(node 10\.0\.0\.1, GPU 0: CUDA"),
    "all three GPUs": Case(broken(0, 1, 2), gpus=3, error=r"GPU 0: .*; node .*GPU 1: .*GPU 2: "),
    "a GPU from the start": Case(opens=opens(1), gpus=3),
    "the only GPU from the start": Case(opens=opens(0), error=r"8 photographs .*GPU 0: "),
    "one photograph, one GPU": Case(poison(3), failed=(3,)),
    "one photograph, three GPUs": Case(poison(3), gpus=3, failed=(3,)),
    "the first photograph, two GPUs": Case(poison(0), gpus=2, failed=(0,)),
    "the last photograph": Case(poison(7), failed=(7,)),
    "two photographs apart": Case(poison(1, 5), gpus=3, failed=(1, 5)),
    "two photographs, one GPU": Case(poison(1, 5), failed=(1, 5)),
    "the first of all and the last": Case(poison(0, 7), gpus=2, failed=(0, 7)),
    "a photograph that ends processes": Case(deadly(2), gpus=2, missing=(2,)),
    "processes that end while they begin": Case(
        opens=opens(0, error=Lost), error="was lost 4 times while it was set up"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_photographs_of_a_broken_gpu_are_done_elsewhere(
    monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    machine = Machine(case.work, case.opens)
    monkeypatch.setattr(pool_module, "ray", machine)
    rows = [{"index": index, "name": str(index)} for index in range(8)]
    spread = Spread(workers=case.gpus, gpus=1.0, sharing=1)
    found: list[Row] = []

    def run() -> list[tuple[int, str]]:
        found.extend(Pool(machine.restorer, rows, spread).results())
        return [(row["index"], row["failure"]) for row in found]

    if case.error:
        with pytest.raises(QdmrError, match=case.error) as caught:
            run()
        assert str(caught.value).isprintable()
        assert "no worker is left" in str(caught.value)
        assert found == []
    else:
        results = run()
        failed = {index: reason for index, reason in results if reason}
        assert tuple(sorted(failed)) == case.failed
        assert all("GPU" in reason and "illegal memory" in reason for reason in failed.values())
        done = sorted(index for index, _ in results)
        assert done == [index for index in range(8) if index not in case.missing]
    assert machine.held == []


def test_a_broken_gpu_that_no_photograph_was_finished_on_gets_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def work(index: int, gpu: int) -> None:
        if gpu == 0:
            tried.append(index)
            raise RuntimeError(STICKY)

    machine = Machine(work, nothing)
    monkeypatch.setattr(pool_module, "ray", machine)
    rows = [{"index": index, "name": str(index)} for index in range(50)]
    spread = Spread(workers=2, gpus=1.0, sharing=1)
    found = list(Pool(machine.restorer, rows, spread).results())
    assert sorted(row["index"] for row in found) == list(range(50))
    assert len(tried) == len(set(tried)) == 2


ERRORS: dict[str, tuple[BaseException, bool]] = {
    "an AcceleratorError": (torch.AcceleratorError("an unknown text"), True),
    "illegal access": (RuntimeError(STICKY), True),
    "a device-side assert": (RuntimeError("CUDA error: device-side assert triggered"), True),
    "ECC": (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
    "a driver error": (RuntimeError("CUDA driver error: unknown error"), True),
    "no initialisation": (RuntimeError("CUDA unknown error - this may be due to …"), True),
    "no GPU": (RuntimeError("No CUDA GPUs are available"), True),
    "cuDNN": (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
    "cuBLAS": (RuntimeError("cublas: CUBLAS_STATUS_EXECUTION_FAILED"), True),
    "Triton": (RuntimeError("Triton Error [CUDA]: an illegal memory access"), True),
    "too little memory": (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), False),
    "too little memory, as a text": (RuntimeError("CUDA out of\nmemory"), False),
    "a shape": (RuntimeError("The size of tensor a (3) must match"), False),
    "a value that quotes it": (ValueError("CUDA error"), False),
    "a photograph of that name": (QdmrError("CUDA error.png: broken"), False),
    "no memory": (MemoryError(), False),
}


@pytest.mark.parametrize(("error", "expected"), ERRORS.values(), ids=ERRORS.keys())
def test_which_errors_are_the_device_s(error: BaseException, expected: bool) -> None:
    assert is_device_error(error) is expected


@pytest.mark.parametrize(("error", "expected"), ERRORS.values(), ids=ERRORS.keys())
def test_a_worker_reports_a_photograph_s_error_and_raises_its_device_s(
    error: Exception, expected: bool
) -> None:
    worker = Restorer.__new__(Restorer)

    class Reader:
        def read(self, *_: Any) -> None:
            raise error

    worker.reader = Reader()  # type: ignore[assignment]
    found = outcome(lambda: worker({"index": 0, "name": "x"})["failure"])
    assert (found.crash is not None) is expected, found
    assert bool(found.value) is not expected


class FirstFails:
    """Restores nothing; of two workers that which holds the file ``0`` has a broken GPU, in
    whichever process it works, and the other one's process ends once. Pickled by value, as this
    file isn't one of the workers'."""

    def __init__(self, folder: str) -> None:
        self.ended = Path(folder, "ended")
        for self.gpu in (0, 1):
            self.file = open(f"{folder}/{self.gpu}", "w")  # noqa: SIM115
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                continue

    def __call__(self, row: Row) -> Row:
        if self.gpu == 0:
            raise RuntimeError(STICKY)
        if row["index"] == 5 and not self.ended.exists():
            self.ended.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {**row, "judged": str(self.gpu), "failure": ""}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    with local_ray():
        yield


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_of_two_workers_the_one_that_always_fails_leaves(cluster: None, tmp_path: Path) -> None:
    rows = [{"index": index, "name": str(index)} for index in range(8)]
    spread = Spread(workers=2, gpus=0.0, sharing=2)
    found = list(Pool(partial(FirstFails, str(tmp_path)), rows, spread).results())
    # The process that ended was replaced, without the GPU of the worker that had left.
    assert sorted(row["index"] for row in found) == list(range(8))
    assert {row["judged"] for row in found} == {"1"}
    assert is_free()


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_where_no_worker_is_left_what_is_done_is_kept(
    cluster: None, tmp_path: Path, tiny_network: NetworkSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(Restorer):
        def __call__(self, row: Row) -> Row:
            if row["index"] >= 2:
                self.reader.read = _fail  # type: ignore[method-assign]
            return super().__call__(row)

    def _fail(*_: Any) -> Any:
        raise torch.AcceleratorError(STICKY)

    data = packed_noise(tmp_path, names=[f"photo{number}" for number in range(5)])
    model, out = open_location(tmp_path / "base" / "final"), tmp_path / "out"
    save_model(model, QDMR(tiny_network), kind="qdmr_base", step=1, digest="d")
    settings = {"data": str(data), "out": str(out), "overrides": ["evaluation.workers=1"]}
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "Restorer", Breaks)
        with pytest.raises(QdmrError, match=r"3 photographs \(node [\d.]+, CPU: .*illegal") as told:
            evaluate_module.evaluate_run(model, **settings)
    assert str(told.value).isprintable()
    assert not (out / "evaluation.json").exists()
    lines = (out / "evaluation" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines[1:]] == [0, 1]
    done: list[int] = []
    whole = evaluate_module.evaluate_run(model, **settings, progress=lambda n, _: done.append(n))
    assert (whole.failed, whole.images, done) == ((), 5, [3, 4, 5])
    assert is_free()
