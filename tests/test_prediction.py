"""A cheap table against an expensive one, and first epochs against last ones."""

import numpy as np
import pandas as pd
import pytest
from results_tables import table, write_study

from cifarlib.results.prediction import (agreement, by_epoch, early_choice, halved, matched, rank_correlation,
                                         same_order)
from cifarlib.results.table import check_table, read_table


@pytest.fixture(scope="module")
def full():
    return check_table(table(models=("cnn", "resnet")), "test_accuracy_best_val_acc")


def cheap_of(change):
    """The same grid of narrower models, whose accuracies are changed."""
    frame = table(models=("cnn", "resnet")).assign(model_args='{"widths": [8, 8, 8, 8]}')
    frame = frame[frame["Modelname"] == "resnet"]
    for column in [name for name in frame if name.startswith(("test_accuracy", "val_accuracy_best"))]:
        frame[column] = change(frame[column])
    return check_table(frame)


def test_a_table_that_keeps_the_order_predicts_it_all(full):
    cheap = cheap_of(lambda accuracy: accuracy**3)
    both = matched(cheap, full, "resnet")
    assert len(both) == 224, "96 cells of the cosine are 32 configurations"
    assert rank_correlation(both["cheap"], both["full"]) == pytest.approx(1, abs=1e-3)
    text = agreement(cheap, full)
    assert "| ResNet | 224 | 1.00 | 1.00 |" in text and "ResNet 0.001 (there 0.001)" in text and "CNN" not in text


def test_a_table_that_reverses_the_order_says_so(full):
    cheap = cheap_of(lambda accuracy: 1 - accuracy)
    both = matched(cheap, full, "resnet")
    assert rank_correlation(both["cheap"], both["full"]) == pytest.approx(-1, abs=1e-3)
    assert same_order(both, "learning_rate")[0] == 0
    lost = both["full"].max() - both["full"][both["score"].idxmax()]
    assert lost > 0.3 and f"| {100 * lost:.2f} points |" in agreement(cheap, full)


def test_pairs_differ_in_one_knob_alone():
    knobs = dict(augmentation=False, scheduler="step", weight_decay=0.1, gamma=0.9)
    both = pd.DataFrame([{**knobs, "learning_rate": rate, "cheap": cheap, "full": full}
                         for rate, cheap, full in ((1, 0.1, 0.1), (2, 0.2, 0.3), (3, 0.3, 0.2), (4, 0.3, 0.4))])
    # Of the six pairs 3 and 4 are equal in the cheap table, and 2 and 3 lie the other way round.
    assert same_order(both, "learning_rate") == (pytest.approx(4 / 5), 5)
    fraction, pairs = same_order(both, "gamma")
    assert np.isnan(fraction) and pairs == 0


def test_too_few_configurations_in_common_say_so(full):
    few = check_table(table(models=("vit",)))
    assert "too few" in agreement(few, full)


def test_the_first_epochs_of_runs_are_read_from_their_histories(tmp_path):
    write_study(tmp_path, table(models=("resnet",), weight_decay=(0.01,), epochs=(4,)))
    curves = by_epoch(read_table(tmp_path), "resnet")
    assert curves.shape == (4 * 2 * 7, 4) and list(curves) == [1, 2, 3, 4]


def test_what_is_lost_by_stopping_all_but_the_best_part_early():
    last = np.arange(16) / 100
    curves = pd.DataFrame({1: -last, 2: [*last[:8], *last[15:7:-1]], 3: last})
    found = early_choice(curves)
    assert found["correlation"].tolist() == [pytest.approx(-1), pytest.approx(np.corrcoef(curves[2], last)[0, 1]), 1]
    assert found.loc[1, 2] == pytest.approx(0.08) and found.loc[1, 8] == pytest.approx(0.14)
    assert found.loc[2, 2] == 0 and found.loc[2, 8] == pytest.approx(0.06) and (found.loc[3, [2, 4, 8]] == 0).all()


def test_successive_halving_is_replayed_on_the_histories():
    # Of eight runs four go on after epoch 1, two after 2, one after 4: 8 + 4 + 2 * 2 + 4 epochs of 64.
    curves = pd.DataFrame({epoch: np.arange(8.0) for epoch in range(1, 9)})
    assert halved(curves, 2) == (pytest.approx(20 / 64), 0)
    curves[1] = -curves[1]  # the worst four look best at first
    assert halved(curves, 2) == (pytest.approx(20 / 64), 4)
