"""Surrogate: latency of kernels that were not measured, fitted on the measured ones; a mean and its uncertainty.

What is fitted is the logarithm of measured over analytic. The analytic model already has the staircase of vectors and
tiles; what it misses is

1. a level of each kind of kernel, and how it bends over widths and image size; levels of places and families (``traits``) within
   it: a Bayesian linear regression over all measurements, so that a family nobody measured profits from the others
   (Gelman & Hill, Data Analysis Using Regression and Multilevel/Hierarchical Models, 2007, ch. 12);
2. what is left of it within a place, over both widths: a Gaussian process with a smooth part, and a rough one for what
   changes from width to width, such as the schedule that won (Rasmussen & Williams, Gaussian Processes for Machine Learning,
   2006, ch. 2). The measurements' own spread is its noise.

The hyperparameters below are pooled over all families. How wide the uncertainty is, is corrected by how far each measurement
is from what the others say of it (leave-one-out, ibid., section 5.4.2).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Hashable, Sequence

import numpy as np

from hwprune.cost.traits import Traits


@dataclass(frozen=True)
class Hyperparameters:
    """Standard deviations are of the logarithm of measured over analytic, lengths in octaves of a width.

    kind : of the levels of kinds, of anchors, and of everything. place, family : of further levels. slope, bend : of a kind, for
        each octave and for each product of two. rest : what the regression leaves.
    smooth, rough, own : of the process; ``own`` is of the part that is a family's, not its place's.
    noise : of a measurement, beside its own spread. It has how well the tuner did in it.

    The values maximize, about, the predictive density of kernels held out (10 % and 40 % told) of ResNet-18, ResNet-56 and
    MobileNetV2, measured on two cores of a Zen 5 (`benchmarks.cost_model`).
    """

    kind: float = 0.36
    place: float = 0.04
    family: float = 0.02
    slope: float = 0.08
    bend: float = 0.025
    rest: float = 0.12
    smooth: float = 0.05
    smooth_length: float = 1.2
    rough: float = 0.045
    rough_length: float = 0.28
    own: float = 0.015
    noise: float = 0.036


#: Of a place, measurements that take part: the process takes time with the third power of them.
_MOST_POINTS = 400
#: Measurements farther from what the others say than so many standard deviations are doubted, in a second look at all.
_BELIEVED, _SECOND_LOOKS = 2.5, 1
#: Bounds of the correction of the uncertainty: few measurements say little about it.
_CORRECTION, _EXPECTED = (0.5, 3.0), 30
#: Slopes and bends of a kind, and where they turn: octaves of channels out, of the reduction, and of results a channel.
_SLOPES = ("out", "in", "volume", "out out", "in in", "volume volume", "out in", "out volume", "in volume")
_MIDDLE = np.array([6.0, 9.0, 9.0])


@dataclass(frozen=True)
class _Place:
    """The process of one place: its points, and what follows from their values."""

    at: np.ndarray
    families: np.ndarray
    inverse: np.ndarray
    weights: np.ndarray


class Surrogate:
    """Fitted once, from measurements: ``traits`` of each, log of measured over analytic, and the log's spread (std).

    correction : factor on the uncertainty, found by leaving out one measurement at a time.
    surprise : how far above what the others say of it each measurement is, in standard deviations, float64 [n].
    """

    def __init__(
        self, traits: Sequence[Traits], ratios: np.ndarray, spreads: np.ndarray, parameters: Hyperparameters = Hyperparameters()
    ):
        self.parameters, self.correction = parameters, 1.0
        ratios = np.asarray(ratios, dtype=np.float64)
        noise = parameters.noise**2 + np.asarray(spreads, dtype=np.float64) ** 2
        self._columns: dict[Hashable, int] = {}
        self._families = {name: number for number, name in enumerate(dict.fromkeys(t.family for t in traits))}
        doubt = np.zeros(len(ratios))
        for _ in range(1 + _SECOND_LOOKS):
            self._regress(traits, ratios, noise + doubt)
            self._places, errors, variances = self._processes(traits, ratios - self._level(traits)[0], noise + doubt)
            deviations = np.sqrt(variances - doubt)
            # what the others do not believe counts less (iteratively reweighted, as in robust regression)
            doubt = np.maximum(np.abs(errors) - _BELIEVED * deviations, 0.0) ** 2
        self.surprise = errors / deviations
        # as if some more points had been just as far off as expected
        told = np.append(np.minimum(np.abs(self.surprise), _BELIEVED) ** 2, np.ones(_EXPECTED))
        self.correction = float(np.clip(np.sqrt(told.mean()), *_CORRECTION))

    def predict(self, traits: Sequence[Traits]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of log of measured over analytic, float64 [n]; the latter is that of a measurement
        to be made, with its noise."""
        p = self.parameters
        mean, variance = self._level(traits)
        rest = np.full(len(mean), p.smooth**2 + p.rough**2 + p.own**2)
        for place, rows in _by_place(traits).items():
            known = self._places.get(place)
            if known is not None:
                cross = self._covariance(*self._coordinates([traits[i] for i in rows]), known.at, known.families)
                mean[rows] += cross @ known.weights
                rest[rows] -= ((cross @ known.inverse) * cross).sum(axis=1)
        return mean, self.correction * np.sqrt(variance + np.maximum(rest, 0.0) + p.noise**2)

    def learned(self, traits: Sequence[Traits], one: Traits) -> np.ndarray:
        """By how much the variance of each would go down if ``one`` were measured, float64 [n]."""
        p = self.parameters
        columns, values, _ = self._design([*traits, one])
        common = (self._posterior[columns, columns[-1][:, None, None]].transpose(1, 2, 0) @ values[-1] * values).sum(axis=1)
        level = common[:-1] ** 2 / (common[-1] + p.rest**2 + p.noise**2)
        rows = [i for i, t in enumerate(traits) if t.place == one.place]
        if rows:
            there, here = self._coordinates([*(traits[i] for i in rows), one]), self._coordinates([one])
            found = self._covariance(*there, *here)[:, 0]
            known = self._places.get(one.place)
            if known is not None:
                cross = self._covariance(*there, known.at, known.families)
                found = found - cross @ (known.inverse @ cross[-1])
            level[rows] += found[:-1] ** 2 / (found[-1] + p.noise**2)
        return self.correction**2 * level

    # -- levels and slopes, over all kernels

    def _names(self, t: Traits) -> tuple[Hashable, ...]:
        """Of what a kernel's level is the sum of: its levels, and the slopes of its kind."""
        return (*t.levels, *((t.kind, name) for name in _SLOPES))

    @cached_property
    def _deviations(self) -> np.ndarray:
        """Standard deviation of each term's coefficient before any data."""
        p = self.parameters
        return np.array([p.kind, p.kind, p.kind, p.place, p.family, *[p.slope] * 3, *[p.bend] * 6])

    def _design(self, traits: Sequence[Traits]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Column and value of each term [n, terms], and the variance of the terms that no measurement has [n]."""
        known, last = self._columns, len(self._columns)  # the last is a column of nothing
        columns = np.array([[known.get(name, last) for name in self._names(t)] for t in traits])
        values = np.ones(columns.shape)
        out, inner, volume = np.array([(*t.position, t.volume) for t in traits]).T - _MIDDLE[:, None]
        products = (out * out, inner * inner, volume * volume, out * inner, out * volume, inner * volume)
        values[:, -len(_SLOPES) :] = np.stack([out, inner, volume, *products], axis=1)
        unknown = columns == last
        variance = (np.where(unknown, values, 0.0) * self._deviations) ** 2
        return columns, np.where(unknown, 0.0, values), variance.sum(axis=1)

    def _regress(self, traits: Sequence[Traits], ratios: np.ndarray, noise: np.ndarray) -> None:
        for t in traits:
            for name in self._names(t):
                self._columns.setdefault(name, len(self._columns))
        columns, values, _ = self._design(traits)
        size = len(self._columns)
        prior = np.ones(size + 1)
        prior[columns] = self._deviations**-2.0
        design = np.zeros((len(traits), size + 1))
        np.add.at(design, (np.arange(len(traits))[:, None], columns), values)
        scaled = design / (noise + self.parameters.rest**2)[:, None]
        self._posterior = np.linalg.inv(design.T @ scaled + np.diag(prior))
        self._coefficients = self._posterior @ (scaled.T @ ratios)

    def _level(self, traits: Sequence[Traits]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the regression, float64 [n]."""
        columns, values, unknown = self._design(traits)
        mean = (self._coefficients[columns] * values).sum(axis=1)
        weighted = self._posterior[columns[:, :, None], columns[:, None, :]] * values[:, :, None] * values[:, None, :]
        return mean, weighted.sum(axis=(1, 2)) + unknown

    # -- the rest, place by place

    def _processes(
        self, traits: Sequence[Traits], rest: np.ndarray, noise: np.ndarray
    ) -> tuple[dict[str, _Place], np.ndarray, np.ndarray]:
        """By place; and of each measurement, how far it is from what the others say, and the variance of that."""
        places, errors, variances = {}, np.zeros(len(traits)), noise.copy()
        for place, rows in _by_place(traits).items():
            rows = rows[-_MOST_POINTS:]
            at, families = self._coordinates([traits[i] for i in rows])
            inverse = np.linalg.inv(self._covariance(at, families, at, families) + np.diag(noise[rows]))
            weights = inverse @ rest[rows]
            places[place] = _Place(at, families, inverse, weights)
            errors[rows], variances[rows] = weights / np.diag(inverse), 1 / np.diag(inverse)
        return places, errors, variances

    def _coordinates(self, traits: Sequence[Traits]) -> tuple[np.ndarray, np.ndarray]:
        """Positions [n, 2] and numbers of the families [n]."""
        return np.array([t.position for t in traits]), np.array([self._families.get(t.family, -1) for t in traits])

    def _covariance(self, a: np.ndarray, of_a: np.ndarray, b: np.ndarray, of_b: np.ndarray) -> np.ndarray:
        p = self.parameters
        apart = np.abs(a[:, None, :] - b[None, :, :])
        distance = np.sqrt(3.0) / p.smooth_length * np.sqrt((apart**2).sum(axis=2))
        smooth = (1.0 + distance) * np.exp(-distance)  # Matern, 3/2
        rough = np.exp(-apart.sum(axis=2) / p.rough_length)
        same = (of_a[:, None] == of_b[None, :]) & (of_a[:, None] >= 0)
        return (p.smooth**2 + p.own**2 * same) * smooth + p.rough**2 * rough


def _by_place(traits: Sequence[Traits]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for i, t in enumerate(traits):
        members[t.place].append(i)
    return members
