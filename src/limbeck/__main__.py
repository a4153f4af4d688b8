"""``python -m limbeck`` is the ``limbeck`` command."""

from __future__ import annotations

from limbeck.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit()
