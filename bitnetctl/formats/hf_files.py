"""Names of the files by which the self-check and the process that loads a folder talk."""

LOGITS = "logits.f32"
"""Logits [P, T, V] of the model as it was loaded: fp32 values and nothing else, to be mapped into memory."""
WEIGHTS = "loaded.safetensors"
"""`codes/NAME` and `scale/NAME` of the matrices as the layers multiply them, `tensor/NAME` of all tensors."""
RESULT = "result.json"
"""Version of the library, names of tensors that did not fit, tokens and text of every string, an `error` if any."""
LENGTHS = ("max_position_embeddings", "model_max_length")
"""Those of the `settings` in it that are the context length; the others are ids of the end of text."""
