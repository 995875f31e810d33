"""How artifacts are served: the limits of a request, how much waits, and on what it runs."""

from __future__ import annotations

from dataclasses import dataclass

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
    adapter_root: str | None = option(
        None, "Folder whose adapters may be added to a bank that is served.", metavar="DIR"
    )

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        check_record(self, RunnerError)
