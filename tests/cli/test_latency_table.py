"""What `bench` prints."""

import pytest

from adakron_export.cli.latency import print_latency  # noqa: TID251 - it is what is tested
from adakron_export.timing.latency import Interval, Latency
from adakron_export.verbs.bench import BenchReport


@pytest.mark.parametrize(("times", "shown"), [(0.25, "0.25x"), (1.234, "1.23x"), (12.34, "12.3x"), (1234, "1234x")])
def test_a_row_fits_into_a_terminal(capsys, times, shown):
    row = Latency(
        side="b" * 20,
        shape=(16, 1024),
        runs=50,
        p50_ms=2345.6,
        p90_ms=2345.6,
        p99_ms=2345.6,
        mean_ms=2345.6,
        texts_per_second=12345.6,
        tokens_per_second=None,
        first_ms=1.0,
        quantiles_ms=(),
        round_ms=(),
        speedup=Interval(times, times, times),
    )
    machine = {"processor": "one", "cores": 2, "threads": None, "device": "cpu"}
    print_latency(BenchReport("artifact", (), (row,), machine, {}))
    line = capsys.readouterr().out.splitlines()[-1]
    assert shown in line
    assert len(line) <= 80
