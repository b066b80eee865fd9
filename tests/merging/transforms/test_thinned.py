import numpy as np
import torch

from evomerge.merging.transforms.thinned import ThinnedSample, chunks


def sample_of(n, capacity, step=1000):
    sample = ThinnedSample(capacity)
    numbers = torch.arange(n, dtype=torch.float32)
    for part in numbers.split(step):
        sample.add(torch.stack([part, -part]))
    return sample.values()


def test_few_elements_are_all_kept_in_order():
    assert torch.equal(sample_of(5000, 5000)[0], torch.arange(5000.0))


def test_experts_are_sampled_at_the_same_places():
    first, second = sample_of(50_000, 1000)
    assert torch.equal(first, -second)


def test_a_sample_is_bounded_and_even():
    (places, _) = sample_of(300_000, 2000).numpy()
    assert 1000 <= len(places) <= 2000
    assert len(set(places)) == len(places)
    # In every part of the stream, and in every residue of a row length.
    counts, _ = np.histogram(places, bins=30, range=(0, 300_000))
    assert counts.min() > 0.8 * counts.mean()
    for row in (64, 100, 128):
        rows = np.bincount(places.astype(int) % row // (row // 4), minlength=4)
        assert rows.min() > 0.8 * rows.mean()


def test_it_does_not_depend_on_the_pieces_it_comes_in():
    assert torch.equal(sample_of(40_000, 500, step=700), sample_of(40_000, 500, step=40_000))


def test_ranks_in_the_sample_are_ranks_in_the_stream():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 400_000, generator=generator)
    sample = ThinnedSample(1 << 14)
    sample.add(values)
    for fraction in (0.05, 0.3, 0.9):
        threshold = sample.values()[0].quantile(fraction)
        assert abs(float((values[0] < threshold).float().mean()) - fraction) < 0.005


def test_nothing_offered_is_an_empty_sample():
    assert ThinnedSample().values().numel() == 0


def test_chunks_are_the_task_vectors_in_storage_order():
    deltas = (torch.arange(6.0).view(2, 3), -torch.arange(6.0).view(2, 3))
    (chunk,) = chunks(deltas)
    assert torch.equal(chunk[0], torch.arange(6.0))
    assert torch.equal(chunk[1], -torch.arange(6.0))
