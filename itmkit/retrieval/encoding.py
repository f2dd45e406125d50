"""Named tensors that describe a stack of images or captions, sliced and joined as one."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import InputError, type_of
from itmkit.distributed import gather, gather_all, world_size

_COMMON = frozenset({"vector", "tokens", "mask", "boxes"})


class Encoding:
    """What a matcher keeps of ``n`` images or captions: named tensors with one row per item.

    Fields are read as attributes (``encoding.vector``). A field given as ``None`` is ``None``; of
    the usual names ``vector``, ``tokens``, ``mask`` and ``boxes`` those not given are ``None`` too.
    Any other name that is not there raises ``AttributeError``, so that a typing error is seen.

    Two naming rules: a field whose name ends in ``mask`` is bool ``(n, N)``, True on real tokens;
    ``mask`` belongs to ``tokens`` and ``fine_mask`` to ``fine_tokens``.

    Args:
        **fields: tensors that share their first dimension, or None: ``vector`` ``(n, D)``,
            ``tokens`` ``(n, N, D)``, ``mask`` ``(n, N)``, ``boxes`` ``(n, N, 4)``, or a name of
            the system's own.

    Raises:
        InputError: no tensor at all, rows that do not agree, or a mask that is not bool ``(n, N)``
            with the ``N`` of its tokens.

    Example:
        >>> import torch
        >>> short = Encoding(vector=torch.ones(2, 4), tokens=torch.ones(2, 3, 4))
        >>> long = Encoding(vector=torch.ones(1, 4), tokens=torch.ones(1, 5, 4))
        >>> both = Encoding.cat([short, long])
        >>> both
        Encoding(n=3, vector=(3, 4), tokens=(3, 5, 4), mask=(3, 5))
        >>> both.mask.sum(1).tolist()
        [3, 3, 5]
        >>> len(both[1:])
        2
    """

    __slots__ = ("_fields",)
    _fields: dict[str, Tensor | None]

    def __init__(self, **fields: Tensor | None) -> None:
        rows = None
        for name, value in fields.items():
            if name.startswith("_") or hasattr(Encoding, name):
                raise InputError(f"a field cannot be named {name!r}")
            if value is None:
                continue
            if not isinstance(value, Tensor) or value.ndim == 0:
                given = "a tensor without rows" if isinstance(value, Tensor) else type_of(value)
                raise InputError(f"{name} is {given}; expected a tensor with one row per item")
            rows = rows or (name, value.shape[0])  # len would fix it in an export
            if value.shape[0] != rows[1]:
                raise InputError(f"{name} has {value.shape[0]} rows, but {rows[0]} has {rows[1]}")
            if name.endswith("mask") and (value.dtype != torch.bool or value.ndim != 2):
                raise InputError(
                    f"{name} is {type_of(value)} of the shape {tuple(value.shape)}; expected a "
                    "bool tensor (n, N)"
                )
            tokens = fields.get(name.removesuffix("mask") + "tokens")
            if name.endswith("mask") and tokens is not None and value.shape != tokens.shape[:2]:
                raise InputError(
                    f"{name} has shape {tuple(value.shape)}, its tokens {tuple(tokens.shape)}"
                )
        if rows is None:
            raise InputError("Encoding has no tensor; expected at least one")
        self._fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            if name in self._fields:
                return self._fields[name]
            if name in _COMMON:
                return None
        raise AttributeError(f"this Encoding has no field {name!r}")

    def __len__(self) -> int:
        return len(next(value for value in self._fields.values() if value is not None))

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Encoding:
        """Take rows: a slice, row numbers, a tensor of bools, or one row (kept as a row)."""
        if isinstance(index, tuple):
            raise InputError(f"the index is {type_of(index)}; expected rows alone")
        if not isinstance(index, (slice, list)) and not getattr(index, "ndim", 0):
            index = operator.index(index)  # of 0-d tensors and NumPy's integers too
            if not -len(self) <= index < len(self):
                raise IndexError(f"row {index} of an Encoding of {len(self)}")
            index %= len(self)
            index = slice(index, index + 1)
        return Encoding(
            **{name: None if v is None else v[index] for name, v in self._fields.items()}
        )

    def __repr__(self) -> str:
        shapes = "".join(f", {name}={tuple(value.shape)}" for name, value in self.items().items())
        return f"Encoding(n={len(self)}{shapes})"

    @property
    def device(self) -> torch.device:
        """The device of the fields."""
        return next(value.device for value in self._fields.values() if value is not None)

    def absent(self) -> list[str]:
        """Return the names of the fields that were given as None."""
        return [name for name, value in self._fields.items() if value is None]

    def items(self) -> dict[str, Tensor]:
        """Return the fields that are not None, by name."""
        return {name: value for name, value in self._fields.items() if value is not None}

    def to(self, device: torch.device | str) -> Encoding:
        """Return the same fields on another device."""
        return Encoding(
            **{name: None if v is None else v.to(device) for name, v in self._fields.items()}
        )

    def gathered(self, *, sizes: Sequence[int] | None = None) -> Encoding:
        """Return the rows of all processes, the same on each, with exact gradients.

        Tokens are padded to the longest of all processes, as :meth:`cat` does it. Every process
        calls this with the same fields; only masks may be missing where nothing is padded. See
        :func:`itmkit.distributed.gather`.

        Args:
            sizes: number of rows of every process, where known.
        """
        if world_size() == 1:
            return self
        fields = self.items()
        tokens = sorted(name for name in fields if name.endswith("tokens"))
        masks = {name: name.removesuffix("tokens") + "mask" for name in tokens}
        lone = {n for n in fields if n.endswith("mask")} - set(masks.values())
        long = sorted({n for n, value in fields.items() if value.ndim > 2} | lone)
        own = [fields[n].shape[1] for n in long] + [mask in fields for mask in masks.values()]
        table = (
            [[]]
            if not own
            else gather(torch.tensor([own], device=self.device), sizes=[1] * world_size()).tolist()
        )
        lengths = {name: [row[i] for row in table] for i, name in enumerate(long)}
        for i, (name, mask) in enumerate(masks.items(), len(long)):
            if any(row[i] for row in table) or len(set(lengths[name])) > 1:
                fields[mask] = _field(self, mask)
                lengths[mask] = lengths[name]
        for name, found in lengths.items():
            fields[name] = _lengthened(fields[name], max(found))
        names = sorted(fields)  # in which a mask may come later on some processes
        rows = gather_all([fields[name] for name in names], sizes=sizes)
        absent = {name: None for name in self._fields if name not in fields}
        return Encoding(**dict(zip(names, rows, strict=True)), **absent)

    @staticmethod
    def cat(parts: Sequence[Encoding]) -> Encoding:
        """Join encodings along their rows, padding tokens to the longest.

        Fields of three or more dimensions, and masks, are padded at the end of dimension 1 with
        0 / False. Where token counts differ, or only some parts have a mask, the missing mask is
        True on that part's own tokens.

        Args:
            parts: encodings of the same fields.

        Returns:
            One encoding of all rows, in the order given.

        Raises:
            InputError: nothing to join, fields that differ, or padding that no mask would record.
        """
        if len(parts) == 0:
            raise InputError("parts is empty; expected at least one Encoding")
        names = dict.fromkeys(name for part in parts for name in part.items())
        for name in [n for n in names if n.endswith("tokens")]:
            if len({p.items()[name].shape[1] for p in parts if name in p.items()}) > 1:
                names.setdefault(name.removesuffix("tokens") + "mask")
        columns = {name: [_field(part, name) for part in parts] for name in names}
        lengths = {
            max(v.shape[1] for v in values) for n, values in columns.items() if n.endswith("mask")
        }
        joined = {name: _join(name, values, lengths) for name, values in columns.items()}
        absent = dict.fromkeys(name for part in parts for name in part._fields if name not in names)
        return Encoding(**joined, **absent)


def check_encodings(**encodings: object) -> None:
    """Raise unless each is an :class:`Encoding`.

    Raises:
        InputError: with what was given, and how an encoding is made.
    """
    for name, value in encodings.items():
        if not isinstance(value, Encoding):
            verb = "encode_text" if name == "texts" else "encode_image"
            raise InputError(
                f"{name} is {type_of(value)}; expected an Encoding, such as matcher.{verb} gives"
            )


def _field(part: Encoding, name: str) -> Tensor:
    """The field of one part, or the mask of its tokens where it has none of its own."""
    fields = part.items()
    if name in fields:
        return fields[name]
    tokens = fields.get(name.removesuffix("mask") + "tokens") if name.endswith("mask") else None
    if tokens is None:
        raise InputError(f"{name} is not in {part}; expected the same fields in all parts")
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _join(name: str, values: list[Tensor], mask_lengths: set[int]) -> Tensor:
    """Concatenate rows; tensors of three dimensions and masks are padded along dimension 1."""
    if len({v.shape[1:] for v in values}) == 1:
        return torch.cat(values)
    if values[0].ndim < 3 and not name.endswith("mask"):
        raise InputError(f"{name} differs in shape: {sorted({tuple(v.shape) for v in values})}")
    if len({(v.ndim, v.shape[2:]) for v in values}) > 1:
        raise InputError(f"{name} differs in shape: {sorted({tuple(v.shape) for v in values})}")
    longest = max(v.shape[1] for v in values)
    if longest not in mask_lengths:
        raise InputError(f"{name} differs in length and no mask would tell its padding apart")
    return torch.cat([_lengthened(value, longest) for value in values])


def _lengthened(value: Tensor, length: int) -> Tensor:
    """Padded at the end of dimension 1 with 0 / False."""
    return F.pad(value, (0, 0) * (value.ndim - 2) + (0, length - value.shape[1]))
