import logging
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from ssmast.audio import open_corpus, open_words
from ssmast.evaluation.cluster_task import ClusterConfig, run_clusters
from ssmast.evaluation.find_set import find_sets
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.finetune.setup import set_up


def sounds(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pitch = 0.1 if "frog" in name else 0.6
        noise = 0.01 * rng.standard_normal(3200)
        kind = "FLAC" if name.lower().endswith("flac") else "WAV"
        sound = 0.3 * np.sin(pitch * np.arange(3200)) + noise
        soundfile.write(folder / name, sound, 16000, format=kind)
    return folder


def card(folder):
    """As a recorder's card looks that a Mac copied."""
    names = [
        name
        for label in ("frog", "Turdus merula")
        for i in range(10)
        for name in (f"{label}/{i}.WAV", f"{label}/a{i}.wav", f"{label}/night 1/c{i}.flac")
    ]
    sounds(folder, names)
    for label in ("frog", "Turdus merula", "__MACOSX/frog", ".Trashes"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / "._a1.wav").write_bytes(b"\0\5\26\7" + bytes(300))
    (folder / "frog/notes.txt").write_text("rain")
    return folder


def test_folders_are_classes_at_any_depth_and_a_hash_of_the_names_decides_the_parts(
    tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    folder = card(tmp_path / "sounds")
    assert find_sets(folder) == ["sounds"]
    found = load_set(folder)
    assert found.classes == ["Turdus merula", "frog"]
    assert [len(part) for part in found.splits[0].parts().values()] == [40, 8, 12]
    for part in found.splits[0].parts().values():  # stratified
        assert sum(found.labels[i] == "frog" for i in part) == len(part) / 2
    assert all(clip.startswith(found.labels[i]) for i, clip in enumerate(found.clips))
    corpus = open_corpus(found.folder)
    assert [corpus.name(int(row)) for row in found.rows] == found.clips
    assert "classes are its folders; 12 of 60 clips test" in caplog.text
    assert load_set(tmp_path, "sounds").ids_sha256() == found.ids_sha256()
    sounds(folder, ["zebra/1.wav", "zebra/2.wav", "zebra/3.wav"])  # moves no other
    more = load_set(folder)
    part_of = [
        {one.clips[i]: part for part, rows in one.splits[0].parts().items() for i in rows}
        for one in (found, more)
    ]
    assert part_of[0].items() <= part_of[1].items()


@pytest.mark.parametrize(
    "words",
    [("train", "valid", "test"), ("Training", "dev", "TEST"), ("training", "val", "Evaluation")],
)
def test_folders_above_the_classes_are_the_parts(tmp_path, words):
    names = [f"{word}/{label}/{i}.wav" for word in words for label in "ab" for i in range(2)]
    sounds(tmp_path / "s", names)
    found = load_set(tmp_path / "s")
    for word, rows in zip(words, found.splits[0].parts().values(), strict=True):
        assert {found.clips[i].split("/")[0] for i in rows} == {word}
        assert [found.labels[i] for i in rows] == ["a", "a", "b", "b"]


def test_parts_may_lie_below_the_classes_and_folds_above_them(tmp_path, caplog):
    names = [f"{c}/{word}/{i}.wav" for c in "ab" for word in ("train", "val", "test") for i in "12"]
    found = load_set(sounds(tmp_path / "s", names))
    assert found.classes == ["a", "b"]
    for word, rows in zip(("train", "val", "test"), found.splits[0].parts().values(), strict=True):
        assert {found.clips[i].split("/")[1] for i in rows} == {word}
    names = [f"Fold_{k}/{c}/{i}.wav" for k in range(1, 4) for c in "ab" for i in "12"]
    caplog.set_level(logging.INFO)
    found = load_set(sounds(tmp_path / "f", names))
    assert found.classes == ["a", "b"]
    tested = [{found.clips[i].split("/")[0] for i in split.test} for split in found.splits]
    assert tested == [{"Fold_1"}, {"Fold_2"}, {"Fold_3"}]
    assert "folds and classes are its folders" in caplog.text
    # Beside a test part, evaluation may be another one.
    names = [f"{w}/{c}/{i}.wav" for w in ("train", "test", "eval") for c in "ab" for i in "12"]
    with pytest.raises(ValueError, match="holds the parts test, train and beside them eval"):
        load_set(sounds(tmp_path / "e", names))


def test_a_test_part_that_is_missing_is_drawn_and_a_loose_sound_is_left_out(tmp_path):
    names = [f"{word}/{c}/{i}.wav" for word in ("train", "valid") for c in "ab" for i in range(5)]
    found = load_set(sounds(tmp_path / "s", [*names, "train/loose.wav"]))
    assert [len(part) for part in found.splits[0].parts().values()] == [8, 10, 2]
    assert found.left_out == {"empty label": 1}


def test_what_lies_beside_class_folders_is_no_other_set_unless_it_has_labels(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [f"{label}/{i}.wav" for label in ("frog", "rain") for i in range(5)]
    folder = sounds(tmp_path / "set", names)
    (folder / "notes.csv").write_text("x,y\n1,2\n")
    (folder / "e.quarantine.csv").write_text("path,reason\n")
    soundfile.write(folder / "frog/x.flac", np.zeros(9), 16000)
    pq.write_table(pa.table({"name": ["a"], "embedding": [[0.0]]}), folder / "e.parquet")
    with tarfile.open(folder / "old.tar", "w"):
        pass
    (folder / "again").symlink_to(folder / "frog")
    assert find_sets(folder) == ["set"]
    assert load_set(folder).classes == load_set(tmp_path, "set").classes == ["again", "rain"]
    assert "4 files are not used: 2 .csv, 1 .parquet, 1 links to folders that are here" in (
        caplog.text
    )
    (folder / "mine.csv").write_text("path,label\n" + "".join(f"{n},{n[-5]}\n" for n in names))
    assert "mine.csv" in find_sets(folder)
    assert load_set(folder, "mine.csv").classes == list("01234")


def test_a_class_may_be_called_train_but_parts_beside_classes_are_refused(tmp_path):
    names = [f"{label}/{i}.wav" for label in ("train", "bus", "car") for i in range(5)]
    assert load_set(sounds(tmp_path / "s", names)).classes == ["bus", "car", "train"]
    names = [
        f"{word}/{c}/{i}.wav" for word in ("train", "test", "extra") for c in "ab" for i in "12"
    ]
    sounds(tmp_path / "t", names)
    for read in (find_sets, load_set):
        with pytest.raises(ValueError, match="holds the parts test, train and beside them extra"):
            read(tmp_path / "t")
    for name, names in {"u": ["a/1.wav", "a/2.wav"], "v": ["1.wav", "2.wav"]}.items():
        with pytest.raises(FileNotFoundError, match="or a folder of sounds for each class"):
            find_sets(sounds(tmp_path / name, names))


def test_folders_whose_names_say_parts_are_no_classes(tmp_path):
    names = [f"my-{word}/{c}/{i}.wav" for word in ("train", "test") for c in "ab" for i in "1234"]
    found = load_set(sounds(tmp_path / "s", names))
    assert found.classes == ["a", "b"]
    assert {found.clips[i].split("/")[0] for i in found.splits[0].test} == {"my-test"}
    # Without classes in them, as NSynth's and FSD50K's, and UrbanSound8K's folds.
    for words in (("x-train", "x-valid"), ("x.dev_audio", "x.eval_audio"), ("fold1", "fold2")):
        names = [f"{word}/audio/{i}.wav" for word in words for i in "12"]
        names = [name.replace("/audio", "") if "-" not in name else name for name in names]
        with pytest.raises((FileNotFoundError, ValueError)):
            load_set(sounds(tmp_path / words[0], names))
    names = [f"{word}/{i}.wav" for word in ("train-clean-100", "dev-clean") for i in "12"]
    with pytest.raises(ValueError, match="dev-clean, train-clean-100: are these parts, sets or"):
        find_sets(sounds(tmp_path / "libri", names))


def test_a_part_beside_the_classes_holds_them_once_more(tmp_path):
    names = [f"{c}/{i}.wav" for c in ("de", "en", "dev/de", "dev/en") for i in range(5)]
    found = load_set(sounds(tmp_path / "s", names))
    assert found.classes == ["de", "en"]
    assert [len(part) for part in found.splits[0].parts().values()] == [8, 10, 2]


def test_folders_that_may_be_sets_or_copies_of_the_classes(tmp_path, caplog):
    names = [
        f"{top}/{c}/{i}.wav" for top in ("dev_a", "test_b", "frogs") for c in "ab" for i in "12"
    ]
    assert load_set(sounds(tmp_path / "s", names)).classes == ["dev_a", "frogs", "test_b"]
    assert "names say parts are taken as classes: dev_a, test_b; if each is a set" in caplog.text
    names = [f"{top}{c}/{i}.wav" for top in ("", "all 1-2/") for c in ("A1", "A2") for i in "123"]
    with pytest.raises(ValueError, match="all 1-2 holds folders called as those beside it, A1, A2"):
        find_sets(sounds(tmp_path / "c", names))


def test_lists_of_parts_beside_class_folders(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [f"{word}/{i}.wav" for word in ("yes", "no", "_background_noise_") for i in range(4)]
    folder = sounds(tmp_path / "s", names)
    (folder / "testing_list.txt").write_text("yes/0.wav\nno/0.wav\nno/gone.wav\n")
    (folder / "validation_list.txt").write_text("yes/1.wav\nno/1.wav\n")
    (folder / "notes.txt").write_text("yes/2.wav\n")
    found = load_set(folder)
    assert (found.classes, found.left_out) == (["no", "yes"], {"empty label": 4})
    train, valid, test = (
        [found.clips[i] for i in rows] for rows in found.splits[0].parts().values()
    )
    assert (len(train), valid, test) == (4, ["no/1.wav", "yes/1.wav"], ["no/0.wav", "yes/0.wav"])
    assert "testing_list.txt: 2 clips of this part, 1 that it names are not there" in caplog.text
    assert "_background_noise_ is no class" in caplog.text
    (folder / "test_too.txt").write_text("yes/1.wav\n")
    with pytest.raises(ValueError, match=r"'yes/1\.wav', which another list of a part names too"):
        load_set(folder)


def test_what_was_deleted_is_no_class_and_numbered_folders_are_named(tmp_path, caplog):
    names = [f"Actor_0{k}/{i}.wav" for k in (1, 2) for i in range(5)]
    folder = sounds(tmp_path / "s", [*names, "$RECYCLE.BIN/S-1/gone.wav"])
    assert load_set(folder).classes == ["Actor_01", "Actor_02"]
    assert len(open_corpus(folder)) == 10
    assert "differ by a number alone are taken as classes: Actor_01, Actor_02" in caplog.text


def test_classes_that_cross_speakers_and_emotions_are_named(tmp_path, caplog):
    """As TESS unpacks: OAF_angry holds one speaker's angry words."""
    pairs = [f"{who}_{what}" for who in ("OAF", "YAF") for what in ("angry", "Sad", "neutral")]
    folder = sounds(tmp_path / "tess", [f"{pair}/{i}.wav" for pair in pairs for i in range(3)])
    assert len(load_set(folder).classes) == 6
    assert "folders named for two things are taken as classes: OAF_Sad" in caplog.text
    caplog.clear()
    kinds = ["dog_bark", "dog_growl", "car_horn", "car_door", "house_door"]
    load_set(sounds(tmp_path / "kinds", [f"{kind}/{i}.wav" for kind in kinds for i in range(3)]))
    assert "named for two things" not in caplog.text


def test_labels_may_be_taken_of_the_names(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [f"recordings/{k}_{who}_{i}.wav" for k in "01" for who in "abcd" for i in "01"]
    folder = sounds(tmp_path / "fsdd", names)
    pattern = r"(\d+)_[^/]*$"
    with pytest.raises(FileNotFoundError) as raised:
        load_set(folder)
    assert str(raised.value).endswith(f"give task fsdd:label='{pattern}'")
    found = load_set(folder, f"fsdd:label='{pattern}',group='_(.*)_'")
    assert (found.classes, len(found.clips)) == (["0", "1"], 16)
    assert "classes are its folders" not in caplog.text
    who = [{found.groups[i] for i in rows} for rows in found.splits[0].parts().values()]
    assert not who[0] & who[2]
    assert load_set(folder, labels=[pattern]).labels == [name[11] for name in sorted(names)]
    with pytest.raises(
        ValueError, match="label=x\\(x\\) takes nothing of the path 'recordings/0_a_0"
    ):
        load_set(folder, "fsdd:label='x(x)'")
    flat = sounds(tmp_path / "flat", [f"{k}_{i}.wav" for k in "01" for i in range(6)])
    assert load_set(flat, f"flat:label='{pattern}'").classes == ["0", "1"]


def test_one_folder_around_the_classes_may_have_any_name(tmp_path):
    sounds(tmp_path / "zip/pets", [f"{c}/{i}.wav" for c in ("cat", "dog") for i in range(5)])
    (tmp_path / "zip/__MACOSX/pets/cat").mkdir(parents=True)
    (tmp_path / "zip/__MACOSX/pets/cat/._1.wav").write_bytes(b"x")
    assert find_sets(tmp_path / "zip") == ["pets"]
    assert load_set(tmp_path / "zip").classes == ["cat", "dog"]


def test_every_command_takes_class_folders(tmp_path, encoder_folder):
    folder = card(tmp_path / "sounds")
    words = {"data": str(folder), "encoder": str(encoder_folder), "baselines": "false"}
    (result,) = run_suite(ProbeConfig(**words, out=str(tmp_path / "o"), protocol="knn"))
    assert (result.n_train, result.n_valid, result.n_test, result.mean) == (40, 8, 12, 1.0)
    assert result.rejected == []
    clusters = run_clusters(
        ClusterConfig(**words, out=str(tmp_path / "c"), umap="false", seeds=1, part="all")
    )
    assert clusters.n == 60
    setup = set_up(FinetuneConfig(data=str(folder), init=str(encoder_folder)))
    assert (len(setup.clips), setup.found.classes) == (40, ["Turdus merula", "frog"])
    assert len(open_words(str(folder))) == 60
