"""The model card: values of manifest and CSV, and a collapsed model says so first."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from samples import SAMPLES
from synthetic import LEVELS, two_stages, write_csv

from bitnetctl.config import parse_arm
from bitnetctl.formats.hf_card import model_card
from bitnetctl.inference.trained import TrainedRun
from bitnetctl.plugins import registry
from bitnetctl.records import RunPaths
from bitnetctl.records.manifest import ImportedModel
from bitnetctl.records.samples import write_samples

CHECKS = ("KL divergence, x|y: 1e-7 (at most 1e-5)",)


@pytest.fixture
def run(export_runs: dict[str, TrainedRun], tmp_path: Path) -> TrainedRun:
    """A run whose rows the test writes."""
    return replace(export_runs["portable"], paths=RunPaths(tmp_path, "made-up"), step=20_000)


def measured(run: TrainedRun, unique: Sequence[int], **columns: object) -> str:
    write_csv(run.paths.csv, two_stages(unique, **{**LEVELS, "HeldOutBitsPerByte": 2.25, **columns}))
    return model_card(run, "offline", CHECKS)


def body(card: str) -> list[str]:
    """Return the lines behind title and YAML, without empty ones."""
    assert card.startswith("---\nlibrary_name: transformers\n")
    _, header, rest = card.split("---\n", 2)
    assert "\n# license: " in header
    title, *lines = filter(None, rest.splitlines())
    assert title == "# portable"
    return lines


def test_values_are_those_of_manifest_and_rows(run: TrainedRun) -> None:
    card = measured(run, [4000, 900, 800, 850, 900])
    data = run.manifest.data
    for cell in (
        *("| recipe | portable |", "| arm | baseline |", "| seed | 0 |", "| context length | 32 tokens |"),
        f"| config hash | {run.manifest.config_hash[:12]} |",
        f"| training tokens | {20_000 * 64:,} |",
        "| text | file:tiny.txt |",
        f"| fingerprint of text and tokenizer | {data['fingerprint']} |",
        "| tokenizer | bpe:300, 300 tokens |",
        "| measured at step | 20,000 |",
        "| held-out loss | 4.7000 nats a token |",
        "| held-out bits per byte | 2.2500 |",
        "| distinct predictions | 900 (targets: 1,298) |",
        # not in the rows
        "| ternary weights that are 0 | – |",
    ):
        assert f"\n{cell}\n" in card, cell
    assert f"of {run.model.num_parameters:,} parameters" in card
    assert str(run.paths.runs_dir) not in card
    assert "No evaluation shows a lasting collapse." in card
    assert "\n- KL divergence, x\\|y: 1e-7 (at most 1e-5)\n" in card
    assert body(card)[0].startswith("A BitNet b1.58 language model")


@pytest.mark.parametrize(
    ("unique", "columns", "first"),
    [
        ([4000, 40, 3, 2, 2], {}, "> **This model has collapsed**, since step 10,000: 3 distinct predictions."),
        (
            [4000, 900, 900, 900, 5],
            {},
            "> **This model may have collapsed**, since step 20,000: 5 distinct predictions.",
        ),
        (
            *([4000, 50, 50, 50, 50], {"HeldOutLoss": 9.0}),
            "> **This model has collapsed**, since step 5,000: held-out loss 9.00 above the unigram predictor's 6.36.",
        ),
        ([4000, 2, 2, 2, 900, 900, 900], {}, "A BitNet b1.58 language model"),
    ],
)
def test_a_collapsed_model_says_so_first(
    unique: list[int], columns: dict[str, float], first: str, run: TrainedRun
) -> None:
    assert body(measured(run, unique, **columns))[0].startswith(first)


ZEROS = "ternary weights that are 0"


def test_a_run_that_is_not_ternary_yet(run: TrainedRun) -> None:
    config = run.config.model_copy(
        update={"steps": 40_000, "interventions": parse_arm("fp-first:fraction=0.6")},
    )
    before = replace(run, config=config, quant_lambda=0.0)
    write_csv(run.paths.csv, two_stages([4000, 900, 900], **LEVELS, ZeroFraction=0.3))
    card = model_card(before, "plain", CHECKS)
    assert re.fullmatch(
        r"A BitNet b1\.58 language model of [\d,]+ parameters of the arm fp-first:fraction=0\.6, exported at step "
        r"20,000 of 40,000, while it is still at full precision\. Trained by .*",
        body(card)[0],
    )
    assert "twin" not in card
    assert ZEROS not in card
    assert "\n- ternary\n" not in card
    after = model_card(replace(before, step=40_000, quant_lambda=1.0), "offline", CHECKS)
    assert body(after)[0].startswith("A BitNet b1.58 language model of ")
    assert "with ternary weights" in body(after)[0]
    assert f"\n| {ZEROS} | 30.0% |\n" in after
    assert "\n- ternary\n" in after


@pytest.mark.parametrize("arm", ["full-precision", "fp-first:fraction=1"])
def test_a_run_at_full_precision_throughout_is_a_twin(arm: str, run: TrainedRun) -> None:
    config = run.config.model_copy(update={"interventions": parse_arm(arm)})
    card = model_card(replace(run, config=registry.compose(config.interventions).configure(config)), "plain", ())
    assert body(card)[0].startswith("A full-precision twin of a BitNet b1.58 model of ")


def test_a_recovered_run(run: TrainedRun) -> None:
    card = measured(run, [4000, 2, 2, 2, 2, 900, 900, 900, 900])
    assert "The run collapsed at step 2,500 and recovered at step 12,500." in card


def test_an_earlier_step_is_judged_by_its_own_rows(run: TrainedRun) -> None:
    card = measured(replace(run, step=12_000), [4000, 2, 2, 2, 2, 900, 900, 900, 900])
    assert body(card)[0].startswith("> **This model has collapsed**, since step 2,500")
    assert "\n| measured at step | 10,000 |\n" in card


def test_measures_of_text_but_not_the_text(run: TrainedRun) -> None:
    run.paths.folder.mkdir()
    write_samples(run.paths.samples, SAMPLES)
    card = measured(run, [4000, 900, 900])
    assert "\n| repeated 4-grams of greedy text | 63.0% (human text: 9.0%) |\n" in card
    cells = "cross-entropy of sampled text under the training bigram | 6.500 nats a token (human text: 4.080)"
    assert f"\n| {cells} |\n" in card
    assert not any(text in card for one in SAMPLES.texts for text in (one.prompt + one.human, one.sampled))
    # those of another step are not of this model
    assert "4-grams" not in model_card(replace(run, step=10_000), "offline", ())


@pytest.mark.parametrize("content", [None, "", "not, a, run\n1,2,3\n"])
def test_unknown_measures_are_not_made_up(content: str | None, run: TrainedRun) -> None:
    if content is not None:
        run.paths.csv.write_text(content)
    card = model_card(run, "offline", ())
    assert "Whether the run collapsed is unknown" in card
    assert "held-out loss" not in card
    assert "It was written without a self-check." in card


def test_an_imported_model_is_not_said_to_be_trained_here(run: TrainedRun) -> None:
    imported = ImportedModel(source="their|model", run=None)
    manifest = run.manifest.model_copy(update={"imported": imported})
    card = model_card(replace(run, manifest=manifest), "offline", ())
    assert "Imported into bitnetctl" in card
    assert "\n| imported from | their\\|model |\n| exported run | – |\n" in card
    assert "Trained by" not in card
    for name in ("recipe", "seed", "training tokens", "text", "trained on"):
        assert f"| {name} |" not in card


def test_text_of_others_stays_text(run: TrainedRun) -> None:
    nasty = "file:/home/me/*a*|<script>`.txt"
    manifest = run.manifest.model_copy(update={"data": {"source": nasty, "tokenizer": "hf:me/tokens_"}})
    card = model_card(replace(run, name="a_b_c", manifest=manifest), "online", ())
    assert "\n# a\\_b\\_c\n" in card
    assert "| text | file:\\*a\\*\\|\\<script\\>\\`.txt |" in card
    assert "hf:me/tokens\\_, 300 tokens" in card


def test_the_example_of_the_card_is_python(run: TrainedRun) -> None:
    card = model_card(run, "bitlinear", ())
    compile(card.split("```python\n")[1].split("```")[0], "card", "exec")
    assert "max_new_tokens=16" in card
    assert "and `accelerate`" in card
    assert "accelerate" not in model_card(run, "plain", ())
