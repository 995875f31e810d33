"""`python -m adakron_export.cli`, which is how torchrun and accelerate start the command."""

from .main import main

main()
