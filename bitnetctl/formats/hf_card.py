"""The model card of an exported folder: all values from the run's manifest and CSV, and from the self-check."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from bitnetctl import __version__
from bitnetctl.errors import RecordError
from bitnetctl.escape import markdown_text
from bitnetctl.formats.hf_config import HfForm
from bitnetctl.formats.stated import without_folders
from bitnetctl.inference.run_health import health_at_step
from bitnetctl.inference.trained import TrainedRun, lambda_schedule
from bitnetctl.plugins import registry
from bitnetctl.records.collapse import CollapseTracker, Health
from bitnetctl.records.metrics import finite_value
from bitnetctl.records.samples import read_samples
from bitnetctl.records.schema import Row
from bitnetctl.units import UNKNOWN, format_value

_HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- bitnet{ternary}
- bitnetctl
# license: to be stated by whoever publishes this, for the weights and the text they were trained on
---
"""
_USE = """## Use

```python
import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # before the import; see the limits below
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")  # this folder
model = AutoModelForCausalLM.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens={new_tokens})
print(tokenizer.decode(outputs[0]))
```
"""
_NEEDS = "It needs `transformers` 4.57 or newer{accelerate}.\n"
_COMPILES = """- `transformers` compiles its BitNet layers at the first forward pass, which takes a minute or two and
  needs a C++ compiler. With `TORCHDYNAMO_DISABLE=1` in the environment it does not, and computes the same.
- Weights are ternary and activations int8 by value only: `transformers` multiplies them in floating point.
"""
_NOT_JUDGED = "Claims about its recipe and arm are judged over seeds (`bitnetctl verify`); this is one run."
_FORMS = {
    "offline": "packed: four ternary weights to a byte, and a scale for each matrix (`autobitlinear`, offline)",
    "bitlinear": "packed: four ternary weights to a byte, and 1 / scale for each matrix (`bitlinear`)",
    "online": "the fp32 weights before quantization, which each forward pass quantizes (`autobitlinear`, online)",
    "plain": "fp32 weights at full precision, not quantized",
}


def model_card(run: TrainedRun, form: HfForm, checks: Sequence[str]) -> str:
    """Return the text of README.md; `checks` are the lines of the self-check, none where it was not done."""
    health = health_at_step(run)
    parts = [
        _HEADER.format(ternary="" if form == "plain" else "\n- b1.58\n- ternary"),
        f"# {markdown_text(run.name)}\n",
        *_warning(health.collapse),
        _what(run, form),
        _table(_settings(run)),
    ]
    parts.append(f"## Measured\n\n{_health(health.collapse)} {_NOT_JUDGED}\n")
    if health.row:
        parts.append(_table((*_measures(health.row, form), *_of_text(run))))
    parts.append(f"## This export\n\nIt holds {_FORMS[form]}.\n")
    parts.append(_checked(checks))
    parts.append(_USE.format(new_tokens=min(50, max(1, run.context_length // 2))))
    parts.append(_NEEDS.format(accelerate="" if form == "plain" else " and `accelerate`"))
    parts.append(_limits(run, form))
    return "\n".join(parts)


def _warning(collapse: CollapseTracker) -> Iterator[str]:
    """Yield what has to be said before everything else."""
    if collapse.health in (Health.COLLAPSED, Health.POSSIBLE):
        kind = "has collapsed" if collapse.health is Health.COLLAPSED else "may have collapsed"
        reason = f": {markdown_text(collapse.reason)}" if collapse.reason else ""
        yield f"> **This model {kind}**, since step {collapse.since or 0:,}{reason}. It does not write text.\n"


def _what(run: TrainedRun, form: HfForm) -> str:
    kind = "BitNet b1.58 language model"
    numbers = ", with ternary weights and int8 activations in every linear layer but the head"
    if form == "plain" and _becomes_ternary(run):
        when = f"at step {run.step:,} of {run.config.steps:,}"
        numbers = f" of the arm {markdown_text(run.config.arm)}, exported {when}, while it is still at full precision"
    elif form == "plain":
        kind, numbers = "full-precision twin of a BitNet b1.58 model", ""
    origin = "Imported into" if run.manifest.imported else "Trained by"
    return (
        f"A {kind} of {run.model.num_parameters:,} parameters{numbers}. {origin} bitnetctl; exported by version "
        f"{__version__}.\n"
    )


def _becomes_ternary(run: TrainedRun) -> bool:
    """Whether λ at the end of a run is above 0, by its interventions."""
    return lambda_schedule(registry.compose(run.config.interventions), run.config)[-1] > 0


def _settings(run: TrainedRun) -> Iterator[tuple[str, str]]:
    config, model, data = run.config, run.config.model, run.manifest.data
    if run.manifest.imported is None:
        yield "recipe", config.recipe
        yield "arm", config.arm
        yield "seed", str(config.seed)
        yield "config hash", run.manifest.config_hash[:12]
        yield "step", f"{run.step:,} of {config.steps:,}"
        yield "training tokens", f"{run.step * config.data.tokens_per_step:,}"
    else:
        # config and text of such a run are those that it would be trained on with
        yield "imported from", run.manifest.imported.source
        yield "exported run", run.manifest.imported.run or UNKNOWN
    yield "context length", f"{run.context_length:,} tokens"
    yield "layers × hidden size", f"{model.num_layers} × {model.hidden_size}"
    yield "feed-forward width, activation", f"{model.intermediate_size}, {model.activation}"
    yield "attention heads, key-value heads", f"{model.num_attention_heads}, {model.num_key_value_heads}"
    yield "head", "tied to the embeddings" if model.tie_word_embeddings else "of its own"
    yield "tokenizer", f"{without_folders(data.get('tokenizer'))}, {run.model.vocab_size:,} tokens"
    if run.manifest.imported is None:
        # a path tells of the machine, its last part what the text is
        yield "text", without_folders(data.get("source"))
        yield "fingerprint of text and tokenizer", str(data.get("fingerprint", UNKNOWN))
        yield "trained on", f"{run.manifest.device or UNKNOWN}, {run.manifest.precision or UNKNOWN}"


def _health(collapse: CollapseTracker) -> str:
    match collapse.health:
        case Health.HEALTHY:
            return "No evaluation shows a lasting collapse."
        case Health.RECOVERED:
            steps = f"step {collapse.collapsed_at or 0:,} and recovered at step {collapse.since or 0:,}"
            return f"The run collapsed at {steps}."
        case Health.COLLAPSED:
            return f"The run collapsed at step {collapse.since or 0:,} and did not recover."
        case Health.POSSIBLE:
            return f"The last evaluations, from step {collapse.since or 0:,} on, are collapsed."
    return "Whether the run collapsed is unknown: no evaluation after the warm-up tells."


def _measures(row: Row, form: HfForm) -> Iterator[tuple[str, str]]:
    def value(name: str, spec: str) -> str:
        return format_value(finite_value(row, name), spec)

    yield "measured at step", value("Step", ",.0f")
    yield "held-out positions", value("ProbePositions", ",.0f")
    yield "held-out loss", f"{value('HeldOutLoss', '.4f')} nats a token"
    yield "held-out bits per byte", value("HeldOutBitsPerByte", ".4f")
    yield "loss of a unigram predictor", value("UnigramLoss", ".4f")
    yield "loss of a bigram predictor", value("BigramLoss", ".4f")
    yield "distinct predictions", f"{value('UniquePredictions', ',.0f')} (targets: {value('UniqueTargets', ',.0f')})"
    if form != "plain":
        yield "ternary weights that are 0", value("ZeroFraction", ".1%")


def _of_text(run: TrainedRun) -> Iterator[tuple[str, str]]:
    """Yield measures of the text that the run wrote at this step, not the text: its prompts are of the held-out one."""
    samples = None
    with contextlib.suppress(RecordError):
        samples = read_samples(run.paths.folder)
    if samples is None or samples.step != run.step:
        return
    nats = format_value(samples.sampled.bigram_nats, ".3f"), format_value(samples.human.bigram_nats, ".3f")
    yield "cross-entropy of sampled text under the training bigram", f"{nats[0]} nats a token (human text: {nats[1]})"
    repetition = f"{samples.greedy.repetition:.1%} (human text: {samples.human.repetition:.1%})"
    yield "repeated 4-grams of greedy text", repetition


def _checked(checks: Sequence[str]) -> str:
    if not checks:
        return "It was written without a self-check.\n"
    lines = "".join(f"- {markdown_text(line)}\n" for line in checks)
    return f"It was loaded again and compared with the model as it was trained:\n\n{lines}"


def _limits(run: TrainedRun, form: HfForm) -> str:
    length = (
        f"- Trained on rows of {run.context_length:,} tokens: a longer text is outside of what it was trained "
        "on, though the library accepts it.\n"
    )
    return f"## Limits\n\n{length}{'' if form == 'plain' else _COMPILES}"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {name} | {markdown_text(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines, ""])
