"""AdaKron as a PEFT method: configuration, layer, tuner, backbones, checkpoints and folding."""

from adakron_export.extras import check_installed

check_installed("torch", "transformers", "peft", "safetensors", extra="export")

# After the check, which names the extra that brings them.
from adakron_export.adapter.config import Activation, AdaKronConfig, KronOrder  # noqa: E402
from adakron_export.adapter.tuner import AdaKronModel, register  # noqa: E402

register()

__all__ = ["Activation", "AdaKronConfig", "AdaKronModel", "KronOrder"]
