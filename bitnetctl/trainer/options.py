"""How runs are trained: where, with what, how often they are saved. No torch here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

OnDivergence: TypeAlias = Literal["stop", "rollback"]
Resume: TypeAlias = Literal["auto", "never"] | Path
Log: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How runs are trained; what is trained is in their configs alone.

    Values of a run depend on these by rounding only, except for `on_divergence="rollback"`, which halves the learning
    rate of a run that diverges and resumes it from its last checkpoint, at most three times.

    `device` is auto, cpu, cuda or cuda:N; `engine` auto, eager, graph, compile or fused; `precision` auto, fp32, bf16
    or int8. `checkpoint_every` is in steps; unset: at evaluations, when saving costs at most 0.5 % of the time since
    the last checkpoint, or after 15 minutes. `samples`: a run that finishes writes text, see
    `inference.text_samples`; None: where that takes less than 1 % of its time. `resume` is auto, never, or the folder
    of a checkpoint. `should_stop` is called after every step; once true, the run is saved and the training stops.
    `progress(what, done, total)` follows the preparation of the text, `log(line)` takes lines that concern no single
    run.
    """

    runs_dir: Path = Path("runs")
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    checkpoint_every: int | None = None
    resume: Resume = "auto"
    keep_weights: bool = True
    samples: bool | None = None
    on_divergence: OnDivergence = "stop"
    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[str, int, int | None], None] = lambda what, done, total: None
    log: Log = lambda line: None
