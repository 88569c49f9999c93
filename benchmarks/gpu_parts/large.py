"""The contenders of `benchmarks.large`, the most telling first, a row as soon as each has ended."""

from benchmarks import harness, large
from benchmarks.gpu_parts.report import Options, Report
from benchmarks.step import floor_ms
from benchmarks.worker import tokens_of
from bitnetctl.hardware import resolve_device
from bitnetctl.model.parameters import num_parameters

# by the beginning of their names; a name that ends with `again` is left out
_ORDER = (
    "floor",
    "nn.Linear, all in bf16",
    "ours, compile, bf16",
    "torchao",
    "ours, graph, bf16",
    "ours",
    "nn",
    "fake",
)


def run(report: Report, options: Options) -> None:
    """Measure one contender after the other."""
    device = resolve_device(options.device)
    fields = large.TINY if options.quick else large.LARGE
    vocab_size = large.TINY_VOCABULARY if options.quick else large.VOCABULARY
    jobs = large.large_jobs(
        tuple(f"{name}={value}" for name, value in fields.items()), vocab_size, device, compiled=not options.quick
    )
    config = jobs["floor"].config
    report.values(
        parameters=num_parameters(config.model, vocab_size),
        tokens_a_step=tokens_of(config),
        turns="2 of 2 steps" if options.quick else "3 of 5 steps, after one to warm up",
    )
    names = [name for name in jobs if not name.endswith("again")]
    floor: float | None = None
    for name in sorted(names, key=_rank):
        rounds, steps = (1, 2) if options.quick else (3, 5)
        (one,) = harness.one_by_one({name: jobs[name]}, rounds=rounds, steps=steps)
        if name == "floor":
            floor = floor_ms(one, "bf16")
            report.values(floor_bf16_ms=floor)
            continue
        step_ms, peak = one.milliseconds(), one.peak_bytes()
        report.row(
            "large",
            {
                "contender": name,
                "tokens/s": None if step_ms is None else 1000 * tokens_of(config) / step_ms,
                "ms a step": step_ms,
                "peak memory, GiB": None if peak is None else peak / 2**30,
                "fraction of peak": harness.ratio(floor, step_ms),
                "note": one.note,
            },
        )
        if one.failed:
            report.failed(f"{name}: {one.note}")


def _rank(name: str) -> int:
    return next((rank for rank, begins in enumerate(_ORDER) if name.startswith(begins)), len(_ORDER))
