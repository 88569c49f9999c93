"""Rows of the embeddings' gradient, against an accumulating scatter in double precision."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from bitnetctl.kernels import embedding
from bitnetctl.kernels.embedding import add_rows_, embedding_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCABULARY = 23


def drawn(runs: int, tokens: int, hidden: int, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """Return gradients and tokens, most of which occur several times."""
    generator = torch.Generator().manual_seed(tokens)
    grad_RNH = torch.randn(runs, tokens, hidden, generator=generator)
    return grad_RNH.to(DEVICE), torch.randint(vocabulary, (runs, tokens), generator=generator).to(DEVICE)


def dense(grad_RNH: Tensor, tokens_RN: Tensor, vocabulary: int = VOCABULARY) -> Tensor:
    """Return the dense gradient [R, V, H] in double precision."""
    table_RVH = torch.zeros(grad_RNH.shape[0], vocabulary, grad_RNH.shape[2], dtype=torch.float64, device=DEVICE)
    for table_VH, grad_NH, tokens_N in zip(table_RVH, grad_RNH.double(), tokens_RN.long(), strict=True):
        table_VH.index_put_((tokens_N,), grad_NH, accumulate=True)
    return table_RVH


def first_occurrences(tokens_RN: Tensor) -> Tensor:
    """Return which tokens do not occur earlier in their run."""
    rows = [[token not in row[:n] for n, token in enumerate(row)] for row in tokens_RN.tolist()]
    return torch.tensor(rows, device=DEVICE)


@pytest.mark.parametrize(("dtype", "token_dtype"), [(torch.float32, torch.int64), (torch.bfloat16, torch.int32)])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 64), (37, 48), (20, 300)])
def test_rows_and_slots(dtype: torch.dtype, token_dtype: torch.dtype, tokens: int, hidden: int) -> None:
    grad_RNH, tokens_RN = drawn(2, tokens, hidden)
    grad_RNH, tokens_RN = grad_RNH.to(dtype), tokens_RN.to(token_dtype)
    slots_RV = torch.full((2, VOCABULARY), -1, dtype=torch.int32, device=DEVICE)
    rows_RNH, first_RN = embedding_rows(grad_RNH, tokens_RN, slots_RV)
    assert rows_RNH.dtype == torch.float32
    assert torch.equal(first_RN, first_occurrences(tokens_RN))
    assert (rows_RNH[~first_RN] == 0.0).all()
    expected_RVH = dense(grad_RNH, tokens_RN)
    for run in range(2):
        seen_N = tokens_RN[run, first_RN[run]].long()
        expected_NH = expected_RVH[run, seen_N]
        torch.testing.assert_close(rows_RNH[run, first_RN[run]].double(), expected_NH, rtol=1e-6, atol=1e-6)
        assert slots_RV[run, seen_N].tolist() == first_RN[run].nonzero().flatten().tolist()
        assert (slots_RV[run] >= 0).sum() == len(seen_N)


def test_two_hundred_of_one_token_are_added_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    # several blocks, some without the token
    monkeypatch.setattr(embedding, "_MAX_BLOCK_TOKENS", 32)
    grad_RNH, tokens_RN = drawn(1, 330, 16, 1000)
    tokens_RN[0, :130], tokens_RN[0, 131:170], tokens_RN[0, 260:291] = 7, 7, 7
    assert (tokens_RN == 7).sum() == 200
    rows_RNH, first_RN = embedding_rows(grad_RNH, tokens_RN)
    total_H = torch.zeros(16, device=DEVICE)
    for grad_H in grad_RNH[0, tokens_RN[0] == 7]:
        total_H += grad_H
    assert torch.equal(rows_RNH[0, 0], total_H)
    assert torch.equal(first_RN, first_occurrences(tokens_RN))
    once = first_RN[0] & (tokens_RN[0] != 7)
    expected_NH = dense(grad_RNH, tokens_RN, 1000)[0, tokens_RN[0, once]]
    torch.testing.assert_close(rows_RNH[0, once].double(), expected_NH, rtol=1e-6, atol=1e-6)


def test_gradients_of_any_stride() -> None:
    grad_RNH, tokens_RN = drawn(2, 9, 48)
    storage_NRH = torch.full((9, 2, 80), torch.nan, device=DEVICE)
    storage_NRH[..., :48] = grad_RNH.transpose(0, 1)
    wide_RN = torch.nn.functional.pad(tokens_RN, (0, 5), value=3)
    rows_RNH, _ = embedding_rows(storage_NRH.transpose(0, 1)[..., :48], wide_RN[:, :9])
    assert torch.equal(rows_RNH, embedding_rows(grad_RNH, tokens_RN)[0])


def test_slots_of_other_tokens_are_left_alone() -> None:
    grad_RNH, tokens_RN = drawn(1, 3, 16)
    tokens_RN[0] = torch.tensor([4, 2, 4])
    slots_RV = torch.full((1, VOCABULARY), 9, dtype=torch.int32, device=DEVICE)
    embedding_rows(grad_RNH, tokens_RN, slots_RV)
    assert slots_RV[0, :6].tolist() == [9, 9, 1, 9, 0, 9]


def test_nan_stays_in_its_row() -> None:
    grad_RNH, tokens_RN = drawn(2, 9, 16)
    grad_RNH[1, 4, 3] = torch.nan
    rows_RNH, _ = embedding_rows(grad_RNH, tokens_RN)
    place = (tokens_RN[1] == tokens_RN[1, 4]).nonzero()[0].item()
    assert rows_RNH.isnan().nonzero().tolist() == [[1, place, 3]]


@pytest.mark.parametrize("hidden", [64, 300])
def test_rows_are_added_to_a_dense_gradient(hidden: int) -> None:
    grad_RNH, tokens_RN = drawn(2, 20, hidden)
    # padding follows each run's table
    storage_RVH = torch.randn(2, VOCABULARY + 2, hidden, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    before_RVH = storage_RVH.clone()
    add_rows_(storage_RVH[:, :VOCABULARY], *_arguments(grad_RNH, tokens_RN))
    expected_RVH = before_RVH.double()
    expected_RVH[:, :VOCABULARY] += dense(grad_RNH, tokens_RN)
    torch.testing.assert_close(storage_RVH.double(), expected_RVH, rtol=1e-6, atol=1e-6)
    assert torch.equal(storage_RVH[:, VOCABULARY:], before_RVH[:, VOCABULARY:])


def _arguments(grad_RNH: Tensor, tokens_RN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows_RNH, first_RN = embedding_rows(grad_RNH, tokens_RN)
    return rows_RNH, tokens_RN, first_RN


def test_twice_the_same_bits_in_any_pack() -> None:
    grad_RNH, tokens_RN = drawn(3, 21, 32)
    rows_RNH, _ = embedding_rows(grad_RNH, tokens_RN)
    assert torch.equal(embedding_rows(grad_RNH, tokens_RN)[0], rows_RNH)
    assert torch.equal(embedding_rows(grad_RNH[1:2], tokens_RN[1:2])[0], rows_RNH[1:2])


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    grad_RNH, tokens_RN = drawn(2, 4, 16)
    rows_RNH, first_RN = embedding_rows(grad_RNH, tokens_RN)
    table_RVH = torch.zeros(2, VOCABULARY, 16, device=DEVICE)
    with pytest.raises(ValueError, match="last dimension"):
        embedding_rows(grad_RNH.mT, tokens_RN[:, :1].expand(2, 16))
    with pytest.raises(ValueError, match="last dimension"):
        add_rows_(table_RVH.mT, rows_RNH, tokens_RN, first_RN)
    with pytest.raises(ValueError, match="rows are not contiguous"):
        add_rows_(table_RVH, rows_RNH[:, ::2], tokens_RN, first_RN)
    monkeypatch.setattr(embedding, "MAX_TOKENS", 3)
    with pytest.raises(ValueError, match="4 tokens of a run are more than 3"):
        embedding_rows(grad_RNH, tokens_RN)
