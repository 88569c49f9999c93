"""Load exported folders with `transformers`, in a process of its own: `python -m bitnetctl.formats.hf_reload JOBS`.

JOBS is a JSON file with a list of jobs: `folder`, `texts`, `rows` of token ids [P, T], `vocab_size` and `out`, a folder
for the files of `hf_files`.
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
from bitnetctl.formats.hf_files import LENGTHS, LOGITS, RESULT, WEIGHTS


@torch.no_grad()
def main(path: str) -> None:
    """Run every job; one that fails stops no other."""
    for job in json.loads(Path(path).read_text(encoding="utf-8")):
        out = Path(job["out"])
        result: dict[str, Any] = {"version": transformers.__version__}
        try:
            result |= _reload(job, out)
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {one_line(error)}"
        (out / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _reload(job: dict[str, Any], out: Path) -> dict[str, Any]:
    folder, texts, rows_PT = Path(job["folder"]), job["texts"], job["rows"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    decoded = [tokenizer.decode(tokens, skip_special_tokens=False) for tokens in ids]
    loading: Any = transformers.AutoModelForCausalLM
    model, info = loading.from_pretrained(folder, output_loading_info=True)
    model.eval()
    _save(model, out / WEIGHTS)
    shape = (len(rows_PT), len(rows_PT[0]), job["vocab_size"])
    logits_PTV = np.memmap(out / LOGITS, np.float32, "w+", shape=shape)
    for logits_TV, row_T in zip(logits_PTV, rows_PT, strict=True):
        logits_TV[:] = model(torch.tensor([row_T])).logits[0].float().numpy()
    logits_PTV.flush()
    # as the model card shows it
    model.generate(**tokenizer("Hello, world!", return_tensors="pt"), max_new_tokens=1)
    unfit = {key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    named = {"config": model.config, "generation_config": model.generation_config, "tokenizer": tokenizer}
    ends = ("bos_token_id", "eos_token_id")
    settings = {f"{where}.{end}": getattr(one, end) for where, one in named.items() for end in ends}
    lengths = dict(zip(LENGTHS, (model.config.max_position_embeddings, tokenizer.model_max_length), strict=True))
    return {"ids": ids, "decoded": decoded, "unfit": unfit, "settings": {**settings, **lengths}}


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
