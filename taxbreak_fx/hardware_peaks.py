"""Published peak rates of devices: what another dtype's measured rate says of one that was not measured."""

from __future__ import annotations

from taxbreak_fx.hardware import Profile

# TFLOP/s of dense matrix products; by what a device's name holds, the first that fits.  float32 and float64 as torch
# multiplies them unless told otherwise: the former on the vector units, without TF32.
# Cited: NVIDIA's datasheets of the H100 and H200 Tensor Core GPUs, SXM (float32: 2 × 16,896 units × 1.98 GHz).
_HOPPER_SXM = {"bfloat16": 989.4, "float16": 989.4, "float8_e4m3fn": 1978.9, "float32": 66.9, "float64": 66.9}
PUBLISHED = (("H200", _HOPPER_SXM), ("H100 80GB HBM3", _HOPPER_SXM))


def matrix_rate(profile: Profile, dtype: str) -> float | None:
    """TFLOP/s of matrix products in ``dtype``: as measured; else the device's published peak times the share of its
    peak that a measured dtype reached, the fastest's; None where neither is known.
    """
    measured = {rate.dtype: rate.tflops for rate in profile.device.rates}
    if dtype in measured:
        return measured[dtype]
    name = profile.machine.device if profile.machine is not None else ""
    peaks: dict[str, float] = next((peaks for mark, peaks in PUBLISHED if mark in name), {})
    reached = {known: tflops / peaks[known] for known, tflops in measured.items() if known in peaks}
    if dtype not in peaks or not reached:
        return None
    return peaks[dtype] * reached[max(reached, key=lambda known: measured[known])]
