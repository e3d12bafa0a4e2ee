"""CIFAR-10: verified before it is opened, split and normalized as documented, found or downloaded; and the stand-in."""

import hashlib
import multiprocessing
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from conftest import tiny
from torchvision.datasets import CIFAR10

from cifarlib import Config, InputError, build_model, evaluate, fit, load_cifar10
from cifarlib.data import cifar10 as files, splits
from cifarlib.data.cifar10 import BATCHES, MD5, find_cifar10, read_batches
from cifarlib.parts import CIFAR10_CLASSES as CLASSES


@pytest.fixture(scope="module")
def reference(cifar10, tmp_path_factory):
    """torchvision's reading of the genuine batches: (training images, labels, test images, labels), images as (N, 32, 32, 3)."""
    root = tmp_path_factory.mktemp("torchvision")
    (root / BATCHES).symlink_to(find_cifar10(str(cifar10)).resolve())
    train, test = (CIFAR10(root, train=train) for train in (True, False))
    return train.data, np.array(train.targets), test.data, np.array(test.targets)


@pytest.fixture(scope="module")
def genuine(cifar10, reference, load):
    """The splits of the genuine data, by the split's name; `published` under the published protocol."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "find_cifar10", lambda data_dir: find_cifar10(str(cifar10)))
        return {"published": load(Config(protocol="published", device="cpu")), "stratified": load(Config(device="cpu"))}


def test_md5s_are_torchvisions():
    assert list(MD5.items()) == [tuple(pair) for pair in CIFAR10.train_list + CIFAR10.test_list]


def test_class_names_are_torchvisions(reference, tmp_path, cifar10):
    (tmp_path / BATCHES).symlink_to(find_cifar10(str(cifar10)).resolve())
    assert list(CLASSES) == CIFAR10(tmp_path, train=False).classes


def same(split, images, labels):
    return np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), images) and np.array_equal(split.labels.numpy(), labels)


def test_published_split_is_batches_1_to_4_and_batch_5(genuine, reference):
    images, labels, test_images, test_labels = reference
    splits = genuine["published"]
    assert same(splits.train, images[:40_000], labels[:40_000])
    assert same(splits.validation, images[40_000:], labels[40_000:])
    assert same(splits.test, test_images, test_labels)
    assert splits.dataset == "cifar10" and splits.train.images.dtype == torch.uint8 and splits.train.labels.dtype == torch.int64


def test_stratified_split_holds_every_image_once(genuine, reference):
    images, labels, test_images, test_labels = reference
    splits = genuine["stratified"]
    train, validation = splits.split_indices(labels, "stratified")
    assert sorted([*train, *validation]) == list(range(50_000))
    assert same(splits.train, images[train], labels[train]) and same(splits.validation, images[validation], labels[validation])
    assert same(splits.test, test_images, test_labels)


def test_stratified_split_is_balanced_and_mixed(genuine):
    splits = genuine["stratified"]
    assert torch.bincount(splits.train.labels).tolist() == [4000] * 10
    assert torch.bincount(splits.validation.labels).tolist() == [1000] * 10
    # The order is the data set's own, which is mixed: a limited run sees every class.
    assert all(torch.bincount(split.labels[:1000], minlength=10).min() > 50 for split in (splits.train, splits.validation, splits.test))


def test_stratified_split_draws_from_all_batches():
    labels = np.random.default_rng(0).permutation(np.arange(50_000) % 10)
    _, validation = splits.split_indices(labels, "stratified")
    assert np.histogram(validation, bins=5, range=(0, 50_000))[0] == pytest.approx([2000] * 5, rel=0.1)


def test_normalization_constants(genuine, reference):
    train = reference[0][splits.split_indices(reference[1], "stratified")[0]]
    for channel in range(3):
        assert genuine["stratified"].train.mean[channel].item() == pytest.approx(train[..., channel].mean() / 255, abs=1e-6)
        assert genuine["stratified"].train.std[channel].item() == pytest.approx(train[..., channel].std() / 255, abs=1e-6)
    for split in ("train", "validation", "test"):
        published, corrected = getattr(genuine["published"], split), getattr(genuine["stratified"], split)
        assert published.mean.tolist() == pytest.approx([0.485, 0.456, 0.406]) and published.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
        assert torch.equal(corrected.mean, genuine["stratified"].train.mean) and torch.equal(corrected.std, genuine["stratified"].train.std)


# Small batches that stand for the official ones.

def write_batches(folder, content=None):
    """Six batches of a few images in `folder`; return their MD5s."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    for name in MD5:
        batch = content or {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": rng.integers(0, 10, 20).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in MD5}


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """A folder of small batches that are taken for the genuine ones; the working directory is an empty folder beside it."""
    for name, digest in write_batches(tmp_path / "data" / BATCHES).items():
        monkeypatch.setitem(MD5, name, digest)
    monkeypatch.delenv("CIFAR10_DIR", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "data" / BATCHES


def test_batches_are_read_in_order(batches):
    images, labels, test_images, test_labels = read_batches(batches)
    raw = [pickle.loads((batches / name).read_bytes()) for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")]
    assert np.array_equal(images.reshape(100, 3072), np.concatenate([batch["data"] for batch in raw]))
    assert labels.tolist() == sum((batch["labels"] for batch in raw), [])
    assert len(test_images) == len(test_labels) == 20


def test_batches_are_opened_once_and_again_when_one_has_changed(batches, monkeypatch):
    first, opened = read_batches(batches), []
    monkeypatch.setattr(files, "_opened", lambda folder, inner=files._opened: opened.append(folder) or inner(folder))
    again = read_batches(batches)
    assert not opened and all(np.array_equal(a, b) for a, b in zip(first, again))
    again[0][:] = 0
    assert np.array_equal(read_batches(batches)[0], first[0]), "what is done to the images stays in memory"
    for name, digest in write_batches(batches, {"data": np.zeros((20, 3072), np.uint8), "labels": [3] * 20}).items():
        monkeypatch.setitem(MD5, name, digest)
    assert not read_batches(batches)[0].any() and opened == [batches]
    (batches / files.CACHE).write_bytes((batches / files.CACHE).read_bytes()[:1000])
    assert len(read_batches(batches)[1]) == 100 and len(opened) == 2, "half a cache is none"


def test_batches_in_a_folder_that_cannot_be_written(batches, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "replacing", refuse)
    assert len(read_batches(batches)[1]) == 100 and not (batches / files.CACHE).exists()


@pytest.mark.parametrize("given", ["folder", "batches"])
@pytest.mark.parametrize("how", ["argument", "environment"])
def test_both_layouts_are_found(batches, given, how, monkeypatch):
    folder = str(batches if given == "batches" else batches.parent)
    if how == "environment":
        monkeypatch.setenv("CIFAR10_DIR", folder)
    assert find_cifar10(folder if how == "argument" else "") == batches


def test_search_order(batches, tmp_path, monkeypatch):
    for name in ("work/cifar-10", "environment", "argument"):
        write_batches(tmp_path / name)
    monkeypatch.setattr(files, "download", lambda home: ("download", home))
    assert find_cifar10().resolve() == tmp_path / "work" / "cifar-10"
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "environment"))
    assert find_cifar10() == tmp_path / "environment"
    assert find_cifar10(str(tmp_path / "argument")) == tmp_path / "argument"
    monkeypatch.delenv("CIFAR10_DIR")
    for name in MD5:
        (tmp_path / "work" / "cifar-10" / name).unlink()
    assert find_cifar10()[0] == "download"


@pytest.mark.parametrize("how", ["data_dir", "$CIFAR10_DIR"])
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
def test_folder_without_batches(batches, how, exists, dataset, tmp_path, monkeypatch):
    if exists:
        (tmp_path / "elsewhere").mkdir()
    if how == "$CIFAR10_DIR":
        monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(files, "download", lambda home: pytest.fail("a folder was named: nothing is to be downloaded"))
    with pytest.raises(InputError) as caught:
        load_cifar10(Config(dataset=dataset, data_dir=str(tmp_path / "elsewhere") if how == "data_dir" else "", device="cpu"))
    assert str(caught.value).startswith(f"{how}: no CIFAR-10 in ") and "\n" not in str(caught.value)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"?" + path.read_bytes()[-8:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
@pytest.mark.parametrize("dataset", ["cifar10", "auto"])
def test_damaged_batch(batches, kind, name, dataset):
    DAMAGE[kind](batches / name)
    with pytest.raises(InputError) as caught:
        load_cifar10(Config(dataset=dataset, data_dir=str(batches), device="cpu"))
    assert str(caught.value).startswith(name) and "\n" not in str(caught.value)


def test_nothing_is_unpickled_unverified(batches, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    pickle.loads(bomb).close()
    (tmp_path / "exploded").unlink()  # it works
    (batches / "data_batch_1").write_bytes(bomb)
    with pytest.raises(InputError, match="damaged"):
        read_batches(batches)
    assert not (tmp_path / "exploded").exists()


# Limits and the fingerprint, on the stand-in.

def test_limits_take_the_first_images(load):
    whole, limited = load(tiny(limit_train=0, limit_val=0, limit_test=0)), load(tiny(limit_train=100, limit_val=7, limit_test=3))
    assert [len(split) for split in (whole.train, whole.validation, whole.test)] == [40_000, 10_000, 10_000]
    assert [len(split) for split in (limited.train, limited.validation, limited.test)] == [100, 7, 3]
    for name in ("train", "validation", "test"):
        small, large = getattr(limited, name), getattr(whole, name)
        assert torch.equal(small.images, large.images[:len(small)]) and torch.equal(small.labels, large.labels[:len(small)])
        assert torch.equal(small.mean, large.mean)  # of the whole training split, whatever the limit


def test_limit_beyond_the_data_takes_all(load):
    splits = load(tiny(limit_train=60_000, limit_val=10_001, limit_test=10**9))
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [40_000, 10_000, 10_000]


def test_batch_larger_than_the_data():
    with pytest.raises(InputError, match="batch_size: 101 images a batch, but the training split has 100"):
        load_cifar10(tiny(limit_train=100, batch_size=101))
    assert len(load_cifar10(tiny(limit_train=100, batch_size=100)).train) == 100


def test_fingerprint_tells_images_apart(load):
    changes = [{}, {"split": "published"}, {"limit_train": 40, "limit_val": 48}, {"limit_test": 41}]
    prints = [load(tiny(**change)).fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    assert load_cifar10(tiny(seed=3, model="cnn")).fingerprint == prints[0]


def test_fingerprint_tells_the_stand_in_from_the_genuine(genuine, load):
    everything = dict(limit_train=0, limit_val=0, limit_test=0)
    prints = {genuine["published"].fingerprint, genuine["stratified"].fingerprint, load(tiny(**everything)).fingerprint}
    assert len(prints) == 3


# The download, from servers on this machine.

@contextmanager
def server(answer):
    """A server on the loopback that reads each request, then calls answer(connection); yields its address and a list of the requests."""
    listener, requests = socket.create_server(("127.0.0.1", 0)), []

    def serve(connection):
        with connection, suppress(OSError):  # the client may hang up first
            requests.append(connection.recv(4096))
            answer(connection)

    def listen():
        with suppress(OSError):  # when the listener is closed
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/cifar-10-python.tar.gz", requests
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def sends(body, length=None, status="200 OK"):
    """Answers with `body`, announced as `length` bytes."""
    header = f"HTTP/1.1 {status}\r\nContent-Length: {length or len(body)}\r\nConnection: close\r\n\r\n".encode()
    return lambda connection: connection.sendall(header + body)


@pytest.fixture
def archive(batches, tmp_path, monkeypatch):
    """The bytes of an archive that torchvision takes for the genuine one."""
    meta = batches / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": list(CLASSES)}))
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as packed:
        packed.add(batches, BATCHES)
    content = (tmp_path / "archive.tar.gz").read_bytes()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[name, MD5[name]] for name in MD5 if name != "test_batch"])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", MD5["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": hashlib.md5(meta.read_bytes()).hexdigest()})
    return content


def test_download(archive, batches, tmp_path, monkeypatch, capfd):
    before = socket.getdefaulttimeout()
    with server(sends(archive)) as (url, _):
        monkeypatch.setattr(CIFAR10, "url", url)
        found = find_cifar10()
    assert found.resolve() == tmp_path / "work" / "cifar-10" / BATCHES
    assert all(np.array_equal(a, b) for a, b in zip(read_batches(found), read_batches(batches)))
    assert "100%" in capfd.readouterr().err  # a progress bar
    assert find_cifar10() == found  # the server is gone
    assert socket.getdefaulttimeout() == before


def stalls(*answers):
    """Gives the answers, then nothing for five seconds."""
    def answer(connection):
        for first in answers:
            first(connection)
        time.sleep(5)
    return answer


@pytest.mark.parametrize("failure", ["no server", "not found", "another file", "garbage", "breaks off", "stalls at once", "stalls later"])
def test_failed_download_is_one_line_and_leaves_nothing(failure, archive, tmp_path, monkeypatch):
    half = sends(archive[:len(archive) // 2], len(archive))
    answers = {
        "no server": None, "not found": sends(b"no such file", status="404 Not Found"), "another file": sends(b"<html>Log in first</html>"),
        "garbage": lambda connection: connection.sendall(b"\x15\x03\x01\n\n"), "breaks off": half,
        "stalls at once": stalls(), "stalls later": stalls(half),
    }
    # The real limit of ten seconds is too long for a test; without any, a server that stalls would end the wait after five.
    set_timeout = socket.setdefaulttimeout
    monkeypatch.setattr(files.socket, "setdefaulttimeout", lambda seconds: set_timeout(seconds and min(seconds, 0.3)))
    with server(answers[failure]) as (url, _):
        monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/" if failure == "no server" else url)
        with pytest.raises(InputError) as caught:
            load_cifar10(Config(device="cpu"))
    message = str(caught.value)
    assert message.startswith("CIFAR-10 could not be downloaded") and "\n" not in message
    assert not failure.startswith("stalls") or "timed out" in message
    assert os.listdir(tmp_path / "work" / "cifar-10") == [".lock"]
    assert socket.getdefaulttimeout() is None


def test_download_into_a_place_that_is_taken(archive, tmp_path):
    (tmp_path / "work" / "cifar-10").write_text("a file")
    with pytest.raises(InputError, match="could not be downloaded"):
        find_cifar10()


def test_two_processes_download_once(archive, tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")  # the children must have the changed addresses and checksums
    found, give = fork.Queue(), sends(archive)
    with server(lambda connection: (time.sleep(0.2), give(connection))) as (url, requests):
        monkeypatch.setattr(CIFAR10, "url", url)
        find_cifar10()
        shutil.rmtree("cifar-10")
        needed = len(requests)
        processes = [fork.Process(target=lambda: found.put(str(find_cifar10().resolve()))) for _ in range(2)]
        for process in processes:
            process.start()
        places = [found.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
    assert places == [str(tmp_path / "work" / "cifar-10" / BATCHES)] * 2 and len(requests) == 2 * needed


# The stand-in.

def test_stand_in_is_the_same_every_time_and_balanced():
    fresh, again = splits.synthetic.__wrapped__(), splits.synthetic()
    assert all(np.array_equal(a, b) for a, b in zip(fresh, again))
    images, labels, test_images, test_labels = fresh
    assert images.shape == (50_000, 3, 32, 32) and test_images.shape == (10_000, 3, 32, 32) and images.dtype == test_images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [5000] * 10 and np.bincount(test_labels).tolist() == [1000] * 10
    assert not np.array_equal(images[:10_000], test_images)


def test_small_cnn_beats_a_linear_model_on_the_stand_in(load):
    config = tiny("cnn", model_args={"channels": [4, 8, 16, 16, 16, 16], "hidden": [], "dropout": 0.0}, learning_rate=0.005,
                  limit_train=2048, limit_val=100, limit_test=1000, batch_size=32, epochs=4)
    splits = load(config)
    accuracy = {}
    for name, model in {"cnn": build_model(config), "linear": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))}.items():
        fit(model, splits, config)
        accuracy[name] = evaluate(model, splits.test, config).accuracy
    assert accuracy["cnn"] > accuracy["linear"] + 0.3, accuracy


def test_auto_falls_back_to_the_stand_in_and_says_so(batches, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/")
    splits = load_cifar10(Config(dataset="auto", device="cpu"))
    assert splits.dataset == "synthetic" and "SYNTHETIC DATA, NOT CIFAR-10" in splits.banner


def test_auto_takes_cifar10_if_it_is_there(cifar10, genuine, monkeypatch):
    monkeypatch.setenv("CIFAR10_DIR", str(cifar10))
    splits = load_cifar10(Config(dataset="auto", device="cpu"))
    assert splits.dataset == "cifar10" and "SYNTHETIC" not in splits.banner
    assert splits.fingerprint == genuine["stratified"].fingerprint


def test_auto_does_not_hide_a_wrong_folder(batches, tmp_path):
    with pytest.raises(InputError, match="no CIFAR-10"):
        load_cifar10(Config(dataset="auto", data_dir=str(tmp_path / "wrong"), device="cpu"))


def test_data_that_was_named_stays_untouched_by_the_stand_in(monkeypatch):
    monkeypatch.setattr(splits, "find_cifar10", lambda data_dir: pytest.fail("the stand-in needs no files"))
    assert load_cifar10(tiny(data_dir="nowhere")).dataset == "synthetic"
