"""The storage of a packed model: weights of R runs and their gradients in a few flat tensors, named and initialised.

Shapes: R runs, V vocabulary, H hidden, L layers, O×I a matrix.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bitnetctl.config import ModelConfig, ParameterGroup
from bitnetctl.model.parameters import num_parameters, parameter_specs

# flat parameters: the few large tensors that the optimizer updates, one for each group of weight decay
_FLAT: dict[ParameterGroup | None, str] = {"embeddings": "embed", "head": "head", None: "matrices", "norms": "norms"}
FLAT_GROUPS = {flat: group for group, flat in _FLAT.items()}
# those with a row for each token of the vocabulary, which may be padded
TABLES = ("embed", "head")
# matmuls on a GPU are faster in such multiples; the padding rows are never seen from outside
_VOCABULARY_MULTIPLE = {"cpu": 1, "cuda": 64}


class PackedParameters:
    """The weights of R runs of one shape and their gradients.

    `packed[name]` and `gradients[name]` have shape [R, *parameter_specs[name].shape] and are views of the flat
    parameters and their gradients; `num_parameters` counts those of one run. Run r is initialised from `seeds[r]`
    alone, so it has the same weights in every pack.
    """

    def __init__(
        self, configs: Sequence[ModelConfig], vocab_size: int, seeds: Sequence[int], device: torch.device
    ) -> None:
        self.config = configs[0]
        self.num_runs = len(configs)
        self.num_parameters = num_parameters(self.config, vocab_size)
        self.vocab_size = vocab_size
        self.device = device
        self.parameter_specs = parameter_specs(self.config, vocab_size)
        self._matrices = [key for key, spec in self.parameter_specs.items() if spec.is_matrix]
        multiple = _VOCABULARY_MULTIPLE[device.type]
        self._padded_vocab = -(-vocab_size // multiple) * multiple
        self._flat = self._allocate()
        self._flat_gradients = {key: torch.zeros_like(flat) for key, flat in self._flat.items()}
        self.packed = self._spec_views(self._flat)
        self.gradients = self._spec_views(self._flat_gradients)
        drawn: dict[tuple[object, ...], int] = {}
        for run, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
            source = drawn.setdefault((config.initialization, config.init_std, seed), run)
            if source == run:
                self._initialize(run, config, seed)
            else:
                # the arms of a seed start from equal weights, and drawing is slow
                for flat in self._flat.values():
                    flat[run] = flat[source]

    def _allocate(self) -> dict[str, Tensor]:
        """Return the flat parameters of all runs [R, size], zero."""
        sizes: dict[str, int] = {}
        for spec in self.parameter_specs.values():
            name = _FLAT[spec.group]
            rows = self._padded_vocab if name in TABLES else spec.shape[0]
            sizes[name] = sizes.get(name, 0) + rows * math.prod(spec.shape[1:])
        return {name: torch.zeros(self.num_runs, size, device=self.device) for name, size in sizes.items()}

    def _spec_views(self, flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the packed tensors as views [..., *shape] of flat ones [..., size]."""
        views, starts = {}, dict.fromkeys(flat, 0)
        for key, spec in self.parameter_specs.items():
            name, size = _FLAT[spec.group], math.prod(spec.shape)
            views[key] = flat[name][..., starts[name] : starts[name] + size].unflatten(-1, spec.shape)
            starts[name] += size
        return views

    def flat_parameters(self, run: int) -> dict[str, Tensor]:
        """Return the flat parameters of a run with their `.grad`: what its optimizer updates, in the pack's memory.

        Few and large, since Adam works element by element and each tensor costs host time.
        """
        parameters = {}
        for name, flat in self._flat.items():
            size = self.vocab_size * self.config.hidden_size if name in TABLES else flat.shape[1]
            parameters[name] = flat[run, :size].requires_grad_()
            parameters[name].grad = self._flat_gradients[name][run, :size]
        return parameters

    def gradient_norms(self) -> Tensor:
        """Return the global norm of every run's gradients: [R]."""
        norms_R = [torch.linalg.vector_norm(gradient, dim=1) for gradient in self._flat_gradients.values()]
        norm_R: Tensor = torch.linalg.vector_norm(torch.stack(norms_R), dim=0)
        return norm_R

    def by_spec(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an optimizer's tensors, `flat parameter/key`, as `parameter spec/key`: their names in checkpoints."""
        result: dict[str, Tensor] = {}
        for key in dict.fromkeys(path.partition("/")[2] for path in state):
            tensors = {name: state[f"{name}/{key}"] for name in self._flat}
            is_scalar = all(tensor.dim() == 0 for tensor in tensors.values())
            views = {} if is_scalar else self._spec_views(tensors)
            for spec_name, spec in self.parameter_specs.items():
                tensor = tensors[_FLAT[spec.group]].clone() if is_scalar else views[spec_name].contiguous()
                result[f"{spec_name}/{key}"] = tensor
        return result

    def by_flat_parameter(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return an optimizer's tensors, `parameter spec/key`, as `flat parameter/key`: the inverse of `by_spec`."""
        result = {}
        for key in dict.fromkeys(path.partition("/")[2] for path in state):
            parts: dict[str, list[Tensor]] = {name: [] for name in self._flat}
            for spec_name, spec in self.parameter_specs.items():
                parts[_FLAT[spec.group]].append(state[f"{spec_name}/{key}"])
            for name, tensors in parts.items():
                whole = tensors[0] if tensors[0].dim() == 0 else torch.cat([tensor.flatten() for tensor in tensors])
                result[f"{name}/{key}"] = whole
        return result

    def parameters(self, run: int) -> dict[str, Tensor]:
        """Return the parameters of a run by their names in `transformers`: views of its weights, with `.grad`."""
        parameters: dict[str, Tensor] = {}
        for key, spec in self.parameter_specs.items():
            gradients = spec.parameters(self.gradients[key][run])
            for (name, view), (_, gradient) in zip(spec.parameters(self.packed[key][run]), gradients, strict=True):
                parameters[name] = view.detach().requires_grad_()
                parameters[name].grad = gradient
        return parameters

    def _initialize(self, run: int, config: ModelConfig, seed: int) -> None:
        """Draw the weights of a run from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        for key, spec in self.parameter_specs.items():
            target = self.packed[key][run]
            if spec.group == "norms":
                target.fill_(1.0)
                continue
            values = torch.empty(spec.shape)
            if config.initialization == "normal":
                values.normal_(0.0, config.init_std, generator=generator)
            elif spec.group == "embeddings":
                values.normal_(0.0, 1.0, generator=generator)
            else:
                bound = spec.shape[-1] ** -0.5
                values.uniform_(-bound, bound, generator=generator)
            target.copy_(values)

    def load(self, run: int, weights: Mapping[str, Tensor]) -> None:
        """Copy named weights into one run; raises KeyError for a missing name."""
        with torch.no_grad():
            for name, parameter in self.parameters(run).items():
                parameter.copy_(weights[name])
