"""`bitnetctl export`: what it prints, refuses and leaves."""

import signal
from pathlib import Path

import pytest
from calling import assert_refused, call, listing

from bitnetctl.errors import ExitCode, ExportError
from bitnetctl.formats import hf
from bitnetctl.formats.hf_check import Folder
from bitnetctl.inference.trained import TrainedRun

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself, which takes seconds, is that of tests/formats."""
    monkeypatch.setattr(hf, "require_transformers", lambda: None)
    monkeypatch.setattr(hf, "check_folder", lambda folder: ("codes identical",))


@pytest.fixture
def given(export_runs: dict[str, TrainedRun]) -> list[str]:
    """Options that name a run of recipe portable."""
    return ["export", "portable", "--runs-dir", str(export_runs["portable"].paths.runs_dir)]


@pytest.mark.usefixtures("passed")
def test_a_folder_for_transformers(given: list[str]) -> None:
    done = call(*given, "--to", "hf", "out")
    assert done.code == ExitCode.SUPPORTED
    first, *lines = done.out.splitlines()
    assert first == "out: portable at step 4, hf, offline"
    assert lines[-1] == "checked: codes identical"
    assert any(line.startswith("  model.safetensors: ") for line in lines)
    assert done.err == "loading it with transformers ...\n"


@pytest.mark.usefixtures("passed")
def test_json(given: list[str], export_runs: dict[str, TrainedRun]) -> None:
    tree = call(*given, "--to", "hf", "out", "--form", "bitlinear", "--masters", "--json").json
    assert {key: tree[key] for key in ("run", "step", "to", "form", "path", "checked", "checks")} == {
        "run": "portable",
        "step": 4,
        "to": "hf",
        "form": "bitlinear",
        "path": "out",
        "checked": True,
        "checks": ["codes identical"],
    }
    assert {file["name"]: file["bytes"] for file in tree["files"]} == {
        name: Path("out", name).stat().st_size for name in listing(Path("out")) if Path("out", name).is_file()
    }
    assert "masters/model.safetensors" in listing(Path("out"))
    assert tree["parameters"] == export_runs["portable"].model.num_parameters
    size = Path("out/model.safetensors").stat().st_size
    assert tree["bits_per_parameter"] == pytest.approx(8 * size / tree["parameters"])


def test_a_plain_file(given: list[str]) -> None:
    done = call(*given, "--to", "safetensors", "out.safetensors")
    assert done.code == ExitCode.SUPPORTED
    first, file, *_, last = done.out.splitlines()
    assert first == "out.safetensors: portable at step 4, safetensors, masters and codes"
    assert file == f"  out.safetensors: {Path('out.safetensors').stat().st_size:,} bytes"
    assert last.startswith("checked: ")
    assert_refused("out.safetensors: exists; --force", *given, "--to", "safetensors", "out.safetensors")


@pytest.fixture
def wide(wide_runs: dict[str, TrainedRun]) -> list[str]:
    """Options that name a run of a width that GGUF files have."""
    pytest.importorskip("gguf")
    return ["export", "wide", "--runs-dir", str(wide_runs["wide"].paths.runs_dir), "--to", "gguf", "out.gguf"]


def test_a_file_for_llama_cpp(wide: list[str]) -> None:
    done = call(*wide, "--outtype", "tq1_0", "--no-check")
    assert done.code == ExitCode.SUPPORTED
    first, file, _, read_back, checked = done.out.splitlines()
    assert first == "out.gguf: wide at step 4, gguf, TQ1_0"
    assert file == f"  out.gguf: {Path('out.gguf').stat().st_size:,} bytes"
    assert read_back == "read back: codes of 14 matrices identical, scales identical, settings and vocabulary identical"
    assert checked == "not checked"
    tree = call(*wide, "--no-check", "--force", "--json").json
    assert (tree["gguf_type"], tree["checked"], tree["checks"]) == ("TQ2_0", False, [])
    assert tree["read_back"] == read_back.removeprefix("read back: ")


def test_llama_cpp_that_runs_another_model(wide: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: TrainedRun, file: Path, gguf_type: str) -> tuple[str, ...]:
        raise ExportError("self-check failed: KL divergence 1.0 (at most 2e-06)")

    monkeypatch.setattr("bitnetctl.formats.gguf.require_llama_cpp", lambda run: None)
    monkeypatch.setattr("bitnetctl.formats.gguf.check_in_llama_cpp", fail)
    done = call(*wide)
    assert (done.code, done.out) == (ExitCode.INVALID, "")
    assert done.err.splitlines()[-1] == "error: self-check failed: KL divergence 1.0 (at most 2e-06)"
    assert listing(Path()) == []


def test_without_a_check(given: list[str]) -> None:
    done = call(*given, "--to", "hf", "out", "--no-check")
    assert done.code == ExitCode.SUPPORTED
    assert done.last_line == "not checked"
    assert done.err == ""


@pytest.mark.usefixtures("passed")
def test_a_failed_check(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Folder) -> tuple[str, ...]:
        raise ExportError("self-check failed: q_proj.weight: scale 0.2, not 0.3")

    monkeypatch.setattr(hf, "check_folder", fail)
    done = call(*given, "--to", "hf", "out")
    assert (done.code, done.out) == (ExitCode.INVALID, "")
    assert done.err.splitlines()[-1] == "error: self-check failed: q_proj.weight: scale 0.2, not 0.3"
    assert listing(Path()) == []


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("--to 'huggingface' is unknown", ["--to", "huggingface"]),
        ("--form 'packed' is unknown; take offline, bitlinear, online", ["--to", "hf", "--form", "packed"]),
        ("--form: is an option of --to hf", ["--to", "safetensors", "--form", "online"]),
        ("--masters: is an option of --to hf", ["--to", "safetensors", "--masters"]),
        ("--outtype: is an option of --to gguf", ["--to", "hf", "--outtype", "F16"]),
        ("--outtype 'Q4_0' is not known; take TQ2_0", ["--to", "gguf", "--outtype", "Q4_0"]),
        ("portable: its hidden size is 32 and its feed-forward width is 96, and TQ2_0 has ", ["--to", "gguf"]),
        ("has weights of step 4, not 3", ["--to", "hf", "--step", "3"]),
        ("Missing option '--to'", []),
    ],
)
def test_what_is_refused(message: str, options: list[str], given: list[str]) -> None:
    assert_refused(message, *given, "out", *options)
    assert listing(Path()) == []


def test_a_run_that_is_not_there(given: list[str]) -> None:
    assert_refused(
        "or its folder; did you mean 'portable'?",
        "export",
        "portabel",
        *given[2:],
        "--to",
        "hf",
        "out",
    )


def test_a_stop_signal_leaves_nothing(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(folder: Folder) -> tuple[str, ...]:
        signal.raise_signal(signal.SIGTERM)
        return ()

    monkeypatch.setattr(hf, "require_transformers", lambda: None)
    monkeypatch.setattr(hf, "check_folder", stop)
    before = signal.getsignal(signal.SIGTERM)
    done = call(*given, "--to", "hf", "out")
    assert (done.code, done.err.splitlines()[-1]) == (ExitCode.INTERRUPTED, "error: interrupted")
    assert listing(Path()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_earlier_export_is_in_the_way(given: list[str]) -> None:
    unchecked = [*given, "--to", "hf", "out", "--no-check"]
    assert call(*unchecked).code == ExitCode.SUPPORTED
    assert_refused("out: is not empty; --force replaces what an earlier export wrote", *unchecked)
    assert call(*unchecked, "--force").code == ExitCode.SUPPORTED
