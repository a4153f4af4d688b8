"""What each method's tests cost, in CPU seconds: ``python -m tests.seconds [NAME ...] [-- what pytest is told]``.

The battery, the method's own tests, its recorded vectors and the rows of other tests that bear its name, one after
another in one process; imports and the start of the pair of processes are not counted, the pair's work is.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import CARDS, NAMES
from tests.two_processes import TwoProcesses

WHERE = ["tests/test_battery.py", "tests/methods", "tests/golden", "tests/recipe", "tests/export/test_every_recipe.py"]
COLUMNS = ("battery", "own", "vectors", "recipe")
STEMS = {card.slug.replace("-", "_"): card.slug for card in CARDS.values()}
CLOCK: Clock
TICK = os.sysconf("SC_CLK_TCK")


def spent() -> float:
    """CPU seconds of this process and of all that it has started, as far as /proc shows those that still run."""
    total, parents = sum(os.times()[:4]), {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # over by now
            continue
        parents[int(entry.parent.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / TICK)
    mine = {os.getpid()}
    while more := {pid for pid, (parent, _) in parents.items() if parent in mine} - mine:
        mine |= more
    return total + sum(parents[pid][1] for pid in mine - {os.getpid()} if pid in parents)


class Clock:
    """A plugin that keeps the tests of some methods and measures each."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.mark = set(names), 0.0
        self.by: dict[str, Counter[str]] = defaultdict(Counter)
        self.tests: Counter[str] = Counter()

    def method(self, item: pytest.Item) -> tuple[str, str] | None:
        """The method (its paper's slug, where the paper has several) and the column of a test."""
        stem, params = Path(item.path).stem.removeprefix("test_"), getattr(item, "callspec", None)
        given = dict(params.params) if params is not None else {}
        if stem == "battery":
            return CARDS[given["name"]].slug, "battery"
        if "methods" in Path(item.path).parts and stem in STEMS:
            return STEMS[stem], "own"
        if given.get("slug") in STEMS.values():
            return given["slug"], "vectors"
        if given.get("name") in CARDS:
            return CARDS[given["name"]].slug, "recipe"
        return None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what belongs to none of the methods."""
        items[:] = [i for i in items if (found := self.method(i)) is not None and found[0] in self.names]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Charge a test, its fixtures included, to its method."""
        self.mark = spent()
        result = yield
        found, cost = self.method(item), spent() - self.mark
        assert found is not None
        self.by[found[0]][found[1]] += cost
        self.tests[item.nodeid] += cost
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table, the dearest method first, and the dearest tests."""
        say = terminalreporter.write_line
        say(f"{'CPU seconds':32}" + "".join(f"{c:>9}" for c in ("all", *COLUMNS)))
        for name, row in sorted(self.by.items(), key=lambda kv: -kv[1].total()):
            say(f"{name:32}{row.total():9.1f}" + "".join(f"{row[c]:9.1f}" for c in COLUMNS))
        say(f"{'together':32}{self.tests.total():9.1f}")
        for test, cost in self.tests.most_common(25):
            say(f"{cost:7.2f}  {test}")


@pytest.fixture(scope="session", autouse=True)
def _warm(two_processes: TwoProcesses) -> None:
    """Import everything and start the pair before the first test is measured."""
    import limbeck.api
    import limbeck.cli  # noqa: F401

    two_processes.state("kd")
    CLOCK.mark = spent()


if __name__ == "__main__":
    words, _, told = " ".join(sys.argv[1:]).partition("--")
    unknown = [w for w in words.split() if w not in NAMES and w not in STEMS.values()]
    if unknown:
        sys.exit(f"no such method: {', '.join(unknown)}")
    asked = [CARDS[w].slug if w in CARDS else w for w in words.split()] or list(STEMS.values())
    CLOCK = Clock(asked)
    sys.exit(pytest.main(["-q", *told.split(), *WHERE], plugins=[CLOCK, sys.modules[__name__]]))
