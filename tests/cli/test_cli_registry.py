# SPDX-License-Identifier: Apache-2.0
"""``registry``: a folder of versions is looked at, compared and moved about without the code of the models.

Catches: a command that needs the structure, or files that it has no business with; a difference that is missed or
invented; a prune that does something else than it announced; damage that passes for a mistake of the user.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

pytest.importorskip("typer")

import torchcow
from torchcow.registry.files import OpenFiles
from torchcow_cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``net``: three versions, of which the second was production before the third; and one of ``[bold]``."""
    path = tmp_path / "registry"
    registry = torchcow.Registry(path)
    obj = {"model": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), "epoch": 1, "nan": torch.full((4,), torch.nan)}
    with torch.no_grad():
        obj["model"][0].bias.zero_()
        registry.add("net", obj, tags=["first"], metadata={"accuracy": 0.5, "labels": {"b", "a"}})
        obj["model"][0].bias.add_(3)
        obj["epoch"] = 2
        registry.add("net", obj, parent="net@1")
        obj["model"][0].bias.mul_(-0.0)
        obj["extra"] = torch.ones(3)
        del obj["nan"]
        obj["model"][1].weight.requires_grad_(False)
        registry.add("net", obj, parent="net@2")
    registry.promote("net@2", "production")
    registry.promote("net@3", "production")
    registry.add("[bold]", nn.Linear(2, 2))
    registry.close()

    def get(*_):
        raise AssertionError("the command asked for a model")

    monkeypatch.setattr(torchcow.Registry, "get", get)
    monkeypatch.setenv("TORCHCOW_REGISTRY", str(path))
    return path


def told(capsys, *arguments, code=0):
    assert main(["registry", *arguments, "--json"]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def refused(capsys, *arguments, code=2):
    assert main(["registry", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert captured.err.startswith("torchcow registry")
    return captured.err


def text(capsys, *arguments):
    assert main(["registry", *arguments]) == 0
    return capsys.readouterr().out


def test_ls_names_versions_and_tags(folder, capsys):
    bold, net = told(capsys, "ls")["names"]
    assert (bold["name"], bold["versions"], bold["tags"]) == ("[bold]", 1, {})
    assert (net["name"], net["versions"], net["tags"]) == ("net", 3, {"first": 1, "production": 3})
    assert net["latest"]["version"] == "net@3" and net["latest"]["parent"] == "net@2"
    lines = text(capsys, "ls")
    assert "[bold]" in lines and "first @1, production @3" in lines


def test_log_tells_versions_and_the_history_of_a_tag(folder, capsys):
    assert [one["version"] for one in told(capsys, "log")["versions"]] == ["[bold]@1", "net@3", "net@2", "net@1"]
    first = told(capsys, "log", "net")["versions"][-1]
    assert first["metadata"] == {"accuracy": 0.5, "labels": ["a", "b"]} and first["tags"] == ["first"]
    assert "accuracy: 0.5" in text(capsys, "log", "net")
    told(capsys, "rollback", "production")
    newest, older = told(capsys, "log", "net:production")["history"]
    assert (newest["version"], older["version"]) == ("net@3", "net@2")
    assert newest["rolled back"] and not older["rolled back"]


def test_show_describes_the_tensors_of_a_version(folder, capsys):
    shown = told(capsys, "show", "net@2")
    assert shown["lineage"] == ["net@2", "net@1"] and shown["values"]["epoch"] == 2
    assert shown["tensors"]["model.0.weight"]["shape"] == [8, 8]
    assert shown["tensors"]["model.1.bias"]["bytes"] == 8
    assert shown["bytes"] == 4 * (64 + 8 + 16 + 2 + 4)
    assert shown["bytes that its parent has not"] == 4 * 8
    assert "32 B that net@1 has not" in text(capsys, "show", "net@2")


def test_diff_reads_only_what_differs(folder, capsys, monkeypatch):
    read, original = [], OpenFiles.read
    monkeypatch.setattr(OpenFiles, "read", lambda self, path, line: read.append(path) or original(self, path, line))
    found = told(capsys, "diff", "net@1", "net@2")
    assert read == ["model.0.bias", "model.0.bias"]
    assert not found["identical"]
    bias = found["tensors"].pop("model.0.bias")
    assert bias["status"] == "different" and bias["bytes"] == 32
    assert bias["norm"] == pytest.approx(72**0.5) and bias["relative"] == "inf"
    assert {one["status"] for one in found["tensors"].values()} == {"equal"}, "a NaN equals itself"
    assert found["other parts"] == {"epoch": {"first": 1, "second": 2}}
    lines = text(capsys, "diff", "net@1", "net@2")
    assert "model.0.bias" in lines and "8.49" in lines and "1 became 2" in lines and "1 different, 4 equal" in lines


def test_diff_sees_the_sign_of_zero_flags_and_what_is_on_one_side_only(folder, capsys):
    found = told(capsys, "diff", "net@1", "net@3")
    assert found["tensors"]["model.0.bias"]["status"] == "different" and found["tensors"]["model.0.bias"]["norm"] == 0
    assert found["tensors"]["nan"]["status"] == "removed" and found["tensors"]["extra"]["status"] == "added"
    assert found["tensors"]["extra"]["norm"] == "nan"
    parts = found["other parts"]
    assert parts["model.1.weight"] == {
        "first": {"kind": "tensor", "grad": True},
        "second": {"kind": "tensor", "grad": False},
    }
    assert "nan" not in parts and "extra" not in parts, "they are told among the tensors"
    assert "grad: True became False" in text(capsys, "diff", "net@1", "net@3")
    assert told(capsys, "diff", "net:production", "net@3")["identical"]


def test_another_shape_or_value_is_told_in_words(folder, capsys):
    registry = torchcow.Registry(folder)
    for size in (3, 4):
        registry.add("grown", torch.ones(size))
    for value in ({"epoch": 1}, {"epoch": 2}, {}, {"a": 3}):
        registry.add("grown", value)
    registry.close()
    assert not told(capsys, "diff", "grown@3", "grown@4")["identical"], "tensors are not all"
    assert "{} became {'a': 3}" in text(capsys, "diff", "grown@5", "grown@6"), "a value is not taken for a node"
    assert told(capsys, "diff", "grown@3", "grown@4")["other parts"] != {}
    (found,) = told(capsys, "diff", "grown@1", "grown@2")["tensors"].values()
    assert found["change"] == "shape (3,) became (4,)" and found["norm"] == "nan"


def test_promote_and_rollback_move_tags(folder, capsys):
    assert told(capsys, "promote", "net:first", "production") == {
        "tag": "net:production",
        "before": "net@3",
        "now": "net@1",
    }
    assert told(capsys, "rollback", "net:production")["now"] == "net@3"
    assert text(capsys, "rollback", "production") == "net:production is at net@2; it was at net@3\n"
    assert text(capsys, "promote", "[bold]", "new") == "[bold]:new is at [bold]@1; it is new\n"
    assert "no earlier version" in refused(capsys, "rollback", "production")
    assert told(capsys, "ls")["names"][1]["tags"] == {"first": 1, "production": 2}


def test_prune_does_what_it_announced_and_only_when_it_is_told_to(folder, capsys):
    registry = torchcow.Registry(folder)
    for value in (1.0, 2.0, 3.0):
        registry.add("loose", torch.full((100,), value))
    registry.close()
    plan = told(capsys, "prune", "--name", "loose")
    assert not plan["done"] and plan["removed"] == ["loose@1", "loose@2"]
    assert plan["kept"]["loose@3"] == ["latest"] and "another name" in plan["kept"]["net@1"]
    assert told(capsys, "prune", "--name", "loose", "--keep", "2")["removed"] == ["loose@1"]
    assert len(told(capsys, "log", "loose")["versions"]) == 3, "nothing was removed"
    assert "would be removed: loose@1, loose@2 (--yes does it)" in text(capsys, "prune")
    done = told(capsys, "prune", "--name", "loose", "--yes")
    assert done["done"] and done["removed"] == plan["removed"] and done["kept"] == plan["kept"]
    assert done["bytes"] > 800 and done["complaints"] == []
    assert [one["version"] for one in told(capsys, "log", "loose")["versions"]] == ["loose@3"]
    assert "tag first; parent of net@2" in text(capsys, "prune")
    assert "removed: nothing; 0 B given back" in text(capsys, "prune", "--yes")


def test_squash_removes_parents_too(folder, capsys):
    registry = torchcow.Registry(folder)
    registry.untag("net:first")
    registry.close()
    assert told(capsys, "prune")["kept"]["net@1"] == ["parent of net@2"]
    assert told(capsys, "prune", "--squash")["removed"] == ["net@1"]
    assert told(capsys, "prune", "--squash", "--yes")["removed"] == ["net@1"]
    assert told(capsys, "show", "net@3")["lineage"] == ["net@3", "net@2"]


def test_metadata_commands_need_no_file_of_tensors(folder, capsys):
    shutil.rmtree(folder / "tensors")
    for arguments in (["ls"], ["log"], ["show", "net"], ["promote", "net@1", "production"], ["rollback", "production"]):
        told(capsys, *arguments)
    assert told(capsys, "diff", "net@1", "net@1")["identical"]
    complaint = refused(capsys, "diff", "net@1", "net@2", code=1)
    assert "is missing, with tensors of this version" in complaint and "restore it from a backup" in complaint


def test_damage_is_code_1(folder, capsys):
    for file in (folder / "tensors").iterdir():
        content = bytearray(file.read_bytes())
        content[-40:] = bytes(40)
        file.write_bytes(content)
    assert "cannot be read" in refused(capsys, "diff", "net@1", "net@2", code=1)
    database = folder / "registry.sqlite"
    database.write_bytes(database.read_bytes()[:100] + b"x" * 5000)
    assert "registry.sqlite" in refused(capsys, "ls", code=1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a COMMAND is missing"),
        (["fly"], "No such command 'fly'"),
        (["show"], "Missing argument"),
        (["show", "nothing"], "there is no 'nothing'; names: '[bold]', 'net'"),
        (["show", "net@9"], "there is no version net@9"),
        (["show", "net:candidate"], "'net' has no tag 'candidate'; its tags: first, production"),
        (["diff", "net", "a@b@c"], "expected 'name', 'name@3' or 'name:tag'"),
        (["promote", "net", "a:b"], "expected a tag of printable characters"),
        (["rollback", "candidate"], "no name has the tag 'candidate'"),
        (["prune", "--keep", "-1"], "expected a whole number of at least 0, got '-1'"),
        (["prune", "--name", "nothing"], "there is no 'nothing'"),
        (["ls", "--path", "/no/such/folder"], "/no/such/folder: there is no registry here"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, words, folder, capsys):
    assert words in refused(capsys, *arguments)


def test_the_folder_has_to_be_named_and_is_never_made(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TORCHCOW_REGISTRY", raising=False)
    assert "give --path FOLDER, or set TORCHCOW_REGISTRY" in refused(capsys, "ls")
    refused(capsys, "ls", "--path", str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    refused(capsys, "ls", "--path", str(tmp_path / "file"))


def test_an_empty_registry(tmp_path, capsys):
    torchcow.Registry(tmp_path / "r").close()
    assert text(capsys, "ls", "--path", str(tmp_path / "r")) == "the registry is empty\n"
    assert told(capsys, "prune", "--path", str(tmp_path / "r"))["removed"] == []
