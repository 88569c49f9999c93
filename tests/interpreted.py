"""Triton's interpreter, mended where it does not compute what a GPU does, and where it only loses time."""

import numpy as np
import torch

try:
    import triton.language as tl
    from triton.runtime import interpreter
except ImportError:
    interpreter = None


def mend() -> None:
    """Mend the interpreter, if Triton is installed."""
    if interpreter is not None:
        _round_to_bf16()
        _loop_up_to_a_number_in_memory()
        _patch_the_language_once_a_launch()


def _loop_up_to_a_number_in_memory() -> None:
    """Let 3.6 convert an array of one number to an integer, which numpy 2.4 refuses."""
    plain = interpreter._patch_lang_tensor

    def patched(tensor, scope):  # type: ignore[no-untyped-def]
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patched


def _round_to_bf16() -> None:
    """Round fp32 to bf16, half to even, as a GPU does; the interpreter drops the digits."""
    plain = interpreter.InterpreterBuilder.cast_impl

    def rounded(self, src, dst_type):  # type: ignore[no-untyped-def]
        if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
            return plain(self, src, dst_type)
        values = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16()
        return interpreter.TensorHandle(values.view(torch.int16).numpy().view(np.uint16), dst_type.scalar)

    interpreter.InterpreterBuilder.cast_impl = rounded


def _patch_the_language_once_a_launch() -> None:
    """Patch the language for a module's functions once a launch; 3.6 does at every call, for half of the time."""
    plain = interpreter._patch_lang
    patched: set[int] = set()

    def at_launch(fn):  # type: ignore[no-untyped-def]
        patched.clear()
        return plain(fn)

    def call(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if id(self.fn.__globals__) not in patched:
            plain(self.fn)
            patched.add(id(self.fn.__globals__))
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter._patch_lang = at_launch
    interpreter.InterpretedFunction.__call__ = call
