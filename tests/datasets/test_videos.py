import pytest

from ssmast.audio import open_corpus, read_audio
from ssmast.datasets.video_sets import CLASSES_31, CLASSES_32, CLASSES_34, RENAMED
from tests.datasets.test_sounds import fsd

HEAD = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
CLASSES = (
    "index,mid,display_name\n0,/m/1,Speech\n"
    '1,/m/2,"Male speech, man speaking"\n2,/m/3,"Accordion"\n'
)


def audioset(mini, prefix=""):
    mini.text(f"{prefix}class_labels_indices.csv", CLASSES)
    tables = {
        "balanced_train": '--PJHxphWEs, 30.000, 40.000, "/m/1,/m/2"\n'
        '-0RWZT-miFs, 420.000, 430.000, "/m/3"\n',
        "unbalanced_train": 'YbcdefghijK, 0.000, 10.000, "/m/1"\n'
        'gone0000000, 5.000, 15.000, "/m/1"\n',
        "eval": '__abcdefghi, 30.000, 40.000, "/m/2"\nevalevaleva, 7.500, 17.500, "/m/3"\n',
    }
    for name, lines in tables.items():
        mini.text(f"{prefix}{name}_segments.csv", HEAD + lines)
    mini.touch(
        f"{prefix}balanced_train_segments/Y--PJHxphWEs.wav",
        f"{prefix}balanced_train_segments/-0RWZT-miFs_420.000.flac",
        f"{prefix}unbalanced_train_segments/unbalanced_train_segments_part07/YbcdefghijK.mp4",
        f"{prefix}wav/YbcdefghijK.wav",
        f"{prefix}eval_segments/__abcdefghi_30000_40000.flac",
    )


def test_audioset_reads_its_lists_and_any_name_of_a_clip(mini):
    audioset(mini)
    rows, facts = mini.build("audioset_full")
    assert {row["path"]: (row["label"], row["split"]) for row in rows} == {
        "balanced_train_segments/Y--PJHxphWEs.wav": ("Speech;Male speech, man speaking", "train"),
        "balanced_train_segments/-0RWZT-miFs_420.000.flac": ("Accordion", "train"),
        "wav/YbcdefghijK.wav": ("Speech", "train"),  # rather than the sound track of the video
        "eval_segments/__abcdefghi_30000_40000.flac": ("Male speech, man speaking", "test"),
    }
    assert facts["missing"] == {"train": 1, "test": 1}
    assert facts["classes"] == ["Speech", "Male speech, man speaking", "Accordion"]
    assert facts["differences"][1] == (
        "test: 20,371 published, 1 here (1 listed clips have no file, see missing.csv)"
    )


def test_audioset_balanced_and_eval_alone(mini):
    audioset(mini, "csv/")
    rows, _ = mini.build("audioset_balanced")
    assert sorted(row["split"] for row in rows) == ["test", "train", "train"]
    rows, _ = mini.build("audioset_eval")
    assert [row["split"] for row in rows] == ["test"]


def test_a_damaged_segment_list_shows_the_line(mini):
    audioset(mini)
    mini.text("eval_segments.csv", HEAD + "abcdefghijk, 30.000\n")
    with pytest.raises(ValueError, match=r"eval_segments.csv must have lines of YTID"):
        mini.build("audioset_eval")


def test_vggsound_names_with_dashes_and_labels_with_commas(mini):
    mini.text(
        "vggsound.csv",
        '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"cat growling, hissing",train\n'
        "--56QUhyDQM,185,playing tennis,train\n",
    )
    mini.touch("video/---g-f_I2yQ_000001.wav", "video/--0PQM4-hqg_000030.wav")
    rows, facts = mini.build("vggsound")
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        ("video/---g-f_I2yQ_000001.wav", "people marching", "test"),
        ("video/--0PQM4-hqg_000030.wav", "cat growling, hissing", "train"),
    ]
    assert facts["missing"] == {"train": 1}
    assert "--56QUhyDQM_000185.wav" in (mini.root.parent / "out/missing.csv").read_text()


def test_the_three_lists_of_kinetics_sounds_differ_by_what_they_say():
    assert [len(set(names)) for names in (CLASSES_31, CLASSES_32, CLASSES_34)] == [31, 32, 34]
    assert set(CLASSES_32) - set(CLASSES_31) == {"strumming guitar"}
    assert set(CLASSES_34) - set(CLASSES_32) == {"patting", "typing"}
    assert set(RENAMED.values()) <= set(CLASSES_32)


def test_kinetics_sounds_takes_its_classes_out_of_kinetics(mini):
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    mini.text(
        "train.csv",
        header + "strumming guitar,aaaaaaaaaaa,3,13,train,0\n"
        '"bowling",-bbbbbbbbbb,4,14,train,0\nabseiling,ccccccccccc,1,11,train,0\n',
    )
    mini.text("validate.csv", header + "singing,ddddddddddd,1200,1210,val,1\n")
    mini.touch(
        "train/strumming guitar/aaaaaaaaaaa_000003_000013.wav",
        "train/bowling/-bbbbbbbbbb_000004_000014.wav",
        "train/abseiling/ccccccccccc_000001_000011.wav",
        "val/ddddddddddd_001200_001210.wav",
    )
    counts = {}
    for classes in ("31", "32", "34"):
        rows, facts = mini.build(f"kinetics_sounds_{classes}")
        counts[classes] = facts["counts"]
        assert "abseiling" not in {row["label"] for row in rows}
    assert counts["31"] == {"train": 1, "test": 1}
    assert counts["32"] == counts["34"] == {"train": 2, "test": 1}
    absent = "31 classes have no clip here: blowing nose, blowing out candles, chopping wood, "
    assert any(note.startswith(absent) for note in facts["notes"])


def epic(mini):
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
        "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,"
        "all_noun_classes\n"
    )
    row = "{},P01,{},00:00:01.1,{},{},8,202,open door,open,{},door,{},\"['door']\",[3]\n"
    mini.text("EPIC_100_train.csv", header
              + row.format("P01_01_0", "P01_01", "00:00:00.5", "00:00:01.25", 3, 3)
              + row.format("P01_01_1", "P01_01", "00:00:00.5", "00:00:01.25", 0, 0)
              + row.format("P01_01_2", "P01_01", "00:00:02.05", "00:00:02.05", 0, 0))  # fmt: skip
    mini.text("EPIC_100_validation.csv", header
              + row.format("P01_02_0", "P01_02", "00:00:00.00", "00:00:09.99", 0, 3))  # fmt: skip
    for kind in ("verb", "noun"):
        names = ("take", "put", "wash", "open") if kind == "verb" else ("tap", "pan", "lid", "door")
        lines = [f"{i},{name},\"['{name}']\",x" for i, name in enumerate(names)]
        mini.text(
            f"EPIC_100_{kind}_classes.csv", "id,key,instances,category\n" + "\n".join(lines) + "\n"
        )
    mini.sound("P01/P01_01.wav", seconds=3.0)
    mini.touch("P01/videos/P01_01.MP4")
    mini.sound("P01/P01_02.wav", seconds=2.0)


def test_epic_kitchens_actions_are_spans_of_long_recordings(mini):
    epic(mini)
    rows, facts = mini.build("epic_kitchens_verb")
    assert [(row["path"], row["label"], row["noun"], row["split"]) for row in rows] == [
        ("P01/P01_01.wav#t=0.5,1.25&id=P01_01_0", "open", "door", "train"),
        ("P01/P01_01.wav#t=0.5,1.25&id=P01_01_1", "take", "tap", "train"),  # same excerpt
        ("P01/P01_02.wav#t=0,9.99&id=P01_02_0", "take", "door", "test"),
    ]
    assert facts["left_out"] == {"of no length": 1}
    assert facts["group"] == "video"
    corpus = open_corpus(mini.root.parent / "out")
    assert [len(read_audio(corpus.source(i))) for i in range(3)] == [12000, 12000, 32000]
    assert len(list(corpus.files())) == 2


def test_epic_kitchens_nouns(mini):
    epic(mini)
    rows, facts = mini.build("epic_kitchens_noun")
    assert [row["label"] for row in rows] == ["door", "tap", "door"]
    assert facts["classes"] == ["tap", "pan", "lid", "door"]


def test_the_pretraining_tenth_does_not_depend_on_what_is_there(mini):
    audioset(mini, "audioset/")
    lines = [f'vid{i:08d}, 0.000, 10.000, "/m/1"' for i in range(98)]
    mini.text("audioset/balanced_train_segments.csv", HEAD + "\n".join(lines) + "\n")
    mini.touch(*(f"audioset/wav/vid{i:08d}.wav" for i in range(98)))
    fsd(mini, "fsd50k/")
    rows, facts = mini.build("audioset10_fsd50k")
    drawn = [row["path"] for row in rows if row["source"] == "audioset"]
    missing = facts["missing"].get("train", 0)
    assert len(drawn) + missing == 10  # of 100 listed
    assert [row["path"] for row in rows if row["source"] == "fsd50k"] == [
        "fsd50k/FSD50K.dev_audio/10.wav", "fsd50k/FSD50K.dev_audio/11.wav",
    ]  # fmt: skip
    assert "label" not in rows[0]
    (mini.root / drawn[0]).unlink()
    again, facts = mini.build("audioset10_fsd50k")
    assert [row["path"] for row in again] == [
        row["path"] for row in rows if row["path"] != drawn[0]
    ]
    assert facts["missing"] == {"train": missing + 1}
    other, _ = mini.build("audioset10_fsd50k", seed="1", fsd50k="all", fraction="0.2")
    assert sum(row["source"] == "audioset" for row in other) >= 18
    assert other[-1]["path"] == "fsd50k/FSD50K.eval_audio/12.wav"
