"""The rules that tests/conftest.py lays on every test hold, seen from outside; and so does `make setup`'s quickness."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS = 60
SETUP_AGAIN_SECONDS = 5.0

EXAMPLES = '''
import logging
import pytest

@pytest.fixture
def noisy_teardown():
    yield
    logging.error("as it ended")

def test_unasked_warning():
    logging.warning("watch out")

def test_unasked_error_in_teardown(noisy_teardown):
    pass

@pytest.mark.expected_log("watch o.t")
def test_asked_by_marker():
    logging.warning("watch out")

@pytest.mark.expected_log("something else")
def test_asked_for_another():
    logging.warning("watch out")

def test_asked_by_fixture(expected_log):
    expected_log("watch")
    logging.warning("watch out")

def test_information():
    logging.getLogger().setLevel(logging.INFO)
    logging.info("all is well")

def test_skips():
    pytest.skip("no such tool")

@pytest.mark.hardware
def test_skips_for_hardware():
    pytest.skip("no such adapter")

@pytest.mark.xfail
def test_is_expected_to_fail():
    assert False
'''


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_examples.py").write_text(EXAMPLES)
    return tmp_path


def outcomes(directory: Path, ci: str) -> dict[str, str]:
    """Run pytest with the project's settings there; the last outcome by test name, with SUMMARY for the exit code."""
    environment = {**os.environ, "CI": ci}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    result = subprocess.run(
        [*command, "--rootdir", str(directory), str(directory)],
        capture_output=True, text=True, env=environment, timeout=RUN_SECONDS, check=False, cwd=directory,
    )  # fmt: skip
    found = dict(re.findall(r"::(\w+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", result.stdout))
    return {**found, "SUMMARY": str(result.returncode)}


def test_unexpected_log_records_and_skips_in_ci_fail(examples: Path) -> None:
    assert outcomes(examples, ci="true") == {
        "test_unasked_warning": "ERROR",
        "test_unasked_error_in_teardown": "ERROR",
        "test_asked_by_marker": "PASSED",
        "test_asked_for_another": "ERROR",
        "test_asked_by_fixture": "PASSED",
        "test_information": "PASSED",
        "test_skips": "FAILED",
        "test_skips_for_hardware": "SKIPPED",
        "test_is_expected_to_fail": "XFAIL",
        "SUMMARY": "1",
    }


def test_outside_ci_a_skip_is_a_skip(examples: Path) -> None:
    assert outcomes(examples, ci="")["test_skips"] == "SKIPPED"


def test_a_module_that_skips_itself_fails_in_ci(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_none.py").write_text('import pytest\npytest.importorskip("no_such_module")\n')
    assert outcomes(tmp_path, ci="true")["SUMMARY"] == "2"


def test_setup_again_is_quick_and_silent() -> None:
    begun = time.monotonic()
    result = subprocess.run(
        [str(ROOT / "scripts" / "setup.sh")], capture_output=True, text=True, timeout=RUN_SECONDS, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.monotonic() - begun < SETUP_AGAIN_SECONDS
