"""The callback in trainings of transformers.Trainer: rows, rates, resume, errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import LENGTH, VOCAB, make_probe, manifest, recorded, tokens

from bitnetctl.errors import ConfigError
from bitnetctl.recorder.measure import CallableProbe

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

STEPS = 6


def make_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=VOCAB, max_position_embeddings=16, attention_dropout=0.1, **shape)
    return transformers.LlamaForCausalLM(config)


def arguments(**changes: Any) -> Any:
    known: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "save_strategy": "no",
    }
    quiet: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "logging_steps": 1000}
    return transformers.TrainingArguments("out", **(known | quiet | changes))


def train(callback: Any, *others: Any, model: Any = None, resume: str | None = None, **changes: Any) -> Any:
    data = torch.from_numpy(tokens(2, 60 * LENGTH)).view(-1, LENGTH)
    model = model or make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (step + 1))
    trainer = transformers.Trainer(
        model,
        arguments(**changes),
        train_dataset=[{"input_ids": row, "labels": row} for row in data],
        optimizers=(optimizer, schedule),
        callbacks=[callback, *others],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def callback(path: str = "runs/a.csv", **settings: Any) -> Any:
    from bitnetctl.integrations.transformers import CollapseCallback

    return CollapseCallback(path, **{"probe": make_probe(), "arm": "adam", **settings})


def test_rows_hold_what_the_training_did() -> None:
    one = callback(eval_every_steps=2)
    trainer = train(one)
    run = recorded()
    assert run.steps.tolist() == [1, 2, 4, 6]
    # the rates of the step itself, not of the next
    assert run.column("LR") == pytest.approx([0.01 / step for step in (1, 2, 4, 6)])
    assert run.column("WD") == [0.1] * 4
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    assert run.column("Loss") == [logged[step]["loss"] for step in (1, 2, 4, 6)]
    assert run.column("GradNorm") == [logged[step]["grad_norm"] for step in (1, 2, 4, 6)]
    # the last row is of the model as it is now
    expected = CallableProbe(make_probe()).measure(trainer.model)
    assert {name: run.row(3)[name] for name in expected} == expected
    assert trainer.model.training
    assert (run.arm, run.seed, run.size, run.planned_steps, run.is_complete) == ("adam", 42, 16, STEPS, True)
    tree = manifest()
    assert tree["status"] == "finished"
    assert tree["external"]["trainer"] == f"transformers {transformers.__version__}"
    settings = tree["external"]["settings"]
    assert (settings["optimizer"], settings["optimizer.weight_decay"]) == ("Adam", 0.1)
    assert settings["arguments.per_device_train_batch_size"] == 2
    assert one.recorder is not None
    assert one.recorder.last_step == STEPS


def test_measuring_changes_nothing_of_the_training() -> None:
    measured, plain = train(callback()), train(transformers.TrainerCallback())
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, measured.model.state_dict()[name]), name


def test_a_twentieth_of_the_steps_is_the_default() -> None:
    train(callback(), max_steps=45)
    assert recorded().steps.tolist() == [1, *range(2, 45, 2), 45]


def test_accumulated_batches_are_one_step() -> None:
    train(callback(eval_every_steps=1), gradient_accumulation_steps=3, max_steps=3)
    assert recorded().steps.tolist() == [1, 2, 3]
    assert manifest()["external"]["settings"]["arguments.gradient_accumulation_steps"] == 3


def test_a_training_goes_on_from_its_checkpoint() -> None:
    train(callback(eval_every_steps=2), save_strategy="steps", save_steps=3)
    whole = Path("runs/a.csv").read_bytes()
    with pytest.raises(ConfigError, match="has rows of a run"):
        train(callback(eval_every_steps=2))
    # the same training, from its middle
    train(callback(eval_every_steps=2), resume="out/checkpoint-3")
    assert [session["from_step"] for session in manifest()["sessions"]] == [0, 3]
    rows, again = (text.splitlines() for text in (whole.decode(), Path("runs/a.csv").read_text(encoding="utf-8")))
    assert again[:3] == rows[:3]
    assert [row.split(",")[0] for row in again] == [row.split(",")[0] for row in rows]


class Stop(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == 3:
            if self.error is not None:
                raise self.error
            control.should_training_stop = True
        return control


def test_a_training_that_stops_early_is_measured_where_it_stops() -> None:
    train(callback(eval_every_steps=2), Stop())
    assert recorded().steps.tolist() == [1, 2, 3]
    assert (manifest()["status"], recorded().is_complete) == ("stopped", False)


def test_an_error_is_noted() -> None:
    one = callback(eval_every_steps=2)
    with pytest.raises(ValueError, match="boom"), one:
        train(one, Stop(ValueError("boom")))
    assert (manifest()["status"], manifest()["message"]) == ("failed", "ValueError: boom")
    assert recorded().steps.tolist() == [1, 2]


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "logits": lambda model, x: model(input_ids=x).logits,
    "output": lambda model, x: model(x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_the_model_gives_the_same_rows(name: str) -> None:
    train(callback())
    train(callback("runs/b.csv", logits=FUNCTIONS[name], ternary_codes=lambda model: {"up": torch.zeros(3)}))
    first, second = recorded(), recorded("runs/b.csv")
    assert first.column("HeldOutLoss") == second.column("HeldOutLoss")
    assert second.column("ZeroFraction") == [1.0] * STEPS
    assert first.column("ZeroFraction") == [None] * STEPS


def test_a_model_in_bf16() -> None:
    train(callback(), model=make_model().to(torch.bfloat16))
    assert np.isfinite(recorded().values("HeldOutLoss")).all()


def test_settings_go_before_what_the_trainer_tells() -> None:
    train(callback(seed=7, size=99, boundary_step=2, settings={"data": "b", "optimizer": "mine"}))
    run = recorded()
    assert (run.seed, run.size, run.boundary_step) == (7, 99, 2)
    settings = manifest()["external"]["settings"]
    assert (settings["data"], settings["optimizer"], settings["optimizer.lr"]) == ("b", "mine", 0.01)


def test_an_interval_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="eval_every_steps is 0"):
        callback(eval_every_steps=0)


def test_only_the_first_process_writes_and_every_one_asks_for_the_loss() -> None:
    one = callback(eval_every_steps=2)
    state = transformers.TrainerState(max_steps=6, is_world_process_zero=False)
    control, args = transformers.TrainerControl(), arguments()
    model = make_model()
    one.on_train_begin(args, state, control, model=model, optimizer=None)
    state.global_step = 2
    assert one.on_step_end(args, state, control).should_log
    one.on_log(args, state, control, {"loss": 1.0}, model=model)
    one.on_train_end(args, state, control, model=model)
    assert not Path("runs").exists()
    assert one.recorder is None
