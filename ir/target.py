"""Target descriptions: what a machine offers, as data. Nothing below the driver looks at the machine itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What one core does in a cycle, and how long a cycle is: what estimates of time are made of.

    clock: cycles a second. arithmetic, loads, stores, dots: vector instructions a cycle; of dots see `ir/dots.py`.
    latency: cycles until the result of a multiplication or addition is there. cache_bytes: bytes a cycle from the
    second cache, the third, and so on. memory_of_one, memory: bytes a second between main memory and one core, and all.
    fork: seconds to start threads and join them.
    """

    clock: float = 3.6e9
    arithmetic: float = 2.0
    dots: float = 2.0
    latency: float = 4.0
    loads: float = 2.0
    stores: float = 1.0
    cache_bytes: tuple[float, ...] = (48.0, 20.0)
    memory_of_one: float = 30e9
    memory: float = 45e9
    fork: float = 5e-6


@dataclass(frozen=True)
class Chip:
    """What a core of a GPU has room for, and what it does in a cycle.

    threads, programs, registers (of 32 bits), shared (bytes): of all programs that a core works on together.
    operations: multiply-adds of f32, and other operations, a cycle. matrix: multiply-adds of its matrix units a cycle,
    by the bits of what is multiplied. latency: cycles until what memory is asked for comes. launch: cycles from the end
    of one launch to the next.
    """

    threads: int = 2048
    programs: int = 32
    registers: int = 1 << 16
    shared: int = 228 << 10
    operations: int = 128
    matrix: tuple[tuple[int, int], ...] = ((8, 4096), (16, 2048), (64, 128))
    latency: int = 700
    launch: int = 4000


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    vector_bits: width of one vector register; registers: how many of them. caches: bytes of each data cache from the
    nearest, per core but for the last. features: LLVM feature names (CPU) or instruction groups (GPU). chip: of a GPU.
    model: the name of the GPU at hand; "" for any of its kind.
    """

    name: str
    kind: str  # "cpu" or "gpu"
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    registers: int
    caches: tuple[int, ...] = (32 << 10, 1 << 20, 32 << 20)
    cores: int = 1
    cache_line: int = 64
    shared_memory: int = 0
    rates: Rates = Rates()
    chip: Chip = Chip()
    model: str = ""

    def lanes(self, bits: int) -> int:
        """Elements of `bits` bits in one vector register."""
        return max(1, self.vector_bits // bits)

    @property
    def has_tensor_descriptors(self) -> bool:
        """Is there an engine that moves rectangles of a buffer, which a descriptor describes?"""
        return "tma" in self.features

    @property
    def multiplies_shared_memory(self) -> bool:
        """Do its matrix units take both operands from shared memory? Others take them from registers."""
        return "tma" in self.features

    @property
    def has_f8(self) -> bool:
        """Does it convert from f8e4m3 and f8e5m2 to f32 by itself?"""
        return "fp8" in self.features

    @property
    def has_scaled_dots(self) -> bool:
        """Do its matrix units multiply codes with the scales of groups of them?"""
        return "block_scale" in self.features

    @property
    def has_unbounded_ldexp(self) -> bool:
        """Does `ldexp` take any power, the infinite ones and NaN included, in one instruction?"""
        return "avx512f" in self.features


_AVX2 = ("sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "popcnt", "lzcnt")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")

# Figures of data sheets: clocks under load, memory of an A100, an H100 and a B200. What the second cache gives when all
# cores ask is less than a core can take.
_SM_80 = Rates(clock=1.41e9, memory=1.555e12, cache_bytes=(40.0,))
_SM_90 = Rates(clock=1.755e9, memory=3.35e12, cache_bytes=(40.0,))
_SM_100 = Rates(clock=1.85e9, memory=8.0e12, cache_bytes=(40.0,))
_CHIP_80 = Chip(shared=164 << 10, matrix=((8, 2048), (16, 1024), (64, 64)))
_CHIP_100 = Chip(matrix=((4, 16384), (8, 8192), (16, 4096), (64, 64)))

TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target("cpu:x86-avx512", "cpu", "x86_64-unknown-linux-gnu", "skylake-avx512", _AVX512, 512, 32),
        Target("cpu:x86-avx2", "cpu", "x86_64-unknown-linux-gnu", "haswell", _AVX2, 256, 16),
        Target("cpu:neon", "cpu", "aarch64-unknown-linux-gnu", "generic", ("neon",), 128, 32),
        Target("gpu:sm_80", "gpu", "nvptx64-nvidia-cuda", "sm_80", ("mma",), 128, 255, (192 << 10, 40 << 20), 108, 128, 163 << 10, _SM_80, _CHIP_80),  # noqa: E501
        Target("gpu:sm_90", "gpu", "nvptx64-nvidia-cuda", "sm_90", ("mma", "fp8", "tma"), 128, 255, (256 << 10, 50 << 20), 132, 128, 227 << 10, _SM_90, Chip()),  # noqa: E501
        Target("gpu:sm_100", "gpu", "nvptx64-nvidia-cuda", "sm_100", ("mma", "fp8", "tma", "block_scale"), 128, 255, (256 << 10, 126 << 20), 148, 128, 227 << 10, _SM_100, _CHIP_100),  # noqa: E501
    )
}  # fmt: skip
