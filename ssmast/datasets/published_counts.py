"""Published counts of each task, as data, with where each was read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a data set should hold.

    Attributes:
        counts: clips of each split (or fold) whose number is published.
        num_classes: classes over all splits; 0 where it is not to be checked.
        labels: clips of each class, where that is published.
        source: where the numbers come from.
    """

    counts: dict[str, int] = field(default_factory=dict)
    num_classes: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _splits(train: int, valid: int, test: int) -> dict[str, int]:
    counts = {"train": train, "valid": valid, "test": test}
    return {name: count for name, count in counts.items() if count}


# Task, and where its counts depend on an option: task,option=value.
PUBLISHED: dict[str, Published] = {
    "speech_commands_v1": Published(
        counts=_splits(51_088, 6_798, 6_835), num_classes=30, source="Warden 2018; EVAR"
    ),
    "speech_commands_v2": Published(
        counts=_splits(84_843, 9_981, 11_005), num_classes=35, source="Warden 2018; EVAR"
    ),
    "speech_commands_v2_12,recipe=tfds": Published(
        counts=_splits(85_511, 10_102, 4_890), num_classes=12, source="TensorFlow Datasets"
    ),
    "speech_commands_v2_12,recipe=tensorflow": Published(
        counts=_splits(36_923, 4_445, 4_890), num_classes=12, source="Warden 2018, section 7.1"
    ),
    "voxceleb1": Published(
        counts=_splits(138_361, 6_904, 8_251),
        num_classes=1_251,
        source="Nagrani et al. 2017, identification",
    ),
    "iemocap,utterances=all": Published(
        counts={"1": 1_085, "2": 1_023, "3": 1_151, "4": 1_031, "5": 1_241},
        num_classes=4,
        labels={"neu": 1_708, "hap": 1_636, "ang": 1_103, "sad": 1_084},
        source="s3prl, the four classes of SUPERB",
    ),
    "voxforge,rule=speaker": Published(num_classes=6, source="TensorFlow Datasets"),
    "voxforge,rule=archive": Published(num_classes=6, source="EVAR"),
    "voxforge,rule=utterance": Published(num_classes=6, source="LAPE"),
    "nsynth_family": Published(
        counts=_splits(289_205, 12_678, 4_096), num_classes=11, source="Engel et al. 2017"
    ),
    "nsynth_pitch,pitches=all": Published(
        counts=_splits(289_205, 12_678, 4_096), source="Engel et al. 2017"
    ),
    "nsynth_pitch,pitches=21-108": Published(
        num_classes=88, source="HEAR (Turian et al. 2022): the 88 keys of a piano"
    ),
    "urbansound8k": Published(
        counts={
            "1": 873, "2": 888, "3": 925, "4": 990, "5": 936,
            "6": 823, "7": 838, "8": 806, "9": 816, "10": 837,
        },
        num_classes=10,
        labels={
            **dict.fromkeys(
                ("air_conditioner", "children_playing", "dog_bark", "drilling", "engine_idling",
                 "jackhammer", "street_music"), 1_000
            ),
            "car_horn": 429, "gun_shot": 374, "siren": 929,
        },
        source="Salamon et al. 2014 (8,732 clips)",
    ),
    "esc50,subset=all": Published(
        counts={str(fold): 400 for fold in range(1, 6)}, num_classes=50, source="Piczak 2015"
    ),
    "esc50,subset=esc10": Published(
        counts={str(fold): 80 for fold in range(1, 6)}, num_classes=10, source="Piczak 2015"
    ),
    "fsd50k": Published(
        counts=_splits(36_796, 4_170, 10_231), num_classes=200, source="Fonseca et al. 2022"
    ),
    "audioset_full": Published(
        counts=_splits(2_041_789 + 22_160, 0, 20_371),
        num_classes=527,
        source="the segment lists themselves (Gemmeke et al. 2017)",
    ),
    "audioset_balanced": Published(
        counts=_splits(22_160, 0, 20_371),
        num_classes=527,
        source="the segment lists themselves (Gemmeke et al. 2017)",
    ),
    "audioset_eval": Published(
        counts=_splits(0, 0, 20_371),
        num_classes=527,
        source="the segment lists themselves (Gemmeke et al. 2017)",
    ),
    "vggsound": Published(
        counts=_splits(0, 0, 15_446), num_classes=309, source="test.csv of Chen et al. 2020"
    ),
    "kinetics_sounds_31": Published(num_classes=31, source="IBM/AdaMML, issue 3"),
    "kinetics_sounds_32": Published(num_classes=32, source="pritamqu/CrissCross, issue 4"),
    "kinetics_sounds_34": Published(
        num_classes=34, source="Arandjelovic and Zisserman 2017, appendix"
    ),
    "epic_kitchens_verb": Published(
        counts=_splits(67_217, 0, 9_668), num_classes=97, source="EPIC-KITCHENS-100 annotations"
    ),
    "epic_kitchens_noun": Published(
        counts=_splits(67_217, 0, 9_668), num_classes=300, source="EPIC-KITCHENS-100 annotations"
    ),
    "audioset10_fsd50k,fsd50k=dev": Published(
        counts=_splits(206_395 + 40_966, 0, 0), source="10 % of the AudioSet lists; FSD50K dev"
    ),
    "audioset10_fsd50k,fsd50k=all": Published(
        counts=_splits(206_395 + 51_197, 0, 0), source="10 % of the AudioSet lists; all of FSD50K"
    ),
}  # fmt: skip


_ZHU_OMAR = "Zhu & Omar 2023"
_KINETICS = {_ZHU_OMAR: {"train": 22_914, "test": 1_585}}  # of which list, the paper does not say
COPIES: dict[str, dict[str, dict[str, int]]] = {
    "kinetics_sounds_31": _KINETICS,
    "kinetics_sounds_32": _KINETICS,
    "kinetics_sounds_34": _KINETICS,
    "vggsound": {_ZHU_OMAR: {"train": 159_223, "test": 12_790}},
    "audioset_full": {
        _ZHU_OMAR: {"train": 1_592_753, "test": 15_818},
        "AST (Gong et al. 2021)": {"test": 19_185},
    },
    "audioset_balanced": {
        _ZHU_OMAR: {"train": 17_823, "test": 15_818},
        "AST (Gong et al. 2021)": {"test": 19_185},
    },
    "audioset_eval": {
        _ZHU_OMAR: {"test": 15_818},
        "AST (Gong et al. 2021)": {"test": 19_185},
    },
}
"""Task -> paper -> clips of each part in the copy of the set that its scores are of.

Videos vanish, so the copy of a paper is smaller than the official lists; scores on another copy
are of other clips.
"""


def copies_of(task: str) -> dict[str, dict[str, int]]:
    """Clips of each part that papers had of a task, by paper; empty where none said."""
    return COPIES.get(task, {})


def published_of(task: str, options: Mapping[str, str]) -> Published | None:
    """The published counts of a task built with some options; None if none are known.

    >>> published_of("esc50", {"subset": "esc10"}).num_classes
    10
    """
    for key, value in options.items():
        found = PUBLISHED.get(f"{task},{key}={value}")
        if found:
            return found
    return PUBLISHED.get(task)
