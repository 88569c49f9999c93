"""Verdicts as a Markdown report with the sections that the founding document asks for."""

from collections.abc import Mapping, Sequence

from bitnetctl.escape import markdown_cell, markdown_line, markdown_text
from bitnetctl.records import Run
from bitnetctl.report.claim import ClaimPage
from bitnetctl.report.claim_text import claim_lines
from bitnetctl.report.head import for_arms, head_columns, other_arms, paragraphs
from bitnetctl.report.markdown import markdown_table, text_section
from bitnetctl.report.texts import TextReport
from bitnetctl.report.trajectory import MILESTONES, trajectory_rows
from bitnetctl.units import UNKNOWN
from bitnetctl.verdict import UNKNOWN_ARM, Combined, Summary, Verdict, wording


def verification_report(
    runs: Sequence[Run], judged: Mapping[str, Combined], summary: Summary, claim: ClaimPage | None = None
) -> str:
    """Return Markdown: a claim that has a file, the summary, hardware, versions, duration, metrics, every verdict."""
    title = markdown_text(claim.title) if claim else "Verification report"
    lines = [f"# {title}", "", *(claim_lines(claim) if claim else [])]
    lines += [*(["## The verdict in numbers", ""] if claim else []), *_head(summary), *_provenance(runs)]
    for arm, combined in judged.items():
        lines += [f"## Arm {markdown_line(arm)}: {combined.outcome.value}", ""]
        lines += _trajectories([run for run in runs if (run.arm or UNKNOWN_ARM) == arm])
        for verdict in combined.verdicts:
            lines += _verdict(verdict)
        if combined.disagreement:
            lines += [markdown_line(combined.disagreement), ""]
    lines += text_section(TextReport.of(runs, [run.arm or UNKNOWN_ARM for run in runs]))
    return "\n".join(lines)


def _head(summary: Summary) -> list[str]:
    """Return the summary as the screen has it, with every row and reason."""
    lists = [("horizon", [summary.horizon] if summary.horizon else []), *paragraphs(summary)]
    columns = head_columns(summary, summary.rows)
    # a number is no formula
    cells = [
        [(markdown_text if one.is_number else markdown_cell)(one.text(row)) for one in columns] for row in summary.rows
    ]
    cells.append([markdown_text(one.needed) for one in columns])
    return [
        f"Claim: {markdown_line(summary.claim)}",
        "",
        f"**Overall: {summary.outcome.value}**{markdown_line(f'{for_arms(summary)}: {summary.headline}')}",
        "",
        *(f"{markdown_line(text)}\n" for text in (other_arms(summary), summary.criteria) if text),
        *markdown_table([markdown_cell(one.header) for one in columns], cells),
        *(f"- {name.capitalize()}: {markdown_line(text)}" for name, texts in lists for text in texts),
        "",
    ]


def _provenance(runs: Sequence[Run]) -> list[str]:
    """Return devices, versions and total training time of the runs with a manifest."""
    manifests = [run.manifest for run in runs if run.manifest]
    hardware = dict.fromkeys(manifest.device or UNKNOWN for manifest in manifests)
    seconds = sum(manifest.elapsed_seconds for manifest in manifests)
    versions = dict.fromkeys(
        ", ".join(f"{name} {manifest.versions.get(name, UNKNOWN)}" for name in ("bitnetctl", "torch"))
        for manifest in manifests
    )
    return [
        f"- Hardware: {markdown_line('; '.join(hardware) or UNKNOWN)}",
        f"- Versions: {markdown_line('; '.join(versions) or UNKNOWN)}",
        f"- Duration of the runs, summed: {f'{seconds / 60:.1f} min' if seconds else UNKNOWN}",
        "",
    ]


def _trajectories(runs: Sequence[Run]) -> list[str]:
    rows = [
        (*map(markdown_cell, cells), run.manifest.status if run.manifest else f"ends at step {run.final_step:,}")
        for run, cells in trajectory_rows(runs)
    ]
    return markdown_table(("size", "seed", *(f"{fraction:.0%}" for fraction in MILESTONES), "status"), rows)


def _verdict(verdict: Verdict) -> list[str]:
    lines = [f"### {markdown_line(verdict.criteria)}: {verdict.outcome.value}", ""]
    lines += [f"Failure rate: {markdown_line(verdict.failure_rate or UNKNOWN)}", ""]
    lines += [f"Runs: {markdown_line(verdict.account or UNKNOWN)}", ""]
    lines += [f"- not judged: {markdown_line(wording.not_judged(run))}" for run in verdict.not_judged]
    lines += [""] * bool(verdict.not_judged)
    if verdict.evidence:
        lines += [f"Evidence: {markdown_line(verdict.evidence)}", ""]
    lines += [f"- {markdown_line(reason)}" for reason in verdict.reasons]
    lines += [f"- note: {markdown_line(note)}" for note in verdict.notes]
    return [*lines, ""]
