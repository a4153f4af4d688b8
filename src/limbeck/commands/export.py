"""``limbeck export``: a run's student in another format."""

from __future__ import annotations

from limbeck.commands import _common as common
from limbeck.engine.terminal import say

TEXT = """Write what a run made in another format, from its end or from any checkpoint, and check it against torch."""


def _say(text: str) -> None:
    say(f"limbeck export: {text}", error=True)


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("export", TEXT)
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--format", metavar="NAME", default="safetensors", help="safetensors (default), onnx, onnx-int8, hub..."
    )
    parser.add_argument("--out", metavar="DIR", type=common.folder_or_file("--out"), help="folder (RUN/export/NAME)")
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=common.folder_or_file("--checkpoint"), help="a checkpoint of the run"
    )
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, _ = parser.read(words)
    folder = common.run_folder(args.run)
    from limbeck.engine import interrupt
    from limbeck.export import export
    from limbeck.recipe.trust import trusting

    interrupt.install()
    out = args.out or folder / "export" / args.format
    with trusting(args.trust):
        say(export(folder, args.format, out, checkpoint=args.checkpoint, say=_say))
    return 0
