"""Batches in which every text has an adapter of its own, held row by row against each adapter alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adakron_export.graph.tolerance import Tolerance
from adakron_export.runtimes.bank import BankRunner
from adakron_export.runtimes.base import Array
from adakron_export.runtimes.space import NamedBatch
from adakron_export.subjects.opened import Opened
from adakron_export.validation.batches import make_batches
from adakron_export.validation.parity import OutputParity, compare_outputs

_MOST = 32  # batches, of a bank with very many adapters


@dataclass(frozen=True, slots=True)
class Answers:
    """What each adapter alone answers to the texts of a batch.

    Attributes:
        batch: The batch.
        of: Outputs by adapter.
    """

    batch: NamedBatch
    of: dict[str, Mapping[str, Array]] = field(default_factory=dict)


def answered(answers: Answers | None, name: str, reference: Opened) -> Answers:
    """The answers with those of another adapter's own model; the first one chooses the texts."""
    if answers is None:
        image = reference.space.image_shape is not None
        batches = make_batches(reference.space)
        answers = Answers(next(each for each in batches if each.name == ("three-images" if image else "realistic")))
    return Answers(answers.batch, {**answers.of, name: reference.runner.run(answers.batch.inputs)})


def completed(answers: Answers, runner: BankRunner, dtype: str) -> Answers:
    """The answers with those of the other adapters, as the bank itself gives them for one adapter alone.

    Only fp32 has limits that a single row can be held to. Those of other dtypes are for batches: there all answers are
    the bank's own, each of which was held against eager PyTorch.

    Args:
        answers: What eager models answer.
        runner: The bank.
        dtype: What its graph holds, whatever its manifest says.
    """
    own = dict(answers.of) if dtype == "fp32" else {}
    for name in runner.names:
        if name not in own:
            own[name] = runner.adapter(name).run(answers.batch.inputs)
    return Answers(answers.batch, own)


def compare_mixed(
    runner: BankRunner, answers: Answers, *, first: Sequence[str], tolerance: Tolerance
) -> dict[str, list[OutputParity]]:
    """Run a batch with other adapters for its texts each time, until every adapter has had one.

    Args:
        runner: The bank.
        answers: What is right.
        first: The adapters that come first; with very many, not all others follow.
        tolerance: What is allowed.

    Returns:
        One row by output and text, under the adapter that answered it; those of the others under the first one.
    """
    names = [*first, *(name for name in answers.of if name not in first)]
    texts = len(next(iter(answers.batch.inputs.values())))
    found: dict[str, list[OutputParity]] = {name: [] for name in first}
    for start in list(range(0, len(names), texts))[:_MOST]:
        chosen = [names[(start + row) % len(names)] for row in range(texts)]
        outputs = runner.run(answers.batch.inputs, chosen)
        for row, name in enumerate(chosen):
            batch = NamedBatch(f"mixed-{start // texts + 1}.{row + 1}", _row(answers.batch.inputs, row))
            rows = compare_outputs(
                batch, _row(answers.of[name], row), _row(outputs, row), tolerance, outputs=runner.output_names
            )
            found[name if name in found else first[0]] += rows
    return found


def _row(arrays: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One text of a batch, as a batch."""
    return {name: values[row][None] for name, values in arrays.items()}
