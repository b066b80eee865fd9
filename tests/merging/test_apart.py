import pytest
import torch

from evomerge.merging.apart import empty_apart

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (), (7,), (2, 3, 5), (1024, 1025)])
def test_it_is_a_tensor_like_any_other(shape, dtype):
    tensor = empty_apart(shape, dtype, CPU)
    assert (tensor.shape, tensor.dtype) == (torch.Size(shape), dtype)
    assert tensor.is_contiguous()
    tensor.fill_(1.5)
    assert (tensor == 1.5).all()


def test_a_large_one_outlives_the_name_of_its_map():
    views = [empty_apart((1 << 20,), torch.float32, CPU).fill_(k)[5:] for k in range(8)]
    assert [float(view.sum()) for view in views] == [k * (2.0**20 - 5) for k in range(8)]
