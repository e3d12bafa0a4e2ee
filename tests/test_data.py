"""CIFAR-10 and CIFAR-100: verified, split, normalized, found or downloaded; the stand-in; another dataset."""

import errno
import hashlib
import multiprocessing
import os
import pickle
import shutil
import socket
import socketserver
import tarfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import torchvision
from conftest import tiny
from torch import nn

from cifarlib import Config, InputError, build_model, evaluate, fit, load_splits
from cifarlib.batch.grid import distinct_runs, read_grid
from cifarlib.data import cifar, synthetic
from cifarlib.data.cifar import CIFAR10, CIFAR100, Archive
from cifarlib.data.splits import split_indices
from cifarlib.parts import DATASETS, Dataset

ROOT = Path(__file__).parent.parent
WHOLE = {"limit_train": 0, "limit_val": 0, "limit_test": 0}
BOTH = pytest.mark.parametrize("archive", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"], indirect=True)


@pytest.fixture(scope="module")
def reference(cifar10, tmp_path_factory):
    """torchvision's reading of the genuine batches: (training split, test split), images as (N, 32, 32, 3)."""
    root = tmp_path_factory.mktemp("torchvision")
    (root / CIFAR10.batches).symlink_to(CIFAR10.find(str(cifar10)).resolve())
    return [torchvision.datasets.CIFAR10(root, train=train) for train in (True, False)]


@pytest.fixture(scope="module")
def genuine(cifar10, load):
    """The splits of the genuine data, by the split's name; `published` under the published protocol."""
    protocols = {"published": "published", "stratified": "corrected"}
    return {split: load(Config(protocol=protocol, device="cpu", data_dir=str(cifar10)))
            for split, protocol in protocols.items()}


@BOTH
def test_md5s_are_torchvisions(archive):
    theirs = getattr(torchvision.datasets, archive.key)
    assert list(archive.md5.items()) == [tuple(pair) for pair in theirs.train_list + theirs.test_list]


def test_class_names_are_torchvisions(reference):
    assert list(DATASETS["cifar10"].classes) == reference[0].classes


def holds(split, source, indices):
    """Whether a split has torchvision's images and labels at `indices`."""
    return (np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), source.data[indices])
            and split.labels.tolist() == np.array(source.targets)[indices].tolist())


@pytest.mark.parametrize("name", ["published", "stratified"])
def test_splits_of_cifar10_hold_every_image_once(name, genuine, reference):
    splits, (train, test) = genuine[name], reference
    batches = np.arange(40_000), np.arange(40_000, 50_000)
    indices = batches if name == "published" else split_indices(np.array(train.targets), "stratified")
    assert sorted(np.concatenate(indices)) == list(range(50_000))
    assert holds(splits.train, train, indices[0]) and holds(splits.validation, train, indices[1])
    assert holds(splits.test, test, np.arange(10_000)) and splits.dataset == "cifar10"
    assert splits.train.images.dtype == torch.uint8 and splits.train.labels.dtype == torch.int64
    # The order is the dataset's own, which is mixed: a limited run sees every class.
    for split in (splits.train, splits.validation, splits.test):
        assert torch.bincount(split.labels[:1000], minlength=10).min() > 50


@pytest.mark.parametrize("classes", [10, 100])
def test_stratified_split_draws_as_many_of_each_class_from_all_batches(classes):
    labels = np.random.default_rng(0).permutation(np.arange(50_000) % classes)
    train, validation = split_indices(labels, "stratified")
    assert np.histogram(validation, bins=5, range=(0, 50_000))[0] == pytest.approx([2000] * 5, rel=0.1)
    assert np.bincount(labels[train]).tolist() == [40_000 // classes] * classes
    assert np.bincount(labels[validation]).tolist() == [10_000 // classes] * classes


def test_normalization_constants(genuine, reference):
    source = reference[0]
    train = source.data[split_indices(np.array(source.targets), "stratified")[0]]
    for name in ("train", "validation", "test"):
        published, corrected = getattr(genuine["published"], name), getattr(genuine["stratified"], name)
        assert published.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
        assert published.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
        for channel in range(3):
            assert corrected.mean[channel].item() == pytest.approx(train[..., channel].mean() / 255, abs=1e-6)
            assert corrected.std[channel].item() == pytest.approx(train[..., channel].std() / 255, abs=1e-6)


def test_committed_runs_have_todays_fingerprints(genuine, cifar10, load):
    """A run counts as done only as long as its images are the same; the stand-in's are others."""
    tables = pandas.concat(map(pandas.read_csv, (ROOT / "executed").glob("*/runs.csv")))
    every = load(Config(split="all", device="cpu", data_dir=str(cifar10)))
    few = load(Config(limit_train=10_000, limit_val=2_000, device="cpu", data_dir=str(cifar10)))  # of published_small
    today = {(name, splits.fingerprint) for name, splits in [*genuine.items(), ("all", every), ("stratified", few)]}
    assert set(zip(tables["split"], tables["data_fingerprint"])) == today
    assert load(tiny(**WHOLE)).fingerprint not in dict(today).values()


# Small batches that stand for the official ones.

@pytest.fixture
def archive(request):
    """CIFAR-10's archive, or what a test is parametrized with."""
    return getattr(request, "param", CIFAR10)


def write_batches(archive, folder, monkeypatch, label=None):
    """100 random images to train and 20 to test, in batches taken for the genuine ones; label: of all images."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    for name in archive.md5:
        count = 100 if name == "train" else 20
        labels = rng.integers(0, 10, count).tolist() if label is None else [label] * count
        batch = {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), archive.label_key: labels}
        (folder / name).write_bytes(pickle.dumps(batch))
        monkeypatch.setitem(archive.md5, name, hashlib.md5((folder / name).read_bytes()).hexdigest())


@pytest.fixture
def batches(archive, tmp_path, monkeypatch):
    """A folder of such batches; the working directory is an empty folder beside it."""
    write_batches(archive, tmp_path / "data" / archive.batches, monkeypatch)
    for name in ("CIFAR10_DIR", "CIFAR100_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "data" / archive.batches


@BOTH
def test_batches_are_read_in_order(archive, batches):
    images, labels, test_images, test_labels = archive.arrays(batches)
    raw = [pickle.loads((batches / name).read_bytes()) for name in archive.md5]
    pixels = np.concatenate([images, test_images]).reshape(120, 3072)
    assert len(images) == len(labels) == 100
    assert np.array_equal(pixels, np.concatenate([batch["data"] for batch in raw]))
    assert [*labels, *test_labels] == sum((batch[archive.label_key] for batch in raw), [])


def test_batches_are_opened_once_and_again_when_one_has_changed(batches, monkeypatch):
    first, opened, inner = CIFAR10.arrays(batches), [], Archive._opened
    monkeypatch.setattr(Archive, "_opened", lambda archive, folder: opened.append(folder) or inner(archive, folder))
    again = CIFAR10.arrays(batches)
    assert not opened and all(np.array_equal(a, b) for a, b in zip(first, again))
    write_batches(CIFAR10, batches, monkeypatch, label=3)
    assert (CIFAR10.arrays(batches)[1] == 3).all() and opened == [batches]
    whole, images = (batches / cifar.CACHE).read_bytes(), CIFAR10.arrays(batches)[0]
    for damaged in (b"", bytes(1000), whole[:1000], whole[:5000] + bytes(9000) + whole[14000:]):
        (batches / cifar.CACHE).write_bytes(damaged)
        assert np.array_equal(CIFAR10.arrays(batches)[0], images)
    assert len(opened) == 5 and (batches / cifar.CACHE).read_bytes() == whole, "each was made anew"


def test_batches_in_a_folder_that_cannot_be_written(batches, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cifar, "replacing", refuse)
    assert len(CIFAR10.arrays(batches)[1]) == 100 and not (batches / cifar.CACHE).exists()


@BOTH
def test_search_order(archive, batches, tmp_path, monkeypatch):
    for name in (f"work/{archive.home}", "environment", "argument"):
        write_batches(archive, tmp_path / name, monkeypatch)
    monkeypatch.setattr(Archive, "download", lambda archive: "download")
    monkeypatch.setenv("CIFAR100_DIR" if archive is CIFAR10 else "CIFAR10_DIR", "of the other archive")
    assert archive.find().resolve() == tmp_path / "work" / archive.home
    monkeypatch.setenv(f"{archive.key}_DIR", str(tmp_path / "environment"))
    assert archive.find() == tmp_path / "environment"
    assert archive.find(str(tmp_path / "argument")) == tmp_path / "argument"
    monkeypatch.delenv(f"{archive.key}_DIR")
    shutil.rmtree(tmp_path / "work" / archive.home)
    assert archive.find() == "download"


@pytest.mark.parametrize("by", ["data_dir", "variable"])
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("dataset, archive", [("cifar10", CIFAR10), ("auto", CIFAR10), ("cifar100", CIFAR100)],
                         ids=["cifar10", "auto", "cifar100"], indirect=["archive"])
def test_folder_without_batches(dataset, archive, batches, by, exists, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    if exists:
        folder.mkdir()
    if by == "variable":
        monkeypatch.setenv(f"{archive.key}_DIR", str(folder))
    monkeypatch.setattr(Archive, "download", lambda archive: pytest.fail("a folder was named"))
    with pytest.raises(InputError) as caught:
        load_splits(Config(dataset=dataset, data_dir=str(folder) if by == "data_dir" else "", device="cpu"))
    source = "data_dir" if by == "data_dir" else f"${archive.key}_DIR"
    assert str(caught.value).startswith(f"{source}: no {archive.name} in {folder}; expected {archive.batches}/ or its ")


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"?" + path.read_bytes()[-8:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("dataset, archive, name", [
    ("cifar10", CIFAR10, "data_batch_3"), ("auto", CIFAR10, "test_batch"), ("cifar100", CIFAR100, "train")],
    ids=["cifar10", "auto", "cifar100"], indirect=["archive"])
def test_damaged_batch(dataset, archive, name, batches, kind):
    DAMAGE[kind](batches / name)
    with pytest.raises(InputError, match=f"^{name} in .* (can't be read|is damaged)"):
        load_splits(Config(dataset=dataset, data_dir=str(batches), device="cpu"))


@BOTH
def test_nothing_is_unpickled_unverified(archive, batches, tmp_path):
    bomb = f"cbuiltins\nopen\n(V{tmp_path / 'exploded'}\nVw\ntR.".encode()  # a pickle that makes a file
    pickle.loads(bomb).close()
    (tmp_path / "exploded").unlink()  # it works
    (batches / next(iter(archive.md5))).write_bytes(bomb)
    with pytest.raises(InputError, match="damaged"):
        archive.arrays(batches)
    assert not (tmp_path / "exploded").exists()


# Limits and the fingerprint, on the stand-in.

def parts_of(splits):
    return splits.train, splits.validation, splits.test


def test_limits_take_the_first_images(load):
    whole, limited = load(tiny(**WHOLE)), load(tiny(limit_train=100, limit_val=7, limit_test=3))
    beyond = load(tiny(limit_train=60_000, limit_val=10_001, limit_test=10**9))
    assert list(map(len, parts_of(whole))) == list(map(len, parts_of(beyond))) == [40_000, 10_000, 10_000]
    assert list(map(len, parts_of(limited))) == [100, 7, 3]
    for small, large in zip(parts_of(limited), parts_of(whole)):
        assert torch.equal(small.images, large.images[:len(small)])
        assert torch.equal(small.labels, large.labels[:len(small)])
        assert torch.equal(small.mean, large.mean)  # of the whole training split, whatever the limit


def test_batch_larger_than_the_data():
    with pytest.raises(InputError, match="batch_size: 101 images a batch, but the training split has 100"):
        load_splits(tiny(limit_train=100, batch_size=101))
    assert len(load_splits(tiny(limit_train=100, batch_size=100)).train) == 100


def test_fingerprint_tells_images_apart(load):
    changes = [{}, {"split": "published"}, {"limit_train": 40, "limit_val": 48}, {"limit_test": 41}]
    prints = [load(tiny(**change)).fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    assert load_splits(tiny(seed=3, model="cnn")).fingerprint == prints[0]


# The download, from servers on this machine.

@contextmanager
def server(answer):
    """A local server that reads each request, then calls answer(connection); yields its address and the requests."""
    requests = []

    def serve(connection, *_):
        with suppress(OSError):  # the client may hang up first
            requests.append(connection.recv(4096))
            answer(connection)

    listener = socketserver.ThreadingTCPServer(("127.0.0.1", 0), serve)
    listener.daemon_threads = True
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_address[1]}/archive.tar.gz", requests
    listener.shutdown()
    listener.server_close()


def sends(body, length=None, status="200 OK"):
    """Answers with `body`, announced as `length` bytes."""
    header = f"HTTP/1.1 {status}\r\nContent-Length: {length or len(body)}\r\nConnection: close\r\n\r\n".encode()
    return lambda connection: connection.sendall(header + body)


@pytest.fixture
def packed(archive, batches, tmp_path, monkeypatch):
    """(the bytes of an archive that torchvision takes for the genuine one, torchvision's class)."""
    theirs = getattr(torchvision.datasets, archive.key)
    meta = batches / theirs.meta["filename"]
    meta.write_bytes(pickle.dumps({theirs.meta["key"]: []}))
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as packed:
        packed.add(batches, archive.batches)
    content = (tmp_path / "archive.tar.gz").read_bytes()
    *train, test = archive.md5.items()
    monkeypatch.setattr(theirs, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(theirs, "train_list", train)
    monkeypatch.setattr(theirs, "test_list", [test])
    monkeypatch.setattr(theirs, "meta", {**theirs.meta, "md5": hashlib.md5(meta.read_bytes()).hexdigest()})
    return content, theirs


@BOTH
def test_download(archive, packed, batches, tmp_path, monkeypatch, capfd):
    """Also on a file system without locks."""
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(cifar.fcntl, "flock", no_locks)
    (content, theirs), before = packed, socket.getdefaulttimeout()
    with server(sends(content)) as (url, _):
        monkeypatch.setattr(theirs, "url", url)
        found = archive.find()
    assert found.resolve() == tmp_path / "work" / archive.home / archive.batches
    assert all(np.array_equal(a, b) for a, b in zip(archive.arrays(found), archive.arrays(batches)))
    assert "100%" in capfd.readouterr().err  # a progress bar
    assert archive.find() == found  # the server is gone
    assert socket.getdefaulttimeout() == before


FAILURES = {  # what the server answers to a request for the bytes of the archive
    "no server": None,
    "not found": lambda content: sends(b"no such file", status="404 Not Found"),
    "another file": lambda content: sends(b"<html>Log in first</html>"),
    "garbage": lambda content: lambda connection: connection.sendall(b"\x15\x03\x01\n\n"),
    "breaks off": lambda content: sends(content[:len(content) // 2], len(content)),
    "stalls": lambda content: lambda connection: time.sleep(5),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_failed_download_is_one_line_and_leaves_nothing(failure, packed, tmp_path, monkeypatch):
    content, theirs = packed
    # The real limit of ten seconds is too long for a test; without any, a server that stalls would end it after five.
    set_timeout = socket.setdefaulttimeout
    monkeypatch.setattr(cifar.socket, "setdefaulttimeout", lambda seconds: set_timeout(seconds and min(seconds, 0.3)))
    with server(FAILURES[failure] and FAILURES[failure](content)) as (url, _):
        monkeypatch.setattr(theirs, "url", url if FAILURES[failure] else "http://127.0.0.1:9/")
        with pytest.raises(InputError) as caught:
            load_splits(Config(device="cpu"))
    message = str(caught.value)
    assert message.startswith("CIFAR-10 could not be downloaded") and "\n" not in message
    assert f"fetch {theirs.url} elsewhere and unpack it so that cifar-10/cifar-10-batches-py is there" in message
    assert failure != "stalls" or "timed out" in message
    assert os.listdir(tmp_path / "work") == [], "copied there, data would lie one level too deep"
    assert socket.getdefaulttimeout() is None


def test_two_processes_download_once(packed, tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")  # the children must have the changed addresses and checksums
    (content, theirs), found = packed, fork.Queue()
    with server(lambda connection: (time.sleep(0.2), sends(content)(connection))) as (url, requests):
        monkeypatch.setattr(theirs, "url", url)
        CIFAR10.find()
        shutil.rmtree("cifar-10")
        needed = len(requests)
        processes = [fork.Process(target=lambda: found.put(str(CIFAR10.find().resolve()))) for _ in range(2)]
        for process in processes:
            process.start()
        folders = [found.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
    assert folders == [str(tmp_path / "work" / "cifar-10" / CIFAR10.batches)] * 2 and len(requests) == 2 * needed


# The stand-in.

def test_stand_in_is_the_same_every_time_and_balanced():
    *fresh, content = synthetic.synthetic.__wrapped__()
    assert all(np.array_equal(a, b) for a, b in zip(fresh, synthetic.synthetic()))
    images, labels, test_images, test_labels = fresh
    assert images.shape == (50_000, 3, 32, 32) and test_images.shape == (10_000, 3, 32, 32)
    assert np.bincount(labels).tolist() == [5000] * 10 and np.bincount(test_labels).tolist() == [1000] * 10
    assert images.dtype == np.uint8 and not np.array_equal(images[:10_000], test_images)
    assert content == f"synthetic {synthetic.VERSION}"


def test_a_linear_model_hardly_learns_the_stand_in(load):
    config = tiny("cnn", learning_rate=0.005, limit_train=2048, limit_val=100, limit_test=1000, batch_size=32, epochs=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    fit(model, load(config), config)
    assert evaluate(model, load(config).test, config).accuracy < 0.2


DEMO = {run.config.model: run.config for run in distinct_runs(read_grid(ROOT / "parameters" / "demo.yaml"))}


@pytest.mark.parametrize("model", DEMO)
def test_every_model_of_the_demo_learns_the_stand_in(model, load):
    """In one of the demo's epochs; 20% of 1,000 images is ten standard errors above chance."""
    config = DEMO[model].replace(dataset="synthetic", device="cpu", epochs=1)
    history = fit(build_model(config), load(config), config)
    assert config.limit_val == 1000 and history.last["val_accuracy"] > 0.2


def test_auto_falls_back_to_the_stand_in_and_says_so(batches, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/")
    splits = load_splits(Config(dataset="auto", device="cpu"))
    assert splits.dataset == "synthetic" and splits.banner.startswith("SYNTHETIC DATA, NOT CIFAR-10: 40,000 training")


# Other data.

def test_cifar100_is_trained_on_its_own_classes(tmp_path, monkeypatch):
    write_batches(CIFAR100, tmp_path, monkeypatch, label=99)
    config = tiny(dataset="cifar100", data_dir=str(tmp_path))
    splits, model = load_splits(config), build_model(config)
    assert splits.dataset == "cifar100" and splits.banner.startswith("CIFAR-100: 48 training")
    assert [*splits.test.classes] == sorted({*splits.test.classes}) and len(splits.test.classes) == 100
    assert splits.test.classes[99] == "worm" and splits.test.labels.unique().tolist() == [99]
    history = fit(model, splits, config)
    assert evaluate(model, splits.test, config).logits.shape == (20, 100)
    assert not any("per_class_accuracy_" in name for name in history.last), "columns for a hundred classes"
    with pytest.raises(InputError, match="split: the published one is of CIFAR-10's batches"):
        config.replace(protocol="published")


GREYS = Dataset("Greys", ("black", "grey", "white"), f"{__name__}:greys")


def greys(data_dir):
    """A reader: images of three grey levels."""
    labels = np.arange(90) % 3
    images = np.full((90, 3, 32, 32), 80, np.uint8) * labels.astype(np.uint8)[:, None, None, None]
    return images, labels, images[:30], labels[:30], "greys 1"


BROKEN = {
    "floats": lambda images, labels: (images.astype(np.float32), labels),
    "one channel": lambda images, labels: (images[:, :1], labels),
    "a label too few": lambda images, labels: (images, labels[1:]),
    "a class too many": lambda images, labels: (images, labels + 1),
    "a label below 0": lambda images, labels: (images, labels - 1),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_a_reader_may_not_give(how, monkeypatch):
    images, labels, *rest = greys("")
    given = *BROKEN[how](images, labels), *rest
    monkeypatch.setitem(DATASETS, "greys", GREYS)
    monkeypatch.setattr("cifarlib.data.splits.load", lambda name: lambda data_dir: given)
    with pytest.raises(InputError, match="dataset: the reader of greys gave"):
        load_splits(tiny(dataset="greys"))
