"""torch.compile makes one graph each of backbone and RPN head, for all heights and widths, in both modes.

Nothing is compiled: the backend only counts the graphs. More than one per call is an error (`fullgraph`).
"""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from network_files.heads import RPNHead
from tests.helpers.faults import thin_model
from train_utils.models import ModelConfig

# Below 20,480 values, torch chooses another convolution on the CPU, which would take a second graph.
SIZES = ((640, 672), (672, 640), (640, 960))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6), reason="not tried with dynamo before torch 2.6"
    ),
]


def graphs_of(module: nn.Module, inputs: list, training: bool, amp: bool = False) -> int:
    """Number of graphs for all inputs together."""
    from torch._dynamo.testing import CompileCounter  # takes seconds

    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(module.train(training), backend=counter, fullgraph=True, dynamic=True)
    for given in inputs:
        with nullcontext() if training else torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            compiled(given)
    torch._dynamo.reset()
    return counter.frame_count


@pytest.mark.parametrize(
    ("norm", "training", "amp"),
    [
        ("frozen", True, True),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (("batch", True, False), ("frozen", False, False))),
    ],
)
def test_backbone_and_pyramid_are_one_graph_for_all_sizes(norm: str, training: bool, amp: bool):
    backbone = thin_model(ModelConfig(3, norm=norm)).backbone
    backbone.body.freeze_all_but(3)
    assert graphs_of(backbone, [torch.rand(1, 3, *size) for size in SIZES], training, amp) == 1


@pytest.mark.parametrize("training", [True, False])
def test_the_rpn_head_is_one_graph_for_all_sizes(training: bool):
    levels = [[torch.rand(1, 16, h >> i, w >> i) for i in (2, 3)] for h, w in SIZES]
    assert graphs_of(RPNHead(16, 3), levels, training) == 1
