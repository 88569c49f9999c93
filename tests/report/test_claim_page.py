"""The page of a claim: what it says, where its dots lie, and that no text of a claim or a run is more than text."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from calling import call
from pages import HOSTILE, Page
from synthetic import bare_run, quick, simple_run

from bitnetctl.errors import ExitCode
from bitnetctl.report.claim_text import text_plot
from bitnetctl.report.html.dots import dots_figure
from bitnetctl.report.seed_plot import Axis, SeedPlot, SeedRow, signed_text
from bitnetctl.verdict import Outcome

pytestmark = pytest.mark.usefixtures("wide_terminal")

ARM = "decoupled-decay:decayed=all"
PAIRED = {"kind": "paired", "measure": "HeldOutLoss", "better": "lower", "margin": 0.1}
BETTER = (0.21, 0.17, 0.31, 0.25, 0.13, 0.28)
BASE = 4.9
GOLDEN = [
    "seed 0                                   │        ┊         ●      +0.21",
    "seed 1                                   │        ┊     ●          +0.17",
    "seed 2      ○                            │        ┊                −0.31",
    "seed 3  ×                                │        ┊                the arm's run failed",
    "seed 4                                   │   ○    ┊                +0.05",
    "seed 5                                   │        ┊ ●              +0.12",
    "median  <────────────────────────────────────────◆──────────]      +0.085",
    "        ──────────────┴──────────────────┴─────────────────┴─────",
    "                    −0.2                 0               +0.2",
    "        ← worse                                          better →",
    "        ┊ margin +0.1",
]
"""A text plot in which seed 3 failed."""


@dataclass
class Written:
    """What `verify --claim` wrote."""

    code: int
    html: str
    markdown: str
    tree: dict[str, Any]

    @property
    def page(self) -> Page:
        return Page(self.html)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.page.texts).split())

    @property
    def figures(self) -> list[str]:
        return re.findall(r"<figure><figcaption>.*?</figure>", self.html.partition('id="panels"')[0], re.DOTALL)


def claim_file(path: Path, checks: Sequence[Mapping[str, Any]], arms: Sequence[str], **texts: Any) -> Path:
    """Write a claim about the first arm at the scale of `quick` with 1,000 steps."""
    tree = {
        "title": "AdamW cures it",
        "source": "Someone 2024, table 3",
        "claimed": "AdamW does not collapse.",
        "scale": "hidden 1,024, 2B tokens",
        "arm": arms[0],
        "limits": ["that it is a good setting"],
    } | texts
    seeds = {"rule": "rate", "confidence": 0.95}
    required = [{"kind": "finite", "columns": ["Loss", "HeldOutLoss"]}, {"kind": "finished"}]
    conclusions = {one: f"So it is {one}." for one in ("supported", "refuted", "inconclusive")}
    plan = {"recipe": "quick", "steps": 1000, "sizes": [64], "seeds": 6, "arms": list(arms)}
    plan["overrides"] = ["probe.eval_every_steps=100", "schedule.warmup_steps=100"]
    tables: dict[str, Mapping[str, Any]] = {
        "plan": plan,
        "criteria": {"seeds": seeds, "checks": [*required, *checks]},
        "conclusions": conclusions,
    }
    lines = [f"{name} = {value(one)}" for name, one in tree.items()]
    lines += [
        line
        for name, table in tables.items()
        for line in (f"[{name}]", *(f"{k} = {value(v)}" for k, v in table.items()))
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def value(one: Any) -> str:
    """Return a value as TOML."""
    if isinstance(one, Mapping):
        return "{" + ", ".join(f"{name} = {value(part)}" for name, part in one.items()) + "}"
    if isinstance(one, list | tuple):
        return f"[{', '.join(map(value, one))}]"
    return json.dumps(one)


def written(
    tmp_path: Path,
    gains: Mapping[str, Sequence[float | None]],
    *checks: Mapping[str, Any],
    failed: Sequence[int] = (),
    sizes: Sequence[int] = (64,),
    options: Sequence[str] = (),
    **texts: Any,
) -> Written:
    """Judge runs whose held-out loss is below the baseline's by `gains`, by arm and seed; None is a missing run."""
    runs = tmp_path / "runs"
    for size in sizes:
        for seed in range(max(map(len, gains.values()))):
            simple_run(runs, quick(seed=seed, size=size), loss=BASE + seed / 100)
        for arm, of_arm in gains.items():
            for seed, gain in enumerate(of_arm):
                if gain is not None:
                    is_failed = arm == next(iter(gains)) and seed in failed
                    fields: dict[str, Any] = {"status": "failed", "message": "it broke"} if is_failed else {}
                    simple_run(runs, quick(arm, seed=seed, size=size), loss=BASE + seed / 100 - gain, **fields)
    file = claim_file(tmp_path / "mine.toml", checks or (PAIRED,), list(gains), **texts)
    html, markdown = tmp_path / "page.html", tmp_path / "page.md"
    done = call("verify", runs, "--claim", file, "--html", html, "--report", markdown, "--json", *options)
    assert done.code not in (ExitCode.USAGE, ExitCode.INTERNAL), done.err
    return Written(
        done.code, html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8"), json.loads(done.out)
    )


@pytest.fixture(scope="module")
def supported(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """The page of a claim that six pairs support."""
    return written(tmp_path_factory.mktemp("supported"), {ARM: BETTER})


def dots(figure: str) -> list[tuple[str, float]]:
    """Return the class and the place in percent of every dot."""
    groups = re.findall(r'<g class="(holds|fails)">(.*?)</g>', figure, re.DOTALL)
    return [(kind, float(x)) for kind, body in groups for x in re.findall(r'<circle cx="([\d.]+)%"', body)]


def place(figure: str, pattern: str) -> float:
    """Return a place in percent."""
    found = re.search(pattern, figure)
    assert found is not None
    return float(found[1])


def test_the_page_says_what_was_claimed_tested_and_concluded(supported: Written) -> None:
    done = supported
    assert done.code == ExitCode.SUPPORTED
    assert "<h1>AdamW cures it</h1>" in done.html
    assert "<title>bitnetctl: supported, AdamW cures it</title>" in done.html
    order = [
        'id="verdict"',
        'id="said"',
        'id="seeds"',
        'id="design"',
        'id="limits"',
        'id="looks"',
        'id="summary"',
        'id="panels"',
    ]
    places = [done.html.find(part) for part in [*order, 'id="curves"', 'id="verdicts"', 'id="runs"']]
    assert -1 not in places
    assert places == sorted(places)
    for text in (
        "supported So it is supported. HeldOutLoss lower than baseline by more than 0.1 in 6 of 6 pairs",
        "a claim that does not hold is called supported with a probability of at most 5 %",
        "claimed AdamW does not collapse. source Someone 2024, table 3 made at hidden 1,024, 2B tokens",
        "judged at quick, h64, 1,000 steps, text stdlib (bpe:2048), 6 seeds",
        f"arm {ARM} compared with baseline sizes hidden 64 steps 1,000 seeds 6: 0 to 5",
        "measure HeldOutLoss: lower by more than 0.1 test exact sign test of the median",
        "What this does not say that it is a good setting what happens at another scale than quick, h64, 1,000 steps",
        f"claim {done.tree['claim']['hash'][:16]} criteria {done.tree['verdicts'][0]['criteria']['hash'][:16]}",
        "not judged before",
    ):
        assert text in done.text
        assert all(word in done.markdown for word in re.findall(r"[A-Za-z]{4,}", text.partition(" made at")[0])[:6])


def test_a_dot_for_each_seed_lies_at_its_difference(supported: Written) -> None:
    done = supported
    (figure,) = done.figures
    zero = place(figure, r'<line class="zero" x1="([\d.]+)%"')
    margin = place(figure, r'<line class="edge" x1="([\d.]+)%"')
    per_nat = (margin - zero) / 0.1
    assert [kind for kind, _ in dots(figure)] == ["holds"] * 6
    assert [(x - zero) / per_nat for _, x in dots(figure)] == pytest.approx(BETTER, abs=0.001)
    bound = done.tree["verdicts"][0]["statistics"][0]["pairs"]["paired HeldOutLoss"]["bound_of_median"] + 0.1
    # the least of six: 1/64 is below 0.05, 7/64 is not
    assert bound == pytest.approx(min(BETTER))
    low, high, middle = (float(x) for x in re.findall(r'<svg class="(?:bound|diamond)" x="([\d.]+)%"', figure))
    assert [(x - zero) / per_nat for x in (low, middle, high)] == pytest.approx([0.13, 0.23, 0.31], abs=0.001)
    assert "The median is above +0.13 (one-sided 95 % bound) and below +0.31 (one-sided 97.5 % bound)" in figure
    rows = re.findall(r"<tr>(<td>.*?)</tr>", figure)
    assert [re.findall(r"<td>(.*?)</td>", row) for row in rows] == [
        [str(seed), f"+{gain:g}", "yes", f"{BASE + seed / 100 - gain:.4g}", f"{BASE + seed / 100:.4g}"]
        for seed, gain in enumerate(BETTER)
    ]


def test_the_text_plot_of_the_report(tmp_path: Path) -> None:
    done = written(tmp_path, {ARM: (0.21, 0.17, -0.31, 0.25, 0.05, 0.12)}, failed=[3])
    block = done.markdown.partition("```text\n")[2].partition("\n```")[0]
    assert block.splitlines() == GOLDEN


@pytest.mark.parametrize(
    ("gains", "outcome"),
    [
        (BETTER, Outcome.SUPPORTED),
        ((0.02, -0.05, 0.01, 0.03, -0.11, 0.06), Outcome.REFUTED),
        ((0.2, -0.2, 0.3, 0.0, 0.2, -0.1), Outcome.INCONCLUSIVE),
    ],
)
def test_each_outcome_has_its_conclusion(tmp_path: Path, gains: Sequence[float], outcome: Outcome) -> None:
    done = written(tmp_path, {ARM: gains})
    assert done.code == outcome.exit_code
    assert ("section", {"id": "verdict", "class": f"card {outcome.value}"}) in done.page.tags
    assert f"So it is {outcome.value}." in done.text
    assert f"**{outcome.value.upper()}**: So it is {outcome.value}." in done.markdown
    assert [kind for kind, _ in dots(done.figures[0])] == ["holds" if gain > 0.1 else "fails" for gain in gains]
    open_only = "a test that does not decide is no evidence of equality"
    assert (open_only in done.text) == (open_only in done.markdown) == (outcome is Outcome.INCONCLUSIVE)


def test_an_invalid_test_has_no_dots_and_concludes_nothing(tmp_path: Path) -> None:
    check = {"kind": "level", "measure": "UniquePredictions", "supported_above": 10**6, "refuted_below": 10}
    done = written(tmp_path, {ARM: BETTER}, check)
    assert done.code == ExitCode.INVALID
    assert "invalid Nothing: the set-up could not have shown it." in done.text


def test_a_failed_run_is_a_cross_at_the_end_and_a_missing_one_is_named(tmp_path: Path) -> None:
    done = written(tmp_path, {ARM: (*BETTER[:4], None, 0.28)}, failed=[3], options=["--seeds", "6"])
    (figure,) = done.figures
    assert [kind for kind, _ in dots(figure)] == ["holds"] * 4
    assert figure.count('class="cross"') == 1
    assert place(figure, r'<svg class="cross" x="([\d.]+)%"') == 15
    assert "seed 3: −∞, the arm&#x27;s run failed" in figure
    assert "seed 4: –, no value: a run is missing" in figure
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(<td>.*?)</tr>", figure)]
    assert rows[3] == ["3", "−∞", "no", "failed", "4.93", "the arm&#x27;s run failed"]
    assert rows[4] == ["4", "–", "no", "missing", "4.94", "no value: a run is missing"]
    assert "No bound of the median: a planned pair is missing" in figure
    assert "| 3 | −∞ | no | failed | 4.93 | the arm's run failed |" in done.markdown


def test_one_pair_has_no_bound(tmp_path: Path) -> None:
    done = written(tmp_path, {ARM: (0.2,)}, options=["--seeds", "1"])
    (figure,) = done.figures
    assert done.code == ExitCode.INCONCLUSIVE
    assert len(dots(figure)) == 1
    assert 'class="bound"' not in figure
    assert 'class="diamond"' in figure
    assert "No bound of the median: 1 pair cannot give one at this level" in figure


def test_equivalence_is_a_band_around_0(tmp_path: Path) -> None:
    check = {"kind": "equivalent", "measure": "HeldOutLoss", "within": 0.05}
    gains = (0.01, -0.02, 0.03, -0.01, 0.004, 0.02)
    done = written(tmp_path, {ARM: gains}, check)
    (figure,) = done.figures
    low, high = (float(x) for x in re.findall(r'<line class="edge" x1="([\d.]+)%"', figure))
    zero = place(figure, r'<line class="zero" x1="([\d.]+)%"')
    assert zero == pytest.approx((low + high) / 2, abs=0.01)
    x, width = re.findall(r'<rect class="claimed" x="([\d.]+)%" y="\d+" width="([\d.]+)%"', figure)[0]
    assert (float(x), float(x) + float(width)) == pytest.approx((low, high), abs=0.02)
    # a loss that is lower lies to the left
    assert [round((x - zero) / (high - zero) * 0.05, 3) for _, x in dots(figure)] == [-gain for gain in gains]
    assert "HeldOutLoss: differs by less than 0.05 test two one-sided exact sign tests" in done.text
    assert "┊ limit −0.05, limit +0.05" in done.markdown


def test_an_interaction_has_four_runs_a_seed(tmp_path: Path) -> None:
    check = {**PAIRED, "kind": "interaction", "modifier": "full-precision", "margin": 0.02}
    modified = f"{ARM}+full-precision"
    gains = {
        ARM: BETTER,
        modified: (0.41, 0.43, 0.42, 0.45, 0.38, 0.44),
        "full-precision": (0.35, 0.36, 0.31, 0.39, 0.36, 0.37),
    }
    done = written(tmp_path, gains, check)
    (figure,) = done.figures
    zero, margin = (place(figure, rf'<line class="{kind}" x1="([\d.]+)%"') for kind in ("zero", "edge"))
    expected = [a - (b - c) for a, b, c in zip(*gains.values(), strict=True)]
    assert [(x - zero) / (margin - zero) * 0.02 for _, x in dots(figure)] == pytest.approx(expected, abs=0.001)
    heads = re.findall(r'<th scope="col" class="arm">(.*?)</th>', figure)
    assert heads == [ARM, "baseline", modified, "full-precision"]
    assert "gain in HeldOutLoss over baseline, less the gain with full-precision added to both" in done.text


def test_levels_are_drawn_with_their_thresholds(tmp_path: Path) -> None:
    check = {"kind": "level", "measure": "HeldOutLoss", "supported_below": 4.8, "refuted_above": 4.85}
    done = written(tmp_path, {ARM: BETTER}, check)
    (figure,) = done.figures
    assert 'class="zero"' not in figure
    assert "<table>" not in figure
    assert "supported 4.8<" in figure
    assert "refuted 4.85<" in figure
    losses = [BASE + seed / 100 - gain for seed, gain in enumerate(BETTER)]
    assert [kind for kind, _ in dots(figure)] == ["holds" if loss < 4.8 else "fails" for loss in losses]
    assert "levels HeldOutLoss &lt; 4.8 supports" in done.html.replace("<dt>", " ").replace("</dt><dd>", " ")


def test_every_size_has_its_plot(tmp_path: Path) -> None:
    done = written(tmp_path, {ARM: BETTER}, sizes=(64, 128))
    assert [re.sub(r" <span.*", "", one.partition("<figcaption>")[2]) for one in done.figures] == [
        "HeldOutLoss, hidden 64",
        "HeldOutLoss, hidden 128",
    ]
    ids = [one["id"] for _, one in done.page.tags if "id" in one]
    assert len(ids) == len(set(ids))


def test_looks_are_told(tmp_path: Path) -> None:
    early = (*BETTER[:3], None, None, None)
    written(tmp_path, {ARM: early}, options=["--seeds", "6"])
    done = written(tmp_path, {ARM: BETTER}, options=["--seeds", "6"])
    assert "3 of 6 seeds, inconclusive looked at 1 time before its 6 seeds were there" in done.text
    assert "3 of 6 seeds, inconclusive" in done.markdown


def test_texts_of_a_claim_are_no_more_than_text(tmp_path: Path) -> None:
    names = ("title", "source", "claimed", "scale")
    texts: dict[str, Any] = {name: f"{name} {HOSTILE}" for name in names}
    done = written(tmp_path, {ARM: BETTER}, **texts, limits=[f"**x** {HOSTILE}"])
    page = done.page
    assert not any(tag == "img" for tag, _ in page.tags)
    assert len(page.scripts) == 2
    for name in names:
        assert any(f"{name} {HOSTILE}" in text for text in page.texts), name
    assert re.findall(r".<img", done.markdown) == [r"\<img"] * done.markdown.count("<img")
    assert r"\*\*x\*\* " in done.markdown
    assert done.markdown.count("```") == 2


def test_nothing_is_loaded_and_no_style_is_inline(tmp_path: Path) -> None:
    done = written(tmp_path, {ARM: BETTER}, source="https://example.org/paper")
    for tag, attributes in done.page.tags:
        assert not {"src", "href", "style", "onclick", "xlink:href"} & set(attributes), tag
    assert "url(" not in done.html
    assert "default-src 'none'" in done.html
    for tag, attributes in done.page.tags:
        if tag == "svg" and attributes.get("role") == "img" and "aria-labelledby" in attributes:
            wanted = str(attributes["aria-labelledby"]).split()
            assert {one.get("id") for name, one in done.page.tags if name in ("title", "desc")} >= set(wanted)


def plot_of(rows: Sequence[SeedRow], **fields: Any) -> SeedPlot:
    """Return a plot of improvements."""
    given = {"columns": ("ours", "theirs"), "what": "improvement", "unit": "nats", "left": "worse", "right": "better"}
    return SeedPlot(title="Loss", outcome=Outcome.INCONCLUSIVE, rows=tuple(rows), claimed=(0.0, 1.0), **given | fields)


def row_of(seed: str, low: float | None, high: float | None = None, note: str = "") -> SeedRow:
    return SeedRow(seed=seed, values=(), low=low, high=low if high is None else high, holds=False, note=note)


def test_a_repeated_seed_spans_what_it_can_be() -> None:
    plot = plot_of([row_of("0", -0.1, 0.2, "a run was repeated"), row_of("1", 0.1)])
    figure = dots_figure(plot, 0)
    assert len(dots(figure)) == 3
    assert figure.count('class="span"') == 1
    assert "−0.1 to +0.2" in text_plot(plot)[0]
    assert text_plot(plot)[0].count("○") == 2


@pytest.mark.parametrize("values", [[], [None], [0.0], [math.inf, -math.inf], [1e-12], [1e30, -1e30], [5.0, 5.0]])
def test_any_values_have_an_axis(values: list[float | None]) -> None:
    plot = plot_of([row_of(str(seed), one) for seed, one in enumerate(values)])
    axis = Axis.of(plot)
    assert axis.low < 0 < axis.high
    assert 1 <= len(axis.ticks) <= 6
    for x in re.findall(r'x[12]?="([\d.-]+)%"', dots_figure(plot, 0)):
        assert 0 <= float(x) <= 100
    assert len({len(line) for line in text_plot(plot)[-3:-2]}) == 1


def test_many_seeds_are_drawn_close_together() -> None:
    plot = plot_of([row_of(str(seed), seed / 100) for seed in range(200)])
    figure = dots_figure(plot, 0)
    assert len(dots(figure)) == 200
    assert place(figure, r'height="(\d+)"') < 2000
    assert figure.count('class="seed"') == 40


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.2134, "+0.213"),
        (-12.34, "−12.3"),
        (12345.6, "+12,346"),
        (1e-5, "+1e−05"),
        (-math.inf, "−∞"),
    ],
)
def test_differences_have_a_sign_and_three_digits(number: float, text: str) -> None:
    assert signed_text(number) == text


def test_runs_without_manifests_have_a_page_too(tmp_path: Path) -> None:
    for seed in range(6):
        for arm, loss in (("baseline", 5.0), ("no-decay", 4.8)):
            bare_run(tmp_path / "runs", arm=arm, seed=seed, HeldOutLoss=loss + seed / 1000)
    file, html = claim_file(tmp_path / "mine.toml", [PAIRED], ["no-decay"]), tmp_path / "page.html"
    done = call("verify", tmp_path / "runs", "--claim", file, "--html", html)
    assert done.code == ExitCode.SUPPORTED, done.err
    text = html.read_text(encoding="utf-8")
    assert len(dots(text)) == 6
    assert "what happens on another text</li>" in text


def test_a_value_beside_its_dot_does_not_lie_on_the_line_of_zero(tmp_path: Path) -> None:
    done = written(tmp_path, {ARM: (-0.02, 0.02, 0.3, 0.3, -0.4, 0.3)})
    (figure,) = done.figures
    sides = re.findall(r'<text x="[\d.]+%" y="[\d.]+" class="(start|end)" dx="-?11">([^<]*)<', figure)
    assert sides[0] == ("end", "−0.02")
    assert sides[2][0] == "end"
    assert sides[4] == ("start", "−0.4")
