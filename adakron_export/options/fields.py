"""A field of a record that is an option too: click, pytest and the docs are made from it.

A record is a frozen dataclass whose fields come from `option`. The command line shows each as ``--flag``, pytest as
``--adakron-flag``; Python callers pass the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from adakron_export.errors import AdaKronError

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Option:
    """What a field of a record says of itself.

    Attributes:
        name: The field's name.
        flag: Without its dashes, such as ``max-drop``.
        kind: The type of a value, without its ``None``; of one value, where the option can be repeated.
        default: Where nothing is given.
        help: A sentence or a noun phrase that stands without the name.
        shown: The default as people read it, where that is not the value itself.
        group: What it is about, where a command has many.
        choices: All values that are taken.
        synonyms: Other names of choices, and which they are of.
        metavar: What stands for the value in the help.
        read: Makes the value from a text.
        repeated: Whether it can be given several times, so that the field is a tuple.
        least: The smallest number that makes sense.
        below: What a number must lie below.
    """

    name: str
    flag: str
    kind: type
    default: Any
    help: str
    shown: str | None = None
    group: str = ""
    choices: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    metavar: str | None = None
    read: Callable[[str], Any] | None = None
    repeated: bool = False
    least: float = 0
    below: float = math.inf


_KEY = "adakron_export.option"
_TYPES: Mapping[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
}


def option(
    default: Any, text: str, *, flag: str = "", shown: str | None = None, group: str = "",
    choices: Iterable[str] = (), synonyms: Mapping[str, str] | None = None, metavar: str | None = None,
    read: Callable[[str], Any] | None = None, least: float = 0, below: float = math.inf,
) -> Any:  # fmt: skip
    """A field of a record; the arguments are those of `Option`."""
    said = {
        "flag": flag, "help": text, "shown": shown, "group": group, "choices": tuple(map(str, choices)),
        "synonyms": synonyms or {}, "metavar": metavar, "read": read, "least": least, "below": below,
    }  # fmt: skip
    return field(default=default, metadata={_KEY: said})


def options_of(record: type, *names: str) -> list[Option]:
    """The options of a record, all of them or those of these names, in their order."""
    hints = get_type_hints(record)
    found = []
    for row in fields(record):
        said = dict(row.metadata.get(_KEY, {}))
        if said and (not names or row.name in names):
            flag = said.pop("flag") or row.name.replace("_", "-")
            kind, repeated = _kind_of(hints[row.name])
            found.append(Option(row.name, flag, kind, row.default, repeated=repeated, **said))
    return found


def _kind_of(hint: Any) -> tuple[type, bool]:
    """The type of a value, and whether there may be several."""
    given = [each for each in get_args(hint) if each is not type(None)]
    if get_origin(hint) is tuple:
        return given[0], True
    return (given[0] if given else hint), False


def check_record(record: Any, error: type[AdaKronError]) -> None:
    """Raise where a value of a record makes no sense.

    Raises:
        AdaKronError: A value is no choice, of another type, or out of its range; raised as ``error``.
    """
    for each in options_of(type(record)):
        value = getattr(record, each.name)
        for one in value if each.repeated else (value,):
            _check_value(each, one, error)


def _check_value(known: Option, value: Any, error: type[AdaKronError]) -> None:
    if value is None:
        return
    name = known.flag.replace("-", "_")
    if known.choices and value not in known.choices:
        raise error(f"{name} is {value!r}; choose one of {', '.join(known.choices)}")
    wanted = _wanted(known, value)
    if wanted:
        raise error(f"{name} is {value!r}; it must be {wanted}")


def _wanted(known: Option, value: Any) -> str | None:
    """What a value must be; ``None`` where it is that."""
    if known.kind not in _TYPES:
        return None
    kind, named = _TYPES[known.kind]
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        return named
    if not (math.isfinite(value) and value >= known.least):
        return f"a number of at least {known.least:g}"
    return f"below {known.below:g}" if value >= known.below else None


def words_of(record: Any, *names: str, prefix: str = "") -> list[str]:
    """The command line of what differs from the defaults.

    Args:
        record: Its values.
        names: Only these fields.
        prefix: Before each flag, such as ``against-``.
    """
    words = []
    for each in options_of(type(record), *names):
        value = getattr(record, each.name)
        if value == each.default:
            continue
        for one in value if each.repeated else (value,):
            flag = f"--{prefix}{each.flag}"
            words += [flag if one else f"--no-{prefix}{each.flag}"] if isinstance(one, bool) else [flag, str(one)]
    return words
