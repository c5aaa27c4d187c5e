import numpy as np
import pytest

from ssmast.audio import open_corpus, read_audio
from ssmast.datasets import PUBLISHED

ONE, TWO, THREE = "0a0b0c0d", "1a1b1c1d", "2a2b2c2d"
V2, TEST = "speech_commands_v0.02", "speech_commands_test_set_v0.02"


def parts(rows):
    return {row["path"]: (row["label"], row["split"]) for row in rows}


def words(mini, prefix=""):
    mini.touch(
        *(f"{prefix}{word}/{who}_nohash_0.wav" for word in ("yes", "cat") for who in (ONE, TWO)),
        f"{prefix}bird/{THREE}_nohash_0.wav",
        f"{prefix}bird/.DS_Store",
        f"{prefix}README.md",
    )
    mini.text(f"{prefix}validation_list.txt", f"yes/{TWO}_nohash_0.wav\ncat/{TWO}_nohash_0.wav\n")
    mini.text(
        f"{prefix}testing_list.txt", f"bird/{THREE}_nohash_0.wav\nbird/{THREE}_nohash_1.wav\n"
    )
    mini.sound(f"{prefix}_background_noise_/dude_miaowing.wav", seconds=3.0)
    mini.sound(f"{prefix}_background_noise_/running_tap.wav", seconds=2.25, hz=880.0)


def test_words_follow_the_lists_and_noise_is_no_word(mini):
    words(mini)
    rows, facts = mini.build("speech_commands_v2")
    assert parts(rows) == {
        f"yes/{ONE}_nohash_0.wav": ("yes", "train"),
        f"cat/{ONE}_nohash_0.wav": ("cat", "train"),
        f"yes/{TWO}_nohash_0.wav": ("yes", "valid"),
        f"cat/{TWO}_nohash_0.wav": ("cat", "valid"),
        f"bird/{THREE}_nohash_0.wav": ("bird", "test"),
    }
    assert facts["counts"] == {"train": 2, "valid": 2, "test": 1}
    assert facts["missing"] == {"test": 1}
    assert (
        "test: 11,005 published, 1 here (1 listed clips have no file, see missing.csv)"
        in (facts["differences"])
    )
    assert "classes: 35 published, 3 here" in facts["differences"]
    assert facts["notes"] == ["0 of 3 values of speaker are in more than one split"]


def test_a_speaker_in_two_parts_is_reported(mini):
    words(mini)
    mini.touch(f"yes/{TWO}_nohash_1.wav")  # a speaker of the validation list, not listed
    _, facts = mini.build("speech_commands_v1")
    assert facts["notes"] == ["1 of 3 values of speaker are in more than one split"]


def twelve(mini):
    words(mini, f"{V2}/")
    mini.touch(
        f"{TEST}/yes/{THREE}_nohash_0.wav",
        f"{TEST}/_silence_/0.wav",
        f"{TEST}/_unknown_/bird_{THREE}_nohash_0.wav.wav",
    )


def test_twelve_classes_as_tensorflow_datasets_builds_them(mini):
    twelve(mini)
    rows, facts = mini.build("speech_commands_v2_12")
    found = parts(rows)
    assert found[f"{V2}/cat/{ONE}_nohash_0.wav"] == ("_unknown_", "train")
    assert found[f"{TEST}/_unknown_/bird_{THREE}_nohash_0.wav.wav"] == ("_unknown_", "test")
    assert not any("/bird/" in path for path in found)  # listed for testing: in neither part
    # range(0, 48000 - 16000, 8000) and range(0, 36000 - 16000, 8000): four and three windows.
    noise = f"{V2}/_background_noise_"
    silent = {path for path, (label, part) in found.items() if label == "_silence_"}
    assert silent == {
        *(
            f"{noise}/dude_miaowing.wav#t={a},{b}"
            for a, b in ((0, 1), (0.5, 1.5), (1, 2), (1.5, 2.5))
        ),
        *(f"{noise}/running_tap.wav#t={a},{b}" for a, b in ((0, 1), (0.5, 1.5), (1, 2))),
        f"{TEST}/_silence_/0.wav",
    }
    assert {found[path][1] for path in silent if "running_tap" in path} == {"valid"}
    assert len(facts["classes"]) == 12
    speakers = {row["path"]: row["speaker"] for row in rows}
    assert speakers[f"{TEST}/_unknown_/bird_{THREE}_nohash_0.wav.wav"] == THREE


def test_a_window_of_silence_is_that_second_of_the_noise(mini):
    twelve(mini)
    mini.build("speech_commands_v2_12")
    corpus = open_corpus(mini.root.parent / "out")
    row = next(
        i for i in range(len(corpus)) if corpus.name(i).endswith("dude_miaowing.wav#t=0.5,1.5")
    )
    whole = read_audio(mini.root / V2 / "_background_noise_/dude_miaowing.wav")
    np.testing.assert_array_equal(read_audio(corpus.source(row)), whole[8000:24000])


def test_tensorflows_shares_are_a_tenth_of_the_wanted_words_and_repeat(mini):
    twelve(mini)
    for i in range(1, 15):
        mini.touch(f"{V2}/yes/{i:08x}_nohash_0.wav", f"{V2}/cat/{i:08x}_nohash_0.wav")
    rows, facts = mini.build("speech_commands_v2_12", recipe="tensorflow")
    count = {}
    for row in rows:
        key = row["label"], row["split"]
        count[key] = count.get(key, 0) + 1
    # 15 wanted train words: ceil(1.5) = 2 unknown and 2 silent; 1 in valid: 1 and 1.
    assert count["yes", "train"] == 15
    assert count["_unknown_", "train"] == count["_silence_", "train"] == 2
    assert count["_unknown_", "valid"] == count["_silence_", "valid"] == 1
    assert "hash of their names" in facts["notes"][0]
    again, _ = mini.build("speech_commands_v2_12", recipe="tensorflow")
    assert again == rows
    assert PUBLISHED["speech_commands_v2_12,recipe=tensorflow"].counts["train"] == 30769 + 2 * 3077


def test_voxceleb_takes_merged_and_separate_archives(mini):
    lines = ["3 id1/a/00001.wav", "1 id1/b/00001.wav", "2 id1/c/00001.wav", "1 id2/d/00001.wav"]
    mini.text("iden_split.txt", "\n".join(lines) + "\n")
    mini.touch("wav/id1/a/00001.wav", "wav/id1/b/00001.wav", "test/wav/id1/c/00001.wav")
    rows, facts = mini.build("voxceleb1")
    assert parts(rows) == {
        "wav/id1/a/00001.wav": ("id1", "test"),
        "wav/id1/b/00001.wav": ("id1", "train"),
        "test/wav/id1/c/00001.wav": ("id1", "valid"),
    }
    assert facts["missing"] == {"train": 1}
    assert (mini.root.parent / "out/missing.csv").read_text() == (
        "path,split\nwav/id2/d/00001.wav,train\n"
    )


def test_a_damaged_split_list_names_the_line(mini):
    mini.text("iden_split.txt", "1 id1/b/00001.wav\n4 id1/a/00001.wav\n")
    with pytest.raises(ValueError, match="in line 2"):
        mini.build("voxceleb1")


HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"


def evaluation(*turns):
    blocks = [
        f"[6.2901 - 8.2357]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n"
        "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
        for turn, emotion in turns
    ]
    return HEADER + "".join(blocks)


def iemocap(mini):
    for session in range(1, 6):
        for dialog in (f"Ses0{session}F_impro01", f"Ses0{session}M_script02_2"):
            turns = [
                (f"{dialog}_F000", "exc"),
                (f"{dialog}_M000", "neu"),
                (f"{dialog}_F001", "fru"),
                (f"{dialog}_MXX0", "xxx"),
            ]
            folder = f"Session{session}"
            mini.text(f"{folder}/dialog/EmoEvaluation/{dialog}.txt", evaluation(*turns))
            mini.touch(f"{folder}/dialog/EmoEvaluation/._{dialog}.txt")
            mini.touch(*(f"{folder}/sentences/wav/{dialog}/{turn}.wav" for turn, _ in turns))


def test_iemocap_merges_excited_into_happy_and_leaves_sessions_out(mini):
    iemocap(mini)
    rows, facts = mini.build("iemocap")
    assert len(rows) == 20
    assert facts["counts"] == {str(session): 4 for session in range(1, 6)}
    assert facts["classes"] == ["ang", "hap", "neu", "sad"]
    assert facts["left_out"] == {"labelled fru": 10, "labelled xxx": 10}
    row = next(row for row in rows if row["path"].endswith("Ses03M_script02_2_F000.wav"))
    assert row["path"] == "Session3/sentences/wav/Ses03M_script02_2/Ses03M_script02_2_F000.wav"
    assert (row["label"], row["emotion"], row["fold"]) == ("hap", "exc", "3")
    # The name of a dialog says who wore the markers; the letter at the end says who speaks.
    assert (row["speaker"], row["style"]) == ("Ses03F", "scripted")
    assert "0 of 10 values of speaker are in more than one split" in facts["notes"]
    assert "class sad: 1,084 published, 0 here" in facts["differences"]


def test_iemocap_takes_improvised_turns_alone(mini):
    iemocap(mini)
    rows, facts = mini.build("iemocap", utterances="improvised")
    assert {row["style"] for row in rows} == {"improvised"}
    assert facts["left_out"]["scripted"] == 10
    assert facts["differences"] == []  # no published counts for that


ARCHIVES = [
    ("de", "anna-20090101-aaa"), ("de", "anna-20090202-bbb"), ("de", "otto-20090101-ccc"),
    ("en", "bob-20080101-ddd"), ("en", "eve-20080101-eee"), ("es", "luz-20080101-fff"),
    ("fr", "guy-20080101-ggg"), ("it", "ugo-20080101-hhh"), ("ru", "ivan-20080101-iii"),
    ("ru", "anonymous-20080101-jjj"),
]  # fmt: skip
TRUNK = "www.repository.voxforge1.org/downloads/{}/Trunk/Audio/Main/16kHz_16bit"


def voxforge(mini, *, listed=True, flat=False, clips=2):
    if listed:
        lines = [f'"{TRUNK.format(language)}/{name}.tgz"' for language, name in ARCHIVES]
        mini.text("voxforge_urls.txt", "\n".join(lines) + "\n")
    for language, name in ARCHIVES:
        folder = name if flat else f"{TRUNK.format(language)}/{name}"
        mini.touch(*(f"{folder}/wav/{name[:2]}{i}.wav" for i in range(clips)))
        mini.touch(f"{folder}/etc/README")


def speakers_of_tensorflow_datasets():
    """Its rule, written down once more: 70/10/20 % of the speakers, shuffled with seed 0."""
    speakers = sorted({name.split("-")[0] for _, name in ARCHIVES})
    np.random.RandomState(0).shuffle(speakers)
    n = len(speakers)
    first, second = int(0.7 * n), int((0.7 + 0.1) * n)
    return {
        speaker: "train" if i < first else "valid" if i < second else "test"
        for i, speaker in enumerate(speakers)
    }


def test_voxforge_speakers_are_split_as_in_tensorflow_datasets(mini):
    voxforge(mini)
    rows, facts = mini.build("voxforge")
    wanted = speakers_of_tensorflow_datasets()
    assert len(rows) == 2 * len(ARCHIVES)
    assert all(row["split"] == wanted[row["speaker"]] for row in rows)
    assert {(row["label"], row["archive"]) for row in rows} == set(ARCHIVES)
    assert facts["notes"] == [f"0 of {len(wanted)} values of speaker are in more than one split"]


def test_voxforge_keeps_the_split_when_archives_are_lost(mini):
    voxforge(mini)
    before = {row["path"]: row["split"] for row in mini.build("voxforge")[0]}
    for name in ("bob-20080101-ddd", "anna-20090101-aaa"):
        for file in mini.root.rglob(f"{name}/wav/*.wav"):
            file.unlink()
    rows, facts = mini.build("voxforge")
    assert len(rows) == 2 * len(ARCHIVES) - 4
    assert all(before[row["path"]] == row["split"] for row in rows)
    assert facts["notes"][0] == "2 of 10 listed archives not found"


def test_voxforge_unpacked_into_one_folder_finds_languages_in_the_list(mini):
    voxforge(mini, flat=True)
    rows, _ = mini.build("voxforge")
    assert {(row["label"], row["archive"]) for row in rows} == set(ARCHIVES)
    mini.touch("stray-20080101-kkk/wav/st0.wav")
    _, facts = mini.build("voxforge")
    assert facts["left_out"] == {"in an archive of no known language": 1}


@pytest.mark.parametrize("rule", ["archive", "utterance"])
def test_voxforge_other_rules_say_that_speakers_recur(mini, rule):
    voxforge(mini, listed=False, clips=10)
    for i in range(20):
        mini.touch(f"{TRUNK.format('de')}/anna-2010{i:04d}-zzz/wav/an0.wav")
    rows, facts = mini.build("voxforge", rule=rule)
    of = {}
    for row in rows:
        of.setdefault(row["archive"], set()).add(row["split"])
    shared = sum(len(found) > 1 for found in of.values())
    assert (shared == 0) == (rule == "archive")
    assert "no voxforge_urls.txt" in facts["notes"][0]
    said = {row["speaker"]: set() for row in rows}
    for row in rows:
        said[row["speaker"]].add(row["split"])
    recurring = sum(len(found) > 1 for found in said.values())
    assert recurring >= 1  # anna has archives enough to be everywhere
    assert facts["notes"][-1].startswith(f"{recurring} of 9 values of speaker are in more")
    assert set(facts["counts"]) == (
        {"train", "valid", "test"} if rule == "archive" else {"train", "test"}
    )
