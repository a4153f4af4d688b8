"""Random recipes over absurd sizes, special files and hostile folders: ``python -m tests.fuzz SEED COUNT FOLDER``.

Each is read, built, prepared and rehearsed as a run would be, in one process whose memory is bounded and under a clock. It
must be refused in one line or be ready to run. What is neither is printed, one JSON a line.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

LIMIT = 8 << 30  # bytes of address space
SECONDS = 300  # by the clock: something waits
WORK = 30.0  # of the processor: something works too long

NUMBERS = [
    *("0", "1", "2", "3", "7", "-1", "64", "1000"),
    *("99999999999", "10000000000", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808"),
    *("1" + "0" * 30, "1e10", "1e-300", "1e308", "0.5", "-0.0", ".inf", ".nan", "1000000", "65536"),
]

SIZES = [
    *("train.steps", "train.batch_size", "train.lr", "train.warmup", "train.clip", "train.weight_decay", "train.floor"),
    *("teach.steps", "teach.batch_size", "engine.accumulate", "engine.workers", "engine.save_every", "engine.keep"),
    *("engine.log_every", "engine.eval_every", "engine.save_minutes", "engine.devices", "seed", "teacher_seed"),
    *("task.size", "task.valid", "task.student_items", "task.eval_batch", "train.milestones", "train.power"),
    *("student.hidden", "teacher.hidden", "student.mean", "student.std", "method.temperature", "method.alpha"),
    *("task.data.memory_mb", "task.data.limit", "train.momentum", "stages.distil.steps", "stages.distil.epochs"),
    *("evaluator.items", "stages.distil.batch_size", "stages.distil.student.lr"),
]

PLACES = [
    *("task.data=folder:{}", "task.data=csv:{}", "task.data=jsonl:{}", "task.data=parquet:{}", "task.data=npz:{}"),
    *("teacher.checkpoint={}", "student.checkpoint={}", "student=run:{}", "teacher=run:{}", "teacher=cached:{}"),
    *("student.labels={}", "teacher.labels={}", "task.data={}", "teacher=import:{}", "teacher=timm:{}"),
]


def world(root: Path) -> list[str]:
    """Files and folders that nobody should have to read, made in ``root``. Returns their paths."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "empty").mkdir()
    (root / "file").write_bytes(b"")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as s:
        short = os.path.relpath(root / "socket")
        if len(short) < 100:
            s.bind(short)
    (root / "zero").symlink_to("/dev/zero")
    (root / "broken").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    inner = root / "classes"
    for name in ("a", "b\x1b[31m", "c d", "é", "e\u0301", ".hidden"):
        (inner / name).mkdir(parents=True)
        (inner / name / "x.png").write_bytes(png(5, 5))
    os.mkfifo(inner / "a" / "pipe.png")
    (inner / "a" / "self").symlink_to(inner)
    (inner / "c d" / "huge.png").write_bytes(png(100_000, 100_000))
    (inner / "c d" / "cut.png").write_bytes(png(9, 9)[:40])
    pipes = root / "pipes"
    for name in ("a", "b"):
        (pipes / name).mkdir(parents=True)
        os.mkfifo(pipes / name / "x.png")
    (root / "sparse.safetensors").touch()
    os.truncate(root / "sparse.safetensors", 1 << 40)
    (root / "head.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}}).encode()
    (root / "shape.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (root / "evil.pt").write_bytes(b"\x80\x02cposix\nsystem\nq\x00X\x08\x00\x00\x00touch RANq\x01\x85q\x02Rq\x03.")
    (root / "random.pt").write_bytes(random.Random(0).randbytes(3000))
    (root / "deep.json").write_text("[" * 100_000)
    (root / "deep.jsonl").write_text('{"x": ' * 2000 + "\n")
    (root / "wide.csv").write_text(",".join(f"c{i}" for i in range(20_000)) + "\n" + "1," * 19_999 + "1\n")
    (root / "long.csv").write_text("x,y\n" + "9" * 3_000_000 + ",1\n")
    (root / "nul.csv").write_bytes(b"x,y\n\0\0\0,1\n1,\xff\xfe\n")
    (root / "utf16.csv").write_bytes("x,y\n1,a\n2,b\n".encode("utf-16"))
    (root / "control.csv").write_text("x\x1b]0;t\x07,y\n1,a\x1b[2J\n2,b\r3\n")
    (root / "one.csv").write_text("x,y\n1,a\n")
    (root / "good.csv").write_text("x,z,y\n" + "".join(f"{i},{i % 7},{'ab'[i % 2]}\n" for i in range(60)))
    (root / "words.jsonl").write_text("".join(json.dumps({"text": f"word {i}", "y": i % 2}) + "\n" for i in range(40)))
    (root / "claims.npz").write_bytes(npz((1 << 40, 3)))
    (root / "objects.npz").write_bytes(npz((2,), "|O"))
    (root / "not.parquet").write_bytes(b"PAR1" + b"\xff" * 200 + b"PAR1")
    run = root / "run"
    run.mkdir()
    (run / "config.yaml").write_text("task: {use: 'import:os:system'}\nmethod: kd\n")
    (run / "student.json").write_text(
        json.dumps({"model": {"use": "import:os:system", "args": ["touch RAN"]}, "labels": None})
    )
    (run / "student.safetensors").symlink_to(root / "pipe")
    piped = root / "piped"
    piped.mkdir()
    for name in ("config.yaml", "student.json", "result.json", "about", "manifest.json"):
        os.mkfifo(piped / name)
    locked = root / "locked"
    locked.mkdir()
    (locked / "x.png").write_bytes(b"")
    locked.chmod(0)
    at = root / "nested"
    for _ in range(60):
        at = at / "d"
    at.mkdir(parents=True)
    found = [str(p) for p in sorted(root.iterdir())]
    return [
        *found,
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "/proc/self",
        "/",
        "~",
        "",
        "\x1b[31m",
        "a" * 5000,
        "//",
        ".",
    ]


def png(width: int, height: int) -> bytes:
    """A grey image of that size, or one that only says so where it is large."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    rows = b"".join(b"\0" + bytes(width) for _ in range(height if height < 1000 else 1))
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def npz(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """Arrays that claim a shape, or hold objects."""
    import io
    import zipfile

    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    head = head + " " * (63 - (len(head) + 10) % 64) + "\n"
    array = b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head.encode() + b"\x80\x04N."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in ("x", "y", "x_test", "y_test"):
            file.writestr(f"{name}.npy", array)
    return out.getvalue()


def words(rng: random.Random, places: list[str]) -> tuple[str, list[str]]:
    """A recipe's name and overrides, of which few are sensible."""
    name = rng.choice(["kd", "kd", "kd", "nkd", "uskd", "bd-kd", "taid", "mtt", "guided-diffusion"])
    found = []
    for _ in range(rng.choice([0, 1, 1, 2])):
        number = rng.choice(NUMBERS)
        found.append(f"{rng.choice(SIZES)}={rng.choice([number, number, number, f'[{number}]', f'[{number}, 3]'])}")
    for _ in range(rng.choice([0, 1, 1, 2])):
        found.append(rng.choice(PLACES).format(rng.choice(places)))
    rng.shuffle(found)
    return name, found


class TooLong(BaseException):
    """The clock ran out."""


def _late(*_: Any) -> None:
    raise TooLong


def main(seed: int, count: int, folder: Path) -> int:
    """Try so many; how many were neither refused in a line nor ready to run."""
    os.chdir(folder)
    os.environ["LIMBECK_WORKSPACE"] = str(folder / "workspace")
    from limbeck.engine.engine import Engine
    from limbeck.errors import LimbeckError
    from limbeck.recipe.recipe import build, check, load_tree
    from limbeck.run import prepare

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    signal.signal(signal.SIGALRM, _late)
    places, rng, bad, ready = world(folder / "world"), random.Random(seed), 0, 0
    for number in range(count):
        name, given = words(rng, places)
        given = ["engine.device=cpu", "loggers=[]", *given]
        began, fault = time.process_time(), ""
        signal.alarm(SECONDS)
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
        try:
            recipe = build(check(load_tree(name, given, tiny=True)))
            prepare(recipe, None, say=lambda text: None, untaught=True)
            Engine(recipe.engine, recipe.seed).rehearse(recipe.method)
            ready += 1
        except LimbeckError as error:
            line = error.line()
            if "\n" in line or "\x1b" in line or len(line) > 3000:
                fault = f"not one plain line: {line[:400]!r}"
            if "defect" in line:
                fault = line[:400]
        except TooLong:
            fault = f"took more than {SECONDS} seconds"
        except BaseException as error:
            import traceback

            fault = f"{type(error).__name__}: {error!s:.300} at {traceback.extract_tb(error.__traceback__)[-1]}"
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        if (folder / "RAN").exists():
            fault = "ran code that was sent"
            (folder / "RAN").unlink()
        took = time.process_time() - began
        if took > WORK:
            fault = fault or f"took {took:.0f} seconds of the processor"
        if fault:
            bad += 1
            print(
                json.dumps({"number": number, "recipe": name, "given": [g[:300] for g in given[2:]], "fault": fault}),
                flush=True,
            )
    (folder / "world" / "locked").chmod(0o700)
    shutil.rmtree(folder / "world")
    print(json.dumps({"tried": count, "ready": ready, "bad": bad}))
    return bad


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
