"""Text that a run might have written, and runs made by hand that wrote it."""

from pathlib import Path

from bitnetctl.records import Run, load_run
from bitnetctl.records.samples import Continuation, Samples, TextMeasures, write_samples

HUMAN = TextMeasures(bigram_nats=4.08, repetition=0.09, distinct=0.74, zipf=0.78, compression=2.17)

SAMPLES = Samples(
    step=20_000,
    context_length=32,
    prompt_tokens=8,
    new_tokens=64,
    temperature=1.0,
    top_k=None,
    top_p=1.0,
    min_p=0.0,
    seed=0,
    human=HUMAN,
    greedy=TextMeasures(bigram_nats=2.5, repetition=0.63, distinct=0.09, zipf=1.3, compression=8.9),
    sampled=TextMeasures(bigram_nats=6.5, repetition=0.01, distinct=0.9, zipf=0.7, compression=1.9),
    texts=[
        Continuation(prompt="for x in", human=" range(3):\n    y", greedy=" self.\nself.", sampled=" ret<b>urn"),
        Continuation(prompt="if", human=" not x", greedy=" x", sampled=" _ab"),
    ],
)


def samples(bigram_nats: float | None = 6.5, *, repetition: float = 0.63, **changes: object) -> Samples:
    """Return SAMPLES with other measures."""
    sampled = SAMPLES.sampled.model_copy(update={"bigram_nats": bigram_nats})
    greedy = SAMPLES.greedy.model_copy(update={"repetition": repetition})
    return SAMPLES.model_copy(update={"sampled": sampled, "greedy": greedy, **changes})


def with_samples(run: Run, written: Samples = SAMPLES) -> Run:
    """Return a run made by hand with text in its folder."""
    folder = run.path.with_suffix("")
    folder.mkdir(exist_ok=True)
    write_samples(Path(folder, "samples.json"), written)
    return load_run(run.path)
