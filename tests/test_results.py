"""What a table of runs says, against published numbers, closed forms and tables with a known answer."""

import itertools
import math
import os
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import results_tables as made

from cifarlib import words
from cifarlib.results import knobs, markdown, ranking, sentences, statistics, table as tables
from cifarlib.config import Config
from cifarlib.errors import InputError

ONE = dict(learning_rate=(0.001,), weight_decay=(0.001,), gamma=(0.97,), scheduler=("cosine",), augmentation=(True,))
SMALL = dict(learning_rate=(0.001, 0.0001), weight_decay=(0.001,), gamma=(0.95, 0.99), scheduler=("step", "cosine"))


def checked(frame, **options) -> tables.Table:
    return tables.check_table(frame, **options)


def said(table: tables.Table, model: str = "") -> str:
    """The key observations on a model, or across models."""
    return " ".join(sentences.observations(table, model) if model else sentences.overall_observations(table))


def runs_of(*configs: Config, accuracy=0.8, **columns) -> pd.DataFrame:
    """A table of one run of each configuration, each a thousandth better than the one before."""
    noise = np.random.default_rng(0)
    return pd.DataFrame([made.row(config, score, noise) | {"val_accuracy_best_val_acc": score} | columns
                         for config, score in zip(configs, np.arange(accuracy, 1, 0.001))])


def varied(**values) -> list[Config]:
    """A configuration for each combination of the values, of a ResNet where nothing else is said."""
    return [Config(**dict(zip(values, chosen))) for chosen in itertools.product(*values.values())]


def repeats(rates=(0.001,), seeds=(100, 101, 102)) -> pd.DataFrame:
    """A ResNet at each learning rate with each seed."""
    return made.table(models=("resnet",), seeds=seeds, **{**ONE, "learning_rate": rates})


def once_more(frame: pd.DataFrame) -> pd.DataFrame:
    """The same runs in another study, with a little lower test accuracies."""
    return frame.assign(study="again", **{c: frame[c] - 0.01 for c in frame if c.startswith("test_accuracy")})


@pytest.fixture(scope="module")
def published() -> tables.Table:
    if not os.environ.get("PUBLISHED_RUNS"):
        pytest.skip("needs the published table in $PUBLISHED_RUNS")
    return tables.read_table(os.environ["PUBLISHED_RUNS"])


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    return made.table(finalist_seeds=(1, 2), **SMALL)


# ------------------------------------------------------------------ the published table, against the published report


PUBLISHED = {
    "cnn": ("cnn_aug_True_scheduler_step_lr_0.0001_wd_0.0001_gamma_0.99", [86.97, 86.87, 86.66, 86.48, 86.47],
            ["86.47% to 86.97%", "scheduler step (4) and exponential (1)", "learning rate 0.0001; ",
             "gamma 0.99 (4) and 0.97 (1)", "augmentation on."]),
    "resnet": ("resnet_aug_True_scheduler_cosine_lr_0.001_wd_0.001_gamma_0.97", [84.22, 84.21, 83.99, 83.99, 83.95],
               ["83.95% to 84.22%", "learning rate 0.001; ", "; scheduler cosine; augmentation on."]),
    "vit": ("vit_aug_True_scheduler_cosine_lr_0.0001_wd_0.001_gamma_0.95", [83.50, 83.50, 83.50, 83.37, 83.37],
            ["two configurations", "two other runs have the same test accuracy"]),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_top_five_and_what_is_said_of_them(published, model):
    name, accuracies, phrases = PUBLISHED[model]
    best, text = ranking.top(published, model), said(published, model)
    assert best["name"].iloc[0] == name and all(phrase in text for phrase in phrases)
    for column in ("test", "per_class"):
        assert best[column].mul(100).round(2).tolist() == accuracies


def test_the_published_overall_ranking(published):
    best = ranking.overall(published).set_index("model")
    assert best["name"].to_dict() == {model: name for model, (name, *_) in PUBLISHED.items()}
    assert best["test"].mul(100).round(2).to_dict() == {"cnn": 86.97, "resnet": 84.22, "vit": 83.50}
    text = said(published)
    assert "CNN is 2.75 points above ResNet" in text and "CNN is 3.47 points above ViT" in text
    assert any("biased upward" in note for note in published.notes)


def test_published_experiments_noise_and_chance(published):
    assert len(published.rows) == 864 and len(ranking.experiments(published)) == 672
    lost = published.rows[published.rows["chance"]]
    assert len(lost) == 72 and set(lost["model"]) == {"cnn"} and set(lost["learning_rate"]) == {0.01}
    assert "every CNN run with learning rate 0.01" in sentences.chance_sentence(published)
    assert 0.002 < ranking.noise_floor(published, "resnet").sd < 0.005  # repeats differ by 0.2 to 0.5 points
    assert ranking.noise_floor(published, "vit").name == "sampling error"  # its repeats are one run three times
    shares, basis = knobs.importance(published, "resnet")
    assert shares.idxmax() == "learning_rate" and shares.sum() == pytest.approx(1)
    assert basis == "all 288 cells; noise of repeats 0.1% of the variance"  # gamma does nothing to the cosine


# ------------------------------------------------------------------ statistics, against closed forms


def test_wilson_interval():
    half = 2 * math.sqrt(0.1 * 0.9 / 100 + 4 / (4 * 100**2))  # z sqrt(p(1 - p)/n + z²/4n²)
    assert statistics.wilson(0.1, 100, z=2) == pytest.approx(((0.1 + 0.02 - half) / 1.04, (0.1 + 0.02 + half) / 1.04))
    assert statistics.wilson(1, 10) == pytest.approx((10 / (10 + statistics.Z**2), 1))
    assert statistics.wilson(0, 10)[0] == 0


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == pytest.approx([1, 1]) and len(statistics.holm([])) == 0


def test_mcnemar_is_the_exact_sign_test():
    first = np.array([True] * 9 + [False] * 3 + [True] * 8)
    second = np.array([False] * 9 + [True] * 3 + [True] * 8)
    exact = Fraction(2 * sum(math.comb(12, i) for i in range(4)), 2**12)
    assert statistics.mcnemar(first, second) == (9, 3, pytest.approx(float(exact)))
    assert statistics.mcnemar(first, first) == (0, 0, 1.0)
    assert statistics.mcnemar(np.arange(2000) % 2 == 0, np.arange(2000) % 2 == 1)[2] == 1.0


def test_expected_best_is_the_mean_over_all_draws():
    scores = [0.3, 0.9, 0.5, 0.5, 0.7]
    expected = [np.mean([max(drawn) for drawn in itertools.combinations(scores, k)]) for k in range(1, 6)]
    assert statistics.expected_best(scores) == pytest.approx(expected)
    assert statistics.expected_best(np.linspace(0, 1, 900))[-1] == pytest.approx(1)


def test_selection_bias_of_equal_runs_is_the_expected_maximum_of_noise():
    assert statistics.selection_bias([0.9, 0.9], 0.01) == pytest.approx(0.01 / math.sqrt(math.pi), rel=0.05)
    assert statistics.selection_bias([0.9, 0.5, 0.4], 0.01) == pytest.approx(0, abs=5e-4)


def grid(effect) -> pd.DataFrame:
    levels = dict(learning_rate=(1, 2, 3), scheduler=("a", "b"), augmentation=(False, True))
    frame = pd.DataFrame(list(itertools.product(*levels.values())), columns=list(levels))
    return frame.assign(score=[effect(*row) for row in frame.itertuples(index=False)])


def test_decomposition_of_constructed_factorials():
    knobs = ["learning_rate", "scheduler", "augmentation"]
    additive = grid(lambda lr, scheduler, aug: 3 * lr + 2 * (scheduler == "a") + aug)
    variances = {"learning_rate": 9 * 2 / 3, "scheduler": 4 / 4, "augmentation": 1 / 4}
    shares = statistics.decompose(additive, knobs)
    assert shares[knobs].to_dict() == pytest.approx({knob: v / 7.25 for knob, v in variances.items()})
    assert shares.drop(knobs).abs().max() < 1e-12
    assert statistics.main_effects(additive, knobs)[knobs].to_dict() == pytest.approx(shares[knobs].to_dict())
    crossed = statistics.decompose(grid(lambda lr, scheduler, aug: (-1) ** (scheduler == "a") * (-1) ** aug), knobs)
    assert crossed["scheduler x augmentation"] == pytest.approx(1)
    third = statistics.decompose(grid(lambda lr, scheduler, aug: (lr - 2) * (-1) ** (scheduler == "a") * (-1) ** aug),
                              knobs)
    assert third["rest"] == pytest.approx(1)


def test_an_incomplete_grid_says_so_and_keeps_to_main_effects_and_dead_values_are_left_out():
    frame = made.table(models=("resnet",), learning_rate=(0.01, 0.001, 0.0001), gamma=(0.97,), scheduler=("cosine",))
    shares, basis = knobs.importance(checked(frame.drop(index=[3, 11])), "resnet")
    assert basis == "22 of 24 cells, main effects only; noise not measured"
    assert not any(" x " in effect for effect in shares.index)
    assert knobs.importance(checked(frame), "resnet")[1] == "all 24 cells; noise not measured"
    assert knobs.importance(checked(frame.head(1)), "resnet") is None
    lost = made.table(models=("cnn",), weight_decay=(0.001,), gamma=(0.97,))
    assert "without learning rate 0.01, always at chance" in knobs.importance(checked(lost), "cnn")[1]


def test_calibration_and_confusion():
    labels = np.array([0, 1, 2, 3])
    probabilities = np.full((4, 10), 0.2 / 9)
    probabilities[range(4), [0, 1, 2, 9]] = 0.8
    bins, ece = statistics.calibration(probabilities, labels)
    assert ece == pytest.approx(abs(0.75 - 0.8)) and bins["n"].tolist() == [4]
    matrix = statistics.confusion_matrix(labels, probabilities.argmax(axis=1), 10)
    assert matrix[3, 9] == 1 and matrix.diagonal().sum() == 3 and matrix.sum() == 4
    assert statistics.softmax(np.array([[0.0, math.log(3)]]))[0] == pytest.approx([0.25, 0.75])


# ------------------------------------------------------------------ ranking


def test_validation_ranks_and_the_test_breaks_no_tie(small):
    frame = small[small["seed"] == 100].copy()
    frame["val_accuracy_best_val_acc"] = 0.8
    table = checked(frame)
    assert table.rank_by == "val_accuracy_best_val_acc" and not table.notes[0].startswith("The table lacks")
    own = frame[(frame["Modelname"] == "cnn") & (frame["shared_with"] == "")]
    assert ranking.ranked(table, "cnn")["Full_Modelname"].tolist() == own["Full_Modelname"].tolist()
    frame.loc[frame.index[1], "val_accuracy_best_val_acc"] = 0.9
    assert ranking.top(checked(frame), "cnn")["name"].iloc[0] == frame["Full_Modelname"].iloc[1]


def test_the_reported_checkpoint_follows_the_ranking_column(small):
    table = checked(small, rank_by="val_loss_best_val_loss")
    assert table.tested == "test_accuracy_best_val_loss" and table.score == "validation loss"
    rows = ranking.ranked(table, "vit")
    assert rows["val_loss_best_val_loss"].is_monotonic_increasing
    assert ranking.top(table, "vit")["test"].iloc[0] == rows["test_accuracy_best_val_loss"].iloc[0]
    table = checked(small, rank_by="val_accuracy_best_val_loss")
    assert ranking.top(table, "cnn")["score"].iloc[0] == small.query("Modelname == 'cnn'")[table.rank_by].max()
    assert "highest validation accuracy" in said(table, "cnn"), "of the checkpoint with the lowest loss"
    table = checked(small, rank_by="val_accuracy")
    assert table.tested == "test_accuracy_terminal" and table.ranking == "validation accuracy (checkpoint terminal)"


def test_shared_cells_count_once_and_seeds_are_repeats_not_competitors(small):
    table = checked(small)
    assert small["shared_with"].ne("").sum() == table.rows["copy"].sum() == 12  # cosine: 2 rates, 2 sides, 3 models
    assert len(ranking.candidates(table)) == 36 and set(ranking.candidates(table)["seed"]) == {100}
    finalists = ranking.finalists(table)
    assert len(finalists) == 9 and set(finalists["runs"]) == {3}
    first = finalists.index[0]
    runs = small[(small["shared_with"] == "") & (table.rows["experiment"] == first)]
    assert finalists.loc[first, "test"] == pytest.approx(runs["test_accuracy_best_val_acc"].mean())
    assert finalists.loc[first, "sd"] == pytest.approx(runs["test_accuracy_best_val_acc"].std())
    assert "66 rows are 36 configurations; the others repeat one." in said(table)
    assert "24 cells of" not in " ".join(table.notes) and "12 cells of 66 share" in " ".join(table.notes)


def test_a_table_in_the_published_format_ranks_every_row_and_counts_experiments(small):
    old = small[small["seed"] == 100].filter(regex="^(Modelname|Full_Modelname|test_(acc|loss|per)|val_accuracy$)")
    old = old.join(small[list(tables.KNOBS)]).assign(**{"Unnamed: 0": range(len(old))})
    table = checked(old)
    assert table.rank_by == "test_accuracy_best_val_acc" and len(ranking.candidates(table)) == 48
    assert len(ranking.experiments(table)) == 36 and set(ranking.experiments(table)["runs"]) == {1, 2}
    assert ranking.top(table, "cnn")["experiment"].nunique() == 4  # the best is a cosine cell, twice
    assert "48 rows are 36 configurations; the others repeat one." in said(table)
    text = said(table, "cnn")
    assert "four configurations, repeated" in text and "the test images were not used" not in text
    assert "**Choice:** made by test score among 16 runs, so the best one's accuracy is too high, by about" in text
    assert "as in the published report: the winners' test accuracies are biased upward" in table.notes[0]
    assert "the test images were not used" in said(checked(small), "cnn")


def test_noise_floor_pools_the_repeats():
    frame = repeats((0.001, 0.5)).sort_values("learning_rate", ignore_index=True)
    frame = frame.assign(test_accuracy_best_val_acc=[0.80, 0.82, 0.84, 0.60, 0.60, 0.66])
    floor = ranking.noise_floor(checked(frame.head(3)), "resnet")
    assert floor.sd == pytest.approx(0.02) and floor.name == "noise"
    assert floor.margin() == pytest.approx(4.3027 * math.sqrt(2) * 0.02, rel=1e-3)  # Student's t of two degrees
    means = ranking.margin_of_means(2 * [ranking.Noise(0.02, "", freedom=4)], [3, 2])
    assert means == pytest.approx(2.7764 * 0.02 * math.sqrt(1 / 3 + 1 / 2), rel=1e-3)
    both = ranking.noise_floor(checked(frame), "resnet")
    assert both.sd == pytest.approx(math.sqrt((0.02 ** 2 + 0.0012) / 2)) and both.freedom == 4, "of two, both count"
    alone = ranking.noise_floor(checked(frame.head(1)), "resnet")
    assert alone.sd == pytest.approx(0.004) and alone.name == "sampling error"  # sqrt(0.8 * 0.2 / 10,000)
    assert alone.margin() == pytest.approx(1.96 * math.sqrt(2) * 0.004, rel=1e-3)


@pytest.mark.parametrize("runs", [2, 3, 4, 5])
@pytest.mark.parametrize("repeats", [0, 3, 9, 15])
def test_one_in_twenty_ranges_of_equal_runs_exceeds_the_margin(runs, repeats):
    rng, trials = np.random.default_rng(1), 40_000
    ranges = np.ptp(rng.normal(size=(trials, runs)), axis=1)
    sd = rng.normal(size=(trials, repeats)).std(axis=1, ddof=1) if repeats else np.ones(trials)
    margin = ranking.Noise(1, "", max(0, repeats - 1)).margin(runs)
    assert (ranges > margin * sd).mean() == pytest.approx(0.05, abs=0.005)


def test_other_conditions_stay_out_of_the_ranking_and_are_named(small):
    changes = {"test images 500, not all": {"limit_test": 500},
               "split published, not stratified": {"split": "published"},
               "data fingerprint other, not abc123": {"data_fingerprint": "other"}}
    every = [small.head(2).assign(study=how, val_accuracy_best_val_acc=0.999, **changes[how]) for how in changes]
    for how, others in zip(changes, every):
        table = checked(pd.concat([small, others]))
        assert ranking.top(table, "cnn")["score"].max() < 0.99
        assert any(f"two rows under other conditions ({how})" in note for note in table.notes)
    notes = " ".join(checked(pd.concat([small, *every])).notes)
    assert "six rows under other" in notes and all(how in notes for how in changes)


def test_models_under_unlike_conditions_are_called_so(small):
    frame = small.copy()
    frame.loc[frame["Modelname"] == "vit", ["model_args", "epochs", "precision"]] = ['{"depth": 2}', 10, "fp32"]
    text = said(checked(frame))
    for differing in ("model sizes: default for CNN, default for ResNet and depth 2 for ViT",
                      "epochs: 80 for CNN, 80 for ResNet and 10 for ViT",
                      "precision: bf16 for CNN, bf16 for ResNet and fp32 for ViT"):
        assert f"**Not like for like:** the winners' {differing}." in text


def test_gamma_tells_no_cosine_runs_apart():
    """A run that several cells share is named after the first that was trained, whatever its gamma."""
    first, second = (checked(runs_of(Config(gamma=gamma), Config(gamma=other, augmentation=True)))
                     for gamma, other in ((0.99, 0.95), (0.95, 0.97)))
    assert first.rows["scheduler"].eq("cosine").all()
    assert knobs.pairs(first, "resnet", "augmentation", True, False)["gain"].tolist() == pytest.approx([0.001])
    assert len(knobs.compare(first, second)) == 2


# ------------------------------------------------------------------ any field, any model


def test_any_field_is_a_knob_and_any_model_has_its_own_look():
    own = "my_nets.py:SmallNet"
    frame = runs_of(*varied(model=("resnet", own), batch_size=(64, 128), learning_rate=(0.01, 0.001), epochs=(20,),
                            normalization=("dataset", "imagenet")))
    table = checked(frame)
    assert table.knobs == [*tables.KNOBS, "batch_size", "normalization"]
    assert [look.label for look in table.looks.values()] == ["ResNet", "SmallNet"] and table.stem(own) == "SmallNet"
    assert len({(look.colour, look.marker) for look in table.looks.values()}) == 2
    name = "SmallNet_aug_False_scheduler_cosine_lr_0.001_wd_0.001_gamma_0.97_batch_size_128_normalization_imagenet"
    assert table.rows["name"].iloc[-1] == name, "without the epochs, which all share"
    shares, basis = knobs.importance(table, own)
    assert basis == "all 8 cells; noise not measured"
    assert {"batch_size", "learning_rate x normalization"} <= set(shares.index)
    text = markdown.readme_section(table)
    assert "up to 20 epochs" in text and "batches of" not in text and "batch size 128 (" in text
    assert ("**Normalization:** all else equal, imagenet instead of dataset brings +0.10 points on average and helps "
            "in 4 of 4 pairs, no more than the sampling error (") in text
    assert "The best run's batch size, 128, is the largest one tried: higher ones may be better." in text
    assert "SmallNet is 0.80 points above ResNet" in text and f"`{frame['run'].iloc[-1]}`" in text
    row = next(line for line in markdown.overall_section(table).splitlines() if line.startswith("| SmallNet"))
    assert row.endswith("|  |") and "| 84.22% |" in markdown.overall_section(table), "nobody published it"


def test_what_follows_from_the_protocol_is_not_counted_beside_it():
    both = varied(model=("cnn",), protocol=("corrected", "published"), epochs=(10, 20), split=("stratified",))
    assert checked(runs_of(*both)).knobs == [*tables.KNOBS, "epochs", "protocol"]
    alone = Config(model="cnn", split="stratified", epochs=10, softmax_in_loss=True)
    table = checked(runs_of(*both, alone))
    assert table.knobs == [*tables.KNOBS, "epochs", "protocol", "softmax_in_loss"] and len(ranking.ranked(table)) == 5
    text = "all else equal, on instead of off brings +0.40 points, no more than the sampling error ("
    assert f"**Softmax in the loss:** {text}" in said(table, "cnn")
    viewed = [config.replace(tta="flip" if config.protocol == "published" else "none") for config in both]
    table = checked(runs_of(*viewed))
    assert table.rows["main"].all() and len(ranking.ranked(table)) == 4, "all have a test accuracy by one view"


def test_knobs_that_always_change_together_count_once():
    pairs = [config.replace(batch_size=round(config.learning_rate * 64_000))
             for config in varied(learning_rate=(0.001, 0.002, 0.004), augmentation=(False, True))]
    assert knobs.varying(checked(runs_of(*pairs)), "resnet") == ["learning_rate", "augmentation"]
    drawn = [Config(learning_rate=rate, weight_decay=decay) for rate, decay in ((0.1, 0.02), (0.01, 0.3), (0.02, 0.01))]
    assert knobs.varying(checked(runs_of(*drawn)), "resnet") == ["learning_rate", "weight_decay"], "by chance"


def test_a_field_that_does_nothing_is_empty_and_stands_at_every_value():
    table = checked(runs_of(*varied(scheduler=("step", "cosine"), cosine_period=(20, 80))[1:], Config(gamma=0.99)))
    assert table.rows["cosine_period"].isna().tolist() == [True, False, False, False]
    assert table.rows["gamma"].isna().tolist() == [False, True, True, True]
    assert len(ranking.experiments(table)) == 3
    assert knobs.importance(table, "resnet")[1] == "all 4 cells; noise not measured"
    periods = knobs.cells(table, "resnet").groupby("scheduler")["cosine_period"].unique()
    assert periods.map(sorted).tolist() == 2 * [[20, 80]]
    assert knobs.pairs(table, "resnet", "scheduler", "cosine", "step")["gain"].gt(0).tolist() == [True, True]
    assert "cosine period" not in sentences.shared_knobs(table, table.rows.head(1))


def test_fewer_training_images_are_a_knob_and_other_ones_a_condition():
    configs = varied(limit_train=(0, 5_000), learning_rate=(0.01, 0.001))
    frame = runs_of(*configs, data_fingerprint="all").assign(data_fingerprint=["all", "all", "few", "few"])
    table = checked(frame)
    assert len(ranking.ranked(table)) == 4 and not table.notes and table.knobs[-1] == "limit_train"
    assert "training images 5000 (" in said(table, "resnet")
    assert not any("training images" in text for text in knobs.edges(table, "resnet")), "0 takes all"
    other = checked(frame.assign(data_fingerprint=["all", "other", "few", "few"]))
    assert len(ranking.ranked(other)) == 3 and "data fingerprint other, not all" in other.notes[0].replace("few", "all")


def test_an_older_table_has_the_defaults_of_the_fields_it_lacks():
    frame = runs_of(*varied(protocol=("published",), learning_rate=(0.01, 0.001)), study="new")
    lacking = ["normalization", "decayed", "schedule_steps", "optimizer", "val_freq", "model_args"]
    older = frame.drop(columns=lacking).assign(study="old", test_accuracy_best_val_acc=0.7)
    both = checked(pd.concat([older, frame], ignore_index=True))
    assert ranking.experiments(both)["runs"].tolist() == [2, 2] and not both.notes
    assert len(knobs.compare(checked(older), checked(frame))) == 2


def test_what_the_table_has_no_field_for_is_never_ranked_in_silence():
    frame = runs_of(*varied(learning_rate=(0.01, 0.001)))
    known = checked(frame.assign(warmup=[5, 5], study="same"))
    assert not known.notes and "warmup" not in known.knobs, "it does not vary"
    table = checked(pd.concat([frame, frame.assign(warmup=5, run=frame["run"] + "_warmup")], ignore_index=True))
    assert len(ranking.ranked(table)) == 4 and table.knobs[-1] == "warmup"
    assert "warmup is no field of a configuration, yet it varies" in table.notes[0]
    both = runs_of(*varied(model=("resnet", "my_nets.py:SmallNet"), learning_rate=(0.01, 0.001)))
    known = checked(both.assign(model_source=[None, None, "a", "a"]))
    assert not known.notes and "model_source" not in known.fields
    changed = checked(both.assign(model_source=[None, None, "a", "b"]))
    assert not changed.notes and "model source b (1) and a (1)." in said(changed, "my_nets.py:SmallNet")
    blind = checked(pd.concat([frame, frame.assign(run=frame["run"] + "_warmup", test_loss_terminal=1.0)]))
    assert len(ranking.ranked(blind)) == 4 and set(ranking.experiments(blind)["runs"]) == {1}
    assert "four rows of different runs agree in every field that the table has" in blind.notes[0]


# ------------------------------------------------------------------ predictions and histories


def test_histories_and_predictions_are_found_beside_the_table_and_damaged_ones_are_named(tmp_path):
    made.write_study(tmp_path, made.table(models=("cnn",), **ONE), images=1000)
    table = tables.read_table(tmp_path)
    run, accuracy = table.rows[["run", table.tested]].iloc[0]
    assert ranking.read_history(table, run)["epoch"].iloc[-1] == 80
    labels, logits = ranking.read_predictions(table, run)
    assert (logits.argmax(axis=1) == labels).mean() == pytest.approx(accuracy, abs=0.01)
    for name, read in (("predictions.npz", ranking.read_predictions), ("history.csv", ranking.read_history)):
        assert read(table, "no such run") is None
        (tmp_path / run / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n,\n")
        with pytest.raises(InputError, match=f"{run}/{name} is damaged"):
            read(table, run)
    np.savez(tmp_path / run / "predictions.npz", labels=np.full(5, 77), best_val_acc=np.zeros((5, 10)))
    with pytest.raises(InputError, match="predictions.npz is damaged"):
        ranking.read_predictions(table, run)


def test_only_best_runs_on_the_same_test_images_are_paired(tmp_path):
    frame = made.table(models=("cnn", "resnet"), **{**ONE, "learning_rate": (0.001, 0.0001)})
    made.write_study(tmp_path, frame, images=500)
    table = tables.read_table(tmp_path)
    tests = ranking.paired_tests(table)
    assert len(tests) == 3 and tests["p_holm"].ge(tests["p"]).all() and tests["p_holm"].iloc[-1] < 0.05
    (across,) = sentences.paired_sentences(table)
    assert "a difference between these two trainings (McNemar" in across and across in said(table)
    within = sentences.paired_sentences(table, within=True)
    assert len(within) == 2 and f"only `{ranking.ranked(table, 'cnn')['name'].iloc[1]}` " in within[0]
    path = tmp_path / ranking.ranked(table, "cnn")["run"].iloc[0] / "predictions.npz"
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **{**content, "labels": (content["labels"] + 1) % 10})
    assert sentences.paired_sentences(table) == [] and len(ranking.paired_tests(table)) == 1, "other images"
    path.unlink()
    assert sentences.paired_sentences(table) == [] and len(ranking.paired_tests(table)) == 1, "no other run stands in"


# ------------------------------------------------------------------ two tables


def test_comparison_of_two_tables(small):
    first = checked(small[small["seed"] == 100], name="first")
    better = small.assign(test_accuracy_best_val_acc=small["test_accuracy_best_val_acc"] + 0.01)
    second = checked(better[better["Modelname"] != "vit"].drop(columns="model_args"), name="second")
    both = knobs.compare(first, second)
    assert set(both["model"]) == {"cnn", "resnet"} and len(both) == 24
    assert both["difference"].median() == pytest.approx(0.01, abs=1e-6)
    text = " ".join(sentences.comparison_sentences(first, second))
    assert "12 configurations in both" in text and "+1.00 points" in text
    assert all(note in text for note in second.notes) and second.notes
    assert "Only in `first`: 12 configurations." in text and "Only in `second`" not in text
    side_by_side = markdown.markdown(markdown.comparison_table(first, second, 24)).splitlines()
    assert len(side_by_side) == 2 + 24
    cell = both[both["scheduler"] == "cosine"].iloc[0]
    numbers = [words.percent(cell["first"]), words.percent(cell["second"]), words.signed(cell["difference"])]
    assert any("| cosine | " in line and line.endswith(f"| {' | '.join(numbers)} |") for line in side_by_side)
    small_vit = checked(small.query("Modelname == 'vit'").assign(model_args='{"depth": 2}'), name="third")
    assert knobs.compare(first, small_vit).empty
    assert "no configuration in common" in sentences.comparison_sentences(first, small_vit)[-1]
    with pytest.raises(InputError, match="is of CIFAR-10, .* of SYNTHETIC DATA"):
        knobs.compare(first, checked(small.assign(dataset="synthetic")))


def test_tables_with_different_knobs_are_compared_by_all_of_them_and_the_rest_is_named():
    sizes = runs_of(*varied(batch_size=(64, 128), learning_rate=(0.01, 0.001), epochs=(20,)))
    kinds = runs_of(*varied(optimizer=("adamw", "sgd"), learning_rate=(0.01, 0.001), batch_size=(64,), epochs=(40,)))
    first, second = checked(sizes, name="sizes"), checked(kinds.assign(host=list("abcd")), name="kinds")
    both = knobs.compare(first, second)
    assert both["batch_size"].tolist() == [64, 64] and both["optimizer"].tolist() == ["adamw", "adamw"]
    assert knobs.unlike(first, second) == "Not like for like: epochs differ."
    assert sentences.comparison_sentences(first, second)[-1] == knobs.unlike(first, second)
    assert knobs.compare(first, checked(sizes.assign(augmentation=True, flip="none", crop=0, host="a"))).empty
    assert not knobs.unlike(first, first) and "Optimizer" not in markdown.comparison_table(first, second)


def test_importance_stands_beside_the_noise_between_seeds():
    noise = np.random.default_rng(1)
    frame = runs_of(*varied(batch_size=(64, 128, 256), learning_rate=(0.01, 0.001, 0.0001), seed=range(8)))
    table = checked(frame.assign(val_accuracy_best_val_acc=0.8 + noise.normal(0, 0.01, len(frame))))
    _, basis = knobs.importance(table, "resnet")
    fraction = float(basis.removeprefix("all 9 cells; noise of repeats ").removesuffix("% of the variance"))
    assert 50 <= fraction <= 100, "there is nothing else"


# ------------------------------------------------------------------ sentences and README


def test_sentences_for_one_run_and_missing_models():
    table = checked(made.table(models=("resnet",), **ONE))
    text = markdown.readme_section(table)
    assert "(the only run)" in text and "Missing" not in text and "Range" not in text
    assert "one run (ResNet 1)" in sentences.conditions(table) and "seed 100" in sentences.conditions(table)
    assert "figures/resnet_top5.png" in text
    assert not any(name in text for name in ("cnn_top5", "overall_top5", "Best model"))


def test_models_that_tie_are_called_so():
    frame = made.table(models=("cnn", "resnet"), **ONE)
    assert "**Tie:**" not in said(checked(frame))
    text = said(checked(frame.assign(val_accuracy_best_val_acc=0.9)))
    assert "**Tie:** CNN and ResNet have the same validation accuracy" in text


def test_a_diverged_run_is_shown_but_not_ranked_and_no_repeat():
    table = checked(made.diverge(repeats(), 1))
    assert ranking.experiments(table)["runs"].tolist() == [2] and ranking.noise_floor(table, "resnet").freedom == 1
    assert "1 of three runs (1 of ResNet's) is no better" in sentences.chance_sentence(table)
    assert any("can't be ranked" in note for note in table.notes)
    alone = checked(made.diverge(repeats(), 1, 2))
    assert ranking.finalists(alone).empty and "nan" not in markdown.readme_section(alone)


def test_what_diverged_was_tried_and_another_seed_stands_in():
    table = checked(made.diverge(repeats((0.001, 0.0001)), 0))
    assert ranking.ranked(table)[["seed", "learning_rate"]].values.tolist() == [[101, 0.001], [100, 0.0001]]
    table = checked(made.diverge(repeats((0.01, 0.001, 0.0001), (100,)), 0))
    assert ranking.ranked(table)["learning_rate"].tolist() == [0.001, 0.0001] and knobs.edges(table, "resnet") == []
    table = checked(repeats((0.001, 0.0001), (100,)).assign(status=["diverged", "done"]))
    assert len(ranking.ranked(table)) == 2 and "one row diverged after a checkpoint" in " ".join(table.notes)


def test_sentences_about_a_cell_with_several_seeds():
    frame = repeats((0.001, 0.0001)).assign(precision=["bf16"] + ["fp32"] * 5)
    text = said(checked(frame), "resnet")
    assert "of two configurations, one seed of each" in text and "of the two candidates" in text
    assert "**Not like for like:** the runs multiply in bf16 and fp32" in text
    assert "(the only configuration)" in said(checked(repeats()), "resnet")
    assert "Not like for like" not in said(checked(repeats()), "resnet")


def test_repeats_are_called_seeds_or_runs_each_by_its_own_and_copies_count_once():
    frame = repeats(seeds=(100,))
    table = checked(pd.concat([frame, once_more(frame), frame.assign(study="copied")], ignore_index=True))
    assert ranking.experiments(table)["runs"].tolist() == [2]
    assert "one row repeats a run of another study in every digit" in " ".join(table.notes)
    assert "3 rows are one configuration; the others repeat one." in said(table)
    single = repeats((0.0001,), (100,))
    found = ranking.experiments(checked(pd.concat([repeats(seeds=(100, 101)), single, once_more(single)])))
    assert found.set_index("learning_rate")["repeat"].to_dict() == {0.001: "seed", 0.0001: "run"}


def test_gamma_is_no_knob_of_a_grid_with_the_cosine_alone():
    frame = made.table(models=("cnn",), **{**ONE, "learning_rate": (0.001, 0.0001), "gamma": (0.95, 0.97, 0.99)})
    assert len(knobs.cells(checked(frame), "cnn")) == 2 and knobs.importance(checked(frame), "cnn") is None
    empty = checked(frame.drop_duplicates("run").assign(gamma=np.nan))
    assert len(ranking.ranked(empty)) == 2 and not empty.notes, "gamma may be left empty where it does nothing"


def test_repeats_and_experiments_that_agree_in_every_digit_are_called_so():
    frame = repeats()
    same = frame.assign(**{c: frame[c].iloc[0] for c in frame if c.startswith(("test_", "train_", "val_"))})
    floor = ranking.noise_floor(checked(same), "resnet")
    assert floor.name == "sampling error" and "its repeats agree in every digit" in floor.text
    twin = frame.iloc[[0]].assign(weight_decay=0.0001, Full_Modelname="twin", run="twin")
    text = said(checked(pd.concat([frame, twin], ignore_index=True)))
    assert "**Same digits:** one configuration repeats another's metrics in every digit" in text
    assert "Same digits" not in said(checked(frame))


def test_cells_that_share_a_run_do_not_outweigh_its_repeats(small):
    table = checked(small.query("Modelname == 'resnet'"))
    best = ranking.finalists(table).query("name.str.contains('cosine')").iloc[0]
    assert best["runs"] == 3 and best["rows"] == 4, "a run with two names, and two further seeds"
    alike = best[["learning_rate", "scheduler", "augmentation"]]
    both, grid = knobs.compare(table, table), knobs.cells(table, "resnet")
    assert both[(both[alike.index] == alike).all(axis=1)]["first"].tolist() == [pytest.approx(best["test"], abs=1e-12)]
    scores = grid[(grid[alike.index] == alike).all(axis=1)]["score"]
    assert scores.tolist() == 2 * [pytest.approx(best["score"], abs=1e-12)], "at each gamma of the other schedule"


def test_a_table_in_the_working_directory_is_named_after_it(tmp_path, monkeypatch):
    made.table(models=("cnn",), **ONE).to_csv(tmp_path / "runs.csv")
    monkeypatch.chdir(tmp_path)
    assert tables.read_table("runs.csv").name == tmp_path.name


def test_every_run_is_listed_with_its_time_and_notebook(tmp_path, monkeypatch):
    frame = made.diverge(repeats(), 1).assign(seconds=[600.0, 60.0, 7200.0], epochs_run=[80, 3, 80])
    notebook = tmp_path / frame["run"].iloc[2] / "experiment.ipynb"
    notebook.parent.mkdir()
    notebook.touch()
    table = tables.check_table(frame, folder=tmp_path)
    lines = markdown.every_run_section(table, "executed/x").splitlines()
    runs = [next(line for line in lines if f"{name}`" in line) for name in frame["run"]]
    assert "| 80 | bf16 | 10 min |" in runs[0] and "](" not in runs[0]
    assert "| diverged |  | 3 | bf16 | 60 s |" in runs[1] and runs[1] == lines[6], "what has no rank stands last"
    assert f"(executed/x/{frame['run'].iloc[2]}/experiment.ipynb)" in runs[2] and "| 2.0 h |" in runs[2]
    assert lines[-1] == "Together 2.2 h of training and validation."
    empty = frame.assign(seconds=[np.nan, 60.0, 7200.0], epochs_run=[np.nan, 3, 80])
    assert "nan" not in markdown.every_run_section(checked(empty), "")
    assert markdown.every_run_section(checked(repeats().drop(columns="seconds")), "") == ""
    monkeypatch.setattr(markdown, "MOST_RUNS", 2)
    assert markdown.every_run_section(table, "") == ""


def test_a_model_without_any_rank_has_its_sentence(small):
    frame = small.copy()
    frame.loc[frame["Modelname"] == "vit", ["val_accuracy_best_val_acc"]] = np.nan
    text = markdown.readme_section(checked(frame))
    assert "No run of ViT in this table can be ranked" in text
    assert "vit_top5" not in text


def test_shared_knobs_in_words():
    table = checked(runs_of(*varied(augmentation=(True, False), scheduler=("step", "cosine"))))
    rows = table.rows
    assert sentences.shared_knobs(table, rows.iloc[[0]]).endswith("; gamma 0.97; scheduler step; augmentation on.")
    assert sentences.shared_knobs(table, rows).endswith(
        "gamma 0.97 (2); scheduler step (2) and cosine (2); augmentation on (2) and off (2).")


def test_the_readme_is_rewritten_between_its_markers_and_only_there(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Ä title\n<!-- results:begin -->\nold\n<!-- results:end -->\nrest\n", encoding="utf-8")
    assert markdown.rewrite_between_markers(readme, "results", "new\n") is True
    content = "# Ä title\n<!-- results:begin -->\n\nnew\n\n<!-- results:end -->\nrest\n"
    assert readme.read_text(encoding="utf-8") == content
    assert markdown.rewrite_between_markers(readme, "results", "new") is False
    for bad in ("no markers", "<!-- results:end --><!-- results:begin -->",
                "<!-- results:begin -->" * 2 + "<!-- results:end -->"):
        readme.write_text(bad)
        with pytest.raises(InputError, match="once each"):
            markdown.rewrite_between_markers(readme, "results", "new")
    with pytest.raises(InputError, match="can't be read"):
        markdown.rewrite_between_markers(tmp_path / "none", "results", "new")


# ------------------------------------------------------------------ bad tables


BAD = {
    "percent": (lambda f: f.assign(test_accuracy_best_val_acc=86.9), "divide percentages by 100"),
    "no column": (lambda f: f.drop(columns=["gamma", "scheduler"]), "lacks gamma, scheduler"),
    "no rows": (lambda f: f.head(0), "no rows"),
    "percent signs": (lambda f: f.assign(test_accuracy_best_val_acc="86.9%"), "'86.9%' is no number; write fractions"),
    "decimal commas": (lambda f: f.assign(learning_rate="0,001"), "learning_rate: expected a number, got '0,001'"),
    "semicolons": (lambda f: pd.DataFrame({";".join(f): ["1;2"]}), "save it with commas between its columns"),
    "all failed": (lambda f: f.assign(status="failed"), "nothing to report: .* status failed"),
    "all unknown": (lambda f: f.assign(Modelname="mlp"), "model: expected one of .*, got 'mlp'"),
    "contradiction": (lambda f: pd.concat([f, f.head(1).assign(test_accuracy_best_val_acc=0.5)]), "named twice"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_a_table_that_cannot_be_reported_is_one_clear_line(small, change, message):
    with pytest.raises(InputError, match=message) as error:
        checked(change(small))
    assert "\n" not in str(error.value)


def starting(column: str, *values):
    """The same table with other values in the first rows of a column."""
    return lambda frame: frame.assign(**{column: [*values, *frame[column][len(values):]]})


LEFT_OUT = {
    "failed": (starting("status", "failed", "preempted"), ["one row left out, status failed", "status preempted"], 2),
    "no accuracy": (starting("test_accuracy_best_val_acc", None), ["one row left out, without test_acc"], 1),
    "synthetic": (starting("dataset", "synthetic", "synthetic"), ["two rows left out, of other data than CIFAR-10"], 2),
    "unknown model": (starting("Modelname", "resnt"),
                      ["one row left out, model: expected one of", "got 'resnt'; did you mean resnet?"], 1),
    "no name": (starting("Full_Modelname", None), ["one row left out, without a Full_Modelname"], 1),
    "no model": (starting("Modelname", None), ["one row left out, without model"], 1),
    "repeated line": (lambda f: pd.concat([f, f.head(2)]), ["two rows left out, the same line as another"], 0),
    "no knob": (starting("learning_rate", "much"), ["left out, learning_rate: expected a number, got 'much'"], 1),
    "empty knob": (starting("learning_rate", None), ["one row left out, without learning rate"], 1),
}


@pytest.mark.parametrize("change, messages, fewer", LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_is_left_out_is_named(small, change, messages, fewer):
    table = checked(change(small))
    assert len(table.rows) == len(small) - fewer
    for message in messages:
        note = next(note for note in table.notes if message in note)
        assert "_aug_" in note or "without a Full_Modelname" in note  # the rows are named
    assert all(note in markdown.readme_section(table) for note in table.notes)


def test_only_synthetic_rows_are_called_so_loudly(small):
    text = markdown.readme_section(checked(small.assign(dataset="synthetic")))
    assert text.startswith("**Conditions:** SYNTHETIC DATA, NOT CIFAR-10") and "Published best" not in text
    assert "Published best" in markdown.readme_section(checked(small))


def test_the_published_best_stands_beside_models_of_its_size_only(small):
    depth = small["Modelname"].map({"cnn": "{}", "resnet": "{}", "vit": '{"depth": 1}'})
    text = markdown.overall_section(checked(small.assign(model_args=depth)))
    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("| ")}
    assert lines["CNN"].endswith("| 86.97% |") and lines["ResNet"].endswith("| 84.22% |")
    assert lines["ViT"].endswith("|  |")


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    for name, message in (("none.csv", "no table of runs"), ("empty.csv", "empty"),
                          ("binary.csv", "not a readable CSV|lacks")):
        with pytest.raises(InputError, match=message):
            tables.read_table(tmp_path / name)


def test_unknown_study_and_ranking_column(small):
    with pytest.raises(InputError, match="no rows of 'other'; the table has made_up"):
        checked(small, study="other")
    assert len(checked(small, study="made_up").rows) == len(small)
    with pytest.raises(InputError, match="did you mean test_accuracy_terminal"):
        checked(small, rank_by="test_acuracy_terminal")
    with pytest.raises(InputError, match="goes with test_accuracy_terminal, which the table lacks"):
        checked(small.drop(columns="test_accuracy_terminal"), rank_by="val_accuracy_terminal")


def test_odd_cells_of_a_spreadsheet(tmp_path, small):
    frame = small.assign(study="001", seed=small["seed"].astype(float).replace(1, np.inf), test_images=1e30,
                         precision=small["precision"].where(small.index > 2), Full_Modelname=range(len(small)))
    frame.rename(columns=" {}".format).to_csv(tmp_path / "runs.csv", index=False)
    table = tables.read_table(tmp_path, study="001")
    assert (table.rows["images"] == 10_000).all() and "nan" not in markdown.readme_section(table)
