"""The files that `bitnetctl verify` writes for others: the Markdown report and JUnit XML."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from calling import call, outcomes, verify
from synthetic import CURED, STAGE_1, bare_run, origin_run

from bitnetctl.errors import ExitCode
from bitnetctl.report import junit_xml
from bitnetctl.verdict import CheckResult, Outcome, Verdict

FAILED = [*STAGE_1, 10, 8, 7, 6, 6]
OPEN = [*STAGE_1, 10, 20, 30, 30, 30]
pytestmark = pytest.mark.usefixtures("wide_terminal")


def test_the_report_is_the_founding_documents_hand_off(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    fields: dict[str, Any] = {"elapsed_seconds": 90.0, "versions": {"bitnetctl": "1.2", "torch": "2.12"}}
    origin_run(tmp_path / "in", CURED, "finished", device="a|<b>\\c", **fields)
    origin_run(tmp_path / "in", FAILED, "failed", seed=1, device="cpu", message="disk | <full>", **fields)
    path = tmp_path / "out" / "report.md"
    done = verify(tmp_path / "in", "--report", path)
    assert (done.code, done.err) == (ExitCode.REFUTED, f"written: {path}\n")
    lines = path.read_text(encoding="utf-8").splitlines()
    claim = "Claim: h256 trained as the baseline does not collapse (1 size × 2 seeds, 20,000 steps)"
    overall = "**Overall: refuted**: 1 of 2 seeds fails by origin, and one is enough"
    assert lines[:5] == ["# Verification report", "", claim, "", overall]
    assert "- Hardware: a\\|&lt;b>\\\\c; cpu" in lines
    assert "- Versions: bitnetctl 1.2, torch 2.12" in lines
    assert "- Duration of the runs, summed: 3.0 min" in lines
    assert "## Arm baseline: refuted" in lines
    assert "| size | seed | 5% | 25% | 30% | 50% | 100% | status |" in lines
    assert "| 256 | 0 | 40 · 4.70 | – | 8 · 4.70 | 2 · 4.70 | 60 · 4.70 | finished |" in lines
    assert "| 256 | 1 | 40 · 4.70 | – | 8 · 4.70 | 2 · 4.70 | 6 · 4.70 | failed |" in lines
    assert "### origin: refuted" in lines
    assert "- hidden 256, seed 1: crashed after step 20,000: disk \\| &lt;full>" in lines
    assert any(line.startswith("Failure rate: 1 of 2 seeds failed, a failure rate of at least 3 %") for line in lines)
    assert "Runs: baseline: 2 judged" in lines
    assert "Evidence: minimum" in lines
    assert "| needed |  |  | 2/2 |  | \\>50 |" in lines
    assert "- Next: find out why it crashed: --details shows the message; then train it again" in lines
    # every row of a table has as many cells as its head
    assert {line.replace("\\|", "").count("|") for line in lines if line.startswith("| 256 | ")} == {9}


def test_a_report_of_bare_csvs_says_what_is_unknown(tmp_path: Path) -> None:
    csv = bare_run(tmp_path, CURED, name="hidden_256.csv").path
    path = tmp_path / "report.md"
    assert verify(csv, "--steps", "20000", "--report", path).code == ExitCode.SUPPORTED
    text = path.read_text(encoding="utf-8")
    for line in (
        "- Hardware: –",
        "- Versions: –",
        "- Duration of the runs, summed: –",
        "## Arm unknown: supported",
        "| 256 | – | 40 | – | 8 | 2 | 60 | ends at step 20,000 |",
    ):
        assert line in text.splitlines()


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    csv = bare_run(tmp_path, CURED).path
    for option in ("--report", "--junit", "--bundle", "--html"):
        done = verify(csv, option, csv / "file")
        assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
        assert done.err.startswith(f"error: {csv / 'file'}: cannot write: ")


@pytest.mark.parametrize("option", ["--report", "--junit", "--bundle", "--html"])
def test_a_judged_file_is_not_overwritten(tmp_path: Path, option: str) -> None:
    csv = bare_run(tmp_path, CURED).path
    before = csv.read_bytes()
    done = verify(tmp_path, option, csv)
    assert (done.code, done.error) == (ExitCode.USAGE, f"error: {csv}: is one of the files given; write to another")
    assert csv.read_bytes() == before


# junit


def test_junit_has_a_suite_for_each_arm_and_criteria(tmp_path: Path) -> None:
    for arm, unique in (("baseline", FAILED), ("decoupled-decay", CURED), ("no-decay", OPEN)):
        bare_run(tmp_path, unique, arm=arm)
    path = tmp_path / "out" / "junit.xml"
    done = call("verify", tmp_path, "--junit", path, "--json")
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    assert [suite.get("name") for suite in root] == [
        f"{criteria} · {arm}" for arm in outcomes(done) for criteria in ("origin", "sound")
    ]
    for suite, verdict in zip(root, done.json["verdicts"], strict=True):
        checks = verdict["checks"]
        assert suite.get("tests") == str(len(suite.findall("testcase"))) == str(len(checks))
        properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
        assert properties == {"runs": verdict["account"], "failure rate": verdict["failure_rate"]}
        for kind, attribute, tag in (
            ("refuted", "failures", "failure"),
            ("invalid", "errors", "error"),
            ("inconclusive", "skipped", "skipped"),
        ):
            reasons = [check["reason"] for check in checks if check["outcome"] == kind]
            assert suite.get(attribute) == str(len(reasons))
            assert [child.get("message") for child in suite.iter(tag)] == reasons
    [failure] = root[0].iter("failure")
    assert failure.get("message") == "UniquePredictions 6 < 10"


def test_junit_holds_each_outcome_and_no_character_that_xml_forbids() -> None:
    results = [
        CheckResult(check=f"check {outcome}", outcome=outcome, reason=f'{outcome} <&">\x00\x1b\ud800\ufffe', size=256)
        for outcome in Outcome
    ]
    verdict = Verdict(
        outcome=Outcome.REFUTED, arm="a\x07<b>", criteria="own", criteria_hash="0", results=tuple(results)
    )
    text = junit_xml([verdict])
    (suite,) = ElementTree.fromstring(text.encode())
    assert text.endswith("</testsuites>\n")
    assert suite.get("name") == "own · a\ufffd<b>"
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    children = {
        case.get("name"): [(child.tag, child.get("message")) for child in case] for case in suite.iter("testcase")
    }
    suffix = ' <&">' + "\ufffd" * 4
    assert children == {
        "check supported": [],
        "check refuted": [("failure", f"refuted{suffix}")],
        "check inconclusive": [("skipped", f"inconclusive{suffix}")],
        "check invalid": [("error", f"invalid{suffix}")],
    }
    assert {case.get("classname") for case in suite.iter("testcase")} == {"hidden 256"}


def test_junit_without_runs(tmp_path: Path) -> None:
    assert verify("--no-train", "--junit", "junit.xml").code == ExitCode.INCONCLUSIVE
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    cases = [(case.get("name"), case[0].get("message")) for case in suite.iter("testcase")]
    missing = "not judged 1 of 1 planned seed, so that nothing can be supported: missing seed 0"
    assert cases == [("planned runs", missing), ("planned run", "missing: no file")]
