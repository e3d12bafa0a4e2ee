"""The measurements of speed: that they measure what they say, not how fast this machine is."""

import json
import os
import subprocess
from pathlib import Path
from threading import BrokenBarrierError

import papermill
import pytest
import torch
from conftest import tiny

from cifarlib import machine
from cifarlib.bench import measure, report as bench_report
from cifarlib.bench.reference import Reference, _loader
from cifarlib.batch.launch import ALLOCATOR
from cifarlib.cli import main, make_parser
from cifarlib.data import augment
from cifarlib.errors import InputError
from cifarlib.models.layers import Conv2d

ROOT = Path(__file__).parent.parent
FOUND = {
    "conditions": {"device": "cpu: Fast, 2 threads", "cores": 2, "torch": "2.14.1", "dataset": "cifar10",
                   "date": "2026-01-02", "commit": "abc"},
    "limits": {"fp32": 100.0, "bf16": 400.0},
    "models": {
        "resnet": {"images": 2560, "batch_size": 256, "precision": "fp32", "ratio": [4.4, 4.1, 3.3],
                   "images_per_second": {"reference": [90.0, 100.0, 120.0], "ours": [400.0, 410.0, 390.0]},
                   "gflop_per_image": 0.2, "waits_per_epoch": None},
        "vit": {"images": 64, "batch_size": 64, "precision": "bf16", "ratio": [8 / 1.5],
                "images_per_second": {"reference": [1.5], "ours": [8.0]},
                "gflop_per_image": 38.6, "waits_per_epoch": 2},
    },
    "at_once": {"model": "resnet", "ways": [{"runs": 1, "threads": 2, "images_per_second": 400.0},
                                            {"runs": 2, "threads": 1, "images_per_second": 1500.0}]},
    "start_up": {"tiny_run": [6.0], "warm": [1.2]},
}


@pytest.mark.parametrize("model, training, forward", [("cnn", 2.608, 0.870), ("vit", 35.62, 11.87)])
def test_flops_are_the_known_ones(model, training, forward, monkeypatch):
    monkeypatch.setattr(Conv2d, "_winograd_for", lambda layer, maps: None)
    assert measure.flops(tiny(model, model_args={}), count=2) / 1e9 == pytest.approx(training + forward / 4, rel=1e-3)


def test_flops_are_those_that_winograds_filtering_leaves():
    # Of the CNN's five wide convolutions, 0.849 of its 0.870 GFLOP, a quarter; the transforms add a little again.
    assert 1 - 0.75 * 0.849 / 0.870 < measure.flops(tiny("cnn", model_args={})) / (2.608e9 + 0.870e9 / 4) < 0.36


def test_reference_and_ours_train_the_same_model_on_the_same_images():
    config = tiny("resnet", augmentation=True, limit_train=32)
    splits = measure.load_cifar10(config)
    reference, ours = Reference(splits, config), measure.Ours(splits, config)
    (images, labels), = _loader(splits.validation, reference.validation.dataset.transform, 40, False)
    torch.testing.assert_close(images, augment.normalize(splits.validation.images, splits.validation))
    assert torch.equal(labels, splits.validation.labels)
    torch.testing.assert_close(reference.model(images), ours.model(images))
    before = [[p.clone() for p in way.model.parameters()] for way in (reference, ours)]
    for way, weights in zip((reference, ours), before):
        way.epoch()
        assert not any(torch.equal(p, q) for p, q in zip(way.model.parameters(), weights) if p.ndim > 1)
    assert reference.model.training is False, "it validates last"


def test_the_reference_has_the_allocator_as_it_comes(monkeypatch):
    for name, value in ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    config = tiny("resnet", augmentation=True, limit_train=32)
    with measure._plain_process(config) as reference:
        assert reference.submit(measure._reference_epoch).result() > 0
        assert [reference.submit(os.getenv, name).result() for name in ALLOCATOR] == [None] * len(ALLOCATOR)
    assert ALLOCATOR.items() <= os.environ.items()


def test_only_the_cores_that_this_process_may_use_count(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0})
    assert measure.usual_ways(torch.device("cpu")) == [(1, 1)] and measure.conditions(tiny())["cores"] == 1
    assert _loader(measure.load_cifar10(tiny()).train, None, 16, False).num_workers == 1


def test_runs_that_do_not_fit_at_once_cost_no_measurement(monkeypatch, capsys):
    def together(config, runs, threads, seconds):
        if runs > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 10.0 * runs

    monkeypatch.setattr(measure, "_together", together)
    assert [way["runs"] for way in measure.at_once(tiny("vit"), [(1, 8), (2, 4), (4, 2), (8, 1)], 0.1)] == [1, 2]
    assert "four runs at a time broke off (OutOfMemoryError)" in capsys.readouterr().out


def test_a_run_that_breaks_off_keeps_nobody_waiting():
    with pytest.raises((InputError, BrokenBarrierError)):
        measure._together(tiny("vit", augmentation=True, model_args={"dim": 3}), 2, 1, seconds=0.1)


def test_table_chart_and_text_say_what_was_measured():
    text = bench_report.readme_section(FOUND)
    row = "| `resnet` | 100.0 (90.0 to 120.0) | 400.0 (390.0 to 410.0) | 4.10 (3.30 to 4.40) | 80% |  |"
    assert row in text and "| `vit` | 1.5 | 8.0 | 5.33 | 77% | 2 |" in text and "100 GFLOP/s in fp32" in text
    assert "1 x 2: 400; 2 x 1: 1,500" in text and "takes 6.0 s. Forked from a warm process, as a grid's are, it" in text
    assert "it takes 1.2 s, 20% of that." in text
    assert "A round trains 2,560 images (resnet, in batches of 256) and 64 images (vit, in batches of 64)." in text
    figure = bench_report.chart(FOUND)
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars == pytest.approx([1, 4.1, 1, 8 / 1.5])
    assert [bar.get_width() for bar in figure.axes[1].patches] == pytest.approx([0.8, 0.772])
    assert "ResNet 4.1" in figure.get_suptitle() and "ViT 5.3" in figure.get_suptitle()


def test_bench_executes_its_notebook_and_rewrites_the_readme(tmp_path, capfd):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- throughput:begin -->\n<!-- throughput:end -->\n")
    arguments = ["bench", "--folder", str(tmp_path), "--figures", str(tmp_path / "figures"), "--readme", str(readme)]
    once = ["--models", "resnet", "--rounds", "1", "--share", "0.01", "--dataset", "synthetic", "--device", "cpu"]
    assert main([*arguments, *once]) == 0
    results = json.loads((tmp_path / "throughput.json").read_text())
    assert capfd.readouterr().out.splitlines()[-1] == str(tmp_path / "throughput.json")
    found = results["models"]["resnet"]
    assert found["images"] == 25 and len(found["ratio"]) == len(results["start_up"]["tiny_run"]) == 1
    assert min(results["limits"].values()) > 0
    speeds = [way["images_per_second"] for way in results["at_once"]["ways"]]
    assert len(speeds) == len(measure.usual_ways(torch.device("cpu"))) and min(speeds) > 0
    assert results["conditions"]["dataset"] == "synthetic"
    assert (tmp_path / "figures" / "throughput.png").exists() and "| `resnet` |" in readme.read_text()
    before = readme.read_text()
    assert main([*arguments, "--no-measure"]) == 0 and readme.read_text() == before


def test_by_default_no_committed_measurements_are_overwritten():
    folder = make_parser().parse_args(["bench"]).folder
    notebook = papermill.inspect_notebook(str(ROOT / "notebooks" / "throughput.ipynb"))
    assert notebook["output"]["default"] == f'"{folder}/throughput.json"'
    assert subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True).stdout == b""


@pytest.mark.parametrize("arguments, message", [
    (["--no-measure", "--readme", "README.md"], "no measurements there"), (["--no-measure"], "no measurements there"),
    (["--models", "resnext"], "expected one of cnn, resnet, vit"),
])
def test_what_cannot_be_measured_is_one_line(arguments, message, tmp_path, capsys):
    folder = str(tmp_path)
    assert main(["bench", "--folder", folder, "--figures", folder, "--dataset", "synthetic", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
