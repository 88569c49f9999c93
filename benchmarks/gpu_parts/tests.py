"""The tests that need a GPU."""

import sys
import xml.etree.ElementTree as ElementTree

from benchmarks.gpu_parts.commands import run_command
from benchmarks.gpu_parts.report import NotMeasuredError, Options, Report

_SLOWEST = 12
# all that pytest's exit code says is that a test failed, or that everything is well
_PASSED, _FAILED = 0, 1


def run(report: Report, options: Options) -> None:
    """Run them; name those that failed, and the slowest."""
    results = report.folder / "tests.xml"
    # one line a test, so that the output of a killed part says how far it came
    command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    done = run_command([*command, f"--junitxml={results}", "tests/gpu", "tests/engine/test_cuda_graph.py"])
    lines = done.out.strip().splitlines()
    report.values(seconds=done.seconds, summary=lines[-1].strip("= ") if lines else "no output")
    if done.code not in (_PASSED, _FAILED):
        raise RuntimeError(f"pytest ended with {done.code}")
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
        report.row("slowest", {"test": case.get("name"), "seconds": float(case.get("time", 0))})
    if not passed and not report.failures:
        raise NotMeasuredError("every test skipped itself")
