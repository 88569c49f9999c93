"""The tests that need a GPU."""

import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

from benchmarks.gpu_parts.report import NotMeasuredError, Options, Report

_SLOWEST = 12
_FILES = ("tests/gpu", "tests/engine/test_cuda_graph.py")
# all that pytest's exit code says is that a test failed, or that everything is well
_PASSED, _FAILED = 0, 1


def run(report: Report, options: Options) -> None:
    """Run them, those that compile last; name those that failed, and the slowest."""
    passed = sum([_passed(report, which) for which in ("gpu and not slow", "gpu and slow")])
    if not passed and not report.failures:
        raise NotMeasuredError("every test skipped itself")


def _passed(report: Report, which: str) -> int:
    """Run the tests of a marker expression; return how many passed."""
    results = report.folder / "tests.xml"
    results.unlink(missing_ok=True)
    # one line a test, written at once, so that the output of a killed part says how far it came
    command = [sys.executable, "-m", "pytest", "-v", "-m", which, "-p", "no:cacheprovider", "--tb=short"]
    start = time.perf_counter()
    code = subprocess.run([*command, f"--junitxml={results}", *_FILES], check=False).returncode
    if code not in (_PASSED, _FAILED):
        raise RuntimeError(f"pytest ended with {code}")
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    passed = 0
    for case in cases:
        problem = next((each for each in case if each.tag in ("failure", "error")), None)
        skipped = case.find("skipped")
        passed += problem is None and skipped is None
        if problem is not None:
            report.failed(f"{case.get('name')}: {problem.get('message', '')[:200]}")
        elif skipped is not None:
            report.row("skipped", {"test": case.get("name"), "why": skipped.get("message", "")[:200]})
    for case in sorted(cases, key=lambda each: -float(each.get("time", 0)))[:_SLOWEST]:
        report.row(f"slowest, {which}", {"test": case.get("name"), "seconds": float(case.get("time", 0))})
    row = {"tests": which, "passed": passed, "of": len(cases), "seconds": time.perf_counter() - start}
    report.row("all", row)
    return passed
