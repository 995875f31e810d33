"""An artifact's parity, accuracy and latency as tests: ``pytest --adakron-artifact DIR --adakron-checkpoint DIR``.

pytest loads this in every session of an environment that has the package, so nothing heavy is imported up here.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from adakron_export.data.settings import TextSettings
from adakron_export.errors import AdaKronError
from adakron_export.options.fields import Option, options_of
from adakron_export.quantities import timed_text
from adakron_export.reporting.terminal import printable
from adakron_export.subjects.subject import Subject
from adakron_export.timing.settings import Guard, Timing
from adakron_export.validation.limits import Limits

if TYPE_CHECKING:
    from adakron_export.artifacts.artifact import Artifact
    from adakron_export.runtimes.base import Runner
    from adakron_export.timing.baseline import Regression
    from adakron_export.validation.parity import ParityReport
    from adakron_export.verbs.bench import BenchReport

R = TypeVar("R")
_SHOWN_FAILURES = 10


_OF_TESTED = ("backbone", "device", "allow_engine_code", "adapter")
_OF_TIMING = ("shapes", "budget_s")
_OF_GUARD = ("baseline", "max_regression", "strict", "other_machine")
_RECORDS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Subject, _OF_TESTED), (Limits, ()), (TextSettings, ()), (Timing, _OF_TIMING), (Guard, _OF_GUARD),
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; without an artifact and a checkpoint nothing else happens."""
    group = parser.getgroup("adakron", "adakron-export: hold an artifact to its checkpoint")
    group.addoption("--adakron-artifact", metavar="DIR", help="Artifact to test.")
    group.addoption(
        "--adakron-checkpoint", metavar="PATH", help="Checkpoint it was exported from, or another artifact."
    )
    group.addoption("--adakron-data", metavar="DATA", help="Labelled text, on which the accuracy is tested too.")
    group.addoption("--adakron-report", metavar="DIR", help="Write a page and report.json there.")
    for record, names in _RECORDS:
        for each in options_of(record, *names):
            _add(group, each)


def _add(group: Any, each: Option) -> None:
    """One option of a record; its text is read when the session is configured."""
    shown = each.default if each.shown is None else each.shown
    default = "" if shown in (None, "", ()) or each.kind is bool else f" (default: {shown})"
    text = (each.help + default).replace("%", "%%")
    if each.kind is not bool:
        group.addoption(f"--adakron-{each.flag}", metavar=each.metavar or each.kind.__name__.upper(), help=text)
        return
    group.addoption(f"--adakron-{each.flag}", action="store_const", const=True, help=text)
    if each.default is None:
        group.addoption(
            f"--adakron-no-{each.flag}", action="store_const", const=False, dest=f"adakron_{each.name}",
            help=f"The contrary of --adakron-{each.flag}.",
        )  # fmt: skip


def _taken(config: pytest.Config, record: type[R], *names: str, **more: Any) -> R:
    """A record of what was given.

    Raises:
        AdaKronError: A value makes no sense.
    """
    given: dict[str, Any] = {}
    for each in options_of(record, *names):
        text = config.getoption(f"--adakron-{each.flag}")
        if text is not None:
            given[each.name] = _value(each, text)
    return record(**given, **more)


def _value(each: Option, text: Any) -> Any:
    if isinstance(text, bool):
        return text
    if each.read is not None:
        return each.read(text)
    try:
        return each.kind(text)
    except ValueError as error:
        raise AdaKronError(f"--adakron-{each.flag} is {text!r}; it must be a number") from error


class _Tested:
    """What is tested, measured when it is first asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self.option = lambda name: config.getoption(f"--adakron-{name}")
        given = _taken(config, Subject, *_OF_TESTED, path=self.option("checkpoint"))
        self.reference = replace(given, device="cpu", adapter=None)
        self.subject = replace(given, path=self.option("artifact"), backbone=None)
        self.limits = _taken(config, Limits)
        self.timing = _taken(config, Timing, *_OF_TIMING)
        self.guard = _taken(config, Guard, *_OF_GUARD)
        text = _taken(config, TextSettings)
        self.text = None if text == TextSettings() else text
        self.data = self.option("data")
        if self.data is None and (self.text is not None or self.limits.max_drop is not None):
            raise AdaKronError("columns, cells and max_drop are about text, and none is named; pass --adakron-data")
        if self.guard.baseline is None and self.timing != Timing():
            raise AdaKronError("shapes and budget are of the latency; pass --adakron-baseline to test it")

    @cached_property
    def artifact(self) -> Artifact:
        from adakron_export.artifacts.artifact import open_artifact

        return open_artifact(self.subject.path)

    @cached_property
    def runner(self) -> Runner:
        from adakron_export.subjects.opening import open_subject

        return open_subject(self.subject).runner

    @cached_property
    def parity(self) -> ParityReport:
        from adakron_export.verbs.validate import validate

        return validate(
            self.subject, against=self.reference, data=self.data, text=self.text, limits=self.limits,
            layers=self.option("report") is not None,
        )  # fmt: skip

    @cached_property
    def latency(self) -> BenchReport:
        from adakron_export.verbs.bench import bench

        return bench([self.subject], against=self.reference, timing=self.timing, guard=self.guard)

    def measured(self, name: str) -> Any:
        """What was measured already, such as ``parity``; ``None`` otherwise."""
        return self.__dict__.get(name)


_TESTED = pytest.StashKey[_Tested]()


def pytest_configure(config: pytest.Config) -> None:
    """Read the options.

    Raises:
        UsageError: They do not go together.
    """
    artifact, checkpoint = config.getoption("--adakron-artifact"), config.getoption("--adakron-checkpoint")
    if artifact is None and checkpoint is None:
        return
    if artifact is None or checkpoint is None:
        raise pytest.UsageError("--adakron-artifact and --adakron-checkpoint go together")
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("an artifact is not tested beside other tests, which would slow it: run without -n")
    try:
        config.stash[_TESTED] = _Tested(config)
        if config.getoption("--adakron-report"):
            from adakron_export.reporting.report import check_report_folder

            check_report_folder(config.getoption("--adakron-report"))
    except AdaKronError as error:
        raise pytest.UsageError(str(error)) from error


class ArtifactTest(pytest.Item):
    """One of the ready tests; ``part`` is ``parity``, ``accuracy`` or ``latency``."""

    def __init__(self, *, part: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.part = part
        self.extra_keyword_matches.add("adakron")  # -k adakron

    def runtest(self) -> None:
        """Measure, note the figures for JUnit, and fail with what is wrong."""
        subject = self.config.stash[_TESTED]
        figures, wrong = {"parity": _parity, "accuracy": _accuracy, "latency": _latency}[self.part](subject)
        self.user_properties += figures
        if wrong:
            pytest.fail(printable("\n".join(wrong)), pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Errors of ours as their message."""
        if isinstance(excinfo.value, AdaKronError):
            return printable(f"error: {excinfo.value}")
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is said to stand."""
        return self.path, None, self.nodeid


_Outcome = tuple[list[tuple[str, object]], list[str]]


def _parity(subject: _Tested) -> _Outcome:
    report = subject.parity
    rows = [row for row in report.rows if not row.passed]
    wrong = [
        f"{row.output} on batch {row.batch}: {', '.join(row.failed) or 'values that are not finite'}"
        for row in rows[:_SHOWN_FAILURES]
    ]
    wrong += [f"not comparable: {mismatch}" for mismatch in report.mismatches]
    wrong += [f"weights: {change}" for change in (report.weights.changed if report.weights else ())]
    if report.overflow:
        wrong.append(f"overflow: {report.overflow}")
    if wrong and report.divergence:
        wrong.append(report.divergence.describe())
    if wrong and report.repeat:
        wrong.append(f"repeat: {report.repeat}")
    return [("max_abs_error", report.max_abs_error)], wrong


def _accuracy(subject: _Tested) -> _Outcome:
    found = subject.parity.accuracy
    assert found is not None
    figures = [(f"{pair.metric} of the {side}", getattr(pair, side))
               for pair in found.metrics for side in ("reference", "candidate")]  # fmt: skip
    figures.append(("answers changed", len(found.flips)))
    if found.passed:
        return figures, []
    wrong = [found.verdict]
    for flip in found.flips[:_SHOWN_FAILURES]:
        wrong.append(f"{flip.place}: {flip.reference} became {flip.candidate} (label {flip.label}): {flip.text[:60]}")
    return figures, wrong


def _latency(subject: _Tested) -> _Outcome:
    report = subject.latency
    figures = [(f"slowdown of {row.side} at {row.shape}", row.slowdown.estimate) for row in report.regressions]
    wrong = [
        f"{row.side} at {row.shape} is {100 * (row.slowdown.estimate - 1):.1f} % slower than the baseline "
        f"({100 * (row.slowdown.low - 1):.1f} to {100 * (row.slowdown.high - 1):.1f} %), the limit is "
        f"{100 * (row.limit - 1):.1f} %"
        for row in report.regressions
        if not row.passed
    ]
    if report.strict:
        wrong += [_undecided(row) for row in report.regressions if row.undecided]
    return [*figures], wrong


def _undecided(row: Regression) -> str:
    return f"{row.side} at {row.shape} is undecided: {row.undecided}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the ready tests: parity always, accuracy where there is text, latency where there is a baseline."""
    if _TESTED not in config.stash:
        return
    option = config.stash[_TESTED].option
    parts = ["parity", *(["accuracy"] if option("data") else []), *(["latency"] if option("baseline") else [])]
    items += [ArtifactTest.from_parent(session, name=part, nodeid=f"adakron::{part}", part=part) for part in parts]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report of what was measured."""
    subject = session.config.stash.get(_TESTED, None)
    if subject is None or not subject.option("report"):
        return
    parity, latency = subject.measured("parity"), subject.measured("latency")
    if parity is None and latency is None:
        return
    from adakron_export.extras import package_versions
    from adakron_export.reporting.report import report_content, write_report
    from adakron_export.verbs.inspect import subject_of

    content = report_content(
        subject=subject_of(subject.option("artifact")),
        machine=latency.machine if latency else _machine(subject.subject.device),
        versions=package_versions(),
        repeat=shlex.join(["pytest", *map(str, session.config.invocation_params.args)]),
        parity=parity.to_json() if parity else None,
        latency=latency.to_json() if latency else None,
    )
    write_report(subject.option("report"), content)


def _machine(device: str) -> dict[str, Any]:
    from adakron_export.machine.description import describe_machine
    from adakron_export.runtimes.table import runtime_on

    return describe_machine(device=device, on_gpu=runtime_on(device).on_gpu)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was measured, and where the report is."""
    subject = config.stash.get(_TESTED, None)
    if subject is None:
        return
    parity, latency = subject.measured("parity"), subject.measured("latency")
    if parity is not None:
        terminalreporter.write_line(f"adakron: largest absolute error {parity.max_abs_error:.2e}")
    for row in latency.latencies if latency else ():
        if row.speedup:
            shape = timed_text(row.shape)
            terminalreporter.write_line(f"adakron: {shape} {row.p50_ms:.2f} ms, {row.speedup.estimate:.2f}x eager")
    for row in latency.regressions if latency else ():
        if row.undecided:
            terminalreporter.write_line(f"adakron: {printable(_undecided(row))}")
    if subject.option("report") and (parity or latency):
        terminalreporter.write_line(f"adakron: report {Path(subject.option('report')) / 'index.html'}")


def _tested(request: pytest.FixtureRequest) -> _Tested:
    found = request.config.stash.get(_TESTED, None)
    if found is None:
        pytest.skip("needs --adakron-artifact and --adakron-checkpoint")
    return found


@pytest.fixture(scope="session")
def adakron_artifact(request: pytest.FixtureRequest) -> Artifact:
    """The artifact, opened."""
    return _tested(request).artifact


@pytest.fixture(scope="session")
def adakron_runner(request: pytest.FixtureRequest) -> Runner:
    """The artifact, loaded: ``adakron_runner.run(batch)``."""
    return _tested(request).runner


@pytest.fixture(scope="session")
def adakron_parity(request: pytest.FixtureRequest) -> ParityReport:
    """Its comparison with the checkpoint, made once per session."""
    return _tested(request).parity


@pytest.fixture(scope="session")
def adakron_latency(request: pytest.FixtureRequest) -> BenchReport:
    """Its latencies and the checkpoint's, measured once per session."""
    return _tested(request).latency
