"""Every test has a workspace of its own, one thread, and no network."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.battery_cures import CURES
from tests.two_processes import TwoProcesses

os.environ.setdefault("LIMBECK_PROGRESS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked as expensive too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # those that were named one by one are wanted
    if config.getoption("--all") or any("::" in arg for arg in config.args):
        return
    kept = [item for item in items if item.get_closest_marker("expensive") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure of the battery says what it most likely means."""
    report = yield
    name = getattr(item, "originalname", "")
    if report.failed and item.path.name == "test_battery.py" and name in CURES:
        report.sections.append(("Likely cause and cure", CURES[name]))
    return report


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Remembered teachers and experts, made once a session."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(autouse=True)
def _workspace(shared_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LIMBECK_WORKSPACE", str(shared_workspace))
    yield


@pytest.fixture(autouse=True)
def _figures_where_they_are_looked_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of a recipe writes a report, and drawing takes longer than many a run.

    Reports are drawn in full by their own tests and, once a method, by the battery; elsewhere a figure is an empty one.
    """
    folder, name = request.path.parent.name, request.path.stem
    if folder != "report" and name != "test_battery":
        empty = '<svg class="figure" viewBox="0 0 1 1" role="img"></svg>'
        monkeypatch.setattr("limbeck.report.figures.to_svg", lambda *given: empty)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoProcesses]:
    """A pair of processes, kept for all tests that ask for what two learn."""
    pair = TwoProcesses(tmp_path_factory.mktemp("two"))
    yield pair
    pair.close()
