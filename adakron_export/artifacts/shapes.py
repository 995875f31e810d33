"""Which shapes an engine takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adakron_export.artifacts.manifest import Bank, Manifest, TensorInfo
from adakron_export.errors import EngineError
from adakron_export.graph.layout import IDS
from adakron_export.options.fields import check_record, option
from adakron_export.quantities import parse_shape, parse_shapes

Shape = tuple[int, int]  # texts and tokens
Bounds = tuple[Shape, Shape]  # the smallest and the largest
DEFAULT = ((1, 1), (8, 128), (32, 512))
DEFAULT_ADAPTERS = 256


@dataclass(frozen=True, slots=True)
class Profile:
    """An optimisation profile: the smallest shape, the one that is tuned for, and the largest.

    Raises:
        EngineError: They do not grow.
    """

    smallest: Shape
    best: Shape
    largest: Shape

    def __post_init__(self) -> None:
        texts, tokens = zip(self.smallest, self.best, self.largest, strict=True)
        if list(texts) != sorted(texts) or list(tokens) != sorted(tokens) or min(self.smallest) < 1:
            raise EngineError(
                f"the shapes {', '.join(map(shape_text, self.shapes))} must grow from the smallest to the largest, "
                "in texts and in tokens"
            )

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """All three."""
        return self.smallest, self.best, self.largest

    @property
    def pasts(self) -> tuple[int, int, int]:
        """How many tokens of the past each has, of a model with a cache: none at first, then as many as new ones."""
        return 0, self.best[1], self.largest[1]


def shape_text(shape: Shape) -> str:
    """As people write it."""
    return f"{shape[0]}x{shape[1]}"


def bounds_text(bounds: Sequence[Bounds]) -> str:
    """What an engine takes, as people write it."""
    return " or ".join(f"{shape_text(smallest)} to {shape_text(largest)}" for smallest, largest in bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShapes:
    """Which shapes an engine takes, in texts and tokens.

    Raises:
        EngineError: Both one profile and several are named.
    """

    min_shape: Shape | None = option(
        None, "Smallest shape, texts x tokens.", shown="1x1", metavar="BxT", read=parse_shape
    )
    opt_shape: Shape | None = option(
        None, "Shape that the engine is tuned for.", shown="8x128", metavar="BxT", read=parse_shape
    )
    max_shape: Shape | None = option(
        None, "Largest shape.", shown="32x512, or the model's end", metavar="BxT", read=parse_shape
    )
    profiles: tuple[tuple[Shape, ...], ...] = option(
        (), "Profile of three shapes, in the place of these three options.", flag="profile", metavar="MIN,OPT,MAX",
        read=parse_shapes,
    )  # fmt: skip

    max_adapters: int | None = option(
        None, "Most adapters that the engine of a bank takes.", shown="256", metavar="N", least=1
    )

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        check_record(self, EngineError)
        if self.profiles and (self.min_shape or self.opt_shape or self.max_shape):
            raise EngineError("name profiles, or one smallest, best and largest shape; not both")
        if any(len(shapes) != 3 for shapes in self.profiles):
            raise EngineError("a profile has three shapes, such as 1x1,8x128,32x512")


def profiles_for(manifest: Manifest, shapes: EngineShapes) -> tuple[Profile, ...]:
    """The profiles of an engine.

    Args:
        manifest: The artifact's manifest; without limits of the user's own, the profile ends at its longest input.
        shapes: What was asked for.

    Raises:
        EngineError: A profile does not grow, or is longer than the model takes.
    """
    if shapes.profiles:
        found = tuple(Profile(*three) for three in shapes.profiles)
    else:
        found = (_filled(manifest, shapes.min_shape, shapes.opt_shape, shapes.max_shape),)
    limit = manifest.max_length
    longest = max(profile.largest[1] for profile in found)
    if limit is not None and _has_tokens(manifest) and longest > limit:
        raise EngineError(f"the largest shape has {longest} tokens, the model takes {limit}")
    return found


def _filled(manifest: Manifest, smallest: Shape | None, best: Shape | None, largest: Shape | None) -> Profile:
    """The defaults give way to what was named, and to the model's longest input."""
    low, high = smallest or DEFAULT[0], largest
    if high is None:
        texts, tokens = DEFAULT[2]
        limit = manifest.max_length if _has_tokens(manifest) else None
        named = best or low
        high = max(texts, named[0]), max(min(tokens, limit or tokens), named[1])
    middle = best or (
        min(max(DEFAULT[1][0], low[0]), high[0]),
        min(max(DEFAULT[1][1], low[1]), high[1]),
    )
    return Profile(low, middle, high)


def _has_tokens(manifest: Manifest) -> bool:
    return any(info.name == "input_ids" for info in manifest.inputs)


def tensor_shape(info: TensorInfo, shape: Shape, past: int = 0) -> tuple[int, ...]:
    """An input's shape for so many texts and tokens; its fixed axes stay.

    Args:
        info: The first axis by name is the batch; others are tokens.
        shape: Texts and tokens.
        past: Tokens of the past, of a model with a cache.
    """
    texts, tokens = shape
    sizes = {"past_sequence_length": past, "past_sequence_length + sequence_length": past + tokens}
    free = [sizes.get(axis, tokens) if isinstance(axis, str) else axis for axis in info.shape]
    return (texts if isinstance(info.shape[0], str) else free[0], *free[1:])


def bank_shapes(bank: Bank, profile: Profile, max_adapters: int) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The smallest, the best and the largest shape of each input that is a bank's: its ids, and its stacks.

    Args:
        bank: The bank.
        profile: Texts and tokens; an id for each text, or one for all.
        max_adapters: The most adapters.
    """
    found: dict[str, tuple[tuple[int, ...], ...]] = {IDS: ((1,), (profile.best[0],), (profile.largest[0],))}
    best = min(max(len(bank.adapters), 1), max_adapters)
    for stack in bank.layout.stacks if bank.places is None else ():
        found[stack.name] = tuple((count, *stack.shape) for count in (1, best, max_adapters))
    return found


def choose_profile(bounds: Sequence[Bounds], shape: Shape) -> int | None:
    """The profile that takes a shape, the narrowest of several; ``None`` where there is none."""
    fitting = [index for index, each in enumerate(bounds) if fits(each, shape)]
    return min(fitting, key=lambda index: bounds[index][1][0] * bounds[index][1][1], default=None)


def fits(bounds: Bounds, shape: Shape) -> bool:
    """Whether a shape lies between two others."""
    smallest, largest = bounds
    return all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
