"""Peaks: what a device computes at most, for model FLOPs utilisation, and memory held at most."""

import resource
import time
from dataclasses import dataclass

import torch

KNOWN_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "4090": 165.0,
    "3090": 71.0,
}
"""Dense bf16 (fp16 before Ampere) peaks from the makers' data sheets, by a part of the name."""

CPU_SIZE, GPU_SIZE = 1024, 4096
"""Rows and columns of the matrices whose product is measured: enough to keep all cores busy."""


@dataclass
class Peak:
    """What one device computes at most."""

    flops: float = 0.0
    """FLOP/s; 0: not known."""
    is_measured: bool = False

    def utilisation(self, flops: float) -> float:
        """Return which share of the peak `flops` (FLOP/s) is, 0-1; 0 where there is no peak.

        A peak that was measured while the machine was busy is too low: training that is faster
        than it is the better measurement, and becomes the peak.
        """
        if self.is_measured:
            self.flops = max(self.flops, flops)
        return flops / self.flops if self.flops else 0.0


def find_peak(device: torch.device, dtype: torch.dtype, given_tflops: float | None) -> Peak:
    """Return the peak of `device`: given, of the data sheet, or measured.

    Args:
        device: The device.
        dtype: What products are computed in; data sheets are asked for bf16 only.
        given_tflops: metrics.peak_tflops, which wins.
    """
    if given_tflops is not None:
        return Peak(given_tflops * 1e12)
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = next((t for part, t in KNOWN_TFLOPS.items() if part in name), None)
        if known is not None:
            return Peak(known * 1e12)
    flops = measure_matmul_flops(dtype, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the factors are none of training's memory
    return Peak(flops, is_measured=True)


def measure_matmul_flops(
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    size: int | None = None,
    at_least_s: float = 0.1,
) -> float:
    """Return the best rate, in FLOP/s, of a square matrix product on `device`.

    With this process's threads. The best of many: a busy machine lowers every other estimate, and
    a peak that is too low makes the utilisation too high.

    Args:
        dtype: Of the factors.
        device: Where.
        size: Rows and columns; None: as fits the device.
        at_least_s: How long to try.
    """
    on_cuda = torch.device(device).type == "cuda"
    size = size or (GPU_SIZE if on_cuda else CPU_SIZE)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < at_least_s:
        t0 = time.perf_counter()
        torch.mm(a, b)
        if on_cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - t0)
    return 2.0 * size**3 / best


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has held: on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
