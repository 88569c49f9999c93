"""Text that runs write at their end: equal in every pack, after a stop, and when the run is opened again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import TinyConfig
from run_files import RUNS, Train, csv_without_speed, manifest, start_of
from training import train_runs

from bitnetctl.config import build_config
from bitnetctl.data import TokenData
from bitnetctl.data.ngrams import Ngrams
from bitnetctl.data.probe import row_positions
from bitnetctl.errors import DataError, StorageError
from bitnetctl.inference import text_samples
from bitnetctl.inference.quality import bigram_nats
from bitnetctl.inference.text_samples import TextSampler, prompts_of, takes_under_one_percent, text_of
from bitnetctl.inference.trained import open_run
from bitnetctl.records.samples import Samples, read_samples
from bitnetctl.trainer.events import Diverged, Event, Saved
from bitnetctl.trainer.loop import Trainer
from bitnetctl.trainer.options import TrainOptions


def written(name: str, runs_dir: Path = RUNS) -> Samples:
    samples = read_samples(runs_dir / name)
    assert samples is not None
    return samples


@pytest.fixture
def pair(train: Train, tiny_config: TinyConfig) -> tuple[str, str]:
    """Two runs trained as one pack, with text."""
    train([tiny_config(seed=1), tiny_config(seed=2, arm="no-decay")], names=("a", "b"), samples=True)
    return "a", "b"


def test_prompts_begin_rows_of_the_probe(tiny_tokens: TokenData, tiny_config: TinyConfig) -> None:
    held_out = np.asarray(tiny_tokens.held_out_N)
    prompts_BP, human_BN = prompts_of(tiny_tokens, tiny_config(probe__positions=512))
    assert prompts_BP.shape == (text_samples.PROMPTS, 8)
    assert human_BN.shape == (text_samples.PROMPTS, text_samples.NEW_TOKENS)
    starts = row_positions(32, 16, len(held_out))[::2, 0]
    for start, prompt, human in zip(starts, prompts_BP, human_BN, strict=True):
        assert [*prompt, *human] == held_out[start : start + 8 + text_samples.NEW_TOKENS].tolist()


def test_a_short_text_has_fewer_and_shorter_continuations(tiny_tokens: TokenData, tiny_config: TinyConfig) -> None:
    short = replace(tiny_tokens, held_out_N=tiny_tokens.held_out_N[:40])
    prompts_BP, human_BN = prompts_of(short, tiny_config(probe__positions=32))
    assert (prompts_BP.shape, human_BN.shape) == ((1, 8), (1, 32))


def test_text_does_not_depend_on_the_pack(pair: tuple[str, str], train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(seed=2, arm="no-decay"), names=["b"], samples=True, runs_dir="alone")
    assert written("b") == written("b", Path("alone"))
    assert written("a") != written("b")
    assert [manifest(name).status for name in pair] == ["finished", "finished"]


def test_an_opened_run_writes_what_it_wrote_at_its_end(pair: tuple[str, str]) -> None:
    for name in pair:
        assert text_of(open_run(name, RUNS)) == written(name)


def test_measures_are_those_of_the_texts(pair: tuple[str, str], tiny_tokens: TokenData) -> None:
    samples = written(pair[0])
    run = open_run(pair[0], RUNS)
    assert (samples.step, samples.context_length, samples.prompt_tokens) == (12, 16, 8)
    assert len(samples.texts) == 8
    prompts_BP, human_BN = prompts_of(tiny_tokens, run.config)
    assert [one.human for one in samples.texts] == [run.tokenizer.decode(row, False) for row in human_BN.tolist()]
    ngrams = Ngrams.count(tiny_tokens.train_N, np.arange(300), vocab_size=300)
    assert samples.human.bigram_nats == pytest.approx(bigram_nats(prompts_BP, human_BN, ngrams))
    # after 12 steps the model has learnt nothing: its samples are far from any text
    assert samples.sampled.bigram_nats is not None
    assert samples.human.bigram_nats is not None
    assert samples.sampled.bigram_nats > samples.human.bigram_nats + 1


@pytest.mark.parametrize("wanted", [None, False])
def test_a_short_run_writes_no_text_unless_asked_to(wanted: bool | None, train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], samples=wanted)
    assert not (RUNS / "a" / "samples.json").exists()


def test_a_stopped_run_writes_text_when_it_is_finished(
    pair: tuple[str, str], train: Train, tiny_config: TinyConfig
) -> None:
    path = RUNS / "c" / "samples.json"
    train(tiny_config(seed=1), names=["c"], samples=True, stop_after=5)
    assert not path.exists()
    path.write_text("of an earlier session", encoding="utf-8")
    train(tiny_config(seed=1), names=["c"], samples=True, stop_after=2)
    assert not path.exists()
    train(tiny_config(seed=1), names=["c"], samples=True)
    assert written("c") == written("a")


def test_a_diverged_run_writes_nothing_and_the_others_of_its_pack_do(
    pair: tuple[str, str], train: Train, tiny_config: TinyConfig
) -> None:
    def spoil(trainer: Trainer, event: Event) -> None:
        if isinstance(event, Saved) and event.step == 4:
            with torch.no_grad():
                trainer.pack.model.packed["embed"][1, 299, 3] = torch.inf

    configs = [tiny_config(seed=1), tiny_config(seed=2)]
    events = train(configs, names=("c", "d"), samples=True, watch=spoil)
    assert any(isinstance(event, Diverged) for event in events)
    assert not (RUNS / "d" / "samples.json").exists()
    assert written("c") == written("a")


def test_a_process_that_ends_while_text_is_written_loses_no_step(
    pair: tuple[str, str], train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TextSampler, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train([tiny_config(seed=1), tiny_config(seed=2)], names=("c", "d"), samples=True, checkpoint_every=1000)
    assert manifest("c").status == "running"
    events = train([tiny_config(seed=1), tiny_config(seed=2)], names=("c", "d"), samples=True)
    assert start_of(events) == 12
    assert (manifest("c").status, manifest("d").status) == ("finished", "finished")
    assert written("c") == written("a")


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), MemoryError()], ids=["kernel", "memory"])
def test_no_run_is_lost_for_its_text(
    error: Exception, train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(TextSampler, "sample", fail)
    train(tiny_config(), names=["a"], samples=True, log=lines.append)
    assert manifest("a").status == "finished"
    assert [line for line in lines if line.startswith("a: its pack writes no text")]


def test_no_run_is_lost_where_its_text_cannot_be_kept(
    train: Train, tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def full(*_: object) -> None:
        raise StorageError("samples.json: cannot write: no space")

    monkeypatch.setattr("bitnetctl.trainer.loop.write_samples", full)
    train(tiny_config(), names=["a"], samples=True, log=lines.append)
    assert manifest("a").status == "finished"
    assert lines[-1] == "a: its text is not kept: samples.json: cannot write: no space"


def test_a_run_without_weights_keeps_its_text(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], samples=True, keep_weights=False)
    assert written("a").step == 12


def test_training_goes_on_as_without_text(train: Train, tiny_config: TinyConfig) -> None:
    train(tiny_config(), names=["a"], samples=True)
    train(tiny_config(), names=["b"])
    assert csv_without_speed(RUNS / "a.csv") == csv_without_speed(RUNS / "b.csv")


def test_text_needs_the_training_text(pair: tuple[str, str], token_cache: Path) -> None:
    with pytest.raises(DataError, match="the token cache has not the text that it was trained on"):
        text_of(open_run("a", RUNS))


def test_a_run_whose_logits_are_not_finite_writes_nothing(pair: tuple[str, str]) -> None:
    run = open_run("a", RUNS)
    with torch.no_grad():
        run.model.packed["final_norm"][0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        text_of(run)


def test_text_is_on_by_default_where_it_takes_little() -> None:
    of_stdlib = {"quick": 3_420_869, "origin": 2_525_205}
    assert not takes_under_one_percent(build_config("quick"), of_stdlib["quick"])
    assert takes_under_one_percent(build_config("origin"), of_stdlib["origin"])
    # the seed and the arm do not matter, the steps that are left do
    origin = build_config("origin")
    assert takes_under_one_percent(origin.model_copy(update={"seed": 3}), of_stdlib["origin"])
    assert not takes_under_one_percent(
        origin.model_copy(update={"continues": "0" * 12 + "@19000"}), of_stdlib["origin"]
    )
    # counting the bigrams of a very large text takes longer than a short run
    assert not takes_under_one_percent(origin, 10**9)


def test_the_default_is_that_of_every_run_of_a_pack(
    tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def always(config: object, train_tokens: int) -> bool:
        asked.append(train_tokens)
        return True

    monkeypatch.setattr("bitnetctl.trainer.factory.takes_under_one_percent", always)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    for _ in train_runs([tiny_config()], TrainOptions(runs_dir=tmp_path / "runs", device="cpu")):
        pass
    assert len(asked) == 1
    assert written(tiny_config().run_name).step == 12
