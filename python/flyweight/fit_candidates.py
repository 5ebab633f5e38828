"""Whole models at one slope, with their exact sizes: what ``fit`` chooses among."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flyweight.artifact import FLOAT_DTYPES, keep_tensor
from flyweight.codecs.select import Effort
from flyweight.errors import InvalidArgumentError
from flyweight.format.section import CodedTensor
from flyweight.format.stored import PlainTensor, Stored
from flyweight.kernels.parallel import map_parallel
from flyweight.quant.clip import sdclip_scales
from flyweight.quant.equal_slope import (
    Curvature,
    curvature_of,
    damage_by_row,
    quantize_at,
    slope_range,
    steps_in_deviations,
)
from flyweight.quant.gptq import round_to_nearest
from flyweight.quant.grid import Grid, QuantizedTensor, matrix_shape
from flyweight.typing import AnyArray

__all__ = ["Candidate", "Candidates", "FittedTensor"]

GAUSSIAN_POWER = 2**4.1
"""A Gaussian in steps of one deviation has an order-0 entropy of half the log2 of this."""
FIXED_BITS, FIXED_K = 8, 20.0
"""Grid of tensors without calibration in a calibrated model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedTensor:
    """One tensor of a candidate."""

    stored: Stored
    """What goes into the file."""
    coded: CodedTensor
    """Its bytes."""
    method: str
    """``gptq``, ``rtn``, ``fixed``, ``lossless`` or ``float``."""
    damage: float
    """Its part of the objective."""
    relative_error: float
    """``|W - W'|^2 / |W|^2``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A whole model."""

    log_slope: float
    """Base 2 logarithm of the slope of its steps."""
    tensors: Mapping[str, FittedTensor]
    """All tensors, by name."""
    size: int
    """Bytes of the file."""

    @property
    def damage(self) -> float:
        """The objective, summed over tensors."""
        return sum(tensor.damage for tensor in self.tensors.values())


class Candidates:
    """Makes candidates of one checkpoint.

    Parameters
    ----------
    tensors, hessians, sensitivities, min_elements, threads : see :func:`flyweight.fitting.fit`
    code : stored tensors to their bytes, with an effort
    join : coded tensors to the file
    effort : that of the file; the way there takes less
    """

    def __init__(
        self,
        tensors: Mapping[str, AnyArray],
        hessians: Mapping[str, NDArray[np.float32]],
        sensitivities: Mapping[str, NDArray[np.float32]],
        *,
        min_elements: int,
        threads: int | None,
        code: Callable[[Mapping[str, Stored], Effort], dict[str, CodedTensor]],
        join: Callable[[Mapping[str, CodedTensor]], bytes],
        effort: Effort,
    ) -> None:
        for kind, given in (("Hessian", hessians), ("sensitivity", sensitivities)):
            if unknown := sorted(set(given) - set(tensors)):
                raise InvalidArgumentError(f"there is a {kind} for {unknown[0]!r}, but no tensor")
        self.tensors, self.threads, self.join = tensors, threads, join
        self._code, self.effort = code, effort
        self.is_loss = bool(hessians and sensitivities)
        matrices = [name for name, array in tensors.items() if _is_matrix(array, min_elements)]
        calibrated = set(hessians) & set(sensitivities)
        self.names = [name for name in matrices if not self.is_loss or name in calibrated]
        self.fixed = [name for name in matrices if name not in self.names]
        self.matrices = {name: _matrix(name, tensors[name]) for name in self.names}
        self.curvatures = self._curvatures(hessians, sensitivities)
        self._base: dict[str, FittedTensor] | None = None

    @property
    def base(self) -> dict[str, FittedTensor]:
        """Tensors that no slope changes."""
        if self._base is None:
            others = [n for n in self.tensors if n not in self.matrices and n not in self.fixed]
            made: dict[str, _Made] = {name: _kept(name, self.tensors[name]) for name in others}
            made |= {name: _fixed(name, self.tensors[name]) for name in self.fixed}
            self._base = self._fitted(made, self.effort)
        return self._base

    def at(self, log_slope: float) -> Candidate:
        """The model with steps of a slope, coded without slow codecs."""
        made = map_parallel(
            lambda name: self._quantized(name, log_slope),
            self.names,
            sizes=[self.matrices[name].size for name in self.names],
            threads=self.threads,
        )
        fitted = self._fitted(dict(zip(self.names, made, strict=True)), "fast")
        return self.candidate(log_slope, self.base | fitted)

    def finished(self, candidate: Candidate) -> Candidate:
        """A candidate with every codec tried that is to be tried."""
        coded = self._code({n: candidate.tensors[n].stored for n in self.names}, self.effort)
        smaller = {
            name: replace(candidate.tensors[name], coded=coded[name])
            for name in self.names
            if len(coded[name].body) < len(candidate.tensors[name].coded.body)
        }
        return self.candidate(candidate.log_slope, {**candidate.tensors, **smaller})

    def candidate(self, log_slope: float, tensors: Mapping[str, FittedTensor]) -> Candidate:
        """Any choice of tensors as a candidate."""
        size = len(self.join({name: tensor.coded for name, tensor in tensors.items()}))
        return Candidate(log_slope=log_slope, tensors=tensors, size=size)

    def lossless(self) -> dict[str, FittedTensor]:
        """All tensors with all their bits."""
        return self._fitted(
            {
                name: _Made(PlainTensor(values=array, dtype=array.dtype), "lossless", 0.0, 0.0)
                for name, array in self.tensors.items()
            },
            self.effort,
        )

    def slope_range(self) -> tuple[float, float]:
        """Logarithms of the slopes where all steps are the finest, and where all codes are zero."""
        ends = [slope_range(self.matrices[name], self.curvatures[name]) for name in self.names]
        live = [end for end in ends if end is not None]
        if not live:
            return 0.0, 0.0
        return min(low for low, _ in live), max(high for _, high in live)

    def expected_bytes(self, log_slope: float) -> float:
        """About the size of the file at a slope: rows taken as Gaussian, at their own order-0."""
        bits = 0.0
        for name in self.names:
            ratios = steps_in_deviations(self.matrices[name], self.curvatures[name], log_slope)
            per_row = 0.5 * np.log2(1 + GAUSSIAN_POWER * ratios**2)
            bits += float(per_row.sum()) * self.matrices[name].shape[1]
        return bits / 8 + float(sum(len(tensor.coded.body) for tensor in self.base.values()))

    def _curvatures(
        self,
        hessians: Mapping[str, NDArray[np.float32]],
        sensitivities: Mapping[str, NDArray[np.float32]],
    ) -> dict[str, Curvature]:
        # Query, key and value see the same inputs: one factor serves all that have equal Hessians.
        groups: dict[bytes, list[str]] = {}
        for name in self.names:
            hessian = hessians.get(name)
            key = name.encode() if hessian is None else hashlib.blake2b(hessian.tobytes()).digest()
            groups.setdefault(key, []).append(name)

        def shared(names: list[str]) -> list[Curvature]:
            made: list[Curvature] = []
            for name in names:
                try:
                    curvature = curvature_of(
                        self.matrices[name].shape,
                        hessian=hessians.get(name),
                        sensitivity=sensitivities.get(name) if self.is_loss else None,
                        like=made[0] if made else None,
                    )
                except InvalidArgumentError as error:
                    raise InvalidArgumentError(f"tensor {name!r}: {error}") from error
                made.append(curvature)
            return made

        grouped = list(groups.values())
        made = map_parallel(
            shared,
            grouped,
            sizes=[self.matrices[names[0]].shape[1] for names in grouped],
            threads=self.threads,
        )
        found = {
            name: curvature
            for names, curvatures in zip(grouped, made, strict=True)
            for name, curvature in zip(names, curvatures, strict=True)
        }
        return found if self.is_loss else self._relative(found)

    def _relative(self, curvatures: Mapping[str, Curvature]) -> dict[str, Curvature]:
        """Weigh tensors so that damages add up to the mean relative error of a weight's tensor."""
        total = sum(matrix.size for matrix in self.matrices.values())
        weighed = {}
        for name, curvature in curvatures.items():
            matrix = self.matrices[name]
            power = float(damage_by_row(matrix, np.zeros_like(matrix), curvature).sum())
            share = matrix.size / total / power if power > 0 else 1.0
            weighed[name] = replace(curvature, sensitivity=curvature.sensitivity * share)
        return weighed

    def _quantized(self, name: str, log_slope: float) -> _Made:
        array, matrix, curvature = self.tensors[name], self.matrices[name], self.curvatures[name]
        tensor, damage = quantize_at(matrix, curvature, 2.0**log_slope)
        return _Made(
            replace(tensor, shape=array.shape, dtype=array.dtype),
            "rtn" if curvature.factor is None else "gptq",
            float(damage.sum()),
            _relative_error(matrix, tensor),
        )

    def _fitted(self, made: Mapping[str, _Made], effort: Effort) -> dict[str, FittedTensor]:
        coded = self._code({name: each.stored for name, each in made.items()}, effort)
        return {
            name: FittedTensor(
                stored=each.stored,
                coded=coded[name],
                method=each.method,
                damage=each.damage,
                relative_error=each.relative_error,
            )
            for name, each in made.items()
        }


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor before it is coded."""

    stored: Stored
    method: str
    damage: float
    relative_error: float


def _is_matrix(array: AnyArray, min_elements: int) -> bool:
    return array.ndim >= 2 and array.size >= max(min_elements, 1) and array.dtype in FLOAT_DTYPES


def _matrix(name: str, array: AnyArray) -> NDArray[np.float32]:
    matrix = np.ascontiguousarray(array.reshape(matrix_shape(array.shape)), dtype=np.float32)
    if not np.isfinite(matrix).all():
        row, col = (int(i) for i in np.argwhere(~np.isfinite(matrix))[0])
        raise InvalidArgumentError(
            f"tensor {name!r}: {matrix[row, col]} at row {row}, column {col}"
        )
    return matrix


def _kept(name: str, array: AnyArray) -> _Made:
    try:
        return _Made(keep_tensor(array), "float", 0.0, 0.0)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"tensor {name!r}: {error}") from error


def _fixed(name: str, array: AnyArray) -> _Made:
    """A tensor whose damage nobody measured: fine steps, whatever the budget."""
    matrix, grid = _matrix(name, array), Grid.symmetric(FIXED_BITS)
    scales = sdclip_scales(matrix, grid, k=FIXED_K)
    tensor = QuantizedTensor(
        shape=array.shape,
        dtype=array.dtype,
        grid=grid,
        codes=round_to_nearest(matrix, scales, grid),
        scales=scales,
    )
    return _Made(tensor, "fixed", 0.0, _relative_error(matrix, tensor))


def _relative_error(matrix: NDArray[np.float32], tensor: QuantizedTensor) -> float:
    values = tensor.grid.dequantize(
        tensor.codes, tensor.scales, tensor.zero_points, tensor.column_scales
    )
    power = float(np.square(matrix, dtype=np.float64).sum())
    return float(np.square(matrix - values, dtype=np.float64).sum()) / power if power else 0.0
