"""One step of a pack: batched runs train what they train alone, and do not influence each other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from configs import TinyConfig
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import Batches, TokenData
from bitnetctl.engine.pack import Pack
from bitnetctl.errors import ConfigError
from bitnetctl.intervention import Intervention, InterventionSettings
from bitnetctl.plugins.composition import Composition


class Smoothed(Intervention):
    """An objective that is not the plain cross-entropy."""

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        return F.cross_entropy(logits_TV, targets_T, label_smoothing=0.5)


class Scaled(Intervention):
    """Gradients times a factor; 0 stops Adam without decay."""

    class Settings(InterventionSettings):
        factor: float = 0.0

    settings: Settings

    def transform_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        for parameter in parameters.values():
            assert parameter.grad is not None
            parameter.grad.mul_(self.settings.factor)


class Witness(Intervention):
    """Keep what the hook is given."""

    def __init__(self, settings: InterventionSettings) -> None:
        super().__init__(settings)
        self.seen: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def transform_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        self.seen.append({name: weight.detach().clone() for name, weight in parameters.items()})
        given = {name: weight.grad for name, weight in parameters.items()}
        self.gradients.append({name: grad.clone() for name, grad in given.items() if grad is not None})


class Still(Intervention):
    """A learning rate of zero."""

    def learning_rate(self, base: float, step: int, steps: int) -> float:
        return 0.0


class Broken(Intervention):
    """An objective that is not finite from its third step on."""

    def __init__(self, settings: InterventionSettings) -> None:
        super().__init__(settings)
        self.calls = 0

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        self.calls += 1
        loss = F.cross_entropy(logits_TV, targets_T)
        return loss * torch.nan if self.calls >= 3 else loss


def composition(*classes: type[Intervention], **settings: Any) -> Composition:
    return Composition([each(each.Settings(**settings)) for each in classes])


@pytest.fixture
def pack(tiny_tokens: TokenData) -> Callable[..., Pack]:
    """Build a pack on the tiny text, without interventions unless they are given."""

    def build(configs: Sequence[RunConfig], compositions: Sequence[Composition] | None = None) -> Pack:
        chosen = compositions or [Composition() for _ in configs]
        return Pack(configs, chosen, tiny_tokens, torch.device("cpu"))

    return build


@pytest.fixture
def three(tiny_config: TinyConfig) -> list[RunConfig]:
    """Three runs that differ in everything that runs of a pack may differ in."""
    return [
        tiny_config(seed=0),
        tiny_config(seed=1, data__order="shuffled", optimizer__name="adamw", optimizer__exempt="norms,head"),
        tiny_config(
            seed=2,
            data__order="shuffled",
            model__initialization="normal",
            schedule__kind="cosine",
            schedule__peak_learning_rate=5e-3,
            optimizer__max_norm=0.1,
        ),
    ]


def weights(pack: Pack, run: int) -> dict[str, Tensor]:
    return {key: packed.detach()[run].clone() for key, packed in pack.model.packed.items()}


def gradient_norm(pack: Pack, run: int) -> float:
    gradients = [flat.grad for flat in pack.replicas[run].flat_parameters.values() if flat.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).item()


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for key, weight in theirs.items():
        assert torch.equal(ours[key], weight), key


# packs and runs alone


# in double precision, where no int8 rounding flips, they agree to 1e-9 after five steps of Adam
@pytest.mark.usefixtures("double")
def test_a_pack_trains_what_its_runs_train_alone(pack: Callable[..., Pack], three: list[RunConfig]) -> None:
    together, alone = pack(three), [pack([config]) for config in three]
    for step in range(1, 6):
        together.step(step)
        for run, solo in enumerate(alone):
            solo.step(step)
            for metric in ("loss_R", "objective_R", "grad_norm_R"):
                ours, theirs = getattr(together, metric)[run].item(), getattr(solo, metric).item()
                assert ours == pytest.approx(theirs, rel=1e-9), (metric, step)
            for key, gradient in together.model.gradients.items():
                torch.testing.assert_close(gradient[run], solo.model.gradients[key][0], rtol=1e-7, atol=1e-9)
    for run, solo in enumerate(alone):
        start = weights(pack([three[run]]), 0)
        for key, weight in weights(solo, 0).items():
            assert not torch.allclose(weight, start[key], atol=1e-4)
            torch.testing.assert_close(weights(together, run)[key], weight, rtol=0, atol=1e-9)


# in single precision, with λ = 0: Adam scales noise in a gradient near zero up to a tenth of the learning rate
def test_a_pack_trains_what_its_runs_train_alone_in_single_precision(
    pack: Callable[..., Pack], tiny_config: TinyConfig
) -> None:
    configs = [tiny_config(seed=seed, model__quantization=0.0) for seed in range(3)]
    together, alone = pack(configs), [pack([config]) for config in configs]
    for step in range(1, 6):
        together.step(step)
        for run, solo in enumerate(alone):
            solo.step(step)
            assert together.loss_R[run].item() == pytest.approx(solo.loss_R.item(), rel=1e-4)
            assert together.grad_norm_R[run].item() == pytest.approx(solo.grad_norm_R.item(), rel=1e-3)
    for run, solo in enumerate(alone):
        for key, weight in weights(solo, 0).items():
            torch.testing.assert_close(weights(together, run)[key], weight, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("double")
def test_a_step_is_what_torch_does_by_hand(
    pack: Callable[..., Pack], tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    config = tiny_config(seed=3, data__order="shuffled", optimizer__max_norm=0.5)
    ours, model = pack([config]), pack([config]).model
    flat_parameters = list(model.flat_parameters(0).values())
    optimizer = torch.optim.Adam(flat_parameters, betas=config.optimizer.betas, eps=config.optimizer.eps)
    batches = Batches(tiny_tokens, config.data, config.seed)
    # a warm-up of two steps to the peak, stage 1 up to step 6
    for step, rate in ((1, 0.75e-3), (2, 1.5e-3), (3, 1.5e-3 * (1 - 1 / 12))):
        rows = torch.from_numpy(batches.rows_BT1(step))
        activations = model.forward_for_backward(rows[None, :, :-1], model.quantization([1.0]))
        targets_N = rows[:, 1:].flatten()
        logits = model.logits(activations.hidden_RNH).requires_grad_()
        loss = F.cross_entropy(logits[0], targets_N)
        (expected,) = torch.autograd.grad(loss, logits)

        def by_hand(_: Tensor, grad_RNV: Tensor, expected: Tensor = expected) -> None:
            grad_RNV.copy_(expected * expected.shape[1])

        model.backward(activations, model.head_loss(activations.hidden_RNH, targets_N[None], by_hand)[1])
        norm = torch.nn.utils.clip_grad_norm_(flat_parameters, 0.5)
        for group in optimizer.param_groups:
            group.update(lr=rate, weight_decay=0.1)
        optimizer.step()

        ours.step(step)
        assert ours.loss_R.item() == pytest.approx(loss.item(), rel=1e-9)
        assert ours.grad_norm_R.item() == pytest.approx(norm.item(), rel=1e-9)
        assert norm > 0.5
        for key, packed in model.packed.items():
            torch.testing.assert_close(ours.model.packed[key], packed, rtol=0, atol=1e-9)


# divergence


def test_a_run_that_diverges_stops_alone(pack: Callable[..., Pack], three: list[RunConfig]) -> None:
    disturbed = pack(three, [Composition(), composition(Broken), Composition()])
    undisturbed = pack(three)
    for step in range(1, 6):
        before = weights(disturbed, 1)
        disturbed.step(step)
        undisturbed.step(step)
        assert disturbed.replicas[1].diverged_at == (3 if step >= 3 else None)
        if step >= 3:
            assert_equal(weights(disturbed, 1), before)
            assert disturbed.objective_R[1].isnan()
    for run in (0, 2):
        assert disturbed.replicas[run].diverged_at is None
        # bitwise: each run is a matrix of its own in every batched matmul
        assert_equal(weights(disturbed, run), weights(undisturbed, run))
        assert disturbed.loss_R[run] == undisturbed.loss_R[run]


def test_a_gradient_that_is_not_finite_is_detected_behind_a_finite_loss(
    pack: Callable[..., Pack], three: list[RunConfig]
) -> None:
    class Steep(Intervention):
        def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
            # the root has an infinite slope at 0
            return F.cross_entropy(logits_TV, targets_T) + (0 * logits_TV).sum().sqrt()

    steep = pack(three, [Composition(), Composition(), composition(Steep)])
    before = weights(steep, 2)
    steep.step(1)
    assert steep.objective_R.isfinite().all()
    assert [replica.diverged_at for replica in steep.replicas] == [None, None, 1]
    assert_equal(weights(steep, 2), before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("key", ["embed", "qkv", "down", "final_norm", "head"])
def test_a_weight_that_is_not_finite_is_detected(
    pack: Callable[..., Pack], three: list[RunConfig], key: str, bad: float
) -> None:
    disturbed, undisturbed = pack(three), pack(three)
    with torch.no_grad():
        disturbed.model.packed[key][1].flatten()[:] = bad
    for step in (1, 2):
        disturbed.step(step)
        undisturbed.step(step)
    assert [replica.diverged_at for replica in disturbed.replicas] == [None, 1, None]
    for run in (0, 2):
        assert_equal(weights(disturbed, run), weights(undisturbed, run))


def test_a_diverging_learning_rate_changes_no_other_run(pack: Callable[..., Pack], three: list[RunConfig]) -> None:
    absurd = three[1].model_copy(
        update={"schedule": three[1].schedule.model_copy(update={"peak_learning_rate": 1e38, "warmup_steps": 0})}
    )
    disturbed, undisturbed = pack([three[0], absurd, three[2]]), pack(three)
    for step in range(1, 6):
        disturbed.step(step)
        undisturbed.step(step)
    assert disturbed.replicas[1].diverged_at is not None
    for run in (0, 2):
        assert disturbed.replicas[run].diverged_at is None
        assert_equal(weights(disturbed, run), weights(undisturbed, run))


# hooks


def test_an_overridden_loss_is_the_objective_of_its_run_alone(
    pack: Callable[..., Pack], three: list[RunConfig]
) -> None:
    treated, plain = pack(three, [Composition(), composition(Smoothed), Composition()]), pack(three)
    for step in (1, 2, 3):
        treated.step(step)
        plain.step(step)
        if step == 1:
            # `Loss` is the same metric for every arm
            assert torch.equal(treated.loss_R, plain.loss_R)
            assert treated.objective_R[1] != treated.loss_R[1]
    assert torch.equal(treated.objective_R[[0, 2]], treated.loss_R[[0, 2]])
    assert not treated.loss_R.requires_grad
    for run in (0, 2):
        for key, weight in weights(plain, run).items():
            torch.testing.assert_close(weights(treated, run)[key], weight, rtol=0, atol=1e-7)
    assert not torch.allclose(treated.model.packed["head"][1], plain.model.packed["head"][1], atol=1e-4)


def test_a_loss_hook_gets_the_batch_of_its_run(
    pack: Callable[..., Pack], three: list[RunConfig], tiny_tokens: TokenData
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Curious(Smoothed):
        def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
            seen.append((logits_TV.detach(), targets_T))
            return super().training_loss(logits_TV, targets_T)

    treated = pack(three, [Composition(), Composition(), composition(Curious)])
    treated.step(1)
    ((logits_TV, targets_T),) = seen
    rows = Batches(tiny_tokens, three[2].data, three[2].seed).rows_BT1(1)
    assert targets_T.tolist() == rows[:, 1:].flatten().tolist()
    assert F.cross_entropy(logits_TV, targets_T).item() == pytest.approx(treated.loss_R[2].item(), rel=1e-6)
    smoothed = F.cross_entropy(logits_TV, targets_T, label_smoothing=0.5)
    assert treated.objective_R[2].item() == pytest.approx(smoothed.item(), rel=1e-6)


def test_transformed_gradients_are_those_of_their_run_alone(
    pack: Callable[..., Pack], three: list[RunConfig], tiny_config: TinyConfig
) -> None:
    three[1] = tiny_config(seed=1, schedule__stage1_weight_decay=0.0)
    treated, plain = pack(three, [Composition(), composition(Scaled), Composition()]), pack(three)
    before = weights(treated, 1)
    for step in (1, 2, 3):
        treated.step(step)
        plain.step(step)
        if step == 1:
            # measured before the gradients are touched
            assert torch.equal(treated.grad_norm_R, plain.grad_norm_R)
    assert treated.grad_norm_R[1] > 0
    assert_equal(weights(treated, 1), before)
    for run in (0, 2):
        assert_equal(weights(treated, run), weights(plain, run))


@pytest.mark.parametrize(("factor", "clipped"), [(1e-3, False), (1.0, True), (1e3, True)])
def test_clipping_comes_after_the_gradient_hook_and_the_metric_before(
    pack: Callable[..., Pack], tiny_config: TinyConfig, factor: float, clipped: bool
) -> None:
    configs = [tiny_config(optimizer__max_norm=0.01)] * 2
    treated = pack(configs, [Composition(), composition(Scaled, factor=factor)])
    treated.step(1)
    norm = treated.grad_norm_R[1].item()
    assert norm > 0.1
    assert treated.grad_norm_R[0].item() == norm
    assert gradient_norm(treated, 0) == pytest.approx(0.01, rel=1e-3)
    assert gradient_norm(treated, 1) == pytest.approx(0.01 if clipped else norm * factor, rel=1e-3)


def test_no_clipping_leaves_the_gradients(pack: Callable[..., Pack], tiny_config: TinyConfig) -> None:
    free = pack([tiny_config(optimizer__max_norm=None)])
    free.step(1)
    assert gradient_norm(free, 0) == pytest.approx(free.grad_norm_R.item(), rel=1e-6)
    assert free.grad_norm_R.item() > 1.0


def test_schedules_of_the_composition_are_used(pack: Callable[..., Pack], tiny_config: TinyConfig) -> None:
    class Full(Intervention):
        def quantization(self, base: float, step: int, steps: int) -> float:
            return 0.0 if step == 1 else base

    class Decayed(Intervention):
        def weight_decay(self, base: float, step: int, steps: int) -> float:
            return base + step / steps

    configs = [tiny_config(optimizer__name="adamw")] * 3
    treated = pack(configs, [composition(Still), composition(Full), composition(Decayed)])
    replica = treated.replicas[2]
    assert [replica.weight_decay(step) for step in (6, 7)] == pytest.approx([0.1 + 6 / 12, 7 / 12])
    assert [treated.quant_lambdas(step) for step in (1, 2)] == [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]

    before, plain = weights(treated, 0), pack(configs)
    treated.step(1)
    plain.step(1)
    assert_equal(weights(treated, 0), before)
    assert treated.loss_R[0] == plain.loss_R[0]
    assert treated.loss_R[1] != plain.loss_R[1]
    # decoupled: the only difference is the learning rate times the additional decay
    expected = weights(plain, 2)["head"] - 0.75e-3 / 12 * before["head"]
    torch.testing.assert_close(weights(treated, 2)["head"], expected, rtol=0, atol=1e-7)


def test_moments_are_reset_at_their_interval(pack: Callable[..., Pack], tiny_config: TinyConfig) -> None:
    resetting = pack([tiny_config(optimizer__reset_moments_every_steps=3)])
    counts = []
    for step in range(1, 9):
        resetting.step(step)
        counts.append(int(resetting.replicas[0].optimizer.state()["head/step"]))
    assert counts == [1, 2, 3, 1, 2, 3, 1, 2]


# which runs may train together


@pytest.mark.parametrize(
    "fields",
    [
        {"model__hidden_size": 64},
        {"model__num_layers": 3},
        {"model__num_key_value_heads": 2},
        {"model__intermediate_ratio": 3.0},
        {"model__activation": "silu"},
        {"model__inner_norms": False},
        {"model__tie_word_embeddings": True},
        {"model__scale_group": "projection"},
        {"model__rms_norm_eps": 1e-6},
        {"model__rope_theta": 500.0},
        {"data__source": "stdlib"},
        {"data__tokenizer": "bpe:301"},
        {"data__batch_size": 3},
        {"data__sequence_length": 8},
        {"steps": 13},
        {"probe__positions": 64},
        {"probe__eval_every_steps": 3},
        {"probe__seed": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_runs_of_another_shape_are_refused(
    pack: Callable[..., Pack], tiny_config: TinyConfig, fields: dict[str, Any]
) -> None:
    configs = [tiny_config(), tiny_config(**fields)]
    assert configs[0].pack_key != configs[1].pack_key
    with pytest.raises(ConfigError, match="different shape"):
        pack(configs)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"recipe": "other"},
        {"model__initialization": "normal"},
        {"model__init_std": 0.5},
        {"model__quantization": 0.5},
        {"data__order": "shuffled"},
        {"optimizer__name": "adamw"},
        {"optimizer__betas": "[0.5, 0.5]"},
        {"optimizer__eps": 1e-3},
        {"optimizer__max_norm": "none"},
        {"optimizer__exempt": "norms"},
        {"schedule__kind": "cosine"},
        {"schedule__peak_learning_rate": 1.0},
        {"schedule__boundary_fraction": 0.25},
        {"schedule__stage2_weight_decay": 0.5},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_runs_of_one_shape_may_differ_otherwise(tiny_config: TinyConfig, fields: dict[str, Any]) -> None:
    assert tiny_config().pack_key == tiny_config(**fields).pack_key


def test_an_unset_evaluation_interval_is_its_default(tiny_config: TinyConfig) -> None:
    unset = tiny_config(steps=40, probe__eval_every_steps=None)
    assert unset.pack_key == tiny_config(steps=40, probe__eval_every_steps=2).pack_key


def test_a_gradient_hook_gets_the_weights_and_gradients_of_every_step(
    pack: Callable[..., Pack], tiny_config: TinyConfig
) -> None:
    compositions = [Composition(), composition(Witness), composition(Witness)]
    # clipping may write the gradients back
    trained = pack([tiny_config(seed=seed, optimizer__max_norm="none") for seed in range(3)], compositions)
    for step in range(1, 4):
        before = [{name: w.detach().clone() for name, w in trained.model.parameters(run).items()} for run in range(3)]
        trained.step(step)
        for run in (1, 2):
            (witness,) = compositions[run].interventions
            assert isinstance(witness, Witness)
            assert_equal(witness.seen[-1], before[run])
            after = {name: w.grad for name, w in trained.model.parameters(run).items() if w.grad is not None}
            assert witness.gradients[-1].keys() == after.keys() == before[run].keys()
            assert_equal(witness.gradients[-1], after)


def test_a_step_counts_the_tokens_of_one_run(pack: Callable[..., Pack], three: list[RunConfig]) -> None:
    assert pack(three).tokens_per_step == 32
