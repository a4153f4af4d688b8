"""Texts among which lies what a crawl brings along: repeated notices, and copies whose letters are jumbled.

It shows what a choice of text is worth: validation and test stay clean, so that junk learnt from costs likelihood there.
"""

from __future__ import annotations

import torch

from limbeck.data.text import Document, PythonHelp, Texts, TextSource
from limbeck.errors import DataError
from limbeck.grammar.random import Draws
from limbeck.grammar.settings import Natural, NonNegative, settings

NAMES = {"source": {"crawled": "Crawled"}}
"""What recipes call the components of this file; read without importing it (``limbeck.recipe.names``)."""

NOTICES = (
    "This site uses cookies to improve your experience. By continuing to browse this page you agree to our use of cookies.",
    "Sign up for our newsletter and never miss an update. You can unsubscribe at any time.",
    "All rights reserved. No part of this page may be reproduced without written permission.",
    "Share this on: Facebook, Twitter, LinkedIn. Log in to leave a comment.",
    "Page not found. The page that you are looking for may have been moved or deleted.",
    "Enable JavaScript to view this page. Your browser is not supported.",
)
"""What stands on every page."""

LINES = 12
"""Notices in a document of notices."""


@settings
class Crawled(TextSource):
    """Another source's texts, with junk among the training texts of teacher and student; validation and test stay clean.

    Args:
        text: where the texts come from.
        jumbled: characters of copies whose letters are jumbled within each word, as a share of the clean characters.
        notices: characters of notices that come again and again, as a share of the clean characters.
        draw: which texts are copied, and how they are jumbled; another draw for each number.
    """

    text: TextSource = PythonHelp()
    jumbled: NonNegative = 0.5
    notices: NonNegative = 0.5
    draw: Natural = 0

    def deal(self, valid: float = 0.05, test: float = 0.1, again: int = 0) -> Texts:
        """Read and deal the texts, then add the junk behind the training texts.

        Raises:
            DataError: prompts with responses, among which lies no junk.
        """
        texts = self.text.deal(valid, test, again)
        if texts.pairs:
            raise DataError("task.data.text", "junk lies among plain texts, and these are prompts with responses")
        draws = Draws(self.draw, ("crawled",))
        clean = list(texts.train)
        size = sum(len(d.text) for d in clean)
        order = draws.permutation("copies", len(clean)).tolist()
        junk: list[Document] = []
        left, at = self.jumbled * size, 0
        while left > 0:
            text = jumbled(clean[order[at % len(order)]].text, draws, at)
            junk.append(Document(text[: max(1, round(left))], source="jumbled", number=at + 1))
            left, at = left - len(text), at + 1
        left, at = self.notices * size, 0
        while left > 0:
            chosen = draws.randint("notices", torch.tensor([at]), len(NOTICES), (LINES,))[0].tolist()
            text = f"Page {at + 1}\n" + "\n".join(NOTICES[i] for i in chosen) + "\n"
            junk.append(Document(text[: max(1, round(left))], source="notice", number=at + 1))
            left, at = left - len(text), at + 1
        texts.train += junk
        if junk:
            said = ", ".join(f"{sum(d.source == s for d in junk)} {s}" for s in ("jumbled", "notice"))
            texts.notes.append(f"junk among the training texts: {said} documents beside {len(clean)} clean ones")
        return texts


def jumbled(text: str, draws: Draws, number: int) -> str:
    """A text whose characters change places within every word; blanks and line ends stay."""
    key = draws.rand(f"letters {number}", len(text))
    word = torch.tensor([c.isspace() for c in text], dtype=torch.int64).cumsum(0)
    fixed = torch.tensor([c.isspace() for c in text])
    # within a word by the draw; a blank opens its word and stays first
    place = (word.double() + torch.where(fixed, 0.0, 0.25 + key.double() * 0.5)).argsort(stable=True)
    return "".join(text[i] for i in place.tolist())


__all__ = ["NOTICES", "Crawled", "jumbled"]
