"""A step of several micro-batches is that of one batch with all of their rows."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from configs import TinyConfig
from packs import weights
from torch import Tensor

from bitnetctl.config import RunConfig
from bitnetctl.data import Batches, TokenData
from bitnetctl.data.store import require_batch
from bitnetctl.engine.cuda_graph import CapturedPack
from bitnetctl.engine.pack import Pack
from bitnetctl.engine.select import Execution, has_stock_update, without_update_if_needed
from bitnetctl.errors import DataError
from bitnetctl.intervention import Intervention
from bitnetctl.model.parts import PARTS
from bitnetctl.plugins.composition import Composition
from bitnetctl.trainer.loop import _Clock

CPU = torch.device("cpu")
# of micro-batches of 1, 2 and 6 rows
SPLITS = [(6, 1), (3, 2), (1, 6)]


class Smoothed(Intervention):
    """An objective that is not the loss; it counts its calls and draws a number in each."""

    def __init__(self, settings: Intervention.Settings) -> None:
        super().__init__(settings)
        self.tokens: list[int] = []
        self.drawn: list[float] = []

    def training_loss(self, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        self.tokens.append(len(targets_T))
        self.drawn.append(torch.rand(()).item())
        return F.cross_entropy(logits_TV, targets_T, label_smoothing=0.3)


def configs_of(tiny_config: TinyConfig, micro_batches: int, rows: int, **overrides: object) -> list[RunConfig]:
    return [
        tiny_config(
            seed=seed,
            data__batch_size=rows,
            data__gradient_accumulation=micro_batches,
            data__order="shuffled",
            optimizer__max_norm=0.1,
            **overrides,
        )
        for seed in (0, 1)
    ]


def trained(
    configs: Sequence[RunConfig], tokens: TokenData, kind: type[Pack], compositions: Sequence[Composition] | None = None
) -> Pack:
    pack = kind(configs, compositions or [Composition() for _ in configs], tokens, CPU)
    for step in (1, 2, 3):
        pack.step(step)
    return pack


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("kind", [Pack, CapturedPack])
@pytest.mark.parametrize(("micro_batches", "rows"), SPLITS)
def test_micro_batches_train_as_one_batch(
    kind: type[Pack], micro_batches: int, rows: int, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    whole = trained(configs_of(tiny_config, 1, 6), tiny_tokens, Pack)
    split = trained(configs_of(tiny_config, micro_batches, rows), tiny_tokens, kind)
    assert split.tokens_per_step == whole.tokens_per_step == 6 * 16
    for metric in ("loss_R", "objective_R", "grad_norm_R"):
        torch.testing.assert_close(getattr(split, metric), getattr(whole, metric), rtol=1e-6, atol=1e-9)
    for run in (0, 1):
        for key, weight in weights(whole, run).items():
            torch.testing.assert_close(weights(split, run)[key], weight, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_get_the_gradients_of_all_micro_batches(
    tied: bool, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    tying = {"model__tie_word_embeddings": tied}
    whole = trained(configs_of(tiny_config, 1, 6, **tying), tiny_tokens, Pack)
    split = trained(configs_of(tiny_config, 3, 2, **tying), tiny_tokens, Pack)
    for key, gradient in whole.model.gradients.items():
        torch.testing.assert_close(split.model.gradients[key], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("double")
def test_a_loss_hook_is_called_for_every_micro_batch(tiny_config: TinyConfig, tiny_tokens: TokenData) -> None:
    hook, other = Smoothed(Smoothed.Settings()), Smoothed(Smoothed.Settings())
    whole = trained(configs_of(tiny_config, 1, 6), tiny_tokens, Pack, [Composition([other]), Composition()])
    split = trained(configs_of(tiny_config, 3, 2), tiny_tokens, Pack, [Composition([hook]), Composition()])
    assert hook.tokens == [2 * 16] * 9
    assert other.tokens == [6 * 16] * 3
    # each call draws its own numbers, the first of a step those of a step without micro-batches
    assert len(set(hook.drawn)) == 9
    assert hook.drawn[::3] == other.drawn
    torch.testing.assert_close(split.objective_R, whole.objective_R, rtol=1e-6, atol=1e-9)
    assert split.objective_R[0] > split.loss_R[0] + 0.01
    assert split.objective_R[1] == split.loss_R[1]
    for key, weight in weights(whole, 0).items():
        torch.testing.assert_close(weights(split, 0)[key], weight, rtol=0, atol=1e-8)


def test_only_one_micro_batch_is_updated_by_own_kernels(tiny_config: TinyConfig) -> None:
    assert has_stock_update(tiny_config(), Composition())
    assert not has_stock_update(tiny_config(data__gradient_accumulation=2), Composition())
    configs = [tiny_config(data__gradient_accumulation=2), tiny_config()]
    execution = Execution(engine="fused", precision="fp32", kernels=frozenset(PARTS))
    chosen = without_update_if_needed(execution, configs, [Composition(), Composition()])
    assert chosen.kernels == set(PARTS) - {"update"}


@pytest.mark.parametrize("order", ["sequential", "shuffled"])
def test_rows_are_those_of_one_batch_in_the_same_order(
    order: str, tiny_config: TinyConfig, tiny_tokens: TokenData
) -> None:
    whole = Batches(tiny_tokens, tiny_config(data__order=order, data__batch_size=6).data, seed=3)
    data = tiny_config(data__order=order, data__batch_size=2, data__gradient_accumulation=3).data
    split = Batches(tiny_tokens, data, seed=3)
    assert split.steps_per_epoch == whole.steps_per_epoch
    for step in (1, 2, whole.steps_per_epoch, whole.steps_per_epoch + 1):
        assert (split.rows_BT1(step) == whole.rows_BT1(step)).all()


def test_too_little_text_for_all_micro_batches_is_refused(tiny_config: TinyConfig) -> None:
    data = tiny_config(data__batch_size=2, data__gradient_accumulation=3).data
    require_batch(6 * 16 + 1, data)
    with pytest.raises(DataError, match=r"too few for one batch of 3 x 2 x 16 tokens \(97 .* data.gradient_accum"):
        require_batch(6 * 16, data)


def test_tokens_of_all_micro_batches_count(tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr("bitnetctl.trainer.loop.time.perf_counter", lambda: next(seconds))
    clock = _Clock(tiny_config(data__batch_size=2, data__gradient_accumulation=3).data.tokens_per_step)
    clock.start()
    clock.stop()
    assert clock.tokens_per_second() == 6 * 16 / 2.0
