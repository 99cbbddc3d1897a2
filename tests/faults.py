"""Causes of the faults in test_faults.py. A cause is a function of a site (see conftest.py)."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import lmdb
import torch
import yaml
from tiny_world import MODES, NAME

DIRECTION = f"checkpoint/{NAME}_0.pth"


@dataclass(frozen=True)
class Fault:
    """cause: function of a site (see conftest.py) that arranges the fault. refused: {mode: words of the one line of an error};
    mended: {mode: words of a warning, '' where there is nothing to say} of runs that end well. flags: more of them. by_curves:
    whether the intervals are read off LPIPS curves."""

    kind: str
    cause: Callable
    refused: dict = field(default_factory=dict)
    mended: dict = field(default_factory=dict)
    flags: tuple = ()
    by_curves: bool = False


def every(words, modes=tuple(MODES)):
    return dict.fromkeys(modes, words)


# ---- causes -----------------------------------------------------------------------------------------------------------------


def nothing(site):
    pass


def instead_of(name, put):
    """Something else stands where `name` belongs. The cause returns a function that puts it right."""

    def cause(site):
        path = site.root / name
        moved, was_there = path.with_name(f"{path.name}.moved"), path.exists()
        if was_there:
            path.rename(moved)
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path)

        def undo():
            if os.path.lexists(path):  # what is damaged is set aside
                path.rmdir() if path.is_dir() else path.unlink()
            if was_there:
                moved.rename(path)

        return undo

    return cause


def a_file_instead_of(name):
    return instead_of(name, lambda path: path.write_text("a file"))


def a_folder_instead_of(name):
    return instead_of(name, lambda path: path.mkdir())


def a_link_to_itself(name):
    return instead_of(name, lambda path: path.symlink_to(path.name))


def a_pipe_instead_of(name):
    return instead_of(name, os.mkfifo)


def an_endless_device_instead_of(name):
    return instead_of(name, lambda path: path.symlink_to("/dev/zero"))


def cut(*names):
    """Files lose their second half."""

    def cause(site):
        for pattern in names:
            for path in site.found(pattern):
                os.truncate(path, path.stat().st_size // 2)

    return cause


def filled(*names, contents=b""):
    """Files that hold something else."""

    def cause(site):
        for pattern in names:
            for path in site.found(pattern):
                path.write_bytes(contents)

    return cause


def zeroed(name):
    def cause(site):
        for path in site.found(name):
            whole = bytearray(path.read_bytes())
            whole[-64:] = bytes(64)
            path.write_bytes(whole)

    return cause


def not_finite(name):
    """A number in a file of weights is infinite."""

    def cause(site):
        [path] = site.found(name)
        weights = torch.load(path, weights_only=True)
        tensor = max(weights.values(), key=torch.numel)
        tensor.view(-1)[0] = float("inf")
        torch.save(weights, path)

    return cause


def renamed_images(name):
    """Names of images that are not UTF-8."""

    def cause(site):
        for folder in ("train", "test"):
            for path in site.found(f"world/{folder}/*.png"):
                os.rename(path, os.fsencode(path.parent) + b"/" + name + path.name.encode())

    return cause


def a_pipe_among_the_images(site):
    for folder in ("train", "test"):
        os.mkfifo(site.root / "world" / folder / "pipe.png")


def endless_lmdb(site):
    """Whose own count of images is a lie."""
    for folder in ("train", "test"):
        shutil.rmtree(site.root / "world" / folder)
        with lmdb.open(str(site.root / "world" / folder)) as images, images.begin(write=True) as txn:
            txn.put(b"length", b"1000000000")
            txn.put(b"16-00000", b"no image")


def changed_config(**sections):
    def cause(site):
        path = site.root / "world" / "ddpm.yml"
        config = yaml.safe_load(path.read_text())
        for section, values in sections.items():
            config[section] = {**config.get(section, {}), **values}
        path.write_text(yaml.safe_dump(config))

    return cause


def bomb(site):
    """A YAML of 1 KB that is a list of ten billion."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (site.root / "world" / "ddpm.yml").write_text("\n".join(lines))


def changed_record(**entries):
    """The record of the direction says something else."""

    def cause(site):
        contents = torch.load(site.root / DIRECTION, weights_only=True)
        contents["record"] |= entries
        torch.save(contents, site.root / DIRECTION)

    return cause


def self_holding(name):
    def cause(site):
        contents = {}
        contents |= {"state_dict": contents, "ema": contents}
        torch.save(contents, site.root / name)

    return cause
