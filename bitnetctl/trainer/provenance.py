"""Provenance of a run: versions, git commit, command, data."""

import functools
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from bitnetctl import __version__, data


def data_metadata(tokens: data.TokenData) -> dict[str, Any]:
    return {
        "source": tokens.source,
        "tokenizer": tokens.tokenizer,
        "fingerprint": tokens.fingerprint,
        "tokenizer_fingerprint": tokens.tokenizer_fingerprint,
        "vocab_size": tokens.vocab_size,
        "train_tokens": len(tokens.train_N),
        "held_out_tokens": len(tokens.held_out_N),
    }


@functools.cache
def environment() -> dict[str, Any]:
    """Return versions, command, and the git commit; None for that outside of a checkout."""
    names = ("torch", "numpy", "tokenizers", "safetensors", "pydantic")
    versions = {"bitnetctl": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in names}
    # a manifest is shared: it need not tell where the program lies
    program = Path(sys.argv[0]).name
    command = ["bitnetctl" if program == "__main__.py" else program, *sys.argv[1:]]
    return {"versions": versions, "git": _git_state(), "command": command}


def _git_state() -> dict[str, Any] | None:
    folder = Path(__file__).parents[1]
    if not (folder.parent / ".git").exists():
        return None
    try:
        commit, dirty = (
            subprocess.run(
                ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(dirty)}
