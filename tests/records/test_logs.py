"""Every format of another program's log gives exactly the rows that were logged, and none is taken for another."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from foreign import (
    events,
    held_out,
    json_lines,
    lightning,
    loss,
    modded_nanogpt,
    nanochat,
    nanogpt,
    nanogpt_lines,
    tensorboard_csv,
    trainer_state,
    wandb,
    write,
)

from bitnetctl.errors import ConfigError, RecordError
from bitnetctl.records import Run, load_set
from bitnetctl.records.find import find_csvs
from bitnetctl.records.logs import recognise

Curve = dict[int, float]


def load(path: Path | str, columns: dict[str, str] | None = None) -> list[Run]:
    """Return the runs of a file, folder or pattern."""
    return load_set(find_csvs([str(path)]), columns=columns)[0]


def known(run: Run, column: str) -> Curve:
    """Return the known values of a column by step."""
    values = zip(run.steps.tolist(), run.column(column), strict=True)
    return {step: value for step, value in values if value is not None}


def known_columns(run: Run) -> list[str]:
    return [name for name in run.records.unknown if run.records.has_values(name)]


def logged(steps: range, of: Callable[[int], float] = loss) -> Curve:
    return {step: of(step) for step in steps}


def test_lightning_writes_losses_of_one_step_in_different_rows(tmp_path: Path) -> None:
    (run,) = load(lightning(tmp_path))
    assert run.name == "lightning_logs/version_0"
    assert known(run, "Loss") == logged(range(49, 1000, 50))
    assert known(run, "HeldOutLoss") == logged(range(199, 1000, 200), held_out)
    assert set(known(run, "LR").values()) == {0.0003}
    assert known_columns(run) == ["Step", "Loss", "LR", "HeldOutLoss"]
    assert "Loss = train_loss_step" in run.records.notes[0]


def test_a_mean_over_an_epoch_is_taken_where_there_is_no_other_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.csv", ["epoch,step,train_loss_epoch,val_loss", "0,99,4.5,", "0,99,,4.6"])
    (run,) = load(path)
    assert (known(run, "Loss"), known(run, "HeldOutLoss")) == ({99: 4.5}, {99: 4.6})
    assert "a mean over an epoch" in run.records.notes[0]


def test_the_trainer_state_of_hugging_face(tmp_path: Path) -> None:
    (run,) = load(trainer_state(tmp_path / "out" / "checkpoint-500"))
    assert run.name == "out/checkpoint-500"
    # not the final train_loss, a mean over the whole training
    assert known(run, "Loss") == logged(range(10, 501, 10))
    assert known(run, "HeldOutLoss") == logged(range(100, 501, 100), held_out)
    assert set(known(run, "GradNorm").values()) == {1.5}
    assert any("mean over the steps since the row before" in note for note in run.records.notes)
    # the weight decay is unknown, and so are the stages
    assert (run.planned_steps, run.is_complete, run.boundary_step) == (500, True, None)


def test_evaluations_after_a_training_with_the_trainer_are_left_out(tmp_path: Path) -> None:
    path = trainer_state(tmp_path)
    end = '      "train_runtime": 77.0\n    }'
    text = path.read_text(encoding="utf-8")
    assert end in text
    path.write_text(text.replace(end, end + ',\n{"eval_loss": 9.9, "step": 500}'), encoding="utf-8")
    (run,) = load(path)
    assert known(run, "HeldOutLoss")[500] == held_out(500)
    assert any("logged after the training; left out" in note for note in run.records.notes)


@pytest.mark.parametrize(
    ("last", "total", "planned"),
    [(500, 500, 500), (500, 1000, 1000), (500, 505, None), (499, 500, None)],
    ids=["done", "unfinished", "a last row may be missing", "counted from 0"],
)
def test_planned_steps_are_known_where_the_rows_do_not_leave_it_open(
    tmp_path: Path, last: int, total: int, planned: int | None
) -> None:
    (run,) = load(trainer_state(tmp_path, range(last % 10 or 10, last + 1, 10), total))
    assert (run.final_step, run.planned_steps) == (last, planned)


def test_wandb_exports_several_runs_in_one_file(tmp_path: Path) -> None:
    runs = {"brisk-pond-1": range(0, 1001, 50), "sweep - hidden 256 seed 3": range(0, 501, 50)}
    first, second = load(wandb(tmp_path / "wandb_export_2026-10-01T12_00_00.000+02_00.csv", runs))
    assert (first.name, first.size, first.seed) == ("brisk-pond-1", None, None)
    assert (second.name, second.size, second.seed) == ("sweep - hidden 256 seed 3", 256, 3)
    assert known(first, "Loss") == logged(range(0, 1001, 50))
    assert known(second, "Loss") == {step: loss(step) + 1 for step in range(0, 501, 50)}
    assert known(second, "HeldOutLoss") == {step: held_out(step) + 1 for step in range(0, 501, 200)}


def test_a_number_of_thousands_of_digits_in_a_name_is_no_size(tmp_path: Path) -> None:
    name = f"h{'9' * 5000}-100-baseline-s0-abcdef"
    [run] = load(wandb(tmp_path / "chart.csv", {name: range(3)}))
    assert (run.name, run.size, run.planned_steps) == (name, None, None)


def test_wandb_steps_are_the_optimizer_s_where_a_run_logs_them(tmp_path: Path) -> None:
    path = wandb(tmp_path / "chart.csv", {"a": range(0, 401, 200)}, "Relative Time (Process)", ["train/global_step"])
    (run,) = load(path)
    assert known(run, "Loss") == {0: loss(0), 400: loss(200), 800: loss(400)}
    with pytest.raises(RecordError, match=r"its axis is 'Relative Time \(Process\)', no step; .* --map Step=NAME"):
        load(wandb(tmp_path / "chart.csv", {"a": range(3)}, "Relative Time (Process)"))


def test_a_history_of_wandb_counts_optimizer_steps_where_it_has_them(tmp_path: Path) -> None:
    header = ",_step,_runtime,train/loss,val/loss"
    path = write(tmp_path / "history.csv", [header, "0,7,1.5,4.0,", "1,8,1.6,N/A,4.1"])
    (run,) = load(path)
    assert (known(run, "Loss"), known(run, "HeldOutLoss")) == ({7: 4.0}, {8: 4.1})
    assert "W&B counts _step with every call of log" in run.records.notes[1]
    (run,) = load(write(path, [f"{header},step", "0,7,1.5,4.0,,10", "1,8,1.6,,4.1,20"]))
    assert (known(run, "Loss"), known(run, "HeldOutLoss")) == ({10: 4.0}, {20: 4.1})


def test_a_mean_over_runs_and_a_table_of_runs_are_no_curves(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="'Group: a' is a mean over a group of runs"):
        load(wandb(tmp_path / "chart.csv", {"Group: a": range(3)}))
    with pytest.raises(RecordError, match="two runs have the name 'a'"):
        load(write(tmp_path / "chart.csv", ["Step,a - loss,a - loss", "1,2,3"]))
    with pytest.raises(RecordError, match="one row a run"):
        load(write(tmp_path / "table.csv", ["Name,State,eval/loss", "a,finished,2"]))


def test_tensorboard_offers_one_csv_for_every_tag(tmp_path: Path) -> None:
    tensorboard_csv(tmp_path, "exp1", "Train_Loss", logged(range(0, 1000, 50)))
    tensorboard_csv(tmp_path, "exp1", "val_loss", logged(range(0, 1000, 100), held_out))
    tensorboard_csv(tmp_path, ".", "train_loss", {0: 1.0})
    other, run = load(tmp_path)
    assert (other.name, known(other, "Loss")) == (tmp_path.name, {0: 1.0})
    assert run.name == "exp1"
    assert known(run, "Loss") == logged(range(0, 1000, 50))
    assert known(run, "HeldOutLoss") == logged(range(0, 1000, 100), held_out)


def test_a_csv_of_tensorboard_whose_name_tells_no_tag_needs_a_map(tmp_path: Path) -> None:
    path = tensorboard_csv(tmp_path, "exp1", "val_loss", {1: 2.0}).rename(tmp_path / "curve.csv")
    with pytest.raises(RecordError, match=r"tells no tag .* --map Loss=Value"):
        load(path)
    (run,) = load(path, {"HeldOutLoss": "Value"})
    assert (run.name, known(run, "HeldOutLoss"), known_columns(run)) == ("curve", {1: 2.0}, ["Step", "HeldOutLoss"])


def test_event_files_of_a_resumed_run_are_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    scalars = [(step, "train/loss", loss(step)) for step in range(0, 400, 10)]
    folder = tmp_path / "logs" / "exp1"
    events(folder / "events.out.tfevents.1700000000.host.1.0", [*scalars, (300, "eval/loss", held_out(300))])
    resumed = [(step, "train/loss", loss(step) + 0.5) for step in range(300, 500, 10)]
    events(folder / "events.out.tfevents.1700009999.host.1.0", [*resumed, (490, "some/image_loss_scale", 1.0)])
    (run,) = load(tmp_path / "logs")
    assert run.name == "exp1"
    expected = logged(range(0, 300, 10)) | {step: loss(step) + 0.5 for step in range(300, 500, 10)}
    assert known(run, "Loss") == pytest.approx(expected, rel=1e-6)
    assert any("resumed at step 300" in note for note in run.records.notes)


def test_event_files_need_an_extra_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.out.tfevents.1700000000.host"
    path.write_bytes(b"\x18\0\0\0\0\0\0\0\xa3\x7fK\x22\t\0\0\xc0\x9a\x00\x00\xdaA\x1a\rbrain.Event:2\xec\xd0\xc5\xf5")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'bitnetctl\[tensorboard\]'"):
        load(path)


def test_a_damaged_event_file_is_no_shorter_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path = events(tmp_path / "events.out.tfevents.1.host", [(step, "loss", loss(step)) for step in range(50)])
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    (run,) = load(path)
    assert (run.final_step, run.records.torn) == (48, f"{path.name}: torn last record 51 dropped")
    path.write_bytes(content[:900] + b"\xff" + content[901:])
    with pytest.raises(RecordError, match=r"record \d+ is damaged \(checksum differs\)"):
        load(path)


def test_nanogpt_prints_the_loss_of_the_batch_and_of_evaluations(tmp_path: Path) -> None:
    (run,) = load(nanogpt(tmp_path / "out.log"))
    assert known(run, "Loss") == pytest.approx({step: loss(step) + 0.03 for step in range(0, 1001, 10)})
    assert known(run, "HeldOutLoss") == logged(range(0, 1001, 250), held_out)
    (run,) = load(tmp_path / "out.log", {"Loss": "train loss"})
    assert known(run, "Loss") == logged(range(0, 1001, 250))
    assert not any("a mean over batches" in note for note in run.records.notes)
    (run,) = load(write(tmp_path / "evaluations.log", ["step 0: train loss 4.5147, val loss 4.5159"]))
    assert (known(run, "Loss"), known(run, "HeldOutLoss")) == ({0: 4.5147}, {0: 4.5159})
    assert any("a mean over batches" in note for note in run.records.notes)


def test_nanochat_prints_a_moving_average_and_bits_per_byte(tmp_path: Path) -> None:
    (run,) = load(nanochat(tmp_path / "speedrun.log"))
    assert known(run, "Loss") == logged(range(200))
    assert known_columns(run) == ["Step", "Loss"]
    notes = " ".join(run.records.notes)
    assert "moving average" in notes
    assert "bits per byte (bpb) are no loss per token" in notes
    assert run.planned_steps is None


def test_modded_nanogpt_prints_its_program_first(tmp_path: Path) -> None:
    (run,) = load(modded_nanogpt(tmp_path / "4d2e.txt"))
    assert known(run, "HeldOutLoss") == {step: held_out(step) for step in (*range(0, 1480, 125), 1480)}
    assert (known_columns(run), run.planned_steps) == (["Step", "HeldOutLoss"], 1480)


LINES = {
    "llm.c": (
        [
            "val loss 11.033154",
            *(f"step {s:4d}/3 | loss {loss(s):.4f} (+nanz)| norm 22.1 (+nanz)| lr 8.5e-07 | 24 ms" for s in (1, 2, 3)),
            "validation loss: 10.6099",
        ],
        {1: loss(1), 2: loss(2), 3: loss(3)},
        {},
        {"LR": 8.5e-7, "GradNorm": 22.1},
    ),
    "llm.c main.log": (
        ["s:0 tel:11.0166", "s:1 trl:10.9 lr:0.0006 norm:1.20", "s:250 tel:6.1", "s:250 eval:0.25"],
        {1: 10.9},
        {0: 11.0166, 250: 6.1},
        {"LR": 0.0006, "GradNorm": 1.2},
    ),
    "build-nanogpt": (
        ["0 val 10.9511", "0 hella 0.2463", "0 train 10.955029", "1 train nan"],
        {0: 10.955029, 1: math.nan},
        {0: 10.9511},
        {},
    ),
    "torchtitan": (
        [
            "[rank0]:[titan] 2025-06-04 08:51:48,074 - root - INFO - step: 10  loss: 10.7069  grad_norm:  3.6453  "
            "memory: 30.99GiB(32.62%)  tps: 7,034  mfu: 41.19%",
            "[rank0]:[titan] 2025-06-04 08:51:48,074 - root - INFO - validate step: 10  loss: 10.8  memory: 9GiB",
        ],
        {10: 10.7069},
        {10: 10.8},
        {"GradNorm": 3.6453},
    ),
    "Megatron": (
        [
            " [2025-08-01 07:19:37] iteration       10/    5000 | consumed samples:  1280 | elapsed time per iteration "
            "(ms): 19138.8 | learning rate: 6.9E-08 | lm loss: 1.043863E+01 | loss scale: 4096.0 | grad norm: 26.203 |",
            " validation loss at iteration 10 | lm loss value: 1.05E+01 | lm loss PPL: 3.6E+04 | ",
        ],
        {10: 10.43863},
        {10: 10.5},
        {"LR": 6.9e-8, "GradNorm": 26.203},
    ),
    "of updates, not of micro-batches": (
        [
            "Epoch 1 | iter 64 step 2 | loss train: 10.9, val: n/a | iter time: 98.1 ms (step)",
            "Epoch 1 | iter 96 step 3 | loss train: 10.8, val: 10.7",
        ],
        {2: 10.9, 3: 10.8},
        {3: 10.7},
        {},
    ),
    "with colours": (["\x1b[32mstep: 5\x1b[0m \x1b[31mloss: 9.5\x1b[0m", "warmup_step:1/2 loss:1"], {5: 9.5}, {}, {}),
}


@pytest.mark.parametrize(("lines", "losses", "held", "others"), LINES.values(), ids=LINES)
def test_lines_of_other_programs(
    tmp_path: Path, lines: list[str], losses: Curve, held: Curve, others: dict[str, float]
) -> None:
    (run,) = load(write(tmp_path / "train.log", ["starting …", *lines, "done, loss of memory 3"]))
    assert known(run, "Loss") == pytest.approx(losses, nan_ok=True)
    assert known(run, "HeldOutLoss") == held
    left_out = "held-out losses in 2 lines without a step are left out" in run.records.notes
    assert left_out == any(line.startswith("val") for line in lines[:1])
    assert {name: set(known(run, name).values()) for name in others} == {
        name: {value} for name, value in others.items()
    }


def test_json_lines_with_nan_and_settings(tmp_path: Path) -> None:
    (run,) = load(json_lines(tmp_path / "scalars.jsonl"))
    assert {step: value for step, value in known(run, "Loss").items() if step < 900} == logged(range(10, 900, 10))
    assert (run.diverged_at, run.final_step) == (900, 1000)
    assert known(run, "HeldOutLoss") == logged(range(100, 1001, 100), held_out)
    assert "1 object without a step left out" in run.records.notes


def test_json_of_nested_objects_text_numbers_and_an_array(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(
        '[{"iter": 1, "metrics": {"loss": "4.5", "val": {"loss": 4.6}}}, {"iter": 2.0, "metrics": {"loss": 4}}]'
    )
    (run,) = load(path, {"Loss": "metrics/loss", "HeldOutLoss": "metrics/val/loss"})
    assert (known(run, "Loss"), known(run, "HeldOutLoss")) == ({1: 4.5, 2: 4.0}, {1: 4.6})


def test_a_loss_in_bits_is_converted_where_its_perplexity_tells(tmp_path: Path) -> None:
    entry = '2021-03-08 12:31:36 | INFO | train_inner | {{"epoch": 1, "loss": "{}", "ppl": "{}", "num_updates": "{}"}}'
    lines = [entry.format(16.475, 91120.8, 1), entry.format(15.0, 32768, 2)]
    valid = (
        '2021-03-08 12:43:15 | INFO | valid | {"valid_loss": "14.5", "valid_ppl": "23170.5", "valid_num_updates": "2"}'
    )
    (run,) = load(write(tmp_path / "train.log", ["begin training epoch 1", *lines, valid]))
    assert known(run, "Loss") == pytest.approx({1: 16.475 * math.log(2), 2: 15.0 * math.log(2)})
    assert known(run, "HeldOutLoss") == pytest.approx({2: 14.5 * math.log(2)})
    assert "converted to nats" in run.records.notes[0]
    nats = [{"step": step, "loss": 5.0, "ppl": 148.4} for step in (1, 2)]
    (run,) = load(write(tmp_path / "nats.jsonl", [str(row).replace("'", '"') for row in nats]))
    assert known(run, "Loss") == {1: 5.0, 2: 5.0}


def test_a_resumed_log_replaces_what_was_logged_from_there_on(tmp_path: Path) -> None:
    lines = [*nanogpt_lines(range(745)), *nanogpt_lines(range(500, 1001), shift=0.5)]
    (run,) = load(write(tmp_path / "run.log", lines))
    assert known(run, "HeldOutLoss") == pytest.approx(
        {0: held_out(0), 250: held_out(250)} | {s: held_out(s) + 0.5 for s in (500, 750, 1000)}
    )
    assert known(run, "Loss")[490] == pytest.approx(loss(490) + 0.03)
    assert known(run, "Loss")[500] == pytest.approx(loss(500) + 0.53)
    (note,) = [note for note in run.records.notes if "resumed" in note]
    assert "resumed at step 500" in note


def test_an_evaluation_that_is_logged_late_is_no_resume(tmp_path: Path) -> None:
    rows = [f'{{"step": {step}, "loss": {loss(step)}}}' for step in range(1, 41)]
    rows[24:24] = ['{"step": 20, "val_loss": 9.0}', '{"step": 20, "val_loss": 9.0}']
    (run,) = load(write(tmp_path / "a.jsonl", rows))
    assert known(run, "Loss") == logged(range(1, 41))
    assert known(run, "HeldOutLoss") == {20: 9.0}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["step 1 loss 5.0", "step 2 loss 4.0", "step 1 loss 5.1"], r":3: begins again at step 1: two runs in one log"),
        (["step 1 loss 5.0", "step 1 loss 5.1"], r":2: 'loss' has two values at step 1 \(5 and 5.1\)"),
        (
            [f"step {step} loss {step}" for step in (1, 9, 2, 3, 9, 4, 5, 9, 6)],
            r":9: goes back 3 times: runs or processes are mixed",
        ),
        (["step 1 loss_scale 5.0 mem 3"], "no header"),
        (
            ["step 1 | aux loss 5.0 | lr 0.1"],
            r"no loss in it that is known by name; there are aux loss, lr; --map Loss=NAME",
        ),
    ],
)
def test_logs_that_are_no_run_s(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        load(write(tmp_path / "a.log", lines))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.csv", "epoch,step,train_loss\n0,1,2\n0,2\n", r"metrics.csv:3: 2 cells for 3 columns"),
        ("metrics.csv", "epoch,step,train_loss\n0,1,2\n0,2,x3\n", r"metrics.csv:3: 'train_loss' is 'x3', not a number"),
        (
            "metrics.csv",
            "epoch,step,train_loss\n0,1.5,2\n",
            r"metrics.csv:2: the step 'step' is '1.5', not a whole number",
        ),
        ("metrics.csv", "epoch,step,train_loss\n0,-1,2\n", r"metrics.csv:2: the step 'step' is '-1'"),
        ("metrics.csv", "epoch,step,train_loss\n", r"metrics.csv: no values of training in it"),
        ("metrics.csv", "epoch,step,train_loss,step\n0,1,2,3\n", r"metrics.csv:1: duplicate columns: 'step'"),
        ("metrics.csv", "step,train_loss\n1,1e999\n", r"metrics.csv:2: 'train_loss' is '1e999', too large"),
        (
            "metrics.csv",
            "step,train_loss,val_loss\n" + "".join(f"{s},{s},nan\n{s + 1},nan,{s}\n" for s in range(1, 9, 2)),
            "is NaN in 4 rows between numbers; leave cells without a value empty",
        ),
        ("a.jsonl", '{"step": 1, "loss": 2}\n{"step": 2, "lo\n{"step": 3, "loss": 2}\n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", '{"step": 1, "loss": 2}\n[1]\n', r"a.jsonl:2: not an object"),
        ("a.jsonl", '{"step": 1, "loss": true}\n', r"a.jsonl:1: 'loss' is True, not a number"),
        ("a.jsonl", '{"step": 1, "acc": 2}\n', r"a.jsonl: no values of training in it; there are acc"),
        ("trainer_state.json", '{"log_history": [{"loss": 1, "st', "trainer_state.json: not JSON, or cut short"),
        ("trainer_state.json", '{"log_history": [{"loss": 1}]}', r"entry of log_history 1: the step 'step' is empty"),
        ("trainer_state.json", '{"log_history": {}}', r"no list log_history"),
        ("run-a-tag-loss.csv", "Wall time,Step,Value\n1,1,2,3\n", r"run-a-tag-loss.csv:2: 4 cells for 3 columns"),
        ("run-a-tag-loss.csv", "Wall time,Step,Value\n1,x,2\n", r"run-a-tag-loss.csv:2: 'Step' is 'x', not a number"),
        ("w.csv", '"Step","a - loss"\n"1","2"\n"2","x"\n', r"w.csv:3: 'loss' is 'x', not a number"),
        ("w.csv", '"Step","a - loss"\n"1","2\n', r"w.csv: not a CSV that can be read"),
    ],
)
def test_damaged_logs_give_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "torn"),
    [
        (
            "a.log",
            "step 1 loss 5.0\nstep 2 loss 4.",
            "line 2: the last line has no newline; its values may be cut short",
        ),
        ("a.jsonl", '{"step": 1, "loss": 5.0}\n{"step": 2, "lo', "line 2: torn last line dropped"),
        ("a.jsonl", '{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4}', None),
        ("metrics.csv", "step,loss\n1,5.0\n2,4.", "the last row has no newline; its last cell may have been cut short"),
    ],
)
def test_the_end_of_a_log_that_is_cut_short(tmp_path: Path, name: str, text: str, torn: str | None) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    (run,) = load(path)
    assert run.records.torn == torn


def test_no_format_is_taken_for_another_whatever_the_name(tmp_path: Path) -> None:
    titles = {
        lightning(tmp_path / "a"): "PyTorch Lightning metrics.csv and other tables of curves",
        trainer_state(tmp_path / "b"): "Hugging Face trainer_state.json",
        wandb(tmp_path / "c.csv", {"a": range(3)}): "W&B CSV export of a chart",
        tensorboard_csv(tmp_path, "a", "loss", {1: 2.0}): "TensorBoard CSV of a tag",
        nanogpt(tmp_path / "d.log"): "text logs of trainings",
        nanochat(tmp_path / "e.log"): "text logs of trainings",
        json_lines(tmp_path / "f.jsonl"): "JSONL of scalars",
        write(tmp_path / "own.csv", ["Step,Loss,UniquePredictions,LR,WD,step", "1,2,3,4,5,6"]): None,
        write(
            tmp_path / "old.csv", ["256-hidden step 20000 loss 4", "Step,Loss,UniquePredictions,LR,WD", "1,2,3,4,5"]
        ): None,
        write(tmp_path / "cut.csv", ["Step,Loss,UniquePredictions,LR", "1,2,3,4"]): None,
        write(tmp_path / "prose.txt", ["The loss of step 5 was a step back."]): None,
        write(tmp_path / "text.jsonl", ['{"text": "step 1 loss 2"}']): "JSONL of scalars",
        write(tmp_path / "other.csv", ["a,b,c", "1,2,3"]): None,
    }
    for path, title in titles.items():
        renamed = path.rename(tmp_path / f"renamed-{len(list(tmp_path.iterdir()))}")
        found = recognise(renamed)
        assert (found.title if found else None) == title, path


def test_the_own_columns_in_other_words_are_no_foreign_log(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("epoch,step,loss,unique_predictions,lr,wd,grad_norm\n0,1,7.5,90,0.1,0.1,2\n", encoding="utf-8")
    assert recognise(path) is None
    [run], _ = load_set([path])
    assert (run.records.origin, run.records.value("UniquePredictions", 0)) == (None, 90.0)
