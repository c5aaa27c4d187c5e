"""Two views of a clip, made on the log-mel: mixup, random resized crop, fader, masks, noise.

All clips of a batch at once on the device, each by its own row of uniform draws.

Changes to a labelled clip's log-mel that leave its label in place: shift, noise, masks.

Log-mels of earlier batches, kept on the device as backgrounds for mixup.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ViewAugment:
    """Make a view of each clip out of its log-mel, its own draws and a background clip.

    In this order: normalisation, mixup with the background, random resized crop, linear fader,
    noise, masks. Draws of a clip, each uniform in [0, 1):

        0      share of the background, in [0, mixup_rate)
        1, 2   height and width of the crop, within crop_freq and crop_time
        3, 4   place of the crop's lowest bin and first frame, within the canvas
        5, 6   gain of the fader at the first and the last frame, within +- fader
        7, 8   width and place of the frequency mask
        9, 10  width and place of the time mask
        11     seed of the noise

    Args:
        mixup_rate: largest share of the background, in the exp domain of normalised values.
        crop_freq: least and greatest height of the crop, as a factor of F.
        crop_time: least and greatest width of the crop, as a factor of T.
        canvas: height and width of the canvas that the log-mel lies in the middle of, as factors of
            F and T, at least 1; the rest of it is the corpus mean. A crop is cut down to it.
        fader: greatest gain of the linear ramp along time, in standard deviations; 0 for none.
        freq_mask: most mel bins set to the corpus mean; 0 for none.
        time_mask: most frames set to the corpus mean; 0 for none.
        noise_std: of white noise added to every cell, in standard deviations; 0 for none.

    Raises:
        ValueError: if a number is out of its range.

    Source: Niizumi et al. 2021 (BYOL-A) for mixup and crop; 2023 (BYOL-A v2) for the fader; Park et
    al. 2019 (SpecAugment) for the masks.

    Differs from BYOL-A: the crop is resized with align_corners=False, so that a crop of the whole
    is the input.
    """

    num_draws = 12

    def __init__(
        self,
        *,
        mixup_rate: float = 0.4,
        crop_freq: tuple[float, float] = (0.6, 1.5),
        crop_time: tuple[float, float] = (0.6, 1.5),
        canvas: tuple[float, float] = (1.0, 1.5),
        fader: float = 0.0,
        freq_mask: int = 0,
        time_mask: int = 0,
        noise_std: float = 0.0,
    ) -> None:
        if not 0.0 <= mixup_rate <= 1.0:
            raise ValueError(f"mixup_rate must lie in [0, 1], got {mixup_rate}")
        for what, (low, high) in (("crop_freq", crop_freq), ("crop_time", crop_time)):
            if not 0.0 < low <= high:
                raise ValueError(f"{what} must be two rising factors above 0, got {(low, high)}")
        if min(canvas) < 1.0:
            raise ValueError(f"canvas must be at least (1, 1), got {tuple(canvas)}")
        for what, value in (
            ("fader", fader),
            ("freq_mask", freq_mask),
            ("time_mask", time_mask),
            ("noise_std", noise_std),
        ):
            if value < 0:
                raise ValueError(f"{what} must not be negative, got {value}")
        self.mixup_rate = mixup_rate
        self.crop_freq = crop_freq
        self.crop_time = crop_time
        self.canvas = canvas
        self.fader = fader
        self.freq_mask = freq_mask
        self.time_mask = time_mask
        self.noise_std = noise_std

    def __call__(
        self,
        log_mel: Tensor,
        *,
        draws: Tensor,
        background: Tensor | None,
        mean: float,
        std: float,
    ) -> Tensor:
        """Views of a batch.

        Args:
            log_mel: (B, 1, F, T), not normalised.
            draws: uniform (B, num_draws), as laid out above.
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
        if draws.shape != (len(log_mel), self.num_draws):
            raise ValueError(
                f"draws must be {(len(log_mel), self.num_draws)}, got {tuple(draws.shape)}"
            )
        if background is not None and background.shape != log_mel.shape:
            raise ValueError(
                f"background must have the shape of log_mel, {tuple(log_mel.shape)}, got "
                f"{tuple(background.shape)}"
            )
        with torch.autocast(log_mel.device.type, enabled=False):
            x, u = (log_mel.float() - mean) / std, draws.to(log_mel.device, torch.float32)
            if background is not None and self.mixup_rate > 0:
                # On normalised values: the same shares of the true powers, whose range is wider
                # by the factor std, would bury every quiet clip under a loud one. Measured with
                # mast_nano: 4 % instead of 13 % of positives found after 60 steps.
                background = (background.float() - mean) / std
                x = log_mixup(x, background, share=self.mixup_rate * u[:, 0])
            x = self._cropped(x, u)
            if self.fader > 0:
                x = x + linear_fader(x.shape[-1], gains=self.fader * (2 * u[:, 5:7] - 1))
            if self.noise_std > 0:
                x = x + self.noise_std * white_noise(u[:, 11], x.shape)
            if self.freq_mask > 0:
                keep = outside_mask(x.shape[2], self.freq_mask, u[:, 7], u[:, 8])
                x = x * keep[:, None, :, None]
            if self.time_mask > 0:
                keep = outside_mask(x.shape[3], self.time_mask, u[:, 9], u[:, 10])
                x = x * keep[:, None, None, :]
        return x

    def _cropped(self, x: Tensor, u: Tensor) -> Tensor:
        canvas_freq, canvas_time = (
            int(factor * size) for factor, size in zip(self.canvas, x.shape[2:], strict=True)
        )
        height = _crop_size(u[:, 1], self.crop_freq, x.shape[2], canvas_freq)
        width = _crop_size(u[:, 2], self.crop_time, x.shape[3], canvas_time)
        bottom = (u[:, 3] * (canvas_freq - height + 1)).long() - (canvas_freq - x.shape[2]) // 2
        left = (u[:, 4] * (canvas_time - width + 1)).long() - (canvas_time - x.shape[3]) // 2
        return resized_crop(x, bottom=bottom, left=left, height=height, width=width)


def log_mixup(log_mel: Tensor, background: Tensor, *, share: Tensor) -> Tensor:
    """log((1 - share) exp(x) + share exp(background)), without overflow.

    Args:
        log_mel: (B, 1, F, T).
        background: (B, 1, F, T).
        share: of the background (B,), in [0, 1].

    Source: Niizumi et al. 2021 (BYOL-A), log-mixup-exp.
    """
    share = share[:, None, None, None]
    # A share of 0 makes the logarithm -inf, which logaddexp takes as "nothing to add".
    return torch.logaddexp(log_mel + torch.log1p(-share), background + share.log())


def resized_crop(
    log_mel: Tensor, *, bottom: Tensor, left: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """Cut one window out of each clip and stretch it back to the full size, bicubic.

    A window may reach beyond the clip, where everything is 0. Equal to slicing the zero-padded clip
    and `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`, except that the
    outermost cells are interpolated with what lies beyond the window's edge.

    Args:
        log_mel: (B, 1, F, T).
        bottom: lowest mel bin of each window, int64 (B,); may be negative.
        left: first frame of each window, int64 (B,); may be negative.
        height: mel bins of each window, int64 (B,).
        width: frames of each window, int64 (B,).

    Returns:
        (B, 1, F, T).
    """
    freq = _places(log_mel.shape[2], bottom, height)[:, :, None]  # (B, F, 1)
    time = _places(log_mel.shape[3], left, width)[:, None, :]  # (B, 1, T)
    grid = torch.stack(torch.broadcast_tensors(time, freq), dim=-1)  # (B, F, T, 2)
    return functional.grid_sample(
        log_mel, grid, mode="bicubic", padding_mode="zeros", align_corners=False
    )


def _places(num: int, start: Tensor, size: Tensor) -> Tensor:
    """Where `num` cells look into a window, (B, num); -1 and 1 are the clip's outer edges."""
    along = torch.arange(num, device=start.device) + 0.5
    return (start[:, None] + along * (size[:, None] / num)) * (2 / num) - 1


def linear_fader(num_frames: int, *, gains: Tensor) -> Tensor:
    """Straight ramp along time, (B, 1, 1, T), to be added to a normalised log-mel.

    Args:
        num_frames: T.
        gains: at the first and the last frame (B, 2).

    Source: Niizumi et al. 2023 (BYOL-A v2), random linear fader.
    """
    along = torch.linspace(0, 1, num_frames, device=gains.device)
    ramp = gains[:, :1] * (1 - along) + gains[:, 1:] * along
    return ramp[:, None, None, :]


def white_noise(draws: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Standard normal noise of a shape (B, ...), each clip's decided by its own draw.

    A generator would tie a clip's noise to the batch around it; so cells are hashed instead.

    Args:
        draws: uniform in [0, 1), one a clip (B,).
        shape: of the result, B first.
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


def _crop_size(draw: Tensor, factors: tuple[float, float], size: int, most: int) -> Tensor:
    low, high = factors
    return ((low + (high - low) * draw) * size).long().clamp(1, most)


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


class ClipAugment:
    """Shift, noise and masks on a batch of normalised log-mels, each clip by its own draws.

    In this order. Draws of a clip, each uniform in [0, 1):

        0      frames of the shift, from -time_shift to time_shift, all equally likely
        1, 2   std of the noise, up to noise_std, and its seed
        3, 4   width and place of the frequency mask
        5, 6   width and place of the time mask

    Args:
        time_shift: most frames that a clip is rolled by, either way; what leaves one end enters at
            the other.
        noise_std: greatest std of the noise, in corpus standard deviations.
        freq_mask: most mel bins set to the corpus mean.
        time_mask: most frames set to the corpus mean.

    Raises:
        ValueError: if a number is negative.

    Source: Park et al. 2019 (SpecAugment); Gong et al. 2021 (AST) for roll and noise.
    Differs from AST: the noise is normal, so that it has no mean of its own to be learnt.
    """

    num_draws = 7

    def __init__(
        self,
        *,
        time_shift: int = 0,
        noise_std: float = 0.0,
        freq_mask: int = 0,
        time_mask: int = 0,
    ) -> None:
        for what, value in (
            ("time_shift", time_shift),
            ("noise_std", noise_std),
            ("freq_mask", freq_mask),
            ("time_mask", time_mask),
        ):
            if value < 0:
                raise ValueError(f"{what} must not be negative, got {value}")
        self.time_shift, self.noise_std = time_shift, noise_std
        self.freq_mask, self.time_mask = freq_mask, time_mask

    def __call__(self, log_mel: Tensor, *, draws: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, 1, F, T), normalised, and draws (B, num_draws) -> the same shape.

        With `lengths`, the frames of each clip int64 (B,), a clip is changed as it would be alone;
        what lies behind it does not matter.

        Raises:
            ValueError: if the draws do not fit.
        """
        if draws.shape != (len(log_mel), self.num_draws):
            raise ValueError(
                f"draws must be ({len(log_mel)}, {self.num_draws}), got {tuple(draws.shape)}"
            )
        x, u = log_mel, draws.to(log_mel.device)
        if self.time_shift:
            frames = (u[:, 0] * (2 * self.time_shift + 1)).long() - self.time_shift
            x = roll_time(x, frames, lengths=lengths)
        if self.noise_std:
            std = (self.noise_std * u[:, 1])[:, None, None, None]
            batch, channels, bins, frames = x.shape  # time first: longer clips begin alike
            noise = white_noise(u[:, 2], (batch, frames, channels, bins)).permute(0, 2, 3, 1)
            x = x + std * noise
        if self.freq_mask:
            x = x * outside_mask(x.shape[2], self.freq_mask, u[:, 3], u[:, 4])[:, None, :, None]
        if self.time_mask:
            keep = outside_mask(x.shape[3], self.time_mask, u[:, 5], u[:, 6], lengths=lengths)
            x = x * keep[:, None, None, :]
        return x


def roll_time(log_mel: Tensor, frames: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """Each clip rolled along time by its own number of frames, int64 (B,); as `torch.roll`.

    Args:
        log_mel: (B, 1, F, T).
        frames: int64 (B,).
        lengths: frames of each clip, int64 (B,); what lies behind them stays.
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
        """One stored log-mel for each draw.

        Args:
            draws: uniform in [0, 1), (B,).

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
