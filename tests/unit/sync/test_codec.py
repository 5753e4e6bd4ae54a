"""Numbers arrive within their codec's error, in exactly the bytes it says."""

import math

import pytest
import torch

from llmtrain.sync.codec import Codec, build_codec

BLOCK = 256
NAMES = ("fp32", "bf16", "fp16", "int8", "int4")
NUMELS = (0, 1, 2, 3, 127, 255, 256, 257, 511, 513, 1000, 4097)
LEVELS = {"int8": 127, "int4": 7}

HALF_STEP = 0.5 * (1 + 1e-4)
"""In steps of a block: dividing by the scale in fp32 errs by 127 * 2^-23 of one."""

RELATIVE = {"bf16": 2**-8, "fp16": 2**-11}


def _draw(numel: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return numbers whose size changes by powers of ten within a block."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(numel, generator=generator, dtype=torch.float64)
    sizes = torch.randint(-3, 3, (numel,), generator=generator)
    return (values * 10.0**sizes).to(dtype)


def _through(codec: Codec, flat: torch.Tensor) -> torch.Tensor:
    """Return `flat` written and read, from a place in the buffer that is not aligned."""
    encoded = torch.cat([torch.ones(1, dtype=torch.uint8), codec.encode(flat)])[1:]
    return codec.decode(encoded, flat.numel(), flat.dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_bytes_are_a_function_of_the_count(name: str, dtype: torch.dtype) -> None:
    codec = build_codec(name, BLOCK)
    for numel in NUMELS:
        encoded = codec.encode(_draw(numel, numel, dtype))
        blocks = math.ceil(numel / BLOCK)
        expected = {
            "fp32": numel * dtype.itemsize,
            "bf16": 2 * numel,
            "fp16": 2 * numel,
            "int8": numel + 4 * blocks,
            "int4": math.ceil(numel / 2) + 4 * blocks,
        }[name]
        assert encoded.dtype == torch.uint8
        assert encoded.shape == (expected,)
        assert codec.encoded_bytes(numel, dtype) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fp32_is_each_dtype_exactly(dtype: torch.dtype) -> None:
    codec = build_codec("fp32", BLOCK)
    for numel in NUMELS:
        flat = _draw(numel, numel, dtype)
        assert torch.equal(_through(codec, flat), flat)


@pytest.mark.parametrize("name", sorted(RELATIVE))
def test_16_bits_round_to_nearest(name: str) -> None:
    codec = build_codec(name, BLOCK)
    for seed, numel in enumerate(NUMELS * 5):
        flat = _draw(numel, seed)
        error = (_through(codec, flat) - flat).abs()
        assert (error <= RELATIVE[name] * flat.abs() + 2**-25).all()


@pytest.mark.parametrize("name", sorted(LEVELS))
@pytest.mark.parametrize("block_size", [16, BLOCK])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_is_half_a_step_of_the_block(
    name: str, block_size: int, dtype: torch.dtype
) -> None:
    codec = build_codec(name, block_size)
    for seed, numel in enumerate(NUMELS[1:] * 5):
        flat = _draw(numel, seed, dtype) * 10.0 ** (seed % 60 - 30)
        error = (_through(codec, flat) - flat).abs()
        for part, found in zip(flat.split(block_size), error.split(block_size), strict=True):
            step = part.abs().max() / LEVELS[name]
            assert found.max() <= HALF_STEP * step, (seed, numel)


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_multiples_of_the_scale_are_exact(name: str) -> None:
    """Every code comes back, at even and odd places: none is lost in packing."""
    levels = LEVELS[name]
    codes = torch.arange(-levels, levels + 1).float()
    for flat in (codes, codes.flip(0), torch.cat([codes[-1:], codes])):
        assert torch.equal(_through(build_codec(name, BLOCK), flat / 4), flat / 4)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name: str) -> None:
    flat = torch.zeros(3 * BLOCK + 5)
    flat[-1] = 1.0  # of a block of its own
    assert torch.equal(_through(build_codec(name, BLOCK), flat), flat)


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_subnormal_blocks_do_not_explode(name: str) -> None:
    flat = torch.tensor([1e-40, -3e-45, 0.0, 1.1e-38])
    tiny = torch.finfo(torch.float32).tiny
    assert ((_through(build_codec(name, BLOCK), flat) - flat).abs() <= tiny).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_visible(name: str, bad: float) -> None:
    for place in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 6):
        flat = _draw(2 * BLOCK + 7, place)
        flat[place] = bad
        found = _through(build_codec(name, BLOCK), flat)
        assert not found[place].isfinite()
        block = place // BLOCK
        others = torch.ones(flat.numel(), dtype=torch.bool)
        others[block * BLOCK : (block + 1) * BLOCK] = False
        assert found[others].isfinite().all()


def test_beyond_the_range_is_infinite_or_nan_never_large() -> None:
    flat = torch.tensor([1e39, 1.0], dtype=torch.float64)
    for name in ("bf16", "fp16", "int8", "int4"):
        assert not _through(build_codec(name, BLOCK), flat)[0].isfinite()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="wire_dtype=int3: choose one of fp32, bf16"):
        build_codec("int3", BLOCK)
    for block_size in (0, -2, 7):
        with pytest.raises(ValueError, match="positive even"):
            build_codec("int4", block_size)
