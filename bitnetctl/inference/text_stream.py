"""Between text and tokens: what a model starts from, and text that is shown as its tokens arrive."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from bitnetctl.errors import ConfigError
from bitnetctl.inference.trained import TrainedRun

# a character has at most four bytes, so at most three tokens can wait for the last of them
_MOST_WAITING = 3
# tokens before a new one by which a tokenizer may decide on spaces
_CONTEXT_TOKENS = 16
_REPLACEMENT = "\ufffd"


def prompt_tokens(run: TrainedRun, text: str) -> list[int]:
    """Return the tokens of a prompt, as text was encoded in training; an empty one is the end of a text before it.

    Raises ConfigError for an empty one where the tokenizer has no such token, and for what is no text; DataError for
    what cannot be encoded.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the prompt is not UTF-8 text") from error
    tokens = run.encode(text)
    if not tokens and run.end_of_text is not None:
        return [run.end_of_text]
    if not tokens:
        raise ConfigError(f"run {run.name}: the prompt is empty, and its tokenizer has no end of text to start after")
    return tokens


class TextStream:
    """Text of tokens that arrive one by one after those of a prompt, in whole characters; special tokens have none."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []
        self._shown = 0
        self._move_on(list(prompt))

    def feed(self, token: int) -> str:
        """Return the text that a token completes; bytes of a character that may still be completed are kept."""
        self._waiting.append(token)
        text = self._new_text()
        incomplete = min(len(text) - len(text.rstrip(_REPLACEMENT)), _MOST_WAITING)
        new, self._shown = text[self._shown : len(text) - incomplete], len(text) - incomplete
        if not incomplete:
            self._move_on([*self._context, *self._waiting])
        elif len(self._waiting) > _CONTEXT_TOKENS:
            # no character comes of this: the bytes that may still become one are the last
            tokens, self._waiting = [*self._context, *self._waiting], self._waiting[-_MOST_WAITING:]
            self._remember(tokens[:-_MOST_WAITING])
            self._shown = max(0, len(self._new_text()) - incomplete)
        return new

    def finish(self) -> str:
        """Return what is left, with U+FFFD for a character that was never completed."""
        return self._new_text()[self._shown :]

    def _move_on(self, tokens: list[int]) -> None:
        """Go on after tokens whose text is shown."""
        self._remember(tokens)
        self._waiting, self._shown = [], 0

    def _remember(self, tokens: list[int]) -> None:
        """Keep the last tokens as the context of new ones, but from the middle of no character on."""
        self._context = tokens[-_CONTEXT_TOKENS:]
        self._context_text = str(self._tokenizer.decode(self._context))
        for _ in range(_MOST_WAITING):
            if self._context_text.startswith(_REPLACEMENT):
                self._context = self._context[1:]
                self._context_text = str(self._tokenizer.decode(self._context))

    def _new_text(self) -> str:
        """Return the text of the waiting tokens, some of which may be shown already."""
        text = str(self._tokenizer.decode([*self._context, *self._waiting]))
        # a tokenizer may change its mind on what was shown, as of bytes before an incomplete character
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        return str(self._tokenizer.decode(self._waiting))
