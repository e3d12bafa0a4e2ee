"""Statistics as pure functions of numbers."""

import itertools
import math

import numpy as np
import pandas as pd

Z = 1.959964  # two-sided 95%
BINS = 15  # of confidence, as in Guo et al.
# Upper 5% points of the studentized range of k = 2 to 5 equal normal variables; columns: the degrees of freedom of the
# SD's estimate, as in FREEDOM. Source: J. Tukey, "The Problem of Multiple Comparisons", 1953.
STUDENTIZED_RANGE = {
    2: (2.772, 3.151, 3.199, 3.261, 3.344, 3.460, 3.635, 3.926, 4.501, 6.085, 17.969),
    3: (3.314, 3.877, 3.948, 4.041, 4.165, 4.339, 4.602, 5.040, 5.910, 8.331, 26.976),
    4: (3.633, 4.327, 4.415, 4.529, 4.681, 4.896, 5.218, 5.757, 6.825, 9.798, 32.819),
    5: (3.858, 4.654, 4.755, 4.886, 5.060, 5.305, 5.673, 6.287, 7.502, 10.881, 37.082),
}
FREEDOM = np.array([np.inf, *range(10, 0, -1)])


def wilson(accuracy, n, z: float = Z):
    """Bounds (low, high) of the Wilson score interval of a fraction of n images; E. B. Wilson, JASA 22, 1927."""
    accuracy, n = np.asarray(accuracy, float), np.asarray(n, float)
    centre = (accuracy + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(accuracy * (1 - accuracy) / n + z**2 / (4 * n**2))
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def selection_bias(scores, sd: float) -> float:
    """How much the highest of `scores` overstates its own run's expected score.

    By a parametric bootstrap with noise of `sd` around the scores, which are noisy already: too low where the true
    values are equal, too high where one is well ahead.
    """
    scores = np.asarray(scores, float)
    scores = scores[scores >= scores.max() - 6 * sd]  # the rest can't win
    drawn = scores + np.random.default_rng(0).normal(0, sd, (4000, len(scores)))
    return float((drawn.max(axis=1) - scores[drawn.argmax(axis=1)]).mean())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): row = true class, column = predicted class."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> tuple[pd.DataFrame, float]:
    """BINS bins of equal width (confidence, accuracy, n) and the expected calibration error; Guo et al., ICML 2017."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    groups = pd.DataFrame({"confidence": confidence, "accuracy": right}).groupby(number)
    bins = groups.mean().assign(n=groups.size())
    return bins, float(((bins["accuracy"] - bins["confidence"]).abs() * bins["n"]).sum() / len(labels))


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(only the first right, only the second right, two-sided exact p) for two runs' hits (N,); Q. McNemar, 1947."""
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return b, c, min(1.0, 2 * tail / 2 ** (b + c))


def holm(p_values) -> np.ndarray:
    """P-values corrected for being many; S. Holm, 1979."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def decompose(grid: pd.DataFrame, knobs: list[str]) -> pd.Series:
    """Fractions of variance by functional ANOVA of a full factorial, exact; Hutter et al., ICML 2014.

    Of a pair of knobs: what both explain together beyond what each does alone.
    """
    def explained(*by: str) -> float:
        return grid.groupby(list(by))["score"].transform("mean").var() / grid["score"].var()

    fractions = {knob: explained(knob) for knob in knobs}
    fractions |= {f"{one} x {other}": explained(one, other) - fractions[one] - fractions[other]
                  for one, other in itertools.combinations(knobs, 2)}
    return pd.Series(fractions | {"rest": max(0.0, 1 - sum(fractions.values()))})


def main_effects(grid: pd.DataFrame, knobs: list[str]) -> pd.Series:
    """Fraction of variance that each knob explains beyond all others, by least squares: for a grid with holes."""
    target = grid["score"].to_numpy()

    def explained(chosen):
        levels = [pd.get_dummies(grid[knob].astype(str)).to_numpy(float) for knob in chosen]
        design = np.column_stack([np.ones(len(grid)), *levels])
        return 1 - (target - design @ np.linalg.lstsq(design, target)[0]).var() / target.var()

    fractions = {knob: max(0.0, explained(knobs) - explained([k for k in knobs if k != knob])) for knob in knobs}
    return pd.Series(fractions | {"rest": max(0.0, 1 - sum(fractions.values()))})


def expected_best(scores) -> np.ndarray:
    """Expected highest score among k runs drawn without replacement, for k = 1..N; after Dodge et al., EMNLP 2019."""
    ordered, drawn = np.sort(np.asarray(scores, float)), np.arange(len(scores))
    # (i, k): the chance that all k + 1 drawn ones are among the lowest i + 1
    among_lowest = np.cumprod(np.maximum(drawn[:, None] + 1 - drawn, 0) / (len(drawn) - drawn), axis=1)
    return ordered @ np.diff(among_lowest, axis=0, prepend=0)
