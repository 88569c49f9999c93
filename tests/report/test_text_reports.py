"""Text that runs wrote in reports: measures by arm beside human text, and text that no program runs."""

import html
import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from samples import SAMPLES, samples, with_samples
from synthetic import CURED, LEVELS, origin_run

from bitnetctl.analysis.study import Study, study
from bitnetctl.analysis.text_quality import INFORMATION_ONLY, Spread, texts_of_arms
from bitnetctl.records import Run
from bitnetctl.records.samples import Continuation
from bitnetctl.report import html_page, markdown_report, print_study
from bitnetctl.report.texts import MOST_ARMS, MOST_CHARACTERS, TextReport

HOSTILE = "\x1b[31m<script>alert(1)</script>\u202e|```\n```\n=1+1 www.example.com @user"


def run(folder: Path, seed: int = 0, arm: str = "", bits: float | None = 2.5, **fields: float) -> Run:
    """A run of the origin recipe that wrote text with these measures at its end."""
    one = origin_run(folder, CURED, seed=seed, arm=arm, columns={**LEVELS, "HeldOutBitsPerByte": bits})
    return with_samples(one, samples(**fields))


def terminal(study: Study, *, details: bool = False, width: int = 120) -> str:
    out = io.StringIO()
    print_study(study, Console(file=out, width=width, emoji=False), details=details)
    return out.getvalue()


@pytest.fixture
def three(tmp_path: Path) -> list[Run]:
    """Three seeds of the baseline and one run of another arm."""
    measured = [
        run(tmp_path, seed, bits=2.0 + seed, bigram_nats=6.0 + seed, repetition=0.1 * seed) for seed in range(3)
    ]
    return [*measured, run(tmp_path, 0, "no-decay", bigram_nats=9.0)]


def test_measures_are_medians_and_ranges_by_arm(three: list[Run]) -> None:
    baseline, other = texts_of_arms(three, [one.arm or "" for one in three])
    assert (baseline.arm, baseline.size, len(baseline.runs), baseline.steps) == ("baseline", 256, 3, (20_000,))
    assert baseline.measures["bits_per_byte"] == Spread(median=3.0, low=2.0, high=4.0)
    # sampled text, but the repetition of greedy text
    assert baseline.measures["bigram_nats"] == Spread(median=7.0, low=6.0, high=8.0)
    assert baseline.measures["repetition"] == Spread(median=0.1, low=0.0, high=0.2)
    assert baseline.measures["distinct"] == Spread(median=0.9, low=0.9, high=0.9)
    assert baseline.example is three[1]
    assert (other.arm, other.measures["bigram_nats"].median) == ("no-decay", 9.0)


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    one = run(tmp_path, bits=None)
    elsewhere = with_samples(origin_run(tmp_path, CURED, seed=1), samples(None, step=7))
    [texts] = texts_of_arms([one, elsewhere], ["a", "a"])
    assert "bits_per_byte" not in texts.measures
    assert texts.measures["bigram_nats"].median == 6.5
    assert texts.steps == (7, 20_000)


def test_human_text_stands_beside(three: list[Run]) -> None:
    screen = terminal(study(three))
    cells = [re.split(r"\s{2,}", line) for line in screen.splitlines()]
    assert ["baseline", "256", "3", "3.00 (2.00–4.00)", "7.00 (6.00–8.00)", "0.10", "0.90", "0.70", "1.90"] in cells
    assert ["human text", "–", "4.08", "0.09", "0.74", "0.78", "2.17"] in cells
    assert INFORMATION_ONLY in " ".join(screen.split())
    page, markdown = html_page(study(three)), markdown_report(study(three))
    assert "| human text |  |  | – | 4.08 | 0.09 | 0.74 | 0.78 | 2.17 |" in markdown
    assert "| baseline | 256 | 3 | 3.00 (2.00–4.00) | 7.00 (6.00–8.00) | 0.10 (0.00–0.20) |" in markdown
    for text in (html.escape("human text"), html.escape(INFORMATION_ONLY), "<td>7.00 (6.00–8.00)</td>"):
        assert text in page


def test_details_show_a_continuation_of_each_run(three: list[Run]) -> None:
    assert "  prompt  " not in terminal(study(three))
    lines = terminal(study(three), details=True).splitlines()
    at = lines.index("baseline, seed 2, step 20,000")
    assert lines[at + 1 : at + 5] == [
        "  prompt  for x in",
        "  greedy   self.↵self.",
        "  sampled  ret<b>urn",
        "  human    range(3):↵    y",
    ]
    assert sum(line == "  prompt  for x in" for line in lines) == 4


def test_runs_without_text_have_no_section(tmp_path: Path) -> None:
    alone = study([origin_run(tmp_path, CURED)])
    assert TextReport.of(alone.runs, alone.arms) is None
    assert "What they write" not in html_page(alone) + markdown_report(alone)
    assert "human text" not in terminal(alone, details=True)
    assert alone.to_json()["texts"] is None


@pytest.fixture
def hostile(tmp_path: Path) -> Study:
    texts = [Continuation(prompt=HOSTILE, human=HOSTILE, greedy=HOSTILE, sampled=HOSTILE + "x" * 999)]
    return study([with_samples(origin_run(tmp_path, CURED), SAMPLES.model_copy(update={"texts": texts}))])


def test_no_terminal_runs_what_a_model_writes(hostile: Study) -> None:
    screen = terminal(hostile, details=True)
    assert r"\x1b[31m<script>alert(1)</script>\u202e|```↵" in screen
    assert not {"\x1b", "\u202e"} & set(screen)
    assert "x" * (MOST_CHARACTERS + 1) not in screen.replace("\n", "")


def test_no_page_runs_what_a_model_writes(hostile: Study) -> None:
    page = html_page(hostile)
    assert "<script>alert" not in page
    assert r"\x1b[31m&lt;script&gt;alert(1)&lt;/script&gt;\u202e|```" in page
    assert not {"\x1b", "\u202e"} & set(page)
    assert 'href="' not in page


def test_no_markdown_is_made_of_what_a_model_writes(hostile: Study) -> None:
    lines = markdown_report(hostile).splitlines()
    start = lines.index("```text")
    end = lines.index("```", start)
    assert [line.split()[0] for line in lines[start + 1 : end]] == ["prompt", "greedy", "sampled", "human"]
    assert not [line for line in [*lines[:start], *lines[end:]] if "example.com" in line]
    assert not {"\x1b", "\u202e"} & set("".join(lines))


def test_many_arms_show_the_text_of_some(tmp_path: Path) -> None:
    arms = [f"reduced-lr:peak={index}e-4" for index in range(1, MOST_ARMS + 3)]
    many = study([run(tmp_path, arm=arm, bits=2.0 + index) for index, arm in enumerate(arms)])
    markdown = markdown_report(many)
    assert markdown.count("```text") == MOST_ARMS
    assert "… text of 2 more arms: bitnetctl analyze --json" in markdown
    assert html_page(many).count("<figcaption>reduced-lr") > MOST_ARMS
