"""Small real specialists: three vision transformers on scikit-learn's handwritten digits.

A base sees a few images of every digit; one expert is fine-tuned on the digits 0 to 4 and one
on 5 to 9. Each expert forgets what the other knows, which is what a merge has to repair.

The same seed gives the same files on the same machine, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.core.arrays import IntArray
from evomerge.errors import DataError, RunError
from evomerge.seeding import derive, generator
from evomerge.storage.atomic import sync_folder, write_atomically

SKILLS: dict[str, tuple[int, ...]] = {"low": (0, 1, 2, 3, 4), "high": (5, 6, 7, 8, 9)}
PARTS = ("search", "held-out")
MODELS = ("base", *SKILLS)
MARKER = "complete.json"  # written last: digests of all other files
CONFIG = "quickstart.yaml"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """How the specialists come about.

    Attributes:
        seed: Of the split, the initial weights and the batches.
        base_images: Training images per skill that the base sees.
        base_steps: Steps of AdamW for the base.
        expert_steps: Steps of AdamW for each expert.
        base_rate: Learning rate of the base.
        expert_rate: Learning rate of the experts.
        batch_size: Images per step.
        n_search: Images per skill that the search scores candidates on.
        n_held_out: Images per skill that only the report sees.
    """

    seed: int = 1
    base_images: int = 50
    base_steps: int = 200
    expert_steps: int = 200
    base_rate: float = 3e-3
    expert_rate: float = 1e-3
    batch_size: int = 64
    n_search: int = 300
    n_held_out: int = 250


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images.

    Attributes:
        pixel_values: (N, 1, 8, 8) float32 in [-1, 1].
        labels: (N,) int64 digits.
    """

    pixel_values: NDArray[np.float32]
    labels: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: IntArray | slice) -> Images:
        """Return some of the images."""
        return Images(self.pixel_values[rows], self.labels[rows])


def load_images() -> Images:
    """Return the 1797 digits that come with scikit-learn.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "quickstart trains on scikit-learn's digits, and scikit-learn is not installed. "
            "Install it: pip install 'evomerge[quickstart]'"
        ) from error
    stored = load_digits()
    pixels = (stored.images[:, None] / 8.0 - 1.0).astype(np.float32)  # stored as 0 to 16
    return Images(pixels, stored.target.astype(np.int64))


def split_images(images: Images, training: Training) -> dict[str, dict[str, IntArray]]:
    """Return skill -> part ("train", "search", "held-out") -> rows of `images`; all disjoint."""
    parts: dict[str, dict[str, IntArray]] = {}
    for skill, digits in SKILLS.items():
        rows = np.flatnonzero(np.isin(images.labels, digits))
        rows = generator(training.seed, "quickstart", "split", skill).permutation(rows)
        first, second = training.n_search, training.n_search + training.n_held_out
        parts[skill] = {
            "search": rows[:first],
            "held-out": rows[first:second],
            "train": rows[second:],
        }
    return parts


def prepare(folder: Path, config: bytes, *, training: Training, say: Say) -> bool:
    """Make sure that models, data and config are in `folder`.

    The folder appears complete or not at all; a complete one is left as it is.

    Args:
        folder: For the models ``base``, ``low`` and ``high`` and one npz per skill and part.
        config: Content of the config file beside them.
        training: How to train.
        say: Told what happens.

    Returns:
        Whether anything was trained.

    Raises:
        DataError: scikit-learn is not installed.
        RunError: The folder holds something else.
    """
    if is_complete(folder, training):
        if not (folder / CONFIG).is_file() or (folder / CONFIG).read_bytes() != config:
            write_atomically(folder / CONFIG, config)
        return False
    _check_ours(folder)
    images = load_images()
    nursery = folder.with_name(f".{folder.name}.training")
    shutil.rmtree(nursery, ignore_errors=True)  # left by an interrupted training
    nursery.mkdir(parents=True)
    try:
        _write_data(nursery, images, training)
        train_specialists(nursery, images, training=training, say=say)
        files = {str(path.relative_to(nursery)): _digest(path) for path in _files(nursery)}
        marker = {"training": asdict(training), "files": files}
        write_atomically(nursery / MARKER, json.dumps(marker, indent=1).encode())
        write_atomically(nursery / CONFIG, config)
        if folder.exists():
            shutil.rmtree(folder)
        nursery.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(nursery, ignore_errors=True)
    return True


def is_complete(folder: Path, training: Training) -> bool:
    """Return whether `folder` holds what `training` gives, every byte in place."""
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        return bool(marker["training"] == asdict(training)) and all(
            _digest(folder / name) == digest for name, digest in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def train_specialists(folder: Path, images: Images, *, training: Training, say: Say) -> None:
    """Write the Hugging Face folders ``base``, ``low`` and ``high`` into `folder`."""
    parts = split_images(images, training)
    few = np.concatenate([parts[skill]["train"][: training.base_images] for skill in SKILLS])
    with _one_thread(), _quiet_transformers():
        say(f"training the base on {len(few)} images of all digits")
        base = new_model(derive(training.seed, "quickstart", "weights"))
        _fit(base, images.take(few), training, "base", training.base_steps, training.base_rate)
        base.save_pretrained(folder / "base")
        start = {name: value.clone() for name, value in base.state_dict().items()}
        for skill, digits in SKILLS.items():
            own = parts[skill]["train"]
            say(f"fine-tuning expert {skill!r} on {len(own)} images of {digits[0]}-{digits[-1]}")
            base.load_state_dict(start)
            rate = training.expert_rate
            _fit(base, images.take(own), training, skill, training.expert_steps, rate)
            base.save_pretrained(folder / skill)


def new_model(seed: int) -> Any:
    """Return an untrained ViTForImageClassification of 39,610 parameters for 8 x 8 digits."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    # transformers draws initial weights from the global stream: borrow it, put it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return ViTForImageClassification(config)


def load_exported(folder: Path) -> Any:
    """Return the model of a Hugging Face folder, loaded as any user would."""
    from transformers import AutoModelForImageClassification

    with _quiet_transformers():
        return AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)


def predict(model: Any, pixel_values: NDArray[np.float32]) -> IntArray:
    """Return the (N,) most likely classes of (N, 1, 8, 8) images."""
    model.eval()
    with torch.inference_mode(), _one_thread():
        logits = model(pixel_values=torch.tensor(pixel_values)).logits
    return np.asarray(logits.argmax(-1).numpy(), dtype=np.int64)


def read_images(folder: Path, skill: str, part: str) -> Images:
    """Return the images of a skill for "search" or "held-out" from a prepared folder."""
    with np.load(folder / data_file(skill, part)) as stored:
        return Images(stored["pixel_values"], stored["labels"])


def _fit(
    model: Any, images: Images, training: Training, name: str, steps: int, rate: float
) -> None:
    """Train all weights with AdamW; the rate warms up over a tenth and falls to 0."""
    pixels, labels = torch.from_numpy(images.pixel_values), torch.from_numpy(images.labels)
    stream = torch.Generator().manual_seed(
        derive(training.seed, "quickstart", "batches", name) % 2**63
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    warm_up = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up)),
    )
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (training.batch_size,), generator=stream)
        logits = model(pixel_values=pixels[batch]).logits
        loss = torch.nn.functional.cross_entropy(logits, labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def data_file(skill: str, part: str) -> str:
    """Return the name of a skill's npz for "search" or "held-out"."""
    return f"{skill}-{part}.npz"


def _write_data(folder: Path, images: Images, training: Training) -> None:
    for skill, parts in split_images(images, training).items():
        for part in PARTS:
            chosen = images.take(parts[part])
            np.savez(
                folder / data_file(skill, part),
                pixel_values=chosen.pixel_values,
                labels=chosen.labels,
            )


def _check_ours(folder: Path) -> None:
    """Refuse to replace a folder that holds anything `prepare` did not write."""
    ours = {MARKER, CONFIG, *MODELS, *(data_file(s, p) for s in SKILLS for p in PARTS)}
    strange = (
        sorted(p.name for p in folder.iterdir() if p.name not in ours) if (folder.is_dir()) else []
    )
    if strange:
        raise RunError(
            f"{folder}: is not complete and holds {strange[0]!r}, which quickstart did not "
            "write. Move that file away, or run in another directory."
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: as fast for so small a model, and sums in one order on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal."""
    from transformers.utils import logging

    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
