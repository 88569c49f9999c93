"""A judgement as the founding document's hand-off, in Markdown. No torch here."""

from collections.abc import Mapping, Sequence

from bitnetctl.records import Run
from bitnetctl.report.columns import UNKNOWN
from bitnetctl.report.escape import printable
from bitnetctl.report.trajectory import MILESTONES, _ordered, _plain, _trajectory, next_step
from bitnetctl.verdict import Combined, Outcome


def handoff(runs: Sequence[Run], judged: Mapping[str, Combined], overall: Outcome) -> str:
    """Return the founding document's hand-off as Markdown: hardware, duration, figures, status, assessment."""
    lines = ["# Verification report", "", f"**Overall: {overall.value}**", ""]
    hardware = dict.fromkeys(run.manifest.device or UNKNOWN for run in runs if run.manifest)
    seconds = sum(run.manifest.elapsed_seconds for run in runs if run.manifest)
    versions = dict.fromkeys(
        ", ".join(f"{name} {run.manifest.versions.get(name, UNKNOWN)}" for name in ("bitnetctl", "torch"))
        for run in runs
        if run.manifest
    )
    lines += [
        f"- Hardware: {_cell('; '.join(hardware) or UNKNOWN)}",
        f"- Versions: {_cell('; '.join(versions) or UNKNOWN)}",
        f"- Duration of the runs, summed: {f'{seconds / 60:.1f} min' if seconds else UNKNOWN}",
        "",
    ]
    for arm, combined in judged.items():
        of_arm = [run for run in runs if (run.arm or "unknown") == arm]
        lines += [f"## Arm {_cell(arm)}: {combined.outcome.value}", ""]
        heads = " | ".join(f"{share:.0%}" for share in MILESTONES)
        lines += [f"| size | seed | {heads} | status |", "|---" * (len(MILESTONES) + 3) + "|"]
        for run in _ordered(of_arm):
            cells = " | ".join(_trajectory(run))
            status = run.manifest.status if run.manifest else f"ends at step {run.final_step:,}"
            lines.append(f"| {_plain(run.size)} | {_plain(run.seed)} | {cells} | {status} |")
        lines.append("")
        for verdict in combined.verdicts:
            lines.append(f"### {_cell(verdict.criteria)}: {verdict.outcome.value}")
            lines += ["", f"Confidence: {_cell(verdict.confidence or UNKNOWN)}", ""]
            if verdict.evidence:
                lines += [f"Evidence: {_cell(verdict.evidence)}", ""]
            lines += [f"- {_cell(reason)}" for reason in verdict.reasons]
            lines += [f"- note: {_cell(note)}" for note in verdict.notes]
            lines.append("")
        if combined.disagreement:
            lines += [_cell(combined.disagreement), ""]
    lines += [f"Next: {next_step(overall)}", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return text that stays one line and no markup in Markdown."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
