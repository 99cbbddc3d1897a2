"""Images that say which one they are, as files and in LMDBs."""

import io

import lmdb
from PIL import Image
from tiny_world import SIZE


def colour(i):
    """An image of one colour that says which one it is: red is 10 i."""
    return Image.new("RGB", (SIZE, SIZE), (10 * i, 0, 0))


def which(dataset):
    """The numbers of a dataset's images, by `colour`."""
    return [round(((dataset[i][0].mean().item() + 1) * 127.5) / 10) for i in range(len(dataset))]


def encoded(image, form="PNG"):
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def write_files(folder, *numbers, suffix="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in numbers:
        colour(i).save(folder / f"{i:05d}.{suffix}")


def write_lmdb(folder, items):
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**24) as handle, handle.begin(write=True) as txn:
        for key, value in items.items():
            txn.put(key.encode(), value)


def numbered(n, resolution=SIZE):
    """The items of an LMDB in the form of StyleGAN2 and DiffusionCLIP."""
    images = {f"{resolution}-{i:05d}": encoded(colour(i)) for i in range(n)}
    return images | {"length": str(n).encode()}
