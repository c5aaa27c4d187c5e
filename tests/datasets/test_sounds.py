import pytest

from ssmast.datasets import PUBLISHED


def notes(mini):
    families = {"train": "synth_lead", "valid": "bass", "test": "bass"}
    for part, family in families.items():
        index = {
            f"{family}_synthetic_{i:03d}-{pitch:03d}-100": {
                "instrument_str": f"{family}_{part}_{i:03d}",
                "instrument_family_str": family,
                "instrument_source_str": "synthetic",
                "pitch": pitch,
                "velocity": 100,
            }
            for i, pitch in enumerate((9, 21, 60, 108, 120))
        }
        mini.json(f"nsynth-{part}/examples.json", index)
        mini.touch(*(f"nsynth-{part}/audio/{name}.wav" for name in index))


def test_nsynth_families_keep_eleven_classes(mini):
    notes(mini)
    rows, facts = mini.build("nsynth_family")
    assert len(rows) == 15
    assert rows[0]["path"] == "nsynth-train/audio/synth_lead_synthetic_000-009-100.wav"
    assert {(row["label"], row["split"]) for row in rows} == {
        ("synth_lead", "train"), ("bass", "valid"), ("bass", "test"),
    }  # fmt: skip
    assert len(facts["classes"]) == 11
    assert facts["differences"][0] == "train: 289,205 published, 5 here"
    assert (
        "9 classes have no clip here: brass, flute, guitar, keyboard, mallet, ..." in facts["notes"]
    )


def test_nsynth_pitches_are_those_of_a_piano_unless_all_are_wanted(mini):
    notes(mini)
    rows, facts = mini.build("nsynth_pitch")
    assert sorted({row["label"] for row in rows}) == ["108", "21", "60"]
    assert facts["left_out"]["test notes outside the pitches 21 to 108"] == 2
    rows, _ = mini.build("nsynth_pitch", pitches="all")
    assert len(rows) == 15
    with pytest.raises(ValueError, match="pitches must be all or LOW-HIGH"):
        mini.build("nsynth_pitch", pitches="108-21")


def test_a_line_break_in_a_name_stays_in_its_cell(mini):
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    lines = [header, 'a.wav,"1\r2",0,1,1,1,1,"car\rhorn"']
    mini.touch("audio/fold1/a.wav")
    mini.text("metadata/UrbanSound8K.csv", "\n".join(lines) + "\n")
    rows, _ = mini.build("urbansound8k")
    assert [(row["label"], row["fsID"]) for row in rows] == [("car\rhorn", "1\r2")]


def test_urbansound8k_keeps_its_folds_and_the_recordings_in_them(mini):
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        name = f"{fold}00-1-0-0.wav"
        lines.append(f"{name},{fold}00,1.5,5.5,1,{fold},1,car_horn")
        mini.touch(f"audio/fold{fold}/{name}")
    mini.text("metadata/UrbanSound8K.csv", "\n".join(lines) + "\n")
    rows, facts = mini.build("urbansound8k")
    assert [row["fold"] for row in rows] == [str(fold) for fold in range(1, 11)]
    assert rows[9]["path"] == "audio/fold10/1000-1-0-0.wav"  # no excerpt: 1.5 s is elsewhere
    assert list(facts["counts"]) == [str(fold) for fold in range(1, 11)]  # 10 after 9
    assert facts["notes"] == ["0 of 10 values of fsID are in more than one split"]
    assert "10: 837 published, 1 here" in facts["differences"]


def esc(mini, sound=False):
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, name, ten in ((0, "dog", "True"), (14, "chirping_birds", "False")):
            file = f"{fold}-{fold}00{target}-A-{target}.wav"
            lines.append(f"{file},{fold},{target},{name},{ten},{fold}00{target},A")
            if sound:
                mini.sound(f"audio/{file}", hz=300 + 40 * target + fold)
            else:
                mini.touch(f"audio/{file}")
    mini.text("meta/esc50.csv", "\n".join(lines) + "\n")


def test_esc50_and_its_ten(mini):
    esc(mini)
    rows, facts = mini.build("esc50")
    assert len(rows) == 10
    assert facts["metric"] == "accuracy"
    assert facts["protocol"] == "folds"
    rows, facts = mini.build("esc50", subset="esc10")
    assert {row["label"] for row in rows} == {"dog"}
    assert facts["left_out"] == {"not in ESC-10": 5}
    assert facts["published"]["counts"]["1"] == 80


def fsd(mini, prefix=""):
    truth = f"{prefix}FSD50K.ground_truth"
    mini.text(f"{truth}/vocabulary.csv", '0,"Bark, bow-wow",/m/1\n1,Animal,/m/2\n2,Music,/m/3\n')
    mini.text(
        f"{truth}/dev.csv",
        'fname,labels,mids,split\n10,"Bark, bow-wow,Animal","/m/1,/m/2",train\n11,Music,/m/3,val\n',
    )
    mini.text(f"{truth}/eval.csv", 'fname,labels,mids\n12,"Bark, bow-wow","/m/1"\n')
    mini.touch(f"{prefix}FSD50K.dev_audio/10.wav", f"{prefix}FSD50K.dev_audio/11.wav")
    mini.touch(f"{prefix}FSD50K.eval_audio/12.wav")


def test_fsd50k_labels_with_commas_stay_whole(mini):
    fsd(mini)
    rows, facts = mini.build("fsd50k")
    assert [(row["path"], row["label"], row["split"]) for row in rows] == [
        ("FSD50K.dev_audio/10.wav", "Bark, bow-wow;Animal", "train"),
        ("FSD50K.dev_audio/11.wav", "Music", "valid"),
        ("FSD50K.eval_audio/12.wav", "Bark, bow-wow", "test"),
    ]
    assert facts["multi_label"] is True
    assert facts["label_separator"] == ";"
    assert facts["classes"] == ["Bark, bow-wow", "Animal", "Music"]  # the official order
    assert facts["metric"] == "map"


def test_a_class_name_with_the_separator_is_refused(mini):
    fsd(mini)
    mini.text("FSD50K.ground_truth/vocabulary.csv", "0,Bark; bow,/m/1\n1,A,/m/2\n2,M,/m/3\n")
    with pytest.raises(ValueError, match="holds ';'"):
        mini.build("fsd50k")


def test_a_label_that_the_vocabulary_lacks_is_refused(mini):
    fsd(mini)
    mini.text("FSD50K.ground_truth/vocabulary.csv", "0,Bark,/m/1\n1,Animal,/m/2\n")
    with pytest.raises(ValueError, match="clip 11 has the label /m/3"):
        mini.build("fsd50k")


@pytest.mark.parametrize(
    ("task", "total"),
    [
        ("speech_commands_v1", 64_721),
        ("speech_commands_v2", 105_829),
        ("voxceleb1", 153_516),
        ("iemocap,utterances=all", 5_531),
        ("nsynth_family", 305_979),
        ("urbansound8k", 8_732),
        ("esc50,subset=all", 2_000),
        ("fsd50k", 51_197),
        ("audioset_full", 2_084_320),
    ],
)
def test_published_parts_add_up_to_the_published_total(task, total):
    published = PUBLISHED[task]
    assert sum(published.counts.values()) == total
    if published.labels:
        assert sum(published.labels.values()) == total
