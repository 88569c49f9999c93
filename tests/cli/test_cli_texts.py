"""`--samples`, `analyze --text`, `eval`, and how a verdict says to read what was written."""

import io
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from calling import Done, call, training, unset_environment
from samples import SAMPLES, with_samples
from synthetic import CURED, bare_run, origin_run

from bitnetctl.cli import options
from bitnetctl.config import build_config
from bitnetctl.errors import ExitCode, StorageError
from bitnetctl.records.samples import read_samples
from bitnetctl.sweeps.executors.local import _arguments
from bitnetctl.trainer.options import TrainOptions

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path, shared_cache: Path) -> Iterator[Path]:
    """A folder with the runs a, which wrote text at its end, and b, which did not."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        unset_environment(patch)
        patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        patch.setattr("os.fsync", lambda descriptor: None)
        for name, more in (("a", "--samples"), ("b", "--no-samples")):
            done = call(*training(tiny_text, "--name", name, "--runs-dir", folder, more, "--seed", str(ord(name))))
            assert done.code == ExitCode.SUPPORTED
        yield folder


@pytest.fixture
def runs(models: Path, tmp_path: Path) -> Path:
    """A copy of them, which a test may change."""
    return Path(shutil.copytree(models, tmp_path / "runs"))


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_samples_are_written_where_they_are_asked_for(models: Path) -> None:
    samples = read_samples(models / "a")
    assert samples is not None
    assert samples.step == 20
    assert not (models / "b" / "samples.json").exists()


def test_analyze_lets_runs_write(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (runs / "a" / "samples.json").read_bytes()
    assert "b" not in call("analyze", runs, "--json").json["texts"]["runs"]
    done = call("analyze", runs, "--text", "--json")
    tree = done.json["texts"]
    assert (done.code, done.err) == (ExitCode.SUPPORTED, "")
    assert set(tree["runs"]) == {"a", "b"}
    [arm] = tree["arms"]
    assert arm["runs"] == ["a", "b"]
    assert arm["measures"]["bigram_nats"]["low"] <= tree["runs"]["b"]["sampled"]["bigram_nats"]
    assert tree["human"]["bigram_nats"]["median"] > 0
    # kept, and what was there is not written again
    assert read_samples(runs / "b") is not None
    assert (runs / "a" / "samples.json").read_bytes() == before
    monkeypatch.setattr("bitnetctl.inference.trained.open_run", None)
    assert call("analyze", runs, "--text").code == ExitCode.SUPPORTED


def test_analyze_says_which_runs_cannot_write(runs: Path) -> None:
    shutil.rmtree(runs / "b" / "checkpoints")
    bare_run(runs, size=32)
    done = call("analyze", runs, "--text")
    assert done.code == ExitCode.SUPPORTED
    first, second = done.err.splitlines()
    assert first.startswith("no text of b: its weights were not kept")
    assert second.endswith("another program trained it, so its weights are not here")
    assert "human text" in done.out


def test_text_that_cannot_be_kept_is_shown_all_the_same(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "b" / "samples.json").unlink(missing_ok=True)

    def full(path: Path, samples: object) -> None:
        raise StorageError(f"{path}: cannot write: No space left on device")

    monkeypatch.setattr("bitnetctl.records.samples.write_samples", full)
    done = call("analyze", runs, "--text", "--json")
    assert set(done.json["texts"]["runs"]) == {"a", "b"}
    assert done.err.startswith("text of b is not kept: ")
    assert "No space left" in done.err


def test_a_bundle_carries_text_and_says_how_to_read_it(tmp_path: Path) -> None:
    for seed in range(6):
        with_samples(origin_run(tmp_path / "runs", CURED, seed=seed, columns={"Loss": 7.0 + seed}))
    options = ("--criteria", "origin", "--sizes", "256", "--json")
    judged = call("verify", tmp_path / "runs", *options, "--bundle", tmp_path / "b.zip")
    [arm] = judged.json["texts"]["arms"]
    assert len(arm["runs"]) == 6
    assert "runs" not in judged.json["texts"]
    again = call("verify", tmp_path / "b.zip", *options, "--report", tmp_path / "r.md", "--html", tmp_path / "p.html")
    assert "sampled  ret<b>urn" in (tmp_path / "r.md").read_text(encoding="utf-8")
    assert " ret&lt;b&gt;urn" in (tmp_path / "p.html").read_text(encoding="utf-8")
    for done, place in ((judged, tmp_path / "runs"), (again, tmp_path / "b.zip")):
        command = done.json["summary"]["next"].split("`")[1]
        assert command == f"bitnetctl analyze {place} --text --details"
        shown = call(*shlex.split(command)[1:])
        assert shown.code == ExitCode.SUPPORTED
        assert "  sampled  ret<b>urn" in shown.out


def supported(folder: Path) -> str:
    """Return the next step of a verdict that supports."""
    done = call("verify", folder, "--criteria", "origin", "--json")
    assert done.json["verdict"] == "supported"
    return str(done.json["summary"]["next"])


def test_the_next_step_names_what_works(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "our runs", tmp_path / "theirs"
    # each with values of its own: several files of one run would count once
    runs = [origin_run(ours, CURED, seed=seed, columns={"Loss": 7.0 + seed}) for seed in range(6)]
    for seed in range(6):
        bare_run(theirs, seed=seed, Loss=[5.0 + seed] * len(CURED))
    assert supported(ours).endswith("more seeds, with --samples to read what it writes")
    assert supported(theirs).endswith("more seeds; read what it writes")
    checkpoint = runs[2].path.with_suffix("") / "checkpoints" / "step-00020000"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"")
    assert supported(ours).endswith(f"`bitnetctl generate '{runs[2].path.with_suffix('')}'`")


@pytest.mark.parametrize(("chosen", "expected"), [(None, []), (True, ["--samples"]), (False, ["--no-samples"])])
def test_workers_are_told(chosen: bool | None, expected: list[str]) -> None:
    arguments = _arguments(TrainOptions(samples=chosen), None)
    assert [one for one in arguments if "samples" in one] == expected


def test_eval_scores_several_runs_and_texts(models: Path, tmp_path: Path) -> None:
    texts = tmp_path / "one.txt", tmp_path / "two.txt"
    for index, path in enumerate(texts):
        path.write_text("Ba gu ö.\n" * (9 + index), encoding="utf-8")
    given = ["a", "b", "--device", "cpu", "--runs-dir"]
    arguments = [*given, str(models), "--text", str(texts[0]), "--text", str(texts[1])]
    tree = call("eval", *arguments, "--json").json
    for index, of_text in enumerate(tree["texts"]):
        assert of_text["bytes"] == 10 * (9 + index)
        assert [one["run"] for one in of_text["runs"]] == ["a", "b"]
        assert [one["predictor"] for one in of_text["ngrams"]] == ["unigram", "bigram"]
        for one in [*of_text["runs"], *of_text["ngrams"]]:
            assert one["bytes"] == of_text["bytes"]
            assert one["bits_per_byte"] > 0
        assert {one["context"] for one in of_text["runs"]} == {32}
    shown = call("eval", *arguments).out
    first = tree["texts"][0]["runs"][0]
    assert f"{first['bits_per_byte']:.4f}" in shown
    assert str(texts[1]).rpartition("/")[2] in shown
    sliding = call("eval", *arguments, "--stride", "8", "--json").json["texts"][0]["runs"][0]
    assert (sliding["stride"], sliding["tokens"]) == (8, first["tokens"])
    assert sliding["bits_per_byte"] != first["bits_per_byte"]


def test_eval_reads_stdin(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"Ba gu.")))
    [of_text] = call("eval", models / "a", "--text", "-", "--json").json["texts"]
    assert of_text["bytes"] == 6


def test_eval_without_the_training_text_has_no_ngrams(models: Path, tmp_path: Path, token_cache: Path) -> None:
    (tmp_path / "x.txt").write_text("Ba gu.", encoding="utf-8")
    done = call("eval", models / "a", "--text", tmp_path / "x.txt", "--json")
    assert done.json["texts"][0]["ngrams"] == []
    assert done.json["notes"] == ["no n-gram scores for a: the token cache has not the text that it was trained on"]


def refused(*arguments: str | Path) -> str:
    done: Done = call("eval", *arguments)
    assert done.code == ExitCode.USAGE
    return done.error


def test_a_byte_order_mark_is_no_text(models: Path, tmp_path: Path) -> None:
    scores = []
    for name, mark in (("plain.txt", b""), ("marked.txt", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(mark + "Ba gü. Fi".encode())
        (tree,) = call("eval", models / "a", "--text", tmp_path / name, "--json").json["texts"]
        scores.append({**tree, "text": ""})
    assert scores[0]["bytes"] == 10
    assert scores[0] == scores[1]


def test_a_text_without_end_is_refused(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_MOST_TEXT_BYTES", 2**20)
    (tmp_path / "long.txt").write_bytes(b"a" * (2**20 + 1))
    assert "long.txt: larger than 1 MiB; take a part" in refused(models / "a", "--text", tmp_path / "long.txt")


def test_mistakes_of_eval_are_one_line(models: Path, tmp_path: Path) -> None:
    for name, content in (("latin.txt", b"ab \xe9 cd"), ("empty.txt", b""), ("good.txt", b"Ba gu.")):
        (tmp_path / name).write_bytes(content)
    assert "not UTF-8 at byte 3" in refused(models / "a", "--text", tmp_path / "latin.txt")
    assert "is empty" in refused(models / "a", "--text", tmp_path / "empty.txt")
    assert "none.txt: cannot read" in refused(models / "a", "--text", tmp_path / "none.txt")
    assert "no run there" in refused("c", "--runs-dir", models, "--text", tmp_path / "good.txt")
    assert "take 1 to 32" in refused(models / "a", "--text", tmp_path / "good.txt", "--stride", "33")
    assert "has weights of step 20, not 7" in refused(models / "a", "--text", tmp_path / "good.txt", "--step", "7")
    assert "can be read once" in refused(models / "a", "--text", "-", "--text", "-")
    assert "--text" in refused(models / "a")


def test_the_json_of_samples_is_strict(models: Path) -> None:
    tree = json.loads((models / "a" / "samples.json").read_text(encoding="utf-8"))
    assert tree["step"] == 20
    assert tree["schema_version"] == 1
    assert tree["top_k"] is None
    assert SAMPLES.texts[0].model_dump().keys() == tree["texts"][0].keys()
    assert build_config("quick").data.sequence_length == tree["context_length"]
