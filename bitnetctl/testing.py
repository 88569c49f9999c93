"""A test of the contract of interventions, for plug-in authors and `bitnetctl interventions check`.

from bitnetctl.testing import check_contract

def test_contract() -> None:
    check_contract(MyIntervention, {"peak": 1e-4})
"""

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import TokenData
from bitnetctl.engine.pack import Pack
from bitnetctl.intervention import Intervention
from bitnetctl.model.packed import PackedModel
from bitnetctl.plugins.blame import errors_blamed
from bitnetctl.plugins.checked_class import check_class
from bitnetctl.plugins.composition import Composition, Schedule
from bitnetctl.plugins.isolation import forget_intrusions, intrusions_of, isolated

_STEPS = 40
_VOCAB = 64


def check_contract(intervention: type[Intervention], settings: Mapping[str, Any] | None = None) -> None:
    """Test an intervention, with two training steps of a tiny model on the CPU; raises an error for a broken rule.

    The rules: the class derives from `Intervention` and has a summary; every setting has a default and unknown ones are
    rejected; `configure` and the schedules are pure, and schedules are numbers, finite and not negative; losses are
    scalars with a gradient; training next to a baseline run gives finite values, does not change the baseline, and
    gives the same values when repeated and for two runs in one pack; quantizers are pure, take each matrix and token by
    itself, and leave a run with λ 0 beside them in full precision; its state is JSON and can be restored; its optimizer
    uses the learning rate that is set in each group, and a run that is resumed after two steps has the same third one,
    bit for bit; nothing changes the process, see `bitnetctl.intervention`. Raises AssertionError, PluginError (a
    ConfigError) for an error in a hook, and pydantic's ValidationError for invalid `settings`.
    """
    check_class(intervention)
    name = intervention.__name__
    forget_intrusions(name)

    def compose() -> Composition:
        checked = intervention.Settings.model_validate(dict(settings or {}))
        with isolated(name, "in __init__"), errors_blamed(name, "__init__", intervention.__init__):
            return Composition([intervention(checked)])

    _check_settings(intervention, settings or {})
    _check_schedules(compose)
    # before training, where what a quantizer breaks shows only in its effects
    _check_quantizers(compose, name)
    _check_training(compose)
    changes = intrusions_of(name)
    assert not changes, "it " + "; it ".join(changes)


def tiny_config() -> RunConfig:
    """Return a config that trains in milliseconds."""
    return RunConfig.model_validate(
        {
            "steps": _STEPS,
            "model": {"hidden_size": 64, "num_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
            "data": {"batch_size": 2, "sequence_length": 8},
            "schedule": {"warmup_steps": 4},
        }
    )


def tiny_tokens(config: RunConfig, seed: int = 0) -> TokenData:
    """Return random tokens, enough for `config`."""
    needed = 4 * config.data.tokens_per_step + 1
    tokens_N = np.random.default_rng(seed).integers(0, _VOCAB, max(4096, needed)).astype(np.uint16)
    return TokenData(
        train_N=tokens_N,
        held_out_N=tokens_N[:512],
        vocab_size=_VOCAB,
        fingerprint="0" * 64,
        tokenizer_fingerprint="0" * 64,
        source="random",
        tokenizer="random",
        tokenizer_path=Path(tempfile.gettempdir()) / "none",
        end_of_text=None,
    )


def _train(composition: Composition, beside: Composition) -> Pack:
    """Train two steps, in one pack with another run if the shapes allow that."""
    config, other = composition.configure(tiny_config()), beside.configure(tiny_config())
    same_shape = config.pack_key == other.pack_key and composition.quantizer_key == beside.quantizer_key
    configs, compositions = ([config, other], [composition, beside]) if same_shape else ([config], [composition])
    pack = Pack(configs, compositions, tiny_tokens(config), torch.device("cpu"))
    for step in (1, 2):
        pack.step(step)
    return pack


def _check_settings(intervention: type[Intervention], settings: Mapping[str, Any]) -> None:
    intervention.Settings.model_validate(dict(settings))
    try:
        intervention.Settings.model_validate({"no_such_setting": 1})
    except ValidationError:
        return
    raise AssertionError("Settings takes unknown keys; derive it from InterventionSettings")


def _check_schedules(compose: Callable[[], Composition]) -> None:
    composition = compose()
    config = composition.configure(tiny_config())
    assert compose().configure(tiny_config()) == config, "configure returns different configs for the same config"
    bases: dict[Schedule, float] = {"learning_rate": 1e-3, "weight_decay": 0.1, "quantization": 1.0}
    for hook, base in bases.items():
        values = composition.schedule(hook, functools.partial(_constant, base), _STEPS)
        backwards = [getattr(composition, hook)(base, step, _STEPS) for step in range(_STEPS, 0, -1)]
        assert backwards[::-1] == values, f"{hook} is not a pure function of the step"


def _constant(value: float, step: int) -> float:
    return value


def _check_training(compose: Callable[[], Composition]) -> None:
    first = _train(compose(), Composition())
    for _, error in first.failed:
        raise error
    assert first.replicas[0].diverged_at is None, "two training steps give values that are not finite"
    second = _train(compose(), Composition())
    assert torch.equal(first.loss_R, second.loss_R), "training twice with one seed gives different results"
    if len(first.replicas) == 2:
        baseline = _train(Composition(), Composition())
        for key, flat in baseline.replicas[1].flat_parameters.items():
            torch.testing.assert_close(
                first.replicas[1].flat_parameters[key],
                flat,
                msg=f"it changed {key} of the baseline run in the same pack",
            )
    together = _train(compose(), compose()).replicas
    for key, flat in together[0].flat_parameters.items():
        torch.testing.assert_close(
            together[-1].flat_parameters[key],
            flat,
            msg=f"two runs with it in one pack give different {key}: it has state on its class, not on self, or draws "
            "numbers of a generator of its own",
        )
    compose().load_state_dict(first.replicas[0].composition.state_dict())
    if first.replicas[0].composition.optimizer_plugin is not None:
        _check_optimizer(compose, first.replicas[0].config)


def _check_optimizer(compose: Callable[[], Composition], config: RunConfig) -> None:
    """Check that steps change weights, by the rate of each group, and that a resumed run has the same third one."""
    # alone: in a pack of another size the last bits of gradients differ
    trained, slow, fresh = (Pack([config], [compose()], tiny_tokens(config), torch.device("cpu")) for _ in range(3))
    slow.replicas[0].halved_after = [0] * 4
    initial, weights, slower = (pack.model.parameters(0) for pack in (fresh, trained, slow))
    for pack in (trained, slow):
        pack.step(1)
    # of equal gradients; later ones depend on the weights
    moved = [name for name in weights if not torch.equal(initial[name], weights[name])]
    unread = [name for name in moved if torch.equal(weights[name], slower[name])]
    assert not unread, (
        f"its optimizer moves {', '.join(unread[:2])} as far at a sixteenth of the learning rate: its step must use "
        "the lr of each group, which is set before it"
    )
    trained.step(2)
    is_still = all(torch.equal(initial[name], weight) for name, weight in weights.items())
    assert not is_still, "two steps of its optimizer change no weight"
    # in the form in which a checkpoint holds it
    saved = load(save({name: tensor.contiguous() for name, tensor in trained.optimizer_state(0).items()}))
    fresh.model.load(0, {name: weight.detach().clone() for name, weight in weights.items()})
    fresh.load_optimizer_state(0, saved)
    fresh.replicas[0].composition.load_state_dict(trained.replicas[0].composition.state_dict())
    fresh.make_optimizers()
    for pack in (trained, fresh):
        pack.step(3)
    for name, weight in trained.model.parameters(0).items():
        assert torch.equal(weight, fresh.model.parameters(0)[name]), (
            f"a resumed run has other values of {name}: its optimizer keeps what changes outside of state and groups"
        )


def _check_quantizers(compose: Callable[[], Composition], name: str) -> None:
    config, generator = tiny_config().model, torch.Generator().manual_seed(0)
    quantizers = compose().quantizers()
    samples = {
        "quantize_weights": (quantizers.weights, (3, config.num_attention_heads, config.hidden_size)),
        "quantize_activations": (quantizers.activations, (5, config.intermediate_size)),
    }
    for hook, (quantize, shape) in samples.items():
        if quantize is None:
            continue
        x = torch.randn(shape, generator=generator)
        codes, scale = quantize(x)
        again, scale_again = quantize(x)
        is_pure = torch.equal(codes, again) and torch.equal(scale, scale_again)
        assert is_pure, f"{hook} is not a pure function: it draws numbers or keeps state"
        # the generator is put back, so that each call draws the same
        drawn = [each for each in intrusions_of(name) if each.startswith(("drew", "seeded"))]
        assert not drawn, f"{hook} is not a pure function: it {'; it '.join(drawn)}"
        for index in range(len(x)):
            alone, scale_alone = quantize(x[index : index + 1].clone())
            message = f"{hook} does not take each index of the first dimension by itself"
            torch.testing.assert_close(
                alone * _per_input(scale_alone, x), (codes * _per_input(scale, x))[[index]], msg=message
            )
    if quantizers.weights is not None or quantizers.activations is not None:
        _check_full_precision(compose)


def _per_input(scale: Tensor, x: Tensor) -> Tensor:
    """Return a scale repeated for each input of its group."""
    return scale.repeat_interleave(x.shape[-1] // scale.shape[-1], dim=-1)


def _check_full_precision(compose: Callable[[], Composition]) -> None:
    """Check that a run with λ 0 is in full precision, beside another one whose weights are quantized."""
    config = tiny_config()
    tokens_RBT = torch.arange(2 * config.data.sequence_length).view(2, 1, -1)
    logits = []
    for composition, other in ((compose(), 0.5), (Composition(), 0.0)):
        model = PackedModel(
            [config.model] * 2, _VOCAB, [0, 1], torch.device("cpu"), quantizers=composition.quantizers()
        )
        logits.append(model.forward(tokens_RBT, [0.0, other])[0])
    assert torch.equal(*logits), "a run with λ 0 is not in full precision beside one that is quantized"
