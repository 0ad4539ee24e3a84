"""What tests share: networks of toy size, one tiny packed dataset, fixed seeds, one thread."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdmr_ray.data.demo import build_demo_data
from qdmr_ray.data.packing.pack import PackSettings, pack
from qdmr_ray.nets import DiscriminatorSettings, NetworkSettings, SwinSettings

if TYPE_CHECKING:
    from faulty_store import FaultyStore

pytest_plugins = ["run_fixtures"]

# Read in this process and those that it starts: no test scrapes what Prometheus would wait for.
os.environ.setdefault("QDMR_PATIENCE_EXPORT", "0.1")

# Height and width of the tiny dataset's photographs, in pixels.
TINY_FRAME = (64, 96)

# Read by Ray. Its processes get more time than usual to start, as other tests keep the CPUs busy;
# lost training workers are noticed sooner.
os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "180")
os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
# Each of these is one process more, which imports Ray for two seconds, in every training.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Each test has a core. Processes that it starts would otherwise take a thread for every core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray runs workers at nice 15, where they would wait for the tests beside theirs.
os.environ.setdefault("RAY_worker_niceness", "0")

# A shell's background jobs, and what they start, ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Whether the test that runs now has the mark ``ray``.
_may_start_ray = True
# Files whose tests use the Ray of ``local_ray.py``.
_sharing_ray: set[Path] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        default="0/1",
        metavar="K/N",
        help="of the long tests, those whose place in the list is K modulo N; none leaves all out",
    )


def _without_some_long_tests(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    share = config.getoption("--long")
    place, _, count = ("1/1" if share == "none" else share).partition("/")
    long = sorted(item.nodeid for item in items if item.get_closest_marker("long"))
    left_out = {name for i, name in enumerate(long) if i % int(count) != int(place)}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    return [item for item in items if item.nodeid not in left_out]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out long tests that weren't asked for. Puts the files that take longest first, since
    the last one runs alone, and those that share a Ray in a row."""
    items[:] = _without_some_long_tests(config, items)
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}
    with_browser = {item.path for item in items if item.get_closest_marker("browser")}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    _sharing_ray.update(item.path for item in items if _shares_ray(item))
    # Their Ray knows the store's address, and so is another one.
    with_store = {
        item.path
        for item in items
        if item.get_closest_marker("ray") and {"s3_endpoint", "faulty_store"} & {*item.fixturenames}
    }

    def turn(item: pytest.Item) -> tuple[bool, ...]:
        path = item.path
        shares = path in _sharing_ray
        dear = path not in with_browser, path not in slow
        return path not in with_ray, shares, path in with_store, *dear

    items.sort(key=turn)


def _shares_ray(item: pytest.Item) -> bool:
    """Whether the test's file, or a ``cluster`` fixture beside it, uses ``local_ray``."""
    if hasattr(item.module, "local_ray"):
        return True
    return "cluster" in item.fixturenames and not hasattr(item.module, "cluster")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ends the Ray of an earlier file where this one has no use for it."""
    global _may_start_ray
    _may_start_ray = item.get_closest_marker("ray") is not None
    if item.path not in _sharing_ray and (_may_start_ray or "local_ray" in sys.modules):
        # Imported late: it makes every start of Ray patient, and needs Ray.
        import local_ray

        local_ray.stop_local_ray()


def _refuse_ray(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: a test that starts Ray without the mark would slow down `make test-fast`."""
    if event == "subprocess.Popen" and not _may_start_ray:
        executable = str(arguments[0])
        if executable.endswith(("/gcs_server", "/raylet")):
            raise RuntimeError(f"a test without the mark `ray` starts {executable}")


sys.addaudithook(_refuse_ray)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Toy networks are too small to share between threads, and sums keep one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seed, and after each test one thread and denormal numbers again, whatever it has set."""
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def tiny_network() -> NetworkSettings:
    """One halving and windows of 4: images whose sides are multiples of 8 pixels."""
    return NetworkSettings(
        widths=(8, 16),
        residual_blocks=1,
        codebook_size=16,
        code_dim=8,
        swin=SwinSettings(groups=1, blocks=2, heads=2, window=4, mlp_ratio=2.0),
    )


@pytest.fixture(scope="session")
def tiny_discriminator() -> DiscriminatorSettings:
    return DiscriminatorSettings(width=4)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's photographs at TINY_FRAME, packed: source, target and test set. Read only."""
    folder = tmp_path_factory.mktemp("tiny")
    realab = build_demo_data(folder / "realab", frame=TINY_FRAME)
    pack(realab, str(folder / "packed"), settings=PackSettings())
    return folder / "packed"


@pytest.fixture
def faulty_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """A store that fails on demand, also for the processes that the test starts."""
    # Imported late: most tests have no use for a web server.
    from faulty_store import FaultyStore

    with FaultyStore() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    """Address of a simulated AWS (moto, over HTTP), which all tests of this process share."""
    # Imported late: most tests have no use for a web server.
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_endpoint(_moto: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a store with one empty bucket, ``lens``; processes that are started afterwards
    inherit address and credentials."""
    import boto3

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_ENDPOINT_URL", _moto),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    # What an earlier test has left there.
    urllib.request.urlopen(f"{_moto}/moto-api/reset", data=b"", timeout=60).close()
    boto3.client("s3", endpoint_url=_moto).create_bucket(Bucket="lens")
    return _moto
