"""Open a run to use its weights: model, tokenizer, context length and λ, from the files in its folder."""

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from bitnetctl import checkpoint
from bitnetctl.checkpoint import Weights
from bitnetctl.config import RunConfig, did_you_mean, parse_config
from bitnetctl.data import TokenData, cached_tokenizer, cached_tokens
from bitnetctl.data.tokenizer import end_of_text, load_tokenizer, loaded_tokenizer, vocab_size
from bitnetctl.engine.optim import require_alike
from bitnetctl.errors import BitnetctlError, CheckpointError, ConfigError, DataError, PluginError, one_line
from bitnetctl.files import write_if_changed
from bitnetctl.hardware import resolve_device
from bitnetctl.model.packed import PackedModel
from bitnetctl.model.quantization import Quantizers
from bitnetctl.plugins import registry
from bitnetctl.plugins.composition import Composition
from bitnetctl.records import Manifest, RunPaths, read_manifest
from bitnetctl.records.paths import MANIFEST_NAME
from bitnetctl.units import listed


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """The weights of a run after `step`, in a packed model of this one run in fp32, with all that its use takes.

    `config` is the effective one, after interventions. `end_of_text` is the id of the token that follows a document,
    None where the tokenizer has none. `quant_lambda` is λ at `step`: 0 full precision, 1 ternary.
    """

    name: str
    paths: RunPaths
    step: int
    config: RunConfig
    manifest: Manifest
    tokenizer: Tokenizer
    end_of_text: int | None
    quant_lambda: float
    model: PackedModel

    @property
    def context_length(self) -> int:
        """Tokens of a row in training: a later position was never seen."""
        return self.config.data.sequence_length

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Return the logits [B, T, V] of token ids [B, T]."""
        logits_RNV = self.model.forward(tokens_BT.unsqueeze(0), [self.quant_lambda])
        logits_BTV: Tensor = logits_RNV[0].unflatten(0, tuple(tokens_BT.shape))
        return logits_BTV

    def with_model(
        self, weights: Mapping[str, Tensor], quantizers: Quantizers, quant_lambda: float | None = None
    ) -> "TrainedRun":
        """Return the run with other weights and quantizers, and at another λ where one is given."""
        model = PackedModel([self.config.model], self.model.vocab_size, [0], self.model.device, quantizers=quantizers)
        model.load(0, weights)
        return replace(self, model=model, quant_lambda=self.quant_lambda if quant_lambda is None else quant_lambda)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text as in training, without special tokens around it; raises DataError."""
        try:
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the tokenizers library raises bare Exception
            raise DataError(f"run {self.name}: its tokenizer cannot encode the text: {one_line(error)}") from error
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, with special tokens written out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))

    def training_tokens(self) -> TokenData | None:
        """Return training and held-out tokens of the run's text, checked; None where the token cache has them not."""
        fingerprint = self.manifest.data.get("fingerprint")
        return cached_tokens(self.config.data, fingerprint) if isinstance(fingerprint, str) else None

    def weights(self) -> dict[str, Tensor]:
        """Return the masters, the weights before quantization, by their names in `transformers`."""
        return {name: view.detach() for name, view in self.model.parameters(0).items()}

    def quantized(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return int8 codes [O, I] and scale [O, groups of inputs] of the matrices: their product is used at λ 1."""
        return self.model.quantized(0)


def open_run(text: str, runs_dir: Path = Path("runs"), *, device: str = "cpu", step: int | None = None) -> TrainedRun:
    """Open a run given by its name in `runs_dir`, or by its folder or CSV, at its newest checkpoint or that of `step`.

    A run of an earlier version has no tokenizer of its own and no λ: these are taken from the token cache and from its
    interventions. Raises ConfigError, CheckpointError or DataError that says what is missing and what to do.
    """
    paths = RunPaths.of(text, runs_dir)
    manifest, config = _described(paths)
    weights = _read_weights(paths, manifest, step)
    tokenizer = load_tokenizer_of(paths, manifest)
    composition = _composed(paths, manifest, config)
    size = vocab_size(tokenizer)
    model = PackedModel(
        [config.model], size, [config.seed], resolve_device(device), quantizers=composition.quantizers()
    )
    try:
        require_alike(weights.model, model.parameters(0))
    except ValueError as error:
        raise CheckpointError(
            f"run {paths.name}: the weights of step {weights.step} do not fit its config: {one_line(error)}"
        ) from error
    model.load(0, weights.model)
    return TrainedRun(
        name=paths.name,
        paths=paths,
        step=weights.step,
        config=config,
        manifest=manifest,
        tokenizer=tokenizer,
        end_of_text=_end_of_text(manifest, tokenizer),
        quant_lambda=_quant_lambda(composition, config, weights),
        model=model,
    )


def load_tokenizer_of(paths: RunPaths, manifest: Manifest) -> Tokenizer:
    """Return the tokenizer of a run, from its folder, else from the token cache or from the file it was read from.

    One that was found elsewhere is kept in the folder, if that can be written. Raises DataError that names what is to
    be restored.
    """
    expected = manifest.data.get("tokenizer_fingerprint")
    if paths.tokenizer.exists():
        _require_fingerprint(paths, expected)
        return load_tokenizer(paths.tokenizer)
    content = _restored(expected, str(manifest.data.get("tokenizer"))) if isinstance(expected, str) else None
    if content is None:
        spec, source = (manifest.data.get(key, "of unknown name") for key in ("tokenizer", "source"))
        raise DataError(
            f"run {paths.name}: its tokenizer is neither in its folder nor in the token cache; copy the tokenizer.json "
            f"of SHA-256 {str(expected)[:12]}… to {paths.tokenizer} from where it was trained, or prepare tokenizer "
            f"{spec} on the same text ({source}) again: bitnetctl train with both, and --steps 1"
        )
    # a folder of somebody else's may be read-only
    with contextlib.suppress(BitnetctlError, OSError):
        write_if_changed(paths.tokenizer, content)
    return Tokenizer.from_str(content.decode())


def _described(paths: RunPaths) -> tuple[Manifest, RunConfig]:
    """Return the manifest and the effective config of a run; raises ConfigError."""
    manifest = read_manifest(paths.folder)
    if manifest is None:
        raise ConfigError(
            f"{paths.folder}: no run there; give the name of one in --runs-dir, or its folder"
            f"{did_you_mean(paths.name, _names(paths.runs_dir))}"
        )
    if manifest.external is not None:
        raise ConfigError(f"run {paths.name}: another program trained it, so its weights are not here")
    if manifest.effective_config is None:
        raise ConfigError(f"run {paths.name}: {manifest.status} before its first step; there are no weights")
    return manifest, parse_config(manifest.effective_config, source=str(paths.manifest))


def _names(runs_dir: Path) -> Sequence[str]:
    return sorted(path.parent.name for path in runs_dir.glob(f"*/{MANIFEST_NAME}"))


def _read_weights(paths: RunPaths, manifest: Manifest, step: int | None) -> Weights:
    """Return the weights of a step, by default of the newest checkpoint; raises CheckpointError."""
    steps = checkpoint.steps(paths.checkpoints)
    if not steps:
        raise CheckpointError(f"run {paths.name}: {_why_no_weights(manifest)}")
    if step is not None and step not in steps:
        raise CheckpointError(f"run {paths.name}: has weights of step {listed(list(map(str, steps)))}, not {step}")
    try:
        weights = checkpoint.load_weights(checkpoint.path_of(paths.checkpoints, step or steps[-1]))
    except CheckpointError:
        # a run in training drops old checkpoints
        if step is not None or steps == checkpoint.steps(paths.checkpoints):
            raise
        return _read_weights(paths, manifest, step)
    if weights.config_hash != manifest.config_hash:
        raise CheckpointError(
            f"run {paths.name}: the checkpoint of step {weights.step} is of another config than run.json; "
            "put back the checkpoints of this run"
        )
    return weights


def _why_no_weights(manifest: Manifest) -> str:
    if manifest.status == "finished":
        return "its weights were not kept; train it in another --runs-dir, with --keep-weights where it is a sweep"
    if manifest.status == "diverged":
        return "it diverged before a checkpoint was saved; --checkpoint-every saves some on the way"
    return f"it is {manifest.status}, and has no checkpoint yet; the command that trains it goes on"


def _require_fingerprint(paths: RunPaths, expected: object) -> None:
    try:
        actual = hashlib.sha256(paths.tokenizer.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{paths.tokenizer}: cannot read: {error.strerror}") from error
    # unknown in a file that was changed by hand
    if expected not in (None, actual):
        raise DataError(
            f"{paths.tokenizer}: is not the tokenizer that the run was trained with (SHA-256 differs); put that back, "
            "or remove the file to have it taken from the token cache"
        )


def _restored(fingerprint: str, spec: str) -> bytes | None:
    """Return the content of a tokenizer.json by its SHA-256, from the cache or made of the files that `spec` names."""
    content = cached_tokenizer(fingerprint)
    if content is not None or not spec.startswith(("file:", "gpt2-files:")):
        return content
    with contextlib.suppress(DataError):
        content = loaded_tokenizer(spec)
        if hashlib.sha256(content).hexdigest() == fingerprint:
            return content
    return None


def _composed(paths: RunPaths, manifest: Manifest, config: RunConfig) -> Composition:
    """Return the interventions of a run, which may quantize in a way of their own; raises ConfigError."""
    try:
        return registry.compose(config.interventions)
    except PluginError:
        raise
    except ConfigError as error:
        sources = {plugin.name: f"{plugin.distribution} {plugin.version or ''}".strip() for plugin in manifest.plugins}
        missing = [source for name, source in sources.items() if repr(name) in str(error)]
        install = f"; it was trained with {listed(missing)}: install it" if missing else ""
        raise ConfigError(f"run {paths.name}: its interventions are needed: {error}{install}") from error


def _quant_lambda(composition: Composition, config: RunConfig, weights: Weights) -> float:
    """Return λ at the step of the weights, as the checkpoint has it, else as its interventions make it."""
    if weights.quantization is not None:
        return weights.quantization
    return lambda_schedule(composition, config)[weights.step - 1]


def lambda_schedule(composition: Composition, config: RunConfig) -> Sequence[float]:
    """Return λ at every step of a run, as its interventions make it."""
    base = config.model.quantization
    # of all steps in order, as in training: an intervention may keep state
    return composition.schedule("quantization", lambda step: base, config.steps)


def _end_of_text(manifest: Manifest, tokenizer: Tokenizer) -> int | None:
    """Return the id of the end of text, by the name in the manifest; an older one has none, and a usual name counts."""
    if "end_of_text" not in manifest.data:
        return end_of_text(tokenizer)
    name = manifest.data["end_of_text"]
    return tokenizer.token_to_id(name) if isinstance(name, str) else None
