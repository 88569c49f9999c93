"""A bench for training small ternary (BitNet b1.58) language models and judging claims about them."""

__version__ = "0.1.0"
