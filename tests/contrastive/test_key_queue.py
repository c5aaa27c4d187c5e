import pytest
import torch

from ssmast.contrastive import KeyQueue


def _keys(first: int, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(first, first + num)
    return ids[:, None].float().expand(-1, 2).contiguous(), ids


@pytest.mark.parametrize("size", [1, 3, 5, 8])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 13])
def test_queue_holds_exactly_the_last_keys_whatever_the_sizes(size, batch):
    queue, first = KeyQueue(size=size, dim=2), 0
    for step in range(6):
        queue.enqueue_(*_keys(first, batch), step=step)
        first += batch
        expected = list(range(max(0, first - size), first))
        keys, ids = queue.snapshot()
        assert sorted(ids.tolist()) == expected
        assert torch.equal(keys[:, 0].long(), ids)
        assert len(queue) == len(expected)


def test_empty_places_are_not_negatives():
    queue = KeyQueue(size=8, dim=2)
    assert queue.snapshot()[0].shape == (0, 2)
    queue.enqueue_(*_keys(5, 3), step=0)
    assert queue.snapshot()[1].tolist() == [5, 6, 7]


def test_snapshot_does_not_change_when_the_queue_moves_on():
    queue = KeyQueue(size=2, dim=2)
    queue.enqueue_(*_keys(0, 2), step=0)
    keys, ids = queue.snapshot()
    queue.enqueue_(*_keys(7, 2), step=1)
    assert ids.tolist() == [0, 1]
    assert keys[:, 0].tolist() == [0.0, 1.0]


def test_age_counts_steps():
    queue = KeyQueue(size=4, dim=2)
    assert queue.mean_age(3) == 0
    queue.enqueue_(*_keys(0, 2), step=0)
    queue.enqueue_(*_keys(2, 2), step=2)
    assert queue.mean_age(4) == pytest.approx((4 + 4 + 2 + 2) / 4)


def test_state_round_trip_goes_on_identically():
    first, second = KeyQueue(size=5, dim=2), KeyQueue(size=5, dim=2)
    first.enqueue_(*_keys(0, 7), step=0)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for queue in (first, second):
        queue.enqueue_(*_keys(20, 3), step=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_another_size_is_refused_with_the_keys_to_change():
    with pytest.raises(ValueError, match=r"queue is \(5, 2\).*loss.queue_size"):
        KeyQueue(size=4, dim=2).load_state_dict(KeyQueue(size=5, dim=2).state_dict())


def test_size_zero_keeps_nothing():
    queue = KeyQueue(size=0, dim=2)
    queue.enqueue_(*_keys(0, 3), step=0)
    assert len(queue.snapshot()[0]) == 0


def test_it_knows_which_keys_it_holds():
    queue = KeyQueue(size=4, dim=2)
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert queue.holds(keys) == 0
    assert queue.holds(keys[:0]) == 1
    queue.enqueue_(keys[:2], torch.arange(2), step=0)
    assert queue.holds(keys) == pytest.approx(2 / 3)
    assert queue.holds(keys[:1] + 1e-7) == 0  # near is not the same
