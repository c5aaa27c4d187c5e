"""Published counts of each task, as data, with where each was read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """What a data set should hold.

    Attributes:
        source: where the numbers come from.
        num_classes: classes over all splits; 0 where it is not to be checked.
        counts: clips of each split (or fold) whose number is published.
        labels: clips of each class, where that is published.
    """

    source: str
    num_classes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _splits(train: int, valid: int, test: int) -> dict[str, int]:
    counts = {"train": train, "valid": valid, "test": test}
    return {name: count for name, count in counts.items() if count}


_LISTS = "the segment lists themselves (Gemmeke et al. 2017)"
_TENTH = "10 % of the AudioSet lists; "
_NSYNTH = _splits(289_205, 12_678, 4_096)
_EPIC, _EPIC_COUNTS = "EPIC-KITCHENS-100 annotations", _splits(67_217, 0, 9_668)
# Task, and where its counts depend on an option: task,option=value.
PUBLISHED: dict[str, Published] = {
    "speech_commands_v1": Published("Warden 2018; EVAR", 30, _splits(51_088, 6_798, 6_835)),
    "speech_commands_v2": Published("Warden 2018; EVAR", 35, _splits(84_843, 9_981, 11_005)),
    "speech_commands_v2_12,recipe=tfds": Published(
        "TensorFlow Datasets", 12, _splits(85_511, 10_102, 4_890)
    ),
    "speech_commands_v2_12,recipe=tensorflow": Published(
        "Warden 2018, section 7.1", 12, _splits(36_923, 4_445, 4_890)
    ),
    "voxceleb1": Published(
        "Nagrani et al. 2017, identification", 1_251, _splits(138_361, 6_904, 8_251)
    ),
    "iemocap,utterances=all": Published(
        "s3prl, the four classes of SUPERB",
        num_classes=4,
        counts={"1": 1_085, "2": 1_023, "3": 1_151, "4": 1_031, "5": 1_241},
        labels={"neu": 1_708, "hap": 1_636, "ang": 1_103, "sad": 1_084},
    ),
    "voxforge,rule=speaker": Published("TensorFlow Datasets", 6),
    "voxforge,rule=archive": Published("EVAR", 6),
    "voxforge,rule=utterance": Published("LAPE", 6),
    "nsynth_family": Published("Engel et al. 2017", 11, _NSYNTH),
    "nsynth_pitch,pitches=all": Published("Engel et al. 2017", counts=_NSYNTH),
    "nsynth_pitch,pitches=21-108": Published(
        "HEAR (Turian et al. 2022): the 88 keys of a piano", 88
    ),
    "urbansound8k": Published(
        "Salamon et al. 2014 (8,732 clips)",
        num_classes=10,
        counts={
            "1": 873, "2": 888, "3": 925, "4": 990, "5": 936,
            "6": 823, "7": 838, "8": 806, "9": 816, "10": 837,
        },
        labels={
            **dict.fromkeys(
                ("air_conditioner", "children_playing", "dog_bark", "drilling", "engine_idling",
                 "jackhammer", "street_music"), 1_000
            ),
            "car_horn": 429, "gun_shot": 374, "siren": 929,
        },
    ),
    "esc50,subset=all": Published("Piczak 2015", 50, {str(fold): 400 for fold in range(1, 6)}),
    "esc50,subset=esc10": Published("Piczak 2015", 10, {str(fold): 80 for fold in range(1, 6)}),
    "fsd50k": Published("Fonseca et al. 2022", 200, _splits(36_796, 4_170, 10_231)),
    "audioset_full": Published(_LISTS, 527, _splits(2_041_789 + 22_160, 0, 20_371)),
    "audioset_balanced": Published(_LISTS, 527, _splits(22_160, 0, 20_371)),
    "audioset_eval": Published(_LISTS, 527, _splits(0, 0, 20_371)),
    "vggsound": Published("test.csv of Chen et al. 2020", 309, _splits(0, 0, 15_446)),
    "kinetics_sounds_31": Published("IBM/AdaMML, issue 3", 31),
    "kinetics_sounds_32": Published("pritamqu/CrissCross, issue 4", 32),
    "kinetics_sounds_34": Published("Arandjelovic and Zisserman 2017, appendix", 34),
    "epic_kitchens_verb": Published(_EPIC, 97, _EPIC_COUNTS),
    "epic_kitchens_noun": Published(_EPIC, 300, _EPIC_COUNTS),
    "audioset10_fsd50k,fsd50k=dev": Published(
        _TENTH + "FSD50K dev", counts=_splits(206_395 + 40_966, 0, 0)
    ),
    "audioset10_fsd50k,fsd50k=all": Published(
        _TENTH + "all of FSD50K", counts=_splits(206_395 + 51_197, 0, 0)
    ),
}  # fmt: skip


_ZHU_OMAR = "Zhu & Omar 2023"
_KINETICS = {_ZHU_OMAR: {"train": 22_914, "test": 1_585}}  # of which list, the paper does not say
_AST = {"AST (Gong et al. 2021)": {"test": 19_185}}
COPIES: dict[str, dict[str, dict[str, int]]] = {
    "kinetics_sounds_31": _KINETICS,
    "kinetics_sounds_32": _KINETICS,
    "kinetics_sounds_34": _KINETICS,
    "vggsound": {_ZHU_OMAR: {"train": 159_223, "test": 12_790}},
    "audioset_full": {_ZHU_OMAR: {"train": 1_592_753, "test": 15_818}, **_AST},
    "audioset_balanced": {_ZHU_OMAR: {"train": 17_823, "test": 15_818}, **_AST},
    "audioset_eval": {_ZHU_OMAR: {"test": 15_818}, **_AST},
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
        if found := PUBLISHED.get(f"{task},{key}={value}"):
            return found
    return PUBLISHED.get(task)
