"""What is shown on a terminal: names from anywhere cannot steer it."""

from __future__ import annotations

import logging
import sys
from typing import Any

from limbeck.errors import masked, visible


class _Seen:
    """Something that rich draws, with every text of it made visible; rich's own colours and movements stay."""

    def __init__(self, drawn: Any) -> None:
        self.drawn = drawn

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.segment import Segment

        for segment in console.render(self.drawn, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _Hook:
    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        """All that is about to be drawn."""
        from rich.control import Control

        return [r if isinstance(r, Control) else _Seen(r) for r in renderables]


def careful(console: Any) -> Any:
    """A console of rich that shows control characters of names as escapes."""
    console.push_render_hook(_Hook())
    return console


def say(text: object, error: bool = False) -> None:
    """Print a line of our own on standard output, or on standard error."""
    print(visible(masked(str(text))), file=sys.stderr if error else sys.stdout)


class Warnings(logging.Handler):
    """Shows what limbeck's modules warn of: a line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        say(self.format(record), error=True)


def heed_warnings() -> None:
    """Show warnings of limbeck's modules through `say`, where nobody else has set up logging. Idempotent."""
    logger = logging.getLogger("limbeck")
    if not logging.getLogger().handlers and not any(isinstance(h, Warnings) for h in logger.handlers):
        logger.addHandler(Warnings(logging.WARNING))
