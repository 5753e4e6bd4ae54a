"""Peaks: what a device computes at most, for model FLOPs utilisation, and memory held at most."""

import resource
import time

import torch

KNOWN_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "4090": 165.0,
    "3090": 71.0,
}
"""Dense bf16 (fp16 before Ampere) peaks from the makers' data sheets, by a part of the name."""


def peak_flops(device: torch.device, dtype: torch.dtype, given_tflops: float | None) -> float:
    """Return the peak of `device` in FLOP/s; 0 where it is not known.

    Args:
        device: The device.
        dtype: What products are computed in.
        given_tflops: metrics.peak_tflops, which wins.
    """
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((t * 1e12 for part, t in KNOWN_TFLOPS.items() if part in name), 0.0)
    return measure_matmul_flops(dtype)


def measure_matmul_flops(dtype: torch.dtype, size: int = 1024, at_least_s: float = 0.3) -> float:
    """Return the best rate, in FLOP/s, of a square matrix product on this CPU.

    With this process's threads. The best of many: a busy machine lowers every other estimate, and
    a peak that is too low makes the utilisation too high.

    Args:
        dtype: Of the factors.
        size: Rows and columns.
        at_least_s: How long to try.
    """
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < at_least_s:
        t0 = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - t0)
    return 2.0 * size**3 / best


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has held: on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
