"""Errors for a wrong argument, option or file, and the checks that many places need."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from numbers import Integral, Real
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:  # the help of the command line waits for no torch
    import torch
    from torch import Tensor

#: What a time of training is counted in.
TimeUnit = Literal["epoch", "step"]


class InputError(ValueError):
    """An argument, option or file is not as expected: its user can mend it.

    The message names the argument or file, its value, and what was expected. The command line
    prints it in one line; any other ``ValueError`` is a fault of the program and keeps its
    traceback.
    """


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """A sentence with the closest of the known names, or nothing.

    Example:
        >>> did_you_mean("mate/shape", ["mate/shapes", "daim/shapes"])
        ". Did you mean 'mate/shapes'?"
    """
    close = get_close_matches(wrong, list(known), n=1)
    return f". Did you mean '{close[0]}'?" if close else ""


def raised_in(error: BaseException) -> list[tuple[str, str]]:
    """Module and function of each frame that an error came through, the innermost last."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame in frames]


@contextmanager
def constructor_errors() -> Iterator[None]:
    """Let the error of a constructor that jsonargparse calls come out as it was raised.

    jsonargparse tries every type that an option may have, and then raises an error which says that
    the value has none of the types, over the error of the constructor.
    """
    try:
        yield
    except Exception as caught:
        error = next((one for one in _wrapped(caught) if not _by_jsonargparse(one)), caught)
        if error is caught:
            raise
        raise error from (error.__cause__ or error.__context__)


def _by_jsonargparse(error: BaseException) -> bool:
    frames = raised_in(error)
    return not frames or frames[-1][0].partition(".")[0] == "jsonargparse"


def _wrapped(error: BaseException) -> Iterator[Exception]:
    """The error, and behind one of jsonargparse all that it stands for."""
    if isinstance(error, Exception):
        yield error
    if not _by_jsonargparse(error):
        return
    reasons = [error.__cause__ or error.__context__]
    for frame, _ in walk_tb(error.__traceback__):  # of a union the first alone is the cause
        if frame.f_code.co_name == "raise_union_unexpected_value":
            reasons = frame.f_locals.get("exceptions", reasons)
    for reason in reasons:
        if reason is not None:
            yield from _wrapped(reason)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise unless ``value`` is one of ``choices``, a collection or a ``Literal`` type.

    Raises:
        InputError: with the name, the value and the choices.

    Example:
        >>> check_choice("unit", "epochs", ["epoch", "step"])
        Traceback (most recent call last):
        itmkit.checks.InputError: unit is 'epochs'; expected one of 'epoch', 'step'
    """
    allowed: Collection[Any] = get_args(choices) or choices
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def _is_number(value: object) -> bool:
    """Whether a value can be compared with 0 and 1: no string, no list, no None."""
    return isinstance(value, Real) or getattr(value, "ndim", None) == 0


def _check_numbers(fits: Callable[[Any], bool], expected: str, numbers: dict[str, Any]) -> None:
    for name, value in numbers.items():
        if not (_is_number(value) and fits(value)):
            raise InputError(f"{name} is {value!r}; expected {expected}")


def _known(numbers: dict[str, Any]) -> dict[str, Any]:
    """All but tensors: a GPU would have to wait until their values are read."""
    from torch import Tensor

    return {name: value for name, value in numbers.items() if not isinstance(value, Tensor)}


def check_number(**numbers: float | Tensor) -> None:
    """Raise unless each number is finite; a tensor is trusted."""
    _check_numbers(math.isfinite, "a finite number", _known(numbers))


def check_non_negative(**numbers: float | Tensor) -> None:
    """Raise unless each number is finite and at least 0; a tensor is trusted."""
    expected = "a finite number of at least 0"
    _check_numbers(lambda value: 0 <= value < math.inf, expected, _known(numbers))


def check_positive(**numbers: float | Tensor) -> None:
    """Raise unless each number is finite and above 0; a tensor is trusted."""
    _check_numbers(lambda value: 0 < value < math.inf, "a finite number above 0", _known(numbers))


def check_share(**numbers: float) -> None:
    """Raise unless each number lies in [0, 1]."""
    _check_numbers(lambda value: 0 <= value <= 1, "a number in [0, 1]", numbers)


def check_dropout(**numbers: float) -> None:
    """Raise unless each number, a probability that something is left out, lies in [0, 1)."""
    _check_numbers(lambda value: 0 <= value < 1, "a number in [0, 1)", numbers)


def check_count(least: int = 1, /, **numbers: int) -> None:
    """Raise unless each is a whole number of at least ``least``.

    Example:
        >>> check_count(k="2")
        Traceback (most recent call last):
        itmkit.checks.InputError: k is '2'; expected a whole number, 1 or more
    """
    for name, value in numbers.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; expected a whole number, {least} or more")
        if value < least:
            raise InputError(f"{name} is {value!r}; expected {least} or more")


def check_optional_count(least: int = 1, /, **numbers: int | None) -> None:
    """As :func:`check_count`; None is allowed."""
    check_count(least, **{name: value for name, value in numbers.items() if value is not None})


def check_without(part: str, **options: object) -> None:
    """Raise if an option of a part is given, not None or False, where there is no such part.

    Example:
        >>> check_without("global_branch", global_loss=None, local_pairs=8)
        Traceback (most recent call last):
        itmkit.checks.InputError: local_pairs is given, but there is no global_branch
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise InputError(f"{name} is given, but there is no {part}")


def check_unused(
    function: Callable[..., object], given: Mapping[str, object], names: Iterable[str], where: str
) -> None:
    """Raise for an argument that has no effect, and is not left at its default.

    Args:
        function: that is called.
        given: its arguments by name; others are not looked at.
        names: of those without effect.
        where: they have none.

    Example:
        >>> def extract(views: int = 1, flip: float = 0.0) -> None: ...
        >>> check_unused(extract, {"views": 1, "flip": 0.5}, ["flip"], "where views is 1")
        Traceback (most recent call last):
        itmkit.checks.InputError: flip is 0.5, without effect where views is 1; expected none
    """
    parameters = signature(function).parameters
    for name in names:
        value = given[name]
        value = tuple(value) if isinstance(value, list) else value
        if value != parameters[name].default:
            raise InputError(f"{name} is {given[name]}, without effect {where}; expected none")


def check_seed(**seeds: int) -> None:
    """Raise unless each is a seed of random numbers: a whole number of 64 bits, 0 or more.

    Example:
        >>> check_seed(seed=-1)
        Traceback (most recent call last):
        itmkit.checks.InputError: seed is -1; expected 0 or more
    """
    check_count(0, **seeds)
    for name, value in seeds.items():
        if value >= 2**64:
            raise InputError(f"{name} is {value}; expected less than 2**64")


def check_shape(shape: tuple[int, ...], **tensors: Tensor) -> None:
    """Raise unless each tensor has that shape."""
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise InputError(f"{name} has the shape {tuple(tensor.shape)}; expected {shape}")


def type_of(value: object) -> str:
    """What a value is, for an error: a tensor by its dtype, a list by what it holds.

    Example:
        >>> type_of(["a dog"]), type_of(None), type_of(range(3))
        ('a list of str', 'None', 'a range')
    """
    if value is None:
        return "None"
    kind, dtype = type(value), getattr(value, "dtype", None)
    if dtype is not None:
        name = f"{kind.__module__}.{kind.__name__}"
        return f"a {dtype} tensor" if name.startswith("torch.") else f"a {name} of {dtype}"
    of = f" of {type(value[0]).__name__}" if isinstance(value, (list, tuple)) and value else ""
    article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
    return f"{article} {kind.__name__}{of}"


def check_not_empty(**stacks: Tensor) -> None:
    """Raise if a stack of images or captions has no item, or its items are empty.

    Example:
        >>> import torch
        >>> check_not_empty(ids=torch.zeros(0, 12))
        Traceback (most recent call last):
        itmkit.checks.InputError: ids has the shape (0, 12); expected 1 or more in each dimension
    """
    import torch

    if torch.compiler.is_compiling():  # a comparison of sizes would fix them in an export
        return
    for name, stack in stacks.items():
        if 0 in stack.shape:
            raise InputError(
                f"{name} has the shape {tuple(stack.shape)}; expected 1 or more in each dimension"
            )


def check_floating(shape: str, /, **tensors: object) -> None:
    """Raise unless all are floating-point tensors on one device.

    Nothing is converted: a gradient may be expected to flow back into what is given.

    Args:
        shape: what the error says that is expected, such as ``"(n, D)"``; not checked.
        **tensors: the arguments, by name.

    Example:
        >>> check_floating("(n, m)", scores=[[0.5]])
        Traceback (most recent call last):
        itmkit.checks.InputError: scores is a list of list; expected a floating-point tensor (n, m)
    """
    from torch import Tensor

    devices = {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            array = not isinstance(value, Tensor) and hasattr(value, "dtype")
            how = f", such as torch.from_numpy({name})" if array else ""
            raise InputError(
                f"{name} is {type_of(value)}; expected a floating-point tensor {shape}{how}"
            )
        devices[name] = value.device
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} is on {device}" for name, device in devices.items())
        raise InputError(f"{found}; expected one device")


def check_finite(values: Tensor, name: Callable[..., str]) -> None:
    """Raise unless every number is finite.

    Args:
        values: a floating-point tensor of any shape.
        name: what the error calls the value at an index, which it is given.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.5, 0.1], [torch.nan, 0.2]])
        >>> check_finite(scores, lambda row, column: f"scores[{row}, {column}]")
        Traceback (most recent call last):
        itmkit.checks.InputError: scores[1, 0] is nan; expected a finite number
    """
    # The least and the largest are NaN where any number is: one pass, and no memory.
    if values.numel() and not all(map(math.isfinite, values.aminmax())):
        index = (~values.isfinite()).nonzero()[0].tolist()
        value = values[tuple(index)].item()
        raise InputError(f"{name(*index)} is {value}; expected a finite number")


def check_bool(
    shape: tuple[int, ...],
    /,
    device: torch.device | None = None,
    how: str = "",
    **tensors: object,
) -> None:
    """Raise unless each is a bool tensor of that shape.

    Args:
        shape: the shape.
        device: where they must be; None: anywhere.
        how: how to get such a tensor, for the error.
        **tensors: the arguments, by name.
    """
    import torch

    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or value.dtype != torch.bool:
            expected = f"a bool tensor {tuple(shape)}" + (f", such as {how}" if how else "")
            raise InputError(f"{name} is {type_of(value)}; expected {expected}")
        check_shape(tuple(shape), **{name: value})
        if device not in (None, value.device):
            raise InputError(f"{name} is on {value.device}; expected {device}")


def integer_vector(
    name: str, values: Any, count: int | None = None, device: torch.device | None = None
) -> Tensor:
    """Ids or ranks as an integer tensor ``(count,)``, from a tensor, an array or a list.

    Args:
        name: of the argument.
        values: a tensor of integers, or what holds some: a list, a range, a NumPy array.
        count: how many there must be; None for any number.
        device: where they are wanted; None: where they are.

    Raises:
        InputError: if they are no integers, or not so many.

    Example:
        >>> integer_vector("image_ids", [3, 3, 5], 3)
        tensor([3, 3, 5])
        >>> integer_vector("image_ids", ["a.jpg"], 1)
        Traceback (most recent call last):
        itmkit.checks.InputError: image_ids is a list of str; expected integers
    """
    import torch

    found: Tensor = values
    if not isinstance(values, torch.Tensor):
        try:
            found = torch.tensor(values)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{name} is {type_of(values)}; expected integers") from None
        found = found if found.numel() else found.long()
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise InputError(f"{name} is {type_of(values)}; expected integers")
    if found.ndim != 1 or (count is not None and len(found) != count):
        expected = f"({'n' if count is None else count},)"
        raise InputError(f"{name} has the shape {tuple(found.shape)}; expected {expected}")
    return found if device is None else found.to(device)


def check_pairs(**vectors: Tensor) -> None:
    """Raise unless all are floating-point matrices ``(n, D)`` of one shape on one device."""
    check_floating("(n, D)", **vectors)
    shapes = [tuple(tensor.shape) for tensor in vectors.values()]
    if len(shapes[0]) != 2 or len(set(shapes)) != 1:
        raise InputError(f"{', '.join(vectors)} have the shapes {shapes}; expected one, (n, D)")
