"""AdaKron as a PEFT method: configuration, layer, tuner, backbones, checkpoints and folding."""

from adakron_export.adapter.config import Activation, AdaKronConfig, KronOrder
from adakron_export.adapter.tuner import AdaKronModel, register

register()

__all__ = ["Activation", "AdaKronConfig", "AdaKronModel", "KronOrder"]
