"""``limbeck demo``: the main job on embedded data, in a few minutes."""

from __future__ import annotations

import os
from pathlib import Path

from limbeck.commands import _common as common
from limbeck.commands.compare import show

TEXT = """Distil a classifier on real data that comes with scikit-learn (digits): a teacher, the student alone, and the
student distilled by plain KD and by NKD, over a few seeds; one table, a report, and the student exported."""

METHODS = ("kd", "nkd")


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("demo", TEXT)
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=common.folder_or_file("--out"),
        default=Path("runs/demo"),
        help="folder (runs/demo)",
    )
    parser.add_argument("--seeds", metavar="N", type=common.whole(1, "--seeds"), default=3, help="how many seeds (3)")
    parser.add_argument("--force", action="store_true", help="repeat it")
    args, _ = parser.read(words)
    # networks this small gain nothing from threads, and beside other work threads that wait for each other take minutes
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from limbeck.compare import compare
    from limbeck.engine import interrupt
    from limbeck.export import export

    interrupt.install()
    print(
        "Digits of 8x8 pixels. The teacher learns from all training images, the student from 200 of them:\n"
        "distillation helps most where the teacher knows more than the student's own data can tell.\n"
    )
    found = compare(list(METHODS), [], seeds=args.seeds, out=args.out, engine="process", workers=1, force=args.force)
    show(found)
    run = Path(found["runs"]["nkd"][0])
    print(f"student: {export(run, 'safetensors', run / 'export' / 'safetensors')}")
    return 0
