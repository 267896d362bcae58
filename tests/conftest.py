"""What every test gets: a home of its own, a clean environment, one thread. No test touches the checkout."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch: many threads on a busy machine are many times slower than one.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(_name, _value)
os.environ["OLLAMA_HOST"] = "127.0.0.1:9"  # nobody: no test talks to the developer's own Ollama
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do its children

from daemon.home import Home  # noqa: E402

LONG_FAULTS = "ENGRAMD_FAULTS_LONG"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The developer's own ENGRAMD_ variables must not change what a test sees."""
    for name in list(os.environ):
        if name.startswith("ENGRAMD_") and name != LONG_FAULTS:
            monkeypatch.delenv(name)
    yield


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home, not even with folders in it."""
    return Home(tmp_path / "home")


@pytest.fixture
def long_faults() -> bool:
    """Whether the fault tests run in their long form (`make faults`)."""
    return os.environ.get(LONG_FAULTS, "") not in ("", "0")


@pytest.fixture(scope="session")
def packages() -> None:
    """ssh, sshd and rsync are here, or the test is skipped."""
    from tests import elsewhere

    if reason := elsewhere.not_installed():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def packages_and_root(packages: None) -> None:
    """The same, and one may log in as root."""
    if os.geteuid() != 0:
        pytest.skip("one logs into a pod as root")


_LONG_ONES = ("systemd", "e2e", "faults", "contract")  # folders


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A gpu test is skipped where no CUDA driver is; looking for its device node needs no torch. Each of several
    workers begins with long tests, those that boot a machine all at one of them."""
    _deal(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    if Path("/dev/nvidiactl").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _deal(items: list[pytest.Item], workers: int) -> None:
    """Workers are given equal runs of the list, and take from each other's ends later."""
    long = {name: [one for one in items if one.path.parent.name == name] for name in _LONG_ONES}
    if workers == 1 or not all(long.values()):
        return
    rest = [one for one in items if one.path.parent.name not in long]
    dealt: list[pytest.Item] = []
    for number in range(workers):
        for name in _LONG_ONES[number::workers]:
            dealt += long[name]
        dealt += rest[len(rest) * number // workers : len(rest) * (number + 1) // workers]
    items[:] = dealt
