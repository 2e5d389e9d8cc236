"""The device that a transformer is trained on, and its name."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from husai.errors import InputError


def resolve_device(device: str) -> torch.device:
    """Turn a configured device into an available one; ``auto`` is CUDA if there is one."""
    available = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if available else "cpu")
    if device.startswith("cuda") and not available:
        raise InputError(f"device = {device!r}, but no CUDA device is available; use cpu or auto")
    return torch.device(device)


def hardware_name(device: torch.device) -> str:
    """Return the name of the processor of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
