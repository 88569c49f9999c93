"""Bundles: their contents, and that hostile and damaged ones are harmless."""

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import Done, verify
from synthetic import CURED, STAGE_1, bare_run, csv_text, origin_run, two_stages

from bitnetctl.errors import ExitCode, RecordError
from bitnetctl.records import bundle
from bitnetctl.verdict import load_criteria

RUN = "h256-20000-baseline-s0-abcdef"
CSV = csv_text(two_stages(CURED, ProbePositions=8192))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITNETCTL_TRACEBACK", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which bundles are unpacked."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a zip of members in order, a name or a ZipInfo with its text."""

    def write(*members: tuple[str | zipfile.ZipInfo, str]) -> Path:
        path = tmp_path / "bundle.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, text in members:
                file.writestr(name, text, zipfile.ZIP_DEFLATED)
        return path

    return write


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refused(path: Path, fragment: str) -> None:
    """Check that a bundle ends in one line of error and leaves no file."""
    before = files(path.parent)
    done = verify(path)
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert done.err.startswith(f"error: {path}: ")
    assert fragment in done.err
    assert files(path.parent) == before


# contents


def test_a_bundle_holds_everything_a_verdict_rests_on(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    bare = bare_run(runs, CURED, seed=1)
    whole = origin_run(runs, [*CURED[:-1], 61], "finished")
    path = tmp_path / "out" / "all.zip"
    done = verify(runs, "--bundle", path, "--json")
    assert done.code == ExitCode.SUPPORTED
    with zipfile.ZipFile(path) as file:
        assert sorted(file.namelist()) == sorted(
            [
                f"runs/{bare.name}.csv",
                f"runs/{whole.name}.csv",
                f"runs/{whole.name}/run.json",
                "criteria/origin.json",
                "verdict.json",
            ]
        )
        assert file.read(f"runs/{whole.name}.csv") == whole.path.read_bytes()
        assert file.read(f"runs/{whole.name}/run.json") == (runs / whole.name / "run.json").read_bytes()
        assert json.loads(file.read("verdict.json")) == done.json
        criteria = json.loads(file.read("criteria/origin.json"))
    assert criteria["checks"] == [check.model_dump(mode="json") for check in load_criteria("origin").checks]
    assert list(path.parent.iterdir()) == [path]


def test_a_bundle_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv = bare_run(tmp_path, CURED).path
    path = tmp_path / "all.zip"
    path.write_bytes(b"the old one")

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    done = verify(csv, "--bundle", path)
    assert (done.code, done.out) == (ExitCode.USAGE, "")
    assert done.err == f"error: {path}: cannot write: No space left on device\n"
    assert path.read_bytes() == b"the old one"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["all.zip", csv.name]


def test_a_bundle_may_replace_the_one_it_was_read_from(make: Callable[..., Path], temporary: Path) -> None:
    path = make((f"runs/{RUN}.csv", CSV))
    first = verify(path, "--bundle", path, "--json")
    assert first.code == ExitCode.SUPPORTED
    assert verify(path, "--json") == Done(first.code, first.out, "")
    assert list(temporary.iterdir()) == []


def test_two_bundles_and_a_csv_are_judged_together(make: Callable[..., Path], tmp_path: Path) -> None:
    first = make((f"runs/{RUN}.csv", CSV)).rename(tmp_path / "first.ZIP")
    failed = csv_text(two_stages([*STAGE_1, 10, 8, 7, 6, 6], ProbePositions=8192))
    second = make((f"runs/{RUN}.csv", failed))
    csv = bare_run(tmp_path, [*CURED[:-1], 61], seed=1).path
    done = verify(first, csv, second, "--json")
    assert done.code == ExitCode.REFUTED
    assert sorted(run["final_unique"] for run in done.json["verdicts"][0]["runs"]) == [6, 60, 61]


def test_two_files_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for seed, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        bare_run(folder, [*CURED[:-1], 60 + seed], name="h256.csv")
    arguments = (tmp_path / "a", tmp_path / "b", "--steps", "20000")
    made = verify(*arguments, "--bundle", tmp_path / "all.zip", "--json")
    read = verify(tmp_path / "all.zip", "--steps", "20000", "--json")
    assert made.code == read.code == ExitCode.SUPPORTED
    for done in (made, read):
        assert [run["final_unique"] for run in done.json["verdicts"][0]["runs"]] == [60, 61]


@pytest.mark.parametrize("name", ["h256.CSV", "h256.txt"])
def test_a_csv_by_another_suffix_comes_back(tmp_path: Path, name: str) -> None:
    csv = bare_run(tmp_path, CURED, name=name).path
    made = verify(csv, "--steps", "20000", "--bundle", tmp_path / "all.zip")
    assert verify(tmp_path / "all.zip", "--steps", "20000").out == made.out


def test_a_csv_without_a_time_is_bundled(tmp_path: Path) -> None:
    csv = bare_run(tmp_path, CURED).path
    os.utime(csv, (0, 0))
    assert verify(csv, "--bundle", tmp_path / "all.zip").code == ExitCode.SUPPORTED
    assert verify(tmp_path / "all.zip").code == ExitCode.SUPPORTED


ODD_NAMES = {
    "a:b": "a_b",
    "CON": "_CON",
    "aux.x": "_aux.x",
    "=1+1": "=1+1",
    "x\x1b[31m": "x_[31m",
    "new\nline": "new_line",
    "...": "_",
    "a\\b": "a_b",
    "my results": "my results",
    "größe-64": "größe-64",
    "\udcff": "_",
    "x" * 249: "x" * 200,
    "..": "_",
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_bundled_as_plain_ones(tmp_path: Path, temporary: Path, name: str) -> None:
    (tmp_path / "runs").mkdir()
    try:
        csv = bare_run(tmp_path / "runs", CURED, name=f"{name}.csv").path
    except OSError:
        pytest.skip("this file system takes no such name")
    path = tmp_path / "all.zip"
    made = verify(csv, "--sizes", "256", "--bundle", path, "--report", tmp_path / "x.md", "--junit", tmp_path / "x.xml")
    assert made.code == ExitCode.INCONCLUSIVE, made.err
    with zipfile.ZipFile(path) as file:
        assert file.namelist()[0] == f"runs/{ODD_NAMES[name]}.csv"
    assert verify(path, "--sizes", "256").code == made.code


def test_names_that_differ_in_case_only_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("H256.csv", "h256.csv"):
        bare_run(tmp_path / "runs", CURED, name=name)
    if len(files(tmp_path / "runs")) == 1:
        pytest.skip("this file system takes them for one")
    verify(tmp_path / "runs", "--steps", "20000", "--bundle", tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as file:
        assert file.namelist()[:2] == ["runs/H256.csv", "runs/h256~2.csv"]


def test_a_bundle_is_not_written_through_a_link(tmp_path: Path) -> None:
    csv = bare_run(tmp_path, CURED).path
    precious = tmp_path / "precious"
    precious.write_text("precious", encoding="utf-8")
    for name in ("all.zip", ".all.zip.temporary"):
        (tmp_path / name).symlink_to(precious)
    assert verify(csv, "--bundle", tmp_path / "all.zip").code == ExitCode.SUPPORTED
    assert precious.read_text(encoding="utf-8") == "precious"
    assert zipfile.is_zipfile(tmp_path / "all.zip")
    assert not (tmp_path / "all.zip").is_symlink()


# hostile ones


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


HOSTILE: dict[str, str | zipfile.ZipInfo] = {
    "parent": "../x.csv",
    "parent below": "runs/../../x.csv",
    "parent twice": "runs/../x.csv",
    "parent of a manifest": "runs/../run.json",
    "absolute": "/x.csv",
    "absolute below": "//runs/x.csv",
    "backslash": "runs/..\\x.csv",
    "another folder": "other/x.csv",
    "too deep": "runs/a/b/x.csv",
    "link": link("runs/x.csv"),
    "not a csv": "runs/x.txt",
    "drive": "C:\\runs\\x.csv",
    "drive below": "runs/C:x.csv",
    "stream": "runs/x:y.csv",
    "device": "runs/CON.csv",
    "device as folder": "runs/nul/run.json",
    "device with a space": "runs/aux .csv",
    "end that is cut off": "runs/x./run.json",
    "control character": "runs/x\x1b[31m.csv",
    "text that runs backwards": "runs/\u202evsc.csv",
    "wildcard": "runs/*.csv",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_only_plain_names_are_unpacked(make: Callable[..., Path], temporary: Path, kind: str) -> None:
    name = HOSTILE[kind]
    refused(make((name, "/etc/passwd")), "holds no CSV under runs/")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", HOSTILE)
def test_ignored_entries_harm_no_other(make: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    path = make((HOSTILE[kind], "/etc/passwd"), (f"runs/{RUN}.csv", CSV))
    folder = tmp_path / "unpacked" / "here"
    before = files(tmp_path)
    (csv,) = bundle.read_bundle(path, folder)
    assert csv == folder / "runs" / f"{RUN}.csv"
    assert csv.read_text(encoding="utf-8") == CSV
    assert files(tmp_path) - before == {folder.parent, folder, csv.parent, csv}
    assert verify(path).code == ExitCode.SUPPORTED


def test_a_link_to_a_manifest_is_not_followed(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make((f"runs/{RUN}.csv", CSV), (link(f"runs/{RUN}/run.json"), "/etc/hostname"))
    bundle.read_bundle(path, tmp_path / "unpacked")
    assert not (tmp_path / "unpacked" / "runs" / RUN).exists()


def test_too_many_files(make: Callable[..., Path], temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(*((f"runs/{RUN[:-1]}{index}.csv", CSV) for index in range(3)))
    monkeypatch.setattr(bundle, "MAX_FILES", 2)
    refused(path, "larger than a bundle may be (2 files, 1 GiB)")
    assert list(temporary.iterdir()) == []
    monkeypatch.setattr(bundle, "MAX_FILES", 3)
    assert len(bundle.read_bundle(path, temporary)) == 3


def test_too_many_bytes(make: Callable[..., Path], temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make((f"runs/{RUN}.csv", CSV + " " * 100_000))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(bundle, "MAX_BYTES", len(CSV) + 99_999)
    refused(path, "larger than a bundle may be (10,000 files, ")
    assert list(temporary.iterdir()) == []
    monkeypatch.setattr(bundle, "MAX_BYTES", len(CSV) + 100_000)
    assert len(bundle.read_bundle(path, temporary)) == 1


def test_a_wrong_size_does_not_evade_the_limit(make: Callable[..., Path], temporary: Path) -> None:
    path = make((f"runs/{RUN}.csv", CSV + " " * 100_000))
    size = (len(CSV) + 100_000).to_bytes(4, "little")
    content = path.read_bytes()
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (10).to_bytes(4, "little")))
    refused(path, "not a bundle that can be read")
    assert list(temporary.iterdir()) == []


# damaged ones


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04", CSV.encode()])
def test_a_file_that_is_no_zip(tmp_path: Path, temporary: Path, content: bytes) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(content)
    refused(path, "not a bundle that can be read")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.99])
def test_a_zip_cut_short(make: Callable[..., Path], temporary: Path, fraction: float) -> None:
    path = make((f"runs/{RUN}.csv", CSV), (f"runs/{RUN[:-1]}0.csv", CSV))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    refused(path, "not a bundle that can be read")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("value", [0x00, 0xFF])
def test_a_zip_with_a_byte_changed(make: Callable[..., Path], temporary: Path, value: int) -> None:
    path = make((f"runs/{RUN}.csv", CSV))
    content = bytearray(path.read_bytes())
    # the first byte of the compressed text, after the header of 30 bytes and the name
    content[30 + len(f"runs/{RUN}.csv")] = value
    path.write_bytes(content)
    refused(path, "not a bundle that can be read")
    assert list(temporary.iterdir()) == []


def test_the_same_name_twice(make: Callable[..., Path], temporary: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = make((f"runs/{RUN}.csv", CSV), (f"runs/{RUN}.csv", CSV.replace("60", "2")))
    refused(path, f"holds runs/{RUN}.csv twice; unpack it and pack one of them")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("members", [[], [("verdict.json", "{}")], [(f"runs/{RUN}/run.json", "{}")]])
def test_no_csv(make: Callable[..., Path], temporary: Path, members: list[tuple[str, str]]) -> None:
    refused(make(*members), "holds no CSV under runs/")
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("members", "fragment"),
    [
        ([(f"runs/{RUN}.csv", CSV.replace("7.0", "six"))], "Loss is 'six', not a number"),
        ([(f"runs/{RUN}.csv", CSV), (f"runs/{RUN}/run.json", "{")], "damaged manifest"),
        ([(f"runs/{RUN}.csv/", "")], ""),
    ],
)
def test_a_bundle_of_damaged_files(
    make: Callable[..., Path], temporary: Path, members: list[tuple[str, str]], fragment: str
) -> None:
    done = verify(make(*members))
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert done.err.startswith("error: ")
    assert fragment in done.err
    assert list(temporary.iterdir()) == []


def test_a_missing_bundle_is_a_record_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="not a bundle"):
        bundle.read_bundle(tmp_path / "none.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
