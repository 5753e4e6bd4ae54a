"""The peak that utilisation is measured against."""

import pytest
import torch

from llmtrain.train.peak import Peak, find_peak


def test_training_faster_than_a_measured_peak_becomes_the_peak() -> None:
    peak = Peak(2e9, is_measured=True)
    assert [peak.utilisation(flops) for flops in (1e9, 4e9, 2e9)] == [0.5, 1.0, 0.5]
    assert Peak().utilisation(1e9) == 0.0


def test_a_given_peak_stays() -> None:
    peak = find_peak(torch.device("cpu"), torch.float32, 0.001)
    assert [peak.utilisation(flops) for flops in (2e9, 1e9)] == [2.0, 1.0]
    assert find_peak(torch.device("cpu"), torch.float32, None).is_measured


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_data_sheet_is_no_measurement() -> None:
    assert not find_peak(torch.device("cuda"), torch.bfloat16, 1.0).is_measured
