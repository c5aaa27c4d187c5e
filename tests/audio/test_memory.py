import pytest
import torch

from ssmast.audio.augment import MixupMemory


def numbered(first, last):
    """Log-mels that hold their own number."""
    return torch.arange(first, last).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3)


def content(memory):
    return memory.log_mel[:, 0, 0, 0].tolist()


def test_it_gives_nothing_before_the_first_batch():
    memory = MixupMemory(size=4, shape=(2, 3))
    assert memory.pick(torch.rand(2)) is None
    assert len(memory) == 0


def test_the_oldest_make_room_and_no_row_of_a_batch_is_lost():
    memory = MixupMemory(size=5, shape=(2, 3))
    memory.enqueue_(numbered(1, 4))
    assert content(memory) == [1, 2, 3, 0, 0]
    assert len(memory) == 3
    memory.enqueue_(numbered(4, 8))  # wraps
    assert content(memory) == [6, 7, 3, 4, 5]
    assert len(memory) == 5
    memory.enqueue_(numbered(8, 20))  # more than it holds: the last five, in their places
    assert sorted(content(memory)) == [15, 16, 17, 18, 19]
    memory.enqueue_(numbered(20, 21))
    assert sorted(content(memory)) == [16, 17, 18, 19, 20]


def test_draws_choose_among_what_is_filled_only():
    memory = MixupMemory(size=100, shape=(2, 3))
    memory.enqueue_(numbered(1, 5))
    picked = memory.pick(torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.99999994]))
    assert picked[:, 0, 0, 0].tolist() == [1, 1, 2, 3, 4]
    assert picked.shape == (5, 1, 2, 3)
    assert picked.dtype == torch.float32


def test_a_restored_memory_goes_on_as_before():
    memory = MixupMemory(size=5, shape=(2, 3))
    memory.enqueue_(numbered(1, 8))
    state = {name: value.clone() for name, value in memory.state_dict().items()}
    again = MixupMemory(size=5, shape=(2, 3))
    again.load_state_dict(state)
    for each in (memory, again):
        each.enqueue_(numbered(8, 10))
    assert content(again) == content(memory)
    draws = torch.rand(3)
    assert torch.equal(again.pick(draws), memory.pick(draws))
    assert state["log_mel"][2, 0, 0, 0] != content(memory)[2]  # it went on
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_a_memory_of_size_zero_stays_empty():
    memory = MixupMemory(size=0, shape=(2, 3))
    memory.enqueue_(numbered(1, 4))
    assert memory.pick(torch.rand(2)) is None
    memory.load_state_dict(memory.state_dict())


def test_half_precision_keeps_a_log_mel_to_a_hundredth():
    memory = MixupMemory(size=8, shape=(4, 6))
    log_mel = -16 + 22 * torch.rand(8, 1, 4, 6)
    memory.enqueue_(log_mel)
    torch.testing.assert_close(memory.pick(torch.arange(8) / 8), log_mel, atol=0.01, rtol=0)


def test_wrong_sizes_are_refused():
    memory = MixupMemory(size=4, shape=(2, 3))
    with pytest.raises(ValueError, match=r"log_mel must be \(B, 1, 2, 3\).*got \(1, 1, 2, 4\)"):
        memory.enqueue_(torch.zeros(1, 1, 2, 4))
    with pytest.raises(ValueError, match=r"saved mixup memory is \(5, 1, 2, 3\)"):
        memory.load_state_dict(MixupMemory(size=5, shape=(2, 3)).state_dict())
    with pytest.raises(ValueError, match="size must not be negative, got -1"):
        MixupMemory(size=-1, shape=(2, 3))
