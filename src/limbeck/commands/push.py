"""``limbeck push``: a run's student, or an export, to the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from limbeck.commands import _common as common
from limbeck.engine.terminal import say

TEXT = """Send a run's student, or an export, to the Hugging Face hub, with its model card.

RUN is a run's folder, which is exported as --format says first, or the folder of an export. Log in with hf auth login, or
set HF_TOKEN; HF_ENDPOINT names another hub. Repositories are made private unless --public is given. Nothing else is sent."""


def _say(text: str) -> None:
    say(f"limbeck push: {text}", error=True)


def main(words: list[str]) -> int:
    """Run the command."""
    parser = common.Parser("push", TEXT)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or an export's")
    parser.add_argument("repo", metavar="REPO", help="OWNER/NAME on the hub; created if it does not exist")
    parser.add_argument("--format", metavar="NAME", default="", help="of a run: hub (default); of data sets parquet")
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        type=common.folder_or_file("--checkpoint"),
        help="of a run: last (default), best on validation, or a checkpoint's number",
    )
    parser.add_argument("--license", metavar="ID", default="", help="for the model card, such as apache-2.0")
    parser.add_argument("--public", action="store_true", help="make the repository public")
    parser.add_argument("--revision", metavar="BRANCH", default=None, help="a branch that exists (the main one)")
    parser.add_argument("--message", metavar="TEXT", default="", help="of the commit")
    parser.add_argument("--trust", action="store_true", help=common.TRUST)
    args, _ = parser.read(words)
    folder = common.folder_or_file("RUN")(args.run)
    from limbeck.engine import interrupt
    from limbeck.engine.progress import Progress
    from limbeck.export import export
    from limbeck.export.push import push
    from limbeck.recipe.trust import trusting
    from limbeck.run import read_result

    interrupt.install()
    data = False
    if (folder / "config.yaml").is_file():
        folder = common.run_folder(args.run)
        result: dict[str, Any] = {}
        if (folder / "result.json").is_file():
            result = read_result(folder / "result.json")
        data = result.get("artifact") in ("dataset", "table")
        form = args.format or ("parquet" if data else "hub")
        progress = Progress()
        try:
            with trusting(args.trust):
                folder = export(
                    folder,
                    form,
                    checkpoint=common.checkpoint_of(args.checkpoint),
                    say=common.between(progress, _say),
                    licence=args.license,
                    progress=progress,
                )
        finally:
            progress.close()
    else:
        for name, given in (("--format", args.format), ("--checkpoint", args.checkpoint), ("--license", args.license)):
            if given:
                from limbeck.errors import ConfigError

                raise ConfigError(name, "is for a run's folder, and this is an export", given=str(given))
        data = any(folder.glob("data.parquet")) or any(folder.glob("table.*"))
    say(push(folder, args.repo, not args.public, args.revision, args.message, data, _say))
    return 0
