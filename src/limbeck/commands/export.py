"""``limbeck export``: a run's student in another format."""

from __future__ import annotations

from limbeck.commands import _common as common
from limbeck.engine.terminal import say

TEXT = """Export a run's result in another format, verify it, and report what the format costs: size, the task's metric and latency,
each beside what it was before. Every export holds student.json (preprocessing, labels) and use.py (from your file to the
answer).

formats: safetensors (the student alone), onnx, onnx-int8, hub (the folder that timm, transformers or diffusers opens, with a
model card); of data sets images, parquet; of tables csv, parquet.

checkpoints: last, the newest (the default); best, the weights that did best on the validation split while the run went
(set engine.eval_every in the run); or the number of a checkpoint in RUN/checkpoints."""


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
        "--checkpoint",
        metavar="WHICH",
        type=common.folder_or_file("--checkpoint"),
        help="last (default), best on validation, or a checkpoint's number or folder",
    )
    parser.add_argument(
        "--normalise",
        metavar="WHERE",
        type=common.one_of(("inside", "outside"), "--normalise", "place"),
        default="inside",
        help="onnx: inside the graph, which then takes plain pixels or rows (default), or outside",
    )
    parser.add_argument(
        "--input",
        metavar="KIND",
        type=common.one_of(("float", "uint8"), "--input", "kind of input"),
        default="float",
        help="onnx, images: float in [0, 1] (default), or uint8 in 0 to 255",
    )
    parser.add_argument(
        "--teacher", action="store_true", help="onnx: time the teacher as well, in torch and through onnxruntime"
    )
    parser.add_argument("--license", metavar="ID", default="", help="hub: for the model card, such as apache-2.0")
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, _ = parser.read(words)
    folder = common.run_folder(args.run)
    from limbeck.engine import interrupt
    from limbeck.engine.progress import Progress
    from limbeck.export import export
    from limbeck.recipe.trust import trusting

    interrupt.install()
    out = args.out or folder / "export" / args.format
    progress = Progress()
    try:
        with trusting(args.trust):
            made = export(
                folder,
                args.format,
                out,
                checkpoint=common.checkpoint_of(args.checkpoint),
                say=common.between(progress, _say),
                normalise=args.normalise,
                pixels=args.input,
                licence=args.license,
                progress=progress,
                teacher=args.teacher,
            )
    finally:
        progress.close()
    say(made)
    return 0
