"""The parts of a GPU window and their summary, and the count of a step's bytes: without a GPU."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu, kernels
from benchmarks.gpu import Part, Window
from benchmarks.gpu_parts import commands, large, missing, resume, step
from benchmarks.gpu_parts.report import NOT_MEASURED, Options, Report, markdown_table
from bitnetctl.config import RunConfig, build_config
from bitnetctl.model import functional
from bitnetctl.model.parameters import num_parameters

CPU = torch.device("cpu")
REPORT = """
import sys
from pathlib import Path
from benchmarks.gpu_parts.report import Report
report = Report(Path(sys.argv[2]), sys.argv[1])
"""
FACTS = "report.values(card='a card', torch='2.99', driver='1.2', python='3.12', triton='3.6')"
HANGS = """
import subprocess, time
child = subprocess.Popen(["sleep", "600"])
report.values(child=child.pid)
report.row("rows", {"found": 42})
time.sleep(600)
"""
FAILS = "report.failed('two are not three'); raise SystemExit(1)"
FINISHES = "report.row('rows', {'found': 1})"
TINY = (
    "model.hidden_size=32",
    "model.num_layers=2",
    "data.batch_size=2",
    "data.sequence_length=16",
    "schedule.warmup_steps=2",
)


def options(tmp_path: Path, **fields: Any) -> Options:
    return Options(**{"device": "cpu", "quick": True, "work": str(tmp_path / "work"), "wheels": ".wheels", **fields})


class Scripted(Window):
    """A window whose parts are scripts."""

    scripts: Mapping[str, str]

    def command(self, part: Part) -> list[str]:
        """Return the script of the part, with its name and the folder."""
        return [sys.executable, "-c", REPORT + self.scripts[part.name], part.name, str(self._folder)]


def window(tmp_path: Path, scripts: Mapping[str, str], *, limit: float = 60.0, again: bool = False) -> Scripted:
    made = Scripted(tmp_path / "out", options(tmp_path), limit=limit, again=again, commit="abc")
    made.scripts = {"facts": FACTS, **scripts}
    return made


def parts(*names: str, limit: float = 30.0) -> list[Part]:
    return [Part(name, 1.0, limit, f"about {name}") for name in ("facts", *names)]


def outcomes(tmp_path: Path) -> dict[str, str]:
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    return {name: part["outcome"] for name, part in summary["parts"].items()}


def is_gone(process: int) -> bool:
    """Whether a process has ended; one that nobody waited for is a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_part_that_hangs_is_killed_with_its_children_and_its_results_stay(tmp_path: Path) -> None:
    made = window(tmp_path, {"step": HANGS, "verify": FINISHES})
    assert made.run([*parts(), Part("step", 1.0, 2.0, "hangs"), *parts("verify")[1:]]) == 1
    assert outcomes(tmp_path) == {"facts": "finished", "step": "over its limit", "verify": "finished"}
    kept = json.loads((tmp_path / "out" / "step.json").read_text())
    assert kept["tables"] == {"rows": [{"found": 42}]}
    assert "| 42 |" in (tmp_path / "out" / "step.md").read_text()
    end = time.monotonic() + 20
    while not is_gone(kept["values"]["child"]):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stopped_command_ends_its_part_and_writes_the_summary(tmp_path: Path) -> None:
    # the part ends the command that waits for it, as a time limit around it does
    stops = (
        "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); report.values(me=os.getpid()); time.sleep(600)"
    )
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import signal
import test_gpu_benchmark as these
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
these.window(Path({str(tmp_path)!r}), {{"step": {stops!r}}}).run(these.parts("step"))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=gpu.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert outcomes(tmp_path) == {"facts": "finished", "step": "interrupted"}
    assert "| interrupted |" in (tmp_path / "out" / "summary.md").read_text()


def test_a_part_that_fails_ends_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = window(tmp_path, {"step": FAILS, "resume": "raise ValueError('a bug')", "verify": FINISHES})
    assert made.run(parts("step", "verify", "resume")) == 1
    failed = {"facts": "finished", "step": "failed", "verify": "finished", "resume": "failed"}
    assert outcomes(tmp_path) == failed
    # what it printed says why
    assert "ValueError: a bug" in capsys.readouterr().out
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "two are not three" in summary


def test_a_part_without_anything_to_measure_is_no_failure(tmp_path: Path) -> None:
    script = f"report.not_measured('no such engine'); raise SystemExit({NOT_MEASURED})"
    assert window(tmp_path, {"checks": script}).run(parts("checks")) == 0
    assert outcomes(tmp_path)["checks"] == "not measured"
    assert "no such engine" in (tmp_path / "out" / "summary.md").read_text()


def test_finished_parts_of_this_card_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    window(tmp_path, {"step": FINISHES, "verify": FAILS}).run(parts("step", "verify"))
    # a script that would fail if it were started
    assert window(tmp_path, {"step": FAILS, "verify": FINISHES}).run(parts("step", "verify")) == 0
    assert "step: finished before" in capsys.readouterr().out
    assert outcomes(tmp_path) == {"facts": "finished", "step": "finished", "verify": "finished"}
    assert (tmp_path / "out" / "step.md").exists()
    assert window(tmp_path, {"step": FAILS}, again=True).run(parts("step")) == 1
    assert outcomes(tmp_path)["step"] == "failed"


@pytest.mark.parametrize("changed", ["card='another'", "torch='2.98'"])
def test_results_of_another_card_or_torch_are_measured_again(tmp_path: Path, changed: str) -> None:
    window(tmp_path, {"step": FINISHES}).run(parts("step"))
    other = f"{FACTS}; report.values({changed})"
    assert window(tmp_path, {"facts": other, "step": FAILS}).run(parts("step")) == 1


def test_unknown_cards_have_nothing_in_common(tmp_path: Path) -> None:
    for _ in range(2):
        window(tmp_path, {"facts": FAILS, "step": FINISHES}).run(parts("step"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    # measured both times, not taken over
    assert summary["parts"]["step"]["note"] == ""
    assert outcomes(tmp_path) == {"facts": "failed", "step": "finished"}


def test_parts_that_no_longer_fit_are_left_out_and_named(tmp_path: Path) -> None:
    made = window(tmp_path, {"step": FINISHES, "text": "import time; time.sleep(30)"}, limit=4.0)
    assert made.run(parts("text", "step")) == 1
    # the limit of a part is what is left, where that is less
    assert outcomes(tmp_path) == {"facts": "finished", "text": "over its limit", "step": "left out"}
    assert not (tmp_path / "out" / "step.md").exists()
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| step | left out |" in summary
    assert "0 s were left" in summary
    # what has finished before stays finished
    assert window(tmp_path, {"step": FINISHES}).run(parts("step")) == 0
    assert window(tmp_path, {"step": FINISHES}, limit=0.0).run(parts("step")) == 0
    assert outcomes(tmp_path)["step"] == "finished"


def test_the_summary_is_complete(tmp_path: Path) -> None:
    window(tmp_path, {"step": FINISHES}).run(parts("step"))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    expected = {"card": "a card", "driver": "1.2", "torch": "2.99", "triton": "3.6", "python": "3.12", "commit": "abc"}
    assert {key: summary[key] for key in expected} == expected
    assert summary["command"].startswith("python -m benchmarks.gpu")
    assert summary["quick"] is True
    for part in summary["parts"].values():
        assert isinstance(part["seconds"], float)
        assert part["commit"] == "abc"
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "a trial, not a measurement" in text
    for value in (*expected.values(), "[facts](facts.md)", "[step](step.md)", "about step", "finished"):
        assert value in text


def test_the_command_runs_parts_on_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["--out", str(out), "--work", str(tmp_path / "work"), "--device", "cpu", "--quick"]
    assert gpu.main([*command, "--parts", "missing,text"]) == 0
    assert outcomes(tmp_path) == {"facts": "finished", "missing": "finished", "text": "finished"}
    facts = json.loads((out / "facts.json").read_text())["values"]
    assert facts["torch"] == torch.__version__
    assert json.loads((out / "text.json").read_text())["values"]["tokens"] > 1000
    # this environment has what the project needs
    assert json.loads((out / "missing.json").read_text())["values"]["missing"] == 0
    printed = capsys.readouterr().out
    assert f"torch: {torch.__version__}" in printed
    assert gpu.main([*command, "--parts", "text"]) == 0
    assert "text: finished before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        gpu.main([*command, "--parts", "text,nothing"])
    assert "--parts nothing: unknown" in capsys.readouterr().err


def test_the_parts_are_modules_and_two_commands_run_them_all() -> None:
    names = [part.name for part in gpu.PARTS]
    assert names[0] == "facts"
    assert names[-1] == "verify-20000"
    assert len(set(names)) == len(names)
    folder = Path(gpu.__file__).parent / "gpu_parts"
    for part in gpu.PARTS:
        assert (folder / f"{part.name.partition('-')[0]}.py").exists(), part
        assert part.needs < part.limit
        assert part.limit <= gpu._LIMIT
    # the same command again goes on with the others
    assert sum(part.needs for part in gpu.PARTS) <= 2 * gpu._LIMIT


def test_what_is_missing_is_listed_with_the_lines_that_fetch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"plotext": None, "filelock": "3.20"}
    real = missing._installed
    monkeypatch.setattr(missing, "_OPTIONAL", ("pytest>=1",))
    monkeypatch.setattr(missing, "_installed", lambda name: installed.get(name, real(name)))
    report = Report(tmp_path, "missing")
    missing.run(report, options(tmp_path, wheels=".carried"))
    content = json.loads((tmp_path / "missing.json").read_text())
    rows = {row["requirement"]: row["installed"] for row in content["tables"]["missing"]}
    assert rows == {"filelock>=3.30": "3.20", "plotext<7,>=6.1": "no"}
    assert content["values"]["optional"] == "all there"
    (text,) = content["texts"]
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    fetch = f"pip download --only-binary=:all: --python-version {python} --platform manylinux2014_x86_64"
    assert f"{fetch} --platform manylinux_2_28_x86_64 -d .carried 'filelock>=3.30' 'plotext<7,>=6.1'" in text
    assert "--no-index --find-links .carried" in text


def test_resumed_and_undisturbed_rows_are_compared_but_for_their_speed(tmp_path: Path) -> None:
    def run(*losses: str) -> commands.Run:
        rows = [
            {"Step": str(index), "Loss": loss, "TokensPerSecond": str(id(loss))} for index, loss in enumerate(losses)
        ]
        return commands.Run("a run", {"engine": "graph"}, rows)

    same, other, short = (Report(tmp_path, name) for name in ("same", "other", "short"))
    resume.compare(same, run("1.0", "nan"), run("1.0", "nan"))
    assert same.failures == []
    resume.compare(other, run("1.0", "2.0"), run("1.0", "2.0000001"))
    assert other.failures == ["resumed differs from undisturbed in Loss"]
    resume.compare(short, run("1.0", "2.0"), run("1.0"))
    assert "2 rows undisturbed, 1 resumed" in short.failures[0]


def test_the_time_of_a_step_is_that_of_the_later_rows() -> None:
    data = {"data": {"batch_size": 4, "sequence_length": 25}}
    rows = [{"TokensPerSecond": speed} for speed in ("1", "", "50000", "100000", "nan", "100000")]
    assert commands.Run("a run", {"config": data}, rows).step_ms == pytest.approx(1.0)
    assert commands.Run("a run", {"config": data}, rows[:1]).step_ms == pytest.approx(100_000.0)
    assert commands.Run("a run", {"config": data}, []).step_ms is None


def test_a_large_model_is_measured_in_order_of_worth() -> None:
    names = ["fake-quantized", "ours, graph, int8", "torchao bitnet", "nn.Linear, all in bf16", "floor"]
    expected = ["floor", "nn.Linear, all in bf16", "torchao bitnet", "ours, graph, int8", "fake-quantized"]
    assert sorted(names, key=large._rank) == expected


def test_an_engine_that_is_not_there_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(case: step.Case, device: torch.device, caches: Path, rounds: int) -> dict[str, Any]:
        if case.engine == "compile":
            return {"error": "it broke"}
        return {"missing": "unknown"} if case.engine == "fused" else {"ms a step": 2.0, "kernels": [{"kernel": "k"}]}

    monkeypatch.setattr(step, "_measure", measure)
    report = Report(tmp_path, "step")
    step.run(report, options(tmp_path))
    content = json.loads((tmp_path / "step.json").read_text())
    found = {row["engine"]: (row["ms a step"], row["note"]) for row in content["tables"]["steps"]}
    assert found == {"graph": (2.0, ""), "fused": (None, "unknown"), "compile": (None, "it broke")}
    assert len(report.failures) == 1
    assert "| k |" in content["texts"][0]


def test_tables_show_all_columns_and_unknown_values() -> None:
    rows: list[dict[str, Any]] = [{"a": 1.23456, "b": None}, {"a": 12345.6, "c": "x|y\nz"}]
    assert markdown_table(rows).splitlines() == [
        "| a | b | c |",
        "| --: | :-- | :-- |",
        "| 1.235 | – | – |",
        "| 12,346 | – | x\\|y z |",
    ]


# benchmarks.kernels


def tiny() -> RunConfig:
    return build_config("origin", steps=20, overrides=list(TINY))


def test_bytes_of_a_step_are_in_proportion_to_the_runs() -> None:
    config = tiny()
    one, parameters = kernels.counted(config, 96, CPU, "graph", "fp32", 1)
    three, all_parameters = kernels.counted(config, 96, CPU, "graph", "fp32", 3)
    assert parameters == num_parameters(config.model, 96)
    assert all_parameters == 3 * parameters
    # gradients are clipped, so that Adam writes them back
    assert one.bytes["_fused_adam_"] == 32 * parameters
    assert three.bytes["_fused_adam_"] == 3 * one.bytes["_fused_adam_"]
    assert three.total == pytest.approx(3 * one.total, rel=0.05)
    assert one.launches["bmm"] > 0
    assert not {"view", "empty", "device"} & set(one.launches)
    # nothing without data stays behind
    torch.testing.assert_close(functional.constant(2.0, torch.float, CPU), torch.tensor(2.0))


def test_own_kernels_move_less_and_are_launched_less_often() -> None:
    pytest.importorskip("triton")
    config = tiny()
    plain, parameters = kernels.counted(config, 96, CPU, "graph", "bf16", 2)
    fused, _ = kernels.counted(config, 96, CPU, "fused", "bf16", 2)
    assert fused.total < plain.total
    assert sum(fused.launches.values()) < sum(plain.launches.values()) / 2
    embedding = 96 * 32
    # weights, gradients and moments are read, all but the gradients are written, and a copy of the head in bf16
    updated = fused.bytes["adam.adam_"] + fused.bytes["adam.adam_tiles_"]
    assert updated == pytest.approx(28 * (parameters - 2 * embedding) + 2 * 2 * embedding, rel=0.01)
    assert fused.launches["adam.adam_"] == 2
    # every function of the package that a step calls: what it writes must be known to the table
    assert {name for name in fused.bytes if "." in name} == set(kernels.ACCESS) - {
        "embedding.add_rows_",
        "probe.add_predictions",
    } | {
        "norm.norm_quantize",
        "rotary.rotate_backward",
        "adam.square_sums",
    }


def test_an_unknown_engine_is_a_note() -> None:
    arguments = SimpleNamespace(
        recipe="quick", overrides=list(TINY), device=CPU, precision="fp32", top=3, engines="", runs=""
    )
    rows, operators, notes = kernels.table(arguments, ["graph", "unheard-of"], [1])  # type: ignore[arg-type]
    assert [row["engine"] for row in rows] == ["graph", "unheard-of"]
    assert rows[0]["bytes a parameter"] > 28
    assert rows[1]["bytes a parameter"] is None
    assert len(operators) == 3
    assert "unheard-of" in notes["unheard-of, 1 runs"]


def test_bytes_of_operators() -> None:
    traffic = kernels.Traffic()
    a, b, rows = torch.zeros(8, 4), torch.zeros(8, 4), torch.tensor([1, 3])
    with traffic:
        a.add_(b)
        traffic.start()
        a.add_(b)
        torch.add(a, b)
        torch.add(a, b, out=torch.empty(8, 4))
        a.zero_()
        a.index_select(0, rows)
        a.view(-1)[3:].unsqueeze(0)
        torch.mul(torch.zeros(1).expand(4), torch.zeros(4))
    # in place: reads both and writes one
    assert traffic.bytes["add_"] == 3 * 128
    assert traffic.bytes["add"] == 2 * 3 * 128
    assert traffic.bytes["zero_"] == 128
    assert traffic.bytes["index_select"] == 2 * 32
    assert traffic.bytes["mul"] == 4 + 16 + 16
    assert traffic.launches["add"] == 2


def test_our_own_kernels_are_counted_by_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("bitnetctl.kernels.made_up")
    code = """
import torch

def scaled(x, weight, *, count=None, out=None, table=None):
    return doubled(x), count

def doubled(x):
    return torch.empty_like(x)
"""
    exec(compile(code, "made_up.py", "exec"), vars(module))
    user = ModuleType("bitnetctl.model.made_up_user")
    user.scaled = module.scaled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, user.__name__, user)
    monkeypatch.setattr(kernels, "_kernel_modules", lambda: [module])
    access = kernels.Access(updated=("weight",), written=("out",), few=("table",))
    monkeypatch.setitem(kernels.ACCESS, "made_up.scaled", access)
    traffic = kernels.Traffic()
    traffic.start()
    x, weight, count = torch.zeros(10), torch.zeros(3), torch.zeros(2)
    plain = user.scaled
    with kernels.counting_kernels(traffic):
        given = {"count": count, "out": torch.zeros(5), "table": torch.zeros(100)}
        results: tuple[Tensor, Tensor] = user.scaled(x, weight, **given)
        assert results[1] is count
    # reads x, weight and count, writes weight, out and the new result; what it calls is a part of it
    assert traffic.bytes == {"made_up.scaled": 40 + 2 * 12 + 8 + 20 + 40}
    assert user.scaled is plain
    user.scaled(x, weight)
    assert traffic.total == 132
