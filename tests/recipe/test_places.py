"""Files and folders where a source's name belongs, and such as are not there: refused before anything is read."""

from __future__ import annotations

import pytest

from limbeck.errors import ConfigError
from limbeck.recipe.recipe import check, load_tree


def test_a_folder_or_file_in_a_source_s_place_is_told_with_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "rows.csv").write_text("a,label\n1,x\n")
    cases = {
        "photos": "'photos' is a folder, and no source; write task.data=folder:photos",
        "./photos": "write task.data=folder:./photos",
        "rows.csv": "'rows.csv' is a file, and no source; write task.data=csv:rows.csv",
        "rowz.csv": "there is no such file or folder",
        "digitz": "did you mean 'digits'",
    }
    for given, said in cases.items():
        with pytest.raises(ConfigError) as caught:
            check(load_tree("kd", [f"task.data={given}"]))
        assert said in caught.value.line(), given


def test_places_that_are_not_there_are_refused_where_nothing_is_read_yet(tmp_path, capsys):
    from limbeck import cli

    (tmp_path / "here").mkdir()
    gone = [f"task.data=folder:{tmp_path / 'gone'}", "teacher.checkpoint=gone.safetensors"]
    assert cli.main(["run", "kd", "--print-config", *gone]) == 2
    said = capsys.readouterr()
    assert "task.data.path: there is no such file or folder" in said.err and "teacher.checkpoint" in said.err
    assert said.out == ""
    assert cli.main(["run", "kd", "--print-config", f"task.data=folder:{tmp_path / 'here'}"]) == 0
