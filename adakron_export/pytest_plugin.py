"""An artifact's parity, accuracy and latency as tests: ``pytest --adakron-artifact DIR --adakron-checkpoint DIR``.

pytest loads this in every session of an environment that has the package, so nothing heavy is imported up here.
"""

from __future__ import annotations

import shlex
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adakron_export.errors import AdaKronError
from adakron_export.quantities import parse_seconds, parse_shapes, parse_share
from adakron_export.reporting.terminal import printable

if TYPE_CHECKING:
    from adakron_export.artifact import Artifact
    from adakron_export.benchmarking import BenchReport
    from adakron_export.runtimes.base import Runner
    from adakron_export.validation.baseline import Regression
    from adakron_export.validation.parity import ParityReport

_SHOWN_FAILURES = 10


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; without an artifact and a checkpoint nothing else happens."""
    group = parser.getgroup("adakron", "adakron-export: hold an artifact to its checkpoint")
    group.addoption("--adakron-artifact", metavar="DIR", help="Test this artifact.")
    group.addoption("--adakron-checkpoint", metavar="PATH", help="What it was exported from, or another artifact.")
    group.addoption("--adakron-backbone", metavar="DIR_OR_ID", help="By default what the checkpoint names.")
    group.addoption(
        "--adakron-device", metavar="NAME", default="cpu", help="cpu, openvino, cuda, tensorrt, tensorrt-rtx."
    )
    group.addoption("--adakron-data", metavar="DATA", help="Labelled text: test the accuracy too.")
    group.addoption("--adakron-max-drop", metavar="X", type=float, default=0.005, help="Of the task's metric.")
    group.addoption("--adakron-baseline", metavar="FILE", help="Of `bench --save-baseline`: test the latency too.")
    group.addoption("--adakron-max-regression", metavar="SHARE", default="5%", help="How much slower: 5%% or 0.05.")
    group.addoption("--adakron-shapes", metavar="LIST", help="Texts and tokens; by default those of the baseline.")
    group.addoption("--adakron-budget", metavar="TIME", default="60s", help="For the rounds of the latency.")
    group.addoption("--adakron-other-machine", action="store_true", help="Take a baseline of another machine too.")
    group.addoption("--adakron-strict", action="store_true", help="Fail too where too few rounds were made to tell.")
    group.addoption("--adakron-engine-code", action="store_true", help="Let host code of an engine run.")
    group.addoption("--adakron-report", metavar="DIR", help="Write a page and report.json there.")


class _Subject:
    """What is tested, measured when it is first asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self.option = lambda name: config.getoption(f"--adakron-{name}")
        self.max_regression = parse_share(self.option("max-regression"))
        self.budget_s = parse_seconds(self.option("budget"))
        shapes = self.option("shapes")
        self.shapes = parse_shapes(shapes) if shapes else None

    @cached_property
    def artifact(self) -> Artifact:
        from adakron_export.artifact import open_artifact

        return open_artifact(self.option("artifact"))

    @cached_property
    def runner(self) -> Runner:
        from adakron_export.runtimes.opening import open_runner

        return open_runner(self.option("artifact"), device=self.option("device"))

    @cached_property
    def parity(self) -> ParityReport:
        from adakron_export.verify import validate

        return validate(
            self.option("artifact"), against=self.option("checkpoint"), backbone=self.option("backbone"),
            device=self.option("device"), data=self.option("data"), max_drop=self.option("max-drop"),
            layers=self.option("report") is not None, allow_engine_code=self.option("engine-code"),
        )  # fmt: skip

    @cached_property
    def latency(self) -> BenchReport:
        from adakron_export.benchmarking import bench

        return bench(
            [self.option("artifact")], against=self.option("checkpoint"), backbone=self.option("backbone"),
            device=self.option("device"), shapes=self.shapes, budget_s=self.budget_s,
            baseline=self.option("baseline"), max_regression=self.max_regression,
            other_machine=self.option("other-machine"), strict=self.option("strict"),
            allow_engine_code=self.option("engine-code"),
        )  # fmt: skip

    def measured(self, name: str) -> Any:
        """What was measured already, such as ``parity``; ``None`` otherwise."""
        return self.__dict__.get(name)


_SUBJECT = pytest.StashKey[_Subject]()


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
        config.stash[_SUBJECT] = _Subject(config)
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
        subject = self.config.stash[_SUBJECT]
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


def _parity(subject: _Subject) -> _Outcome:
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


def _accuracy(subject: _Subject) -> _Outcome:
    found = subject.parity.accuracy
    assert found is not None
    figures = [(f"{pair.metric} of the {side}", getattr(pair, side))
               for pair in found.metrics for side in ("reference", "candidate")]  # fmt: skip
    figures.append(("answers changed", len(found.flips)))
    if found.passed:
        return figures, []
    wrong = [f"{found.metrics[0].metric} is {found.drop:.4f} worse, the limit is {found.max_drop:g}"]
    for flip in found.flips[:_SHOWN_FAILURES]:
        wrong.append(f"{flip.place}: {flip.reference} became {flip.candidate} (label {flip.label}): {flip.text[:60]}")
    return figures, wrong


def _latency(subject: _Subject) -> _Outcome:
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
    if _SUBJECT not in config.stash:
        return
    option = config.stash[_SUBJECT].option
    parts = ["parity", *(["accuracy"] if option("data") else []), *(["latency"] if option("baseline") else [])]
    items += [ArtifactTest.from_parent(session, name=part, nodeid=f"adakron::{part}", part=part) for part in parts]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report of what was measured."""
    subject = session.config.stash.get(_SUBJECT, None)
    if subject is None or not subject.option("report"):
        return
    parity, latency = subject.measured("parity"), subject.measured("latency")
    if parity is None and latency is None:
        return
    from adakron_export.extras import package_versions
    from adakron_export.inspection import subject_of
    from adakron_export.machine import describe_machine
    from adakron_export.reporting.report import report_content, write_report

    content = report_content(
        subject=subject_of(subject.option("artifact")),
        machine=latency.machine if latency else describe_machine(device=subject.option("device"), threads=None),
        versions=package_versions(),
        repeat=shlex.join(["pytest", *map(str, session.config.invocation_params.args)]),
        parity=parity.to_json() if parity else None,
        latency=latency.to_json() if latency else None,
    )
    write_report(subject.option("report"), content)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was measured, and where the report is."""
    subject = config.stash.get(_SUBJECT, None)
    if subject is None:
        return
    parity, latency = subject.measured("parity"), subject.measured("latency")
    if parity is not None:
        terminalreporter.write_line(f"adakron: largest absolute error {parity.max_abs_error:.2e}")
    for row in latency.latencies if latency else ():
        if row.speedup:
            shape = f"{row.shape[0]}x{row.shape[1]}"
            terminalreporter.write_line(f"adakron: {shape} {row.p50_ms:.2f} ms, {row.speedup.estimate:.2f}x eager")
    for row in latency.regressions if latency else ():
        if row.undecided:
            terminalreporter.write_line(f"adakron: {printable(_undecided(row))}")
    if subject.option("report") and (parity or latency):
        terminalreporter.write_line(f"adakron: report {Path(subject.option('report')) / 'index.html'}")


def _subject(request: pytest.FixtureRequest) -> _Subject:
    found = request.config.stash.get(_SUBJECT, None)
    if found is None:
        pytest.skip("needs --adakron-artifact and --adakron-checkpoint")
    return found


@pytest.fixture(scope="session")
def adakron_artifact(request: pytest.FixtureRequest) -> Artifact:
    """The artifact, opened."""
    return _subject(request).artifact


@pytest.fixture(scope="session")
def adakron_runner(request: pytest.FixtureRequest) -> Runner:
    """The artifact, loaded: ``adakron_runner.run(batch)``."""
    return _subject(request).runner


@pytest.fixture(scope="session")
def adakron_parity(request: pytest.FixtureRequest) -> ParityReport:
    """Its comparison with the checkpoint, made once per session."""
    return _subject(request).parity


@pytest.fixture(scope="session")
def adakron_latency(request: pytest.FixtureRequest) -> BenchReport:
    """Its latencies and the checkpoint's, measured once per session."""
    return _subject(request).latency
