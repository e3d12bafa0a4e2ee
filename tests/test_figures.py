"""The charts: the right numbers, nothing clipped or overlapping, the same bytes each time."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import results_tables as made

from cifarlib import parts, words
from cifarlib.config import Config
from cifarlib.parts import CIFAR10_CLASSES as CLASSES
from cifarlib.results import knobs, markdown, ranking, sentences, statistics, table as tables
from cifarlib.results.figures import best as best_charts, knobs as knob_charts, one_run as run_charts, write
from cifarlib.results.figures import studies as study_charts

ROOT = Path(__file__).parent.parent
ONE = dict(learning_rate=(0.001,), weight_decay=(0.001,), gamma=(0.97,), scheduler=("cosine",), augmentation=(True,))
OWN = "my_nets.py:SmallNet"
GRID = dict(learning_rate=(0.001, 0.0001), weight_decay=(0.001, 0.0001), gamma=(0.95, 0.99))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tables.Table:
    """A study of three models with histories and predictions, one of them the user's own."""
    folder = tmp_path_factory.mktemp("study")
    made.write_study(folder, made.table(("resnet", "vit", OWN), finalist_seeds=(1, 2), **GRID), images=300, runs=80)
    return tables.read_table(folder)


def one_cell(*models: str, **columns) -> tables.Table:
    """A run of each model in the same configuration."""
    return tables.check_table(made.table(models=models, **ONE).assign(**columns))


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text() and text.get_visible()]


def test_top5_shows_the_table_it_stands_for(study):
    figure, best = best_charts.top5(study, "resnet"), ranking.top(study, "resnet")
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars == pytest.approx(best["test"].tolist())
    labels = knobs.short_labels(study, study.rows.loc[best.index])
    assert len(set(labels)) == 5 and {*labels, *map(words.percent, best["test"])} <= set(texts(figure))
    noise = ranking.noise_floor(study, "resnet")
    assert figure.axes[1].patches[0].get_width() == pytest.approx(2 * noise.margin())
    gap = best["test"].max() - best["test"].min()
    title = figure.get_suptitle().replace("\n", " ")
    assert ("no more than" in title) == (gap <= noise.margin(5)) and words.points(gap) in title


def test_an_equal_per_class_accuracy_is_a_sentence_and_no_bar():
    equal, other = one_cell("cnn", "resnet"), one_cell("cnn", "resnet", test_per_class_accuracy_best_val_acc=0.5)
    for table, per_class, equal_ones in ((equal, [], True), (other, [0.5, 0.5], False)):
        figure = best_charts.overall_top5(table)
        bars = [bar.get_width() for bar in figure.axes[0].patches]
        assert sorted(bars) == pytest.approx(sorted([*ranking.overall(table)["test"], *per_class]))
        note = " ".join(figure.get_supxlabel().split())
        assert ("The mean accuracy of the classes is the same." in note) == equal_ones


def test_charts_name_what_differs_and_acts():
    frame = made.table(models=("cnn", "resnet"), **{**ONE, "scheduler": ("step", "cosine"), "gamma": (0.95, 0.97)})
    table = tables.check_table(frame)
    rows = table.rows.query("model == 'cnn'")
    labels = knobs.short_labels(table, rows)
    assert sorted(labels) == ["gamma 0.95, scheduler step", "gamma 0.97, scheduler step", *2 * ["scheduler cosine"]]
    assert knobs.short_labels(table, table.rows.query("gamma == 0.95")) == ["CNN", "ResNet"]
    apart = rows.query("scheduler == 'cosine'").assign(experiment=["a", "b"])
    assert knobs.short_labels(table, apart) == apart["name"].tolist(), "what the table has no column for"


def test_a_value_that_nearly_all_of_many_configurations_have_is_not_named():
    noise = np.random.default_rng(0)
    changes = [{}, {"flip": "none"}, {"crop": 0}, {"padding": "reflect"}, {"cutout": 8}, {"rotation": 0.0},
               {"label_smoothing": 0.2}]
    configs = [Config(model="cnn", augmentation=True, seed=seed, **change) for change in changes for seed in (1, 2)]
    table = tables.check_table(pd.DataFrame([made.row(config, 0.8, noise) for config in configs]))
    again = markdown.repeats_table(table)
    assert sorted(again["Configuration"]) == ["as most", "cutout 8", "flip none", "label smoothing 0.2",
                                              "padding reflect", "rotation 0", "translation 0"]
    assert again["Test accuracy from the first, points"][0] == "+0.00"
    assert not isinstance(knob_charts.scores_by_knob(table, "cnn"), str), "also of knobs that a switch idles"
    assert "| as most |" in markdown.readme_section(table) and "finalists.png" in markdown.readme_section(table)


def test_nothing_is_best_where_budgets_differ():
    equal, unequal = one_cell("cnn", "resnet"), one_cell("cnn", "resnet", limit_train=[640, 3840])
    for table, word in ((equal, "best"), (unequal, "top-ranked")):
        text = " ".join([*texts(best_charts.overall_top5(table)),
                         *sentences.overall_observations(table), *sentences.observations(table, "cnn")])
        assert ("best" in text.lower().replace("best_val_acc", "")) == (word == "best")
        assert f"{word.capitalize()} model" in text and f"{word.capitalize()} run" in text
        assert ("not all runs had as many training images" in " ".join(text.split())) == (word == "top-ranked")


def test_a_model_has_its_colour_everywhere(study):
    for figure, models in ((best_charts.top5(study, "vit"), 5 * ["vit"]),
                           (best_charts.overall_top5(study), ranking.overall(study)["model"])):
        colours = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in figure.axes[0].patches]
        assert colours == [study.looks[model].colour for model in models]


def test_every_figure_fits_and_no_text_is_clipped_or_overlaps(study):
    other = tables.check_table(made.table(("resnet", "vit"), **GRID), name="another study")
    labels, _ = ranking.read_predictions(study, ranking.ranked(study).iloc[0]["run"])
    images = np.zeros((300, 3, 32, 32), np.uint8), labels
    drawn = dict(pair for kind in write.KINDS for pair in write._drawn(study, kind, images, [other]))
    assert len(drawn) == 3 * 6 + 10 and "SmallNet_top5" in drawn
    for name, figure in drawn.items():
        assert not isinstance(figure, str), f"{name}: {figure}"
        assert not _collisions(figure), f"{name}: {_collisions(figure)}"
        assert figure.get_suptitle(), name


def test_the_names_of_many_knobs_have_room():
    table = tables.read_table("executed/speed_ingredients")
    assert not _collisions(knob_charts.scores_by_knob(table, "speednet"))


def _collisions(figure) -> list[str]:
    """Texts that leave the figure, and pairs of texts that lie on each other."""
    figure.draw_without_rendering()
    sides = [(axes.axison, side, sorted(side.get_view_interval())) for axes in figure.axes
             for side in (axes.xaxis, axes.yaxis)]
    hidden = {label for shown, side, (low, high) in sides for tick in (*side.get_major_ticks(), *side.get_minor_ticks())
              for label in (tick.label1, tick.label2) if not shown or not low <= tick.get_loc() <= high}
    drawn = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip() and text.get_visible()
             and text not in hidden and text.get_rotation() % 90 == 0]  # a slanted label's box is larger than the label
    boxes = [(text.get_text(), text.get_window_extent().padded(-1.5)) for text in drawn]
    page = figure.bbox.padded(1)
    outside = [f"{text!r} leaves the figure" for text, box in boxes if page.count_contains(box.corners()) < 4]
    return outside + [f"{one!r} on {two!r}" for (one, box), (two, other) in itertools.combinations(boxes, 2)
                      if box.overlaps(other)]


def test_the_same_table_gives_the_same_bytes_and_small_files(study, tmp_path):
    here = write.write_figures(study, tmp_path / "here", "knobs")
    code = ("import sys; from cifarlib.results import table; from cifarlib.results.figures import write; "
            "write.write_figures(table.read_table(sys.argv[1]), sys.argv[2], 'knobs')")
    subprocess.run([sys.executable, "-c", code, study.folder, tmp_path / "there"], check=True, cwd=ROOT,
                   env={**os.environ, "PYTHONHASHSEED": "7"})
    for path in [path.with_suffix(suffix) for path in here for suffix in (".png", ".svg", ".pdf")]:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name
        assert path.suffix == ".svg" or path.stat().st_size < 200_000
        assert b"<dc:date>" not in path.read_bytes()


def test_settings_of_the_caller_stay(study):
    before = dict(matplotlib.rcParams)
    best_charts.top5(study, "vit")
    assert dict(matplotlib.rcParams) == before and not matplotlib.pyplot.get_fignums()


def test_left_out_figures_are_said_in_a_sentence_and_their_old_files_go(tmp_path, capsys):
    table = tables.check_table(made.table(models=("resnet",), **ONE), folder=tmp_path)
    (tmp_path / "cnn_top5.png").write_bytes(b"of an earlier table")
    written = write.write_figures(table, tmp_path)
    names = {path.stem for path in written}
    assert names == {"resnet_top5", "all_runs", "per_class"}
    assert not (tmp_path / "cnn_top5.png").exists()
    assert all(path.with_suffix(suffix).exists() for path in written for suffix in (".svg", ".pdf"))
    said = capsys.readouterr().out
    everything = {name for kind in write.KINDS for name, _ in write._drawn(table, kind)}
    assert all(name in said for name in everything - names) and "no history of ResNet's best run" in said


def test_synthetic_data_is_named_in_the_title():
    table = one_cell("cnn", dataset="synthetic")
    for figure in (best_charts.top5(table, "cnn"), best_charts.all_runs(table)):
        assert figure.get_suptitle().startswith("SYNTHETIC DATA")


def test_runs_at_chance_are_drawn():
    table = tables.check_table(made.table(models=("cnn",), weight_decay=(0.001,), gamma=(0.97,)))
    figure = best_charts.all_runs(table)
    points = np.concatenate([collection.get_offsets()[:, 0] for collection in figure.axes[0].collections])
    assert (points < 0.11).sum() == table.rows.query("not copy")["chance"].sum() > 0
    assert "every CNN run with learning rate 0.01" in figure.get_suptitle().replace("\n", " ")


def test_runs_without_a_score_are_counted_beside_the_drawn_ones():
    frame = made.diverge(made.table(models=("cnn", "resnet"), **{**ONE, "learning_rate": (0.001, 0.0001)}), 0)
    figure = best_charts.all_runs(tables.check_table(frame))
    assert {"CNN (1)\nand 1 without a score", "ResNet (2)"} <= set(texts(figure))


def epochs(count: int) -> pd.DataFrame:
    return made.history({"epochs": count, "learning_rate": 0.001, "val_accuracy_best_val_acc": 0.8})


@pytest.mark.parametrize("count", [1, 30])
def test_learning_curves_from_the_first_epoch_on(count):
    history = epochs(count)
    figure = run_charts.learning_curves(history)
    assert "validation accuracy" in figure.get_suptitle().lower()
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx(history["train_loss"])
    history["val_accuracy"] = history["val_loss"] = np.nan
    assert "without a validation" in run_charts.learning_curves(history).get_suptitle()
    assert run_charts.learning_curves(pd.DataFrame(columns=["epoch", "train_loss", "train_accuracy"]))


def test_curves_of_several_runs_share_their_axes():
    longer, shorter = epochs(30).assign(train_accuracy=1.0), epochs(5).assign(val_accuracy=0.5)
    without = epochs(3).drop(columns=["val_accuracy", "val_loss"])
    figure = run_charts.learning_curves({"one": [shorter], "two": [longer], "three": [without]})
    loss, accuracy, _, below, *_ = figure.axes
    solid = [line for line in loss.lines if line.get_linestyle() == "-"]
    assert [len(line.get_xdata()) for line in solid] == [5, 30, 0]
    assert solid[1].get_ydata() == pytest.approx(longer["val_loss"])
    assert len({line.get_color() for line in loss.lines}) == 3 and accuracy.get_ylim()[1] == 1
    best = longer.loc[longer["val_accuracy"].idxmax()]
    names = [text.get_text() for text in below.get_legend().get_texts()]
    assert names == ["one: 50.00% in epoch 1", f"two: {best['val_accuracy']:.2%} in epoch {best['epoch']:.0f}", "three"]
    assert f"Two: validation accuracy {best['val_accuracy']:.2%}" in figure.get_suptitle()


def test_a_heatmap_that_is_mostly_not_run_is_none():
    frame = made.table(models=("cnn",), **{**ONE, "learning_rate": (0.001, 0.0001), "augmentation": (False, True)})
    assert not isinstance(knob_charts.heatmap(tables.check_table(frame.iloc[:3]), "cnn"), str)
    scattered = [Config(model="cnn", learning_rate=10.0 ** -i, weight_decay=10.0 ** -i) for i in range(1, 4)]
    scattered += [Config(model="cnn", learning_rate=0.1, weight_decay=0.01)]
    noise = np.random.default_rng(0)
    table = tables.check_table(pd.DataFrame([made.row(config, 0.8 + 0.01 * config.learning_rate, noise)
                                             for config in scattered]))
    assert "4 of the 9 cells of CNN's heatmap were run" in knob_charts.heatmap(table, "cnn")


def test_validated_now_and_then():
    history = epochs(10)
    history.loc[history["epoch"] % 5 != 0, ["val_accuracy", "val_loss"]] = np.nan
    assert run_charts.learning_curves(history).axes[1].lines[1].get_xdata() == pytest.approx([5, 10])


def test_confusion_and_per_class_of_one_run():
    matrix = np.eye(10, dtype=int) * 90
    matrix[3, 5] = 10
    assert "10.00% of cat images are taken for dog" in run_charts.confusion(matrix, CLASSES).get_suptitle()
    assert "No mistakes" in run_charts.confusion(np.eye(10), CLASSES).get_suptitle()
    figure = run_charts.per_class({"my_nets.py:SmallNet": [0.9] * 9 + [0.5]}, 1000, CLASSES)
    assert figure.get_suptitle() == "Weakest class: SmallNet at truck (50.00%)" and not _collisions(figure)


def test_accuracies_by_minutes_are_by_views_where_there_are_any():
    views = dict(test_accuracy_with_views_best_val_acc=0.97, test_accuracy_best_val_acc=0.96, seconds=600)
    figure = best_charts.accuracy_by_minutes([one_cell("cnn", seconds=120), one_cell("speednet", **views)])
    points = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert points["SpeedNet"] == [[10.0, 0.97]] and points["CNN"][0][0] == 2.0
    assert figure.get_suptitle() == "SpeedNet reaches 97.00% in 10 minutes"
    assert "Six views of each test image where a run has them; by one view the best is 1.00 points lower" in " ".join(
        texts(figure)).replace("\n", " ")
    assert "CNN: best published run, 80 epochs" in texts(figure)


def test_a_perfect_run_of_few_images_has_a_chart():
    table = one_cell("cnn", test_images=50, test_accuracy_best_val_acc=1.0)
    assert "100.00%" in best_charts.top5(table, "cnn").get_suptitle()


def test_confidently_wrong_shows_the_surest_mistakes(tmp_path):
    frame = made.table(models=("cnn",), **ONE)
    made.write_study(tmp_path, frame, images=200)
    table = tables.read_table(tmp_path)
    labels, logits = ranking.read_predictions(table, frame["run"].iloc[0])
    images = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 32, 32), np.uint8)
    figure = run_charts.confidently_wrong(table, "cnn", (images, labels), n=4)
    wrong = logits.argmax(axis=1) != labels
    surest = np.argsort(-np.where(wrong, statistics.softmax(logits).max(axis=1), 0), kind="stable")[:4]
    assert [axis.images[0].get_array()[0, 0, 0] for axis in figure.axes if axis.images] == surest.tolist()
    assert "other images" in run_charts.confidently_wrong(table, "cnn", (images, (labels + 1) % 10))


def test_titles_say_who_ranks_first_and_who_does_better_on_test():
    table = one_cell("cnn", "resnet", val_accuracy_best_val_acc=[0.9, 0.8], test_accuracy_best_val_acc=[0.85, 0.87])
    title = best_charts.overall_top5(table).get_suptitle().replace("\n", " ")
    assert title.startswith("CNN is 2.00 points below ResNet on the test images, more than the sampling error")


def test_knobs_of_which_not_every_cell_was_run_are_called_so():
    frame = made.table(models=("cnn",), **{**ONE, "learning_rate": (0.001, 0.0001), "augmentation": (False, True)})
    missing = knob_charts.scores_by_knob(tables.check_table(frame.iloc[:3]), "cnn").get_supxlabel().replace("\n", " ")
    assert "3 of the 4 cells of these values were run" in missing and "not compared like for like" in missing
    lost = frame.assign(status=["done", "done", "done", "diverged"], val_accuracy_best_val_acc=[0.9, 0.8, 0.8, np.nan])
    for every in (frame, lost):
        assert "cells" not in knob_charts.scores_by_knob(tables.check_table(every), "cnn").get_supxlabel(), "it was run"


def test_charts_take_any_knobs_the_sizes_of_a_model_too():
    sizes = ({}, {"depths": [1, 1, 1, 1]}, {"depths": [3, 4, 6, 3], "widths": [64, 96, 128, 160]})
    configs = [Config(model_args=args, optimizer="adamw", batch_size=batch, protocol=protocol, split="stratified")
               for args in sizes for batch in (64, 128, 256) for protocol in ("corrected", "published")]
    noise = np.random.default_rng(0)
    rows = [made.row(config, made.accuracy(config, noise), noise) for config in configs]
    table = tables.check_table(pd.DataFrame(rows))
    figure = knob_charts.heatmap(table, "resnet")
    assert {axis.get_title() for axis in figure.axes[:2]} == {"protocol corrected", "protocol published"}
    assert figure.axes[0].get_xlabel() == "model sizes" and figure.axes[0].get_ylabel() == "batch size"
    for figure in (figure, knob_charts.scores_by_knob(table, "resnet"), knob_charts.importance(table)):
        assert not _collisions(figure), _collisions(figure)


def test_a_hundred_classes_are_not_shown_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setitem(parts.DATASETS, "cifar10", parts.Dataset("Many", tuple(f"class {i}" for i in range(100)), ""))
    frame = made.table(models=("cnn",), **ONE)
    one_by_one = [column for column in frame if any(f"_{name}_" in column for name in CLASSES)]
    made.write_study(tmp_path, frame.drop(columns=one_by_one), images=500)
    table = tables.read_table(tmp_path)
    assert "100 classes" in run_charts.class_accuracies(table) and not table.rows["chance"].any()
    figure = run_charts.confusion_of_best(table, "cnn")
    assert "for class 2, the most frequent mistake" in figure.get_suptitle() and not figure.axes[0].texts
    weakest = run_charts.per_class({"cnn": np.linspace(0.9, 0.1, 100)}, 100, table.data.classes)
    labels = [text.get_text() for text in weakest.axes[0].get_xticklabels()]
    assert labels == [f"class {i}" for i in range(80, 100)] and not _collisions(weakest)


def test_numbers_in_a_heatmap_can_be_read():
    """Contrast by WCAG 2, whose least for small text is 4.5."""
    def luminance(colour):
        rgb = np.array(matplotlib.colors.to_rgb(colour))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    table = tables.check_table(made.table(models=("resnet",), augmentation=(True,), gamma=(0.97,)))
    for axis in knob_charts.heatmap(table, "resnet").axes[:3]:
        cells = axis.collections[0].get_facecolors()
        assert len(axis.texts) == len(cells)
        for text, cell in zip(axis.texts, cells):
            dark, light = sorted(map(luminance, (text.get_color(), cell)))
            assert (light + 0.05) / (dark + 0.05) > 4.5


@pytest.mark.parametrize("x, at", [("epochs", [5, 20]), ("minutes", [1, 4]), ("flop", [6, 24]),
                                   ("optimizer", ["adamw", "adamw"])])
def test_several_studies_are_laid_over_each_other(x, at):
    studies = []
    for name, epochs in (("short", 5), ("long", 20)):
        frame = made.table(("resnet",), seeds=(1, 2, 3), **{**ONE, "learning_rate": (0.001, 0.0001)})
        frame = frame.assign(epochs=epochs, epochs_run=epochs, seconds=12.0 * epochs, flop=1.2e12 * epochs)
        studies.append(tables.check_table(frame, name=name))
    axis = study_charts.accuracy_by(studies, x).axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["short: ResNet", "long: ResNet"]
    for table, container, place in zip(studies, axis.containers, at):
        best = ranking.experiments(table).iloc[0]
        runs = table.rows.loc[table.rows["learning_rate"] == best["learning_rate"], "test_accuracy_best_val_acc"]
        line, _, (whisker,) = container.lines
        assert line.get_xdata()[0] == place and line.get_ydata() == pytest.approx(runs.mean())
        low, high = whisker.get_segments()[0][:, 1]
        assert high - low == pytest.approx(2 * runs.std()) and high > low


def test_accuracies_of_one_table_have_the_colours_of_its_models():
    table = one_cell("cnn", "resnet", seconds=[60.0, 120.0])
    axis = study_charts.accuracy_by([table], "minutes").axes[0]
    assert {text.get_text(): handle.get_color() for text, handle in zip(
        axis.get_legend().get_texts(), axis.get_legend().legend_handles)} == {
            look.label: look.colour for look in table.looks.values()}
    assert sorted(x for line in axis.lines for x in line.get_xdata()) == [1] * 4 + [2] * 4  # points and whiskers
    assert study_charts.accuracy_by([table], "epochs") == "all runs have the same epochs"


def test_curves_of_several_studies_are_means_over_the_seeds_of_their_best(study, tmp_path):
    frame = made.table(("cnn",), seeds=(1, 2), **ONE).assign(epochs=40)
    made.write_study(tmp_path, frame, images=20, runs=5)
    table = tables.read_table(tmp_path)
    loss = study_charts.curves([study, table]).axes[0]
    assert len(loss.lines) == 2 * (len(study.looks) + 1)
    seeds = [ranking.read_history(table, run)["val_loss"] for run in table.rows["run"]]
    assert len(seeds) == 2 and loss.lines[-1].get_ydata() == pytest.approx(np.mean(seeds, axis=0))
    assert isinstance(study_charts.curves([one_cell("cnn")]), str)
