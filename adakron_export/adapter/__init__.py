"""PEFT methods: AdaKron and bottlenecks, and how each method is folded or merged."""

from adakron_export.extras import check_installed

check_installed("torch", "transformers", "peft", "safetensors", extra="export")

# After the check, which names the extra that brings them.
from adakron_export.adapter.bottleneck.config import BottleneckConfig  # noqa: E402
from adakron_export.adapter.bottleneck.tuner import BottleneckModel  # noqa: E402
from adakron_export.adapter.bottleneck.tuner import register as register_bottleneck  # noqa: E402
from adakron_export.adapter.config import Activation, AdaKronConfig, KronOrder  # noqa: E402
from adakron_export.adapter.tuner import AdaKronModel, register  # noqa: E402

register()
register_bottleneck()

__all__ = ["Activation", "AdaKronConfig", "AdaKronModel", "BottleneckConfig", "BottleneckModel", "KronOrder"]
