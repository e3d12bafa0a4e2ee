"""Training on a GPU: captured graphs compute what single launches do, and what a CPU does."""

import pytest
import torch
from conftest import tiny

from cifarlib import build_model, fit, load_cifar10
from cifarlib.training import loop, recipe
from cifarlib.parts import ARCHITECTURES as MODELS, OPTIMIZERS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@pytest.fixture(autouse=True)
def exact():
    """The same sums each time, in whole fp32: convolutions round to TF32 by default, and may add in any order."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def rows(config, folder=None, **options):
    """The metrics of each epoch."""
    history = fit(build_model(config), load_cifar10(config), config, folder, **options)
    return [[row[name] for name in METRICS] for row in history.rows]


@pytest.mark.parametrize("precision, tolerance", [("fp32", {"rel": 1e-4}), ("bf16", {"rel": 0.02, "abs": 0.06})])
@pytest.mark.parametrize("augmentation", [False, True])
@pytest.mark.parametrize("model, optimizer", [*((name, "adamw") for name in MODELS), ("vgg", "sgd"), ("vgg", "muon")])
def test_a_graph_computes_what_single_launches_do(model, optimizer, augmentation, precision, tolerance, monkeypatch,
                                                  capsys):
    # 40 images: two whole batches an epoch, the fourth to the eighth replayed, and a rest. bf16 attention adds in any
    # order.
    config = tiny(model, optimizer=optimizer, device="cuda", augmentation=augmentation, precision=precision,
                  label_smoothing=0.1, limit_train=40, epochs=4, scheduler="exponential", gamma=0.5)
    replays, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(graph), replay(graph)))
    replayed = rows(config)
    assert len(replays) == 5 and "no CUDA graph" not in capsys.readouterr().out
    monkeypatch.setattr(loop, "WARM_UP", 0)
    launched = rows(config)
    assert len(replays) == 5
    for one, other in zip(replayed, launched, strict=True):
        assert one == pytest.approx(other, **tolerance)


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="before 2.14 a capture that broke off left no random numbers")
@pytest.mark.parametrize("model", MODELS)
def test_a_step_that_cannot_be_captured_is_launched_singly(model, monkeypatch, capsys):
    def breaking(trainer, positions, step=loop.Trainer._step):
        step(trainer, positions)
        if torch.cuda.is_current_stream_capturing():
            positions.sum().item()

    monkeypatch.setattr(loop.Trainer, "_step", breaking)
    assert len(rows(tiny(model, device="cuda", limit_train=40, epochs=4))) == 4
    assert capsys.readouterr().out.count("no CUDA graph here") == 1


@pytest.mark.parametrize("model", ["resnet", "vit"])  # the CNN's dropout has other random numbers
def test_a_gpu_trains_like_a_cpu(model):
    config = tiny(model, augmentation=True, epochs=3, learning_rate=0.001)
    for gpu, cpu in zip(rows(config.replace(device="cuda")), rows(config), strict=True):
        assert gpu == pytest.approx(cpu, rel=0.02, abs=0.06)  # a tie or two of some forty images may fall otherwise


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_on_a_gpu_goes_on_after_a_stop(optimizer, tmp_path):
    config = tiny("resnet", optimizer=optimizer, device="cuda", augmentation=True, epochs=4)

    def stop(history):
        if len(history.rows) == 2:
            (tmp_path / "run" / "stop").touch()

    assert len(rows(config, tmp_path / "run", on_epoch=stop)) == 2
    for resumed, whole in zip(rows(config, tmp_path / "run"), rows(config), strict=True):
        assert resumed == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("optimizer, augmentation", [("adamw", False), *((name, True) for name in OPTIMIZERS)])
def test_a_step_never_waits_for_the_gpu(optimizer, augmentation):
    config = tiny("resnet", optimizer=optimizer, device="cuda", augmentation=augmentation)
    model, splits = build_model(config), load_cifar10(config)
    model.to("cuda", memory_format=torch.channels_last)
    trainer = loop.Trainer(model, recipe.make_optimizer(model, config), splits.train, config, "fp32")
    trainer.train_epoch(0)
    trainer.train_epoch(1)
    trainer.graph = None  # a replay could not tell
    trainer.begin(2)  # back to the first batch: beyond the last there are no images
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
