"""Rules that every test of this project is held to.

1. A WARNING or ERROR in the log that a test did not ask for fails that test. A test asks with the marker
   `@pytest.mark.expected_log("regular expression")`, or inside with the fixture of the same name.
2. In CI (the variable `CI` is set) a skipped test fails, unless it carries the marker `hardware`: what a machine
   lacks is to be installed by `make setup`, not passed over.
"""

import logging
import os
import re
from collections.abc import Callable, Generator
from typing import Literal

import pytest

pytest_plugins = ["tests.luns.fixtures"]

_PHASES: tuple[Literal["setup", "call", "teardown"], ...] = ("setup", "call", "teardown")
_ASKED_FOR = pytest.StashKey[list[str]]()


def _expected_patterns(item: pytest.Item) -> list[str]:
    marked = [pattern for marker in item.iter_markers("expected_log") for pattern in marker.args]
    return [*marked, *item.stash.get(_ASKED_FOR, [])]


@pytest.fixture
def expected_log(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with a regular expression: log records whose message matches may appear in this test."""
    asked_for: list[str] = request.node.stash.setdefault(_ASKED_FOR, [])
    return asked_for.append


@pytest.fixture(autouse=True)
def _no_unexpected_log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Generator[None]:
    yield
    patterns = _expected_patterns(request.node)
    unexpected = [
        f"{record.levelname} {record.name}: {record.getMessage()}"
        for phase in _PHASES
        for record in caplog.get_records(phase)
        if record.levelno >= logging.WARNING
        and not any(re.search(pattern, record.getMessage()) for pattern in patterns)
    ]
    if unexpected:
        pytest.fail("log records that the test did not ask for:\n" + "\n".join(unexpected), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    is_plain_skip = report.skipped and not hasattr(report, "wasxfail")
    if is_plain_skip and os.environ.get("CI") and item.get_closest_marker("hardware") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI without the `hardware` marker: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself whole (`importorskip`) counts as a skip too."""
    report = yield
    if report.outcome == "skipped" and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped itself in CI: {report.longrepr}"
    return report
