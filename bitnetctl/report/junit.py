"""Verdicts as JUnit XML, for continuous integration."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from bitnetctl.escape import escape_formula
from bitnetctl.verdict import Outcome, Verdict

_ELEMENTS = {Outcome.REFUTED: "failure", Outcome.INVALID: "error", Outcome.INCONCLUSIVE: "skipped"}
# XML 1.0 cannot hold these, escaped or not
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(verdicts: Sequence[Verdict]) -> str:
    """Return a test suite for each verdict, with a test case for each check result and each planned run not judged.

    Refuted is a failure, invalid an error, inconclusive and not judged are skipped. Properties count the planned runs.
    """
    root = ElementTree.Element("testsuites", name="bitnetctl verify")
    for verdict in verdicts:
        counts = [result.outcome for result in verdict.results]
        # one that failed without rows is a result
        others = [run for run in verdict.not_judged if run["state"] != "failed"]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_text(f"{verdict.criteria} · {verdict.arm}"),
            tests=str(len(counts) + len(others)),
            failures=str(counts.count(Outcome.REFUTED)),
            errors=str(counts.count(Outcome.INVALID)),
            skipped=str(counts.count(Outcome.INCONCLUSIVE) + len(others)),
        )
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in (("runs", verdict.account), ("failure rate", verdict.failure_rate)):
            ElementTree.SubElement(properties, "property", name=name, value=_text(value))
        for result in verdict.results:
            where = result.run or (f"hidden {result.size}" if result.size else "all runs")
            case = ElementTree.SubElement(suite, "testcase", classname=_text(where), name=_text(result.check))
            if result.outcome in _ELEMENTS:
                ElementTree.SubElement(case, _ELEMENTS[result.outcome], message=_text(result.reason))
        for run in others:
            case = ElementTree.SubElement(suite, "testcase", classname=_text(run["run"]), name="planned run")
            ElementTree.SubElement(case, "skipped", message=_text(f"{run['state']}: {run['reason']}"))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _text(text: str) -> str:
    """Replace characters that XML cannot hold, and escape formulas, since spreadsheets open XML too."""
    return _NOT_XML.sub("\ufffd", escape_formula(text))
