import copy

import pytest
import torch
from torch import nn

from ssmast.contrastive import Branch, Student, Teacher, build_predictor, build_projector
from ssmast.model import Grid, Tokens


class _Mean(nn.Module):
    """A stand-in for an encoder: one linear layer over the mel axis, tokens = frames."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(6)

    def encode(self, log_mel, *, patch_drop=None):
        x = self.layer(log_mel[:, 0].transpose(1, 2))
        return Tokens(x, Grid(1, x.shape[1]))


def _student(norm: str = "layer", **kwargs) -> Student:
    projector = build_projector(kind="mlp", dim_in=6, hidden=16, dim=4, num_layers=3, norm=norm)
    branch = Branch(_Mean(), projector)
    return Student(branch, build_predictor(hidden=16, dim=4, norm=norm), temperature=0.2, **kwargs)


def _embedding(branch: Branch, log_mel: torch.Tensor) -> torch.Tensor:
    return branch.backbone.encode(log_mel).x.mean(dim=1)


def test_outputs_are_unit_length():
    student = _student()
    embedding = _embedding(student.branch, torch.randn(3, 1, 8, 5))
    assert embedding.shape == (3, 6)
    for vectors in (student.predict(embedding), Teacher(student.branch).project(embedding)):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert student.temperature.item() == pytest.approx(0.2)


def test_student_gets_gradient_and_teacher_gets_none():
    student = _student()
    teacher = Teacher(student.branch)
    view = torch.randn(3, 1, 8, 5)
    key = teacher.project(_embedding(teacher.branch, view))
    (student.predict(_embedding(student.branch, view)) * key).sum().backward()
    touched = [p.grad is not None for n, p in student.named_parameters() if "norm.w" not in n]
    assert sum(touched) >= len(touched) - 2  # the stand-in's unused BatchNorm and temperature
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_ema_is_exact_for_parameters_and_buffers(momentum):
    student = _student(norm="batch")  # the stand-in encoder has buffers too
    teacher = Teacher(student.branch)
    before = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in student.buffers():
            buffer.add_(1)
    teacher.ema_update_(student.branch, momentum)
    for name, value in teacher.branch.state_dict().items():
        mine, theirs = before[f"branch.{name}"], student.branch.state_dict()[name]
        if value.is_floating_point():
            expected = mine.double() * momentum + theirs.double() * (1 - momentum)
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, theirs)


def test_momentum_outside_zero_one_is_refused():
    student = _student()
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1.5"):
        Teacher(student.branch).ema_update_(student.branch, 1.5)


def test_learnt_temperature_gets_gradient_and_stays_above_its_floor():
    student = _student(learn_temperature=True)
    student.temperature.backward()
    assert student.log_temperature.grad is not None
    with torch.no_grad():
        student.log_temperature.fill_(-100)
    assert student.temperature.item() == pytest.approx(0.01)


def test_linear_head_is_one_layer_as_in_the_paper():
    head = build_projector(kind="linear", dim_in=6, hidden=1, dim=4, num_layers=3, norm="layer")
    assert [type(layer) for layer in head.layers] == [nn.Linear]


@pytest.mark.parametrize(("key", "value"), [("kind", "cnn"), ("norm", "group")])
def test_unknown_head_names_the_allowed_ones(key, value):
    wanted = {"kind": "mlp", "norm": "layer", key: value}
    with pytest.raises(ValueError, match="must be"):
        build_projector(dim_in=6, hidden=8, dim=4, num_layers=3, **wanted)


def test_predictor_may_be_absent():
    assert isinstance(build_predictor(hidden=0, dim=4, norm="layer"), nn.Identity)


def test_batch_norm_goes_by_the_batch_at_hand_even_in_evaluation():
    head = build_projector(kind="mlp", dim_in=6, hidden=16, dim=4, num_layers=2, norm="batch")
    x = torch.randn(7, 6) * 3 + 100
    torch.testing.assert_close(head.eval()(x), head.train()(x))
    hidden = head.layers[0](x)
    wanted = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head.layers[1](hidden), wanted, rtol=1e-4, atol=1e-4)
    assert not list(head.buffers())
