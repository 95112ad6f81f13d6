"""Types of values in the Graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from intarsia.ir.dtypes import DType
from intarsia.ir.sharding import Sharding
from intarsia.ir.sizes import Size, SizeLike, product


@dataclass(frozen=True)
class TensorType:
    """A dense tensor: `f32[B, 768]`. A scalar has no dimensions.

    `sharding` says how it lies on a mesh of devices, where the program or propagation says so.
    """

    dtype: DType
    shape: tuple[Size, ...] = ()
    sharding: Sharding | None = None

    @staticmethod
    def of(dtype: DType, *shape: SizeLike) -> TensorType:
        return TensorType(dtype, tuple(Size.of(s) for s in shape))

    @property
    def tensor(self) -> TensorType:
        """The type of a tensor: this one, or that of each tensor of a list."""
        return self

    @property
    def extents(self) -> tuple[Size, ...]:
        """The extents of all dimensions; of a list its length is the first."""
        return self.shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> Size:
        return product(self.shape)

    def bytes_for(self, sizes: Mapping[str, int] = MappingProxyType({})) -> int:
        """Bytes of all elements where sizes have these values; those of fewer than 8 bits lie densely."""
        return -(-self.elements.evaluate(sizes) * self.dtype.bits // 8)

    @property
    def is_static(self) -> bool:
        """Are all extents numbers?"""
        return all(s.constant is not None for s in self.shape)

    @property
    def static_shape(self) -> tuple[int, ...]:
        return tuple(int(s) for s in self.shape)

    def with_dtype(self, dtype: DType) -> TensorType:
        return replace(self, dtype=dtype)

    @property
    def plain(self) -> TensorType:
        """The type without what says where its elements lie."""
        return self if self.sharding is None else TensorType(self.dtype, self.shape)

    def substitute(self, sizes: dict[str, Size]) -> TensorType:
        return replace(self, shape=tuple(s.substitute(sizes) for s in self.shape))

    def __str__(self) -> str:
        if not self.shape:
            return f"{self.dtype}{self._suffix}"
        marks = self.sharding.marks() if self.sharding else ("",) * self.rank
        dims = (f"({s})@{m}" if m and " " in str(s) else f"{s}@{m}" if m else str(s) for s, m in zip(self.shape, marks))
        return f"{self.dtype}[{', '.join(dims)}]{self._suffix}"

    @property
    def _suffix(self) -> str:
        suffix = self.sharding.suffix() if self.sharding else ""
        return f"{{{suffix}}}" if suffix else ""


@dataclass(frozen=True)
class ListType:
    """`list[L] f32[N, K]`: L tensors of one type, each in its own buffer, never stacked."""

    length: Size
    element: TensorType

    @property
    def tensor(self) -> TensorType:
        return self.element

    @property
    def extents(self) -> tuple[Size, ...]:
        return (self.length, *self.element.shape)

    @property
    def dtype(self) -> DType:
        return self.element.dtype

    @property
    def elements(self) -> Size:
        """Those of all tensors."""
        return self.length * self.element.elements

    def bytes_for(self, sizes: Mapping[str, int] = MappingProxyType({})) -> int:
        return self.length.evaluate(sizes) * self.element.bytes_for(sizes)

    @property
    def plain(self) -> ListType:
        """The type without what says where its elements lie."""
        return self if self.element.sharding is None else replace(self, element=self.element.plain)

    @property
    def sharding(self) -> Sharding | None:
        """That of each tensor of the list."""
        return self.element.sharding

    def substitute(self, sizes: dict[str, Size]) -> ListType:
        return ListType(self.length.substitute(sizes), self.element.substitute(sizes))

    def __str__(self) -> str:
        return f"list[{self.length}] {self.element}"


Type: TypeAlias = TensorType | ListType


def placed(type_: Type, sharding: Sharding | None) -> Type:
    """The type with another sharding, for a list that of its tensors."""
    if isinstance(type_, ListType):
        return replace(type_, element=replace(type_.element, sharding=sharding))
    return replace(type_, sharding=sharding)
