import numpy as np
import pytest
import torch

from evomerge.merging.philox import (
    BLOCKS,
    RUN,
    key_words,
    philox_blocks,
    philox_uniform,
    random_halves,
)

ONES = 0xFFFFFFFF


def words(*values):
    return tuple(torch.tensor([value], dtype=torch.int64) for value in values)


@pytest.mark.parametrize(
    ("rounds", "counter", "key", "expected"),
    [
        (7, (0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (7, (ONES,) * 4, (ONES,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (10, (0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (10, (ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            10,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_blocks_match_the_known_answers_of_random123(rounds, counter, key, expected):
    assert philox_blocks(words(*counter), key, rounds).tolist() == [list(expected)]


def test_elements_are_byte_windows_of_a_run_of_blocks():
    key = 0x0123456789ABCDEF
    counters = torch.arange(3 * BLOCKS, 4 * BLOCKS)
    zero = torch.zeros_like(counters)
    words_of_run = philox_blocks((counters, zero, zero, zero), key_words(key)).numpy()
    stream = words_of_run.T.astype("<u4").tobytes()
    windows = [stream[i] + 256 * stream[(i + 1) % RUN] for i in range(RUN)]
    expected = windows[0::2] + windows[1::2]
    assert random_halves(key, RUN, start=3 * RUN).tolist() == expected


def test_uniforms_are_the_middles_of_the_halves():
    halves, uniform = random_halves(5, 5000), philox_uniform(5, 5000)
    assert (uniform.double() * 2**16 - 0.5).tolist() == halves.tolist()
    assert uniform.dtype == torch.float32


def test_neighbours_are_not_correlated():
    uniform = philox_uniform(11, 1 << 20).double().reshape(-1, RUN) - 0.5
    for values in (uniform < -0.2, uniform < 0.0):
        centred = values.double() - values.double().mean()
        half = RUN // 2
        for a, b in (
            (centred[:, :half], centred[:, half:]),
            (centred[:, 1:half], centred[:, half:-1]),
        ):
            assert abs((a * b).mean() / centred.square().mean()) < 0.01


@pytest.mark.parametrize(("start", "n"), [(0, 0), (0, 1), (1, 5), (3, 1), (65531, 20), (7, 70000)])
def test_any_slice_equals_the_slice_of_the_whole(start, n):
    whole = philox_uniform(123456789, 140000)
    assert torch.equal(philox_uniform(123456789, n, start=start), whole[start : start + n])


def test_counters_beyond_32_bits_do_not_repeat():
    far = philox_uniform(5, 8, start=16 * 2**32)
    assert not torch.equal(far, philox_uniform(5, 8))
    assert torch.equal(far[4:], philox_uniform(5, 4, start=16 * 2**32 + 4))


def test_all_64_bits_of_the_key_count():
    streams = [philox_uniform(key, 16) for key in (0, 1, 1 << 31, 1 << 32, 1 << 63)]
    for i, a in enumerate(streams):
        for b in streams[i + 1 :]:
            assert not torch.equal(a, b)
    assert torch.equal(philox_uniform(-1, 16), philox_uniform(2**64 - 1, 16))


def test_uniforms_are_uniform():
    values = philox_uniform(42, 200_000).numpy()
    assert values.min() > 0.0
    assert values.max() < 1.0
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 43.8  # 99.9 % quantile of chi-square with 19 degrees of freedom


def test_negative_ranges_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        philox_uniform(0, -1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cpu_and_cuda_give_the_same_bits():
    assert torch.equal(philox_uniform(9, 100_001), philox_uniform(9, 100_001, device="cuda").cpu())
