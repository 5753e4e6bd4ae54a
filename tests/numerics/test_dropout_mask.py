"""The counter-based generator behind dropout draws fairly and independently."""

import math

import pytest
import torch

from llmtrain.distributed.rng import derive_seed, keep_mask

B, T, F = 64, 32, 128


def mask(key: int, first_sample: int = 0, keep: float = 0.9) -> torch.Tensor:
    samples = torch.arange(first_sample, first_sample + B)
    return keep_mask(key, samples, torch.arange(T), F, keep)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_share_kept_is_the_probability(keep: float) -> None:
    n = B * T * F
    error = 5 * math.sqrt(keep * (1 - keep) / n)
    assert mask(1, keep=keep).double().mean().item() == pytest.approx(keep, abs=error)


def test_every_row_position_and_feature_is_fair() -> None:
    kept = mask(derive_seed("a"), keep=0.5).double()
    for dims in ((1, 2), (0, 2), (0, 1)):
        means = kept.mean(dims)
        # 5 standard errors over up to 128 means: a fair generator fails one time in 10^4.
        bound = 5 * 0.5 / math.sqrt(kept.numel() / means.numel())
        assert (means - 0.5).abs().max() < bound


@pytest.mark.parametrize("other", ["key", "sample", "neighbour", "position", "feature"])
def test_masks_are_uncorrelated(other: str) -> None:
    a = mask(derive_seed(1), keep=0.5).double() - 0.5
    shifted = {
        "key": mask(derive_seed(2), keep=0.5),
        "sample": mask(derive_seed(1), first_sample=10**12, keep=0.5),
        "neighbour": mask(derive_seed(1), keep=0.5).roll(1, 0),
        "position": mask(derive_seed(1), keep=0.5).roll(1, 1),
        "feature": mask(derive_seed(1), keep=0.5).roll(1, 2),
    }[other]
    b = shifted.double() - 0.5
    correlation = (a * b).mean() / 0.25
    assert abs(correlation) < 5 / math.sqrt(a.numel())


def test_a_slice_can_be_drawn_alone() -> None:
    whole = mask(5)
    part = keep_mask(5, torch.arange(10, 20), torch.arange(8, 16), F, 0.9)
    assert torch.equal(part, whole[10:20, 8:16])


def test_seeds_are_stable() -> None:
    """A changed derivation would silently change every run: pinned."""
    assert derive_seed(1337, "init", "embed.weight") == 8178188183862924615
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
