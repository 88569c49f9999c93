"""Bundles that a file manager has packed anew or unpacked."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from calling import call, verify
from sets import healthy
from synthetic import quick, simple_run

from bitnetctl.errors import RecordError
from bitnetctl.records.bundle import bundle_options, read_bundle

pytestmark = pytest.mark.usefixtures("wide_terminal")
APPLE_DOUBLE = b"\0\5\26\7\0\2\0\0Mac OS X"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of four given seeds, a fifth that was left out, and a name that tells nothing of another."""
    paths = healthy(tmp_path / "given", range(4))
    simple_run(tmp_path / "given", quick(seed=4), loss=5.5)
    path = tmp_path / "all.zip"
    call("verify", *paths, "--seeds", "4", "--bundle", path)
    return path


def packed(path: Path, into: Path, form: str) -> Path:
    """Pack the files of a bundle anew as a file manager does."""
    out = into / f"{form}.zip"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            content = source.read(name)
            match form:
                case "folder":
                    target.writestr(f"all/{name}", content)
                case "finder":
                    folder, _, file = name.rpartition("/")
                    target.writestr(f"all/{name}", content)
                    target.writestr(f"__MACOSX/all/{folder}/._{file}", APPLE_DOUBLE)
                    target.writestr(f"all/{folder}/.DS_Store", b"\0\0\0\1Bud1")
                case "backslashes":
                    target.writestr("all\\" + name.replace("/", "\\"), content)
                case "litter":
                    target.writestr(name, content)
                    target.writestr(f"{name.rpartition('/')[0]}/._{name.rpartition('/')[2]}", APPLE_DOUBLE)
                    target.writestr(f"{name.rpartition('/')[0]}/desktop.ini", b"[ViewState]")
    return out


def outcome(path: Path | str) -> tuple[int, object]:
    done = call("verify", path, "--json")
    tree = json.loads(done.out)
    return done.code, [(one["criteria"], one["verdict"], one["reasons"], one["planned"]) for one in tree["verdicts"]]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("form", ["folder", "finder", "backslashes", "litter"])
def test_a_bundle_packed_anew_gives_the_same_verdict(bundle: Path, tmp_path: Path, form: str) -> None:
    again = packed(bundle, tmp_path, form)
    assert outcome(again) == outcome(bundle)
    assert bundle_options(again) == bundle_options(bundle)
    assert call("analyze", again).code == 0


@pytest.mark.parametrize("place", [".", "runs"])
def test_an_unpacked_bundle_gives_the_same_verdict(bundle: Path, tmp_path: Path, place: str) -> None:
    with zipfile.ZipFile(bundle) as file:
        file.extractall(tmp_path / "unpacked")
    folder = tmp_path / "unpacked" / place
    (folder / ".DS_Store").touch()
    assert (tmp_path / "unpacked" / "left-out").is_dir()
    code, verdicts = outcome(folder)
    expected, of_bundle = outcome(bundle)
    assert code == expected
    assert isinstance(verdicts, list)
    assert isinstance(of_bundle, list)
    assert [one[:3] for one in verdicts] == [one[:3] for one in of_bundle]
    assert bundle_options(folder) == bundle_options(bundle)


def test_options_are_those_of_bundles_only(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as file:
        file.extractall(tmp_path / "unpacked")
    shutil.rmtree(tmp_path / "unpacked" / "criteria")
    # such as what `verify --json` wrote into the working directory
    assert bundle_options(tmp_path / "unpacked") == bundle_options(tmp_path / "unpacked" / "runs") == {}
    assert bundle_options(tmp_path) == {}


def test_two_bundles_in_one_zip_are_refused(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.zip"
    with zipfile.ZipFile(bundle) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            for top in ("a", "b"):
                target.writestr(f"{top}/{name}", source.read(name))
    with pytest.raises(RecordError, match="holds several bundles, in a and b"):
        read_bundle(out, tmp_path / "out")
    assert "holds several bundles" in verify(out).error


@pytest.mark.parametrize(
    "name", ["..\\runs\\x.csv", "a\\..\\runs\\x.csv", "a/../runs/x.csv", "a/b/../runs/x.csv", "C:\\runs\\x.csv"]
)
def test_unsafe_places_are_not_unpacked(tmp_path: Path, name: str) -> None:
    out = tmp_path / "odd.zip"
    with zipfile.ZipFile(out, "w") as target:
        target.writestr(name, "Step")
    with pytest.raises(RecordError, match="holds no CSV under runs/"):
        read_bundle(out, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_packed_with_its_whole_path_is_found(tmp_path: Path) -> None:
    out = tmp_path / "whole.zip"
    with zipfile.ZipFile(out, "w") as target:
        target.writestr("home/runs/set/runs/x.csv", "Step")
        target.writestr("home/runs/set/verdict.json", '{"options": {"strict": true}}')
    assert [csv.name for csv in read_bundle(out, tmp_path / "to")] == ["x.csv"]
    assert bundle_options(out) == {"strict": True}
    with zipfile.ZipFile(out, "a") as target:
        target.writestr("home/other/runs/x.csv", "Step")
    with pytest.raises(RecordError, match="holds several bundles, in home/runs/set and home/other"):
        read_bundle(out, tmp_path / "again")
