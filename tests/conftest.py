"""What the tests share: no network, no tracking, one thread, one stand-in, and CIFAR-10 where it is there."""

import functools
import os
from pathlib import Path

# Set before torch is imported, and inherited by child processes. Tiny models gain nothing from more threads, and the
# same number of them everywhere gives the same sums. Where a run has more of them after all, those that wait sleep:
# they spin by default, and all workers and their runs share the cores. A proxy that isn't there keeps requests here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ |= {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
os.environ |= {name: "127.0.0.1,localhost" for name in ("no_proxy", "NO_PROXY")}

import pytest

from cifarlib.config import Config

GENUINE = Path(os.environ.get("CIFAR10_DIR") or Path(__file__).parent.parent / "cifar-10").absolute()

# Sizes at which a model trains in milliseconds; their layers are those of the published ones.
TINY = {
    "cnn": {"channels": [4, 4, 8, 8, 8, 8], "hidden": [16, 16, 16]},
    "resnet": {"widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "vit": {"patch": 8, "dim": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp_dim": 24},
    "speednet": {"widths": [8, 8, 16]},
    "vgg": {"depth": 11, "widths": [8, 8, 16, 16, 16]},
}


def tiny(model: str = "vit", **changes) -> Config:
    """A run of a second or less on the stand-in; everything in it is the same on every machine."""
    sizes = {"batch_size": 16, "limit_train": 48, "limit_val": 40, "limit_test": 40, "epochs": 2, "learning_rate": 0.01}
    return Config(**{"model": model, "model_args": TINY.get(model, {}), "dataset": "synthetic", "device": "cpu",
                     "precision": "fp32", **sizes, **changes})


# Files of tests that take seconds each: some around one cluster, server or project, in the others each by itself.
SHARED = ["test_slurm", "test_jupyterlab", "test_toy_parts"]
SINGLE = ["test_torture", "test_batch", "test_notebooks", "test_report", "test_cli", "test_figures", "test_bench"]


def pytest_collection_modifyitems(items):
    """The long tests first: with short ones in the end no worker waits long for the other."""
    order = {name: number for number, name in enumerate(SHARED + SINGLE)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay on one worker, for what their fixtures cost; those of SINGLE are dealt out one by one.

    Not by xdist's marks for groups: they go by a private attribute that this pytest no longer has.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return nodeid if Path(file).stem in SINGLE else file

    return Scheduler(config, log)


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder of the genuine CIFAR-10: $CIFAR10_DIR, else ./cifar-10."""
    if not any((folder / "test_batch").exists() for folder in (GENUINE, GENUINE / "cifar-10-batches-py")):
        pytest.skip("needs the genuine CIFAR-10 in $CIFAR10_DIR or ./cifar-10")
    return GENUINE


@pytest.fixture(scope="session", autouse=True)
def generated_once():
    """The stand-in takes a second to generate and is the same every time (test_data.py compares it with another)."""
    from cifarlib.data import synthetic

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "synthetic", functools.cache(synthetic.synthetic))
        yield


@pytest.fixture(scope="session")
def load():
    """load_splits that reads the same images once for all tests; nothing in a Splits may be changed in place."""
    from cifarlib import load_splits

    loaded = {}

    def cached(config: Config):
        limits = config.limit_train, config.limit_val, config.limit_test
        key = config.dataset, config.split, config.normalization, *limits
        if key not in loaded:
            loaded[key] = load_splits(config)
        return loaded[key]

    return cached
