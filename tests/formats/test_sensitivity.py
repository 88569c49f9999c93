"""How far a run is from itself with noise, which is what a gate allows another program."""

import pytest
import torch

from bitnetctl.errors import ExportError
from bitnetctl.formats import sensitivity
from bitnetctl.formats.check_inputs import check_rows
from bitnetctl.formats.gates import compare
from bitnetctl.formats.sensitivity import CEILING, NOISE_FACTOR, kl_gate, noise_kl, with_noise
from bitnetctl.inference.trained import TrainedRun


@torch.no_grad()
def test_noise_moves_the_run_and_grows(export_runs: dict[str, TrainedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    run = export_runs["portable"]
    rows_PT = check_rows(run, 64)
    found = []
    for noise in (0.0, 1e-2, 1e-1):
        monkeypatch.setattr(sensitivity, "NOISE", noise)
        ours_PTV, theirs_PTV = run.logits(rows_PT), with_noise(run).logits(rows_PT)
        found.append(noise_kl(run, rows_PT, ours_PTV))
        # rows one by one sum in another order than all at once
        expected = NOISE_FACTOR * compare(ours_PTV.flatten(0, 1), theirs_PTV.flatten(0, 1)).kl
        assert found[-1] == pytest.approx(expected, rel=0.1, abs=1e-8)
    assert found[0] == 0.0
    assert 0.0 < found[1] < found[2]


def test_a_gate_is_as_wide_as_the_run_is_sensitive(export_runs: dict[str, TrainedRun]) -> None:
    run = export_runs["portable"]
    assert kl_gate(run, 1e-5, 1e-6, "transformers") == 1e-5
    assert kl_gate(run, 1e-5, 4e-5, "transformers") == 4e-5
    for sensitivity_of_it in (2 * CEILING, float("nan")):
        with pytest.raises(ExportError, match=r"cannot decide: portable is so sensitive .* transformers may differ"):
            kl_gate(run, 1e-5, sensitivity_of_it, "transformers")
