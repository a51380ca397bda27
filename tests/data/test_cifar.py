"""CIFAR pickles: those of Python 2 and 3, damaged ones, and ones that try to run code."""

from __future__ import annotations

import os
import pickle
import struct

import numpy
import pytest
import torch

from sparseprune import data
from sparseprune.data.safe_pickle import read_pickled_dict


def images(count, seed=0):
    return numpy.random.RandomState(seed).randint(0, 256, (count, 3072)).astype(numpy.uint8)


def python2(value):
    """Protocol 2 as Python 2 wrote it: strings are SHORT_BINSTRING or BINSTRING, also those in arrays."""

    def text(content):
        short = len(content) < 256
        return (b"U" + bytes([len(content)]) if short else b"T" + _int(len(content))) + content

    def item(value):
        if isinstance(value, bytes):
            return text(value)
        if isinstance(value, int):
            return b"J" + _int(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        rows, columns = value.shape
        dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\0K\1\x87R(K\3" + text(b"|") + b"NNNJ" + _int(-1) + b"J"
        dtype += _int(-1) + b"K\0tb"
        shape = b"J" + _int(rows) + b"J" + _int(columns) + b"\x86"
        state = b"(K\1" + shape + dtype + b"\x89" + text(value.tobytes()) + b"tb"
        return b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85" + text(b"b") + b"tR" + state

    entries = b"".join(text(key) + item(entry) for key, entry in value.items())
    return b"\x80\2}(" + entries + b"u."


def _int(value):
    return struct.pack("<i", value)


def write_cifar10(folder, dump=python2, count=6):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        labels = [(index + number) % 10 for index in range(count)]
        entries = {b"batch_label": b"some", b"labels": labels, b"data": images(count, number)}
        (folder / name).write_bytes(dump({**entries, b"filenames": [b"a.png"]}))
    names = [name.encode() for name in "airplane automobile bird cat deer dog frog horse ship truck".split()]
    (folder / "batches.meta").write_bytes(dump({b"num_vis": 3072, b"label_names": names}))


@pytest.mark.parametrize("protocol", ["python 2", 2, 3, 4, 5])
def test_cifar10(tmp_path, protocol):
    dump = python2 if protocol == "python 2" else lambda value: pickle.dumps(value, protocol=protocol)
    write_cifar10(tmp_path / "cifar-10-batches-py", dump)
    cifar = data.load("cifar10", tmp_path)
    assert cifar.classes[:3] == ("airplane", "automobile", "bird") and cifar.input_shape == (3, 32, 32)
    assert cifar.count("train") == 30 and cifar.count("test") == 6
    assert cifar.train[1].tolist() == [(index + number) % 10 for number in range(5) for index in range(6)]
    mean, std = torch.tensor(cifar.mean).view(3, 1, 1), torch.tensor(cifar.std).view(3, 1, 1)
    restored = ((cifar.test[0] * std + mean) * 255).round().to(torch.uint8)
    assert torch.equal(restored, torch.from_numpy(images(6, 5)).view(6, 3, 32, 32))


def test_the_python2_writer_of_this_test_is_one():
    value = {b"labels": [1, 300], b"data": images(3)}
    loaded = pickle.loads(python2(value), encoding="bytes")
    assert loaded[b"labels"] == [1, 300] and numpy.array_equal(loaded[b"data"], value[b"data"])


@pytest.mark.parametrize("place", [".", "cifar-100-python", "cifar100"])
def test_cifar100_uses_the_fine_labels(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    names = [f"class {number}".encode() for number in range(100)]
    (folder / "meta").write_bytes(python2({b"fine_label_names": names, b"coarse_label_names": [b"x"]}))
    for name, count in (("train", 5), ("test", 3)):
        labels = list(range(99, 99 - count, -1))
        entries = {b"fine_labels": labels, b"coarse_labels": [0] * count, b"data": images(count)}
        (folder / name).write_bytes(python2(entries))
    cifar = data.load("cifar100", tmp_path)
    assert cifar.train[1].tolist() == [99, 98, 97, 96, 95] and len(cifar.classes) == 100


def test_fortran_order(tmp_path):
    path = tmp_path / "file"
    array = numpy.asfortranarray(images(4))
    path.write_bytes(pickle.dumps({"data": array}, protocol=2))
    assert numpy.array_equal(read_pickled_dict(path)["data"].numpy(), array)
    path.write_bytes(pickle.dumps({"data": array}, protocol=5))
    assert numpy.array_equal(read_pickled_dict(path)["data"].numpy(), array)


class Attack:
    """Pickled as a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, getattr, numpy.frombuffer, numpy.load])
def test_no_function_of_a_pickle_is_called(tmp_path, protocol, function, monkeypatch):
    marker = tmp_path / "ran"
    command = f"open({str(marker)!r}, 'w')" if function is eval else f"touch {marker}"
    payload = pickle.dumps({"data": Attack(function, command)}, protocol=protocol)
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(payload)
    asked = f"got {tmp_path / 'data_batch_3'}: it asks for .*{function.__name__}"
    with pytest.raises(ValueError, match=asked):
        data.load("cifar10", tmp_path)
    assert not marker.exists()


def test_the_attack_of_this_test_is_one(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Attack(os.system, f"touch {marker}")))
    assert marker.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x04\x8c\x05numpy\x8c\x16ndarray.__init_subclass__\x93.",  # a dotted name
        b"cnumpy.core.multiarray\n_reconstruct.__init__.__globals__\n.",
        b"cnumpy\nload\n.",
        b"}X\x01\0\0\0kc_codecs\nencode\n(X\x01\0\0\0aX\x06\0\0\0rot_13tRs.",  # any other codec
        b"c_codecs\nlookup\n.",
        b"Pid\n.",  # a persistent id
        b"\x82\x01.",  # an extension code
    ],
)
def test_crafted_opcodes_are_refused(tmp_path, payload):
    path = tmp_path / "file"
    path.write_bytes(payload)
    with pytest.raises(ValueError, match=f"intact python pickles, got {path}"):
        read_pickled_dict(path)


def test_a_pickle_cannot_change_what_the_next_one_gets(tmp_path):
    path = tmp_path / "file"
    # GLOBAL _codecs.encode, then BUILD with slot state {"__defaults__": ("latin1",)}
    path.write_bytes(b"c_codecs\nencode\n(N}X\x0c\0\0\0__defaults__X\x06\0\0\0latin1\x85stb0}.")
    assert read_pickled_dict(path) == {}
    path.write_bytes(b"}X\x01\0\0\0ac_codecs\nencode\n(X\x01\0\0\0xtRs.")
    with pytest.raises(ValueError, match="intact python pickles"):
        read_pickled_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "intact python pickles"),
        (b"not a pickle", "intact python pickles"),
        (python2({b"labels": [1], b"data": images(1)})[:-100], "intact python pickles"),
        (pickle.dumps([1, 2]), "it holds a list"),
        (pickle.dumps({"labels": [1]}), r"'data' of shape \(images, 3072\), got .* with NoneType"),
        (pickle.dumps({"labels": [1], "data": images(1)[:, :-1].copy()}), r"with shape \(1, 3071\)"),
        (pickle.dumps({"labels": [1], "data": images(1).astype("int32")}), "not of unsigned bytes"),
        (pickle.dumps({"data": images(1)}), "must hold 1 integers 'labels', got .* with no list"),
        (pickle.dumps({"labels": [1], "data": images(2)}), "must hold 2 integers 'labels', got .* with 1"),
        (pickle.dumps({"labels": [b"1"], "data": images(1)}), "must hold 1 integers 'labels'"),
        (pickle.dumps({"labels": [10], "data": images(1)}), "labels 0 to 9, got .* with 10 to 10"),
        (pickle.dumps({"labels": [-1], "data": images(1)}), "labels 0 to 9, got .* with -1 to -1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("cifar10", tmp_path)
    assert str(tmp_path / "test_batch") in str(caught.value)


def test_an_array_whose_bytes_do_not_fill_its_shape(tmp_path):
    path = tmp_path / "file"
    honest = python2({b"data": images(1)})
    path.write_bytes(honest.replace(b"J" + _int(1) + b"J" + _int(3072), b"J" + _int(9) + b"J" + _int(3072)))
    with pytest.raises(ValueError, match=r"an array of 3072 bytes for shape \(9, 3072\)"):
        read_pickled_dict(path)


@pytest.mark.parametrize("missing", ["batches.meta", "data_batch_4", "test_batch"])
def test_a_missing_file_is_named(tmp_path, missing):
    write_cifar10(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"data_dir must contain {missing} .or in its cifar-10-batches-py"):
        data.load("cifar10", tmp_path)


def test_class_names_are_checked(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": "truck"}))
    with pytest.raises(ValueError, match="class names 'label_names', got .*batches.meta"):
        data.load("cifar10", tmp_path)
