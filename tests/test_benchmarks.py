import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import harness, large
from benchmarks.floor import Floor, attention_flops, products
from benchmarks.overhead import Watch
from benchmarks.reference import PlainModel, StockLoop, group_of, plain_model
from benchmarks.step import floor_ms
from benchmarks.worker import Job, zipf_tokens
from bitnetctl.config import RunConfig, build_config
from bitnetctl.intervention import Composition
from bitnetctl.model import num_parameters, storages
from bitnetctl.step import Pack

CPU = torch.device("cpu")
VOCABULARY = 96
TINY = (
    "model.hidden_size=32",
    "model.num_layers=2",
    "data.batch_size=2",
    "data.sequence_length=16",
    "schedule.warmup_steps=2",
)


def tiny(recipe: str, *overrides: str) -> RunConfig:
    # other seeds can put the first token's whole-number sums exactly between two int8 codes, where the last bit decides
    return build_config(recipe, steps=20, seed=2, overrides=[*TINY, *overrides])


def both(config: RunConfig) -> tuple[PlainModel, StockLoop, Pack]:
    """The reference, its loop and the trainer, on the same tokens."""
    tokens = zipf_tokens(VOCABULARY, config, count=4000)
    model = plain_model(config, VOCABULARY, CPU)
    return model, StockLoop(model, config, tokens, CPU), Pack([config], [Composition()], tokens, CPU)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "config",
    [
        tiny("quick"),
        tiny("b158"),
        tiny("portable"),
        tiny("quick", "model.num_key_value_heads=2", "model.scale_group=projection"),
    ],
    ids=["quick", "b158", "portable", "grouped"],
)
def test_trainer_and_reference_train_the_same(config: RunConfig) -> None:
    model, reference, pack = both(config)
    for step in range(1, 4):
        loss = reference.step(step)
        pack.step(step)
        assert pack.loss_R[0].item() == pytest.approx(loss, abs=1e-8)
    trained = PlainModel(config.model, VOCABULARY)
    trained.load_packed(pack.model.parameters(0))
    for (name, its), (_, mine) in zip(model.named_parameters(), trained.named_parameters(), strict=True):
        if group_of(name) != "norms":
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-6, msg=f"{name} differs")


def test_trainer_and_reference_agree_in_fp32() -> None:
    _, reference, pack = both(tiny("quick"))
    for step in range(1, 4):
        loss = reference.step(step)
        pack.step(step)
        # a rounding that falls the other way moves the loss in the fourth decimal
        assert pack.loss_R[0].item() == pytest.approx(loss, abs=2e-3)


@pytest.mark.parametrize("recipe", ["quick", "portable"])
def test_floor_counts_six_flops_for_every_multiplied_parameter_and_token(recipe: str) -> None:
    config = tiny(recipe)
    unmultiplied = sum(
        torch.Size(storage.shape).numel()
        for storage in storages(config.model, VOCABULARY).values()
        if storage.group == "norms" or (storage.group == "embeddings" and not config.model.tie_word_embeddings)
    )
    multiplied = num_parameters(config.model, VOCABULARY) - unmultiplied
    tokens = config.data.batch_size * config.data.sequence_length
    assert sum(product.flops(tokens) for product in products(config, VOCABULARY)) == 6 * multiplied * tokens
    floor = Floor(config, VOCABULARY, CPU, runs=3)
    assert floor.flops == 3 * (6 * multiplied * tokens + attention_flops(config))


def contender(name: str, seconds: list[float], order: list[str]) -> harness.Contender:
    """Take as long as it is told, and note the turn."""
    turns = iter(seconds)

    def take(steps: int) -> harness.Turn:
        order.append(name)
        return {"steps": steps, "seconds": next(turns), "faults": 4 * steps, "losses": [1.0] * steps, "peak_bytes": 7}

    return harness.Contender(name, take)


def test_contenders_take_turns_and_the_first_is_left_out() -> None:
    order: list[str] = []
    racing = [contender("a", [100.0, 2.0, 6.0, 4.0], order), contender("b", [0.0, 1.0, 1.0, 1.0], order)]
    harness.alternate(racing, rounds=3, steps=2)
    assert order == ["a", "b"] * 4
    assert [one.milliseconds() for one in racing] == [2000.0, 500.0]
    assert racing[0].median("faults") == 4.0
    assert len(racing[0].losses()) == 8
    assert harness.ratio(racing[0].milliseconds(), racing[1].milliseconds()) == 4.0


def test_a_contender_that_breaks_leaves_the_race() -> None:
    answers: Iterator[harness.Turn] = iter([{"steps": 1, "seconds": 1.0}, {"error": "MemoryError: none left"}])
    broken = harness.Contender("broken", lambda steps: next(answers))
    absent = harness.Contender("absent", lambda steps: pytest.fail("it cannot run"), note="not installed")
    harness.alternate([broken, absent], rounds=3, steps=1)
    assert broken.failed
    assert not absent.failed
    assert broken.milliseconds() is None
    assert absent.milliseconds() is None
    assert harness.ratio(1.0, broken.milliseconds()) is None
    assert harness.notes([broken, absent]) == {"broken": "MemoryError: none left", "absent": "not installed"}


def test_report_prints_and_writes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    rows = [{"what": "a", "ms": 1.23456, "other": None}, {"what": "b", "ms": 12345.6, "other": 3}]
    harness.report("title", rows, {"threads": 2}, path)
    printed = capsys.readouterr().out
    for text in ("title", "1.235", "12,346", "–", "threads: 2"):
        assert text in printed
    assert json.loads(path.read_text()) == {"title": "title", "rows": rows, "threads": 2}


def test_floor_is_the_median_of_its_turns() -> None:
    floor = harness.Contender("floor", lambda steps: {"steps": 1, "fp32": 0.002})
    assert floor_ms(floor, "fp32") is None
    floor.take_turn(9)
    assert floor_ms(floor, "fp32") == pytest.approx(2.0)
    assert floor_ms(floor, "bf16") is None


def test_large_without_a_card_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["large.py", "--json", str(tmp_path / "large.json")])
    assert large.main() == 0
    assert "no GPU: nothing measured" in capsys.readouterr().out
    assert json.loads((tmp_path / "large.json").read_text())["rows"] == []


def test_worker_trains_and_answers() -> None:
    jobs = {
        "reference": Job(kind="reference", overrides=TINY, vocab_size=VOCABULARY),
        "int8": Job(kind="ours", overrides=TINY, vocab_size=VOCABULARY, precision="int8"),
    }
    with harness.contenders(jobs) as racing:
        harness.alternate(racing, rounds=1, steps=2)
    reference, missing = racing
    assert len(reference.losses()) == 4
    assert reference.peak_bytes()
    assert "int8" in missing.note
    assert not missing.failed


def test_watch_gives_inner_calls_to_the_outer() -> None:
    watch = Watch()
    inner = watch.timed("inner", lambda: None)
    outer: Callable[[], Any] = watch.timed("outer", inner)
    outer()
    inner()
    assert {name: len(taken) for name, taken in watch.seconds.items()} == {"outer": 1, "inner": 1}
    assert watch.total() == sum(sum(taken) for taken in watch.seconds.values())
