"""Files of one cloud or mesh: OFF, PLY (as text, or binary), tables of numbers, arrays; points drawn from a surface."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from limbeck.errors import DataError

Array = np.ndarray[Any, Any]

CLOUDS = (".npy", ".npz", ".ply", ".off", ".xyz", ".txt", ".pts", ".csv")
"""Endings of files that hold a cloud or a mesh."""

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip


def read_cloud(name: str, content: bytes) -> tuple[Array, Array | None]:
    """The points [P, 3] of a file, and its triangles int64 [F, 3] where it holds a mesh; nothing in it is executed.

    Args:
        name: of the file; its ending says what it is.
        content: its bytes.

    Raises:
        DataError: it does not hold what its ending says.
    """
    ending = "." + name.rsplit(".", 1)[-1].lower()
    try:
        if ending == ".npy":
            return _rows(np.load(io.BytesIO(content), allow_pickle=False)), None
        if ending == ".npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                key = next((n for n in ("points", "x", "xyz", "pos") if n in file.files), None)
                if key is None:
                    raise DataError(name, "holds no array points", given=sorted(file.files))
                return _rows(file[key]), None
        if ending == ".off":
            return _off(content)
        if ending == ".ply":
            return _ply(content)
        return _table(content), None
    except DataError:
        raise
    except (ValueError, IndexError, KeyError, EOFError, OSError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())[:120]
        raise DataError(name, f"cannot be read: {problem}", expected=f"a {ending} file of points") from None


def _rows(x: Array) -> Array:
    if x.ndim != 2 or x.shape[1] < 3:
        raise ValueError(f"{list(x.shape)} are no rows of x, y, z")
    return x[:, :3]


def _table(content: bytes) -> Array:
    lines = [line.split(b"#")[0].replace(b",", b" ").split() for line in content.splitlines()]
    rows = [line for line in lines if len(line) >= 3]
    if rows and not all(_number(v) for v in rows[0][:3]):
        rows = rows[1:]  # a header
    if not rows:
        raise ValueError("no line holds three numbers")
    return np.array([[float(v) for v in row[:3]] for row in rows], dtype=np.float64)


def _number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _triangles(polygons: list[Array]) -> Array:
    fans = [np.stack([np.full(len(p) - 2, p[0]), p[1:-1], p[2:]], 1) for p in polygons if len(p) >= 3]
    return np.concatenate(fans).astype(np.int64) if fans else np.zeros((0, 3), np.int64)


def _off(content: bytes) -> tuple[Array, Array | None]:
    """Object File Format. Some files of ModelNet have the numbers right behind ``OFF``."""
    words = b"\n".join(line.split(b"#")[0] for line in content.splitlines()).split()
    if not words or words[0][:3].upper() != b"OFF":
        raise ValueError("it does not begin with OFF")
    words = ([words[0][3:]] if len(words[0]) > 3 else []) + words[1:]
    points, faces = int(words[0]), int(words[1])
    vertices = np.array([float(w) for w in words[3 : 3 + 3 * points]]).reshape(points, 3)
    at, polygons = 3 + 3 * points, []
    if len(words) - at == 4 * faces:  # triangles alone, without colours
        table = np.array(words[at:]).astype(np.int64).reshape(faces, 4)
        if (table[:, 0] == 3).all():
            return vertices, _inside(table[:, 1:], points)
    rest = [line.split(b"#")[0].split() for line in content.splitlines()]
    rest = [line for line in rest if line][-faces:] if faces else []  # a line each, colours behind
    for line in rest:
        polygons.append(np.array([int(w) for w in line[1 : 1 + int(line[0])]]))
    return vertices, _inside(_triangles(polygons), points)


def _inside(triangles: Array, points: int) -> Array:
    if len(triangles) and (triangles.min() < 0 or triangles.max() >= points):
        raise ValueError(f"its faces name points outside of 0..{points - 1}")
    return triangles


def _ply(content: bytes) -> tuple[Array, Array | None]:
    """Polygon File Format: points, and faces where there are any."""
    head, mark, body = content.partition(b"end_header")
    if not mark or not head.startswith(b"ply"):
        raise ValueError("it does not begin with ply and a header")
    body = body[body.index(b"\n") + 1 :]
    form, elements = "", list[tuple[str, int, list[list[str]]]]()
    for line in head.decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["format"]:
            form = words[1]
        elif words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            elements[-1][2].append(words[1:])
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"its format is {form or 'not said'}")
    read = _ply_text if form == "ascii" else _ply_binary
    found = read(body, elements, "<" if form.endswith("little_endian") else ">")
    vertices = found.get("vertex")
    if vertices is None or not {"x", "y", "z"} <= set(vertices):
        raise ValueError("its points have no x, y, z")
    points = np.stack([np.asarray(vertices[c], dtype=np.float64) for c in "xyz"], 1)
    faces = found.get("face", {})
    lists = next((faces[n] for n in ("vertex_indices", "vertex_index") if n in faces), None)
    return points, None if lists is None else _inside(_triangles([np.asarray(p) for p in lists]), len(points))


def _ply_text(body: bytes, elements: list[tuple[str, int, list[list[str]]]], order: str) -> dict[str, dict[str, Any]]:
    lines, at, found = body.splitlines(), 0, dict[str, dict[str, Any]]()
    for element, count, properties in elements:
        columns: dict[str, list[Any]] = {p[-1]: [] for p in properties}
        for line in lines[at : at + count]:
            words, k = line.split(), 0
            for p in properties:
                if p[0] == "list":
                    n = int(words[k])
                    columns[p[-1]].append([int(float(w)) for w in words[k + 1 : k + 1 + n]])
                    k += 1 + n
                else:
                    columns[p[-1]].append(float(words[k]))
                    k += 1
        if len(lines) < at + count:
            raise ValueError(f"it ends before its {count} rows of {element}")
        at += count
        found[element] = columns
    return found


def _ply_binary(body: bytes, elements: list[tuple[str, int, list[list[str]]]], order: str) -> dict[str, dict[str, Any]]:
    at, found = 0, dict[str, dict[str, Any]]()
    for element, count, properties in elements:
        if all(p[0] != "list" for p in properties):
            row = np.dtype([(p[-1], order + _TYPES[p[0]]) for p in properties])
            if len(body) < at + count * row.itemsize:
                raise ValueError(f"it ends before its {count} rows of {element}")
            table = np.frombuffer(body, row, count, at)
            at += count * row.itemsize
            found[element] = {name: table[name] for name in table.dtype.names or ()}
            continue
        columns: dict[str, list[Any]] = {p[-1]: [] for p in properties}
        for _ in range(count):
            for p in properties:
                number = 1
                if p[0] == "list":
                    size = np.dtype(order + _TYPES[p[1]])
                    number = int(np.frombuffer(body, size, 1, at)[0])
                    at += size.itemsize
                kind = np.dtype(order + _TYPES[p[2] if p[0] == "list" else p[0]])
                values = np.frombuffer(body, kind, number, at)
                at += number * kind.itemsize
                columns[p[-1]].append(values.astype(np.int64) if p[0] == "list" else values[0])
        found[element] = columns
    return found


def sample_surface(vertices: Array, triangles: Array, points: int, rng: np.random.Generator) -> Array:
    """Points [points, 3] drawn evenly from the surface of triangles: one by its area, a place within it.

    Args:
        vertices: [V, 3].
        triangles: ids of their corners, int64 [F, 3].
        points: how many.
        rng: what they are drawn by.

    Raises:
        DataError: the surface has no area.

    Example:
        >>> corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
        >>> found = sample_surface(corners, np.array([[0, 1, 2]]), 5, np.random.default_rng(0))
        >>> bool((found >= 0).all() and (found[:, :2].sum(1) <= 1).all() and (found[:, 2] == 0).all())
        True
    """
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    total = area.cumsum()
    if not total[-1] > 0:
        raise DataError("mesh", "its surface has no area", expected="triangles with three different corners")
    which = np.searchsorted(total, rng.random(points) * total[-1], side="right").clip(max=len(area) - 1)
    u, v = rng.random((2, points, 1))
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    found: Array = a[which] + u * (b - a)[which] + v * (c - a)[which]
    return found


__all__ = ["CLOUDS", "read_cloud", "sample_surface"]
