"""Random numbers that do not depend on the layout.

Nothing in a run draws from a generator that moves on with every draw. Initial weights are a
function of (seed, parameter name); dropout masks of (seed, place in the model, sample, position,
feature); the order of samples of (seed, epoch, index). So a run may be cut over one process or
eight and draw the same numbers, and a resumed run needs no generator's state.
"""

import hashlib

import torch

_MASK_31 = 0x7FFFFFFF


def derive_seed(*parts: str | int) -> int:
    """Return a 63-bit seed that is a function of `parts` alone, on any machine."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _as_int32(value: int) -> int:
    """Return the low 32 bits of `value` as a signed integer."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= (1 << 31) else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return int32 `x` shifted right as if it were unsigned."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Return a bijective hash of int32 `x`, in place: lowbias32 (Wellons 2018, hash-prospector)."""
    x.bitwise_xor_(_shift_right(x, 16)).mul_(_as_int32(0x7FEB352D))
    x.bitwise_xor_(_shift_right(x, 15)).mul_(_as_int32(0x846CA68B))
    return x.bitwise_xor_(_shift_right(x, 16))


def keep_mask(
    key: int,
    sample_ids: torch.Tensor,
    positions: torch.Tensor,
    features: int,
    keep_probability: float,
) -> torch.Tensor:
    """Return a dropout mask: a pure function of its arguments, equal on every device.

    A counter-based generator (Salmon et al. 2011) of three hash rounds: over samples, then
    positions, then features, so that any slice of the mask can be made alone.

    Args:
        key: What tells this use from others: `derive_seed(seed, name of the module)`.
        sample_ids: (B,) int64, the number of each sample in the whole run.
        positions: (T,) int64, positions in the sequence.
        features: F, how many features.
        keep_probability: Chance that an entry is kept, 0 to 1.

    Returns:
        (B, T, F) bool, true where the entry is kept.
    """
    low = sample_ids.bitwise_and(0xFFFFFFFF).to(torch.int64)
    row = torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)
    high = (sample_ids >> 32).to(torch.int32)
    row = _mix(row.bitwise_xor(_as_int32(key)))
    row = _mix(row.add(high).bitwise_xor(_as_int32(key >> 32)))
    place = positions.to(torch.int32).mul(_as_int32(0x9E3779B1))
    token = _mix(row[:, None] ^ place[None, :])
    feature = torch.arange(features, dtype=torch.int32, device=token.device)
    feature.mul_(_as_int32(0x85EBCA77))
    hashed = _mix(token[:, :, None] ^ feature)
    limit = min(int(keep_probability * (1 << 31)), _MASK_31)
    return hashed.bitwise_and_(_MASK_31) < limit
