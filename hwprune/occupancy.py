"""How many blocks of a kernel an SM of a GPU holds at once, from the profile's limits."""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.target import Gpu, TargetProfile

#: Registers are given to a warp in units of this many, on every architecture that has a profile (CUDA occupancy
#: calculator, "register allocation unit size"); shared memory to a block in units of 128 bytes.
_REGISTER_UNIT, _SHARED_UNIT_BYTES = 256, 128


@dataclass(frozen=True)
class Usage:
    """What one block of a kernel takes: threads, registers of each, bytes of shared memory."""

    threads: int
    registers: int
    shared_bytes: int


def gpu_of(profile: TargetProfile) -> Gpu:
    """The profile's GPU; every cuda profile has one."""
    assert profile.gpu is not None, profile.name
    return profile.gpu


def excess(usage: Usage, gpu: Gpu) -> str | None:
    """Which limit of a block ``usage`` exceeds, both values quoted; None if it fits."""
    limits = (
        ("threads of a block", usage.threads, gpu.max_threads_per_block),
        ("registers of a thread", usage.registers, gpu.max_registers_per_thread),
        ("registers of a block", _registers(usage, gpu), gpu.registers_per_sm),
        ("bytes of shared memory of a block", usage.shared_bytes, gpu.shared_memory_per_block_bytes),
    )
    for what, value, limit in limits:
        if value > limit:
            return f"{value} {what}, but the card has {limit}"
    return None


def blocks_per_sm(usage: Usage, gpu: Gpu) -> int:
    """Blocks that one SM holds at once; 0 if one does not fit."""
    if excess(usage, gpu):
        return 0
    shared = usage.shared_bytes + gpu.shared_memory_reserved_per_block_bytes
    shared = -(-shared // _SHARED_UNIT_BYTES) * _SHARED_UNIT_BYTES
    warps = -(-usage.threads // gpu.warp_size)
    return min(
        gpu.max_blocks_per_sm,
        gpu.max_threads_per_sm // gpu.warp_size // warps,
        gpu.registers_per_sm // _registers(usage, gpu),
        gpu.shared_memory_per_sm_bytes // max(shared, 1),
    )


def occupancy(usage: Usage, gpu: Gpu) -> float:
    """Share of an SM's warps that are resident."""
    warps = -(-usage.threads // gpu.warp_size)
    return blocks_per_sm(usage, gpu) * warps * gpu.warp_size / gpu.max_threads_per_sm


def _registers(usage: Usage, gpu: Gpu) -> int:
    warps = -(-usage.threads // gpu.warp_size)
    unit = _REGISTER_UNIT
    return warps * (-(-usage.registers * gpu.warp_size // unit) * unit)
