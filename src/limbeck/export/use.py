"""``use.py`` beside every export: some ten lines that go from somebody's own file to the answer, without limbeck where
a library opens what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.storage.store import atomic_write


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """``student.json``: labels, preprocessing, and how what lies beside it is built."""
    atomic_write(folder / "student.json", json.dumps(about, indent=2).encode())


def write_use(folder: Path, text: str) -> None:
    """``use.py``."""
    atomic_write(folder / "use.py", text.encode())


# --------------------------------------------------------------------------------------------------------------- pieces
def _pictures(said: Mapping[str, Any]) -> list[str]:
    """Lines that make the PIL image ``image`` of the file ``name`` as the network was shown images."""
    high, wide = said["resize"]
    lines = [
        "image = ImageOps.exif_transpose(Image.open(name)).convert('RGBA')",
        "image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)"
        f".convert({said['mode']!r})  # what is transparent is white",
    ]
    bilinear = "Image.Resampling.BILINEAR"
    if said["resize_mode"] == "cover":
        lines.append(f"image = ImageOps.fit(image, ({wide}, {high}), {bilinear})  # resized, and the middle cut out")
    elif said["resize_mode"] == "stretch":
        lines.append(f"image = image.resize(({wide}, {high}), {bilinear})")
    else:
        lines.append(f"image = ImageOps.pad(image, ({wide}, {high}), {bilinear}, 'black', (0, 0))")
    if [high, wide] != list(said["input"][1:]):
        high, wide = said["input"][1:]
        lines.append(f"image = image.resize(({wide}, {high}), {bilinear})")
    return lines


def _pixels(said: Mapping[str, Any], io: Mapping[str, Any]) -> list[str]:
    """Lines that make the array ``x`` [1, C, H, W] of ``image``."""
    channels = said["input"][0]
    bytes_ = io["range"] == [0, 255]
    cast = "np.uint8" if bytes_ else "np.float32"
    made = f"np.asarray(image, {cast})"
    made = f"{made}[None, None]" if said["mode"] == "L" else f"{made}.transpose(2, 0, 1)[None]"
    lines = [f"x = {made}" + ("" if bytes_ else " / 255")]
    if said["mode"] == "L" and channels > 1:
        lines.append(f"x = x.repeat({channels}, 1)")
    if io["normalise"] == "outside":
        shape = "[None, :, None, None]"
        lines.append(
            f"x = (x - np.array({said['mean']}, np.float32){shape}) / np.array({said['std']}, np.float32){shape}"
        )
    return lines


def _answer(about: Mapping[str, Any], z: str = "z") -> list[str]:
    """Lines that print what the answer ``z`` [K] means; ``labels`` are the names."""
    target = about["task"].get("target", "label")
    if target == "number":
        told = "[round(float(v), 4) for v in z]"
        if about["task"].get("number_mean") and about["onnx"]["outputs"][0]["name"] != "numbers":
            mean, std = about["task"]["number_mean"], about["task"]["number_std"]
            return [f"z = z * np.array({std}) + np.array({mean})  # the data's units", f"print(name, {told})"]
        return [f"print(name, {told})"]
    if target == "labels":
        return [
            "p = 1 / (1 + np.exp(-z))",
            "print(name, [(labels[i], round(float(p[i]), 3)) for i in np.flatnonzero(p > 0.5)])",
        ]
    return ["p = np.exp(z - z.max())", "print(name, labels[z.argmax()], round(float(p.max() / p.sum()), 3))"]


def _script(doc: str, imports: list[str], head: list[str], loop: list[str], over: str = "sys.argv[1:]") -> str:
    body = [f"for name in {over}:", *(f"    {line}" for line in loop)]
    return "\n".join([f'"""{doc}"""', "", *imports, "", *head, *body, ""])


# ----------------------------------------------------------------------------------------------------------------- ONNX
def onnx_script(about: Mapping[str, Any]) -> str:
    """From files to answers through onnxruntime alone (and transformers' tokenizer for texts)."""
    said, io = about["preprocessing"], about["onnx"]
    form = about["task"].get("form", "tokens" if said["kind"] == "text" else "")
    imports = ["import json, pathlib, sys"]
    session = f"session = onnxruntime.InferenceSession(here / {io['file']!r})"
    head = ["here = pathlib.Path(__file__).parent"]
    if about["labels"]:
        head.append("labels = json.loads((here / 'student.json').read_text())['labels']")
    head.append(session)
    if said["kind"] == "image":
        imports += ["import numpy as np, onnxruntime", "from PIL import Image, ImageOps"]
        run = "z = session.run(None, {'x': x})[0][0]"
        loop = [*_pictures(said), *_pixels(said, io), run]
        if form == "classes":
            return _script("python use.py IMAGE...: the class of each image.", imports, head, [*loop, *_answer(about)])
        if form == "map":
            loop += [
                "classes = z.argmax(-1).astype(np.uint8)  # a class for every place [h, w]",
                "Image.fromarray(classes).save(name + '.classes.png')",
                "print(name, {labels[i]: int((classes == i).sum()) for i in np.unique(classes)})",
            ]
            return _script("python use.py IMAGE...: a map of classes beside each image.", imports, head, loop)
        loop.append("print(name, z.shape, 'from', float(z.min()), 'to', float(z.max()))")
        return _script("python use.py IMAGE...: the map of each image.", imports, head, loop)
    if said["kind"] == "row":
        return _rows_script(about, imports, head)
    if said["kind"] == "text":
        return _text_script(about, imports, head)
    return _call_script(about, imports, head)


def _rows_script(about: Mapping[str, Any], imports: list[str], head: list[str]) -> str:
    said, io = about["preprocessing"], about["onnx"]
    imports = ["import csv, json, pathlib, sys", "import numpy as np, onnxruntime"]
    loop = []
    names = said.get("columns")
    if names:
        head = [*head, f"columns = {json.dumps(names)}  # 'colour=red' is 1 where colour is red"]
        loop += [
            "rows = list(csv.DictReader(pathlib.Path(name).read_text().splitlines()))",
            "cell = lambda row, c: float(row[c]) if c in row else float(row[c.split('=')[0]] == c.split('=', 1)[1])",
            "x = np.array([[cell(row, c) for c in columns] for row in rows], np.float32)",
        ]
    else:
        loop.append("x = np.loadtxt(name, np.float32, delimiter=',', ndmin=2)  # numbers alone, one item a line")
    if io["normalise"] == "outside":
        loop.append(f"x = (x - np.array({said['mean']}, np.float32)) / np.array({said['std']}, np.float32)")
    loop.append("for z in session.run(None, {'x': x})[0]:")
    loop += [f"    {line}" for line in _answer(about)]
    return _script("python use.py TABLE.csv: the answer for each of its rows.", imports, head, loop)


def _text_script(about: Mapping[str, Any], imports: list[str], head: list[str]) -> str:
    words, io = about["preprocessing"]["tokenizer"], about["onnx"]
    names = [i["name"] for i in io["inputs"]]
    imports = [*imports, "import numpy as np, onnxruntime", "from transformers import AutoTokenizer"]
    head = [*head, f"tokenizer = AutoTokenizer.from_pretrained(here / {words['folder']!r})"]
    feed = [
        f"given = tokenizer(name, truncation=True, max_length={words['max_length']}, return_tensors='np')",
        f"z = session.run(None, {{n: given[n].astype(np.int64) for n in {names}}})[0][0]",
    ]
    if about["task"].get("form") == "classes":
        return _script("python use.py 'A TEXT'...: the class of each text.", imports, head, [*feed, *_answer(about)])
    if about["preprocessing"].get("before") is None:  # words that are hidden are told
        loop = [
            *feed,
            "for place in np.flatnonzero(given['input_ids'][0] == tokenizer.mask_token_id):",
            "    print(name, tokenizer.convert_ids_to_tokens(np.argsort(-z[place])[:5].tolist()))",
        ]
        doc = "python use.py 'A TEXT WITH <mask>'...: the likeliest words at each mask."
        return _script(doc, imports, head, loop)
    loop = [
        f"ids = {about['preprocessing']['before']} + tokenizer(name, add_special_tokens=False)['input_ids']",
        f"while len(ids) < {words['max_length']} and ids[-1] != tokenizer.eos_token_id:",
        "    x = np.array([ids], np.int64)",
        "    z = session.run(None, {'input_ids': x, 'attention_mask': np.ones_like(x)})[0]",
        "    ids.append(int(z[0, -1].argmax()))  # the likeliest next token",
        "print(tokenizer.decode(ids, skip_special_tokens=True))",
    ]
    return _script("python use.py 'A BEGINNING'...: how each text goes on.", imports, head, loop)


def _call_script(about: Mapping[str, Any], imports: list[str], head: list[str]) -> str:
    """A denoiser: from noise to images, by the deterministic sampler (DDIM)."""
    sampler = about["onnx"].get("sampler")
    imports = ["import json, pathlib, sys", "import numpy as np, onnxruntime"]
    if sampler is None:
        shapes = {i["name"]: i["shape"][1:] for i in about["onnx"]["inputs"]}
        return _script(
            "python use.py N...: one call with N items of noise.",
            imports,
            head,
            [
                f"given = {{n: np.random.randn(int(name), *s).astype(np.float32) for n, s in {shapes}.items()}}",
                "print(session.run(None, given)[0].shape)",
            ],
        )
    kind, shape = sampler["mean_type"], sampler["shape"]
    meaning = {
        "v": "x, e = a * z - s * out, s * z + a * out",
        "eps": "x, e = (z - s * out) / a, out",
        "x": "x, e = out, (z - a * out) / s",
        "both": "x, e = np.split(out, 2, 1); x = s * s * x + a * (z - s * e); e = (z - a * x) / s",
    }[kind]
    imports.append("from PIL import Image")
    given = {"z": "z", "logsnr": "np.full(1, level, np.float32)", "y": "y", "w": "np.zeros(1, np.float32)"}
    names = [i["name"] for i in about["onnx"]["inputs"]]
    fed = ", ".join(f"{n!r}: {given[n]}" for n in names)
    flat = "[0]" if shape[0] == 1 else ".transpose(1, 2, 0)[..., :3]"
    head = [*head, f"levels = {sampler['logsnr']}  # log-SNR of each step"]
    loop = [
        "y = np.array([labels.index(name)])",
        f"z = np.random.randn(1, *{shape}).astype(np.float32)",
        "for i, level in enumerate(levels):",
        f"    out = session.run(None, {{{fed}}})[0]",
        "    a, s = (1 / (1 + np.exp(-np.array([level, -level])))) ** 0.5",
        f"    {meaning}",
        "    if i + 1 < len(levels):",
        "        a, s = (1 / (1 + np.exp(-np.array([levels[i + 1], -levels[i + 1]])))) ** 0.5",
        "        z = (a * x + s * e).astype(np.float32)",
        f"image = ((x[0] + 1) * 127.5).round().clip(0, 255).astype(np.uint8){flat}",
        "Image.fromarray(image).save(f'{name}.png')",
        "print(name, f'{name}.png')",
    ]
    return _script("python use.py CLASS...: a new image of each class.", imports, head, loop)


# ------------------------------------------------------------------------------------------------------------- libraries
def timm_script(about: Mapping[str, Any]) -> str:
    """timm's own loading and transform."""
    task = about["task"]
    head = [
        "here = pathlib.Path(__file__).parent.resolve()",
        "model = timm.create_model(f'local-dir:{here}', pretrained=True).eval()",
        "config = timm.data.resolve_model_data_config(model)",
        "transform, mode = timm.data.create_transform(**config), 'L' if config['input_size'][0] == 1 else 'RGB'",
    ]
    if about["labels"]:
        head.append(f"labels = {json.dumps(about['labels'])}")
    loop = [
        "with torch.no_grad():",
        "    z = model(transform(Image.open(name).convert(mode))[None])[0]",
        *(_torch_answer(task) if about["labels"] else ["print(name, z.shape)"]),
    ]
    what = "the class of each image" if about["labels"] else "the feature of each image"
    imports = ["import pathlib, sys", "import timm, timm.data, torch", "from PIL import Image"]
    return _script(f"python use.py IMAGE...: {what}, by timm alone.", imports, head, loop)


def _torch_answer(task: Mapping[str, Any]) -> list[str]:
    """Lines that print what the answer ``z`` [K], a tensor, means; ``labels`` are the names."""
    target = task.get("target", "label")
    if target == "number":
        units = f"(z * torch.tensor({task['number_std']}) + torch.tensor({task['number_mean']})).tolist()"
        return [f"print(name, dict(zip(labels, {units})))"]
    if target == "labels":
        return ["print(name, [n for n, v in zip(labels, z.sigmoid().tolist()) if v > 0.5])"]
    return ["p = z.softmax(-1)", "print(name, labels[p.argmax()], round(p.max().item(), 3))"]


PIPELINES = {
    "image-classification": ("IMAGE...", "the class of each image"),
    "image-segmentation": ("IMAGE...", "where each class is in each image"),
    "text-classification": ("'A TEXT'...", "the class of each text"),
    "fill-mask": ("'A TEXT WITH <mask>'...", "the likeliest words at each mask"),
    "text-generation": ("'A BEGINNING'...", "how each text goes on"),
}
"""transformers' pipelines that open exports: what is typed, and what comes."""


def pipeline_script(pipeline: str, folder: str, about: Mapping[str, Any]) -> str:
    """transformers' own pipeline."""
    given, gives = PIPELINES[pipeline]
    more = ", truncation=True" if pipeline == "text-classification" else ""
    head = [f"run = pipeline({pipeline!r}, str(pathlib.Path(__file__).parent / {folder!r}))"]
    task = about.get("task") or {}
    loop = [f"print(name, run(name{more}))"]
    if task.get("target") == "labels":
        loop = [f"print(name, [f for f in run(name, top_k=None{more}) if f['score'] > 0.5])"]
    if task.get("target") == "number":
        units = dict(zip(about["labels"], zip(task["number_mean"], task["number_std"], strict=True), strict=True))
        head.append(f"units = {json.dumps(units)}  # mean and deviation of each number")
        loop = [
            f"found = run(name, top_k=None, function_to_apply='none'{more})",
            "print(name, {f['label']: f['score'] * units[f['label']][1] + units[f['label']][0] for f in found})",
        ]
    imports = ["import pathlib, sys", "from transformers import pipeline"]
    return _script(f"python use.py {given}: {gives}, by transformers alone.", imports, head, loop)


def torchvision_script(about: Mapping[str, Any], name: str, options: Mapping[str, Any], outputs: int) -> str:
    """torchvision's own network, its weights read by safetensors."""
    said = about["preprocessing"]
    arguments = "".join(f", {k}={v!r}" for k, v in {**options, "num_classes": outputs}.items())
    shape = "[:, None, None]"
    return _script(
        "python use.py IMAGE...: the class of each image, by torchvision alone.",
        [
            "import json, pathlib, sys",
            "import torch, torchvision",
            "from PIL import Image, ImageOps",
            "from safetensors.torch import load_file",
        ],
        [
            "here = pathlib.Path(__file__).parent",
            "labels = json.loads((here / 'student.json').read_text())['labels']",
            f"model = torchvision.models.get_model({name!r}, weights=None{arguments}).eval()",
            "model.load_state_dict(load_file(here / 'student.safetensors'))",
            f"mean, std = torch.tensor({said['mean']}){shape}, torch.tensor({said['std']}){shape}",
        ],
        [
            *_pictures(said),
            "x = torchvision.transforms.functional.to_tensor(image)",
            *([f"x = x.expand({said['input'][0]}, -1, -1)"] if said["mode"] == "L" and said["input"][0] > 1 else []),
            "with torch.no_grad():",
            "    z = model(((x - mean) / std)[None])[0]",
            *_torch_answer(about["task"]),
        ],
    )


def tensors_script(file: str) -> str:
    """Tensors by name, for what is no network."""
    return "\n".join(
        [
            f'"""python use.py: the tensors of {file}."""',
            "",
            "import pathlib",
            "from safetensors.torch import load_file",
            "",
            f"for name, tensor in load_file(pathlib.Path(__file__).parent / {file!r}).items():",
            "    print(name, tuple(tensor.shape), tensor.dtype)",
            "",
        ]
    )


IMAGES = '''"""python use.py: the images with their classes, as torchvision's ImageFolder reads them."""

import pathlib, tempfile
from torchvision.datasets import ImageFolder

here = pathlib.Path(__file__).parent
data = ImageFolder(here)
print(len(data), "images of", len(data.classes), "classes:", data.classes)
image, label = data[0]
print("the first:", image.size, data.classes[label])
'''

PARQUET = '''"""python use.py: the rows of the table, as pyarrow reads them."""

import pathlib
import pyarrow.parquet

table = pyarrow.parquet.read_table(next(pathlib.Path(__file__).parent.glob("*.parquet")))
print(table.num_rows, "rows:", table.column_names)
'''

CSV = '''"""python use.py: the rows of the table."""

import csv, pathlib

with next(pathlib.Path(__file__).parent.glob("*.csv")).open(newline="") as file:
    rows = list(csv.DictReader(file))
print(len(rows), "rows:", list(rows[0]))
'''

SAMPLER = '''"""python use.py CLASS...: a new image of each class."""

import pathlib, sys
import torch
from PIL import Image
from limbeck.tasks.sampler import SamplerArtifact

sampler = SamplerArtifact.load(pathlib.Path(__file__).parent)
for name in sys.argv[1:]:
    image = sampler.sample(1, labels=[sampler.labels.index(name)], w=max(0.0, sampler.w_range[0]))[0]
    pixels = (image * 255).round().to(torch.uint8).movedim(0, -1).squeeze(-1).numpy()
    Image.fromarray(pixels).save(f"{name}.png")
    print(name, f"{name}.png")
'''

DIFFUSERS = '''"""python use.py N: N new images, by diffusers alone."""

import pathlib, sys
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained(pathlib.Path(__file__).parent)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(batch_size=int(sys.argv[1]), num_inference_steps=STEPS).images
for i, image in enumerate(images):
    image.save(f"{i}.png")
    print(f"{i}.png")
'''

PROMPTED = '''"""python use.py 'A PROMPT'...: an image of each, by diffusers, with text encoder and autoencoder of PIPELINE."""

import pathlib, sys
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

here = pathlib.Path(__file__).parent / "student"
unet, scheduler = UNet2DConditionModel.from_pretrained(here), DDIMScheduler.from_pretrained(here / "scheduler")
pipeline = StableDiffusionPipeline.from_pretrained("PIPELINE", unet=unet, scheduler=scheduler)
for i, name in enumerate(sys.argv[1:]):
    pipeline(name, num_inference_steps=STEPS, guidance_scale=0).images[0].save(f"{i}.png")
    print(name, f"{i}.png")
'''

FEATURES = '''"""python use.py 'A TEXT'...: the feature of each text (the mean over its tokens), by transformers alone."""

import pathlib, sys
import torch
from transformers import AutoModel, AutoTokenizer

here = pathlib.Path(__file__).parent / "FOLDER"
tokenizer, model = AutoTokenizer.from_pretrained(here), AutoModel.from_pretrained(here).eval()
for name in sys.argv[1:]:
    with torch.no_grad():
        print(name, model(**tokenizer(name, truncation=True, return_tensors="pt"))[0].mean(1)[0].tolist()[:5], "...")
'''

LOADED = '''"""python use.py FILE...: the answer for each file."""

import pathlib, sys
import limbeck

for answer in limbeck.load(pathlib.Path(__file__).parent).predict(sys.argv[1:]):
    print(answer)
'''

__all__ = [
    "CSV",
    "DIFFUSERS",
    "FEATURES",
    "IMAGES",
    "LOADED",
    "PARQUET",
    "PIPELINES",
    "PROMPTED",
    "SAMPLER",
    "onnx_script",
    "pipeline_script",
    "tensors_script",
    "timm_script",
    "torchvision_script",
    "write_about",
    "write_use",
]
