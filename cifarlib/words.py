"""Numbers, names and lists as a text has them."""

import numpy as np


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"


def points(difference: float) -> str:
    return f"{100 * abs(difference):.2f} points"


def signed(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def duration(seconds: float) -> str:
    """A length of time as people say it: `90 s`, `12 min`, `2.7 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def against(gap: float, margin: float, noise: str) -> str:
    """A difference beside noise: `more than the noise` where it exceeds the margin, or `no more than the noise`."""
    return f"{'more' if abs(gap) > margin else 'no more'} than the {noise}"


def in_words(n: int) -> str:
    """`no`, `one` to `ten`, then figures."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[n] if n < len(words) else f"{n:,}"


def counted(n: int, noun: str) -> str:
    """`one row`, `two rows`, `12 rows`."""
    return f"{in_words(n)} {noun}{'' if n == 1 else 's'}"


def listed(items, word: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`; or with another word."""
    *first, last = map(str, items)
    return f"{', '.join(first)} {word} {last}" if first else last


def some(names) -> str:
    """At most three of the names, and how many more there are."""
    names = list(map(str, names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def value_text(value) -> str:
    """A field's value as the runs' names have it, 1e-05, 80 or step; on or off; a model's sizes, default for none."""
    if isinstance(value, (bool, np.bool_)):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ", ".join(f"{name} {size}" for name, size in value.items()) or "default"
    return value if isinstance(value, str) else f"{value:g}"
