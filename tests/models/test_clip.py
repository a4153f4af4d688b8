"""A CLIP's folder: its image tower as a teacher, its text tower as what class names mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.boxes import ObjectsOnPhotos
from limbeck.data.vocabulary import read_vocabulary
from limbeck.errors import ConfigError, DataError, LimbeckError
from limbeck.models.clip import Clip
from limbeck.tasks.boxes import Boxes

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two tiny towers, and a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    root: Path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": 20, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=sizes | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(root)
    words = ["[PAD]", "[BOS]", "[EOS]", "a", "photo", "of", ".", *"0123456789"]
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[PAD]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", eos_token="[EOS]").save_pretrained(
        root
    )
    return root


def task(**changes: Any) -> Boxes:
    return Boxes(data=ObjectsOnPhotos(items=12, test_items=4, side=32), crop=16, **changes)


def test_both_towers_of_one_folder(folder: Path) -> None:
    made = task(text=str(folder))
    made.load(0)
    assert made.vocabulary.shape == (10, 8)
    built = Clip(str(folder)).build(made.part("crops"))
    found = made.part("crops").evaluate(built, made.part("crops").test)
    assert 0 <= found["accuracy"] <= 1 and built.contract.size == (16, 16)
    theirs = transformers.CLIPModel.from_pretrained(folder).vision_model
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            built.module.vision_model(pixel_values=x).pooler_output, theirs(pixel_values=x).pooler_output
        )


def test_synonyms_are_read_by_the_text_tower(folder: Path) -> None:
    plain, more = (task(text=str(folder), **given) for given in ({}, {"synonyms": {"3": ["5"]}}))
    for made in (plain, more):
        made.load(0)
    mean = plain.vocabulary[3] + plain.vocabulary[5]
    torch.testing.assert_close(more.vocabulary[3], mean / mean.norm())
    assert torch.equal(more.vocabulary[5], plain.vocabulary[5])
    with pytest.raises(ConfigError, match="drawn directions have no synonyms"):
        task(synonyms={"3": ["5"]}).load(0)


def test_a_tower_of_another_width_and_other_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match="not as wide"):
        Clip(str(folder)).build(task(text_dim=12).part("crops"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        Clip(str(tmp_path)).build(task().part("crops"))
    with pytest.raises(DataError, match="no folder of a CLIP"):
        read_vocabulary(str(tmp_path), ["0"], None, ["a photo of a {}."])
