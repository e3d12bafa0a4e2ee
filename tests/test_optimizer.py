"""The optimizers against torch's own."""

import pytest
import torch
from conftest import tiny
from torch import nn

from cifarlib.training.optimizers import Muon, adamw, muon, muon_sgd

LR = 0.01
LATER = 0.003  # as a schedule sets it


def weights(*shapes):
    """The same random weights at each call."""
    generator = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def descend(params, optimizer):
    """Steps on random gradients, which become smaller, where amsgrad tells; the learning rate falls after the third."""
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = LR if step < 3 else LATER
        for p in params:
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator) / (1 + step))
        optimizer.step()


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-6), (torch.float32, 1e-3)])  # torch's own takes bf16
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (10, 64), (1, 8)])
def test_muon_is_torchs_on_matrices(shape, dtype, tolerance):
    found, wanted = weights(shape, shape, (5, 6)), weights(shape, shape, (5, 6))
    descend(found, Muon([{"params": found, "weight_decay": 0.1}], LR, 0.9, dtype))
    descend(wanted, torch.optim.Muon(wanted, LR, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_a_kernel_for_the_matrix_of_its_flattened_filters(memory_format):
    (matrix,), (flat,) = weights((6, 3, 3, 3)), weights((6, 27))
    kernel = nn.Parameter(matrix.detach().contiguous(memory_format=memory_format))
    for p in (kernel, flat):
        descend([p], Muon([{"params": [p], "weight_decay": 0.1}], LR, 0.9, torch.float32))
    torch.testing.assert_close(kernel.flatten(1), flat)


def test_muon_leaves_vectors_to_adamw():
    found, wanted = weights((6, 3, 3, 3), (6,), (4, 6), (4,)), weights((6, 3, 3, 3), (6,), (4, 6), (4,))
    groups = [[{"params": params, "weight_decay": 0.1}] for params in (found, wanted)]
    descend(found, muon(groups[0], tiny(optimizer="muon")))
    descend(wanted, adamw(groups[1], tiny()))
    assert [torch.equal(one, other) for one, other in zip(found, wanted)] == [False, True, False, True]
    muon([{"params": weights((4, 6)), "weight_decay": 0.1}], tiny(optimizer="muon")).step()  # a model without vectors


def test_muon_sgd_is_its_source_in_plain_code():
    """Kernels of norm sqrt(out), and rates on summed gradients, whatever the batch size and Muon's own rate are."""
    config = tiny(model="speednet", protocol="modern", batch_size=50, weight_decay=0.01, learning_rate=0.2)
    shapes = (6, 3, 3, 3), (4, 6), (6,)
    found, (kernel, dense, vector) = weights(*shapes), weights(*shapes)
    optimizer = muon_sgd([{"params": found, "weight_decay": config.weight_decay}], config)
    sums, plain = torch.zeros(6, 27), [(dense, 0.67, torch.zeros(4, 6)), (vector, 0.053, torch.zeros(6))]
    for step in range(6):
        generator, part = torch.Generator().manual_seed(step), 1 - step / 6
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for group in optimizer.param_groups:
            group["lr"] = part * config.learning_rate * group.get("lr_scale", 1.0)
        for p, gradient in zip(found, gradients):
            p.grad = gradient / config.batch_size
        optimizer.step()
        with torch.no_grad():
            sums.mul_(0.6).add_(gradients[0].flatten(1))
            ahead = gradients[0].flatten(1) + 0.6 * sums
            ahead /= ahead.norm()
            for _ in range(3):
                gram = ahead @ ahead.T
                ahead = 3.4445 * ahead + (-4.7750 * gram + 2.0315 * gram @ gram) @ ahead
            kernel.mul_(6**0.5 / kernel.norm()).sub_(part * 0.2 * ahead.view(6, 3, 3, 3))
            for (p, rate, mean), gradient in zip(plain, gradients[1:]):
                gradient = gradient + p * 0.01 * config.batch_size / rate
                mean.mul_(0.85).add_(gradient)
                p.sub_(part * rate * (gradient + 0.85 * mean))
    for one, other in zip(found, (kernel, dense, vector), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
