"""Adam of all runs in one launch, against torch's fused optimizers on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from bitnetctl.kernels.adam import Coefficient, adam_, adam_rows_, square_sums

STEPS = 20
# the interpreter truncates where a GPU rounds
BF16 = 2**-7
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one run is updated with; decoupled decay is AdamW's."""

    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    decay: float = 0.0
    decoupled: bool = False
    divisor: float = 1.0
    skipped_from: int = STEPS + 1

    def coefficients(self, step: int) -> list[float]:
        """Return a run's row of coefficients in double precision."""
        (beta1, beta2), C = self.betas, Coefficient
        values = {
            C.RATE_OVER_CORRECTION: self.rate / (1 - beta1**step),
            C.INVERSE_ROOT_CORRECTION: (1 - beta2**step) ** -0.5,
            C.DECAY_TO_GRADIENT: 0.0 if self.decoupled else self.decay,
            C.KEEP: 1 - self.rate * self.decay if self.decoupled else 1.0,
            C.BETA1: beta1,
            C.BETA2: beta2,
            C.EPS: self.eps,
            C.DIVISOR: self.divisor,
            C.SKIP: float(step >= self.skipped_from),
            C.ONE_MINUS_BETA1: 1 - beta1,
            C.ONE_MINUS_BETA2: 1 - beta2,
        }
        return [values[column] for column in C]


RULES = (
    Rule(),
    Rule(decay=0.1, rate=3e-3, divisor=2.5),
    Rule(decay=0.1, decoupled=True, betas=(0.9, 0.999), divisor=1.75),
    Rule(rate=1.2e-2, betas=(0.8, 0.98), eps=1e-6, decoupled=True, decay=0.3),
    Rule(decay=0.05, skipped_from=8),
)


def coefficients_at(step: int, rules: Sequence[Rule] = RULES) -> Tensor:
    return torch.tensor([rule.coefficients(step) for rule in rules], dtype=torch.float64).float().to(DEVICE)


class Reference:
    """A run's weights with a fused optimizer of torch's on the CPU."""

    def __init__(self, rule: Rule, weight_S: Tensor) -> None:
        self.rule = rule
        self.weight = weight_S.clone().cpu().requires_grad_()
        kind = torch.optim.AdamW if rule.decoupled else torch.optim.Adam
        # the type knows neither `grad_scale` nor `found_inf`
        self._optimizer: Any = kind(
            [self.weight], lr=rule.rate, betas=rule.betas, eps=rule.eps, weight_decay=rule.decay, fused=True
        )

    def step(self, step: int, grad_S: Tensor) -> None:
        """Take one step; the fused kernel writes the divided gradient back, so it gets its own copy."""
        self.weight.grad = grad_S.clone().cpu()
        self._optimizer.grad_scale = torch.tensor(self.rule.divisor)
        self._optimizer.found_inf = torch.tensor(float(step >= self.rule.skipped_from))
        self._optimizer.step()

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and moments."""
        state = self._optimizer.state[self.weight]
        return self.weight.detach(), state["exp_avg"], state["exp_avg_sq"]


def gradients(shape: Sequence[int], step: int) -> Tensor:
    """Return gradients of sizes from 1e-6 to 1, other ones each step."""
    generator = torch.Generator().manual_seed(step)
    sizes = 10 ** (torch.rand(*shape, generator=generator) * 6 - 6)
    return (torch.randn(*shape, generator=generator) * sizes).to(DEVICE)


def state(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights and zero moments."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return weight, torch.zeros_like(weight), torch.zeros_like(weight)


def assert_like(tensors: Sequence[Tensor], reference: Reference) -> None:
    """Compare to a few units in the last place: of the weights, whose updates are far smaller, and of the moments."""
    weight, exp_avg, exp_avg_sq = (tensor.cpu() for tensor in tensors)
    expected, expected_avg, expected_sq = reference.tensors
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=5e-8)
    # a sum of gradients of either sign cancels
    torch.testing.assert_close(exp_avg, expected_avg, rtol=2e-6, atol=5e-8)
    torch.testing.assert_close(exp_avg_sq, expected_sq, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("size", [2048, 1500, 3])
def test_twenty_steps_of_runs_with_different_rules(size: int) -> None:
    weight_RS, exp_avg_RS, exp_avg_sq_RS = state(len(RULES), size)
    references = [Reference(rule, weight_S) for rule, weight_S in zip(RULES, weight_RS, strict=True)]
    for step in range(1, STEPS + 1):
        grad_RS = gradients(weight_RS.shape, step)
        given_RS = grad_RS.clone()
        adam_(weight_RS, grad_RS, exp_avg_RS, exp_avg_sq_RS, coefficients_at(step))
        assert torch.equal(grad_RS, given_RS)
        for reference, grad_S in zip(references, grad_RS, strict=True):
            reference.step(step, grad_S)
    for run, reference in enumerate(references):
        assert_like([weight_RS[run], exp_avg_RS[run], exp_avg_sq_RS[run]], reference)


def test_one_step_is_exact_to_the_last_places() -> None:
    weight_RS, exp_avg_RS, exp_avg_sq_RS = state(len(RULES), 1500)
    grad_RS = gradients(weight_RS.shape, 1)
    # small, so that the update itself is compared, and of a sign with which coupled decay does not cancel
    weight_RS.mul_(1e-6).copysign_(grad_RS)
    references = [Reference(rule, weight_S) for rule, weight_S in zip(RULES, weight_RS, strict=True)]
    adam_(weight_RS, grad_RS, exp_avg_RS, exp_avg_sq_RS, coefficients_at(1))
    for run, reference in enumerate(references):
        reference.step(1, grad_RS[run])
        for tensor_RS, expected_S in zip((weight_RS, exp_avg_RS, exp_avg_sq_RS), reference.tensors, strict=True):
            torch.testing.assert_close(tensor_RS[run].cpu(), expected_S, rtol=1e-6, atol=1e-12)


def test_skipped_runs_keep_their_bits_and_their_copy() -> None:
    rules = (Rule(), Rule(skipped_from=1), Rule())
    tensors = state(3, 1100)
    grad_RS = gradients((3, 1100), 1)
    grad_RS[1] = torch.nan
    copy_RS = torch.full((3, 1100), 7.0, dtype=torch.bfloat16, device=DEVICE)
    before = [tensor.clone() for tensor in tensors]
    adam_(tensors[0], grad_RS, tensors[1], tensors[2], coefficients_at(1, rules), copy_RS=copy_RS)
    for tensor_RS, before_RS in zip(tensors, before, strict=True):
        assert torch.equal(tensor_RS[1], before_RS[1])
        assert not torch.equal(tensor_RS[0], before_RS[0])
        assert tensor_RS.isfinite().all()
    assert (copy_RS[1] == 7.0).all()
    torch.testing.assert_close(copy_RS[[0, 2]].float(), tensors[0][[0, 2]], rtol=BF16, atol=0.0)


def test_nan_stays_in_its_run() -> None:
    tensors = state(3, 1100)
    grad_RS = gradients((3, 1100), 1)
    grad_RS[1, 5] = torch.nan
    adam_(tensors[0], grad_RS, tensors[1], tensors[2], coefficients_at(1, [Rule()] * 3))
    for tensor_RS in tensors:
        assert tensor_RS[1].isnan().nonzero().tolist() == [[5]]
        assert tensor_RS[[0, 2]].isfinite().all()


def test_only_the_first_elements_of_strided_runs() -> None:
    """Runs lie apart by a stride of their own in each tensor, and what follows `size` is padding."""
    size, rules = 1030, RULES[:3]
    storages = [torch.full((3, size + extra), 5.0, device=DEVICE) for extra in (0, 10, 26, 7, 13)]
    weight_RS, grad_RS, exp_avg_RS, exp_avg_sq_RS, copy_RS = storages
    copy_RS = copy_RS.bfloat16()
    plain = state(3, size)
    plain_grad_RS = gradients((3, size), 1)
    for storage_RS, values_RS in zip(storages[:4], (plain[0], plain_grad_RS, *plain[1:]), strict=True):
        storage_RS[:, : size - 6] = values_RS[:, : size - 6]
    adam_(weight_RS, grad_RS, exp_avg_RS, exp_avg_sq_RS, coefficients_at(1, rules), size=size - 6, copy_RS=copy_RS)
    adam_(plain[0], plain_grad_RS, plain[1], plain[2], coefficients_at(1, rules))
    for storage_RS, values_RS in zip((weight_RS, exp_avg_RS, exp_avg_sq_RS), plain, strict=True):
        assert torch.equal(storage_RS[:, : size - 6], values_RS[:, : size - 6])
        assert (storage_RS[:, size - 6 :] == 5.0).all()
    torch.testing.assert_close(copy_RS[:, : size - 6].float(), plain[0][:, : size - 6], rtol=BF16, atol=0.0)
    assert (copy_RS[:, size - 6 :] == 5.0).all()


def test_a_tensor_that_is_not_contiguous_is_refused() -> None:
    weight_RS, exp_avg_RS, exp_avg_sq_RS = state(2, 8)
    transposed_RS = torch.zeros(8, 2, device=DEVICE).T
    with pytest.raises(ValueError, match="not contiguous"):
        adam_(weight_RS, transposed_RS, exp_avg_RS, exp_avg_sq_RS, coefficients_at(1, RULES[:2]))
    tables = [tensor.view(2, 4, 2).transpose(0, 1)[:2] for tensor in state(4, 4)]
    slots_RV = torch.full((2, 2), -1, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="not adjacent"):
        adam_rows_(tables[0], torch.zeros(2, 1, 2), slots_RV, tables[1], tables[2], coefficients_at(1, RULES[:2]))


@pytest.mark.parametrize(("rows", "hidden"), [(13, 64), (7, 48), (5, 1536), (3, 1100)])
def test_rows_are_the_dense_update(rows: int, hidden: int) -> None:
    rules = (*RULES[:3], Rule(skipped_from=2))
    runs, tokens = len(rules), 3
    tables = state(runs, rows, hidden)
    dense = [tensor.clone().flatten(1) for tensor in tables]
    slots_RV = torch.full((runs, rows), -1, dtype=torch.int32, device=DEVICE)
    for step in (1, 2, 3):
        rows_RNH = gradients((runs, tokens, hidden), step)
        # row 1 has no slot, so it must not be read
        rows_RNH[:, 1] = torch.nan
        grad_RVH = torch.zeros_like(tables[0])
        for run in range(runs):
            for slot, row in ((0, (run + step) % rows), (2, (2 * run + step + 1) % rows)):
                slots_RV[run, row] = slot
                grad_RVH[run, row] = rows_RNH[run, slot]
        adam_rows_(tables[0], rows_RNH, slots_RV, tables[1], tables[2], coefficients_at(step, rules))
        adam_(dense[0], grad_RVH.flatten(1), dense[1], dense[2], coefficients_at(step, rules))
        assert (slots_RV == -1).all()
    for table_RVH, dense_RS in zip(tables, dense, strict=True):
        assert torch.equal(table_RVH.flatten(1), dense_RS)


def test_rows_of_a_padded_table_leave_the_padding_alone() -> None:
    padded = [torch.full((2, 6, 64), 5.0, device=DEVICE) for _ in range(3)]
    slots_RV = torch.tensor([[-1, 0, -1, -1, -1], [-1, -1, -1, 0, -1]], dtype=torch.int32, device=DEVICE)
    rows_RNH = gradients((2, 1, 64), 1)
    weight_RVH, exp_avg_RVH, exp_avg_sq_RVH = (tensor[:, :5] for tensor in padded)
    adam_rows_(weight_RVH, rows_RNH, slots_RV, exp_avg_RVH, exp_avg_sq_RVH, coefficients_at(1, [Rule()] * 2))
    for tensor_RVH in padded:
        assert (tensor_RVH[:, 5] == 5.0).all()
        assert (tensor_RVH[:, :5] != 5.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_square_sums(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # few blocks, so that each takes several tiles
    monkeypatch.setattr("bitnetctl.kernels.adam._MAX_SUMS", 3)
    grad_RS = torch.zeros(2, 20_000, device=DEVICE, dtype=dtype)
    grad_RS[:, :19_001] = torch.randn(2, 19_001, generator=torch.Generator().manual_seed(0))
    expected_R = grad_RS.double().square().sum(1)
    # what follows the size is not read
    grad_RS[:, 19_001:] = torch.nan
    sums_RB = square_sums(grad_RS, 19_001)
    assert sums_RB.shape == (2, 3)
    assert sums_RB.dtype == torch.float32
    torch.testing.assert_close(sums_RB.double().sum(1), expected_R, rtol=1e-6, atol=0.0)
    assert torch.equal(square_sums(grad_RS, 19_001), sums_RB)
    assert torch.equal(square_sums(grad_RS[1:], 19_001), sums_RB[1:])


def test_square_sums_of_few_elements() -> None:
    sums_RB = square_sums(torch.tensor([[3.0, 4.0], [torch.nan, 1.0]], device=DEVICE))
    assert sums_RB[0].tolist() == [25.0]
    assert sums_RB[1].isnan().all()
