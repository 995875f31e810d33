"""Bottleneck adapters as a PEFT method: Houlsby's, Pfeiffer's and parallel ones, in AdapterHub's orders."""
