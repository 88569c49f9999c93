"""Logs in the forms in which other programs write them, of a training whose losses are known by step."""

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def loss(step: int) -> float:
    """Return the training loss at a step."""
    return round(3 + 7.8 * math.exp(-step / 300), 4)


def held_out(step: int) -> float:
    """Return the loss on held-out text at a step."""
    return round(loss(step) + 0.1, 4)


def write(path: Path, lines: Iterable[str]) -> Path:
    """Write lines, with folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def lightning(folder: Path, steps: Sequence[int] = range(49, 1000, 50), *, shift: float = 0.0) -> Path:
    """Write a metrics.csv of PyTorch Lightning: learning rate, losses of a step in different rows."""
    rows = ["epoch,lr-AdamW,step,train_loss_epoch,train_loss_step,val_loss"]
    for step in steps:
        rows += [f",0.0003,{step},,,", f"0,,{step},,{loss(step) + shift},"]
        if step % 200 == 199:
            rows += [f"{step // 200},,{step},,,{held_out(step) + shift}", f"{step // 200},,{step},{loss(step) + 0.2},,"]
    return write(folder / "lightning_logs" / "version_0" / "metrics.csv", rows)


def trainer_state(
    folder: Path, steps: Sequence[int] = range(10, 501, 10), max_steps: int = 500, *, shift: float = 0.0
) -> Path:
    """Write the trainer_state.json of the Hugging Face Trainer."""
    history: list[dict[str, float]] = []
    for step in steps:
        entry = {"epoch": step / 100, "grad_norm": 1.5, "learning_rate": 5e-4, "loss": loss(step) + shift, "step": step}
        history.append(entry)
        if step % 100 == 0:
            evaluation = {"eval_loss": held_out(step) + shift, "eval_runtime": 3.2, "eval_samples_per_second": 100.1}
            history.append({"epoch": step / 100, **evaluation, "step": step})
    if steps[-1] >= max_steps:
        total = {"epoch": 5.0, "step": steps[-1], "total_flos": 1e15, "train_loss": 4.4, "train_runtime": 77.0}
        history.append(total)
    state: dict[str, Any] = {"best_metric": None, "epoch": 5.0, "global_step": steps[-1], "is_world_process_zero": True}
    state |= {"log_history": history, "logging_steps": 10, "max_steps": max_steps, "trial_params": None}
    return write(folder / "trainer_state.json", json.dumps(state, indent=2, sort_keys=True).splitlines())


def wandb(path: Path, runs: Mapping[str, Sequence[int]], axis: str = "Step", extra: Sequence[str] = ()) -> Path:
    """Write a CSV as W&B exports a chart: a column of every run and metric, with its smallest and largest value.

    The losses of a run are larger by 1 than those of the run before.
    """
    names = [f"{run} - {name}" for run in runs for name in ("train/loss", "val/loss", *extra)]
    rows = [",".join([f'"{axis}"', *(f'"{name}{bound}"' for name in names for bound in ("", "__MIN", "__MAX"))])]
    for step in sorted({step for steps in runs.values() for step in steps}):
        cells = [str(step)]
        for shift, steps in enumerate(runs.values()):
            values = [loss(step) + shift, held_out(step) + shift if step % 200 == 0 else None]
            values += [2 * step for _ in extra]
            cells += [
                f'"{value}"' if step in steps and value is not None else '""' for value in values for _ in range(3)
            ]
        rows.append(",".join(cells))
    return write(path, rows)


def tensorboard_csv(folder: Path, run: str, tag: str, values: dict[int, float]) -> Path:
    """Write the CSV of one tag that TensorBoard offers for download."""
    rows = (f"{1654943296.5 + step},{step},{value}" for step, value in values.items())
    return write(folder / f"run-{run}-tag-{tag}.csv", ["Wall time,Step,Value", *rows])


def nanogpt(path: Path, steps: Sequence[int] = range(1001), *, shift: float = 0.0) -> Path:
    """Write what nanoGPT prints: evaluations every 250 steps, the loss of the batch every ten."""
    return write(
        path, ["number of parameters: 10.65M", "compiling the model... (takes a ~minute)", *nanogpt_lines(steps)]
    )


def nanogpt_lines(steps: Iterable[int], shift: float = 0.0) -> list[str]:
    """Return nanoGPT's lines."""
    lines = []
    for step in steps:
        if step % 250 == 0:
            lines.append(f"step {step}: train loss {loss(step) + shift:.4f}, val loss {held_out(step) + shift:.4f}")
            lines.append("saving checkpoint to out-shakespeare-char")
        if step % 10 == 0:
            lines.append(f"iter {step}: loss {loss(step) + 0.03 + shift:.4f}, time 12.30ms, mfu 17.22%")
    return lines


def nanochat(path: Path, total: int = 200) -> Path:
    """Write what nanochat prints while it pretrains."""
    lines = ["Vocab size: 65,536", "Total batch size 524,288 => gradient accumulation steps: 1"]
    for step in range(total + 1):
        if step % 50 == 0:
            lines.append(f"Step {step:05d} | Validation bpb: {held_out(step) / 3:.4f}")
        if step < total:
            lines.append(
                f"step {step:05d}/{total:05d} ({100 * step / total:.2f}%) | loss: {loss(step):.6f} | lrm: 1.00 | "
                "dt: 487.03ms | tok/sec: 1,076,511 | mfu: 47.51 | total time: 0.00m"
            )
    return write(path, [*lines, "Peak memory usage: 75422.02MiB"])


def modded_nanogpt(path: Path, total: int = 1480) -> Path:
    """Write a log of modded-nanogpt, which begins with the program itself."""
    lines = ["import os", "with open(sys.argv[0]) as f:", "    code = f.read()", "# step:0 is for warm-up"]
    lines += ["x = 1"] * 20_000 + ["=" * 100, "Running Python 3.12.7"]
    for step in range(total + 1):
        end = f"train_time:{step * 100}ms step_avg:100.00ms"
        if step % 125 == 0 or step == total:
            lines.append(f"step:{step}/{total} val_loss:{held_out(step):.4f} {end}")
        if step:
            lines.append(f"step:{step}/{total} {end}")
    return write(path, lines)


def json_lines(path: Path, steps: Sequence[int] = range(10, 1001, 10)) -> Path:
    """Write scalars as one JSON object a line, after one with the settings; the loss is NaN from step 900."""
    rows: list[dict[str, Any]] = [{"config": {"lr": 0.001, "seed": 3}}]
    for step in steps:
        row = {"step": step, "train/loss": loss(step) if step < 900 else math.nan, "train/learning_rate": 1e-3}
        if step % 100 == 0:
            row |= {"val/loss": held_out(step), "val/perplexity": math.exp(held_out(step))}
        rows.append(row)
    return write(path, map(json.dumps, rows))


def events(path: Path, scalars: Iterable[tuple[int, str, float]]) -> Path:
    """Write an event file of TensorBoard, record by record."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    written = [Event(wall_time=1.7e9, file_version="brain.Event:2")]
    for step, tag, value in scalars:
        event = Event(wall_time=1.7e9 + step, step=step)
        event.summary.value.add(tag=tag, simple_value=value)
        written.append(event)
    content = b""
    for event in written:
        data = event.SerializeToString()
        size = struct.pack("<Q", len(data))
        content += size + struct.pack("<I", masked_crc32c(size)) + data + struct.pack("<I", masked_crc32c(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
