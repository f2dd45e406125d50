"""Functions of tensors as ONNX files, run by onnxruntime."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim


class OnnxFiles:
    """ONNX files of a folder, which are written and run.

    Args:
        folder: that gets the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: hash, inputs and outputs of every file
        self.facts: dict[str, Any] = {}
        self._sessions: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sessions

    def write(
        self,
        name: str,
        model: nn.Module,
        function: Callable[..., tuple[Tensor, ...]],
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
    ) -> None:
        """One file; batches are free, and so is every number of tokens.

        Args:
            name: of the file, without its ending.
            model: whose weights the function uses.
            function: from tensors to tensors.
            inputs: tensors to trace it with, by their names, in the order of its arguments.
            outputs: names of what it gives.
        """
        import onnxruntime
        from onnxscript import opset18

        changing = tuple(
            {0: Dim.DYNAMIC}
            | {i: Dim.AUTO for i in range(1, tensor.ndim) if _is_length(key, tensor, i)}
            for key, tensor in inputs.items()
        )
        path = self.folder / f"{name}.onnx"
        names = [f"out_{one}" if one in inputs else one for one in outputs]
        with warnings.catch_warnings(), _quiet_optimizer():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Part(model, function),
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=names,
                dynamic_shapes=(changing,),
                external_data=False,
                verbose=False,
                custom_translation_table={torch.ops.itmkit.gru.default: _onnx_gru(opset18)},
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._sessions[name] = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.facts[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "inputs": {one.name: one.type for one in self._sessions[name].get_inputs()},
            "outputs": names,
        }

    def call(self, name: str, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What onnxruntime computes."""
        session = self._sessions[name]
        wanted = {one.name for one in session.get_inputs()}
        given = {key: value.numpy() for key, value in inputs.items() if key in wanted}
        return [torch.from_numpy(array) for array in session.run(None, given)]


class _Part(nn.Module):
    """A function of a model as a module of tensors."""

    def __init__(self, model: nn.Module, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


@contextmanager
def _quiet_optimizer() -> Iterator[None]:
    """Without the lines on what the optimizer of the ONNX files skips."""
    logger = logging.getLogger("onnxscript")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _onnx_gru(op: Any) -> Callable[..., Any]:
    """The operator ``itmkit::gru`` as ONNX's GRU, whose gates are in another order."""

    def gru(tokens: Any, state: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        def ordered(weight: Any) -> Any:
            reset, update, new = op.Split(weight, num_outputs=3, axis=0)
            return op.Concat(update, reset, new, axis=0)

        first = op.Constant(value_ints=[0])
        states, _ = op.GRU(
            op.Transpose(tokens, perm=[1, 0, 2]),
            op.Unsqueeze(ordered(w_ih), first),
            op.Unsqueeze(ordered(w_hh), first),
            op.Unsqueeze(op.Concat(ordered(b_ih), ordered(b_hh), axis=0), first),
            None,
            op.Unsqueeze(state, first),
            hidden_size=w_hh.shape[1],
            linear_before_reset=1,
        )
        one = op.Constant(value_ints=[1])
        return op.Transpose(op.Squeeze(states, one), perm=[1, 0, 2])

    return gru


def _is_length(name: str, tensor: Tensor, dim: int) -> bool:
    """Whether a dimension counts tokens."""
    if tensor.ndim == 4 or name == "pairs":
        return False
    return name == "relations" or (dim == 1 and (tensor.ndim == 3 or tensor.dtype != torch.float32))
