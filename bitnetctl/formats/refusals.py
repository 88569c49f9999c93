"""What no public format or runtime can express of a run, whatever the target."""

from bitnetctl.errors import ConfigError
from bitnetctl.inference.trained import TrainedRun


def require_whole_lambda(run: TrainedRun) -> None:
    """Raise ConfigError for a run whose weights are between full precision and ternary."""
    if run.quant_lambda not in (0.0, 1.0):
        raise ConfigError(
            f"{run.name}: at step {run.step:,} its weights are between full precision and ternary (λ "
            f"{run.quant_lambda:g}), which no format holds; export a step with λ 0 or 1 (--step)"
        )


def require_known_activations(run: TrainedRun) -> None:
    """Raise ConfigError for a quantized run with a custom quantizer of activations."""
    if run.quant_lambda != 0.0 and run.model.matmul.quantizers.activations is not None:
        raise ConfigError(
            f"{run.name}: {run.config.arm} has a custom quantizer of activations, which no runtime computes; "
            "the baseline arm can be exported"
        )


def require_special_end(run: TrainedRun) -> None:
    """Raise ConfigError for an end of text that the tokenizer splits where it occurs in a text.

    Runtimes take the token that ends a text as a special one, and would split such a text otherwise than in training.
    """
    if run.end_of_text is not None and run.end_of_text not in run.tokenizer.get_added_tokens_decoder():
        raise ConfigError(
            f"{run.name}: its end of text {run.tokenizer.id_to_token(run.end_of_text)!r} is not among the added_tokens "
            "of its tokenizer.json, where runtimes have it; export --to safetensors, or train with one that has it"
        )
