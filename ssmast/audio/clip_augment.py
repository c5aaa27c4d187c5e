"""Changes to a labelled clip's log-mel that leave its label in place: shift, noise, masks."""

import torch
from torch import Tensor

from ssmast.audio.augment import outside_mask, white_noise


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
