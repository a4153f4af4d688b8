"""``limbeck predict``: use a student on your own files."""

from __future__ import annotations

from limbeck.commands import _common as common
from limbeck.engine.terminal import say

TEXT = """Use a student on your own files: from a run, an export in any format, or an ONNX file.

Inputs are prepared as the training data were: images are resized, cropped and normalised the same way, texts go through
the student's tokenizer, and columns of a table are found by their names.

  limbeck predict RUN photos/ --out answers.csv         one row per image: class and probability
  limbeck predict RUN a.jpg b.jpg --top 5 --draw drawn  the five likeliest classes; boxes, points, masks, maps drawn
  limbeck predict RUN rows.csv                          rows of a table
  limbeck predict RUN reviews.jsonl notes.txt           texts: a column of a table, or a whole file
  limbeck predict RUN --text "Once upon a time" --tokens 40   a language model continues the text
  limbeck predict RUN 3 7 --count 4 --draw samples      a sampler: four samples each of classes 3 and 7
"""


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("predict", TEXT)
    parser.add_argument("run", metavar="RUN", help="a run folder, an export folder, or an ONNX file")
    parser.add_argument("files", metavar="FILE", nargs="*", help="files or folders; of a sampler classes")
    parser.add_argument("--text", metavar="TEXT", action="append", default=[], help="a text itself; may be repeated")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=common.folder_or_file("--out"),
        help="a .csv or .jsonl file (printed otherwise)",
    )
    parser.add_argument("--draw", metavar="DIR", type=common.folder_or_file("--draw"), help="a folder for images")
    parser.add_argument(
        "--checkpoint", metavar="WHICH", help="of a run: last (default), best (on validation), or a checkpoint's number"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:N, mps (default: the best available)")
    parser.add_argument(
        "--batch", metavar="N", type=common.whole(1, "--batch"), default=64, help="items at a time (64)"
    )
    parser.add_argument("--top", metavar="N", type=common.whole(1, "--top"), help="show the N most likely classes")
    parser.add_argument("--threshold", metavar="P", help="lowest score of a box (0.3)")
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=common.whole(0, "--tokens"),
        help="tokens that a language model generates (0)",
    )
    parser.add_argument(
        "--count", metavar="N", type=common.whole(1, "--count"), help="samples (of each class) or views"
    )
    parser.add_argument("--steps", metavar="N", type=common.whole(1, "--steps"), help="a sampler's steps")
    parser.add_argument("--guidance", metavar="W", help="a sampler's guidance weight, 0 is none (scale = 1 + w)")
    parser.add_argument("--seed", metavar="N", type=common.whole(0, "--seed"), help="of samples (0)")
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, _ = parser.read(words)
    from limbeck.engine import interrupt
    from limbeck.errors import ConfigError
    from limbeck.predict import load
    from limbeck.predict.answered import check_ending
    from limbeck.recipe.trust import trusting
    from limbeck.storage.store import check_writable

    interrupt.install()
    if args.out is not None:
        check_ending(args.out)
        check_writable(args.out.parent)
    options = {
        "top": args.top,
        "tokens": args.tokens,
        "threshold": _number(args.threshold, "--threshold"),
        "count": args.count,
        "steps": args.steps,
        "guidance": _number(args.guidance, "--guidance"),
        "seed": args.seed,
    }
    with trusting(args.trust):
        loaded = load(args.run, args.checkpoint, device=args.device)
        for note in loaded.notes:
            say(f"limbeck predict: {note}", error=True)
        given = [*args.files, *args.text]
        makes = loaded.kind in ("sampler", "scene", "dataset", "table", "other")
        if not given and not makes:
            raise ConfigError("FILE", "is missing", expected="files or folders")
        if makes and args.draw is None and loaded.kind in ("sampler", "scene"):
            raise ConfigError("--draw", f"a {loaded.kind} makes images", expected="a folder for them: --draw DIR")
        found = loaded.predict(
            given or None,
            batch=args.batch,
            progress=True,
            draw=args.draw,
            **{k: v for k, v in options.items() if v is not None},
        )
    if args.out is not None:
        found.save(args.out)
        say(f"{args.out}: {len(found)} answers")
    else:
        _show(found)
    return 0


def _number(text: str | None, name: str) -> float | None:
    from limbeck.errors import ConfigError
    from limbeck.recipe.scalars import scalar

    if text is None:
        return None
    value = scalar(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(name, given=text, expected="a number")
    return float(value)


SHOWN = 50
"""Answers that are shown where no file was named."""


def _show(found: object) -> None:
    from limbeck.predict.answered import Predictions, flat_rows

    assert isinstance(found, Predictions)
    rows = flat_rows(list(found[:SHOWN]))
    names = list(dict.fromkeys(k for row in rows for k in row))
    common.table([[row.get(n) for n in names] for row in rows], names)
    if len(found) > SHOWN:
        say(f"{len(found) - SHOWN} more; --out FILE.csv writes all of them")
