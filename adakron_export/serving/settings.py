"""How artifacts are served, and how files of many rows are answered. Reading this costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from adakron_export.data.settings import TextSettings
from adakron_export.errors import RunnerError
from adakron_export.options.fields import check_record, option
from adakron_export.runtimes.table import RUNTIMES


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How artifacts are served.

    Raises:
        RunnerError: A value makes no sense.
    """

    device: str = option("cpu", "Device to run on.", choices=RUNTIMES)
    replicas: int = option(1, "Processes that run the models.", metavar="N", least=1)
    threads: int | None = option(
        None, "Threads of each of them.", shown="the cores, shared among the replicas", metavar="N", least=1
    )
    batch_size: int = option(32, "Largest number of texts that run together.", metavar="N", least=1)
    batch_wait_ms: float = option(2.0, "Time that a text waits for others.", flag="batch-wait", metavar="MS")
    max_queue: int = option(256, "Most texts that wait or run; more are answered 429.", metavar="N", least=1)
    max_texts: int = option(64, "Most texts of a request.", metavar="N", least=1)
    max_tokens: int | None = option(
        None, "Most tokens of a text; longer ones are refused.", shown="those that the model takes, which cut it off",
        metavar="N", least=1,
    )  # fmt: skip
    max_new_tokens: int = option(256, "Most tokens that a request may have written.", metavar="N", least=1)
    max_body: int = option(2**20, "Most bytes of a request.", metavar="BYTES", least=1)
    timeout_s: float = option(60.0, "Time for an answer; afterwards it is 408.", flag="timeout", metavar="S", least=1)
    max_models: int | None = option(
        None, "Most models that a replica holds; the one that rested longest makes room.", shown="all", metavar="N",
        least=1,
    )  # fmt: skip
    adapter: str | None = option(
        None, "Adapter of a bank that answers where a request names none.", shown="requests must name one",
        metavar="NAME",
    )  # fmt: skip
    adapter_root: str | None = option(
        None, "Folder whose adapters may be added to a bank that is served.", metavar="DIR"
    )

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, RunnerError)


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What a caller may ask for beside the answer itself; see `predict`.

    Attributes:
        top_k: How many classes or tokens to give.
        max_new_tokens: How much to write.
        num_beams: How many continuations to follow at once.

    Raises:
        RunnerError: A number is below 1.
    """

    top_k: int | None = None
    max_new_tokens: int | None = None
    num_beams: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name in ("top_k", "max_new_tokens", "num_beams"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise RunnerError(f"{name} is {number}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkSettings:
    """How many rows are answered.

    Attributes:
        text: The columns of text, and how cells are separated.
        options: What is asked for beside the answer.

    Raises:
        RunnerError: A value makes no sense.
    """

    address: str | None = option(None, "Ray cluster to run on.", shown="this machine", metavar="ADDRESS")
    workers: int | None = option(None, "Processes that run the model.", shown="one a core", metavar="N", least=1)
    threads: int = option(1, "Threads of each of them.", metavar="N", least=1)
    rows_per_file: int = option(10_000, "Most rows of an output file.", metavar="N", least=1)
    device: str = "cpu"
    batch_size: int = 32
    adapter: str | None = None
    adapter_column: str | None = None
    text: TextSettings = field(default_factory=TextSettings)
    options: PredictOptions = field(default_factory=PredictOptions)

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, RunnerError)
        if self.adapter is not None and self.adapter_column is not None:
            raise RunnerError("adapter_column names the adapter of each row; leave adapter out")
        if self.text.header is False:
            raise RunnerError("tables must have the names of their columns in the first line here")


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonSettings:
    """How Triton runs a model.

    Raises:
        RunnerError: A value makes no sense.
    """

    max_batch_size: int = option(32, "Largest number of texts that run together.", metavar="N", least=1)
    batch_wait_ms: float = option(2.0, "Time that a text waits for others.", flag="batch-wait", metavar="MS")
    bench: str | None = option(
        None, "Report of `bench --json`, whose best batch sizes Triton shall prefer.", metavar="FILE"
    )
    instances: int = option(1, "Copies of the model.", metavar="N", least=1)
    gpu: bool = option(False, "Run on a GPU.")
    threads: int | None = option(None, "Threads of each copy.", shown="the runtime's choice", metavar="N", least=1)
    response_cache: bool = option(False, "Let Triton remember answers; the server needs --cache-config.")

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, RunnerError)
