"""Logs of other programs from the command line: what `analyze` and `verify` say of them, `--map`, bundles."""

import json
from pathlib import Path

import pytest
from calling import Done, call
from foreign import held_out, json_lines, lightning, loss, nanogpt, tensorboard_csv, trainer_state, wandb, write
from synthetic import quick, simple_run

from bitnetctl.api import analyze as analyze_runs, load_runs
from bitnetctl.report.html.curves import page_data
from bitnetctl.report.plots import curves

pytestmark = pytest.mark.usefixtures("plain_environment")


def analyze(*arguments: str | Path) -> Done:
    return call("analyze", *arguments)


def verify(*arguments: str | Path) -> Done:
    return call("verify", *arguments)


def test_analyze_shows_what_is_known_of_logs_of_several_programs(tmp_path: Path) -> None:
    chart = wandb(tmp_path / "chart.csv", {"sweep - a": range(0, 1001, 50), "sweep - b": range(0, 1001, 50)})
    done = analyze(
        "--details",
        lightning(tmp_path, shift=0.5),
        trainer_state(tmp_path / "out", shift=0.25),
        chart,
        nanogpt(tmp_path / "gpt.log"),
    )
    assert (done.code, done.err) == (0, "")
    assert "held-out loss (nats)" in done.out
    runs = analyze(tmp_path / "out", chart, tmp_path / "gpt.log", "--json").json["runs"]
    by_name = {run["name"]: run for run in runs}
    assert by_name.keys() == {"out", "sweep - a", "sweep - b", "gpt"}
    assert by_name["gpt"]["final_held_out_loss"] == held_out(1000)
    assert by_name["out"]["final_training_loss"] == loss(500) + 0.25
    unknown = ("size", "seed", "boundary_step", "final_unique", "final_skill", "collapsed_at", "collapsed_fraction")
    assert all(run[field] is None for run in by_name.values() for field in unknown)


def test_rare_held_out_losses_of_a_long_log_are_drawn(tmp_path: Path) -> None:
    lines = [f"step {step} loss {loss(step)}" for step in range(1, 20_000)]
    for step in range(999, 20_000, 1000):
        lines[step - 1] += f", val loss {held_out(step)}"
    shown = analyze_runs(load_runs(write(tmp_path / "long.log", lines)))
    (curve,) = curves(shown, "HeldOutLoss", logarithmic=False).values()
    assert list(curve) == list(range(999, 20_000, 1000))
    (drawn,) = page_data(shown)["runs"]
    assert sum(value is not None for value in drawn["values"]["HeldOutLoss"]) == 20


def test_verify_of_a_log_is_inconclusive_and_says_what_is_unknown(tmp_path: Path) -> None:
    done = verify(nanogpt(tmp_path / "gpt.log"), "--steps", "1000", "--json")
    assert done.code == 5
    assert done.json["verdict"] == "inconclusive"
    reasons = [reason for verdict in done.json["verdicts"] for reason in verdict["reasons"]]
    assert any("UniquePredictions is unknown in 101 of 101 rows" in reason for reason in reasons)
    notes = [note for verdict in done.json["verdicts"] for note in verdict["notes"]]
    assert any("losses taken as nats per token; all other columns are unknown" in note for note in notes)


def test_a_log_that_diverged_is_refuted(tmp_path: Path) -> None:
    done = verify(json_lines(tmp_path / "scalars.jsonl"), "--criteria", "origin", "--json")
    assert (done.code, done.json["verdict"]) == (1, "refuted")
    assert "diverged at step 900" in done.json["verdicts"][0]["reasons"][0]


def test_a_log_is_judged_by_what_it_has(tmp_path: Path) -> None:
    criteria = tmp_path / "low.toml"
    criteria.write_text(
        '[seeds]\nrule = "every"\nmin_seeds = 1\n[[checks]]\nkind = "finite"\ncolumns = ["Loss"]\n'
        '[[checks]]\nkind = "finished"\n'
        '[[checks]]\nkind = "level"\nmeasure = "HeldOutLoss"\nlast = 1\nsupported_below = 3.5\nrefuted_above = 4.0\n',
        encoding="utf-8",
    )
    log = nanogpt(tmp_path / "gpt.log")
    assert verify(log, "--criteria", criteria, "--steps", "1000").code == 0
    # neither a longer run nor one that is cut short
    assert verify(log, "--criteria", criteria, "--steps", "1001").code == 5
    log.write_bytes(log.read_bytes()[:-1])
    assert verify(log, "--criteria", criteria, "--steps", "1000").code == 5


def test_a_bundle_of_logs_is_judged_the_same(tmp_path: Path) -> None:
    chart = wandb(tmp_path / "chart.csv", {"h100 - a": range(0, 1001, 50), "CON": range(0, 1001, 50)})
    logs = [chart, trainer_state(tmp_path / "out", shift=0.25), json_lines(tmp_path / "scalars.jsonl")]
    bundle = tmp_path / "all.zip"
    given = verify(*logs, "--map", "LR=lr,Loss=train/loss", "--bundle", bundle, "--json")
    assert "no 'lr' in it" in given.err
    given = verify(*logs, "--bundle", bundle, "--json")
    again = verify(bundle, "--json")
    assert (given.code, again.code) == (1, 1)

    def told(tree: dict[str, object]) -> str:
        return json.dumps(tree).replace(str(tmp_path), "")

    assert told(given.json) == told(again.json)


def test_a_damaged_log_stops_no_other(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", ['{"step": 1, "loss": 2}', "{"])
    done = analyze(nanogpt(tmp_path / "gpt.log"), bad)
    assert done.code == 2
    assert f"{bad}:2: not JSON" in done.err
    assert "gpt" in done.out


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first, second = trainer_state(tmp_path / "a" / "checkpoint-500"), lightning(tmp_path / "b", shift=0.25)
    third = lightning(tmp_path / "c", shift=0.5)
    names = [run["name"] for run in analyze(first, second, third, "--json").json["runs"]]
    assert names == ["a/checkpoint-500", str(second), str(third)]


def test_of_the_checkpoints_of_a_training_the_last_counts(tmp_path: Path) -> None:
    for last in (100, 300, 200):
        trainer_state(tmp_path / f"checkpoint-{last}", range(10, last + 1, 10))
    events = tmp_path / "runs" / "Nov26_host" / "events.out.tfevents.1.host"
    events.parent.mkdir(parents=True)
    events.write_bytes(b"not read where there is another log")
    (run,) = analyze(tmp_path, "--json").json["runs"]
    assert (run["final_step"], run["planned_steps"]) == (300, 500)


def test_a_folder_without_logs_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "data" / "corpus.jsonl", ['{"text": "a step in the loss"}'])
    message = f"error: {tmp_path}: no CSV in this folder, and no log of another program below it"
    assert analyze(tmp_path).error == message


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("Loos=loss", "'Loos' is no column of a run; did you mean 'Loss'?"),
        ("loss", "expected COLUMN=NAME, such as Loss=train/loss"),
        ("Loss=a,Loss=b", "Loss is both 'a' and 'b'; give it once"),
        ("Loss=a,HeldOutLoss=a", "'a' cannot be both Loss and HeldOutLoss"),
        ("Loss=val/perplexity", "'val/perplexity' is not a loss in nats per token"),
        ("HeldOutLoss=val_acc", "'val_acc' is not a loss in nats per token"),
        ("Loss=train/los", "no 'train/los' in it; there are config/lr, config/seed, train/loss, train/learning_rate"),
        ("Step=iter", "no 'iter' in it; there are"),
    ],
)
def test_a_map_that_cannot_be_meant(tmp_path: Path, option: str, message: str) -> None:
    log = json_lines(tmp_path / "scalars.jsonl")
    for done in (analyze(log, "--map", option), verify(log, "--map", option)):
        assert done.code == 2
        assert message in done.error


def test_a_map_names_columns_that_no_format_knows(tmp_path: Path) -> None:
    rows = ["it,tl,the loss", *(f"{step},{loss(step)},{held_out(step)}" for step in (1, 2))]
    table = write(tmp_path / "table.csv", rows)
    assert analyze(table).code == 2
    done = analyze(table, "--map", "Step=it", "--map", "Loss=tl,HeldOutLoss=the loss", "--json")
    (run,) = done.json["runs"]
    assert (run["final_step"], run["final_training_loss"], run["final_held_out_loss"]) == (2, loss(2), held_out(2))


def test_a_map_does_not_touch_the_product_s_own_runs(tmp_path: Path) -> None:
    config = quick(seed=0)
    simple_run(tmp_path / "runs", config, loss=5.0, prompt=12)
    chart = tensorboard_csv(tmp_path, "a", "x", {1: 4.0, 2: 3.0})
    done = analyze(tmp_path / "runs", chart, "--map", "Loss=Value", "--json")
    own, other = done.json["runs"]
    assert (own["name"], own["final_held_out_loss"] is not None) == (config.run_name, True)
    assert (other["name"], other["final_training_loss"]) == ("a", 3.0)


def test_a_map_without_files_is_refused() -> None:
    done = verify("--decimal", ",", "--map", "Loss=x")
    assert done.error == "error: --decimal and --map without paths: given logs are read so; name them, too"
