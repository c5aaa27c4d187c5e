"""Augmentations of log-mels: all clips of a batch at once on the device, each by its own draws.

`ViewAugment` makes the views of pretraining, `Augmentations` the inputs of fine-tuning; both apply
a list of augmentations, of which those in use are here. `MixupMemory` holds the backgrounds.
"""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Augmentation(Protocol):
    """One change to a batch of normalised log-mels.

    All that is random about it comes from draws, uniform in [0, 1), which follow from the seed and
    the clip's place in the stream: a run resumes to the same bits. It leaves other clips alone, and
    changes nothing at strength 0.
    """

    @property
    def num_draws(self) -> int:
        """How many draws it takes for each clip."""
        ...

    def __call__(self, log_mel: Tensor, draws: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """The batch, changed.

        Args:
            log_mel: (B, 1, F, T), normalised.
            draws: (B, num_draws), on the same device.
            lengths: frames of each clip, int64 (B,), where they differ; a clip is changed as it
                would be alone, and what lies behind it does not matter.

        Returns:
            (B, 1, F, T).
        """
        ...


class Augmentations:
    """Augmentations one after the other, each with the next draws of every clip."""

    def __init__(self, *steps: Augmentation) -> None:
        self.steps = steps
        self.num_draws = sum(step.num_draws for step in steps)

    def __call__(self, log_mel: Tensor, draws: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """As `Augmentation`; the draws may lie on another device.

        Raises:
            ValueError: if the draws do not fit.
        """
        _check_draws(log_mel, draws, self.num_draws)
        draws, first = draws.to(log_mel.device), 0
        for step in self.steps:
            last = first + step.num_draws
            log_mel = step(log_mel, draws[:, first:last], lengths=lengths)
            first = last
        return log_mel


class ViewAugment:
    """Make a view of each clip: normalise it, mix a background in, then augment it.

    Draw 0 of a clip is the fraction of the background; the augmentations take the next ones. Draws
    that are left are spare, so a further augmentation moves no draw of anything else.

    Args:
        *steps: augmentations, in this order.
        mixup_rate: largest fraction of the background, in the exp domain of normalised values.

    Raises:
        ValueError: if `mixup_rate` is not in [0, 1], or the augmentations need too many draws.

    Source: Niizumi et al. 2021 (BYOL-A).
    """

    num_draws = 12

    def __init__(self, *steps: Augmentation, mixup_rate: float = 0.4) -> None:
        if not 0.0 <= mixup_rate <= 1.0:
            raise ValueError(f"mixup_rate must lie in [0, 1], got {mixup_rate}")
        self.mixup_rate, self.augmentations = mixup_rate, Augmentations(*steps)
        if self.augmentations.num_draws >= self.num_draws:
            raise ValueError(
                f"augmentations of a view must take at most {self.num_draws - 1} draws, got "
                f"{self.augmentations.num_draws}; leave one out"
            )

    def __call__(
        self, log_mel: Tensor, *, draws: Tensor, background: Tensor | None, mean: float, std: float
    ) -> Tensor:
        """Views of a batch.

        Args:
            log_mel: (B, 1, F, T), not normalised.
            draws: uniform (B, num_draws).
            background: (B, 1, F, T), not normalised, mixed in; None for no mixup.
            mean: of the corpus's log-mel.
            std: of the corpus's log-mel.

        Returns:
            Float32 (B, 1, F, T), normalised.

        Raises:
            ValueError: if a shape is wrong.
        """
        if log_mel.ndim != 4 or log_mel.shape[1] != 1:
            raise ValueError(f"log_mel must be (B, 1, F, T), got {tuple(log_mel.shape)}")
        _check_draws(log_mel, draws, self.num_draws)
        if background is not None and background.shape != log_mel.shape:
            raise ValueError(
                f"background must have the shape of log_mel, {tuple(log_mel.shape)}, got "
                f"{tuple(background.shape)}"
            )
        with torch.autocast(log_mel.device.type, enabled=False):
            x, u = (log_mel.float() - mean) / std, draws.to(log_mel.device, torch.float32)
            if background is not None and self.mixup_rate > 0:
                # On normalised values: the same fractions of the true powers, whose range is wider
                # by the factor std, would bury every quiet clip under a loud one. Measured with
                # mast_nano: 4 % instead of 13 % of positives found after 60 steps.
                background = (background.float() - mean) / std
                x = log_mixup(x, background, fraction=self.mixup_rate * u[:, 0])
            return self.augmentations(x, u[:, 1 : 1 + self.augmentations.num_draws])


def log_mixup(log_mel: Tensor, background: Tensor, *, fraction: Tensor) -> Tensor:
    """log((1 - fraction) exp(x) + fraction exp(background)), without overflow.

    Log-mels are (B, 1, F, T), fractions (B,) in [0, 1].

    Source: Niizumi et al. 2021 (BYOL-A), log-mixup-exp.
    """
    fraction = fraction[:, None, None, None]
    # At a fraction of 0 the logarithm is -inf, which logaddexp takes as "nothing to add".
    return torch.logaddexp(log_mel + torch.log1p(-fraction), background + fraction.log())


class ResizedCrop:
    """Cut a box out of a larger canvas around each clip and stretch it back to the full size.

    Draws: height and width of the box, its lowest bin and its first frame.

    Args:
        freq: least and greatest height of the box, as a factor of F.
        time: least and greatest width of the box, as a factor of T.
        canvas: height and width of the canvas that the log-mel lies in the middle of, as factors of
            F and T, at least 1; the rest of it is the corpus mean. The box is cut down to it.

    Raises:
        ValueError: if a factor is out of its range.

    Source: Niizumi et al. 2021 (BYOL-A).
    Differs from BYOL-A: resized with align_corners=False, so that a crop of the whole is the input.
    """

    num_draws = 4

    def __init__(
        self,
        *,
        freq: tuple[float, float] = (0.6, 1.5),
        time: tuple[float, float] = (0.6, 1.5),
        canvas: tuple[float, float] = (1.0, 1.5),
    ) -> None:
        for what, (low, high) in (("crop_freq", freq), ("crop_time", time)):
            if not 0.0 < low <= high:
                raise ValueError(f"{what} must be two rising factors above 0, got {(low, high)}")
        if min(canvas) < 1.0:
            raise ValueError(f"canvas must be at least (1, 1), got {tuple(canvas)}")
        self.freq, self.time, self.canvas = freq, time, canvas

    def __call__(self, log_mel: Tensor, draws: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """As `Augmentation`; of clips of one length alone.

        Raises:
            ValueError: if there are lengths.
        """
        if lengths is not None:
            raise ValueError("clips of different lengths cannot be cropped and resized; pad them")
        num_freq, num_time = log_mel.shape[2:]
        canvas_freq, canvas_time = int(self.canvas[0] * num_freq), int(self.canvas[1] * num_time)
        height = _crop_size(draws[:, 0], self.freq, num_freq, canvas_freq)
        width = _crop_size(draws[:, 1], self.time, num_time, canvas_time)
        bottom = (draws[:, 2] * (canvas_freq - height + 1)).long() - (canvas_freq - num_freq) // 2
        left = (draws[:, 3] * (canvas_time - width + 1)).long() - (canvas_time - num_time) // 2
        return resized_crop(log_mel, bottom=bottom, left=left, height=height, width=width)


def _crop_size(draw: Tensor, factors: tuple[float, float], size: int, most: int) -> Tensor:
    low, high = factors
    return ((low + (high - low) * draw) * size).long().clamp(1, most)


def resized_crop(
    log_mel: Tensor, *, bottom: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """Cut one box out of each clip and stretch it back to the full size, bicubic.

    A box may reach beyond the clip, where everything is 0. Equal to slicing the zero-padded clip
    and `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, except that the
    outermost cells are interpolated with what lies beyond the edge of the box.

    Args:
        log_mel: (B, 1, F, T), as the result.
        bottom: lowest mel bin of each box, int64 (B,) as all that follow; may be negative.
        left: first frame; may be negative.
        height: in mel bins.
        width: in frames.
    """
    freq = _coordinates(log_mel.shape[2], bottom, height)[:, :, None]  # (B, F, 1)
    time = _coordinates(log_mel.shape[3], left, width)[:, None, :]  # (B, 1, T)
    grid = torch.stack(torch.broadcast_tensors(time, freq), dim=-1)  # (B, F, T, 2)
    return functional.grid_sample(
        log_mel, grid, mode="bicubic", padding_mode="zeros", align_corners=False
    )


def _coordinates(num: int, start: Tensor, size: Tensor) -> Tensor:
    """Centres of `num` cells inside a box, (B, num); -1 and 1 are the clip's outer edges."""
    along = torch.arange(num, device=start.device) + 0.5
    return (start[:, None] + along * (size[:, None] / num)) * (2 / num) - 1


class TimeShift:
    """Roll each clip along time; what leaves one end enters at the other.

    Draw: the number of frames, from -frames to frames, all equally likely.

    Source: Gong et al. 2021 (AST).
    """

    num_draws = 1

    def __init__(self, frames: int) -> None:
        _check_not_negative("time_shift", frames)
        self.frames = frames

    def __call__(self, log_mel: Tensor, draws: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """As `Augmentation`."""
        if not self.frames:
            return log_mel
        frames = (draws[:, 0] * (2 * self.frames + 1)).long() - self.frames
        return roll_time(log_mel, frames, lengths=lengths)


class Noise:
    """Add white noise to every cell.

    Draws: the noise's standard deviation, up to `std`, and its seed.

    Args:
        std: greatest standard deviation, in standard deviations of the corpus.

    Source: Gong et al. 2021 (AST).
    Differs from AST: the noise is normal, so that it has no mean of its own to be learnt.
    """

    num_draws = 2

    def __init__(self, std: float) -> None:
        _check_not_negative("noise_std", std)
        self.std = std

    def __call__(self, log_mel: Tensor, draws: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """As `Augmentation`."""
        if not self.std:
            return log_mel
        std = (self.std * draws[:, 0])[:, None, None, None]
        batch, channels, bins, frames = log_mel.shape  # time first: longer clips begin alike
        noise = white_noise(draws[:, 1], (batch, frames, channels, bins)).permute(0, 2, 3, 1)
        return log_mel + std * noise


class Mask:
    """Set a band of mel bins, or a run of frames, to the corpus mean, 0 here.

    Draws: its width and its place, all equally likely.

    Args:
        axis: "freq" or "time".
        size: greatest width.

    Source: Park et al. 2019 (SpecAugment).
    """

    num_draws = 2

    def __init__(self, axis: Literal["freq", "time"], size: int) -> None:
        _check_not_negative(f"{axis}_mask", size)
        self.axis, self.size = axis, size

    def __call__(self, log_mel: Tensor, draws: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """As `Augmentation`."""
        if not self.size:
            return log_mel
        width, place = draws[:, 0], draws[:, 1]
        if self.axis == "freq":
            keep = outside_mask(log_mel.shape[2], self.size, width, place)
            return log_mel * keep[:, None, :, None]
        keep = outside_mask(log_mel.shape[3], self.size, width, place, lengths=lengths)
        return log_mel * keep[:, None, None, :]


def _check_not_negative(what: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{what} must not be negative, got {value}")


def _check_draws(log_mel: Tensor, draws: Tensor, num: int) -> None:
    if draws.shape != (len(log_mel), num):
        raise ValueError(f"draws must be {(len(log_mel), num)}, got {tuple(draws.shape)}")


def white_noise(draws: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Standard normal noise of a shape (B, ...), each clip's decided by its own draw in [0, 1).

    A generator would tie a clip's noise to the batch around it; so cells are hashed instead.
    """
    num = 1
    for size in shape[1:]:
        num *= size
    seed = (draws.double() * 2**32).long()[:, None]
    cell = torch.arange(num, device=draws.device)[None]
    first = _hash32(_hash32(cell * 2) ^ seed)
    second = _hash32(_hash32(cell * 2 + 1) ^ seed)
    radius = (-2 * ((first.double() + 1) / 2**32).log()).sqrt()
    return (radius * (second.double() * (2 * torch.pi / 2**32)).cos()).float().reshape(shape)


def _hash32(x: Tensor) -> Tensor:
    """Scramble 32-bit words held in int64. Source: Appleby 2011 (MurmurHash3), its finaliser."""
    mask = 0xFFFFFFFF
    x = x & mask
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & mask
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & mask
    return x ^ (x >> 16)


def outside_mask(
    num: int, most: int, width_draw: Tensor, place_draw: Tensor, *, lengths: Tensor | None = None
) -> Tensor:
    """1 outside each clip's mask and 0 inside (B, num); widths 0 to `most`, all equally likely.

    With `lengths` int64 (B,), the mask of a clip lies within its first cells.
    """
    own = torch.full_like(width_draw, num) if lengths is None else lengths.to(width_draw.device)
    width = (width_draw * (own.clamp(max=most) + 1)).long()
    start = (place_draw * (own - width + 1)).long()
    along = torch.arange(num, device=width.device)
    inside = (along >= start[:, None]) & (along < (start + width)[:, None])
    return (~inside).float()


def roll_time(log_mel: Tensor, frames: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """Each clip of (B, 1, F, T) rolled along time by its own number of frames, as `torch.roll`.

    Both numbers are int64 (B,); what lies behind the length of a clip stays.
    """
    num = log_mel.shape[3]
    along = torch.arange(num, device=log_mel.device)[None]
    own = torch.full_like(frames, num) if lengths is None else lengths.to(log_mel.device)
    rolled = (along - frames[:, None]) % own[:, None]
    source = torch.where(along < own[:, None], rolled, along)  # (B, T)
    return log_mel.gather(3, source[:, None, None, :].expand(log_mel.shape))


class MixupMemory(nn.Module):
    """Ring of the newest log-mels, in half precision.

    Args:
        size: how many log-mels it holds, M; 0 for a memory that stays empty.
        shape: of a log-mel, (F, T).

    Attributes:
        log_mel: what it holds, float16 (M, 1, F, T); in the state dict, as the place in the ring.

    Raises:
        ValueError: if `size` is negative; by `load_state_dict` for a state of another size.
    """

    log_mel: Tensor

    def __init__(self, *, size: int, shape: tuple[int, int]) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        self.size = size
        self.register_buffer("log_mel", torch.zeros(size, 1, *shape, dtype=torch.float16))
        self._next = 0
        self._filled = 0
        self.register_load_state_dict_pre_hook(_check_saved_memory)

    def __len__(self) -> int:
        return self._filled

    def pick(self, draws: Tensor) -> Tensor | None:
        """One stored log-mel for each draw (B,), uniform in [0, 1).

        Returns:
            Float32 (B, 1, F, T), or None while the memory is empty.
        """
        if self._filled == 0:
            return None
        index = (draws.to(self.log_mel.device) * self._filled).long().clamp_max(self._filled - 1)
        return self.log_mel[index].float()

    @torch.no_grad()
    def enqueue_(self, log_mel: Tensor) -> None:
        """Take a batch in over the oldest entries; of a batch beyond M, the last M.

        Args:
            log_mel: (B, 1, F, T), not normalised.

        Raises:
            ValueError: if F or T is another.
        """
        if log_mel.shape[1:] != self.log_mel.shape[1:]:
            raise ValueError(
                f"log_mel must be (B, {', '.join(map(str, self.log_mel.shape[1:]))}) like what is "
                f"stored, got {tuple(log_mel.shape)}"
            )
        if self.size == 0:
            return
        num = len(log_mel)
        newest = log_mel[-self.size :]
        place = torch.arange(num - len(newest), num, device=self.log_mel.device) + self._next
        self.log_mel[place % self.size] = newest.to(self.log_mel)
        self._next = (self._next + num) % self.size
        self._filled = min(self._filled + num, self.size)

    def get_extra_state(self) -> Tensor:
        """Next place in the ring and how full it is, int64 (2,); kept as numbers between steps."""
        return torch.tensor([self._next, self._filled])

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self._next, self._filled = (int(number) for number in state)


def _check_saved_memory(
    memory: MixupMemory, state: dict[str, Tensor], prefix: str, *rest: object
) -> None:
    saved = state.get(f"{prefix}log_mel", memory.log_mel)
    if saved.shape != memory.log_mel.shape:
        raise ValueError(
            f"the saved mixup memory is {tuple(saved.shape)}, this one "
            f"{tuple(memory.log_mel.shape)}; resume with the settings it was saved with"
        )
