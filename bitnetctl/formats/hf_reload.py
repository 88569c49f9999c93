"""Load exported folders with `transformers`, in a process of its own: `python -m bitnetctl.formats.hf_reload JOBS`.

JOBS is a JSON file with a list of jobs: `folder`, `texts` and `out`, a folder with the tokens to run it on; the files
in it are those of `hf_files`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from bitnetctl.errors import one_line
from bitnetctl.formats.hf_files import LOGITS, RESULT, TOKENS, WEIGHTS


@torch.no_grad()
def main(path: str) -> None:
    """Run every job; one that fails stops no other."""
    for job in json.loads(Path(path).read_text(encoding="utf-8")):
        out = Path(job["out"])
        result: dict[str, Any] = {"version": transformers.__version__}
        try:
            result |= _reload(Path(job["folder"]), np.load(out / TOKENS), job["texts"], out)
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {one_line(error)}"
        (out / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _reload(folder: Path, tokens_PT: Any, texts: list[str], out: Path) -> dict[str, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    decoded = [tokenizer.decode(tokens, skip_special_tokens=False) for tokens in ids]
    loading: Any = transformers.AutoModelForCausalLM
    model, info = loading.from_pretrained(folder, output_loading_info=True)
    model.eval()
    _save(model, out / WEIGHTS)
    shape = (*tokens_PT.shape, model.config.vocab_size)
    logits_PTV = np.lib.format.open_memmap(out / LOGITS, mode="w+", dtype=np.float32, shape=shape)
    for row, tokens_T in enumerate(tokens_PT):
        logits_PTV[row] = model(torch.from_numpy(tokens_T)[None]).logits[0].float().numpy()
    logits_PTV.flush()
    # as the model card shows it
    model.generate(**tokenizer("Hello, world!", return_tensors="pt"), max_new_tokens=1)
    unfit = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return {"ids": ids, "decoded": decoded, "unfit": unfit}


def _save(model: nn.Module, path: Path) -> None:
    """Write what the model holds, and the codes and scales with which its quantized layers multiply."""
    from transformers.integrations.bitnet import AutoBitLinear, BitLinear, WeightQuant, unpack_weights

    found = {f"tensor/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            codes, scale = unpack_weights(module.weight, dtype=torch.int8), module.weight_scale.reciprocal()
        elif isinstance(module, AutoBitLinear) and module.online_quant:
            values: Tensor = WeightQuant.apply(module.weight)  # type: ignore[no-untyped-call]
            codes, scale = values.sign(), values.abs().amax().view(1)
        elif isinstance(module, AutoBitLinear):
            codes, scale = module.weight, module.weight_scale
        else:
            continue
        found |= {f"codes/{name}.weight": codes, f"scale/{name}.weight": scale}
    save_file({name: _own(tensor) for name, tensor in found.items()}, path)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().contiguous()


if __name__ == "__main__":
    main(sys.argv[1])
