"""One CSV that cannot be read stops no other: it is named, it counts as a run, and the exit code says so."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from calling import call
from rows import FIVE, csv_file
from sets import healthy
from synthetic import CURED, bare_run, csv_text, quick, simple_run, two_stages

from bitnetctl.errors import ExitCode, RecordError
from bitnetctl.records import load_files, load_set
from bitnetctl.records.inventory import take_inventory

pytestmark = pytest.mark.usefixtures("wide_terminal")
SOUND = "h256-20000-baseline-s{}-abcdef.csv"


def sound_seeds(folder: Path, seeds: Sequence[int] = range(5)) -> list[Path]:
    """Write seeds that the founding document's criteria support, by their names alone."""
    rows = [
        two_stages(CURED, ProbePositions=8192, Loss=[7.1234567 + seed / 7 + i / 97 for i in range(11)])
        for seed in seeds
    ]
    return [csv_file(folder, csv_text(of_seed), SOUND.format(seed)) for seed, of_seed in zip(seeds, rows, strict=True)]


def origin(*arguments: str | Path) -> tuple[int, str]:
    done = call("verify", *arguments, "--criteria", "origin", "--json")
    return done.code, json.loads(done.out)["verdict"] if done.out else done.err


def test_the_readable_ones_are_loaded(tmp_path: Path) -> None:
    paths = healthy(tmp_path, [0, 1, 2])
    paths[1].write_bytes(paths[1].read_bytes().replace(b"1000,", b"1000;"))
    bad = csv_file(tmp_path, FIVE + "1,two,3,4,5\n", "hidden256-seed7.csv")
    loaded = load_files([*paths, bad])
    assert [run.seed for run in loaded.runs] == [0, 2]
    assert [(one.arm, one.size, one.seed, one.planned_steps) for one in loaded.unread] == [
        ("baseline", 64, 1, 1000),
        (None, 256, 7, None),
    ]
    assert loaded.unread[0].reason.startswith(f"{paths[1]}:2: 11 cells for 12 columns")
    assert loaded.unread[1].reason == f"{bad}:2: Loss is 'two', not a number"
    with pytest.raises(RecordError, match="11 cells for 12 columns"):
        load_set(paths)


def test_where_none_can_be_read_the_first_reasons_are_given(tmp_path: Path) -> None:
    paths = [csv_file(tmp_path, b"", f"{index}.csv") for index in range(7)]
    with pytest.raises(RecordError, match=r"none of 7 files can be read: .*0\.csv:1: the file is empty and 6 more"):
        load_files(paths)
    with pytest.raises(RecordError, match=r"^[^ ]*0\.csv:1: the file is empty$"):
        load_files(paths[:1])


def test_an_unreadable_run_belongs_to_its_arm(tmp_path: Path) -> None:
    paths = [*healthy(tmp_path, [0, 1]), *healthy(tmp_path, [0], arm="no-decay")]
    for path in paths[1:]:
        path.write_text("Step", encoding="utf-8")
    loaded = load_files(paths)
    found = take_inventory(loaded.runs, loaded.empty, loaded.unread)
    assert [(one.arm, one.seed, one.state) for one in found.absent] == [
        ("baseline", 1, "unreadable"),
        ("no-decay", 0, "unreadable"),
    ]
    assert found.absent[0].reason.startswith("line 1: missing columns: Loss")
    assert found.others == ()


def test_a_damaged_seed_takes_the_support_away(tmp_path: Path) -> None:
    paths = sound_seeds(tmp_path)
    assert origin(tmp_path) == (0, "supported")
    paths[2].write_text("Step,Loss\n", encoding="utf-8")
    done = call("verify", tmp_path, "--criteria", "origin")
    assert done.code == ExitCode.INCONCLUSIVE
    assert "1 unreadable" in done.out
    assert re.search(r"^next +mend the files that cannot be read, or remove those that are no runs$", done.out, re.M)
    assert done.err.splitlines() == [f"error: {paths[2]}:1: missing columns: UniquePredictions, LR, WD"]


@pytest.mark.parametrize("name", ["download.csv", "hidden512.csv", "seed3.csv"])
def test_a_file_of_which_nothing_is_known_may_be_of_any_arm(tmp_path: Path, name: str) -> None:
    sound_seeds(tmp_path)
    bare_run(tmp_path, CURED, arm="no-decay", Loss=6.0)
    bad = csv_file(tmp_path, b"\xff\xfe\xff", name)
    done = call("verify", tmp_path, "--criteria", "origin", "--json")
    tree = json.loads(done.out)
    assert done.code == ExitCode.INCONCLUSIVE
    assert {arm: one["verdict"] for arm, one in tree["arms"].items()} == dict.fromkeys(
        ("baseline", "no-decay"), "inconclusive"
    )
    assert tree["unread"] == [f"{bad}:1: not UTF-8 (byte 0xff); save the file as UTF-8"]
    bad.unlink()
    assert origin(tmp_path, "-i", "baseline") == (0, "supported")


def test_unreadable_files_of_unknown_seed_do_not_help_to_refute(tmp_path: Path) -> None:
    for seed in range(8):
        simple_run(tmp_path, quick(seed=seed), loss=9 + seed / 100)
    before = call("verify", tmp_path, "--criteria", "sound", "--json").json
    for index in range(9):
        csv_file(tmp_path, b"", f"{index}.csv")
    after = call("verify", tmp_path, "--criteria", "sound", "--json")
    [statistics] = after.json["verdicts"]
    assert statistics["planned"]["unreadable"] == 9
    assert before["verdicts"][0]["planned"]["unreadable"] == 0
    assert len(after.err.splitlines()) == 6
    assert after.err.splitlines()[-1] == "error: and 4 more files cannot be read"


def test_a_supported_arm_beside_a_damaged_one_is_no_success(tmp_path: Path) -> None:
    sound_seeds(tmp_path)
    bare_run(tmp_path, CURED, arm="no-decay").path.write_bytes(b"")
    code, verdict = origin(tmp_path, "-i", "baseline")
    assert (code, verdict) == (ExitCode.USAGE, "supported")
    assert origin(tmp_path)[0] == ExitCode.INCONCLUSIVE


def test_planned_runs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    paths = healthy(tmp_path, [0, 1])
    paths[1].write_text("x\n", encoding="utf-8")
    arguments = ["--recipe", "quick", "--sizes", "64", "--steps", "1000", "--seeds", "2", "--no-train"]
    overrides = ["--set", "probe.eval_every_steps=100", "--set", "schedule.warmup_steps=100"]
    done = call("verify", *arguments, *overrides, "--runs-dir", tmp_path, "--criteria", "origin", "--details")
    assert "1 judged, 1 unreadable" in done.out
    assert done.err.count("error: ") == 1


def test_analyze_shows_the_others_and_ends_with_2(tmp_path: Path) -> None:
    sound_seeds(tmp_path)
    for index in range(7):
        csv_file(tmp_path, "Step\n", f"bad{index}.csv")
    done = call("analyze", tmp_path)
    assert done.code == ExitCode.USAGE
    assert "5 of 5 runs collapsed" in done.out
    assert len(done.err.splitlines()) == 6
    assert (
        done.err.splitlines()[0]
        == f"error: {tmp_path / 'bad0.csv'}:1: missing columns: Loss, UniquePredictions, LR, WD"
    )
    assert done.err.splitlines()[-1] == "error: and 2 more files cannot be read"
    tree = call("analyze", tmp_path, "--json").json
    assert len(tree["runs"]) == 5
    named = ", ".join(f"bad{index}.csv" for index in range(5))
    assert f"7 files left out that cannot be read: {named} and 2 more" in tree["notes"]


def test_a_bundle_keeps_what_could_not_be_read(tmp_path: Path) -> None:
    paths = sound_seeds(tmp_path)
    paths[4].write_bytes(b"")
    csv_file(tmp_path, b"\0", "odd.csv")
    bundle = tmp_path / "all.zip"
    first = call("verify", tmp_path, "--criteria", "origin", "--bundle", bundle, "--json")
    again = call("verify", bundle, "--criteria", "origin", "--json")
    assert (first.code, again.code) == (ExitCode.INCONCLUSIVE, ExitCode.INCONCLUSIVE)
    assert first.json["verdicts"][0]["planned"]["unreadable"] == again.json["verdicts"][0]["planned"]["unreadable"] == 2
    # named by the bundle, not by where it was unpacked
    assert again.err.splitlines()[0] == f"error: {bundle}/runs/{paths[4].name}:1: the file is empty"


COPIES = ["{} (1)", "{} - Copy", "{} copy", "Copy of {}"]


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_by_a_file_manager_is_no_arm_and_no_seed(tmp_path: Path, name: str) -> None:
    paths = sound_seeds(tmp_path, range(4))
    copy = csv_file(tmp_path, paths[0].read_bytes().replace(b"\n", b"\r\n"), f"{name.format(paths[0].stem)}.csv")
    [judged] = call("verify", tmp_path, "--criteria", "origin", "--json").json["verdicts"]
    assert (judged["planned"]["judged"], judged["planned"]["doubled"]) == (4, 1)
    done = call("analyze", tmp_path, "--json")
    assert (done.code, len(done.json["runs"])) == (0, 4)
    [note] = [note for note in done.json["notes"] if "left out" in note]
    assert note.partition(": left out, the same values as ")[0] in (str(copy), str(paths[0]))


def test_a_copy_that_is_left_out_is_no_other_run(tmp_path: Path) -> None:
    paths = sound_seeds(tmp_path)
    csv_file(tmp_path, paths[0].read_bytes(), f"{paths[0].stem} (1).csv")
    assert origin(*paths) == (0, "supported")
    # one with other values is another run of that seed
    csv_file(tmp_path, paths[0].read_bytes().replace(b"7.1", b"7.2"), f"{paths[0].stem} (2).csv")
    assert origin(*paths) == (ExitCode.INCONCLUSIVE, "inconclusive")


def test_decimal_commas_on_the_command_line(tmp_path: Path) -> None:
    paths = sound_seeds(tmp_path)
    for path in paths[:4]:
        path.write_bytes(path.read_bytes().replace(b",", b";").replace(b".", b","))
    assert origin(tmp_path, "--decimal", ",") == (0, "supported")
    code, _ = origin(tmp_path)
    assert code == ExitCode.INCONCLUSIVE
    assert call("analyze", tmp_path, "--decimal", ",", "--json").code == 0
    assert "add `--decimal ,`" in call("analyze", tmp_path).err
    assert "--decimal ';': take a point or a comma" in call("analyze", tmp_path, "--decimal", ";").err


def test_hidden_files_that_a_shell_names_are_noted(tmp_path: Path) -> None:
    paths = sound_seeds(tmp_path)
    hidden = csv_file(tmp_path, b"\0\5\26\7", f"._{paths[0].name}")
    done = call("verify", *paths, hidden, "--criteria", "origin")
    assert done.code == 0
    assert done.err == f"note: {hidden}: left out, a hidden file that another program put there\n"


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_names_that_are_not_utf8_are_shown_by_every_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [path] = sound_seeds(tmp_path, [0])
    for name, content in ((b"gr\xfc\xdfe.csv", path.read_bytes()), (b"kaput\xff.csv", b"")):
        try:
            Path(os.fsdecode(name)).write_bytes(content)
        except OSError:
            pytest.skip("the file system takes UTF-8 only")
    done = call("analyze", ".", "--html", "page.html", "--markdown", "page.md", "--csv", "summary.txt")
    assert done.code == ExitCode.USAGE
    assert "kaput" in done.out
    assert "internal error" not in done.err
    for more in (["--report", "r.md", "--junit", "j.xml", "--bundle", "b.zip"], ["--json"]):
        done = call("verify", ".", "--criteria", "origin", *more)
        assert done.code == ExitCode.INCONCLUSIVE
        assert "kaput" in (done.out if "--json" in more else done.err)


@pytest.mark.parametrize("above", ["", "<<<<<<< HEAD\n"])
def test_the_marks_of_a_merge_are_named(tmp_path: Path, above: str) -> None:
    rows = "1,7,3,0.1,0.1\n=======\n1,8,3,0.1,0.1\n>>>>>>> theirs\n"
    path = csv_file(tmp_path, f"{above}Step,Loss,UniquePredictions,LR,WD\n{rows}", "log.csv")
    with pytest.raises(RecordError, match=r"two versions of .* in it|marks of a merge"):
        load_set([path])


def test_the_original_is_kept_and_not_its_copy(tmp_path: Path) -> None:
    [path] = sound_seeds(tmp_path, [0])
    (tmp_path / f"{path.stem} (1).csv").write_bytes(path.read_bytes())
    notes = call("analyze", tmp_path, "--json").json["notes"]
    assert [note for note in notes if " (1).csv: left out" in note]
